"""Two logical CPUs for the replica tests, golden answers, and the weights they were made with."""

import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
import types
import zlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest
import tensorflow as tf

DATA = pathlib.Path(__file__).parent / "data"
ROOT = pathlib.Path(__file__).parent.parent

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


# The longest files first, so that several workers end together.
LONGEST = (
    "errors_test",
    "distiller_test",
    "train_test",
    "workers_test",
    "label_bank_test",
    "source_test",
    "finetune_test",
)


def pytest_collection_modifyitems(items):
    """Puts the longest files first; the order within a file stays."""
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


@pytest.fixture(autouse=True)
def _float32():
    """Every test starts in float32, whatever the one before has set."""
    import keras

    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def golden():
    """What the PyTorch originals answered, by key; tests/data/README.md says how."""
    with np.load(DATA / "golden.npz") as stored:
        return dict(stored)


_TOKENS = ("cls_token", "dist_token", "distillation_token", "pos_embed", "position_embeddings")


def _golden_tensor(name, shape):
    """A tensor of a golden model: a function of its name and shape."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    normal = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    normal = normal.astype(np.float32)
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(normal)
    if name.endswith(("running_mean", "bias")):
        return 0.1 * normal
    if name.endswith(_TOKENS):
        return 0.5 * normal
    if len(shape) == 1:
        return 1 + 0.1 * normal
    return normal / np.float32(np.sqrt(np.prod(shape[1:])))


@pytest.fixture(scope="session")
def golden_tensor():
    """Function (name, shape): the tensor that a golden answer was made with."""
    return _golden_tensor


@pytest.fixture(scope="session")
def golden_tensors():
    """Function (model name): {name: array}, a golden model's state dict in PyTorch's layout."""
    shapes = json.loads((DATA / "state_dicts.json").read_text())
    return lambda model: {
        name: _golden_tensor(name, shape) for name, shape in shapes[model].items()
    }


@pytest.fixture(scope="session")
def golden_file(golden_tensors, tmp_path_factory):
    """Function (model name): the same as a .safetensors file."""
    import safetensors.numpy

    folder = tmp_path_factory.mktemp("golden")

    def write(model):
        path = folder / f"{model}.safetensors"
        if not path.exists():
            tensors = golden_tensors(model)
            safetensors.numpy.save_file(
                {name: np.ascontiguousarray(value) for name, value in tensors.items()}, path
            )
        return path

    return write


@pytest.fixture(scope="session")
def micro_run(golden_file, tmp_path_factory):
    """A run directory of a micro DeiT: two heads, golden weights, 64 pixels, 7 classes."""
    from deit_tf import convert

    folder = tmp_path_factory.mktemp("micro")
    labels = ["bee", "cat", "dog", "elk", "Käfer", "fox", "gnu"]
    (folder / "labels.txt").write_text("\n".join(labels), "utf-8")
    nowhere = {"dataset": f"folder:{folder / 'nowhere'}"}
    facts = {"image_size": 64, "width": 48, "depth": 3, "heads": 4, "num_classes": 7}
    facts |= {"distilled": True, "layer_norm_epsilon": 1e-12}
    file = golden_file("hf_micro")
    convert.convert(file, folder / "run", "deit", nowhere, folder / "labels.txt", **facts)
    return folder / "run"


@pytest.fixture(scope="session")
def golden_image(golden):
    """Function (model name): its input, [n, S, S, 3], already normalised."""

    def image(model):
        seed, count, size = golden[f"{model}/input"]
        normal = np.random.RandomState(seed).standard_normal((count, size, size, 3))
        return normal.astype(np.float32)

    return image


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder with the digits prepared."""
    from deit_tf import config, source

    folder = tmp_path_factory.mktemp("data")
    source.open_source(config.DataConfig(data_dir=str(folder)))
    return folder


# The recipe for ImageNet with all of it left out that mixes images or repeats them.
PLAIN = {
    "flip_rate": 0.0,
    "auto_augment": "",
    "erasing_rate": 0.0,
    "repeats": 1,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
}


@pytest.fixture(scope="session")
def plain():
    """The fields of `config.AugmentConfig` that leave images alone but for their crop."""
    return PLAIN


@pytest.fixture(scope="session")
def replicas():
    """One replica and two; the same objects for all: TensorFlow mixes up the sums of several."""
    from deit_tf import devices

    return tf.distribute.get_strategy(), devices.strategy("mirrored", 2)


@pytest.fixture(scope="session")
def digits_config(data_dir):
    """Function: the configuration of a tiny distilled student on the digits, with changes."""
    from deit_tf import config

    def make(network=None, epochs=1, **sections):
        facts = {
            "num_classes": 10,
            "distilled": True,
            "image_size": 32,
            "patch_size": 8,
            "width": 32,
            "depth": 3,
            "heads": 2,
            "drop_path_rate": 0.2,
            **(network or {}),
        }
        return config.Config(
            "deit",
            config.network("deit", **facts),
            data=config.DataConfig(data_dir=str(data_dir), batch_size=64),
            augment=config.AugmentConfig(crop_min_area=0.6, rotation_degrees=10.0, **PLAIN),
            optimizer=config.OptimizerConfig(epochs=epochs, lr=0.01, warmup_epochs=0.0),
            **sections,
        )

    return make


@pytest.fixture(scope="session")
def command():
    """Function (module, *arguments): runs `python -m module` as a person does."""

    def run(module, *arguments, **environment):
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    return run


def _free_ports(count):
    """Ports of this machine that nothing listens at."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _start_workers(arguments, logs):
    """Two processes of this Python, each a worker of the same cluster on loopback.

    Args:
      arguments: of both; or a pair of those of each.
      logs: folder for what they say.
    """
    each = arguments if isinstance(arguments[0], list) else [arguments] * 2
    hosts = [f"127.0.0.1:{port}" for port in _free_ports(2)]
    found = []
    for i, own in enumerate(each):
        task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": i}}
        environment = {"TF_CONFIG": json.dumps(task), "PYTHONPATH": str(ROOT)}
        with open(logs / f"worker_{i}.log", "w") as log:
            found.append(
                subprocess.Popen(
                    [sys.executable, *map(str, own)],
                    cwd=ROOT,
                    env={**os.environ, **environment},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return found


@pytest.fixture(scope="session")
def start_workers():
    """Function (arguments, logs): two processes that train together."""
    return _start_workers


def _finish(workers):
    """Their exit codes."""
    try:
        return [worker.wait(timeout=300) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()


@pytest.fixture(scope="session")
def finish():
    """Function of processes: waits for them, and answers their exit codes."""
    return _finish


@pytest.fixture(scope="session")
def artefacts(micro_run, golden_file, tmp_path_factory):
    """Function (size, what): the path of a run, a savedmodel or an onnx with golden weights.

    Sizes are micro, and tiny: DeiT-Ti, distilled, at 224 pixels.
    """
    from deit_tf import convert
    from export import onnxmodel, savedmodel

    folder, made = tmp_path_factory.mktemp("artefacts"), {}

    def run(size):
        if size == "micro":
            return micro_run
        nowhere = {"dataset": f"folder:{folder / 'nowhere'}"}
        name = "deit_tiny_distilled_patch16_224"
        convert.convert(golden_file(name), folder / size / "run", name, nowhere)
        return folder / size / "run"

    def served(size):
        options = {"max_pixels": 1_000_000, "with_attention": True}
        return savedmodel.export(make(size, "run"), folder / size / "models" / size, **options)[0]

    def onnx(size):
        onnxmodel.export(make(size, "run"), folder / f"{size}.onnx", onnxmodel.Options())
        return folder / f"{size}.onnx"

    makers = {"run": run, "savedmodel": served, "onnx": onnx}

    def make(size, what):
        if (size, what) not in made:
            made[size, what] = makers[what](size)
        return made[size, what]

    return make


@pytest.fixture(scope="session")
def standin(artefacts):
    """Function ("micro" or "tiny"): a stand-in for TF Serving; grpc and rest, targets, and pid."""
    started = {}

    def start(size):
        if size not in started:
            model = artefacts(size, "savedmodel")
            command = [sys.executable, "tests/standin.py", f"--model={model}", f"--name={size}"]
            streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            process = subprocess.Popen(command, cwd=ROOT, text=True, **streams)
            ports = json.loads(process.stdout.readline())
            targets = {kind: f"127.0.0.1:{port}" for kind, port in ports.items()}
            started[size] = process, types.SimpleNamespace(**targets, pid=process.pid)
        return started[size][1]

    yield start
    for process, _ in started.values():
        process.communicate()  # ends with its input


@pytest.fixture(scope="session")
def bomb():
    """A PNG of 20,000 × 20,000 black pixels, deflated to next to nothing."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    side = 20_000
    deflate, row = zlib.compressobj(9), b"\0" * (1 + 3 * side)
    content = b"".join(deflate.compress(row) for _ in range(side)) + deflate.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks
