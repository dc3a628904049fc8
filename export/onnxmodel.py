"""A run -> an ONNX file: `python -m export.onnxmodel --run_dir=DIR --output=deit.onnx`."""

import dataclasses
import logging
import os
import pathlib

import absl.logging

from deit_tf import flags
from deit_tf import manifest as manifests
from deit_tf.config import InputError

TARGETS = ("portable", "cpu", "cuda")
_CONVERTED = 18  # tf2onnx's newest opset; in older ones its norms cannot be told
_OPSET, _OPSET_OF_ATTENTION = 20, 23


def export(run_dir, output, options, which="last", fusion=None):
    """Writes an ONNX file, once it has proved itself.

    Args:
      run_dir: a run directory.
      output: the file to write.
      options: an `Options`.
      which: "last" or "best" checkpoint.
      fusion: "logits" or "softmax"; None is the run's own.

    Returns:
      One line about how near its answers are.

    Raises:
      config.InputError: no such run, or a file that cannot be written.
      verify.VerificationError: it does not answer as the run; nothing is left of it.
    """
    # What can be wrong is looked for before TensorFlow is imported, which takes seconds.
    from deit_tf import rundir

    rundir.check_deit(run_dir, which)
    path = pathlib.Path(output)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give --output=FILE.onnx")

    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with rundir.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    try:
        from deit_tf import inference
        from export import verify

        found = inference.open_run(run_dir, which, fusion)
        model = build(found, options)
        with rundir.writing(path):
            part.write_bytes(model.SerializeToString())
        line = verify.verify(part, found, run_dir)
        with rundir.writing(path):
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return line


@dataclasses.dataclass(frozen=True)
class Options:
    """What kind of file.

    Attributes:
      precision: "float32", "float16" or "int8" (weights and products of the blocks).
      target: "portable": standard operators alone; "cpu" and "cuda": what is fastest in ONNX
        Runtime there.
      with_attention: whether it answers attention maps, too.
      standard_attention: whether a portable file has the standard's Attention (opset 23).

    Raises:
      InputError: two that exclude each other.
    """

    precision: str = "float32"
    target: str = "portable"
    with_attention: bool = False
    standard_attention: bool = False

    def __post_init__(self):
        for name, allowed in (("precision", manifests.PRECISIONS), ("target", TARGETS)):
            value = getattr(self, name)
            if value not in allowed:
                raise InputError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")
        for refused, reason in _EXCLUDED.items():
            if all(getattr(self, name) == value for name, value in refused):
                given = " and ".join(f"{name} {value}" for name, value in refused)
                raise InputError(f"{given} do not go together: {reason}")


_EXCLUDED = {
    (("target", "cuda"), ("with_attention", True)): (
        "its attention is one operator that answers no weights; give --target=portable or cpu"
    ),
    (("standard_attention", True), ("with_attention", True)): (
        "the operator answers no weights; leave one away"
    ),
    (("standard_attention", True), ("target", "cpu")): "give --target=portable",
    (("standard_attention", True), ("target", "cuda")): "give --target=portable",
    (("standard_attention", True), ("precision", "int8")): (
        "ONNX Runtime's quantiser takes it for another operator; leave one away"
    ),
    (("target", "cuda"), ("precision", "int8")): (
        "ONNX Runtime has no int8 for it; give --precision=float16"
    ),
    (("target", "cpu"), ("precision", "float16")): (
        "ONNX Runtime computes it by way of float32 there; give --precision=float32 or int8"
    ),
}


def build(found, options):
    """The ONNX model of a run.

    Args:
      found: an `inference.Inference`.
      options: an `Options`.

    Returns:
      An `onnx.ModelProto` with its manifest.
    """
    import onnx

    from deit_tf import inference
    from export import artefact, graph, precision

    opset = _OPSET_OF_ATTENTION if options.standard_attention else _OPSET
    model = onnx.version_converter.convert_version(converted(found, options), opset)
    rewritten = graph.Graph(model)
    for rewrite in _passes(options):
        rewrite(rewritten)
    rewritten.tidy()
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import, True)
    _name(model)
    model = precision.convert(model, options.precision)
    if options.target == "portable":
        onnx.checker.check_model(model, full_check=True)
    manifest = dataclasses.replace(
        found.manifest,
        precision=options.precision,
        target=options.target,
        signatures={"pixels": _signature(model)},
        digest=artefact.digest_of_graph(model),
        versions=inference.versions("tf2onnx", "onnx", "onnxruntime-gpu"),
    )
    onnx.helper.set_model_props(model, {manifests.KEY: manifest.to_json()})
    return model


def converted(found, options):
    """What tf2onnx makes of a run."""
    import tensorflow as tf
    import tf2onnx

    side = found.manifest.image_size
    spec = tf.TensorSpec((None, side, side, 3), tf.uint8, "image")

    @tf.function(input_signature=[spec])
    def answer(image):
        answered = found.answer(image)
        if options.with_attention:
            maps = found.attention(image)
            answered |= {f"attention_{name}": value for name, value in maps.items()}
        return answered

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    model, _ = tf2onnx.convert.from_function(answer, input_signature=[spec], opset=_CONVERTED)
    return model


def _passes(options):
    """The passes over the graph, in their order."""
    from export import attend, fuse, rewrite

    passes = [rewrite.matmuls, rewrite.layer_norms, rewrite.gelus, rewrite.patches]
    if options.with_attention:
        return passes  # what shows where it looks stays as it is
    if options.standard_attention:
        return [*passes, attend.standard]
    if options.target == "cuda":
        return [*passes, attend.contrib, fuse.skip_norms, fuse.bias_gelus]
    return [*passes, attend.separate]


def _name(model):
    """Names the axis of the images; tf2onnx gives each tensor's a name of its own."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


def _signature(model):
    """What a model takes and answers, for its manifest."""
    import onnx

    def tensors(values):
        found = {}
        for value in values:
            kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
            dims = value.type.tensor_type.shape.dim
            shape = [dim.dim_param or dim.dim_value for dim in dims]
            found[value.name] = manifests.Tensor(kind, shape)
        return found

    return manifests.Signature(tensors(model.graph.input), tensors(model.graph.output))


def main(argv):
    """Flags -> export -> where it lies."""
    del argv
    given = flags.FLAGS
    for name in ("run_dir", "output"):
        if not getattr(given, name):
            raise InputError(f"no {name}; give --run_dir=DIR and --output=FILE.onnx")
    precision = given.precision or ("float16" if given.target == "cuda" else "float32")
    options = Options(precision, given.target, given.with_attention, given.standard_attention)
    line = export(given.run_dir, given.output, options, given.checkpoint, given.fusion)
    absl.logging.info("%s: %s", given.output, line)
    print(given.output)


def run():
    """The command: its flags, then `main`."""
    flags.define_text("run_dir", None, "The run directory.")
    flags.define_text("output", None, "The file to write.")
    flags.define_text("precision", None, "float32, float16 or int8; default: by target.")
    flags.define_text("target", "portable", "Made for portable, cpu or cuda.")
    flags.define_text("checkpoint", "last", "Which weights: last or best.")
    flags.define_text("fusion", None, "Heads together: logits or softmax; default: the run's.")
    flags.define_switch("with_attention", "Whether attention maps are answered, too.")
    flags.define_switch("standard_attention", "Whether Attention is the standard's (opset 23).")
    flags.run(main)


if __name__ == "__main__":
    run()
