"""Says plainly what works on this machine's GPU: training, export, ONNX Runtime.

    python tools/gpu_check.py

Trains a distilled student for a few steps under MirroredStrategy, exports it as a SavedModel and
as an ONNX file, and runs both. Exit code 0 where all of it ran on a GPU, 1 where something failed,
2 where there is no GPU (the same steps are then run on the CPU).
"""

import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import keras
import numpy as np
import onnxruntime
import tensorflow as tf

from deit_tf import config, devices, distiller, model, optimizer, regnet

BATCH, STEPS = 64, 5


def train(strategy):
    """Images/s of hard distillation, DeiT-Ti under a small RegNetY at 224 pixels."""
    side = 224
    with strategy.scope():
        student = model.build_deit("deit_tiny_distilled_patch16_224")
        teacher = regnet.build_regnety(config.network("regnety_tiny", num_classes=1000))
        facts = config.DistillConfig(distillation="hard", teacher="given")
        pair = distiller.Distiller(student, facts, teacher)
        pair.compile(optimizer.AdamW(1e-3), jit_compile=True)
    rng = np.random.RandomState(0)
    batch = {
        "image": rng.uniform(0, 255, (BATCH, side, side, 3)).astype(np.float32),
        "label": np.eye(1000, dtype=np.float32)[rng.randint(0, 1000, BATCH)],
        "keep": np.ones((BATCH, student.config.depth, 2), np.float32),
    }
    batches = tf.data.Dataset.from_tensors(batch).repeat(2 * STEPS)
    pair.fit(batches, steps_per_epoch=STEPS, epochs=1, verbose=0, shuffle=False)
    start = time.perf_counter()
    logs = pair.fit(batches, steps_per_epoch=STEPS, epochs=1, verbose=0, shuffle=False)
    seconds = time.perf_counter() - start
    loss = logs.history["loss"][-1]
    if not np.isfinite(loss):
        raise RuntimeError(f"the loss is {loss}")
    return student, f"{BATCH * STEPS / seconds:.0f} images/s, loss {loss:.3f}"


def _float32_classifier(student):
    """The student in float32, as one tensor of logits."""
    keras.config.set_dtype_policy("float32")
    exact = model.build_deit(student.config)
    exact.set_weights(student.get_weights())
    return model.classifier(exact)


def _largest_difference(found, expected):
    difference = np.max(np.abs(found - expected)) / np.max(np.abs(expected))
    if not difference < 1e-2:
        raise RuntimeError(f"differs from Keras by {difference:.1e} of the largest logit")
    return f"differs from Keras by {difference:.1e} of the largest logit"


def saved_model(whole, image, expected, folder):
    """Exports a SavedModel, loads it and compares."""
    whole.export(folder / "saved_model", verbose=False)
    loaded = tf.saved_model.load(folder / "saved_model")  # kept: it owns the variables
    return _largest_difference(loaded.serve(image).numpy(), expected)


def onnx(whole, image, expected, folder):
    """Exports an ONNX file, runs it on the GPU if there is one, and compares."""
    whole.export(folder / "model.onnx", format="onnx", verbose=False)
    wanted = ["CPUExecutionProvider"]
    if tf.config.list_physical_devices("GPU"):
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        wanted.insert(0, "CUDAExecutionProvider")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=wanted)
    if session.get_providers()[0] != wanted[0]:
        raise RuntimeError(f"asked for {wanted[0]}, got {session.get_providers()[0]}")
    found = session.run(None, {session.get_inputs()[0].name: image})[0]
    return f"{wanted[0]}, {_largest_difference(found, expected)}"


def main():
    """Runs every check and prints one line for each."""
    gpus = tf.config.list_physical_devices("GPU")
    print(f"GPUs that TensorFlow {tf.__version__} sees: {len(gpus)}")
    for gpu in gpus:
        print(f"  {tf.config.experimental.get_device_details(gpu)}")
    if warning := devices.idle_gpu():
        print(f"  {warning}")
    failed = False

    def check(name, run):
        nonlocal failed
        try:
            answer, words = run()
        except Exception as error:
            failed = True
            answer, words = None, f"FAILED: {type(error).__name__}: {error}"
        print(f"{name:<12}{words}", flush=True)
        return answer

    precision = devices.set_precision("auto")
    strategy = devices.strategy()
    print(f"training in {precision} on {strategy.num_replicas_in_sync} replica(s)")
    student = check("training", lambda: train(strategy))
    if student is not None:
        whole = _float32_classifier(student)
        image = np.random.RandomState(1).uniform(0, 255, (2, 224, 224, 3)).astype(np.float32)
        expected = whole.predict(image, verbose=0)
        with tempfile.TemporaryDirectory() as folder:
            rest = (whole, image, expected, pathlib.Path(folder))
            check("SavedModel", lambda: (None, saved_model(*rest)))
            check("ONNX", lambda: (None, onnx(*rest)))
    if failed:
        return 1
    print("all of it ran on a GPU" if gpus else "no GPU: all of it ran, on the CPU")
    return 0 if gpus else 2


if __name__ == "__main__":
    sys.exit(main())
