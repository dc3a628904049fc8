"""A trained run as it answers: raw images to logits and probabilities, with its manifest."""

import dataclasses
import importlib.metadata
import pathlib
import platform

import keras

from deit_tf import checkpoint, model, rundir, tokens
from deit_tf.config import InputError
from deit_tf.manifest import Manifest


class Inference:
    """A run's network with its heads fused, float32.

    Args:
      network: what `checkpoint.load` gave.
      manifest: the `manifest.Manifest`.
    """

    def __init__(self, network, manifest):
        self.network, self.manifest = network, manifest

    def answer(self, image):
        """Logits and probabilities.

        Args:
          image: uint8 [B, S, S, 3].

        Returns:
          {"logits": float32 [B, K], "probabilities": float32 [B, K]}.
        """
        logits = self.network(image, training=False)
        fused = model.fuse(logits, self.manifest.fusion or "logits")
        return {"logits": fused, "probabilities": keras.ops.softmax(fused)}

    def features(self, image):
        """What the heads read: both tokens after the last LayerNorm.

        Args:
          image: uint8 [B, S, S, 3].

        Returns:
          {"cls": float32 [B, D]} and, distilled, "dist": float32 [B, D].
        """
        count = self.network.config.prefix_tokens
        tokens = self.network.encode(image, training=False, first=count)
        return {name: tokens[:, i] for i, name in enumerate(("cls", "dist")[:count])}

    def attention(self, image):
        """Where both tokens look; see `tokens.rollout`."""
        return tokens.rollout(self.network, image)


def open_run(run_dir, which="last", fusion=None):
    """The network of a run, ready to answer; the average of its weights where it has one.

    Args:
      run_dir: a run directory, trained or made by `convert`.
      which: "last" or "best" checkpoint.
      fusion: "logits" or "softmax"; None is the run's own.

    Returns:
      An `Inference`.

    Raises:
      InputError: no such run, no checkpoint yet, no DeiT, one that was trained on meanwhile, or
        names of classes that are no text.
    """
    rundir.check_deit(run_dir, which)
    record = rundir.read_config(run_dir)
    config = record["config"]
    _check_names(record["classes"])
    _check_names(record["labels"])
    if fusion:
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, fusion=fusion))
    keras.config.set_dtype_policy("float32")
    weights = _weights(run_dir, which)
    network = checkpoint.load(run_dir, which)
    if _weights(run_dir, which) != weights:
        raise InputError(f"{run_dir} has another checkpoint by now: it is being trained; try again")
    facts = config.network
    manifest = Manifest(
        model=config.model,
        image_size=facts.image_size,
        crop_fraction=config.data.crop_fraction,
        mean=facts.mean,
        std=facts.std,
        fusion=config.run.fusion if facts.distilled else "",
        classes=tuple(record["classes"]),
        labels=tuple(record["labels"]),
        source={
            "run_dir": pathlib.Path(run_dir).absolute().name,
            "checkpoint": which,
            **weights,
            "average": bool(config.optimizer.ema_decay),
        },
        versions=versions(),
    )
    return Inference(network, manifest)


def _weights(run_dir, which):
    """Which file the weights are, and what is in it."""
    path = rundir.weights_path(run_dir, which)
    try:
        digest = rundir.digest(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return {"weights": str(path.relative_to(run_dir)), "weights_sha256": digest}


def _check_names(names):
    """Raises InputError where a name cannot be written down: folders may be called anything."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the class {name!r} is no UTF-8 text; give names by --labels=FILE to train or"
                " convert, or rename its folder"
            ) from error


def versions(*packages):
    """Versions of Python, of what computes, and of some more packages."""
    found = ("deit-tf", "tensorflow", "keras", *packages)
    return {"python": platform.python_version(), **{name: _version(name) for name in found}}


def _version(name):
    """A package's version; ours also where it runs from a clone."""
    if name == "deit-tf":
        import deit_tf

        return deit_tf.__version__
    return importlib.metadata.version(name)
