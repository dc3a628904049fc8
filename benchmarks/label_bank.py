"""What a label bank saves: a training step with it, without a teacher, and with the live one.

    python benchmarks/label_bank.py --out=benchmarks/results/label_bank.json
    python benchmarks/label_bank.py --soft=runs/digits_teacher

The step is that of DeiT-Ti, distilled, at 224 pixels and batch 32, as in train_step.py: with labels
alone, with a bank whose labels are read from its file beside the images, and with the RegNetY-16GF
asked in every step. `--soft` measures, on an epoch of a trained teacher's own images, what is lost
where only its largest probabilities are kept.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile

import machine
import turns

sys.path.insert(0, str(turns.ROOT))
ENGINES = ("no teacher", "label bank", "live teacher")
BATCH, SIZE, CLASSES, EPOCH = 32, 224, 1000, 320
PACKAGES = ("tensorflow", "keras", "numpy")


def main():
    """Measures, prints a table, and writes a JSON file where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="turns of each engine")
    parser.add_argument("--steps", type=int, default=2, help="steps in a turn")
    parser.add_argument("--out", help="JSON file for the results")
    parser.add_argument("--soft", metavar="RUN_DIR", help="what --bank_topk loses of this teacher")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return _serve(json.loads(arguments.serve))
    if arguments.soft:
        return print(_soft(arguments.soft))
    with tempfile.TemporaryDirectory() as folder:
        cases = {name: {"engine": name, "folder": folder} for name in ENGINES}
        found = turns.measure(__file__, cases, arguments.rounds, arguments.steps)
    print(_table(found))
    if arguments.out:
        result = {"engines": found, "batch": BATCH, **machine.facts(*PACKAGES)}
        pathlib.Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n")
    return None


def _serve(case):
    """An engine."""
    import numpy as np
    import tensorflow as tf

    from deit_tf import bank, config, distiller, model, optimizer, regnet

    rng = np.random.RandomState(0)
    student = model.build_deit("deit_tiny_distilled_patch16_224")
    rates = np.array(student.config.drop_path_rates)[:, None]
    batch = {
        "image": rng.uniform(0, 255, (BATCH, SIZE, SIZE, 3)).astype(np.float32),
        "label": np.eye(CLASSES, dtype=np.float32)[rng.randint(0, CLASSES, BATCH)],
        "keep": (rng.uniform(size=(BATCH, len(rates), 2)) >= rates).astype(np.float32),
    }
    hard = config.DistillConfig("hard", "given")
    batches = tf.data.Dataset.from_tensors(batch).repeat()
    if case["engine"] == "no teacher":
        pair = distiller.Distiller(student)
    elif case["engine"] == "live teacher":
        pair = distiller.Distiller(
            student, hard, regnet.build_regnety(config.network("regnety_160"))
        )
    else:
        pair = distiller.Distiller(student, hard, answered=True)
        facts = {"positions": EPOCH, "num_classes": CLASSES, "bank_topk": 0}
        stored = bank.Bank(f"{case['folder']}/bank", facts)
        stored.begin()
        stored.hear(0, rng.randint(0, CLASSES, (EPOCH, 1)))
        stored.flush()
        stored.join(0)

        def read(step):
            first = int(step) * BATCH % EPOCH
            return stored.read(0, range(first, first + BATCH))["teacher_classes"]

        def with_labels(step, batch):
            classes = tf.ensure_shape(tf.numpy_function(read, [step], tf.int32), [BATCH, 1])
            return {**batch, "teacher_classes": classes}

        batches = tf.data.Dataset.zip(tf.data.Dataset.counter(), batches).map(with_labels)
    adamw = optimizer.build(config.OptimizerConfig(), 512, 100, student.trainable_variables)
    pair.compile(adamw, jit_compile=True)
    pair.make_train_function()
    iterator = iter(batches.prefetch(2))
    turns.serve(lambda: float(pair.train_function(iterator)["loss"]))


def _table(found):
    """Medians with their range, and ratios to the step without a teacher, turn by turn."""
    lines, base = [], found[ENGINES[0]]["seconds"]
    for name, engine in found.items():
        seconds = engine["seconds"]
        ratio = statistics.median(a / b for a, b in zip(seconds, base, strict=True))
        lines.append(
            f"{name:<14}{statistics.median(seconds):6.2f} s ({min(seconds):.2f}–{max(seconds):.2f})"
            f"  {engine['peak_bytes'] / 2**30:5.2f} GiB  × {ratio:.2f}"
        )
    return "\n".join(lines)


def _soft(run_dir):
    """How far the k largest probabilities are from all of them, a table in Markdown."""
    import numpy as np
    import tensorflow as tf
    from keras import ops

    from deit_tf import checkpoint, dataset, lessons, losses, rundir, source

    config = rundir.read_config(run_dir)["config"]
    data, network = source.open_source(config.data), checkpoint.load(run_dir)
    steps = dataset.steps_per_epoch(data.train, config.data.batch_size)
    batches = dataset.train_batches(data.train, config).take(steps)
    logits = tf.concat([network(b["image"], training=False)["cls"] for b in batches], axis=0)
    pupil = tf.constant(np.random.RandomState(0).standard_normal(logits.shape), tf.float32)

    def gradient(taught):
        with tf.GradientTape() as tape:
            tape.watch(pupil)
            loss = tf.reduce_mean(losses.soft_distillation(pupil, taught, 1.0))
        return tape.gradient(loss, pupil)

    wanted, exact = ops.softmax(logits), gradient(logits)
    classes = logits.shape[-1]
    lines = [
        f"| K of {classes} | distance, mean | largest | of the gradient |",
        "|--:|--:|--:|--:|",
    ]
    for k in sorted({1, 2, 3, 5, classes}):
        told = lessons.lengthen(classes, **lessons.shorten(logits, k))
        apart = 0.5 * ops.sum(ops.abs(ops.softmax(told) - wanted), axis=-1)
        error = tf.norm(gradient(told) - exact) / tf.norm(exact)
        lines.append(
            f"| {k} | {float(ops.mean(apart)):.1e} | {float(ops.max(apart)):.1e} |"
            f" {float(error):.1e} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
