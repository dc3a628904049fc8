import numpy as np
import pytest

from deit_tf import mixing


def test_smoothing_is_the_published():
    labels = mixing.smooth_labels([3, 0], 1000, 0.1).numpy()
    assert labels.shape == (2, 1000)
    np.testing.assert_allclose(labels[0, 3], 0.9001, rtol=1e-6)
    np.testing.assert_allclose(labels[0, 4], 0.0001, rtol=1e-6)
    np.testing.assert_allclose(labels.sum(-1), 1.0, rtol=1e-5)


def test_no_smoothing_is_one_hot():
    np.testing.assert_array_equal(mixing.smooth_labels([1], 3, 0.0), [[0, 1, 0]])


@pytest.fixture
def batch():
    rng = np.random.RandomState(0)
    images = rng.uniform(-20, 280, (6, 8, 8, 3)).astype(np.float32)  # erased pixels go beyond
    labels = mixing.smooth_labels(rng.randint(0, 5, 6), 5, 0.1).numpy()
    return images, labels


def _mix(batch, own, box):
    images, labels = mixing.mix(*batch, np.float32(own), np.int32(box))
    return images.numpy(), labels.numpy()


def test_mixup_is_a_weighted_mean_with_the_partner(batch):
    images, labels = batch
    found = _mix(batch, [0.3] * 6, np.zeros((6, 4)))
    np.testing.assert_allclose(found[0], 0.3 * images + 0.7 * images[::-1], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found[1], 0.3 * labels + 0.7 * labels[::-1], rtol=1e-5)
    np.testing.assert_allclose(found[1].sum(-1), 1.0, rtol=1e-5)


def test_cutmix_fills_the_box_from_the_partner(batch):
    images, labels = batch
    own = 1 - 3 * 5 / 64
    found = _mix(batch, [own] * 6, [[2, 1, 5, 6]] * 6)
    expected = images.copy()
    expected[:, 2:5, 1:6] = images[::-1, 2:5, 1:6]
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_allclose(found[1], own * labels + (1 - own) * labels[::-1], rtol=1e-5)


@pytest.mark.parametrize("box", [[3, 1, 3, 6], [2, 4, 5, 4], [5, 0, 2, 8]])
def test_a_box_without_pixels_is_empty_however_long(batch, box):
    found = _mix(batch, [0.3] * 6, [box] * 6)
    expected = _mix(batch, [0.3] * 6, np.zeros((6, 4)))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_each_image_follows_its_own_draw(batch):
    images, labels = batch
    box = np.zeros((6, 4))
    box[1] = [0, 0, 4, 8]
    own = [0.25, 0.5, 1.0, 1.0, 1.0, 0.75]
    found, mixed = _mix(batch, own, box)
    np.testing.assert_allclose(found[0], 0.25 * images[0] + 0.75 * images[5], rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(found[1, :4], images[4, :4])
    np.testing.assert_array_equal(found[1, 4:], images[1, 4:])
    np.testing.assert_array_equal(found[2:5], images[2:5])
    np.testing.assert_allclose(found[5], 0.75 * images[5] + 0.25 * images[0], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(mixed[1], 0.5 * labels[1] + 0.5 * labels[4], rtol=1e-5)
    np.testing.assert_allclose(mixed[2:5], labels[2:5], rtol=1e-6)


def test_the_whole_image_may_come_from_the_partner(batch):
    found, mixed = _mix(batch, [0.0] * 6, [[0, 0, 8, 8]] * 6)
    np.testing.assert_array_equal(found, batch[0][::-1])
    np.testing.assert_allclose(mixed, batch[1][::-1], rtol=1e-6)
