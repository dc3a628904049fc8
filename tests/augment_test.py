import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from deit_tf import augment

SMOOTH = np.asarray(
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (4, 4, 3)).astype(np.uint8)).resize(
        (24, 24), Image.Resampling.BICUBIC
    ),
    np.float32,
)


def test_flip_mirrors_left_to_right_at_its_rate():
    image = tf.constant(SMOOTH)
    np.testing.assert_array_equal(augment.random_flip(image, [1, 2], 1.0), SMOOTH[:, ::-1])
    np.testing.assert_array_equal(augment.random_flip(image, [1, 2], 0.0), SMOOTH)
    one = tf.constant([[[0.0], [1.0]]])
    flip = tf.function(lambda i: augment.random_flip(one, [5, i], 0.3)[0, 0, 0])
    assert np.mean([flip(tf.constant(i)) for i in range(2000)]) == pytest.approx(0.3, abs=0.04)


def test_nothing_to_rotate_or_shift_changes_nothing():
    found = augment.random_rotate_shift(tf.constant(SMOOTH), [1, 2], 0.0, 0.0)
    np.testing.assert_allclose(found, SMOOTH, atol=1e-3)


def _draws(seed):
    """The three numbers in -1–1 that a seed stands for."""
    return tf.random.stateless_uniform((3,), seed, -1.0, 1.0).numpy()


@pytest.mark.parametrize("seed", [[1, 2], [3, 4]])
def test_rotates_as_pillow(seed):
    found = augment.random_rotate_shift(tf.constant(SMOOTH), seed, 30.0, 0.0).numpy()
    image = Image.fromarray(SMOOTH.astype(np.uint8))
    expected = np.asarray(image.rotate(_draws(seed)[0] * 30, Image.Resampling.BILINEAR), np.float32)
    inner = slice(5, -5)  # outside, Pillow fills with black and we repeat the edge
    assert np.abs(found - expected)[inner, inner].mean() < 1.0


@pytest.mark.parametrize("seed", [[1, 2], [3, 4], [5, 6]])
def test_shifts_right_and_down(seed):
    _, right, down = _draws(seed)
    found = augment.random_rotate_shift(tf.constant(SMOOTH), seed, 0.0, 0.25).numpy()
    ys, xs = np.mgrid[:24, :24]
    y = np.clip(ys - down * 6, 0, 23)
    x = np.clip(xs - right * 6, 0, 23)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    bottom, far = np.minimum(top + 1, 23), np.minimum(left + 1, 23)
    v, h = (y - top)[..., None], (x - left)[..., None]
    expected = (1 - v) * ((1 - h) * SMOOTH[top, left] + h * SMOOTH[top, far]) + v * (
        (1 - h) * SMOOTH[bottom, left] + h * SMOOTH[bottom, far]
    )
    np.testing.assert_allclose(found, expected, atol=0.05)
