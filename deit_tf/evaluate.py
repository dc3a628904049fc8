"""Accuracy of a trained run: `python -m deit_tf.evaluate --run_dir=DIR [--json]`."""

import dataclasses
import json

from absl import logging

from deit_tf import flags, report
from deit_tf.config import InputError


def evaluate(run_dir, which="last", fusion=None, **changes):
    """Measures a run's network on the evaluation images of its own data set, or of another.

    Args:
      run_dir: the run directory.
      which: "last" or "best" checkpoint.
      fusion: "logits" or "softmax"; None is the run's own.
      **changes: fields of `config.DataConfig` that differ from the run's own.

    Returns:
      See `distiller.measure`.

    Raises:
      InputError: no such run, its data is not there or has other classes, or an image that cannot
        be read.
    """
    # What can be wrong is looked for before TensorFlow is imported, which takes seconds.
    from deit_tf import rundir, source

    record = rundir.read_config(run_dir)
    rundir.weights_path(run_dir, which)  # an error where there is none
    config = record["config"]
    run = dataclasses.replace(config.run, fusion=fusion or config.run.fusion)
    changes = {"labels": "", **changes}  # the run's own names are in its record
    if changes.get("eval_split") or not changes.get("dataset", "folder:").startswith("folder:"):
        changes = {"eval_fraction": 0.0, **changes}  # a part held out is no split of its own
    if changes.get("eval_fraction"):
        changes = {"eval_split": "", **changes}
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **changes), run=run)
    data = source.open_source(config.data, training=False)
    if record["classes"] != list(data.classes) and record["labels"] != list(data.labels):
        raise InputError(
            f"{data.name} has other classes than {run_dir} was trained on; where they only have"
            " other names, --labels=FILE says which"
        )

    from deit_tf import checkpoint, dataset, devices, distiller, progress, readable

    devices.set_precision(config.run.precision)
    strategy = devices.strategy()
    devices.check_batch(config.data.batch_size, strategy.num_replicas_in_sync)
    with strategy.scope():
        network = checkpoint.load(run_dir, which)
        batches = dataset.eval_batches(data.eval, config)
        bar = progress.EvaluationBar(int(batches.cardinality()))
        with readable.naming(lambda: [(data.eval, range(len(data.eval)))]):
            measured = distiller.measure(network, batches, config.run.fusion, [bar])
    if config.data.skip_bad_images:
        logging.warning("could not be read and were passed over: %d images", data.eval.bad)
    return measured


def main(argv):
    """Flags -> measurement -> stdout."""
    del argv
    given = flags.FLAGS
    if not given.run_dir:
        raise InputError("no run directory; give --run_dir=DIR")
    measured = evaluate(given.run_dir, given.checkpoint, given.fusion, **flags.given_data())
    print(json.dumps(measured) if given.json else report.table(measured))


def run():
    """The command: its flags, then `main`."""
    flags.define_text("run_dir", None, "The run directory.")
    flags.define_text("checkpoint", "last", "Which weights: last or best.")
    flags.define_text("fusion", None, "Heads together: logits or softmax; default: the run's.")
    flags.define_data()
    flags.define_switch("json", "Answer one line of JSON.")
    flags.run(main)


if __name__ == "__main__":
    run()
