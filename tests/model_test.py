import keras
import numpy as np
import pytest

from deit_tf import checkpoint, config, model

NANO = config.network(
    "deit",
    num_classes=5,
    image_size=16,
    patch_size=4,
    width=16,
    depth=3,
    heads=2,
    distilled=True,
    drop_path_rate=0.5,
)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("deit_tiny_patch16_224", 5_717_416),
        ("deit_tiny_distilled_patch16_224", 5_910_800),
        ("deit_small_patch16_224", 22_050_664),
        ("deit_small_distilled_patch16_224", 22_436_432),
        ("deit_base_patch16_224", 86_567_656),
        ("deit_base_distilled_patch16_224", 87_338_192),
        ("deit_base_patch16_384", 86_859_496),
        ("deit_base_distilled_patch16_384", 87_630_032),
    ],
)
def test_has_the_published_number_of_parameters(name, parameters):
    deit = model.build_deit(name)
    assert deit.count_params() == parameters
    assert len(deit.weights) == (155 if "distilled" in name else 152)


@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "deit_small_distilled_patch16_224",
    ],
)
def test_answers_as_the_original(name, golden, golden_file, golden_image):
    # The golden input is normalised already: with these constants Normalize changes nothing.
    deit = checkpoint.load(golden_file(name), mean=(0.0,) * 3, std=(1 / 255,) * 3)
    image = golden_image(name)
    tokens = np.asarray(deit.encode(image))[:, :4, :16]
    np.testing.assert_allclose(tokens, golden[f"{name}/tokens"], atol=2e-5)
    logits = deit(image)
    keys = {"cls": "class_logits", "dist": "distill_logits"} if "dist" in logits else {}
    for head, key in keys.items():
        _assert_near(logits[head], golden[f"{name}/{key}"])
    _assert_near(model.fuse(logits), golden[f"{name}/logits"])


def _assert_near(found, expected):
    """Within 1e-5 of the largest logit."""
    assert np.max(np.abs(np.asarray(found) - expected)) <= 1e-5 * np.max(np.abs(expected))


def test_tokens_that_nobody_asks_for_change_nothing():
    deit = model.build_deit(NANO)
    image = np.random.RandomState(0).randint(0, 256, (3, 16, 16, 3))
    keep = np.random.RandomState(1).randint(0, 2, (3, NANO.depth, 2))
    for training in (False, True):
        whole = np.asarray(deit.encode(image, keep=keep, training=training))
        part = np.asarray(deit.encode(image, keep=keep, training=training, first=2))
        assert part.shape == (3, 2, NANO.width)
        np.testing.assert_allclose(part, whole[:, :2], atol=1e-6)


def test_always_returns_the_dictionary():
    image = np.zeros((2, 16, 16, 3), np.uint8)
    deit = model.build_deit(NANO)
    for training in (False, True, None):
        logits = deit(image, training=training)
        assert {name: tuple(value.shape) for name, value in logits.items()} == {
            "cls": (2, 5),
            "dist": (2, 5),
        }
    plain = model.build_deit(NANO, distilled=False)
    assert list(plain(image, training=True)) == ["cls"]


def test_keep_masks_drop_the_branches_they_name():
    deit = model.build_deit(NANO)
    image = np.random.RandomState(0).uniform(0, 255, (2, 16, 16, 3)).astype(np.float32)
    ones = np.ones((2, 3, 2), np.float32)
    mask = ones.copy()
    mask[0, 2, 1] = 0
    whole, dropped = (
        np.asarray(deit(image, keep=keep, training=True)["cls"]) for keep in (ones, mask)
    )
    assert np.array_equal(whole[1], dropped[1])
    assert not np.allclose(whole[0], dropped[0])
    # All branches of block i scale by 1 / (1 - rate): with rate 0 nothing is left of that.
    steady = model.build_deit(NANO, drop_path_rate=0.0)
    steady.set_weights(deit.get_weights())
    plain = np.asarray(deit(image, training=False)["cls"])
    np.testing.assert_allclose(
        np.asarray(steady(image, keep=mask, training=True)["cls"]), plain, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        np.asarray(deit(image, keep=mask, training=False)["cls"]), plain, rtol=1e-5, atol=1e-6
    )


def test_fuse_logits_is_the_released_mean_and_softmax_the_papers():
    cls, dist = np.float32([[2.0, 0.0, 0.0]]), np.float32([[0.0, 1.0, 4.0]])
    logits = {"cls": cls, "dist": dist}
    np.testing.assert_allclose(model.fuse(logits), [[1.0, 0.5, 2.0]])
    probabilities = keras.ops.softmax(model.fuse(logits, "softmax"))
    mean = (np.asarray(keras.ops.softmax(cls)) + np.asarray(keras.ops.softmax(dist))) / 2
    np.testing.assert_allclose(probabilities, mean, rtol=1e-6)
    assert model.fuse({"cls": cls}) is cls
    with pytest.raises(config.InputError, match="choose one of logits, softmax"):
        model.fuse(logits, "sum")


def test_initialises_as_released():
    deit = model.build_deit("deit_tiny_distilled_patch16_224")
    weights = {weight.path.split("/", 1)[1]: np.asarray(weight) for weight in deit.weights}
    for name in ("blocks_3/attn/qkv/kernel", "head/kernel", "tokens/pos_embed"):
        assert weights[name].std() == pytest.approx(0.02, rel=0.05)
        assert np.abs(weights[name]).max() > 0.05  # not cut at two deviations
    bound = 1 / np.sqrt(3 * 16**2)
    for name in ("patch_embed/proj/kernel", "patch_embed/proj/bias"):
        assert bound * 0.9 < np.abs(weights[name]).max() <= bound
    assert not weights["blocks_3/mlp/fc1/bias"].any()
    assert (weights["norm/gamma"] == 1).all()


@pytest.mark.parametrize("fusion", ["logits", pytest.param("softmax", marks=pytest.mark.slow)])
def test_classifier_trains_by_plain_fit_and_survives_a_keras_file(fusion, tmp_path):
    whole = model.classifier(model.build_deit(NANO), fusion)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    whole.compile("adam", loss, metrics=["accuracy"])
    rng = np.random.RandomState(0)
    image, label = rng.uniform(0, 255, (8, 16, 16, 3)).astype(np.float32), np.arange(8) % 5
    before = whole.evaluate(image, label, verbose=0, return_dict=True)["loss"]
    whole.fit(image, label, epochs=8, batch_size=4, verbose=0)
    assert whole.evaluate(image, label, verbose=0, return_dict=True)["loss"] < before
    whole.save(tmp_path / "whole.keras")
    again = keras.models.load_model(tmp_path / "whole.keras")
    np.testing.assert_array_equal(again.predict(image, verbose=0), whole.predict(image, verbose=0))


def test_deit_itself_survives_a_keras_file_and_image_only_predict(tmp_path):
    deit = model.build_deit(NANO)
    image = np.random.RandomState(1).randint(0, 256, (4, 16, 16, 3)).astype(np.uint8)
    deit.save(tmp_path / "deit.keras")
    again = keras.models.load_model(tmp_path / "deit.keras")
    assert again.config == deit.config
    for head, logits in deit.predict(image, verbose=0).items():
        np.testing.assert_array_equal(again.predict(image, verbose=0)[head], logits)


def test_bfloat16_keeps_pixels_exact_and_answers_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    deit = model.build_deit(NANO)
    assert deit.blocks[0].attn.qkv.compute_dtype == "bfloat16"
    seen = []
    patches = deit.patch_embed.call
    deit.patch_embed.call = lambda x: seen.append(np.asarray(x, np.float32)) or patches(x)
    image = np.full((1, 16, 16, 3), 100.3, np.float32)
    logits = deit(image)
    assert logits["cls"].dtype == "float32"
    normalized = (100.3 / 255 - np.float32(config.IMAGENET_MEAN)) / np.float32(config.IMAGENET_STD)
    # One rounding to 8 bits, after normalisation; rounding the pixel first would be 3 times off.
    np.testing.assert_allclose(seen[0][0, 0, 0], normalized, rtol=2**-8)


def test_every_fact_reaches_the_network():
    deit = model.build_deit(NANO, mlp_ratio=2.5, layer_norm_epsilon=1e-3, mean=(0.1, 0.2, 0.3))
    block = deit.blocks[2]
    assert block.mlp.fc1.units == 40
    assert {block.norm1.epsilon, block.norm2.epsilon, deit.norm.epsilon} == {1e-3}
    assert deit.normalize.mean == (0.1, 0.2, 0.3)
    assert block.drop_path2.rate == 0.5


def test_refuses_what_is_no_deit():
    with pytest.raises(config.InputError, match="regnety_tiny' is no DeiT"):
        model.build_deit("regnety_tiny")
    with pytest.raises(config.InputError, match="did you mean"):
        model.build_deit("deit_tiny")


def test_describe_counts():
    network = model.build_deit(NANO)
    count = f"{network.count_params():,}"
    assert checkpoint.describe(network) == f"distilled DeiT, {count} parameters"
