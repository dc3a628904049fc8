"""From images to batches: order -> per-image work -> batch -> prefetch.

Every random draw is a pure function of (seed, epoch, position): the order is
permutation(seed, epoch) over a random-access source, the pixels are drawn from seeds folded from
the three. So a run can be entered anywhere, and does not depend on threads or replicas. Only
encoded bytes cross Python; decoding and pixels stay in tf.data.
"""

import functools
import hashlib
import math
import os

import numpy as np
import tensorflow as tf

from deit_tf import augment, mixing, preprocess
from deit_tf.config import InputError

_BATCHES_AHEAD = 2

# What is drawn for an image. The name decides over the numbers, the place in this list does not.
DRAWS = ("crop", "flip", "rotate_shift", "keep")


def order(seed, epoch, size):
    """The order of an epoch: a permutation that depends on seed and epoch alone.

    RandomState, whose stream NumPy promises never to change.

    Args:
      seed: the run's seed.
      epoch: counted from 0.
      size: number of images.

    Returns:
      int64 [size].
    """
    return np.random.RandomState([seed, epoch]).permutation(size)


def steps_per_epoch(records, batch_size):
    """Whole batches in an epoch; the images left over are dropped.

    Raises:
      InputError: fewer images than a batch.
    """
    if len(records) < batch_size:
        raise InputError(
            f"batch_size is {batch_size}, but there are {len(records)} training images"
        )
    return len(records) // batch_size


def indices(records, config, step):
    """Which images a step trains on, int64 [B].

    Args:
      records: `Source.train`.
      config: a `config.Config`.
      step: counted from 0 over the run.
    """
    batch = config.data.batch_size
    epoch, within = divmod(step, steps_per_epoch(records, batch))
    return order(config.run.seed, epoch, len(records))[within * batch : (within + 1) * batch]


def train_batches(records, config, first_step=0):
    """The training batches of a run, from any step on to its end.

    Args:
      records: `Source.train`.
      config: a `config.Config`.
      first_step: where to enter; nothing before it is read.

    Returns:
      A `tf.data.Dataset` of {"image": float32 [B, S, S, 3] in 0–255, "label": float32 [B, K]}
      and, where the network has drop path, "keep": float32 [B, depth, 2] of 0 and 1.
    """
    batch = config.data.batch_size
    steps = steps_per_epoch(records, batch)
    last_step = steps * config.optimizer.epochs

    @functools.lru_cache(maxsize=2)
    def permutation(epoch):
        return order(config.run.seed, epoch, len(records))

    def read(positions):
        """Bytes, labels and seeds [B, draws, 2], at positions [B] counted over the run."""
        epochs, within = np.divmod(positions, steps * batch)
        indices = [permutation(int(e))[p] for e, p in zip(epochs, within, strict=True)]
        seeds = [
            [(_key(config.run.seed, int(e), draw), p) for draw in DRAWS]
            for e, p in zip(epochs, within, strict=True)
        ]
        return *_columns(_rows(records, indices)), np.array(seeds)

    kinds = (tf.string, tf.int64, tf.int64)
    shapes = ([None], [None], [None, len(DRAWS), 2])
    work = functools.partial(_train_image, config=config)
    positions = range(first_step * batch, last_step * batch)
    return _batches(positions, batch, read, kinds, shapes, work)


@functools.lru_cache(maxsize=64)
def _key(seed, epoch, draw):
    """A 63-bit number for each (seed, epoch, draw); with the position it seeds one draw."""
    text = f"{seed}/{epoch}/{draw}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def _rows(records, indices):
    """Some records, read together."""
    return records.__getitems__([int(i) for i in indices])


def _columns(rows):
    """Encoded images and labels of some rows, as arrays that TensorFlow takes."""
    images = np.array([row["image"] for row in rows], dtype=object)
    return images, np.array([row["label"] for row in rows], dtype=np.int64)


def _batches(positions, batch, read, kinds, shapes, work):
    """Whole batches of what `work` makes of what `read` finds at `positions`.

    `read` runs in Python on a batch of positions and answers arrays of `kinds` and `shapes`;
    `work` runs in TensorFlow, in parallel, on each image.
    """

    def read_batch(chunk):
        arrays = tf.numpy_function(read, [chunk], kinds)
        return tuple(map(tf.ensure_shape, arrays, shapes))

    chunks = tf.data.Dataset.range(positions.start, positions.stop).batch(batch)
    cores = len(os.sched_getaffinity(0))
    images = chunks.map(read_batch).unbatch().map(work, num_parallel_calls=cores)
    batches = images.batch(batch, drop_remainder=True)
    known = tf.data.experimental.assert_cardinality(len(positions) // batch)
    options = tf.data.Options()
    # Its thread, once it has run for minutes, sleeps up to one before it lets an iterator end.
    options.autotune.enabled = False
    return batches.apply(known).prefetch(_BATCHES_AHEAD).with_options(options)


def _train_image(image_bytes, label, seeds, *, config):
    """One training example; a pure function of the bytes and the seeds."""
    facts, network = config.augment, config.network
    seed = dict(zip(DRAWS, tf.unstack(seeds), strict=True))
    image = preprocess.random_resized_crop(
        image_bytes,
        network.image_size,
        seed["crop"],
        facts.crop_min_area,
        facts.crop_max_aspect,
    )
    if facts.flip_rate:
        image = augment.random_flip(image, seed["flip"], facts.flip_rate)
    if facts.rotation_degrees or facts.shift_fraction:
        image = augment.random_rotate_shift(
            image, seed["rotate_shift"], facts.rotation_degrees, facts.shift_fraction
        )
    example = {
        "image": image,
        "label": mixing.smooth_labels(label, network.num_classes, facts.label_smoothing),
    }
    if any(network.drop_path_rates):
        example["keep"] = keep_masks(network, seed["keep"])
    return example


def keep_masks(network, seed):
    """Which branch of which block runs for one image.

    Args:
      network: a `config.DeiTConfig`.
      seed: integer [2].

    Returns:
      float32 [depth, 2] of 0 and 1: attention and MLP of each block.
    """
    rates = tf.constant(network.drop_path_rates)[:, tf.newaxis]  # [depth, 1]
    draws = tf.random.stateless_uniform((network.depth, 2), seed)
    return tf.cast(draws >= rates, tf.float32)


def eval_batches(records, config):
    """The evaluation images in their order, each counted exactly once.

    Args:
      records: `Source.eval`.
      config: a `config.Config`.

    Returns:
      A `tf.data.Dataset` of {"image": float32 [B, S, S, 3] in 0–255, "label": float32 [B, K],
      "weight": float32 [B]}; weight is 0 for the images that fill up the last batch, and for one
      that stands for an unreadable one.
    """
    size, batch_size, network = len(records), config.data.batch_size, config.network
    padded = math.ceil(size / batch_size) * batch_size

    def read(positions):
        """Bytes, labels and whether they count, at positions [B]."""
        rows = _rows(records, np.minimum(positions, size - 1))
        return *_columns(rows), (positions < size) & [row.get("readable", True) for row in rows]

    def work(image_bytes, label, counts):
        image = preprocess.decode(image_bytes)
        return {
            "image": preprocess.center_crop(image, network.image_size, config.data.crop_fraction),
            "label": tf.one_hot(label, network.num_classes),
            "weight": tf.cast(counts, tf.float32),
        }

    kinds = (tf.string, tf.int64, tf.bool)
    return _batches(range(padded), batch_size, read, kinds, [[None]] * 3, work)
