"""Learning rate: linear warm-up, then half a cosine, a constant, or the released ladder."""

import math

import keras
from keras import ops


def peak_lr(lr, batch_size):
    """The paper's rule: the base rate is for 512 images. Reference: section 6, "Parameters"."""
    return lr * batch_size / 512


class _Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of five numbers.

    Args:
      peak: highest rate.
      warmup_lr: rate of step 0.
      min_lr: rate after the last step.
      warmup_steps: steps of warm-up, may be 0.
      total_steps: steps of the run.
      epoch_steps: steps of an epoch.
    """

    def __init__(self, peak, warmup_lr, min_lr, warmup_steps, total_steps, epoch_steps=1):
        self.peak, self.warmup_lr, self.min_lr = peak, warmup_lr, min_lr
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        self.epoch_steps = epoch_steps

    def get_config(self):
        """Arguments that rebuild the schedule."""
        return dict(vars(self))

    def _warm(self, step, then):
        """The line from warmup_lr to peak while it lasts, `then` after it."""
        line = self.warmup_lr + (self.peak - self.warmup_lr) * step / max(self.warmup_steps, 1)
        return ops.where(step < self.warmup_steps, line, then)

    def _half_cosine(self, part):
        """From peak at part 0 down to min_lr at part 1."""
        cosine = 0.5 * (1.0 + ops.cos(math.pi * ops.clip(part, 0.0, 1.0)))
        return self.min_lr + (self.peak - self.min_lr) * cosine


@keras.saving.register_keras_serializable("deit_tf")
class WarmupCosine(_Schedule):
    """Up to `peak` in a line, from there down to `min_lr` along a cosine, step by step.

    A run that ends before its warm-up does stays on the line.
    """

    def __call__(self, step):
        """The rate of a step, counted from 0."""
        step = ops.cast(step, "float32")
        part = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        return self._warm(step, self._half_cosine(part))


@keras.saving.register_keras_serializable("deit_tf")
class WarmupConstant(_Schedule):
    """Up to `peak` in a line, and on at `peak`: the length of the run does not matter."""

    def __call__(self, step):
        """The rate of a step, counted from 0."""
        return self._warm(ops.cast(step, "float32"), self.peak)


@keras.saving.register_keras_serializable("deit_tf")
class EpochLadder(_Schedule):
    """One rate an epoch, as the released code really had it.

    Epoch e has the rate that was meant for epoch e - 1; and the cosine starts at epoch 0, not at
    the warm-up's end, so that the peak is never reached.

    Reference: facebookresearch/deit main.py with timm 0.3.2, which steps the schedule after an
    epoch by that epoch's own number.
    """

    def __call__(self, step):
        """The rate of a step, counted from 0."""
        epoch = ops.cast(step, "int64") // self.epoch_steps  # exact, however long the run
        meant = ops.cast(ops.maximum(epoch - 1, 0) * self.epoch_steps, "float32")
        return self._warm(meant, self._half_cosine(meant / self.total_steps))


KINDS = {"cosine": WarmupCosine, "epoch": EpochLadder, "constant": WarmupConstant}
