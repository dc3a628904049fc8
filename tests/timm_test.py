"""Live, beside timm: its own networks with its own random weights answer as ours do."""

import importlib.util

import numpy as np
import pytest

from deit_tf import checkpoint, config, model, resize

needed = ("torch", "timm", "torchvision")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in needed),
        reason="torch and timm are not installed",
    ),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def timm():
    """timm; torchvision may lack its compiled operations, which timm never calls."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    return timm


def _answers(network, image):
    """Logits of a timm network, of each head where there are two."""
    import torch

    with torch.no_grad():
        network.eval()
        x = torch.tensor(image).permute(0, 3, 1, 2)
        if not hasattr(network, "head_dist"):
            return {"cls": network(x).numpy()}
        features = network.forward_features(x)
        return {
            "cls": network.head(features[:, 0]).numpy(),
            "dist": network.head_dist(features[:, 1]).numpy(),
        }


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_patch16_224",
        "deit_small_distilled_patch16_224",
        "deit_base_distilled_patch16_384",
        "regnety_160.deit_in1k",
        "regnety_040",
    ],
)
def test_a_file_of_timm_answers_as_timm(name, kind, timm, tmp_path):
    import safetensors.torch
    import torch

    torch.manual_seed(0)
    theirs = timm.create_model(name)
    for parameter in theirs.parameters():  # zeros hide mistakes
        parameter.data += 0.02 * torch.randn_like(parameter)
    path = tmp_path / f"weights.{kind}"
    if kind == "pth":
        torch.save({"model": theirs.state_dict()}, path)
    else:
        safetensors.torch.save_file(theirs.state_dict(), path)
    variant = name.split(".")[0]
    ours = checkpoint.load(path, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    assert ours.config.image_size == config.VARIANTS[variant].image_size
    side = ours.config.image_size
    image = np.random.RandomState(0).standard_normal((2, side, side, 3)).astype(np.float32)
    found = ours(image, training=False)
    for head, expected in _answers(theirs, image).items():
        error = np.max(np.abs(np.asarray(found[head]) - expected))
        assert error <= 1e-5 * np.max(np.abs(expected))
    expected = _answers(theirs, image)
    fused = sum(expected.values()) / len(expected)
    error = np.max(np.abs(np.asarray(model.fuse(found)) - fused))
    assert error <= 1e-5 * np.max(np.abs(fused))


@pytest.mark.parametrize(("before", "after"), [(14, 24), (24, 14), (14, 13)])
def test_antialias_is_timms_resize(before, after, timm):
    import torch
    from timm.layers import resample_abs_pos_embed

    values = np.random.RandomState(0).standard_normal((1, 2 + before**2, 8)).astype(np.float32)
    expected = resample_abs_pos_embed(
        torch.tensor(values), [after, after], [before, before], num_prefix_tokens=2
    )
    found = resize.pos_embed(values, 2, after**2, "antialias")
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(("before", "after"), [(14, 24), (24, 14), (14, 13)])
def test_bicubic_is_torchs(before, after):
    import torch

    values = np.random.RandomState(0).standard_normal((1, before**2, 8)).astype(np.float32)
    square = torch.tensor(values).reshape(1, before, before, 8).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(square, (after, after), mode="bicubic")
    expected = resized.permute(0, 2, 3, 1).reshape(1, after**2, 8).numpy()
    found = resize.pos_embed(values, 0, after**2)
    np.testing.assert_allclose(found, expected, atol=5e-6)
