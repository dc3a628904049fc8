"""Trains a student or a teacher: `python -m deit_tf.train --flagfile=FILE --run_dir=DIR`.

A run that was stopped goes on when the same command is given again.
"""

import dataclasses
import os

from absl import logging

from deit_tf import cluster, flags, report
from deit_tf.config import InputError


def train(config, run_dir, eval_only=False):
    """Trains one network, or goes on where the run in `run_dir` stopped.

    Args:
      config: a `config.Config`.
      run_dir: the run directory, made if it is not there.
      eval_only: True measures what the run has reached, or starts from, and trains nothing.

    Returns:
      {"student": measured, "teacher": measured or None}; see `distiller.measure`.

    Raises:
      InputError: something that was given does not fit; nothing has been written. Or an image
        that cannot be read.
    """
    machines = cluster.find(config.run.strategy)
    with cluster.blaming(machines, run_dir):
        return _train(config, run_dir, eval_only, machines)


def _train(config, run_dir, eval_only, machines):
    """`train` on one of several machines, or on the only one."""
    # What can be wrong is looked for before TensorFlow is imported, which takes seconds.
    from deit_tf import rundir, source

    data = source.open_training(config, machines)
    new = not rundir.steps(run_dir)
    facts = _identify(config, data, new)
    rundir.check_same(run_dir, config, facts)
    if eval_only and not (new and config.run.init_from):
        rundir.weights_path(run_dir)  # an error where there is none yet

    import keras

    from deit_tf import bank as banks
    from deit_tf import checkpoint, dataset, devices, loop

    strategy = devices.strategy(config.run.strategy, config.run.replicas)
    keras.utils.set_random_seed(config.run.seed)
    facts["precision"] = devices.set_precision(config.run.precision)
    _greet(config, strategy, facts["precision"], devices.idle_gpu())
    steps = dataset.steps_per_epoch(data.train, config.data.batch_size)
    bank = banks.open_bank(config, data, steps, facts["precision"], devices.kind())
    with strategy.scope():
        pair, taught_by = _build(config, data, new, bank)
    run = checkpoint.Run(run_dir, config.run.keep_checkpoints)
    run.restore(pair)
    loop.check_machines(strategy, config, facts, run, pair, eval_only)
    if machines.is_chief and not eval_only:
        rundir.begin(run_dir, config, facts, data.classes, data.labels)
        if bank:
            bank.begin()
    logging.info("%s, on %s", checkpoint.describe(pair.student), facts)

    images = loop.Images(config, data, strategy, machines, bank)
    measured = loop.finish(pair, taught_by, run, images, eval_only)
    if config.data.skip_bad_images:
        _count_bad_images(data)
    return measured


def _identify(config, data, new):
    """What identifies data, draws, teacher, and what a new run starts from: {name: value}."""
    from deit_tf import draws, rundir, teacher_facts, torch_weights

    facts, init_from = {**data.facts, "draws": draws.LAWS}, config.run.init_from
    facts |= teacher_facts.facts(config.distill, data.classes)
    if new and torch_weights.is_file(init_from):
        torch_weights.check(init_from)
    if new or os.path.exists(init_from):  # once begun, a run needs it no more
        facts |= rundir.initial_facts(init_from)
    return facts


def _load_teacher(config, bank):
    """The teacher, or None where nothing is distilled or a bank has all that it would say."""
    from deit_tf import teacher

    if bank:
        epochs = config.optimizer.epochs
        missing = len(bank.missing(range(epochs)))
        bank.complete = not missing
        logging.info("label bank %s has %d of %d epochs", bank.path, epochs - missing, epochs)
        if not missing:
            return None
    return teacher.load_teacher(config.distill, config.network.image_size, config.run.jit)


def _build(config, data, new, bank):
    """What is trained, and its teacher or None; a new run starts from `init_from`, if any."""
    import tensorflow as tf

    from deit_tf import checkpoint, dataset, devices, distiller, optimizer

    facts, size, run = config.optimizer, config.data.batch_size, config.run
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    devices.check_batch(size, replicas, run.accumulate)
    steps = dataset.steps_per_epoch(data.train, size)
    # Before the teacher, so that its first weights depend on the seed alone.
    student = checkpoint.build_network(config.network)
    taught_by = _load_teacher(config, bank)
    if new and run.init_from:
        for change in checkpoint.start(student, run, data.classes):
            logging.info("from %s: %s", run.init_from, change)
    average = None
    if facts.ema_decay:
        copy = checkpoint.build_network(config.network)
        average = optimizer.Average(student, copy, facts.ema_decay)
    pair = distiller.Distiller(
        student, config.distill, taught_by, run.fusion, average, run.train_mode, bank is not None
    )
    built = optimizer.build(facts, size, steps, student.trainable_variables)
    pair.compile(built, jit_compile=run.jit, accumulate=run.accumulate)
    return pair, taught_by


def _count_bad_images(data):
    """Says how many images were passed over."""
    logging.warning(
        "could not be read and were passed over: %d training, %d evaluation images",
        data.train.bad,
        data.eval.bad,
    )


def _greet(config, strategy, precision, warning):
    """Says what is about to run, and on what."""
    logging.info(
        "training %s in %s on %d replica(s)",
        config.model,
        precision,
        strategy.num_replicas_in_sync,
    )
    if warning:
        logging.warning(warning)


def draw_preview(config, path):
    """Draws what the network is going to see; a row shows the outer pairs of a mixing group.

    Args:
      config: a `config.Config`.
      path: the picture, a name that ends in .png.

    Raises:
      InputError: something that was given does not fit; nothing has been written. Or an image
        that cannot be read.
    """
    from deit_tf import picture, source

    picture.check(path, "preview")

    data = source.open_training(config, cluster.Cluster())

    from deit_tf import dataset, preview, readable

    # The first groups of the epoch, however large its batches are.
    size = config.augment.mix_group if config.augment.mixes else preview.COLUMNS
    groups = max(min(preview.ROWS, len(data.train) // size), 1)
    some = dataclasses.replace(config.data, batch_size=groups * size)
    few = dataclasses.replace(config, data=some)
    with readable.naming(lambda: [(data.train, dataset.indices(data.train, few, 0))]):
        batch = next(iter(dataset.train_batches(data.train, few)))
    rows = preview.rows(batch["image"].numpy(), batch["label"].numpy(), groups)
    picture.save(preview.draw(rows, data.labels, config.augment.label_smoothing), path)


def main(argv):
    """Flags -> configuration -> training -> table."""
    del argv
    config = flags.config_from_flags()
    if flags.FLAGS.preview:
        draw_preview(config, flags.FLAGS.preview)
        return
    if not flags.FLAGS.run_dir:
        raise InputError("no run directory; give --run_dir=DIR")
    measured = train(config, flags.FLAGS.run_dir, flags.FLAGS.eval_only)
    if cluster.find(config.run.strategy).is_chief:
        print(report.table(**measured))


def run():
    """The command: its flags, then `main`."""
    flags.define_config()
    flags.define_text("run_dir", None, "Where the run is kept; an unfinished one goes on.")
    flags.define_switch(
        "eval_only", "Measure what the run has reached, or starts from; train nothing."
    )
    flags.define_text(
        "preview", None, "Draw augmented images with their soft labels as FILE.png; train nothing."
    )
    flags.run(main)


if __name__ == "__main__":
    run()
