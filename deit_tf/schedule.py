"""Learning rate: linear warm-up, then half a cosine, step by step."""

import math

import keras
from keras import ops


def peak_lr(lr, batch_size):
    """The paper's rule: the base rate is for 512 images. Reference: section 6, "Parameters"."""
    return lr * batch_size / 512


@keras.saving.register_keras_serializable("deit_tf")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """From `warmup_lr` up to `peak` in a line, from there down to `min_lr` along a cosine.

    A run that ends before its warm-up does stays on the line.

    Args:
      peak: highest rate.
      warmup_lr: rate of step 0.
      min_lr: rate after the last step.
      warmup_steps: steps of warm-up, may be 0.
      total_steps: steps of the run.
    """

    def __init__(self, peak, warmup_lr, min_lr, warmup_steps, total_steps):
        self.arguments = {
            "peak": peak,
            "warmup_lr": warmup_lr,
            "min_lr": min_lr,
            "warmup_steps": warmup_steps,
            "total_steps": total_steps,
        }

    def __call__(self, step):
        """The rate of a step, counted from 0."""
        a = self.arguments
        step = ops.cast(step, "float32")
        up = step / max(a["warmup_steps"], 1)
        warming = a["warmup_lr"] + (a["peak"] - a["warmup_lr"]) * up
        down = (step - a["warmup_steps"]) / max(a["total_steps"] - a["warmup_steps"], 1)
        cosine = 0.5 * (1.0 + ops.cos(math.pi * ops.clip(down, 0.0, 1.0)))
        cooling = a["min_lr"] + (a["peak"] - a["min_lr"]) * cosine
        return ops.where(step < a["warmup_steps"], warming, cooling)

    def get_config(self):
        """Arguments that rebuild the schedule."""
        return dict(self.arguments)
