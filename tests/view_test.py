import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from deit_tf import config, draws, view


@pytest.fixture
def whole(digits_config):
    """The whole recipe at 32 pixels."""
    return dataclasses.replace(digits_config(), augment=config.AugmentConfig(color_jitter=0.2))


def _png(pixels):
    return tf.io.encode_png(np.asarray(pixels, np.uint8))


def test_all_that_is_asked_for_is_drawn(whole):
    found = view.drawn(whole, 0, range(10, 14))
    assert {name: (value.shape, value.dtype.name) for name, value in found.items()} == {
        "sides": ((4, 10, 2), "float32"),
        "corner": ((4, 2), "float32"),
        "flipped": ((4,), "bool"),
        "operations": ((4, 5), "int32"),
        "arguments": ((4, 5), "float32"),
        "erased": ((4, 4), "int32"),
        "noise": ((4, 2), "int64"),
        "keep": ((4, 3, 2), "float32"),
        "own": ((4,), "float32"),
        "box": ((4, 4), "int32"),
    }


def test_nothing_else_is(digits_config, plain):
    network = config.network("regnety_tiny", num_classes=10)
    bare = dataclasses.replace(
        digits_config(), network=network, augment=config.AugmentConfig(**plain)
    )
    assert set(view.drawn(bare, 0, range(2))) == {"sides", "corner"}


def test_draws_belong_to_their_position(whole):
    many = view.drawn(whole, 1, range(200))
    some = view.drawn(whole, 1, range(70, 75))
    for name, value in some.items():
        np.testing.assert_array_equal(value, many[name][70:75])


def test_one_draw_does_not_change_another(whole, plain):
    bare = dataclasses.replace(whole, augment=config.AugmentConfig(**{**plain, "flip_rate": 0.5}))
    some, all_of_it = view.drawn(bare, 0, range(8)), view.drawn(whole, 0, range(8))
    for name in ("sides", "corner", "flipped", "keep"):
        np.testing.assert_array_equal(some[name], all_of_it[name])


def test_flips_half(whole):
    flipped = view.drawn(whole, 0, range(20_000))["flipped"]
    assert stats.binomtest(int(flipped.sum()), len(flipped), 0.5).pvalue > 1e-3


def test_rotations_and_shifts_are_uniform_to_their_bounds(whole):
    facts = dataclasses.replace(whole.augment, rotation_degrees=20.0, shift_fraction=0.25)
    found = view.drawn(dataclasses.replace(whole, augment=facts), 0, range(20_000))
    for column, largest in zip(found["rotate_shift"].T, (20.0, 8.0, 8.0), strict=True):
        law = stats.uniform(-largest, 2 * largest)
        assert stats.kstest(column.astype(np.float64), law.cdf).pvalue > 1e-3


def test_crop_comes_first_then_flip_then_policy_then_noise(whole):
    """Each step shown by what the next one does to it."""
    ramp = np.broadcast_to(np.arange(32)[None, :, None] * 4, (32, 32, 3))
    found = {name: value[0] for name, value in view.drawn(whole, 0, range(1)).items()}
    found |= {
        "sides": np.ones((10, 2), np.float32),
        "corner": np.zeros(2, np.float32),
        "flipped": True,
        "operations": np.array([4, 0, 0, 0, 0], np.int32),  # rotate, which flipping would mirror
        "arguments": np.array([90.0, 0, 0, 0, 0], np.float32),
        "erased": np.array([0, 0, 4, 32], np.int32),
    }
    found = {name: tf.constant(value) for name, value in found.items()}
    image = view.make(_png(ramp), tf.constant(3), found, whole)["image"].numpy()
    expected = np.rot90(ramp[:, ::-1])
    np.testing.assert_allclose(image[4:], expected[4:], atol=1)
    assert image[:4].std() > 30  # noise is not augmented, but augments


def test_labels_are_smoothed_and_draws_travel_on(whole):
    found = {name: tf.constant(v[0]) for name, v in view.drawn(whole, 0, range(1)).items()}
    example = view.make(_png(np.zeros((9, 9, 3))), tf.constant(3), found, whole)
    assert set(example) == {"image", "label", "keep", "own", "box"}
    np.testing.assert_allclose(example["label"][3], 0.91, rtol=1e-6)
    np.testing.assert_array_equal(example["keep"], found["keep"])


def test_the_fill_is_the_mean_colour(whole):
    found = {name: v[0] for name, v in view.drawn(whole, 0, range(1)).items()}
    found["operations"] = np.array([14, 0, 0, 0, 0], np.int32)  # TranslateX
    found["arguments"] = np.array([1.0, 0, 0, 0, 0], np.float32)
    found["erased"] = np.zeros(4, np.int32)
    found = {name: tf.constant(value) for name, value in found.items()}
    image = view.make(_png(np.zeros((9, 9, 3))), tf.constant(0), found, whole)["image"]
    np.testing.assert_array_equal(image, np.broadcast_to([124, 116, 104], (32, 32, 3)))


def test_noise_differs_by_position_and_epoch(whole):
    seeds = [view.drawn(whole, epoch, range(3))["noise"] for epoch in (0, 1)]
    assert len({tuple(seed) for seed in np.concatenate(seeds)}) == 6
    assert draws.key(0, 0, "noise") % (2**63 - 1) == seeds[0][0, 0]
