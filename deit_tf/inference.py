"""A trained run as it answers: raw images to logits and probabilities, with its manifest."""

import dataclasses
import importlib.metadata
import pathlib
import platform

import keras

from deit_tf import attention, checkpoint, model, rundir
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
        """Where both tokens look; see `attention.rollout`."""
        return attention.rollout(self.network, image)


def open_run(run_dir, which="last", fusion=None):
    """The network of a run, ready to answer; the average of its weights where it has one.

    Args:
      run_dir: a run directory, trained or made by `convert`.
      which: "last" or "best" checkpoint.
      fusion: "logits" or "softmax"; None is the run's own.

    Returns:
      An `Inference`.

    Raises:
      config.InputError: no such run, no checkpoint yet, or no DeiT.
    """
    rundir.check_deit(run_dir, which)
    record, path = rundir.read_config(run_dir), rundir.weights_path(run_dir, which)
    config = record["config"]
    if fusion:
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, fusion=fusion))
    keras.config.set_dtype_policy("float32")
    network = checkpoint.load(run_dir, which)
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
            "weights": str(path.relative_to(run_dir)),
            "weights_sha256": rundir.digest(path),
            "average": bool(config.optimizer.ema_decay),
        },
        versions=versions(),
    )
    return Inference(network, manifest)


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
