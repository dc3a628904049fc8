"""The teacher: a trained network, frozen, that takes raw pixels and sees its own resolution."""

import dataclasses

import keras
import numpy as np
from absl import logging
from keras import ops

from deit_tf import checkpoint, foreign, model, resize, rundir, teacher_facts
from deit_tf.config import InputError


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a teacher is to its student: the student's resolution, its classes, one head."""

    image_size: int
    num_classes: int
    distilled: bool = False


class Teacher(keras.Model):
    """A network behind what its input needs: its own resolution and normalisation.

    Args:
      opened: a `foreign.Opened`.
      image_size: side of the images that come, the student's.
      sees: side of what the network sees; a batch is resized, bicubic and antialiased.
      mean: three numbers in units of 0–1, or () where the network normalises for itself.
      std: likewise.
      name: what to call it in an error.
      jit: whether XLA will compile it.

    Raises:
      InputError: the network cannot take such images, or answers no classes.
    """

    def __init__(self, opened, image_size, sees, mean=(), std=(), name="teacher", jit=False):
        super().__init__(name="teacher", autocast=False)
        self.network, self.answer = opened.network, opened.answer
        self.scale = 1.0 / (255.0 * np.float32(std)) if std else None
        self.offset = -np.float32(mean) / np.float32(std) if std else None
        self.matrix = None
        if sees != image_size:
            self.matrix = resize.matrix(image_size, sees, "antialias").astype(np.float32)
        shape = (2, image_size, image_size, 3)
        noise = np.random.RandomState(0).uniform(0, 255, shape).astype(np.float32)
        classes, self.probabilities = foreign.try_out(self._answer, noise, name)
        if jit:
            foreign.check_compiles(self._answer, noise, name)
        self.config = Facts(image_size, classes)
        self.trainable, self.built = False, True

    def _answer(self, image):
        """What the network says of raw pixels."""
        image = ops.cast(image, "float32")
        if self.matrix is not None:
            image = ops.einsum("ai,bj,nijc->nabc", self.matrix, self.matrix, image)
        if self.scale is not None:
            image = image * self.scale + self.offset
        return self.answer(image)

    def call(self, image, training=False):
        """Logits.

        Args:
          image: [B, S, S, 3] of the student's S, 0–255.
          training: Keras'; the teacher never trains.

        Returns:
          {"cls": float32 [B, K]}; for a network that answers probabilities their logarithms, which
          are logits that have the same softmax at any temperature.
        """
        found = ops.cast(self._answer(image), "float32")
        return {"cls": ops.log(ops.maximum(found, 1e-30)) if self.probabilities else found}


def load_teacher(config, image_size, jit=False):
    """The teacher of a distillation.

    Args:
      config: a `config.DistillConfig`.
      image_size: the student's.
      jit: whether XLA will compile the step; a network of others is tried with it, too.

    Returns:
      None where nothing is distilled, else a `Teacher`.

    Raises:
      InputError: it is missing, damaged, or cannot teach such a student.
    """
    if config.distillation == "none":
        return None
    kind, wanted = teacher_facts.kind_of(config), config.teacher_image_size or image_size
    opened = _open(kind, config.teacher, wanted)
    if opened.image_size and config.teacher_image_size not in (0, opened.image_size):
        raise InputError(
            f"teacher_image_size is {config.teacher_image_size}, but teacher {config.teacher} takes"
            f" {opened.image_size} pixels alone; leave the flag away"
        )
    sees = opened.image_size or wanted
    mean, std, jit = config.teacher_mean, config.teacher_std, jit and kind != "run"
    teacher = Teacher(opened, image_size, sees, mean, std, config.teacher, jit)
    answers = "probabilities" if teacher.probabilities else "logits"
    logging.info("teacher %s sees %d pixels and answers %s", config.teacher, sees, answers)
    return teacher


def _open(kind, name, image_size):
    """The network of a teacher of this kind; for `image_size` where it can be chosen."""
    if kind == "run":
        return _open_run(name)
    if kind == "keras_cv":
        return foreign.open_keras_cv(name.removeprefix(teacher_facts.KERAS_CV))
    if kind == "application":
        name = name.removeprefix(teacher_facts.APPLICATION)
        return foreign.open_application(name, image_size=image_size)
    return (foreign.open_keras_file if kind == "keras" else foreign.open_saved_model)(name)


def _open_run(run_dir):
    """A network of ours; both its heads, if it has two, answer as one."""
    network = checkpoint.load(run_dir)
    fusion = rundir.read_config(run_dir)["config"].run.fusion
    fixed = network.config.image_size if isinstance(network, model.DeiT) else None

    def answer(image):
        return model.fuse(network(image, training=False), fusion)

    return foreign.Opened(network, answer, fixed)
