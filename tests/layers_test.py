import math

import keras
import numpy as np
import pytest

from deit_tf import layers, model, regnet

TOKENS = (2, 5, 8)
IMAGE = (2, 8, 8, 4)
# layer, shape in, shape out
PARTS = {
    "Normalize": (lambda: layers.Normalize((0.5,) * 3, (0.2,) * 3), (2, 8, 8, 3), (2, 8, 8, 3)),
    "PatchEmbed": (lambda: layers.PatchEmbed(4, 8), (2, 8, 8, 3), (2, 4, 8)),
    "Tokens": (lambda: layers.Tokens(True), TOKENS, (2, 7, 8)),
    "Tokens plain": (lambda: layers.Tokens(False), TOKENS, (2, 6, 8)),
    "Attention": (lambda: layers.Attention(8, 2), TOKENS, TOKENS),
    "Mlp": (lambda: layers.Mlp(8, 12), TOKENS, TOKENS),
    "DropPath": (lambda: layers.DropPath(0.5), TOKENS, TOKENS),
    "Block": (lambda: layers.Block(8, 2, 2.0, 0.5, 1e-6), TOKENS, TOKENS),
    "ConvNorm": (lambda: regnet.ConvNorm(6, 3, 2, 2), IMAGE, (2, 4, 4, 6)),
    "SqueezeExcite": (lambda: regnet.SqueezeExcite(4, 1), IMAGE, IMAGE),
    "Bottleneck": (lambda: regnet.Bottleneck(8, 2, 2, 0.25), IMAGE, (2, 4, 4, 8)),
    "Bottleneck same": (lambda: regnet.Bottleneck(4, 1, 1, 0.25), IMAGE, IMAGE),
}


@pytest.fixture(params=PARTS)
def part(request):
    make, shape_in, shape_out = PARTS[request.param]
    values = np.random.RandomState(0).uniform(0, 1, shape_in).astype(np.float32)
    return make, values, shape_out


def test_shape(part):
    make, values, shape = part
    assert tuple(make()(values).shape) == shape


def test_config_round_trip(part):
    make, values, _ = part
    layer = make()
    expected = layer(values)
    again = type(layer).from_config(layer.get_config())
    again.build(values.shape)
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(np.asarray(again(values)), np.asarray(expected))


def test_survives_a_keras_file(part, tmp_path):
    make, values, _ = part
    image = keras.Input(values.shape[1:])
    whole = keras.Model(image, make()(image))
    whole.save(tmp_path / "part.keras")
    again = keras.models.load_model(tmp_path / "part.keras")
    np.testing.assert_array_equal(
        again.predict(values, verbose=0), whole.predict(values, verbose=0)
    )


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_low_precision_stays_near_float32(part, policy):
    make, values, _ = part
    exact = make()
    expected = np.asarray(exact(values))
    keras.config.set_dtype_policy(policy)
    low = make()
    low.build(values.shape)
    low.set_weights(exact.get_weights())
    found = low(values)
    if not isinstance(low, layers.Normalize):
        assert found.dtype == policy.removeprefix("mixed_")
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, atol=0.05, rtol=0.05)


def test_gelu_is_exact():
    x = np.linspace(-6, 6, 101)
    expected = [v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x]
    np.testing.assert_allclose(layers.gelu(x.astype(np.float32)), expected, atol=1e-6)


def test_normalize_stays_float32_under_any_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    normalize = layers.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    image = np.arange(256 * 3, dtype=np.uint8).reshape(1, 16, 16, 3)
    expected = (image / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    found = normalize(image)
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_tokens_come_first_and_share_the_position_embedding():
    tokens = layers.Tokens(True)
    patches = np.ones((1, 3, 4), np.float32)
    tokens.build(patches.shape)
    cls, dist = np.full((1, 1, 4), 10.0), np.full((1, 1, 4), 20.0)
    positions = np.arange(20.0).reshape(1, 5, 4)
    tokens.set_weights([cls, dist, positions])
    expected = np.concatenate([cls, dist, patches], axis=1) + positions
    np.testing.assert_allclose(tokens(patches), expected)


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    drop = layers.DropPath(0.25)
    x = np.ones((4, 3, 2), np.float32)
    found = np.asarray(drop(x, keep=np.float32([1, 0, 1, 0]), training=True))
    np.testing.assert_allclose(found[:, 0, 0], [4 / 3, 0, 4 / 3, 0])
    assert np.array_equal(drop(x, keep=np.zeros(4, np.float32), training=False), x)
    # Without masks: by chance, a quarter of the images, each whole.
    many = np.asarray(drop(np.ones((4000, 2, 2), np.float32), training=True))
    np.testing.assert_allclose(np.unique(many), [0, 4 / 3], rtol=1e-6)
    assert (many == many[:, :1, :1]).all()
    assert many.mean() == pytest.approx(1.0, abs=0.04)


def test_fuse_layer_is_fuse():
    logits = {"cls": np.float32([[1, 2]]), "dist": np.float32([[4, 0]])}
    for fusion in model.FUSIONS:
        layer = model.Fuse.from_config(model.Fuse(fusion).get_config())
        np.testing.assert_array_equal(
            np.asarray(layer(logits)), np.asarray(model.fuse(logits, fusion))
        )
