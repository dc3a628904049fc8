import numpy as np
import pytest
import tensorflow as tf

from deit_tf import config, resize


def _random(*shape):
    return np.random.RandomState(0).standard_normal(shape).astype(np.float32)


def test_position_embedding_is_resized_as_the_original(golden, golden_tensor):
    values = golden_tensor("resize.pos_embed", (1, 198, 192))
    found = resize.pos_embed(values, 2, 24**2)
    assert found.shape == (1, 578, 192)
    assert np.abs(found[..., :8] - golden["pos_embed/384"]).max() <= 1e-6
    np.testing.assert_array_equal(found[:, :2], values[:, :2])


@pytest.mark.parametrize(("before", "after"), [(14, 24), (24, 14), (4, 6), (1, 3), (48, 32)])
def test_antialias_is_tensorflows(before, after):
    matrix = resize.matrix(before, after, "antialias")
    image = _random(1, before, before, 3)
    expected = tf.image.resize(image, (after, after), "bicubic", antialias=True)
    found = np.einsum("ai,bj,nijc->nabc", matrix, matrix, image)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("before", "after"), [(14, 24), (24, 14), (4, 6)])
def test_bilinear_is_tensorflows(before, after):
    matrix = resize.matrix(before, after, "bilinear")
    image = _random(1, before, before, 3)
    expected = tf.image.resize(image, (after, after), "bilinear")
    found = np.einsum("ai,bj,nijc->nabc", matrix, matrix, image)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("method", resize.METHODS)
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_same_grid_and_tokens_stay(method, prefix):
    values = _random(1, prefix + 25, 4)
    np.testing.assert_array_equal(resize.pos_embed(values, prefix, 25, method), values)
    larger = resize.pos_embed(values, prefix, 64, method)
    assert larger.shape == (1, prefix + 64, 4)
    np.testing.assert_array_equal(larger[:, :prefix], values[:, :prefix])


def test_refuses_other_methods_and_no_squares():
    with pytest.raises(config.InputError, match="choose one of bicubic, antialias, bilinear"):
        resize.matrix(2, 3, "nearest")
    with pytest.raises(config.InputError, match="of 24 patches cannot become one of 36"):
        resize.pos_embed(_random(1, 25, 4), 1, 36)
