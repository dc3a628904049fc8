import keras
import numpy as np
import pytest

from deit_tf import schedule


def _rates(steps, **changes):
    facts = {
        "peak": 1e-3,
        "warmup_lr": 1e-6,
        "min_lr": 1e-5,
        "warmup_steps": 10,
        "total_steps": 100,
        **changes,
    }
    rate = schedule.WarmupCosine(**facts)
    return np.array([float(rate(step)) for step in steps])


def test_scales_with_the_batch():
    assert schedule.peak_lr(5e-4, 1024) == 1e-3


def test_warms_up_in_a_line_and_cools_down_along_a_cosine():
    np.testing.assert_allclose(
        _rates([0, 5, 10, 55, 100]), [1e-6, 5.005e-4, 1e-3, 5.05e-4, 1e-5], rtol=1e-5
    )
    rates = _rates(range(101))
    assert (np.diff(rates[:11]) > 0).all()
    assert (np.diff(rates[10:]) < 0).all()


def test_stays_at_the_end():
    np.testing.assert_allclose(_rates([100, 150]), 1e-5, rtol=1e-4)


def test_short_run_stays_on_the_line():
    rates = _rates([0, 2, 4], total_steps=4)
    np.testing.assert_allclose(rates, [1e-6, 2.008e-4, 4.006e-4], rtol=1e-5)


def test_without_warmup_starts_at_the_peak():
    assert _rates([0], warmup_steps=0)[0] == pytest.approx(1e-3)
    assert np.isfinite(_rates([0, 1], warmup_steps=0, total_steps=1)).all()


def test_ladder_is_the_released_codes():
    # What the released code logged at batch 1024: epochs 0 to 6, and the last.
    steps = 1251
    rate = schedule.EpochLadder(1e-3, 1e-6, 1e-5, 5 * steps, 300 * steps, steps)
    expected = [1e-6, 1e-6, 2.008e-4, 4.006e-4, 6.004e-4, 8.002e-4, 9.993e-4]
    for epoch, wanted in [*enumerate(expected), (299, 1.011e-5)]:
        for step in (epoch * steps, (epoch + 1) * steps - 1):
            assert float(rate(step)) == pytest.approx(wanted, rel=2e-4), (epoch, step)
    # A long run: beyond 2^24 steps float32 no longer tells one from the next.
    rate = schedule.EpochLadder(1e-3, 0.0, 0.0, 1000 * 20_018, 1000 * 20_018, 20_018)
    assert float(rate(900 * 20_018 - 1)) == pytest.approx(0.898e-3, rel=1e-6)
    assert float(rate(900 * 20_018)) == pytest.approx(0.899e-3, rel=1e-6)


def test_constant_stays_at_the_peak_for_a_run_of_any_length():
    for total in (100, 1000):
        rate = schedule.WarmupConstant(1e-3, 1e-6, 1e-5, 10, total)
        np.testing.assert_allclose(
            [float(rate(step)) for step in (0, 5, 10, 50, 5000)],
            [1e-6, 5.005e-4, 1e-3, 1e-3, 1e-3],
            rtol=1e-5,
        )


def test_ladder_of_epochs_of_one_step_is_the_line_a_step_late():
    rate = schedule.EpochLadder(1e-3, 1e-6, 1e-5, 10, 100)
    line = schedule.WarmupConstant(1e-3, 1e-6, 1e-5, 10, 100)
    found = [float(rate(step)) for step in range(11)]
    np.testing.assert_allclose(found, [float(line(max(step - 1, 0))) for step in range(11)])


@pytest.mark.parametrize("kind", schedule.KINDS)
def test_survives_serialisation(kind):
    rate = schedule.KINDS[kind](1e-3, 1e-6, 1e-5, 10, 100, 5)
    stored = keras.optimizers.schedules.serialize(rate)
    # By this name other programs of ours find it, too.
    assert stored["registered_name"] == f"deit_tf>{type(rate).__name__}"
    again = keras.optimizers.schedules.deserialize(stored)
    assert float(again(37)) == float(rate(37))
