"""From images to batches: order -> views -> work on each -> mixing in groups -> batch -> prefetch.

Every random draw is a pure function of (seed, epoch, position): the order is
permutation(seed, epoch) over a random-access source, and `draws` gives the numbers of any position
without those before it. So a run can be entered anywhere, and does not depend on threads, replicas
or workers. Only encoded bytes and numbers cross Python; decoding and pixels stay in tf.data.
"""

import functools
import math
import os

import numpy as np
import tensorflow as tf

from deit_tf import mixing, preprocess, view
from deit_tf.config import InputError

_BATCHES_AHEAD = 2


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


def eval_steps(records, batch_size):
    """Batches that hold all images, the last one perhaps not full of them."""
    return math.ceil(len(records) / batch_size)


def indices(records, config, step):
    """Which images a step trains on, int64 [B].

    Args:
      records: `Source.train`.
      config: a `config.Config`.
      step: counted from 0 over the run.
    """
    batch = config.data.batch_size
    epoch, within = divmod(step, steps_per_epoch(records, batch))
    positions = np.arange(within * batch, (within + 1) * batch)
    return order(config.run.seed, epoch, len(records))[_ranks(positions, config.augment)]


def _ranks(positions, augment):
    """Places in the order, int [B], of what stands at some positions of an epoch.

    Repeated augmentation: the views of an image lie one mix_group apart, so that they share
    neither partner nor box nor λ. Image j of a block of mix_group images has its view v at
    block · repeats · mix_group + v · mix_group + j. Where an epoch ends within a block, the images
    of that block have fewer views.

    Reference: Hoffer et al. 2020, "Augment your batch"; Touvron et al. 2021, section 6.
    """
    block, within = np.divmod(positions, augment.repeats * augment.mix_group)
    return block * augment.mix_group + within % augment.mix_group


def train_batches(records, config, first_step=0, worker=0, workers=1, answers=None):
    """The training batches of a run, from any step on to its end.

    Args:
      records: `Source.train`.
      config: a `config.Config`.
      first_step: where to enter; nothing before it is read.
      worker: which part of each batch; counted from 0.
      workers: how many parts there are.
      answers: what a teacher says of each view: a function of epoch and positions, as
        `bank.Bank.read`; None brings none.

    Returns:
      A `tf.data.Dataset` of {"image": float32 [B, S, S, 3] in 0–255, "label": float32 [B, K]}
      and, where the network has drop path, "keep": float32 [B, depth, 2] of 0 and 1; B is
      batch_size / workers. With it go the answers, under their own names.

    Raises:
      InputError: fewer images than a batch, or a part that does not consist of whole groups.
    """
    batch, facts = config.data.batch_size, config.augment
    config.check_groups(workers)
    steps = steps_per_epoch(records, batch)
    part = batch // workers

    @functools.lru_cache(maxsize=2)
    def permutation(epoch):
        return order(config.run.seed, epoch, len(records))

    def told(epoch, positions):
        """What is drawn for some positions, and what a teacher says of them."""
        drawn = view.drawn(config, epoch, positions)
        return {**drawn, **answers(epoch, positions)} if answers else drawn

    def read(step):
        """Bytes, labels, and what is told of a worker's part of a batch."""
        epoch, within = divmod(int(step), steps)
        first = within * batch + worker * part
        positions = range(first, first + part)
        rows = _rows(records, permutation(epoch)[_ranks(np.array(positions), facts)])
        return *_columns(rows), *told(epoch, positions).values()

    pattern = told(0, range(1))

    def work(image_bytes, label, *found):
        return view.make(image_bytes, label, dict(zip(pattern, found, strict=True)), config)

    types = [tf.string, tf.int64, *(value.dtype for value in pattern.values())]
    shapes = [[], [], *(value.shape[1:] for value in pattern.values())]
    chunks = range(first_step, steps * config.optimizer.epochs)
    images = _images(chunks, read, types, shapes, work)
    if not facts.mixes:
        return _finished(images.batch(part, drop_remainder=True), len(chunks))
    groups = images.batch(facts.mix_group, drop_remainder=True)
    groups = groups.map(_mix, num_parallel_calls=_cores())
    return _finished(_joined(groups, part // facts.mix_group), len(chunks))


def _mix(batch):
    """A group of examples with its images and labels mixed."""
    own, box = batch.pop("own"), batch.pop("box")
    image, label = mixing.mix(batch["image"], batch["label"], own, box)
    return {**batch, "image": image, "label": label}


def _joined(groups, count):
    """Batches of `count` groups each."""
    if count == 1:
        return groups

    def join(batch):
        return {name: tf.reshape(v, [-1, *v.shape[2:]]) for name, v in batch.items()}

    return groups.batch(count, drop_remainder=True).map(join)


def _rows(records, indices):
    """Some records, read together."""
    return records.__getitems__([int(i) for i in indices])


def _columns(rows):
    """Encoded images and labels of some rows, as arrays that TensorFlow takes."""
    images = np.array([row["image"] for row in rows], dtype=object)
    return images, np.array([row["label"] for row in rows], dtype=np.int64)


def _images(chunks, read, types, shapes, work):
    """What `work` makes, image by image, of what `read` finds.

    Args:
      chunks: a range; `read` runs in Python on each of its numbers.
      read: function of a number: arrays of as many rows, which become images.
      types: of the arrays.
      shapes: of their rows.
      work: function of a row of each, which runs in TensorFlow, in parallel.
    """

    def read_chunk(number):
        arrays = tf.numpy_function(read, [number], types)
        return tuple(tf.ensure_shape(a, [None, *s]) for a, s in zip(arrays, shapes, strict=True))

    numbers = tf.data.Dataset.range(chunks.start, chunks.stop)
    # The next chunk is read while this one is decoded.
    rows = numbers.map(read_chunk).prefetch(1).unbatch()
    return rows.map(work, num_parallel_calls=_cores())


def _cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _finished(batches, count):
    """Batches that say how many they are, and are made ahead."""
    known = tf.data.experimental.assert_cardinality(count)
    options = tf.data.Options()
    # Its thread, once it has run for minutes, sleeps up to one before it lets an iterator end.
    options.autotune.enabled = False
    return batches.apply(known).prefetch(_BATCHES_AHEAD).with_options(options)


def eval_batches(records, config, worker=0, workers=1):
    """The evaluation images in their order, each counted exactly once.

    Args:
      records: `Source.eval`.
      config: a `config.Config`.
      worker: which part of each batch; counted from 0.
      workers: how many parts there are.

    Returns:
      A `tf.data.Dataset` of {"image": float32 [B, S, S, 3] in 0–255, "label": float32 [B, K],
      "weight": float32 [B]}; B is batch_size / workers; weight is 0 for the images that fill up
      the last batch, and for one that stands for an unreadable one.
    """
    size, batch_size, network = len(records), config.data.batch_size, config.network
    chunks, part = range(eval_steps(records, batch_size)), batch_size // workers

    def read(chunk):
        """Bytes, labels and whether they count, of a worker's part of a batch."""
        positions = chunk * batch_size + worker * part + np.arange(part)
        rows = _rows(records, np.minimum(positions, size - 1))
        return *_columns(rows), (positions < size) & [row.get("readable", True) for row in rows]

    def work(image_bytes, label, counts):
        image = preprocess.decode(image_bytes)
        return {
            "image": preprocess.center_crop(image, network.image_size, config.data.crop_fraction),
            "label": tf.one_hot(label, network.num_classes),
            "weight": tf.cast(counts, tf.float32),
        }

    images = _images(chunks, read, [tf.string, tf.int64, tf.bool], [[]] * 3, work)
    return _finished(images.batch(part, drop_remainder=True), len(chunks))
