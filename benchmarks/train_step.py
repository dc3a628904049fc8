"""What a training step costs: ours beside timm's and keras-hub's, on the cores of this machine.

    pip install -r requirements-bench.txt
    python benchmarks/train_step.py --out=benchmarks/results/train_step.json

A step is forward, backward and AdamW on a batch of noise that lies in memory, in float32. Ours has
drop path and two heads, and in the rows with distillation the RegNetY-16GF that decides; timm's
has the same (eager, and by `torch.compile`); keras-hub's DeiT (`jit_compile=True`) has one head, no
drop path and no teacher. Each engine has its own process; they take turns in changing order, so
that changes of the machine's speed fall on all alike. Memory is the process' largest, compilation
included. `--growth` measures ours alone over batch, replicas, size and depth.
"""

import argparse
import json
import pathlib
import statistics

import machine
import turns

ENGINES = ("deit_tf", "timm", "timm_compile", "keras_hub")
CASES = (
    {"model": "tiny", "distillation": "none"},
    {"model": "small", "distillation": "none"},
    {"model": "tiny", "distillation": "hard"},
    {"model": "small", "distillation": "hard"},
)
USUAL = {
    "model": "tiny",
    "distillation": "none",
    "batch": 32,
    "replicas": 1,
    "size": 224,
    "depth": 12,
    "accumulate": 1,
}
GROWTH = (
    {"batch": 8},
    {"batch": 16},
    {"batch": 32},
    {"batch": 64},
    {"batch": 64, "accumulate": 4},
    {"replicas": 2},
    {"size": 384, "batch": 8},
    {"depth": 6},
    {"depth": 24},
)
CLASSES = 1000
PACKAGES = ("tensorflow", "keras", "keras-hub", "timm", "torch")


def main():
    """Measures, prints a table, and writes a JSON file where asked."""
    arguments = _arguments()
    if arguments.serve:
        return _serve(json.loads(arguments.serve))
    rows = []
    cases = [{**USUAL, **case} for case in (GROWTH if arguments.growth else CASES)]
    for case in [case for case in cases if arguments.only in (None, case["model"])]:
        names = [name for name in arguments.engines.split(",") if _offers(name, case)]
        rows.append({**case, "engines": _measure(case, names, arguments.rounds, arguments.steps)})
        print(_line(rows[-1], arguments.growth), flush=True)
        if arguments.out:
            path = pathlib.Path(arguments.out)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"rows": rows, **machine.facts(*PACKAGES)}, indent=1) + "\n")
    return None


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each engine")
    parser.add_argument("--steps", type=int, default=2, help="steps in a turn")
    parser.add_argument("--engines", default=",".join(ENGINES), help="which, with commas between")
    parser.add_argument("--only", choices=("tiny", "small"), help="one model alone")
    parser.add_argument("--growth", action="store_true", help="ours, as it grows")
    parser.add_argument("--out", help="JSON file for the results")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    return parser.parse_args()


def _offers(name, case):
    """Whether an engine can do what is measured."""
    if case["distillation"] != "none" and name == "keras_hub":
        return False
    own = {"batch", "model", "distillation"}
    return name == "deit_tf" or all(case[k] == USUAL[k] for k in USUAL if k not in own)


def _measure(case, names, rounds, steps):
    """Images per second of each turn and peak memory of each engine: {engine: {...}}."""
    cases = {name: {**case, "engine": name} for name in names}
    found = turns.measure(__file__, cases, rounds, steps)
    return {
        name: {
            "images_per_second": [case["batch"] / seconds for seconds in engine["seconds"]],
            "peak_bytes": engine["peak_bytes"],
        }
        for name, engine in found.items()
    }


def _serve(case):
    """An engine: takes as many steps as each line of its input says."""
    import numpy as np

    rng, batch, size = np.random.RandomState(0), case["batch"], case["size"]
    image = rng.uniform(0, 255, (batch, size, size, 3)).astype(np.float32)
    label = np.eye(CLASSES, dtype=np.float32)[rng.randint(0, CLASSES, batch)]
    makers = {"deit_tf": _deit_tf, "keras_hub": _keras_hub, "timm": _timm, "timm_compile": _timm}
    turns.serve(makers[case["engine"]](case, image, label))


def _deit_tf(case, image, label):
    """Function: one step of ours."""
    import numpy as np
    import tensorflow as tf

    from deit_tf import config, devices, distiller, model, optimizer, regnet

    if case["replicas"] > 1:
        devices.split_cpu(case["replicas"])
    strategy = devices.strategy("mirrored", case["replicas"])
    with strategy.scope():
        student = model.build_deit(
            f"deit_{case['model']}_distilled_patch16_224",
            image_size=case["size"],
            depth=case["depth"],
        )
        hard = case["distillation"] == "hard"
        facts = config.DistillConfig("hard", "given") if hard else None
        teacher = hard and regnet.build_regnety(config.network("regnety_160"))
        pair = distiller.Distiller(student, facts, teacher or None)
        adamw = optimizer.build(config.OptimizerConfig(), 512, 100, student.trainable_variables)
        pair.compile(adamw, jit_compile=True, accumulate=case["accumulate"])
    rates = np.array(student.config.drop_path_rates)[:, None]
    keep = np.random.RandomState(1).uniform(size=(len(image), case["depth"], 2)) >= rates
    batch = {"image": image, "label": label, "keep": keep.astype(np.float32)}
    endless = tf.data.Dataset.from_tensors(batch).repeat()
    batches = iter(strategy.experimental_distribute_dataset(endless))
    pair.make_train_function()
    return lambda: float(pair.train_function(batches)["loss"])


def _keras_hub(case, image, label):
    """Function: one step of keras-hub's DeiT."""
    import keras
    import keras_hub
    import tensorflow as tf

    width, heads = {"tiny": (192, 3), "small": (384, 6)}[case["model"]]
    backbone = keras_hub.models.DeiTBackbone(
        image_shape=(case["size"], case["size"], 3),
        patch_size=16,
        num_layers=case["depth"],
        num_heads=heads,
        hidden_dim=width,
        intermediate_dim=4 * width,
    )
    network = keras_hub.models.DeiTImageClassifier(
        backbone=backbone, num_classes=CLASSES, preprocessor=None
    )
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    adamw = keras.optimizers.AdamW(1e-3, weight_decay=0.05)
    network.compile(adamw, loss, jit_compile=True, metrics=[])
    network.make_train_function()
    batches = iter(tf.data.Dataset.from_tensors((image / 255.0, label)).repeat())
    return lambda: float(network.train_function(batches)["loss"])


def _timm(case, image, label):
    """Function: one step of timm's, eager or compiled."""
    import torch

    machine.let_timm_import()
    import timm
    from torch.nn import functional

    torch.set_num_threads(machine.cores())
    name = f"deit_{case['model']}_distilled_patch16_224"
    student = timm.create_model(name, drop_path_rate=0.1).train()
    student.set_distilled_training(True)
    hard = case["distillation"] == "hard"
    teacher = timm.create_model("regnety_160").eval() if hard else None
    adamw = torch.optim.AdamW(student.parameters(), 1e-3, weight_decay=0.05)
    if case["engine"] == "timm_compile":
        student = torch.compile(student)
        teacher = None if teacher is None else torch.compile(teacher)
    image = torch.from_numpy((image / 255.0).transpose(0, 3, 1, 2).copy())
    label = torch.from_numpy(label)

    def step():
        adamw.zero_grad()
        cls, dist = student(image)
        target = label
        if teacher is not None:
            with torch.no_grad():
                target = teacher(image).argmax(-1)
        loss = functional.cross_entropy(cls, label) + functional.cross_entropy(dist, target)
        (0.5 * loss).backward()
        adamw.step()
        return float(loss.detach())

    return step


def _line(row, growth):
    """Medians with their range, ratios to the first engine turn by turn, and peak memory."""
    changed = {name: value for name, value in row.items() if name in USUAL}
    if growth:
        changed = {k: v for k, v in changed.items() if v != USUAL[k]} or {"batch": row["batch"]}
    title = ", ".join(f"{name} {value}" for name, value in changed.items() if name != "engines")
    lines, found = [title], row["engines"]
    for name, engine in found.items():
        rates = engine["images_per_second"]
        ratios = [
            a / b
            for a, b in zip(found["deit_tf"]["images_per_second"], rates, strict=True)
            if name != "deit_tf"
        ]
        lines.append(
            f"  {name:<14}{statistics.median(rates):6.1f} images/s"
            f" ({min(rates):.1f}–{max(rates):.1f})  {engine['peak_bytes'] / 2**30:5.2f} GiB"
            + (f"  ours / this {statistics.median(ratios):.2f}" if ratios else "")
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
