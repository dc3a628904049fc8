"""Ti, S and B with golden weights, of one head and of two, at 224 and 384 pixels, as artefacts.

Random weights as a network begins with would prove little: its answers hardly depend on the image.
"""

import collections
import gc
import shutil

import keras
import numpy as np
import onnx
import pytest
import safetensors.numpy

from deit_tf import checkpoint, config, convert, inference, torch_weights
from export import onnxmodel, savedmodel, verify

pytestmark = pytest.mark.slow
CASES = [
    (size, distilled, side)
    for size in ("tiny", "small", "base")
    for distilled in (False, True)
    for side in (224, 384)
]
KINDS = (
    {"precision": "float32"},
    {"precision": "float32", "target": "cpu"},
    {"precision": "float32", "target": "cuda"},
    {"precision": "float16"},
    {"precision": "float16", "target": "cuda"},
)


@pytest.fixture
def golden_run(golden_tensor, tmp_path):
    """Function (size, distilled, side): a run directory with golden weights; gone afterwards."""

    def make(size, distilled, side):
        name = f"deit_{size}{'_distilled' * distilled}_patch16_224"
        facts = config.network(name, image_size=side)
        tensors = {}
        for weight in checkpoint.build_network(facts).weights:
            path = weight.path.partition("/")[2]
            shape = weight.shape
            if len(shape) in (2, 4):  # PyTorch's layout
                shape = shape[::-1] if len(shape) == 2 else [shape[i] for i in (3, 2, 0, 1)]
            official = torch_weights.official_name(path)
            tensors[official] = np.ascontiguousarray(golden_tensor(official, tuple(shape)))
        file = tmp_path / "golden.safetensors"
        safetensors.numpy.save_file(tensors, file)
        nowhere = {"dataset": f"folder:{tmp_path / 'nowhere'}"}
        convert.convert(file, tmp_path / "run", name, nowhere, image_size=side)
        file.unlink()
        return tmp_path / "run"

    yield make
    shutil.rmtree(tmp_path)
    keras.backend.clear_session()
    gc.collect()  # a B takes gigabytes with all that was traced of it


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_artefact_answers_as_its_network(case, golden_run, tmp_path):
    run = golden_run(*case)
    assert verify.TOLERANCES["float32"].error == 1e-5
    assert verify.TOLERANCES["float16"].error == verify.END_TO_END == 5e-3
    path, _ = savedmodel.export(run, tmp_path / "models", max_batch_size=32)
    shutil.rmtree(path)
    for kind in KINDS:
        path = tmp_path / "deit.onnx"
        onnxmodel.export(run, path, onnxmodel.Options(**kind))
        path.unlink()


def test_the_golden_network_answers_as_its_pytorch_original(golden, golden_run):
    """What is exported is what timm answered for, so that all of it hangs on one nail."""
    found = inference.open_run(golden_run("tiny", True, 224))
    seed, count, size = golden["deit_tiny_distilled_patch16_224/input"]
    normal = np.random.RandomState(seed).standard_normal((count, size, size, 3))
    facts = found.network.config
    pixels = (normal * np.array(facts.std) + np.array(facts.mean)) * 255.0
    logits = np.asarray(found.answer(pixels.astype(np.float32))["logits"])
    expected = golden["deit_tiny_distilled_patch16_224/logits"]
    assert np.max(np.abs(logits - expected)) <= 1e-5 * np.max(np.abs(expected))


def test_the_graph_of_deit_tiny_for_cuda_is_fused(golden_run, tmp_path):
    run, path = golden_run("tiny", True, 224), tmp_path / "deit.onnx"
    for precision in ("float32", "float16"):
        onnxmodel.export(run, path, onnxmodel.Options(precision, "cuda"))
        found = collections.Counter(node.op_type for node in onnx.load(path).graph.node)
        fused = ("MultiHeadAttention", "BiasGelu", "SkipLayerNormalization")
        assert [found[kind] for kind in fused] == [12, 12, 24]
        assert sum(found.values()) <= 10 * 12 + 35
