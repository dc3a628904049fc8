"""How fast training images come: ours beside timm's, on the cores of this machine.

    pip install -r requirements-bench.txt
    python benchmarks/input_pipeline.py --out=benchmarks/results/input_pipeline.json

JPEGs like ImageNet's (500×375) are read from a folder, cropped to 224 pixels (antialiased bicubic),
flipped, augmented by RandAugment (bilinear), erased, and mixed in batches. timm's
`create_transform` and `Mixup` run under a torch `DataLoader` with a worker a core. Each engine has
its own process; they take turns, so that changes of the machine's speed fall on all alike. A stage
contains those above it. timm normalises the images, which costs it a little; ours come raw, with
keep masks.
"""

import argparse
import io
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import machine

ENGINES = ("deit_tf", "timm")
STAGES = ("decode, crop", "flip", "RandAugment", "erasing", "mixing")
PACKAGES = ("tensorflow", "keras-cv", "timm", "torch", "torchvision", "pillow")
BATCH, SIZE, CLASSES, JPEGS = 64, 224, 1000, 256
WARM_UP = 6  # batches: more than either engine makes ahead
RANDAUGMENT = "rand-m9-mstd0.5-inc1"


def main():
    """Measures, prints a table, and writes a JSON file where asked."""
    arguments = _arguments()
    if arguments.engine:
        return _serve(arguments)
    with tempfile.TemporaryDirectory() as folder:
        size = _write_jpegs(pathlib.Path(folder))
        rates = _measure(arguments, folder)
    result = {"images_per_second": rates, "jpeg_bytes": size, **machine.facts(*PACKAGES)}
    print(_table(rates))
    if arguments.out:
        path = pathlib.Path(arguments.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    return None


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each")
    parser.add_argument("--batches", type=int, default=16, help=f"batches of {BATCH} in each")
    parser.add_argument("--out", help="JSON file for the results")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def _write_jpegs(folder):
    """Makes the photographs out of scikit-learn's two; returns their mean size in bytes."""
    import numpy as np
    from PIL import Image
    from sklearn import datasets

    rng, sizes = np.random.RandomState(0), []
    photographs = [Image.fromarray(image) for image in datasets.load_sample_images().images]
    for i in range(JPEGS):
        photograph = photographs[i % 2]
        part = rng.uniform(0.8, 1.0)
        width, height = (int(part * side) for side in photograph.size)
        left, top = (
            rng.randint(whole - side + 1)
            for whole, side in zip(photograph.size, (width, height), strict=True)
        )
        cut = photograph.crop((left, top, left + width, top + height))
        encoded = io.BytesIO()
        cut.resize((500, 375), Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=95)
        path = folder / "train" / ("china", "flower")[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded.getvalue())
        sizes.append(len(encoded.getvalue()))
    return round(statistics.mean(sizes))


def _measure(arguments, folder):
    """{engine: {stage: [images/s, ...]}}, the engines in turn."""
    from tqdm import tqdm

    rates = {engine: {stage: [] for stage in STAGES} for engine in ENGINES}
    servers = {engine: _start(engine, folder, arguments) for engine in ENGINES}
    turns = [
        (stage, engine)
        for i, stage in itertools.product(range(arguments.rounds), STAGES)
        for engine in (ENGINES if i % 2 else ENGINES[::-1])  # no one always comes first
    ]
    for stage, engine in tqdm(turns, unit=" measurements"):
        rates[engine][stage].append(_ask(servers[engine], stage))
    for server in servers.values():
        server.stdin.close()
        server.wait()
    return rates


def _start(engine, folder, arguments):
    command = [sys.executable, __file__, f"--engine={engine}", f"--folder={folder}"]
    command += [f"--batches={arguments.batches}"]
    root = pathlib.Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)


def _ask(server, stage):
    """Has an engine measure a stage; images/s."""
    server.stdin.write(f"{STAGES.index(stage)}\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    if not answer:
        sys.exit("error: an engine has failed; what it said stands above")
    return float(answer)


def _serve(arguments):
    """Answers each number of a stage on stdin with images/s on stdout."""
    batches_of = {"deit_tf": _deit_tf, "timm": _timm}[arguments.engine](arguments.folder)
    for line in sys.stdin:
        batches = batches_of(int(line))
        for _ in range(WARM_UP):
            next(batches)
        start = time.perf_counter()
        for _ in range(arguments.batches):
            next(batches)
        rate = BATCH * arguments.batches / (time.perf_counter() - start)
        del batches  # its threads and processes must not run while the other is measured
        print(rate, flush=True)


def _deit_tf(folder):
    """Function of a stage's number: an iterator of our batches."""
    from deit_tf import config, dataset, source

    off = [
        {"flip_rate": 0.0},
        {"auto_augment": ""},
        {"erasing_rate": 0.0},
        {"mixup_alpha": 0.0, "cutmix_alpha": 0.0},
    ]
    data = config.DataConfig(dataset=f"folder:{folder}", eval_split="train", batch_size=BATCH)
    records = source.open_source(data).train

    def batches(stage):
        facts = {name: value for part in off[stage:] for name, value in part.items()}
        network = config.network("deit_tiny_patch16_224", num_classes=CLASSES)
        augment = config.AugmentConfig(repeats=1, mix_group=BATCH, **facts)
        whole = config.Config("deit", network, data=data, augment=augment)
        return iter(dataset.train_batches(records, whole))

    return batches


def _timm(folder):
    """Function of a stage's number: an iterator of timm's batches."""
    import torch

    machine.let_timm_import()
    from PIL import Image
    from timm import data

    def batches(stage):
        transform = data.create_transform(
            SIZE,
            is_training=True,
            interpolation="bicubic",
            color_jitter=None,
            hflip=0.5 if stage >= 1 else 0.0,
            auto_augment=RANDAUGMENT if stage >= 2 else None,
            re_prob=0.25 if stage >= 3 else 0.0,
            re_mode="pixel",
        )
        for operation in transform.transforms[2].ops if stage >= 2 else ():
            operation.kwargs["resample"] = Image.Resampling.BILINEAR  # as ours
        images = data.ImageDataset(f"{folder}/train", transform=transform)
        endless = torch.utils.data.RandomSampler(images, replacement=True, num_samples=10**6)
        loader = torch.utils.data.DataLoader(
            images, BATCH, sampler=endless, num_workers=machine.cores(), drop_last=True
        )
        if stage < 4:
            yield from loader
        mixup = data.Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=CLASSES)
        for image, label in loader:
            yield mixup(image, label)

    return batches


def _table(rates):
    """Median images/s of each engine and stage, and the median of the ratios of each round."""
    lines = [f"{'images/s':<16}{'deit_tf':>20}{'timm':>20}{'ratio':>8}"]
    for stage in STAGES:
        ours, theirs = (rates[engine][stage] for engine in ENGINES)
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        lines.append(f"{stage:<16}{_spread(ours):>20}{_spread(theirs):>20}{ratio:>8.2f}")
    return "\n".join(lines)


def _spread(values):
    return f"{statistics.median(values):.0f} ({min(values):.0f}–{max(values):.0f})"


if __name__ == "__main__":
    main()
