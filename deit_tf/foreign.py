"""Networks of others as teachers: from keras_cv, keras.applications, .keras files, SavedModels.

Each function opens one kind. Import this module only where one is needed: it needs TensorFlow.
"""

import contextlib
import dataclasses
import difflib
import inspect
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from deit_tf.config import InputError

_DAMAGED = (OSError, ValueError, TypeError, KeyError, AttributeError, tf.errors.OpError)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A network of others.

    Attributes:
      network: what holds its weights.
      answer: float32 [B, S, S, 3] as the network wants it -> [B, K], logits or probabilities.
      image_size: S where it is fixed, else None.
    """

    network: object
    answer: Callable
    image_size: int | None


@contextlib.contextmanager
def _float32():
    """Networks of others compute in float32: many take raw pixels, and bfloat16 holds 8 bits."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


def open_keras_cv(path):
    """A classifier that was saved as a keras_cv preset in a folder.

    Raises:
      InputError: the folder holds no such preset, or one that Keras 3 cannot load.
    """
    import keras_cv

    try:
        with _float32():
            network = keras_cv.models.ImageClassifier.from_preset(str(path))
    except _DAMAGED as error:
        raise _cannot_open(f"keras_cv:{path}", "preset of a classifier", error) from error
    return Opened(network, lambda image: network(image, training=False), _side(network))


def open_application(name, weights="imagenet", image_size=None):
    """A classifier of keras.applications with its own preprocessing.

    Args:
      name: as "ResNet50".
      weights: "imagenet" downloads them once, into Keras' cache; None leaves them random.
      image_size: S that is wanted; taken if the network can, None is its own.

    Raises:
      InputError: unknown name, or its weights cannot be downloaded.
    """
    module = _application_module(name)
    make = getattr(keras.applications, name)
    logits = {"classifier_activation": None}
    try:
        with _float32():
            network = make(weights=weights, **logits)
    except Exception as error:  # Keras raises a bare one where a download fails
        if not isinstance(error, OSError) and "URL fetch failure" not in str(error):
            raise
        reason = str(error).split(": ", 1)[-1]
        raise InputError(
            f"the weights of keras.applications:{name} cannot be downloaded: {reason}"
        ) from error
    if image_size not in (None, _side(network)):
        network = _at(image_size, network, lambda **shape: make(weights=None, **logits, **shape))

    def answer(image):
        return network(module.preprocess_input(image), training=False)

    return Opened(network, answer, _side(network))


def _at(image_size, network, make):
    """The same network for another resolution; itself where its weights depend on that."""
    try:
        with _float32():
            wanted = make(input_shape=(image_size, image_size, 3))
    except ValueError:  # too small for it
        return network
    if [w.shape for w in wanted.weights] != [w.shape for w in network.weights]:
        return network
    wanted.set_weights(network.get_weights())
    return wanted


def _application_module(name):
    """The module of keras.applications that has this network and its `preprocess_input`."""
    networks = {
        made: module
        for module in vars(keras.applications).values()
        if inspect.ismodule(module) and hasattr(module, "preprocess_input")
        for made in vars(module)
        if made[0].isupper()
    }
    # The large and the small MobileNetV3 are made beside their module.
    networks |= dict.fromkeys(
        ("MobileNetV3Large", "MobileNetV3Small"), keras.applications.mobilenet_v3
    )
    if name not in networks:
        near = difflib.get_close_matches(name, networks, n=3, cutoff=0.4) or sorted(networks)
        raise InputError(f"keras.applications has no {name!r}; did you mean {', '.join(near)}?")
    return networks[name]


def open_keras_file(path):
    """A network saved by Keras 3 in a .keras file: one image in, one answer [B, K] out.

    Raises:
      InputError: it cannot be loaded, or has other inputs or outputs.
    """
    from deit_tf import model, regnet  # noqa: F401  # our own layers are known to Keras then

    try:
        with _float32():
            network = keras.models.load_model(path, compile=False)
    except _DAMAGED as error:
        raise _cannot_open(path, ".keras file", error) from error

    def answer(image):
        found = network(image, training=False)
        return model.fuse(found) if isinstance(found, dict) and "cls" in found else found

    facts = getattr(network, "config", None)
    side = _side(network) or (facts.image_size if isinstance(network, model.DeiT) else None)
    return Opened(network, answer, side)


def open_saved_model(path):
    """A SavedModel with a signature that takes images: `serving_default` if that does.

    Of its outputs `logits` is taken, or the only one.

    Raises:
      InputError: it cannot be loaded, or has no such signature or output.
    """
    try:
        loaded = tf.saved_model.load(str(path))
    except _DAMAGED as error:
        raise _cannot_open(path, "SavedModel", error) from error
    found = {name: _image_input(sign) for name, sign in loaded.signatures.items()}
    names = sorted((name for name in found if found[name]), key=lambda n: n != "serving_default")
    if not names:
        raise InputError(
            f"{path} has no signature that takes one batch of images [B, S, S, 3]; it has"
            f" {', '.join(found) or 'none'}"
        )
    if len(names) > 1 and names[0] != "serving_default":
        raise InputError(
            f"{path} has several signatures that take images, {', '.join(names)}; one of them must"
            " be named serving_default"
        )
    signature, argument = loaded.signatures[names[0]], found[names[0]]
    outputs = signature.structured_outputs
    output = "logits" if "logits" in outputs else next(iter(outputs))
    if output != "logits" and len(outputs) > 1:
        raise InputError(
            f"{path}: signature {names[0]} answers {', '.join(outputs)}; one of them must be named"
            " logits"
        )
    spec = signature.structured_input_signature[1][argument]

    def answer(image):
        if spec.dtype.is_integer:
            image = tf.round(tf.clip_by_value(image, 0.0, 255.0))
        return signature(**{argument: tf.cast(image, spec.dtype)})[output]

    return Opened(loaded, answer, spec.shape[1])


def _image_input(signature):
    """The name of a signature's only input, if that takes images; else None."""
    inputs = signature.structured_input_signature[1]
    if len(inputs) != 1:
        return None
    name, spec = next(iter(inputs.items()))
    takes = spec.shape.rank == 4 and spec.shape[3] == 3 and spec.dtype != tf.string
    return name if takes else None


def _side(network):
    """S where a Keras network takes only [B, S, S, 3], else None."""
    shape = getattr(network, "input_shape", None)
    if isinstance(shape, (tuple, list)) and len(shape) == 4:
        return shape[1]
    return None


def _cannot_open(path, kind, error):
    """The error of a network that Keras or TensorFlow refuses."""
    reason = " ".join(str(error).split())[:300]
    return InputError(f"teacher {path} is no {kind} that can be loaded here: {reason}")


def check_compiles(answer, image, name):
    """Raises InputError where XLA, which compiles the training step, refuses a network.

    Args:
      answer: the network, as `Opened.answer`.
      image: float32 [B, S, S, 3].
      name: what to call it in an error.
    """
    compiled = tf.function(answer, jit_compile=True)
    try:
        tf.distribute.get_strategy().run(compiled, (tf.constant(image),))
    except Exception as error:  # whatever XLA raises
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"XLA cannot compile teacher {name}; give --nojit ({reason})") from error


def try_out(answer, image, name):
    """Runs a network once.

    Args:
      answer: the network, as `Opened.answer`.
      image: float32 [B, S, S, 3].
      name: what to call it in an error.

    Returns:
      The number of classes, and whether it answers probabilities rather than logits.

    Raises:
      InputError: it cannot take such images, or answers something else than [B, K] finite numbers.
    """
    side, strategy = image.shape[1], tf.distribute.get_strategy()
    try:
        # As in training: a SavedModel that was loaded for several replicas answers a replica alone.
        found = strategy.run(answer, (tf.constant(image),))
        found = strategy.experimental_local_results(found)[0]
    except Exception as error:  # whatever a network of others raises
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"teacher {name} cannot take images of {side} pixels: {reason}") from error
    shape = getattr(found, "shape", ())
    if len(shape) != 2:
        raise InputError(f"teacher {name} answers {shape or type(found).__name__}, not [B, K]")
    values = np.asarray(found, np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"teacher {name} answers numbers that are not finite")
    sums_to_one = np.allclose(values.sum(axis=1), 1.0, atol=0.02)  # bfloat16 is that far off
    return shape[1], bool((values >= 0).all() and sums_to_one)
