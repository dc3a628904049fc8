"""Accuracy of a trained run: `python -m deit_tf.evaluate --run_dir=DIR [--json]`."""

import dataclasses
import json

from deit_tf import flags, report
from deit_tf.config import InputError


def evaluate(run_dir, which="last", data_dir=None, fusion=None):
    """Measures a run's network on the evaluation images of its own data set.

    Args:
      run_dir: the run directory.
      which: "last" or "best" checkpoint.
      data_dir: folder of the prepared data sets; None is the run's own.
      fusion: "logits" or "softmax"; None is the run's own.

    Returns:
      See `distiller.measure`.

    Raises:
      InputError: no such run, or its data is not there.
    """
    # TensorFlow takes seconds to import; --help and a wrong flag should not wait for it.
    from deit_tf import checkpoint, dataset, devices, distiller

    record = checkpoint.read_config(run_dir)
    config = record["config"]
    if data_dir:
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, data_dir=data_dir)
        )
    devices.set_precision(config.run.precision)
    strategy = devices.strategy()
    with strategy.scope():
        network = checkpoint.load(run_dir, which)
        source = dataset.open_source(config.data)
        if list(source.labels) != record["labels"]:
            raise InputError(f"{source.name} has other classes than {run_dir} was trained on")
        batches = dataset.eval_batches(source.eval, config)
        return distiller.measure(network, batches, len(source.eval), fusion or config.run.fusion)


def main(argv):
    """Flags -> measurement -> stdout."""
    del argv
    given = flags.FLAGS
    if not given.run_dir:
        raise InputError("no run directory; give --run_dir=DIR")
    measured = evaluate(given.run_dir, given.checkpoint, given.data_dir, given.fusion)
    print(json.dumps(measured) if given.json else report.table(measured))


if __name__ == "__main__":
    flags.define_text("run_dir", None, "The run directory.")
    flags.define_text("checkpoint", "last", "Which weights: last or best.")
    flags.define_text("data_dir", None, "Folder of the prepared data sets; default: the run's.")
    flags.define_text("fusion", None, "Heads together: logits or softmax; default: the run's.")
    flags.define_switch("json", "Answer one line of JSON.")
    flags.run(main)
