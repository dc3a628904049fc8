"""RandAugment's table against the golden one, and its laws against the stated ones."""

import json
import pathlib

import numpy as np
import pytest
from scipy import stats

from deit_tf import draws, policies
from deit_tf.config import InputError

COUNT = 30_000
SMALLEST_P = 1e-3
GOLDEN = json.loads((pathlib.Path(__file__).parent / "data" / "randaugment.json").read_text())
PAPER = "rand-m9-mstd0.5-inc1"


def _ours(name):
    """Our name of an operation of timm's."""
    return name.replace("Increasing", "").replace("Rel", "")


def _drawn(text, count=COUNT):
    """Names [count, n] and arguments of what a policy draws."""
    policy = policies.parse(text)
    numbers = draws.uniform(draws.key(0, 0, "auto_augment"), range(count), policy.numbers)
    operations, arguments = policy.draw(numbers)
    assert operations.dtype == np.int32
    assert arguments.dtype == np.float32
    return np.array(policies.OPERATIONS)[operations], arguments


def test_the_papers_operations_are_all_there():
    assert [_ours(name) for name in GOLDEN["ops"]] == list(policies.parse(PAPER).weights)


@pytest.mark.parametrize("name", GOLDEN["levels"])
@pytest.mark.parametrize("level", [5.0, 9.0, 10.0])
def test_arguments_are_the_golden_ones(name, level):
    expected = GOLDEN["levels"][name][str(level)]
    found = {float(policies.argument(_ours(name), level, sign, True)) for sign in (-1.0, 1.0)}
    np.testing.assert_allclose(sorted(found), expected or [0.0], rtol=1e-12)


def test_without_inc_some_operations_weaken_with_the_level():
    def at(name, level, sign=1.0):
        return float(policies.argument(name, level, sign, False))

    assert [at("Posterize", level) for level in (0, 5, 10)] == [0, 2, 4]
    assert [at("Solarize", level) for level in (0, 5, 10)] == [0, 128, 256]
    np.testing.assert_allclose([at("Color", level, -1.0) for level in (0, 5, 10)], [0.1, 1.0, 1.9])


def test_each_operation_comes_equally_often_with_replacement():
    names, _ = _drawn("rand-m9-mstd0.5-inc1-p1")
    for slot in names.T:
        counts = [np.sum(slot == name) for name in policies.OPERATIONS[1:16]]
        assert sum(counts) == COUNT
        assert stats.chisquare(counts).pvalue > SMALLEST_P
    twice = int(np.sum(names[:, 0] == names[:, 1]))
    assert stats.binomtest(twice, COUNT, 1 / 15).pvalue > SMALLEST_P


def test_each_drawn_operation_fires_half_of_the_time_on_its_own():
    names, _ = _drawn(PAPER)
    fired = (names != "Nothing").sum(-1)
    counts = np.bincount(fired, minlength=3)
    assert stats.chisquare(counts, np.array([0.25, 0.5, 0.25]) * COUNT).pvalue > SMALLEST_P


def test_levels_are_normal_cut_off_at_the_ends_and_anew_each_time():
    names, arguments = _drawn("rand-m9-mstd0.5-inc1-p1")
    level = np.abs(arguments.astype(np.float64)) / 3.0
    rotated = names == "Rotate"
    levels = level[rotated]
    capped = levels > 10 - 1e-5
    assert stats.binomtest(int(capped.sum()), len(levels), stats.norm.sf(2.0)).pvalue > SMALLEST_P
    law = stats.truncnorm(-18, 2, loc=9, scale=0.5)
    assert stats.kstest(levels[~capped], law.cdf).pvalue > SMALLEST_P
    both = rotated.all(-1)
    assert abs(np.corrcoef(level[both].T)[0, 1]) < 0.25  # some 130 images
    assert stats.binomtest(int((arguments[rotated] > 0).sum()), len(levels)).pvalue > SMALLEST_P


def test_posterize_keeps_one_bit_two_or_none():
    names, arguments = _drawn("rand-m9-mstd0.5-inc1-p1")
    bits = arguments[names == "Posterize"]
    share = [np.mean(bits == b) for b in (0, 1, 2)]
    law = [stats.norm.sf(2.0), stats.norm.sf(-3.0) - stats.norm.sf(2.0), stats.norm.sf(3.0)]
    np.testing.assert_allclose(share, law, atol=0.006)


def test_a_level_without_deviation_is_always_the_same():
    names, arguments = _drawn("rand-m5-p1-inc1", 500)
    np.testing.assert_allclose(np.abs(arguments[names == "Rotate"]), 15.0)


def test_a_large_deviation_means_uniform_levels():
    names, arguments = _drawn("rand-m8-mstd101-p1-inc1")
    levels = np.abs(arguments[names == "Rotate"].astype(np.float64)) / 3.0
    assert stats.kstest(levels, stats.uniform(0, 8).cdf).pvalue > SMALLEST_P
    names, arguments = _drawn("rand-m20-mstd101-p1-inc1")
    levels = np.abs(arguments[names == "Rotate"]) / 3.0
    assert levels.max() == pytest.approx(10)  # cut off as the others
    assert np.mean(levels > 9.99) == pytest.approx(0.5, abs=0.05)


def test_mmax_lets_levels_above_10():
    names, arguments = _drawn("rand-m12-mmax15-p1-inc1", 500)
    np.testing.assert_allclose(np.abs(arguments[names == "Rotate"]), 36.0)
    assert (arguments[names == "Posterize"] == 0).all()
    assert (arguments[names == "Solarize"] == 0).all()


def test_n_is_the_number_of_operations():
    assert _drawn("rand-m9-n3", 10)[0].shape == (10, 3)
    assert _drawn("rand-n16", 10)[0].shape == (10, 16)
    assert _drawn("rand-n4-t3a", 10)[0].shape == (10, 4)


def test_weighted_sets_are_drawn_without_replacement():
    names, _ = _drawn("rand-m9-n2-p1-tweights")
    assert (names[:, 0] != names[:, 1]).all()
    weights = np.array(list(policies.parse("rand-tweights").weights.values()))
    share = weights / weights.sum()
    first, second = (
        [np.sum(slot == name) for name in policies.parse("rand-tweights").weights]
        for slot in names.T
    )
    assert stats.chisquare(first, share * COUNT).pvalue > SMALLEST_P
    # The second is drawn among those that are left.
    left = share[:, None] * share / (1 - share[:, None])
    np.fill_diagonal(left, 0)
    assert stats.chisquare(second, left.sum(0) * COUNT).pvalue > SMALLEST_P


@pytest.mark.parametrize(("text", "operations"), [("rand-t3a", 3), ("rand-m6-t3aw-inc1", 14)])
def test_other_sets_of_timm(text, operations):
    policy = policies.parse(text)
    assert len(policy.weights) == operations
    assert policy.increasing


def test_three_augment_does_one_of_three_to_every_image():
    names, arguments = _drawn("3a")
    assert names.shape == (COUNT, 1)
    three = ("Desaturate", "Solarize", "GaussianBlur")
    counts = [np.sum(names == name) for name in three]
    assert sum(counts) == COUNT
    assert stats.chisquare(counts).pvalue > SMALLEST_P
    assert set(arguments[names == "Desaturate"]) == {1.0}
    assert set(arguments[names == "Solarize"]) == {128.0}
    radius = arguments[names == "GaussianBlur"]
    assert stats.kstest(radius, stats.uniform(0.1, 1.9).cdf).pvalue > SMALLEST_P


def test_color_jitter_is_three_changes_in_any_order():
    numbers = draws.uniform(draws.key(0, 0, "color_jitter"), range(COUNT), 6)
    operations, factors = policies.ColorJitter(0.3).draw(numbers)
    names = np.array(policies.OPERATIONS)[operations]
    assert (np.sort(names) == sorted(["Brightness", "Contrast", "Color"])).all()
    _, counts = np.unique(["".join(row) for row in names], return_counts=True)
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > SMALLEST_P
    for column in factors.T.astype(np.float64):
        assert stats.kstest(column, stats.uniform(0.7, 0.6).cdf).pvalue > SMALLEST_P


def test_no_string_is_no_policy():
    assert policies.parse("") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("augmix-m3", "auto_augment is 'augmix-m3'; give rand-m9-mstd0.5-inc1"),
        ("rand-m9-x2", "whose 'x2' is not known"),
        ("rand-m9-mstd", "whose 'mstd' is not known"),
        ("rand-m9.5", "whose m must be a whole number"),
        ("rand-m9-m8", "which says one thing twice"),
        ("rand-p1.5", "whose p must be between 0 and 1"),
        ("rand-n0", "whose n must be at least 1"),
        ("rand-n16-tweights", "whose n must be at most 15: none repeats"),
        ("rand-", "whose '' is not known"),
    ],
)
def test_refuses_other_strings(text, words):
    with pytest.raises(InputError) as caught:
        policies.parse(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
