"""The graph that TF Serving serves: its signatures, and what lies beside them."""

import dataclasses
import math

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from deit_tf.manifest import InputError, Signature, Tensor
from export import image_bytes as encoded
from serving import wire

MANIFEST = "assets.extra/manifest.json"
WARM_UP = "assets.extra/tf_serving_warmup_requests"
_THREADS = 4  # batches that the network works on at once
LARGEST_REQUEST = 1024  # images
_WAITING = 64  # batches that wait, at least; what comes then is refused as UNAVAILABLE


@dataclasses.dataclass(frozen=True)
class Options:
    """What a server may want otherwise.

    Attributes:
      top_k: classes that are named in an answer.
      max_pixels: a larger image is refused before it is decoded.
      max_batch_size: images that the network sees at once, those of several requests together.
      batch_timeout_micros: how long a request waits for others.
      with_attention: whether there is a signature `attention`.

    Raises:
      InputError: a number out of its range.
    """

    top_k: int = 5
    max_pixels: int = 50_000_000
    max_batch_size: int = 32
    batch_timeout_micros: int = 1000
    with_attention: bool = False

    def __post_init__(self):
        ranges = {
            "top_k": (1, math.inf),
            "max_pixels": (1, math.inf),
            "max_batch_size": (1, LARGEST_REQUEST),
            "batch_timeout_micros": (0, math.inf),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not least <= value <= most:
                bound = "" if most == math.inf else f", at most {most}"
                raise InputError(f"{name} is {value}; give {least} or more{bound}")


def batch_sizes(largest):
    """The sizes to which batches are filled up: 1, 2, 4, …, largest."""
    return [*(2**i for i in range(10) if 2**i < largest), largest]


def write(found, folder, options):
    """Writes a SavedModel with its warm-up requests.

    Args:
      found: an `inference.Inference`.
      folder: where to, a path.
      options: an `Options`.

    Returns:
      The `manifest.Manifest`, still without digest, to be written beside it.
    """
    archive = keras.export.ExportArchive()
    archive.track(found.network)
    signatures = {}
    for name, (function, spec) in _endpoints(found, options).items():
        archive.add_endpoint(name, function, input_signature=[spec])
        outputs = function.get_concrete_function(spec).structured_outputs
        signatures[name] = Signature({spec.name: tensor_of(spec)}, _tensors(outputs))
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TensorFlow tells of every tensor that it renames
    archive.write_out(str(folder), verbose=False)
    logging.set_verbosity(before)
    (folder / MANIFEST).parent.mkdir()
    _write_warm_up(folder, signatures, found.manifest.image_size, options.max_batch_size)
    return dataclasses.replace(
        found.manifest,
        target="savedmodel",
        signatures=signatures,
        max_pixels=options.max_pixels,
    )


def _endpoints(found, options):
    """{signature's name: (function, what it takes)}."""
    side = found.manifest.image_size
    image_bytes = tf.TensorSpec((None,), tf.string, "image_bytes")
    image = tf.TensorSpec((None, side, side, 3), tf.uint8, "image")
    answer = _batched("answer", found.answer, image, options)
    name = _naming(found.manifest.labels, options.top_k)

    def seen(image_bytes):
        """The pixels of a request's images; the rows are decoded side by side."""
        return tf.map_fn(
            lambda one: encoded.view(one, found.manifest, options.max_pixels),
            image_bytes,
            fn_output_signature=tf.TensorSpec((side, side, 3), tf.uint8),
        )

    def serving_default(image_bytes):
        probabilities = answer(seen(image_bytes))["probabilities"]
        return {"probabilities": probabilities, **name(probabilities)}

    def pixels(image):
        answered = answer(image)
        return {**answered, **name(answered["probabilities"])}

    endpoints = {"serving_default": (serving_default, image_bytes), "pixels": (pixels, image)}
    asked = {"features": found.features}
    if options.with_attention:
        asked["attention"] = found.attention
    for which, function in asked.items():
        endpoints[which] = _after(seen, _batched(which, function, image, options)), image_bytes
    return {
        which: (tf.function(function, input_signature=[spec]), spec)
        for which, (function, spec) in endpoints.items()
    }


def _after(first, then):
    """Function of a request's encoded images."""
    return lambda image_bytes: then(first(image_bytes))


def _batched(which, function, spec, options):
    """A function of images that sees those of several requests together.

    Only this is batched, and after decoding: a bad image fails in its own request. `which` names
    its queue: TensorFlow puts requests together by the scope in which they are batched.
    """
    waiting = max(_WAITING, math.ceil(LARGEST_REQUEST / options.max_batch_size))
    shapes = tf.function(function).get_concrete_function(spec).structured_outputs
    together = tf.nondifferentiable_batch_function(
        num_batch_threads=_THREADS,
        max_batch_size=LARGEST_REQUEST,  # which is cut into batches of the allowed sizes
        batch_timeout_micros=options.batch_timeout_micros,
        allowed_batch_sizes=batch_sizes(options.max_batch_size),
        max_enqueued_batches=waiting,
        enable_large_batch_splitting=True,
    )(function)

    def run(image):
        with tf.name_scope(which):
            answered = together(image)  # of shapes that the operator does not tell
        return {name: tf.ensure_shape(answered[name], shapes[name].shape) for name in shapes}

    return run


def _naming(labels, top_k):
    """Function of probabilities: the likeliest classes, by number, name and probability."""
    names = tf.constant(list(labels))
    count = min(top_k, len(labels))

    def name(probabilities):
        scores, ids = tf.math.top_k(probabilities, count)
        return {"class_ids": ids, "class_names": tf.gather(names, ids), "scores": scores}

    return name


def tensor_of(spec):
    """A tensor as the manifest tells of it."""
    return Tensor(spec.dtype.name, ("batch", *spec.shape[1:]))


def _tensors(found):
    return {name: tensor_of(spec) for name, spec in found.items()}


def _write_warm_up(folder, signatures, side, largest):
    """One request a signature and batch size, which a server plays before it answers anyone."""
    rng = np.random.RandomState(0)
    image = rng.randint(0, 256, (largest, side, side, 3)).astype(np.uint8)
    jpeg = tf.io.encode_jpeg(image[0]).numpy()
    with tf.io.TFRecordWriter(str(folder / WARM_UP)) as file:
        for name, signature in signatures.items():
            for size in batch_sizes(largest):
                takes = next(iter(signature.inputs))
                value = [jpeg] * size if takes == "image_bytes" else image[:size]
                log = wire.PredictionLog()
                request = log.predict_log.request
                request.model_spec.signature_name = name
                request.inputs[takes].CopyFrom(wire.tensor(value))
                file.write(log.SerializeToString())
