"""Real files of every naming against the golden answers; what is wrong with a file is named."""

import importlib.util
import json
import os
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from deit_tf import checkpoint, config, model, torch_weights

RAW = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}  # the golden input is normalised already
MICRO = {"distilled": True, "width": 48, "depth": 3, "heads": 4, "image_size": 64}
MICRO |= {"num_classes": 7, "layer_norm_epsilon": 1e-12}
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)


def _assert_near(found, expected):
    """Within 1e-5 of the largest logit."""
    assert np.max(np.abs(np.asarray(found) - expected)) <= 1e-5 * np.max(np.abs(expected))


def _hub_name(name):
    """transformers 5 in memory -> the names in the hub's files."""
    for new, old in (
        ("deit.layers.", "deit.encoder.layer."),
        ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"),
        ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ):
        name = name.replace(new, old)
    return name


@pytest.mark.parametrize("naming", [str, _hub_name], ids=["transformers5", "hub"])
def test_hugging_face_names_answer_as_the_original(
    naming, golden, golden_tensors, golden_image, tmp_path
):
    tensors = {naming(name): value for name, value in golden_tensors("hf_micro").items()}
    safetensors.numpy.save_file(tensors, tmp_path / "micro.safetensors")
    deit = checkpoint.load(tmp_path / "micro.safetensors", model="deit", **MICRO, **RAW)
    logits = deit(golden_image("hf_micro"))
    _assert_near(logits["cls"], golden["hf_micro/class_logits"])
    _assert_near(logits["dist"], golden["hf_micro/distill_logits"])
    _assert_near(model.fuse(logits), golden["hf_micro/logits"])


def test_vit_names_of_the_hubs_plain_models(golden_tensors, tmp_path):
    tensors = {
        _hub_name(name).replace("deit.", "vit.").replace("cls_classifier", "classifier"): value
        for name, value in golden_tensors("hf_micro").items()
        if "distillation" not in name
    }
    tensors["vit.embeddings.position_embeddings"] = np.zeros((1, 17, 48), np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "vit.safetensors")
    deit = checkpoint.load(
        tmp_path / "vit.safetensors", model="deit", **{**MICRO, "distilled": False}
    )
    np.testing.assert_array_equal(deit.head.kernel, tensors["classifier.weight"].T)


@pytest.mark.parametrize(
    "name",
    ["deit_tiny_patch16_224", "deit_small_distilled_patch16_224"],
)
def test_the_network_is_read_off_the_shapes(name, golden_file):
    found = torch_weights.network_of(torch_weights.read(golden_file(name)), "file")
    assert found == (name, config.VARIANTS[name])


def test_another_resolution_is_read_off_the_shapes(golden_tensors, tmp_path):
    tensors = golden_tensors("deit_tiny_distilled_patch16_224")
    tensors["pos_embed"] = np.zeros((1, 578, 192), np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "at384.safetensors")
    found = torch_weights.network_of(torch_weights.read(tmp_path / "at384.safetensors"), "file")
    facts = config.network("deit_tiny_distilled_patch16_224", image_size=384)
    assert found == ("deit", facts)


def test_names_go_there_and_back():
    shapes = json.loads((pathlib.Path(__file__).parent / "data/state_dicts.json").read_text())
    for name in ("deit_tiny_distilled_patch16_224", "regnety_160"):
        for official in shapes[name]:
            if not official.endswith("num_batches_tracked"):
                ours = torch_weights._our_path(torch_weights._official(official))
                assert torch_weights.official_name(ours) == official.replace("head.fc.", "head.")


def _nano(tmp_path, change=lambda tensors: None, dtype=np.float32):
    """A file of a small DeiT's weights in official names, after a change."""
    facts = config.network(
        "deit", num_classes=3, image_size=32, patch_size=16, width=64, depth=2, heads=1
    )
    network = model.build_deit(facts)
    tensors = {}
    for weight in network.weights:
        value = np.random.RandomState(len(tensors)).standard_normal(weight.shape)
        if value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        elif value.ndim == 2:
            value = value.T
        name = torch_weights.official_name(weight.path.split("/", 1)[1])
        tensors[name] = np.ascontiguousarray(value.astype(dtype))
    change(tensors)
    safetensors.numpy.save_file(tensors, tmp_path / "nano.safetensors")
    return tmp_path / "nano.safetensors", facts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("norm.bias"), "missing: norm.bias$"),
        (
            lambda t: t.update({"blocks.1.ls1.gamma": np.zeros(64, np.float32)}),
            "left over: blocks.1.ls1.gamma$",
        ),
        (
            lambda t: t.update({"head.weight": np.zeros((3, 63), np.float32)}),
            r"of another shape .*: head.weight \(63, 3\), not \(64, 3\)$",
        ),
        (lambda t: t["norm.weight"].fill(np.nan), "not finite: norm.weight$"),
        (lambda t: t.pop("pos_embed"), "holds no DeiT's weights: it has no 'tokens/pos_embed'"),
    ],
)
def test_what_does_not_fit_is_named(change, message, tmp_path):
    path, _ = _nano(tmp_path, change)
    with pytest.raises(config.InputError, match=message):
        checkpoint.load(path)


@pytest.mark.parametrize("other", ["head.fc.bias", "classifier.bias"])
def test_two_names_of_one_weight_are_refused(other, tmp_path):
    path, _ = _nano(tmp_path, lambda t: t.update({other: np.ones(3, np.float32)}))
    with pytest.raises(config.InputError, match="are the same weight"):
        torch_weights.read(path)


def test_split_queries_beside_the_joined_are_left_over(tmp_path):
    split = {f"blocks.0.attn.{part}.bias": np.ones(64, np.float32) for part in "qkv"}
    path, _ = _nano(tmp_path, lambda t: t.update(split))
    with pytest.raises(config.InputError, match=r"left over: blocks.0.attn.k.bias, blocks.0.attn"):
        checkpoint.load(path)


def test_a_width_that_does_not_show_its_heads_asks_for_them(golden_file):
    with pytest.raises(config.InputError, match=r"^a DeiT 48 wide does not show how many heads"):
        checkpoint.load(golden_file("hf_micro"))


def test_a_run_takes_no_other_network(tmp_path):
    with pytest.raises(config.InputError, match="is a run: its network is known; leave model"):
        checkpoint.load(tmp_path, num_classes=3)
    with pytest.raises(config.InputError, match="there is no file"):
        checkpoint.load(tmp_path / "none.safetensors")


def test_weights_of_another_variant_are_refused(golden_file):
    with pytest.raises(
        config.InputError, match=r"of another shape .*: patch_embed.proj.weight .* and 1.. more"
    ):
        checkpoint.load(golden_file("deit_tiny_patch16_224"), model="deit_small_patch16_224")


def test_half_precision_is_widened(tmp_path):
    import ml_dtypes

    for dtype in (np.float16, ml_dtypes.bfloat16):
        path, facts = _nano(tmp_path, dtype=dtype)
        network = checkpoint.load(path)
        assert network.config == facts
        kernel = np.random.RandomState(len(network.weights) - 2).standard_normal((64, 3))
        np.testing.assert_array_equal(network.head.kernel, kernel.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("size", [0, 5, 300, 100_000])
def test_cut_safetensors_are_refused(size, tmp_path):
    path, _ = _nano(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(config.InputError, match="is no whole safetensors file"):
        torch_weights.read(path)


def test_refuses_what_is_no_file_of_weights(tmp_path):
    with pytest.raises(config.InputError, match="there is no file"):
        torch_weights.read(tmp_path / "none.safetensors")
    with pytest.raises(config.InputError, match=r"give a .safetensors, .pth, .pt, .bin or .ckpt"):
        torch_weights.read(tmp_path / "weights.h5")


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_without_torch_a_pth_says_so(tmp_path):
    (tmp_path / "deit.pth").write_bytes(b"")
    with pytest.raises(config.InputError, match="PyTorch is not installed; pip install torch, or"):
        torch_weights.read(tmp_path / "deit.pth")


@needs_torch
def test_a_torch_that_may_run_code_is_refused(tmp_path, monkeypatch):
    (tmp_path / "deit.pth").write_bytes(b"")
    monkeypatch.setattr(torch_weights.importlib.metadata, "version", lambda name: "2.5.1+cpu")
    with pytest.raises(config.InputError, match=r"PyTorch 2.5.1\+cpu may run code from it"):
        torch_weights.read(tmp_path / "deit.pth")


@needs_torch
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_pth_is_the_same_as_safetensors(key, tmp_path):
    import torch

    path, _ = _nano(tmp_path)
    tensors = {
        name: torch.tensor(value) for name, value in safetensors.numpy.load_file(path).items()
    }
    torch.save({key: tensors} if key else tensors, tmp_path / "nano.pth")
    one, other = torch_weights.read(path), torch_weights.read(tmp_path / "nano.pth")
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])


class _Code:
    """A pickle that makes a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@needs_torch
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pth_with_code_is_refused_and_not_run(tmp_path):
    import argparse
    import pickle

    import torch

    proof, path = tmp_path / "run", tmp_path / "bad.pth"
    torch.save({"model": _Code(str(proof))}, path)
    with pytest.raises(config.InputError, match="holds more than tensors and is not opened"):
        torch_weights.read(path)
    path.write_bytes(pickle.dumps(_Code(str(proof))))
    with pytest.raises(config.InputError, match=r"holds more than tensors|no whole PyTorch file"):
        torch_weights.read(path)
    torch.save({"model": {}, "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(config.InputError, match="holds more than tensors and is not opened"):
        torch_weights.read(path)
    assert not proof.exists()


@needs_torch
def test_damaged_pth_is_refused(tmp_path):
    import torch

    path = tmp_path / "bad.pth"
    torch.save({"model": {"head.bias": torch.ones(1000)}}, path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"a text", json.dumps({}).encode()):
        path.write_bytes(content)
        with pytest.raises(config.InputError, match="is no whole PyTorch file"):
            torch_weights.read(path)
    torch.save([torch.ones(3)], path)
    with pytest.raises(config.InputError, match="no tensors by name, but a list"):
        torch_weights.read(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(config.InputError, match="epoch is no tensor, but a int"):
        torch_weights.read(path)
