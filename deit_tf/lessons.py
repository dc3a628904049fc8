"""A teacher's answers as its student learns from them: asked for, or brought by the batch.

An answer that is written down is short: the decision is one class; of a distribution the largest
probabilities are kept, and what is left of 1 is spread evenly over the other classes.
"""

import tensorflow as tf
from keras import ops

_SMALLEST = 2.0**-24  # of float16


def shorten(logits, topk=0):
    """What is written down of an answer.

    Args:
      logits: float [B, K].
      topk: how many probabilities; 0 is the decision alone.

    Returns:
      {"teacher_classes": int32 [B, k]}, the largest first, and unless it is the decision alone
      "teacher_probabilities": float16 [B, k].
    """
    if not topk:
        return {"teacher_classes": ops.argmax(logits, axis=-1, keepdims=True)}
    probabilities, classes = ops.top_k(ops.softmax(logits), topk)
    return {
        "teacher_classes": ops.cast(classes, "int32"),
        "teacher_probabilities": ops.cast(probabilities, "float16"),
    }


def lengthen(num_classes, teacher_classes, teacher_probabilities=None):
    """Logits that say what was written down.

    Args:
      num_classes: K.
      teacher_classes: see `shorten`.
      teacher_probabilities: likewise; None of a decision.

    Returns:
      float32 [B, K]: logarithms of the distribution; of a decision 1 for its class and 0 for the
      others.
    """
    places = ops.one_hot(teacher_classes, num_classes)  # [B, k, K]
    if teacher_probabilities is None:
        return ops.sum(places, axis=1)
    kept = ops.maximum(ops.cast(teacher_probabilities, "float32"), _SMALLEST)
    left = ops.maximum(1.0 - ops.sum(kept, axis=-1, keepdims=True), _SMALLEST)  # [B, 1]
    others = max(num_classes - teacher_classes.shape[-1], 1)
    rest = ops.log(left / others)
    return rest + ops.sum((ops.log(kept) - rest)[..., None] * places, axis=1)


class Lessons:
    """What the student learns from the teacher, batch by batch, on each replica.

    The teacher sees the very same pixels as the student and normalises them itself. It runs in
    inference mode, and alone: one compiled program, so that it answers the same, bit for bit,
    whether a student listens or its answers are written down for later.

    Args:
      teacher: a network that answers {"cls": logits}, or None where each batch brings its answers.
      num_classes: of teacher and student.
      topk: how many probabilities of an answer are learned; 0 is all of them.

    Attributes:
      heard: None, or a function that is called whenever the teacher itself answers: how many views
        of the run come before, then what `shorten` makes of the answer, NumPy arrays.
    """

    def __init__(self, teacher, num_classes, topk=0):
        if teacher is not None:
            teacher.trainable = False
        self.teacher, self.num_classes, self.topk = teacher, num_classes, topk
        self.heard, self.accumulate = None, 1
        self.answer = self._answer

    def compile(self, jit_compile=False, accumulate=1):
        """Says how the teacher is run.

        Args:
          jit_compile: whether XLA compiles it.
          accumulate: micro-batches that a replica's part of a batch is shown in.
        """
        self.accumulate = accumulate
        self.answer = tf.function(self._answer, jit_compile=True) if jit_compile else self._answer

    def _answer(self, image):
        return self.teacher(image, training=False)["cls"]

    def of(self, batch, step):
        """What the student learns of a replica's part of a batch.

        Args:
          batch: {"image": float32 [b, S, S, 3] in 0–255} and perhaps what `shorten` gave; a class
            below 0 says that it is not known, of all images alike.
          step: of the run, int64 [].

        Returns:
          float32 [b, K]: the teacher's logits, or those that say what was written down of them.
        """
        stored = {name: value for name, value in batch.items() if name.startswith("teacher_")}
        if not stored:
            return self.ask(batch["image"], step)
        if self.teacher is None:
            return lengthen(self.num_classes, **stored)
        return tf.cond(
            stored["teacher_classes"][0, 0] >= 0,
            lambda: lengthen(self.num_classes, **stored),
            lambda: self.ask(batch["image"], step),
        )

    def ask(self, image, step):
        """Has the teacher answer; for the arguments and the result see `of`."""
        if self.accumulate == 1:
            logits = self.answer(image)
        else:
            side, channels = image.shape[-2:]
            size = image.shape[0] // self.accumulate
            parts = tf.reshape(image, [self.accumulate, size, side, side, channels])
            answers = tf.map_fn(
                self.answer, parts, parallel_iterations=1, fn_output_signature=tf.float32
            )
            logits = tf.reshape(answers, [-1, self.num_classes])
        short = shorten(logits, self.topk)
        if self.heard:
            context = tf.distribute.get_replica_context()
            replica = tf.cast(context.replica_id_in_sync_group, tf.int64)
            part = step * context.num_replicas_in_sync + replica
            tf.numpy_function(self._hear, [part * image.shape[0], *short.values()], [])
        return lengthen(self.num_classes, **short) if self.topk else logits

    def _hear(self, first, *short):
        """What `heard` is at the time, which a compiled program would not look up."""
        self.heard(int(first), *short)
