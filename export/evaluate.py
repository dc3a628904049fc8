"""Accuracy of an artefact itself: `python -m export.evaluate --artefact=PATH --dataset=NAME`."""

import json

from deit_tf import flags, report
from deit_tf.config import Config, DataConfig, InputError, network


def evaluate(path, device=None, **data):
    """Measures an artefact on the evaluation images of a data set.

    Args:
      path: a SavedModel's folder, or an ONNX file.
      device: "cpu" or "cuda", for an ONNX file; None is the CPU.
      **data: fields of `config.DataConfig`; the crop is the artefact's own unless it is given.

    Returns:
      {"images": int, "artefact": {"top1", "top5", "loss"}}; accuracies 0–1, loss in nats.

    Raises:
      InputError: no artefact, or a data set that is not there or has other classes.
    """
    from deit_tf import dataset, distiller, progress, readable, source
    from export import artefact

    opened = artefact.open_artefact(artefact.find(path), device)
    told = opened.manifest
    wanted = DataConfig(**{"crop_fraction": told.crop_fraction, **data})
    found = source.open_source(wanted, training=False)
    if told.classes != tuple(found.classes) and told.labels != tuple(found.labels):
        raise InputError(
            f"{found.name} has other classes than {path}; where they only have other names,"
            " --labels=FILE says which"
        )
    # What the pipeline asks of a network; the rest of it is the artefact's own affair.
    side, count = told.image_size, len(told.classes)
    seen = network("deit", image_size=side, patch_size=side, num_classes=count)
    batches = dataset.eval_batches(found.eval, Config("deit", seen, data=wanted))
    bar = progress.EvaluationBar(int(batches.cardinality()))
    with readable.naming(lambda: [(found.eval, range(len(found.eval)))]):
        measured = distiller.measure(artefact.Network(opened, seen), batches, callbacks=[bar])
    return {"images": measured["images"], "artefact": measured["fused"]}


def main(argv):
    """Flags -> measurement -> stdout."""
    del argv
    given = flags.FLAGS
    if not given.artefact:
        raise InputError("no artefact; give --artefact=PATH")
    if not given.dataset:
        raise InputError("no data set; give --dataset=digits, tfds:NAME or folder:PATH")
    measured = evaluate(given.artefact, given.device, **flags.given_data())
    print(json.dumps(measured) if given.json else report.table(measured))


def run():
    """The command: its flags, then `main`."""
    flags.define_text("artefact", None, "A SavedModel's folder, or an ONNX file.")
    flags.define_text("device", None, "What an ONNX file runs on: cpu (default) or cuda.")
    flags.define_data()
    flags.define_switch("json", "Answer one line of JSON.")
    flags.run(main)


if __name__ == "__main__":
    run()
