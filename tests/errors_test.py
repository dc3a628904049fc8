"""What a person does wrong, done to the real commands: one line that helps, and nothing written."""

import concurrent.futures
import importlib.util
import json

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from deit_tf import (
    checkpoint,
    config,
    distiller,
    draws,
    optimizer,
    rundir,
    source,
    torch_weights,
    weights,
)

NANO = {"image_size": 8, "patch_size": 4, "width": 8, "depth": 1, "heads": 2}
STUDENT = (
    "--model=deit --image_size=8 --patch_size=4 --width=8 --depth=1 --heads=2 --num_classes=10"
    " --nojit --run_dir={new} --data_dir={data}"
    " --flip_rate=0 --auto_augment= --erasing_rate=0 --repeats=1 --mixup_alpha=0 --cutmix_alpha=0"
)
FOLDER = STUDENT.replace("--num_classes=10", "--num_classes=2 --batch_size=2")
GOOD = f"{FOLDER} --dataset=folder:{{world}}/good"
TAUGHT = f"train {GOOD} --distillation=hard --teacher="
# Nothing listens at port 9: as if there were no network.
NO_NETWORK = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}

NO_TORCH = ""
if importlib.util.find_spec("torch") is None:
    NO_TORCH = "is a PyTorch file, and PyTorch is not installed; pip install torch, or give"
NANO_FLAGS = "--model=deit --image_size=8 --patch_size=4 --width=8 --depth=1 --heads=2"
NANO_FLAGS += " --num_classes=2"

# What is typed; what the line must say: what was given, what is allowed, what to do.
CASES = {
    "unknown flag": (f"train {STUDENT} --bach_size=3", "'bach_size'. Did you mean: batch_size"),
    "no flag at all": (f"train {STUDENT} digits", "'digits' is not a flag; flags start with --"),
    "missing flagfile": (
        "train --flagfile={new}/none.flags",
        "none.flags'; give a file, or the name of one in",
    ),
    "no model": ("train --run_dir={new}", "no model: give --model=NAME"),
    "unknown model": (
        f"train {STUDENT} --model=deit_tiny_patch16",
        "'deit_tiny_patch16' is not known; did you mean deit_tiny_patch16_224",
    ),
    "no run directory": ("train --model=deit", "no run directory; give --run_dir=DIR"),
    "image size": (f"train {STUDENT} --image_size=30", "30 is not a multiple of patch_size 4"),
    "alpha": (f"train {STUDENT} --alpha=1.5", "alpha is 1.5; it must be at most 1"),
    "unknown policy": (
        f"train {STUDENT} --auto_augment=rand-m9-q2",
        "auto_augment is 'rand-m9-q2', whose 'q2' is not known; give rand-m9-mstd0.5-inc1",
    ),
    "run of other draws": (
        f"train {GOOD.replace('{new}', '{world}/older_run')}",
        "older_run holds another run (draws: None -> 1); give another --run_dir, or remove it",
    ),
    "batch of no whole groups": (
        f"train {STUDENT} --mixup_alpha=0.8 --batch_size=100",
        "batch_size 100 is not a multiple of mix_group 64; give --batch_size=128, or another",
    ),
    "odd group": (
        f"train {STUDENT} --mixup_alpha=1 --mix_group=5",
        "mix_group is 5; it must be even",
    ),
    "preview of no picture": (
        f"train {STUDENT} --preview=preview.jpg",
        "preview is 'preview.jpg'; give the name of a picture that ends in .png",
    ),
    "preview into nowhere": (
        f"train {GOOD} --preview={{new}}/none/preview.png",
        "/none/preview.png', and there is no such folder; make it first",
    ),
    "batch of none": (f"train {STUDENT} --batch_size=0", "batch_size is 0; it must be at least 1"),
    "batch not divisible": (
        f"train {STUDENT} --batch_size=33 --replicas=2",
        "batch_size 33 is not a multiple of 2 replica(s); give --batch_size=32",
    ),
    "micro-batches not whole": (
        f"train {STUDENT} --batch_size=100 --accumulate=3",
        "batch_size 100 is not a multiple of 1 replica(s) × 3 micro-batches; give --batch_size=99",
    ),
    "several replicas on one device": (
        f"train {STUDENT} --strategy=one_device --replicas=2",
        "replicas is 2 and strategy one_device; give --strategy=mirrored",
    ),
    "no TF_CONFIG": (
        f"train {STUDENT} --strategy=multi_worker",
        "strategy is multi_worker, and TF_CONFIG is not set; set TF_CONFIG=",
    ),
    "batch too large": (
        f"train {STUDENT} --batch_size=2048",
        "batch_size is 2048, but there are 1400 training images",
    ),
    "number of classes": (
        f"train {GOOD} --num_classes=7",
        "good has 2 classes, num_classes is 7; give --num_classes=2",
    ),
    "no teacher": (f"train {STUDENT} --distillation=hard", "name a trained run by --teacher="),
    "teacher is nothing": (
        f"{TAUGHT}{{new}}",
        "new is nothing that can teach; give a run directory, keras_cv:DIR",
    ),
    "teacher of other classes": (
        f"{TAUGHT}{{world}}/other_teacher",
        "the teacher has 3 classes, the student 2; give a teacher that was trained on the same",
    ),
    "teacher with classes in another order": (
        f"{TAUGHT}{{world}}/turned_teacher",
        "are not the student's (a, b, …), or not in their order",
    ),
    "another backend": (f"train {STUDENT}", "KERAS_BACKEND is jax; commands need tensorflow"),
    "unknown kind of data set": (
        f"train {STUDENT} --dataset=imagenet",
        "dataset is 'imagenet'; give digits, tfds:NAME as tfds:cifar10, or folder:PATH",
    ),
    "unknown data set": (
        f"train {STUDENT} --dataset=tfds:cifar11",
        "TFDS knows no data set 'cifar11'",
    ),
    "data set that needs a download": (
        f"train {STUDENT} --dataset=tfds:cifar10",
        "needs a download of 162.17 MiB; fetch it once by: python -m deit_tf.prepare",
    ),
    "a network needed and not there": (
        "prepare --dataset=tfds:cifar10 --data_dir={new}",
        "cifar10 needs a download of 162.17 MiB from www.cs.toronto.edu, which cannot be reached",
    ),
    "data set to be fetched by hand": (
        "prepare --dataset=tfds:imagenet2012 --data_dir={new}",
        "imagenet2012 has to be fetched by hand, into {new}/downloads/manual: manual_dir should",
    ),
    "nothing to prepare": (
        "prepare --dataset=folder:{new} --data_dir={new}",
        "give tfds:NAME, as tfds:cifar10 (a folder needs no preparation)",
    ),
    "unknown split": (
        f"train {STUDENT} --eval_split=validation",
        "digits/1.0.0 has no split 'validation'; it has train, test",
    ),
    "split and fraction": (
        f"train {FOLDER} --dataset=folder:{{world}}/bad_val --eval_split=val --eval_fraction=0.1",
        "eval_split is 'val' and eval_fraction 0.1; give one of them",
    ),
    "run directory is a file": (
        f"train {GOOD} --run_dir={{world}}/names.txt",
        "run directory {world}/names.txt cannot be written",
    ),
    "no folder": (f"train {FOLDER} --dataset=folder:{{new}}", "is no folder; give the path of a"),
    "empty folder": (f"train {FOLDER} --dataset=folder:{{world}}/empty", "there is no folder"),
    "class missing in val": (
        f"train {FOLDER} --dataset=folder:{{world}}/lacking",
        "lacking/val lacks the class b, which",
    ),
    "class without images": (
        f"train {FOLDER} --dataset=folder:{{world}}/hollow",
        "hollow/train/b holds no images",
    ),
    "labels that do not fit": (
        f"train {FOLDER} --dataset=folder:{{world}}/bad_train --labels={{world}}/names.txt",
        "names.txt holds 3 names, but there are 2 classes",
    ),
    "unreadable training image": (
        f"train {FOLDER} --dataset=folder:{{world}}/bad_train",
        "bad_train/train/a/bad.jpg cannot be read (Input is empty.); mend or remove it",
    ),
    "unreadable evaluation image": (
        f"train {FOLDER} --dataset=folder:{{world}}/bad_val",
        "bad_val/val/a/bad.jpg cannot be read (Input is empty.); mend or remove it",
    ),
    "no permission for the run": (
        f"train {GOOD} --run_dir=/proc/run",
        "run directory /proc/run cannot be written",
    ),
    "no permission for the data": (
        f"train {STUDENT} --data_dir=/proc/data",
        "digits cannot be prepared in /proc/data",
    ),
    "another run": (
        f"train {GOOD} --run_dir={{world}}/run --depth=2 --seed=1",
        "holds another run (depth: 1 -> 2; seed: 0 -> 1); give another --run_dir, or remove it",
    ),
    "half-written checkpoint": (
        f"train {GOOD} --run_dir={{world}}/cut_run",
        "step_00000000 is damaged",
    ),
    "half-written run directory": (
        f"train {GOOD} --run_dir={{world}}/half_run",
        "half_run/config.json cannot be read",
    ),
    "run directory without its configuration": (
        f"train {GOOD} --run_dir={{world}}/bare_run",
        "bare_run is no run directory: it has no config.json",
    ),
    "weights to start from that are not there": (
        f"train {GOOD} --init_from={{new}}",
        "is no run directory: it has no config.json",
    ),
    "weights to start from of another kind": (
        f"train {GOOD} --init_from={{world}}/names.txt",
        "names.txt is no file of weights: give a .safetensors, .pth, .pt, .bin or .ckpt file",
    ),
    "weights to start from of another width": (
        f"train {GOOD} --init_from={{world}}/nano.safetensors --width=16",
        "nano.safetensors does not fit the network: of another shape (in Keras' layout):"
        " patch_embed.proj.weight (4, 4, 3, 8), not (4, 4, 3, 16)",
    ),
    "weights to start from with another mean": (
        f"train {GOOD} --init_from={{world}}/run --mean=0.5,0.5,0.5",
        "run was trained with mean (0.485, 0.456, 0.406), not (0.5, 0.5, 0.5); give --mean=0.485,"
        "0.456,0.406",
    ),
    "teacher without constants": (
        f"{TAUGHT}{{world}}/saved",
        "saved does not say how its pixels are normalised; give --teacher_mean and --teacher_std",
    ),
    "teacher with constants of its own": (
        f"{TAUGHT}{{world}}/run --teacher_mean=0,0,0 --teacher_std=1,1,1",
        "run has its own normalisation; leave teacher_mean and teacher_std away",
    ),
    "teacher of ImageNet for other classes": (
        f"{TAUGHT}keras.applications:ResNet50",
        "the teacher has 1000 classes, the student 2; give a teacher that was trained on the same",
    ),
    "teacher that is a damaged SavedModel": (
        f"{TAUGHT}{{world}}/saved --teacher_mean=0,0,0 --teacher_std=1,1,1",
        "saved is no SavedModel that can be loaded here",
    ),
    "conversion of nothing": ("convert --run_dir={new}", "no weights; give --weights=FILE"),
    "conversion of no file": ("convert --weights={new}.pth --run_dir={new}", "there is no file"),
    "conversion of another kind of file": (
        "convert --weights={world}/names.txt --run_dir={new}",
        "names.txt is no file of weights: give a .safetensors, .pth, .pt, .bin or .ckpt file",
    ),
    "conversion of a cut file": (
        "convert --weights={world}/cut.safetensors --run_dir={new}",
        "cut.safetensors is no whole safetensors file",
    ),
    "conversion into what is there": (
        "convert --weights={world}/nano.safetensors --run_dir={world}/run",
        "run holds something already; give another --run_dir, or remove it",
    ),
    "conversion without names of classes": (
        f"convert --weights={{world}}/nano.safetensors {NANO_FLAGS} --run_dir={{new}}",
        "the network has 2 classes; name them by --labels=FILE, one a line in their order",
    ),
    "conversion with names that do not fit": (
        f"convert --weights={{world}}/nano.safetensors {NANO_FLAGS} --labels={{world}}/names.txt"
        " --run_dir={new}",
        "names.txt holds 3 names, but the network has 2 classes",
    ),
    "conversion to fewer classes": (
        f"convert --weights={{world}}/nano.safetensors {NANO_FLAGS} --num_classes=3"
        " --labels={world}/names.txt --run_dir={new}",
        "does not fit the network: of another shape (in Keras' layout): head.weight (8, 2), not"
        " (8, 3)",
    ),
    "conversion to an unknown model": (
        "convert --weights={world}/nano.safetensors --model=deit_tiny_patch --run_dir={new}",
        "'deit_tiny_patch' is not known; did you mean deit_tiny_patch16_224",
    ),
    "published weights and no network": (
        "convert --weights=deit_tiny_patch16_224 --run_dir={new}",
        NO_TORCH or "cannot be downloaded (",
    ),
    "nothing to evaluate": (
        f"train {GOOD} --eval_only",
        "is no run directory: it has no config.json",
    ),
    "evaluation of no run": ("evaluate --run_dir={new}", "is no run directory"),
    "evaluation of an empty run": (
        "evaluate --run_dir={world}/empty_run",
        "has no last checkpoint yet; train it first",
    ),
    "evaluation of a half-written run": (
        "evaluate --run_dir={world}/half_run",
        "half_run/config.json cannot be read",
    ),
    "evaluation by other data": (
        "evaluate --run_dir={world}/run --dataset=folder:{world}/other",
        "has other classes than {world}/run was trained on; where they only have other names",
    ),
    "a look without images": (
        "attention --run_dir={world}/run",
        "no image; give files, or folders with images in them",
    ),
    "a look at an image that is not there": (
        "attention --run_dir={world}/run {new}.png",
        "there is no image {new}.png; give files, or folders with images in them",
    ),
    "a look at no image": (
        "attention --run_dir={world}/run --output={new}.png {world}/names.txt",
        "names.txt cannot be read as an image; give a JPEG, PNG, WebP or GIF",
    ),
    "a look at a folder without images": (
        "attention --run_dir={world}/run {world}/empty",
        "empty holds no images (.jpg,",
    ),
    "a look by an empty run": (
        "attention --run_dir={world}/empty_run {world}/good/val",
        "has no last checkpoint yet; train it first",
    ),
    "a look into no picture": (
        "attention --run_dir={world}/run --output={new}.jpg {world}/good/val",
        "output is '{new}.jpg'; give the name of a picture that ends in .png",
    ),
    "unknown checkpoint": (
        "evaluate --run_dir={world}/run --checkpoint=first",
        "checkpoint is 'first'; choose one of last, best",
    ),
    "unknown fusion": (
        "evaluate --run_dir={world}/run --fusion=sum",
        "fusion is 'sum'; choose one of logits, softmax",
    ),
}
ENVIRONMENT = {
    "another backend": {"KERAS_BACKEND": "jax"},
    "a network needed and not there": NO_NETWORK,
    "published weights and no network": {**NO_NETWORK, "XDG_CACHE_HOME": "{cache}"},
}
# A run directory is begun before the first image is read; it holds its configuration alone.
BEGUN = ("unreadable training image", "unreadable evaluation image")


def _write_run(path, data, classes, facts, plain):
    """A run directory with a checkpoint, as training writes it."""
    network = config.network("deit", num_classes=len(classes), **NANO)
    augment = config.AugmentConfig(**plain)
    whole = config.Config("deit", network, data=data, augment=augment)
    built = checkpoint.build_network(network)
    pair = distiller.Distiller(built)
    pair.compile(optimizer.build(whole.optimizer, 2, 4, built.trainable_variables))
    facts = {"draws": draws.LAWS, **facts, "precision": "float32"}
    rundir.begin(path, whole, facts, classes, classes)
    checkpoint.Run(path).save(pair)


def _write_weights(path, network):
    """A file of a network's weights as PyTorch's users have them."""
    tensors = {
        torch_weights.official_name(name): np.ascontiguousarray(
            value.transpose(3, 2, 0, 1)
            if value.ndim == 4
            else value.T
            if value.ndim == 2
            else value
        )
        for name, value in weights.of(network).items()
    }
    safetensors.numpy.save_file(tensors, path)


@pytest.fixture(scope="module")
def world(tmp_path_factory, plain):
    """Folders of images and run directories, whole and damaged."""
    root = tmp_path_factory.mktemp("world")
    png = tf.io.encode_png(tf.zeros((4, 4, 3), tf.uint8)).numpy()
    for folder in ("good", "other", "lacking", "hollow", "bad_train", "bad_val"):
        for split in ("train", "val"):
            for name in "cd" if folder == "other" else "ab":
                (root / folder / split / name).mkdir(parents=True)
                (root / folder / split / name / "x.png").write_bytes(png)
    (root / "lacking/val/b/x.png").unlink()
    (root / "lacking/val/b").rmdir()
    (root / "hollow/train/b/x.png").unlink()
    (root / "bad_train/train/a/bad.jpg").touch()
    (root / "bad_train/train/b/y.png").write_bytes(png)  # so that an epoch sees all four
    (root / "bad_val/val/a/bad.jpg").touch()
    (root / "empty").mkdir()
    (root / "names.txt").write_text("one\ntwo\nthree\n")

    data = config.DataConfig(dataset=f"folder:{root / 'good'}", batch_size=2)
    facts = source.open_source(data).facts
    for name in ("run", "cut_run", "half_run", "bare_run"):
        _write_run(root / name, data, "ab", facts, plain)
    _write_run(root / "older_run", data, "ab", {**facts, "draws": None}, plain)
    next(root.glob("cut_run/checkpoints/*/optimizer.npz")).unlink()
    whole = (root / "half_run" / "config.json").read_text()
    (root / "half_run" / "config.json").write_text(whole[: len(whole) // 2])
    (root / "bare_run" / "config.json").unlink()
    _write_run(root / "other_teacher", data, "abc", facts, plain)
    _write_run(root / "turned_teacher", data, "ba", facts, plain)
    _write_weights(root / "nano.safetensors", checkpoint.load(root / "run"))
    (root / "cut.safetensors").write_bytes((root / "nano.safetensors").read_bytes()[:100])
    (root / "saved").mkdir()
    (root / "saved" / "saved_model.pb").write_bytes(b"cut")
    (root / "empty_run").mkdir()
    (root / "empty_run" / "config.json").write_bytes((root / "run" / "config.json").read_bytes())
    return root


@pytest.fixture(scope="module")
def answers(world, data_dir, command, tmp_path_factory):
    """What the commands answered, run two at a time; and which files they left."""

    def answer(name):
        places = {"world": world, "data": data_dir, "new": tmp_path_factory.mktemp("new") / "new"}
        module, *flags = CASES[name][0].format(**places).split()
        environment = ENVIRONMENT.get(name, {})
        environment = {key: value.format(cache=cache) for key, value in environment.items()}
        found = command(f"deit_tf.{module}", *flags, **environment)
        return found, CASES[name][1].format(**places), places["new"]

    cache = tmp_path_factory.mktemp("cache")
    before = _files(world)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = dict(zip(CASES, pool.map(answer, CASES), strict=True))
    return found, before, _files(world)


def _files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("name", CASES)
def test_says_in_one_line_what_to_do_and_writes_nothing(name, answers):
    found, words, new = answers[0][name]
    assert found.returncode == 1, found.stderr
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert "Traceback" not in found.stderr
    assert not found.stdout
    if name in BEGUN:
        assert {path.name for path in new.iterdir()} <= {"config.json", "checkpoints", "logs"}
        assert not list((new / "checkpoints").iterdir())
    else:
        assert not new.exists()


def test_what_was_there_is_as_it_was(answers):
    _, before, after = answers
    changed = {str(path) for path in {*before, *after} if before.get(path) != after.get(path)}
    assert not changed


def test_debug_brings_the_traceback_back(world, command):
    found = command("deit_tf.evaluate", f"--run_dir={world / 'empty_run'}", "--debug")
    assert found.returncode == 1
    assert "Traceback" in found.stderr
    assert "has no last checkpoint yet" in found.stderr


@pytest.mark.slow
def test_a_run_goes_on_with_what_is_free(world, data_dir, command, tmp_path):
    """Where the data lies, what shares a batch, how it is saved: none of them is what a run is."""
    flags = [*STUDENT.format(new=tmp_path / "run", data=data_dir).split(), "--batch_size=100"]
    flags += ["--epochs=1", "--lr_schedule=constant", "--warmup_epochs=0"]
    once = ["--strategy=one_device", "--accumulate=2"]
    once += ["--checkpoint_every_steps=5", "--keep_checkpoints=2"]
    first = command("deit_tf.train", *flags, *once)
    assert first.returncode == 0, first.stderr
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == ["step_00000010", "step_00000014"]
    moved = tmp_path / "elsewhere"  # not there yet: the digits are prepared on the spot
    flags[flags.index("--epochs=1")] = "--epochs=2"
    flags += [f"--data_dir={moved}", "--replicas=2", "--labels="]
    second = command("deit_tf.train", *flags)
    assert second.returncode == 0, second.stderr
    history = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in history] == ["epoch", "1", "2"]
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (stored["data"]["data_dir"], stored["run"]["replicas"]) == (str(moved), 2)
    assert (tmp_path / "run" / "curves.png").exists()
