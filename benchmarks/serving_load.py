"""Load: a served model by gRPC and REST, and the ONNX session, by how many ask at once.

    python benchmarks/serving_load.py --out=benchmarks/results/serving_load.json
    python benchmarks/serving_load.py --overhead

The served model is DeiT-Ti with random weights at 224 pixels, in a process of its own: by the
stand-in of tests/standin.py, which is not TF Serving, so that its figures are of the exported graph
and of Python's servers. `--target=HOST` asks a TF Serving at its ports 8500 and 8501 instead, whose
model is named deit. A request is one photograph as JPEG (640×427), or its pixels. `--overhead`
measures what `OnnxClassifier` costs beside the bare session at batch 32, in turns.
"""

import argparse
import concurrent.futures
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import machine
import turns

sys.path.insert(0, str(turns.ROOT))

import numpy as np

MODEL, BATCH, ROUNDS = "deit_tiny_distilled_patch16_224", 32, 21
PACKAGES = ("tensorflow", "onnxruntime-gpu", "grpcio", "pillow", "numpy")


def main():
    """Measures, prints a table, and writes a JSON file where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concurrency", default="1,4,16", help="with commas between")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each measurement")
    parser.add_argument("--target", help="host of a TF Serving, instead of the stand-in")
    parser.add_argument("--device", default="cpu", help="of the ONNX session")
    parser.add_argument("--overhead", action="store_true", help="of the client of the session")
    parser.add_argument("--out", help="JSON file for the results")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _export(folder, served=not (arguments.target or arguments.overhead))
        if arguments.overhead:
            found = _overhead(folder / "deit.onnx", arguments.device)
            print(json.dumps(found))
        else:
            asks = _asks(folder, arguments, stack)
            levels = [int(level) for level in arguments.concurrency.split(",")]
            found = {}
            for name, ask in asks.items():
                for level in levels:
                    found[f"{name} {level}"] = measured = load(ask, level, arguments.seconds)
                    print(_row(name, level, measured), flush=True)
    if arguments.out:
        result = {"measured": found, **machine.facts(*PACKAGES)}
        pathlib.Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n")


def load(ask, concurrency, seconds):
    """What so many who ask at once are answered, each as soon as it has its last answer.

    Args:
      ask: function without arguments: a request.
      concurrency: how many ask at once.
      seconds: for how long.

    Returns:
      {"requests", "errors", "per_second", "p50", "p95", "p99", "milliseconds"}: percentiles of the
      milliseconds, and those of each request.
    """
    ask()
    start = time.perf_counter()

    def one(_):
        times, errors = [], 0
        while (before := time.perf_counter()) < start + seconds:
            try:
                ask()
                times.append(1e3 * (time.perf_counter() - before))
            except Exception:  # counted
                errors += 1
        return times, errors

    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
        answers = list(pool.map(one, range(concurrency)))
    took = time.perf_counter() - start
    times = [each for found, _ in answers for each in found]
    p50, p95, p99 = np.percentile(times or [np.nan], (50, 95, 99)).round(1).tolist()
    return {
        "requests": len(times),
        "errors": sum(errors for _, errors in answers),
        "per_second": round(len(times) / took, 1),
        "p50": p50,
        "p95": p95,
        "p99": p99,
        "milliseconds": [round(each, 2) for each in times],
    }


def _row(name, level, found):
    times = "  ".join(f"{key} {found[key]:8.1f} ms" for key in ("p50", "p95", "p99"))
    return (
        f"{name:12} {level:4} at once  {found['per_second']:7.1f} a second  {times}"
        f"  {found['errors']} errors"
    )


def _export(folder, served):
    """A network with random weights as deit.onnx, and where it is served, as models/deit/1."""
    from deit_tf import checkpoint, config, labels, rundir
    from export import onnxmodel, savedmodel

    run = folder / "run"
    run.mkdir()
    facts = config.network(MODEL)
    nowhere = config.DataConfig(dataset=f"folder:{folder / 'nowhere'}")
    whole = config.Config(MODEL, facts, data=nowhere)
    rundir.begin(run, whole, {}, *labels.listed(facts.num_classes))
    checkpoint.build_network(facts).save_weights(run / rundir.WEIGHTS)
    onnxmodel.export(run, folder / "deit.onnx", onnxmodel.Options(target="cpu"))
    if served:
        savedmodel.export(run, folder / "models" / "deit")


def _asks(folder, arguments, stack):
    """{what asks: a function that asks once}."""
    import sklearn.datasets

    from serving import client, image, onnx_session

    photo = pathlib.Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"
    jpeg = photo.read_bytes()
    onnx = onnx_session.OnnxClassifier(folder / "deit.onnx", arguments.device)
    pixels = image.view(jpeg, onnx.manifest)[None]
    targets = _targets(arguments.target, folder, stack)
    grpc = stack.enter_context(client.GrpcClient(targets["grpc"]))
    rest = stack.enter_context(client.RestClient(targets["rest"]))
    grpc.wait_until_ready()
    return {
        f"{name} {kind}": lambda model=model, value=value: _checked(model.predict(value))
        for name, model in (("grpc", grpc), ("rest", rest), ("onnx", onnx))
        for kind, value in (("jpeg", jpeg), ("pixels", pixels))
    }


def _checked(answers):
    """Raises where an image is bad: here none is."""
    if answers[0].error:
        raise RuntimeError(answers[0].error)


def _targets(host, folder, stack):
    """host:port by protocol; of a stand-in that ends with the stack, where there is no host."""
    if host:
        return {"grpc": f"{host}:8500", "rest": f"{host}:8501"}
    served = folder / "models" / "deit" / "1"
    command = [sys.executable, turns.ROOT / "tests" / "standin.py", f"--model={served}"]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, **streams)
    stack.callback(process.communicate)  # it ends with its input
    return {
        kind: f"127.0.0.1:{port}" for kind, port in json.loads(process.stdout.readline()).items()
    }


def _overhead(path, device):
    """Milliseconds of a batch by the bare session, and by the classifier, in turns."""
    from serving import onnx_session

    classifier = onnx_session.OnnxClassifier(path, device)
    side = classifier.manifest.image_size
    pixels = np.random.RandomState(0).randint(0, 256, (BATCH, side, side, 3)).astype(np.uint8)
    bare = classifier._session._session  # the same, so that what differs is ours alone
    ways = {
        "bare": lambda: bare.run(None, {"image": pixels}),
        "array": lambda: classifier.predict(pixels),
        "list": lambda: classifier.predict(list(pixels)),
    }
    times = {name: [] for name in ways}
    for turn in range(ROUNDS):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            before = time.perf_counter()
            ways[name]()
            times[name].append(1e3 * (time.perf_counter() - before))
    median = {name: round(statistics.median(found[1:]), 2) for name, found in times.items()}
    ratios = {
        name: statistics.median(np.divide(found, times["bare"])) for name, found in times.items()
    }
    return {
        name: {"milliseconds": median[name], "of_bare": round(float(ratios[name]), 3)}
        for name in ways
    }


if __name__ == "__main__":
    main()
