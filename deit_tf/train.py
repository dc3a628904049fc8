"""Trains a student or a teacher: `python -m deit_tf.train --flagfile=FILE --run_dir=DIR`.

A run that was stopped goes on when the same command is given again.
"""

import contextlib
import dataclasses
import json
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
    # What can be wrong is looked for before TensorFlow is imported, which takes seconds.
    from deit_tf import rundir

    machines = cluster.find(config.run.strategy)
    config.check_groups(machines.workers)
    data = _open_in_turn(config, machines)
    new, init_from = not rundir.steps(run_dir), config.run.init_from
    facts = _identify(config, data, new)
    rundir.check_same(run_dir, config, facts)
    if eval_only and not (new and init_from):
        rundir.weights_path(run_dir)  # an error where there is none yet

    import keras

    from deit_tf import checkpoint, dataset, devices, distiller, readable, teacher

    strategy = devices.strategy(config.run.strategy, config.run.replicas)
    keras.utils.set_random_seed(config.run.seed)
    facts["precision"] = devices.set_precision(config.run.precision)
    _greet(config, strategy, facts["precision"], devices.idle_gpu())
    replicas = strategy.num_replicas_in_sync
    devices.check_batch(config.data.batch_size, replicas, config.run.accumulate)
    steps = dataset.steps_per_epoch(data.train, config.data.batch_size)

    with strategy.scope():
        taught_by = teacher.load_teacher(config.distill, config.network.image_size, config.run.jit)
        student = checkpoint.build_network(config.network)
        if new and init_from:
            for change in checkpoint.start(student, config.run, data.classes):
                logging.info("from %s: %s", init_from, change)
        pair = _build(student, config, steps, taught_by)

    if machines.is_chief and not eval_only:
        rundir.begin(run_dir, config, facts, data.classes, data.labels)
    run = checkpoint.Run(run_dir, config.run.keep_checkpoints)
    run.restore(pair)
    _check_machines(strategy, config, facts, run)
    logging.info("%s, on %s", checkpoint.describe(pair.student), facts)
    part = (machines.worker, machines.workers)
    tests = devices.share(strategy, dataset.eval_batches(data.eval, config, *part))
    test_steps = dataset.eval_steps(data.eval, config.data.batch_size)

    def batches():
        """The training batches from where the run stands."""
        return devices.share(strategy, dataset.train_batches(data.train, config, run.step, *part))

    watchers, bar = _watchers(run, config, steps, test_steps, machines)
    with _blaming_machines(machines, run), readable.naming(lambda: _suspects(config, data, pair)):
        if run.epoch < config.optimizer.epochs and not eval_only:
            _fit(pair, run, batches, tests, config.optimizer.epochs, steps, test_steps, watchers)
        with strategy.scope():
            measured = {
                name: net and distiller.measure(net, tests, config.run.fusion, bar, test_steps)
                for name, net in {"student": pair.evaluated, "teacher": taught_by}.items()
            }
    if config.data.skip_bad_images:
        _count_bad_images(data)
    return measured


def _open_in_turn(config, machines):
    """The data set; on several machines the chief opens it first, which may prepare it."""
    if config.run.replicas > 1 or machines.workers > 1:
        from deit_tf import devices

        # Before a data set is prepared, which computes.
        strategy = devices.strategy(config.run.strategy, config.run.replicas)
        if not machines.is_chief:
            devices.meet(strategy)
        data = _open(config)
        if machines.is_chief:
            devices.meet(strategy)
        return data
    return _open(config)


def _fit(pair, run, batches, tests, epochs, steps, test_steps, watchers):
    """The rest of a run: of the epoch that was left in the middle, then whole epochs."""
    import keras

    rest = (run.epoch + 1) * steps - run.step
    watchers = keras.callbacks.CallbackList(watchers, add_history=True, model=pair)
    facts = {
        "validation_data": tests,
        "validation_steps": test_steps,
        "shuffle": False,
        "verbose": 0,
        "callbacks": watchers,
    }
    if rest == 0:  # it was left while it was evaluated
        watchers.on_train_begin()
        watchers.on_epoch_begin(run.epoch)
        found = pair.evaluate(
            tests, steps=test_steps, return_dict=True, verbose=0, callbacks=watchers
        )
        found = {f"val_{name}": value for name, value in found.items()}
        watchers.on_epoch_end(run.epoch, {**pair.train_logs(), **found})
        watchers.on_train_end()
    elif rest < steps:
        pair.fit(
            batches(), initial_epoch=run.epoch, epochs=run.epoch + 1, steps_per_epoch=rest, **facts
        )
    if run.epoch < epochs:
        pair.fit(batches(), initial_epoch=run.epoch, epochs=epochs, steps_per_epoch=steps, **facts)


def _watchers(run, config, steps, test_steps, machines):
    """Keras' callbacks for training, and those for an evaluation; the chief shows and writes."""
    import keras

    from deit_tf import checkpoint, progress

    saving = checkpoint.SaveRun(run, config.run, steps, machines.is_chief)
    if not machines.is_chief:
        return [saving], []
    bar = progress.EvaluationBar(test_steps)
    board = keras.callbacks.TensorBoard(run.path / "logs", write_graph=False)
    line = progress.Progress(config.optimizer.epochs, steps, config.data.batch_size)
    return [saving, board, line, bar], [bar]


def _check_machines(strategy, config, facts, run):
    """Raises InputError where the machines do not train the same from the same place."""
    from deit_tf import config as configuration
    from deit_tf import devices

    says = json.dumps([configuration.to_json(config), facts, run.step], sort_keys=True)
    if not devices.meet(strategy, says):
        raise InputError(
            f"the workers differ in their flags, their data or in what they find in {run.path}"
            f" (here: step {run.step}); give all the same command and a --run_dir that they share"
        )


@contextlib.contextmanager
def _blaming_machines(machines, run):
    """Says in one line that another machine has gone, where that is why the block failed."""
    import tensorflow as tf

    gone = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)
    try:
        yield
    except (*gone, tf.errors.DeadlineExceededError, tf.errors.InternalError) as error:
        if machines.workers == 1:
            raise
        raise InputError(
            f"another worker has gone ({error.message.splitlines()[0][:200]}); start all of them"
            f" again by the same command: {run.path} goes on from its newest checkpoint"
        ) from error


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


def _build(student, config, steps, taught_by):
    """The student with its teacher and optimizer, and with its average where that is asked for."""
    from deit_tf import checkpoint, distiller, optimizer

    facts = config.optimizer
    average = None
    if facts.ema_decay:
        copy = checkpoint.build_network(config.network)
        average = optimizer.Average(student, copy, facts.ema_decay)
    pair = distiller.Distiller(
        student, config.distill, taught_by, config.run.fusion, average, config.run.train_mode
    )
    adamw = optimizer.build(facts, config.data.batch_size, steps, student.trainable_variables)
    pair.compile(adamw, jit_compile=config.run.jit, accumulate=config.run.accumulate)
    return pair


def _suspects(config, data, pair):
    """The images that may be why training or evaluation failed, as `readable.naming` wants them."""
    from deit_tf import dataset, devices

    # A step that fails for want of its batch may have been counted, or not.
    counted = devices.number(pair.position)
    for step in range(max(counted - 1, 0), counted + 1):
        yield data.train, dataset.indices(data.train, config, step)
    yield data.eval, range(len(data.eval))


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


def _check_classes(config, data):
    """Raises InputError where data and network have different numbers of classes."""
    classes, ours = len(data.labels), config.network.num_classes
    if classes != ours:
        raise InputError(
            f"{data.name} has {classes} classes, num_classes is {ours}; give"
            f" --num_classes={classes}"
        )


def draw_preview(config, path):
    """Draws what the network is going to see; a row shows the outer pairs of a mixing group.

    Args:
      config: a `config.Config`.
      path: the picture, a name that ends in .png.

    Raises:
      InputError: something that was given does not fit; nothing has been written. Or an image
        that cannot be read.
    """
    if not path.endswith(".png"):
        raise InputError(f"preview is {path!r}; give the name of a picture that ends in .png")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise InputError(f"preview is {path!r}, and there is no such folder; make it first")
    data = _open(config)

    from deit_tf import dataset, preview, readable

    # The first groups of the epoch, however large its batches are.
    size = config.augment.mix_group if config.augment.mixes else preview.COLUMNS
    groups = max(min(preview.ROWS, len(data.train) // size), 1)
    some = dataclasses.replace(config.data, batch_size=groups * size)
    few = dataclasses.replace(config, data=some)
    with readable.naming(lambda: [(data.train, dataset.indices(data.train, few, 0))]):
        batch = next(iter(dataset.train_batches(data.train, few)))
    rows = preview.rows(batch["image"].numpy(), batch["label"].numpy(), groups)
    preview.save(rows, data.labels, config.augment.label_smoothing, path)


def _open(config):
    """The data set, which fits the network; what is wrong with the recipe is said before."""
    from deit_tf import policies, source

    config.check_groups()
    policies.parse(config.augment.auto_augment)
    data = source.open_source(config.data)
    _check_classes(config, data)
    return data


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


if __name__ == "__main__":
    flags.define_config()
    flags.define_text("run_dir", None, "Where the run is kept; an unfinished one goes on.")
    flags.define_switch(
        "eval_only", "Measure what the run has reached, or starts from; train nothing."
    )
    flags.define_text(
        "preview", None, "Draw augmented images with their soft labels as FILE.png; train nothing."
    )
    flags.run(main)
