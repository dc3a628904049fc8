"""Trains a student or a teacher: `python -m deit_tf.train --flagfile=FILE --run_dir=DIR`.

A run that was stopped goes on when the same command is given again.
"""

from absl import logging

from deit_tf import flags, report
from deit_tf.config import InputError


def train(config, run_dir):
    """Trains one network, or goes on where the run in `run_dir` stopped.

    Args:
      config: a `config.Config`.
      run_dir: the run directory, made if it is not there.

    Returns:
      {"student": measured, "teacher": measured or None}; see `distiller.measure`.

    Raises:
      InputError: something that was given does not fit; nothing has been written.
    """
    # TensorFlow takes seconds to import; --help and a wrong flag should not wait for it.
    import keras

    from deit_tf import checkpoint, dataset, devices, distiller, optimizer, teacher

    keras.utils.set_random_seed(config.run.seed)
    strategy = devices.strategy()
    precision = devices.set_precision(config.run.precision)
    _greet(config, strategy, precision, devices.idle_gpu())
    source = dataset.open_source(config.data)
    _check_fit(config, source, strategy.num_replicas_in_sync)
    steps = dataset.steps_per_epoch(source.train, config.data.batch_size)

    with strategy.scope():
        student = checkpoint.build_network(config.network)
        taught_by = teacher.load_teacher(config.distill)
        pair = distiller.Distiller(student, config.distill, taught_by, config.run.fusion)
        adamw = optimizer.build(
            config.optimizer, config.data.batch_size, steps, student.trainable_variables
        )
        pair.compile(adamw, jit_compile=config.run.jit)

    facts = {**source.facts, **teacher.facts(config.distill, source.labels)}
    facts["precision"] = precision
    run = checkpoint.Run(run_dir, config, facts, source.labels)
    run.restore(student, adamw)
    logging.info("%s, on %s", checkpoint.describe(student), facts)
    tests = dataset.eval_batches(source.eval, config)
    if run.epoch < config.optimizer.epochs:
        pair.fit(
            dataset.train_batches(source.train, config, run.step),
            shuffle=False,
            epochs=config.optimizer.epochs,
            initial_epoch=run.epoch,
            steps_per_epoch=steps,
            validation_data=tests,
            callbacks=[
                checkpoint.SaveRun(run, student),
                keras.callbacks.TensorBoard(run.path / "logs", write_graph=False),
            ],
        )
    with strategy.scope():
        count, fusion = len(source.eval), config.run.fusion
        return {
            "student": distiller.measure(student, tests, count, fusion),
            "teacher": taught_by and distiller.measure(taught_by, tests, count, fusion),
        }


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


def _check_fit(config, source, replicas):
    """Raises InputError where data, network and machine do not fit together."""
    classes, ours = len(source.labels), config.network.num_classes
    if classes != ours:
        raise InputError(
            f"{source.name} has {classes} classes, num_classes is {ours}; give"
            f" --num_classes={classes}"
        )
    if config.data.batch_size % replicas:
        raise InputError(
            f"batch_size {config.data.batch_size} is not a multiple of the {replicas} replicas"
        )


def main(argv):
    """Flags -> configuration -> training -> table."""
    del argv
    config = flags.config_from_flags()
    if not flags.FLAGS.run_dir:
        raise InputError("no run directory; give --run_dir=DIR")
    print(report.table(**train(config, flags.FLAGS.run_dir)))


if __name__ == "__main__":
    flags.define_config()
    flags.define_text("run_dir", None, "Where the run is kept; an unfinished one goes on.")
    flags.run(main)
