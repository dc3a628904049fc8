"""What a person watches: a bar with images per second, time left and memory; a line an epoch.

And in TensorBoard, how alike both tokens are.
"""

import datetime
import sys
import time

import keras
import tensorflow as tf
import tqdm
from absl import logging

from deit_tf import devices, tokens

_SHOWN = ("loss", "val_cls_top1", "val_dist_top1", "val_fused_top1")
_SHOWN_OF_ONE_HEAD = ("loss", "val_cls_top1")


def _bar(total, name):
    """A bar on stderr; none where that is no terminal, so that logs stay readable."""
    shape = "{percentage:3.0f}%|{bar:20}| {desc}"
    return tqdm.tqdm(
        total=total, desc=name, leave=False, disable=None, file=sys.stderr, bar_format=shape
    )


def images_bar(total, name, shown=True):
    """A bar on stderr that counts images, with their rate and the time left.

    Args:
      total: of images.
      name: what is done with them.
      shown: whether this machine is the one that shows it.
    """
    hide = None if shown else True  # None: where stderr is no terminal
    return tqdm.tqdm(
        total=total, desc=name, unit=" images", unit_scale=True, disable=hide, file=sys.stderr
    )


class EvaluationBar(keras.callbacks.Callback):
    """A bar for an evaluation.

    Args:
      steps: its number of batches.
    """

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def on_test_begin(self, logs=None):
        """Shows the bar."""
        self.bar = _bar(self.steps, "evaluating")

    def on_test_batch_end(self, batch, logs=None):
        """Moves it."""
        self.bar.update()

    def on_test_end(self, logs=None):
        """Takes it away."""
        self.bar.close()


class TokenBoard(keras.callbacks.Callback):
    """Tells TensorBoard, once an epoch, how alike class token and distillation token are.

    By one forward pass of a few images through the network that is evaluated, on this machine
    alone; it draws no random number and changes nothing. The scalars are `tokens/cosine_LAYER`,
    means over the images, by the names of `tokens.layers_of`.

    Args:
      folder: of the events, a path.
      images: function that answers float32 [n, S, S, 3], 0–255; called once, after the evaluation
        of the first epoch.
    """

    def __init__(self, folder, images):
        super().__init__()
        self.folder, self.images, self.seen = folder, images, None

    def on_train_begin(self, logs=None):
        """Opens a file of events."""
        self.writer = tf.summary.create_file_writer(str(self.folder))

    def on_epoch_end(self, epoch, logs=None):
        """Writes the cosines."""
        if self.seen is None:
            self.seen = self.images()
        network = self.model.evaluated
        cosines = keras.ops.mean(tokens.similarity(network, self.seen), axis=0)
        with self.writer.as_default():
            for name, cosine in zip(tokens.layers_of(network), cosines, strict=True):
                tf.summary.scalar(f"tokens/cosine_{name}", cosine, step=epoch)
        self.writer.flush()

    def on_train_end(self, logs=None):
        """Closes it."""
        self.writer.close()


class Progress(keras.callbacks.Callback):
    """A bar for each epoch of training, and a line when the epoch is over.

    Args:
      epochs: epochs of the whole run.
      steps: steps of an epoch.
      batch_size: images of a step.
    """

    def __init__(self, epochs, steps, batch_size):
        super().__init__()
        self.epochs, self.steps, self.batch_size = epochs, steps, batch_size
        self.epoch_seconds = None  # of the last whole epoch, its evaluation included

    def on_epoch_begin(self, epoch, logs=None):
        """Shows a new bar."""
        self.epoch, self.begin = epoch, time.monotonic()
        self.end_of_training = self.begin
        # An epoch that was left in the middle goes on there.
        self.first = self.done = devices.number(self.model.position) - epoch * self.steps
        self.name = f"epoch {epoch + 1}/{self.epochs}"
        self.bar = _bar(self.steps, self.name)
        self.bar.update(self.done)

    def on_train_batch_end(self, batch, logs=None):
        """Moves the bar."""
        self.done += 1
        self.end_of_training = time.monotonic()
        if not self.bar.disable:
            text = f"{self.name}: {self.summary()}, loss {logs['loss']:.4f}"
            self.bar.set_description_str(text, refresh=False)
            self.bar.update()

    def on_epoch_end(self, epoch, logs=None):
        """Takes the bar away and logs the line that stays."""
        self.bar.close()
        if not self.first:
            self.epoch_seconds = time.monotonic() - self.begin
        names = _SHOWN if "val_dist_top1" in logs else _SHOWN_OF_ONE_HEAD
        shown = [f"{name} {logs[name]:.4f}" for name in names]
        logging.info("%s: %s, %s", self.name, self.summary(), ", ".join(shown))

    def summary(self):
        """Speed in this epoch, time left of the run, memory: "812 images/s, 0:02:35 left, 1 GB"."""
        seconds = max(self.end_of_training - self.begin, 1e-9)
        done = self.done - self.first
        whole = self.epoch_seconds or seconds * self.steps / max(done, 1)
        left = max(self.epochs - self.epoch - self.done / self.steps, 0.0) * whole
        return (
            f"{done * self.batch_size / seconds:.0f} images/s,"
            f" {datetime.timedelta(seconds=round(left))} left,"
            f" {devices.memory() / 2**30:.1f} GB"
        )
