"""Whether an artefact answers as the run it is from: `python -m export.verify --artefact=PATH`.

Looked at in this order: is it whole; names, shapes and types, by the word of the engine that runs
it; operators that a server lacks; values on real images; and from encoded images, end to end.
"""

import dataclasses
import itertools
import math

import numpy as np

from deit_tf import flags
from deit_tf.config import InputError

BATCHES = (1, 3, 32)  # and 32 again, until all images are through
IMAGES = sum(BATCHES)
_FEW = 4  # images, of what is not for decisions
END_TO_END = 5e-3  # of the largest logit, from an encoded image


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far an artefact may be from the run.

    Attributes:
      error: largest difference of a logit, of the largest logit.
      agreement: smallest part of the images whose top class is the same.
    """

    error: float
    agreement: float


TOLERANCES = {
    "float32": Tolerance(1e-5, 1.0),
    "float16": Tolerance(5e-3, 0.97),  # one in 36 may have two classes as likely as each other
    "int8": Tolerance(0.1, 0.9),
}


class VerificationError(InputError):
    """The artefact is not what it says it is."""


class DamagedError(VerificationError):
    """Files differ from those that were exported."""


class LoadError(VerificationError):
    """The engine that is to run it cannot even load it."""


class NamesError(VerificationError):
    """A signature, an input or an output has another name."""


class ShapesError(VerificationError):
    """An input or output has another shape."""


class TypesError(VerificationError):
    """An input or output has another type."""


class OperatorsError(VerificationError):
    """TF Serving cannot run one of its operators."""


class ValuesError(VerificationError):
    """It answers otherwise on the same pixels."""


class PreprocessingError(VerificationError):
    """It answers otherwise on the same encoded image, though not on the same pixels."""


def verify(path, found, run_dir, images=IMAGES):
    """Raises where an artefact does not answer as a run.

    Args:
      path: the artefact.
      found: the run's `inference.Inference`.
      run_dir: its directory, whose data is looked at where it is there.
      images: how many are compared, if there are as many.

    Returns:
      One line about what was found.

    Raises:
      VerificationError: one class for each way in which it can differ.
    """
    from export import artefact, samples

    path = artefact.find(path)
    if artefact.digest_of(path) != artefact.read_manifest(path).digest:
        raise DamagedError(f"{path} is not what was exported: its digest differs; export it anew")
    try:
        opened = artefact.open_artefact(path)
    except InputError as error:
        raise LoadError(str(error)) from error
    _check_same_run(path, opened.manifest, found.manifest)
    _check_signatures(path, opened)
    if isinstance(opened, artefact.SavedModel):
        _check_operators(path, opened.graph.graph_def)
    limit = opened.manifest.max_pixels or math.inf  # which are pixels alone
    images = samples.encoded(run_dir, images, limit)
    if not images:
        raise VerificationError(
            f"max_pixels is {limit}: none of the images that would be compared is as small; give"
            " more"
        )
    pixels = samples.pixels(images, found.manifest)
    expected = _together([found.answer(part) for part in _batches(pixels)])
    line = _check_values(path, opened, pixels, expected)
    if "serving_default" in opened.manifest.signatures:
        _check_end_to_end(path, opened, images, expected)
    _check_the_rest(path, opened, found, images[:_FEW], pixels[:_FEW])
    return line


def _check_same_run(path, theirs, ours):
    """Raises VerificationError where an artefact is from other weights, or is told of otherwise."""
    names = [field.name for field in dataclasses.fields(ours)]
    artefacts_own = {"signatures", "precision", "target", "max_pixels", "versions", "digest"}
    for name in [name for name in names if name not in artefacts_own]:
        one, other = getattr(theirs, name), getattr(ours, name)
        if name == "source":
            name, one, other = "weights_sha256", *(of.get("weights_sha256") for of in (one, other))
        if one != other:
            raise VerificationError(
                f"{path} is not of this run's {ours.source['checkpoint']} checkpoint: its {name} is"
                f" {_short(one)}, not {_short(other)}"
            )


def _short(value):
    """A value as a text that fits a line."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_signatures(path, opened):
    """Raises where the engine takes or answers otherwise than the manifest says."""
    told, real = opened.manifest.signatures, opened.signatures()
    _check_names(path, "signatures", told, real)
    if "pixels" not in told or not {"logits", "probabilities"} <= set(told["pixels"].outputs):
        raise NamesError(f"{path} lacks the outputs logits and probabilities of pixels")
    for name, signature in told.items():
        for part in ("inputs", "outputs"):
            one, other = getattr(signature, part), getattr(real[name], part)
            where = f"{part} of {name}"
            _check_names(path, where, one, other)
            for tensor, expected in one.items():
                if expected.shape != other[tensor].shape:
                    raise ShapesError(
                        f"{path}: {where}: {tensor} has shape {other[tensor].shape}, not"
                        f" {expected.shape}"
                    )
                if expected.dtype != other[tensor].dtype:
                    raise TypesError(
                        f"{path}: {where}: {tensor} is {other[tensor].dtype}, not {expected.dtype}"
                    )


def _check_names(path, where, told, real):
    """Raises NamesError where two dictionaries have other keys."""
    if set(told) != set(real):
        raise NamesError(
            f"{path}: {where} are {', '.join(sorted(real))}, not {', '.join(sorted(told))}"
        )


def _check_operators(path, graph):
    """Raises OperatorsError where TF Serving could not run a graph."""
    import tensorflow as tf

    nodes = [*graph.node, *(node for each in graph.library.function for node in each.node_def)]
    for node in nodes:
        # Python lives in the process that made it; the rest of TensorFlow's kernels are linked in.
        if "PyFunc" in node.op or node.op == "NumpyFunction" or not hasattr(tf.raw_ops, node.op):
            raise OperatorsError(f"{path}: TF Serving has no operator {node.op} ({node.name})")
    for function in graph.library.function:
        if function.attr["_XlaMustCompile"].b:
            raise OperatorsError(
                f"{path}: function {function.signature.name} must be compiled by XLA, which TF"
                " Serving does not do by default"
            )


def _check_values(path, opened, pixels, expected):
    """Raises ValuesError; answers one line about how near it is."""
    allowed = TOLERANCES[opened.manifest.precision]
    answers = _together([opened.call("pixels", part) for part in _batches(pixels)])
    logits, probabilities = answers["logits"], answers["probabilities"]
    error = _error(logits, expected["logits"])
    agreement = np.mean(logits.argmax(-1) == expected["logits"].argmax(-1))
    said = f"logits within {error:.1e} of the largest, top class the same on {agreement:.1%}"
    if not (error <= allowed.error and agreement >= allowed.agreement):
        raise ValuesError(
            f"{path} does not answer as its run: {said}; {allowed.error:.0e} and"
            f" {allowed.agreement:.1%} are asked of {opened.manifest.precision}"
        )
    off = np.max(np.abs(probabilities - _softmax(logits)))
    if not off <= 1e-5:
        raise ValuesError(f"{path}: probabilities are {off:.1e} off the softmax of its logits")
    return f"{said}, {len(pixels)} images"


def _batches(images):
    """Parts of 1, 3, 32, 32, … images."""
    starts = np.cumsum((0, *BATCHES, *[BATCHES[-1]] * (len(images) // BATCHES[-1])))
    parts = [images[start:end] for start, end in itertools.pairwise(starts)]
    return [part for part in parts if len(part)]


def _together(answers):
    """One dictionary of arrays of several."""
    return {
        name: np.concatenate([np.asarray(answer[name]) for answer in answers])
        for name in answers[0]
    }


def _check_end_to_end(path, opened, images, expected):
    """Raises PreprocessingError where encoded images are answered otherwise."""
    answered = _together([opened.call("serving_default", part) for part in _batches(images)])
    error = _error(_as_logits(answered["probabilities"]), _as_logits(expected["probabilities"]))
    if not error <= END_TO_END:
        raise PreprocessingError(
            f"{path}: from encoded images logits are {error:.1e} of the largest off; at most"
            f" {END_TO_END:.0e} is asked: it decodes or resizes otherwise"
        )
    ids = np.argsort(-answered["probabilities"], axis=-1, kind="stable")
    ids = ids[:, : answered["class_ids"].shape[1]]
    labels = np.array(opened.manifest.labels, object)
    names = np.char.decode(answered["class_names"].astype(bytes), "utf-8")
    scores = np.take_along_axis(answered["probabilities"], ids, axis=-1)
    if not (
        np.array_equal(ids, answered["class_ids"])
        and np.array_equal(names, labels[ids].astype(str))
        and np.array_equal(scores, answered["scores"])
    ):
        raise ValuesError(f"{path}: class_ids, class_names and scores are not the largest ones")


def _check_the_rest(path, opened, found, images, pixels):
    """Raises ValuesError where tokens or maps of attention are others."""
    told, allowed = opened.manifest.signatures, TOLERANCES[opened.manifest.precision].error
    pairs = [
        (opened.call(name, images), getattr(found, name)(pixels))
        for name in ("features", "attention")
        if name in told
    ]
    if "attention_cls" in told["pixels"].outputs:
        maps = found.attention(pixels)
        expected = {f"attention_{name}": value for name, value in maps.items()}
        pairs.append((opened.call("pixels", pixels), expected))
    for answered, expected in pairs:
        for name, value in expected.items():
            error = _error(answered[name], np.asarray(value))
            if not error <= allowed:
                raise ValuesError(
                    f"{path} answers another {name}: {error:.1e} of the largest off; {allowed:.0e}"
                    f" is asked of {opened.manifest.precision}"
                )


def _error(found, expected):
    """Largest difference, of the largest expected; 0 where both are 0 everywhere."""
    difference = float(np.max(np.abs(found - expected)))
    return difference and difference / float(np.max(np.abs(expected)))


def _softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def _as_logits(probabilities):
    """Logits whose mean is 0, which is all that probabilities tell of them."""
    logits = np.log(np.maximum(probabilities, 1e-37))
    return logits - logits.mean(-1, keepdims=True)


def main(argv):
    """Flags -> what differs, or one line."""
    del argv
    given = flags.FLAGS
    for name in ("run_dir", "artefact"):
        if not getattr(given, name):
            raise InputError(f"no {name}; give --run_dir=DIR and --artefact=PATH")
    from deit_tf import rundir

    rundir.check_deit(given.run_dir, given.checkpoint or "last")

    from deit_tf import inference
    from export import artefact

    told = artefact.read_manifest(artefact.find(given.artefact))
    which = given.checkpoint or told.source.get("checkpoint", "last")
    found = inference.open_run(given.run_dir, which, told.fusion or None)
    print(f"{given.artefact}: {verify(given.artefact, found, given.run_dir, given.images)}")


def run():
    """The command: its flags, then `main`."""
    flags.define_text("run_dir", None, "The run directory that it is from.")
    flags.define_text("artefact", None, "A SavedModel's folder, or an ONNX file.")
    flags.define_text("checkpoint", None, "Which weights: last or best; default: the artefact's.")
    flags.define_number("images", IMAGES, "How many are compared, if there are as many.")
    flags.run(main)


if __name__ == "__main__":
    run()
