"""When a run has diverged: on curves of the shapes that training has, with what goes wrong in it."""

import json
import math

import numpy as np
import pytest

from scaling.training.divergence import History, after, divergence

LN_V = math.log(50_257)


def curve(steps, noise=0.05, seed=0):
    """From ln V down a power law to 3 nats, through a warm-up of 1 %: the shape that all language models have."""
    t = np.arange(1, steps + 1)
    warm = np.minimum(1.0, t / max(1, steps // 100))
    loss = 3.0 + (LN_V - 3.0) * (1 + 40 * warm * t / steps) ** -0.8
    return loss + noise * np.random.default_rng(seed).standard_normal(steps)


def verdict(losses, steps=None):
    """(step, reason) of the first verdict on a run of these losses; None if there is none."""
    history = History(len(losses) if steps is None else steps)
    for loss in losses:
        history = after(history, float(loss))
        reason = divergence(history)
        if reason is not None:
            return history.done, reason
    return None


def with_spike(losses, at, length, height):
    """Up by so much at a step, and back over `length` steps as spikes do: at once up, slowly down."""
    losses = losses.copy()
    losses[at : at + length] += height * np.linspace(1, 0, length)
    return losses


@pytest.mark.parametrize("steps", [20, 200, 3_000])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.4])
def test_runs_that_learn_do_not_diverge(steps, noise):
    """A noise of 0.4 nats a batch is that of a few hundred tokens."""
    for seed in range(3):
        assert verdict(curve(steps, noise, seed)) is None


@pytest.mark.parametrize("steps", [200, 3_000])
def test_a_blow_up_to_the_loss_of_knowing_nothing(steps):
    losses = curve(steps)
    at = steps // 2
    losses[at:] = LN_V + 0.05 * np.random.default_rng(1).standard_normal(steps - at)
    step, reason = verdict(losses)
    history = History(steps)
    assert at < step <= at + history.window + history.patience
    for number in (f"step {step} of {steps}", f"median of {history.window} steps", f"for {history.patience} steps"):
        assert number in reason


def test_the_numbers_of_the_reason():
    """10 steps at 8 nats, then 2, then 6: it learned 6, lost 4, which is more than 3."""
    step, reason = verdict([8.0] * 10 + [2.0] * 80 + [6.0] * 110)
    assert step == 90 + 6 + 19  # the median of 10 moves with the sixth step, which is the first of 20
    assert reason == (
        "diverged by step 115 of 200: its loss (median of 10 steps) is 6 nats, 4 above its lowest 2, when it had "
        "learned 6 from its first 8, and has been above 5 for 20 steps"
    )


def test_how_much_is_lost_decides():
    """Of 6 nats learned half may be lost, and of 0.4 half a nat."""
    assert verdict([8.0] * 10 + [2.0] * 80 + [4.99] * 110) is None
    assert verdict([8.0] * 10 + [2.0] * 80 + [5.01] * 110) is not None
    assert verdict([8.0] * 10 + [7.6] * 80 + [8.09] * 110) is None
    assert verdict([8.0] * 10 + [7.6] * 80 + [8.11] * 110) is not None


@pytest.mark.parametrize("height", [1.0, 8.0, 1e6])
@pytest.mark.parametrize("steps", [200, 3_000])
def test_spikes_that_recover(steps, height):
    """Within a tenth of the run, from warm-up on, in its middle, and several in a row."""
    length = steps * 9 // 100
    for at in (2, steps // 100 + 1, steps // 20, steps // 2, steps * 8 // 10):
        assert verdict(with_spike(curve(steps), at, length, height)) is None
    losses = curve(steps)
    for at in range(steps // 5, steps * 8 // 10, steps // 6):
        losses = with_spike(losses, at, length, height)
    assert verdict(losses) is None


@pytest.mark.parametrize("steps", [200, 3_000])
def test_a_spike_at_the_start_hides_no_blow_up(steps):
    """In the first window, where a median is of it: what was learned is counted from the first step's loss."""
    losses = with_spike(curve(steps), 1, steps // 20, 100.0)
    losses[steps // 2 :] = LN_V
    assert verdict(losses) is not None


def test_one_step_of_any_height_is_no_divergence():
    losses = curve(200)
    for at in range(1, 200):
        spiked = losses.copy()
        spiked[at] = 1e30
        assert verdict(spiked) is None


def test_a_blow_up_shortly_before_the_end():
    """A tenth of the run cannot pass any more: a window (10 steps, seen after half of one) is enough at the last."""
    for bad, diverged in ((1, False), (6, False), (14, False), (15, True), (19, True)):
        losses = curve(200)
        losses[200 - bad :] = LN_V
        found = verdict(losses)
        assert (found is not None) == diverged, bad
        assert found is None or found[0] == 200


def test_a_slow_drift_up():
    """No step of it is a jump."""
    losses = curve(3_000)
    losses[1_000:] += np.linspace(0, 8, 2_000)
    step, _ = verdict(losses)
    assert 1_500 < step < 2_900  # half of what was learned, about 3.7, is lost 920 steps into it


def test_merely_bad_runs_are_data():
    """Learning rates that are too high or too low: flat, hardly learning, noisy, on a plateau, risen at once."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(1_000)
    flat = LN_V + 0.05 * noise
    assert verdict(flat) is None
    assert verdict(7.5 + 0.3 * noise) is None
    assert verdict(curve(1_000) * 0.2 + LN_V * 0.8) is None
    plateau = np.maximum(curve(1_000), 7.0)
    assert verdict(plateau + 0.3 * np.sin(np.arange(1_000) / 30)) is None
    risen = flat.copy()
    risen[:50] += np.linspace(0, 5, 50)
    risen[50:] += 5
    assert verdict(risen[:50], steps=1_000) is None  # before the first window is full there is nothing to judge by
    unsteady = curve(1_000) + 1.5 * (np.sin(np.arange(1_000) / 8) > 0.8)  # up by 1.5 nats a fifth of the time
    assert verdict(unsteady) is None


def test_a_rise_from_the_start_that_goes_on():
    """It never learned anything, so half a nat above its first window is enough."""
    step, reason = verdict(LN_V + np.linspace(0, 20, 1_000))
    assert step < 250
    assert "learned 0 from" in reason


@pytest.mark.parametrize("steps", [60, 200])
def test_a_restart_at_any_step_gives_the_same(steps):
    """Through JSON, as in a checkpoint; the decision, its step and its words."""
    losses = curve(steps, noise=0.3)
    losses[steps // 2 :] = LN_V + losses[steps // 2 :] / 7
    expected = verdict(losses)
    assert expected is not None
    history = History(steps)
    for done, loss in enumerate(losses, start=1):
        history = after(history, float(loss))
        restored = History.from_json(json.loads(json.dumps(history.to_json())))
        assert restored == history
        if done < expected[0]:
            assert divergence(history) is None
            for later in losses[done : expected[0]]:
                restored = after(restored, float(later))
            assert (restored.done, divergence(restored)) == expected


def test_its_state_is_small():
    history = History(10**6)
    for loss in np.random.default_rng(0).random(500):
        history = after(history, float(loss))
    assert len(history.last) == 100
    assert len(json.dumps(history.to_json())) < 2_500
