"""Live, beside timm: its own networks with its own random weights answer as ours do."""

import importlib.util

import numpy as np
import pytest

from deit_tf import augment, checkpoint, config, draws, mixing, model, policies, resize

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


POLICIES = (
    "rand-m9-mstd0.5-inc1",
    "rand-m9-mstd0.5",
    "rand-m7-n3-p0.8-mmax12-inc1",
    "rand-m5-mstd101-inc0",
    "rand-tweights-m6",
    "rand-m6-t3a",
    "rand-m6-n1-t3aw-inc1",
)


@pytest.mark.parametrize("text", POLICIES)
def test_a_string_means_what_it_means_to_timm(timm, text):
    from timm.data import auto_augment

    theirs = auto_augment.rand_augment_transform(text, {})
    ours = policies.parse(text)
    assert ours.count == theirs.num_layers
    assert list(ours.weights) == [_ours(op.name) for op in theirs.ops]
    weights = np.array(list(ours.weights.values()))
    if theirs.choice_weights is None:
        assert (weights == weights[0]).all()
    else:
        np.testing.assert_allclose(weights / weights.sum(), theirs.choice_weights)
    assert ours.increasing == any("Increasing" in op.name for op in theirs.ops)
    for op in theirs.ops:
        assert (ours.level, ours.rate) == (op.magnitude, op.prob)
        assert min(ours.deviation, 101) == min(op.magnitude_std, 101)
        assert ours.largest == (op.magnitude_max or 10)


def _ours(name):
    return name.replace("Increasing", "").replace("Rel", "")


@pytest.mark.parametrize("increasing", [False, True])
def test_every_level_is_timms(timm, monkeypatch, increasing):
    from timm.data import auto_augment

    for sign in (1.0, -1.0):
        monkeypatch.setattr(auto_augment, "_randomly_negate", lambda v, sign=sign: sign * v)
        for name in auto_augment.rand_augment_choices("", increasing) + auto_augment._RAND_3A[1:]:
            function = auto_augment.LEVEL_TO_ARG[name]
            for level in np.linspace(0, 10, 41):
                expected = function(level, {})[0] if function else 0.0
                found = policies.argument(_ours(name), level, sign, increasing)
                assert found == pytest.approx(expected), (name, level)


@pytest.mark.parametrize("operation", policies.OPERATIONS[1:17])
def test_every_operation_is_timms_at_224_pixels(timm, operation):
    import tensorflow as tf
    from PIL import Image
    from timm.data import auto_augment

    rng = np.random.RandomState(0)
    coarse = rng.randint(0, 256, (20, 20, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize((224, 224), Image.Resampling.BICUBIC)
    name = operation + "Rel" * operation.startswith("Translate")
    fill = tf.constant([124.0, 116.0, 104.0])
    code, pixels = tf.constant([policies.OPERATIONS.index(operation)]), np.float32(image)
    options = {"fillcolor": (124, 116, 104), "resample": Image.Resampling.BILINEAR}
    function = auto_augment.LEVEL_TO_ARG[name]
    for level in rng.uniform(0, 10, 8):
        arguments = function(level, {}) if function else ()
        expected = np.float32(auto_augment.NAME_TO_OP[name](image, *arguments, **options))
        value = tf.constant([float(arguments[0] if arguments else 0)], tf.float32)
        assert np.abs(augment.apply(pixels, code, value, fill) - expected).max() <= 1


@pytest.mark.parametrize(
    ("mode", "seed"), [("batch", 0), ("batch", 2), ("pair", 2), ("element", 2)]
)
def test_mixing_is_timms(timm, monkeypatch, mode, seed):
    import torch
    from timm.data import mixup

    size, count = 16, 8
    numbers = draws.uniform(draws.key(seed, 0, "mix"), range(count), draws.MIX_NUMBERS)
    shared = {"batch": np.zeros(8, int), "pair": np.minimum(np.arange(8), 7 - np.arange(8))}
    numbers = numbers[shared.get(mode, np.arange(8))]
    own, box = draws.mix(numbers, size, 0.8, 1.0, 1.0, 0.5)
    cut = box.any(-1)
    assert cut.any() == bool(seed)  # once mixup alone

    boxes = iter(zip(box, own, strict=True))

    def next_box(*args, **kwargs):
        (top, left, bottom, right), share = next(b for b in boxes if b[0].any())
        return (top, bottom, left, right), share

    monkeypatch.setattr(mixup, "cutmix_bbox_and_lam", next_box)
    theirs = mixup.Mixup(
        0.8, 1.0, mode=mode.replace("element", "elem"), label_smoothing=0.1, num_classes=5
    )
    theirs._params_per_batch = lambda: (own[0], cut[0])
    theirs._params_per_elem = lambda n: (own[:n].copy(), cut[:n])
    rng = np.random.RandomState(0)
    images = rng.uniform(-2, 2, (count, size, size, 3)).astype(np.float32)
    classes = rng.randint(0, 5, count)
    mixed, labels = theirs(torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(classes))
    found = mixing.mix(images, mixing.smooth_labels(classes, 5, 0.1), own, box)
    np.testing.assert_allclose(found[0], mixed.permute(0, 2, 3, 1).numpy(), atol=1e-6)
    np.testing.assert_allclose(found[1], labels.numpy(), atol=1e-6)
