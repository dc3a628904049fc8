"""Streams, and the laws of what is drawn: against the stated ones, at fixed seeds."""

import numpy as np
import pytest
from scipy import stats

from deit_tf import draws

COUNT = 20_000
SMALLEST_P = 1e-3  # fixed seeds: a law that holds stays above it for ever


def _uniform(name, numbers, count=COUNT):
    return draws.uniform(draws.key(0, 0, name), range(count), numbers)


def _assert_uniform(values, low=0.0, high=1.0):
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > SMALLEST_P


def test_numbers_are_uniform_and_never_change():
    numbers = _uniform("crop", 5)
    assert numbers.shape == (COUNT, 5)
    for column in numbers.T:
        _assert_uniform(column)
    assert abs(np.corrcoef(numbers.T)[~np.eye(5, dtype=bool)]).max() < 0.03
    # For ever: a run that is resumed next year must see the same pixels.
    np.testing.assert_array_equal(
        np.round(draws.uniform(draws.key(1, 2, "crop"), range(3, 4), 3), 12),
        [[0.224925467219, 0.076044346712, 0.910537648397]],
    )


def test_a_position_has_its_numbers_wherever_one_enters():
    key = draws.key(1, 2, "crop")
    whole = draws.uniform(key, range(100), 7)
    np.testing.assert_array_equal(draws.uniform(key, range(40, 60), 7), whole[40:60])
    assert len(np.unique(whole)) == whole.size  # nothing comes twice
    far = draws.uniform(key, range(10**12, 10**12 + 1), 7)
    assert not np.isin(far, whole).any()


def test_streams_differ_by_seed_epoch_and_name():
    keys = {draws.key(*facts) for facts in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]}
    assert len(keys) == 4
    assert len({draws.uniform(key, range(1), 1)[0, 0] for key in keys}) == 4


def test_crops_follow_their_law():
    sides, corner = draws.crop(_uniform("crop", draws.CROP_NUMBERS), 0.08, 4 / 3)
    assert sides.shape == (COUNT, 10, 2)
    for tries in (sides[:, 0], sides[:, 9]):
        height, width = tries.astype(np.float64).T
        _assert_uniform(height * width, 0.08, 1.0)
        _assert_uniform(np.log(width / height), -np.log(4 / 3), np.log(4 / 3))
    _assert_uniform(corner[:, 0])
    _assert_uniform(corner[:, 1])


def test_erasing_follows_its_law():
    size = 2240  # so large that whole pixels do not blur the law
    boxes = draws.erasing(_uniform("erasing", draws.ERASING_NUMBERS), 0.25, size)
    top, left, height, width = boxes.T
    erased = height > 0
    assert stats.binomtest(int(erased.sum()), COUNT, 0.25).pvalue > SMALLEST_P
    assert (boxes[~erased] == 0).all()
    assert (top + height <= size).all()
    assert (left + width <= size).all()
    area, aspect = height * width / size**2, np.log(np.maximum(height, 1) / np.maximum(width, 1))
    # Boxes below 0.3 of the area fit at every aspect: there both laws are bare.
    small = erased & (area < 0.3)
    area, aspect = area[small], aspect[small]
    _assert_uniform(area, 0.02, 0.3)
    _assert_uniform(aspect, np.log(0.3), -np.log(0.3))
    _assert_uniform((top[small] + 0.5) / (size - height[small] + 1))
    _assert_uniform((left[small] + 0.5) / (size - width[small] + 1))
    assert (height * width / size**2).max() <= 1 / 3 + 1e-3


def test_nothing_is_erased_at_rate_0_and_all_at_rate_1():
    numbers = _uniform("erasing", draws.ERASING_NUMBERS, 500)
    assert not draws.erasing(numbers, 0.0, 224).any()
    assert (draws.erasing(numbers, 1.0, 224)[:, 2] > 0).all()


def test_keep_masks_fall_at_their_rates():
    masks = draws.keep(_uniform("keep", 6), (0.0, 0.2, 0.4))
    assert masks.shape == (COUNT, 3, 2)
    assert masks.dtype == np.float32
    assert (masks[:, 0] == 1).all()
    for block, rate in ((1, 0.2), (2, 0.4)):
        for branch in (0, 1):
            kept = int(masks[:, block, branch].sum())
            assert stats.binomtest(kept, COUNT, 1 - rate).pvalue > SMALLEST_P
    both = int(masks[:, 2].prod(-1).sum())  # the two branches are independent
    assert stats.binomtest(both, COUNT, 0.36).pvalue > SMALLEST_P


def _mix(size=2240, mixup=0.8, cutmix=1.0, rate=1.0, cutmix_rate=0.5):
    numbers = _uniform("mix", draws.MIX_NUMBERS)
    own, box = draws.mix(numbers, size, mixup, cutmix, rate, cutmix_rate)
    return own.astype(np.float64), box, (box[:, 2:] > box[:, :2]).all(-1)


def test_mixup_draws_beta():
    own, box, _ = _mix(cutmix=0.0)
    assert not box.any()
    assert stats.kstest(own, stats.beta(0.8, 0.8).cdf).pvalue > SMALLEST_P


def test_cutmix_keeps_what_its_box_leaves():
    own, box, cut = _mix(mixup=0.0)
    top, left, bottom, right = box.T
    np.testing.assert_allclose(own, 1 - (bottom - top) * (right - left) / 2240**2, rtol=1e-6)
    assert cut.mean() > 0.99
    # Boxes that the frame does not cut show the drawn λ, which is uniform. It cuts none about the
    # middle with λ > 0.4, where the side is below 0.78.
    whole = (top > 0) & (left > 0) & (bottom < 2240) & (right < 2240)
    centered = np.abs([(top + bottom) / 2240 - 1, (left + right) / 2240 - 1]).max(0) < 0.2
    drawn = _uniform("mix", draws.MIX_NUMBERS)[:, 2]  # of which Beta(1, 1) makes λ itself
    for side in (bottom - top, right - left):
        np.testing.assert_array_equal(side[whole], np.floor(2240 * np.sqrt(1 - drawn[whole])))
    shown = own[whole & centered & (own > 0.4)]
    assert len(shown) > 300
    _assert_uniform(shown, 0.4, 1.0)


def test_cutmix_centres_are_uniform():
    own, box, _ = _mix(mixup=0.0)
    small = own > 0.99  # the frame cuts few of these
    centre = (box[small, 0] + box[small, 2]) / 2 / 2240
    _assert_uniform(centre[(centre > 0.1) & (centre < 0.9)], 0.1, 0.9)


def test_cutmix_comes_as_often_as_asked_and_mixing_too():
    own, _, cut = _mix(cutmix_rate=0.3, rate=0.6)
    untouched = own == 1.0
    assert stats.binomtest(int(untouched.sum()), COUNT, 0.4).pvalue > SMALLEST_P
    assert cut[~untouched].mean() == pytest.approx(0.3, abs=0.015)


@pytest.mark.parametrize("alpha", [0.4, 1.0, 3.0])
def test_beta_follows_its_law(alpha):
    own, _, _ = _mix(mixup=alpha, cutmix=0.0)
    assert stats.kstest(own, stats.beta(alpha, alpha).cdf).pvalue > SMALLEST_P
