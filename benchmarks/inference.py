"""What an answer costs: our exported files beside timm, torch.onnx, OpenVINO and keras-hub.

    pip install -r requirements-bench.txt
    python benchmarks/inference.py --out=benchmarks/results/inference.json

Latency at batch 1 and throughput at batch 32, at 224 pixels, raw pixels in and logits out, on so
many threads as there are cores. Weights are random. Each engine has its own process, and they take
turns in changing order. OpenVINO runs our portable file and torch.onnx's, in float32 and in
bfloat16. `--provider=cuda` measures on a GPU what can run there, and fails where ONNX Runtime has
no CUDA.
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

SIZE, CLASSES = 224, 1000
BASE = "onnxruntime timm"  # what ratios are to, among ONNX Runtime's
FILES = {
    "cpu": {
        "ours portable": {},
        "ours cpu": {"target": "cpu"},
        "ours int8": {"target": "cpu", "precision": "int8"},
    },
    "cuda": {
        "ours portable": {},
        "ours portable float16": {"precision": "float16"},
        "ours Attention-23 float16": {"precision": "float16", "standard_attention": True},
        "ours cuda": {"target": "cuda"},
        "ours cuda float16": {"target": "cuda", "precision": "float16"},
    },
}
PACKAGES = (
    "tensorflow",
    "keras",
    "keras-hub",
    "timm",
    "torch",
    "onnxscript",
    "onnxruntime-gpu",
    "openvino",
)


def main():
    """Measures, prints a table, and writes a JSON file where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="turns of each engine")
    parser.add_argument("--models", default="tiny,small", help="which, with commas between")
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", help="JSON file for the results")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return _serve(json.loads(arguments.serve))
    rows = []
    for model in arguments.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            _prepare(model, pathlib.Path(folder), arguments.provider)
            for batch, steps in ((1, 20), (32, 1)):
                cases = _cases(model, folder, batch, arguments.provider)
                found = turns.measure(__file__, cases, arguments.rounds, steps)
                rows.append({"model": model, "batch": batch, "engines": found})
                print(_table(rows[-1]), flush=True)
    if arguments.out:
        facts = {"rows": rows, "provider": arguments.provider, **machine.facts(*PACKAGES)}
        pathlib.Path(arguments.out).write_text(json.dumps(facts, indent=1) + "\n")
    return None


def _prepare(model, folder, provider):
    """Exports a network of random weights in every way, and timm's by torch.onnx."""
    from deit_tf import checkpoint, config, labels, rundir
    from export import onnxmodel, savedmodel

    name = f"deit_{model}_distilled_patch16_224"
    nowhere = config.DataConfig(dataset=f"folder:{folder / 'nowhere'}")
    whole = config.Config(name, config.network(name), data=nowhere)
    run = folder / "run"
    run.mkdir()
    rundir.begin(run, whole, {}, *labels.listed(CLASSES))
    checkpoint.build_network(whole.network).save_weights(run / rundir.WEIGHTS)
    for title, kind in FILES[provider].items():
        onnxmodel.export(run, folder / f"{title}.onnx", onnxmodel.Options(**kind))
    savedmodel.export(run, folder / "savedmodel", max_batch_size=32, batch_timeout_micros=0)
    _export_timm(name, folder / "timm.onnx")


def _export_timm(name, path):
    import torch

    network = _timm_network(name)
    image = torch.zeros(2, 3, SIZE, SIZE)
    shapes = {"x": {0: torch.export.Dim("batch", min=1, max=1024)}}
    torch.onnx.export(
        network, (image,), path, dynamo=True, dynamic_shapes=shapes, external_data=False
    )


def _timm_network(name):
    machine.let_timm_import()
    import timm

    return timm.create_model(name).eval()


def _cases(model, folder, batch, provider):
    """{engine: what it is told}."""
    common = {"model": model, "folder": str(folder), "batch": batch, "provider": provider}
    files = {f"onnxruntime {title}": f"{title}.onnx" for title in FILES[provider]}
    files[BASE] = "timm.onnx"
    cases = {title: {"engine": "onnxruntime", "file": file} for title, file in files.items()}
    cases |= {title: {"engine": title} for title in ("timm", "timm_compile")}
    if provider == "cpu":
        for precision in ("f32", "bf16"):
            for whose, file in (("ours", "ours portable.onnx"), ("timm", "timm.onnx")):
                told = {"engine": "openvino", "file": file, "precision": precision}
                cases[f"openvino {precision} {whose}"] = told
        cases |= {title: {"engine": title} for title in ("savedmodel", "keras_hub")}
    return {title: {**common, **told} for title, told in cases.items()}


def _serve(case):
    """An engine: answers a batch as often as each line of its input says."""
    import numpy as np

    image = np.random.RandomState(0).randint(0, 256, (case["batch"], SIZE, SIZE, 3))
    makers = {
        "onnxruntime": _onnxruntime,
        "openvino": _openvino,
        "savedmodel": _savedmodel,
        "timm": _timm,
        "timm_compile": _timm,
        "keras_hub": _keras_hub,
    }
    turns.serve(makers[case["engine"]](case, image.astype(np.uint8)))


def _as_torch(image):
    """Normalised pixels as torch has them: float32 [B, 3, S, S]."""
    import numpy as np

    return np.ascontiguousarray((image / 255.0).transpose(0, 3, 1, 2), np.float32)


def _onnxruntime(case, image):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = machine.cores()
    wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[case["provider"]]
    if case["provider"] == "cuda":
        onnxruntime.preload_dlls()
    path = pathlib.Path(case["folder"]) / case["file"]
    session = onnxruntime.InferenceSession(path, options, providers=[wanted])
    if session.get_providers()[0] != wanted:
        raise SystemExit(f"asked for {wanted}, got {session.get_providers()[0]}")
    takes = session.get_inputs()[0]
    value = image if takes.type == "tensor(uint8)" else _as_torch(image)
    answers = session.get_outputs()[0].name
    if case["provider"] == "cpu":
        return lambda: session.run([answers], {takes.name: value})
    bound = session.io_binding()
    on_device = onnxruntime.OrtValue.ortvalue_from_numpy(value, "cuda", 0)
    bound.bind_ortvalue_input(takes.name, on_device)
    bound.bind_output(answers, "cuda")

    def run():
        session.run_with_iobinding(bound)
        bound.synchronize_outputs()

    return run


def _openvino(case, image):
    import openvino

    core = openvino.Core()
    path = pathlib.Path(case["folder"]) / case["file"]
    facts = {
        "INFERENCE_PRECISION_HINT": case["precision"],
        "INFERENCE_NUM_THREADS": machine.cores(),
        "PERFORMANCE_HINT": "LATENCY" if case["batch"] == 1 else "THROUGHPUT",
        "NUM_STREAMS": 1,
    }
    request = core.compile_model(path, "CPU", facts).create_infer_request()
    value = image if case["file"].startswith("ours") else _as_torch(image)
    return lambda: request.infer({0: value})


def _savedmodel(case, image):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(pathlib.Path(case["folder"]) / "savedmodel" / "1"))
    function, value = loaded.signatures["pixels"], tf.constant(image)
    return lambda: (loaded, function(image=value)["logits"].numpy())


def _timm(case, image):
    import torch

    torch.set_num_threads(machine.cores())
    network = _timm_network(f"deit_{case['model']}_distilled_patch16_224")
    value = torch.from_numpy(_as_torch(image))
    if case["provider"] == "cuda":
        network, value = network.cuda().half(), value.cuda().half()
    if case["engine"] == "timm_compile":
        network = torch.compile(network)

    def run():
        with torch.inference_mode():
            answer = network(value)
        if case["provider"] == "cuda":
            torch.cuda.synchronize()
        return answer

    return run


def _keras_hub(case, image):
    import keras_hub
    import tensorflow as tf

    width, heads = {"tiny": (192, 3), "small": (384, 6)}[case["model"]]
    backbone = keras_hub.models.DeiTBackbone(
        image_shape=(SIZE, SIZE, 3),
        patch_size=16,
        num_layers=12,
        num_heads=heads,
        hidden_dim=width,
        intermediate_dim=4 * width,
    )
    network = keras_hub.models.DeiTImageClassifier(
        backbone=backbone, num_classes=CLASSES, preprocessor=None
    )
    run = tf.function(lambda x: network(x, training=False), jit_compile=True)
    value = tf.constant((image / 255.0).astype("float32"))
    return lambda: run(value).numpy()


def _table(row):
    """Medians with their range, p95, and ratios to timm's file in ONNX Runtime, turn by turn."""
    lines = [f"{row['model']}, batch {row['batch']}"]
    base = row["engines"][BASE]["seconds"]
    for name, engine in sorted(
        row["engines"].items(), key=lambda item: statistics.median(item[1]["seconds"])
    ):
        taken = sorted(engine["all_seconds"])
        ratios = sorted(a / b for a, b in zip(base, engine["seconds"], strict=True))
        p95 = taken[min(int(0.95 * len(taken)), len(taken) - 1)]
        middle = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        lines.append(
            f"  {name:<32}{1e3 * statistics.median(taken):8.1f} ms, p95 {1e3 * p95:8.1f}"
            f"  {row['batch'] / statistics.median(taken):7.1f} images/s"
            f"  × {statistics.median(ratios):.2f} ({middle[0]:.2f}–{middle[1]:.2f})"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
