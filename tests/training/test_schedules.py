import numpy as np
import pytest

from scaling.runs import DataSpec, ModelShape, OptimizerSpec, Run, ScheduleSpec
from scaling.training.schedules import learning_rates

PEAK, STEPS = 0.5, 100


def rates(schedule, steps=STEPS):
    run = Run(ModelShape(8, 1, 1, 8, 4), DataSpec("store", 4, 2), 1, steps, OptimizerSpec(PEAK), schedule)
    return learning_rates(run)


SCHEDULES = [ScheduleSpec("cosine", 10), ScheduleSpec("wsd", 10, 20), ScheduleSpec("cosine", 1, final_fraction=0.0)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_endpoints(schedule):
    lr = rates(schedule)
    assert (lr.shape, lr.dtype) == ((STEPS,), np.float32)
    assert lr[0] == np.float32(PEAK / schedule.warmup_steps)
    assert lr.max() == lr[schedule.warmup_steps - 1] == PEAK
    assert lr[-1] == np.float32(PEAK * schedule.final_fraction)
    assert np.all(lr >= 0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_linear(schedule):
    warm = rates(schedule)[: schedule.warmup_steps]
    np.testing.assert_allclose(warm, PEAK * np.arange(1, len(warm) + 1) / len(warm), rtol=1e-6)  # fp32


def test_cosine_is_half_a_wave():
    """Loshchilov & Hutter 2017, eq. 5: half way down at its middle, a quarter of the way at a third."""
    lr = rates(ScheduleSpec("cosine", 10))
    fall = (PEAK - lr[9:]) / (0.9 * PEAK)
    np.testing.assert_allclose(fall[[0, 30, 45, 60, 90]], [0, 0.25, 0.5, 0.75, 1], atol=1e-6)  # fp32
    assert np.all(np.diff(lr[9:]) < 0)


def test_wsd_stays_and_then_falls_linearly():
    lr = rates(ScheduleSpec("wsd", 10, 20))
    assert np.all(lr[9:80] == np.float32(PEAK))
    np.testing.assert_allclose(np.diff(lr[79:]), -0.9 * PEAK / 20, rtol=1e-5)  # differences of fp32 numbers


def test_a_stable_part_does_not_depend_on_the_length_of_the_run():
    """So that one trunk serves several lengths."""
    short, long = rates(ScheduleSpec("wsd", 10, 20)), rates(ScheduleSpec("wsd", 10, 20), steps=200)
    assert np.array_equal(short[:80], long[:80])


def test_no_warm_up_begins_below_the_peak_by_one_step_of_decay():
    lr = rates(ScheduleSpec("cosine", 0))
    assert PEAK * 0.999 < lr[0] < PEAK
    assert lr[-1] == np.float32(0.1 * PEAK)


def test_a_run_of_one_step():
    assert rates(ScheduleSpec("cosine", 0), steps=1).tolist() == [np.float32(0.1 * PEAK)]
