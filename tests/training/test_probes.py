"""Probes: replicas of one run that train side by side are each what its own run is, within rounding."""

import dataclasses

import jax
import numpy as np
import pytest

from scaling.data.batches import batch
from scaling.errors import InputError, StoppedError
from scaling.parallel import memory
from scaling.parallel.mesh import make_mesh
from scaling.runs import Placement
from scaling.training import probes
from scaling.training.loop import train
from scaling.training.probes import most_together, probe, replica, together, train_together
from scaling.training.schedules import learning_rates
from scaling.training.step import make_program

pytestmark = pytest.mark.usefixtures("quick_compilation")

RATES, SEEDS = (0.003, 0.01), (0, 3)
# Sums of products in another order, over 20 steps of Adam with a large eps, so that an update is a smooth function of
# its gradient: losses of 5 nats, of which one rounding is 5e-7.
ROUNDING = 2e-6
DIVERGES = 1e30  # the first update overflows fp32


@pytest.fixture(scope="module")
def program(run):
    return make_program(run, Placement(), make_mesh(Placement()))


@pytest.fixture(scope="module")
def runs(run):
    return [replica(run, rate, seed) for seed in SEEDS for rate in RATES]


@pytest.fixture(scope="module")
def alone(program, runs, stores):
    """The training losses of each run by its own program, as scaling.training.trainer takes its steps."""
    losses = []
    for run in runs:
        state = program.init(jax.random.key(run.seed))
        for k, lr in enumerate(learning_rates(run)):
            state, metrics = program.step(state, batch(stores, run.data, run.batch_size, k), lr)
            losses.append(float(metrics["loss"]))
    return np.array(losses).reshape(len(runs), -1)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_each_replica_has_the_losses_of_its_own_run(program, runs, stores, alone, devices):
    """Four on one device, two on each of two, and each alone on one of four."""
    devices = jax.devices()[:devices]
    trained = train_together(program, together(program, devices), runs, stores, devices)
    np.testing.assert_allclose(trained.losses_PxT, alone, rtol=ROUNDING)
    assert trained.reason_P == ("",) * 4
    apart = [np.abs(a - b).max() for i, a in enumerate(alone) for b in alone[:i]]
    assert min(apart) > 1e-3  # so that mixed up replicas would be seen


def test_a_replica_that_diverges_leaves_the_others_to_the_bit(program, run, runs, stores):
    devices = jax.devices()[:2]
    step = together(program, devices)
    good = train_together(program, step, runs, stores, devices)
    bad = train_together(program, step, [runs[0], replica(run, DIVERGES, 0), *runs[2:]], stores, devices)
    others = [0, 2, 3]
    assert np.array_equal(bad.losses_PxT[others], good.losses_PxT[others])
    for x, y in zip(jax.tree.leaves(bad.state), jax.tree.leaves(good.state), strict=True):
        assert np.array_equal(np.asarray(x)[others], np.asarray(y)[others])
    assert [bool(reason) for reason in bad.reason_P] == [False, True, False, False]
    assert bad.reason_P[1].startswith("step 2 of 20: grad_norm nan, loss")
    assert np.isnan(bad.losses_PxT[1, 2:]).all()


def test_a_replica_is_judged_as_its_own_run_is(program, run, stores):
    """By planted losses: one falls, one rises for good when it had learned a nat, one has a spike of three steps."""
    steps = 40
    falls = np.linspace(5, 3, steps)
    climbs = np.where(np.arange(steps) < 15, np.linspace(5, 3, steps), 7.0)
    spikes = np.where(np.arange(steps) // 3 == 5, 50.0, falls)
    losses = iter(np.stack([falls, climbs, spikes], axis=1))

    def planted(state, tokens_PxBxM, lr_P):
        return state, {"loss": next(losses), "grad_norm": np.ones(3)}

    longer = [replica(dataclasses.replace(run, steps=steps), rate, 0) for rate in (0.01, 0.02, 0.03)]
    trained = train_together(program, planted, longer, stores, jax.devices()[:1])
    assert trained.reason_P[0] == trained.reason_P[2] == ""
    assert trained.reason_P[1].startswith("diverged by step 30 of 40: its loss (median of 10 steps) is 7 nats")
    assert np.array_equal(trained.losses_PxT[[0, 2]], [falls, spikes])
    assert np.isfinite(trained.losses_PxT[1]).sum() == 30


def test_held_out_losses_are_those_of_the_runs(run, stores, tmp_path):
    """Five replicas on two devices, two at a time: three turns of which the last is filled up."""
    rates = (0.001, 0.003, 0.01, 0.02, 0.03)
    done = []
    found = probe(
        run, rates, (3,), stores, jax.devices()[:2], width=1, report=lambda done_, of: done.append((done_, of))
    )
    assert [one.run.optimizer.peak_lr for one in found] == list(rates)
    assert [one.run.data.seed for one in found] == [run.data.seed + 3] * 5
    assert done[-1] == (3 * run.steps, 3 * run.steps)
    for one in found[::4]:
        result = train(one.run, Placement(), stores, tmp_path / f"{one.run.optimizer.peak_lr}")
        assert one.loss == pytest.approx(result["loss"], rel=ROUNDING)
        assert one.stderr == pytest.approx(result["loss_stderr"], rel=1e-4)  # a difference of two nearly equal losses


def test_all_failed_end_early(program, run, stores):
    devices, seen = jax.devices()[:1], []
    runs = [replica(run, DIVERGES, 0), replica(run, 2 * DIVERGES, 0)]
    train_together(program, together(program, devices), runs, stores, devices, report=seen.append)
    assert seen[-1] < run.steps


def test_a_stop_is_heard(program, runs, stores):
    devices = jax.devices()[:4]
    with pytest.raises(StoppedError, match="step 1 of 20"):
        train_together(program, together(program, devices), runs, stores, devices, stopping=lambda: True)


def test_parameters_given_are_refused(run, stores):
    with pytest.raises(InputError, match="start from an initialisation"):
        probe(dataclasses.replace(run, start="0123456789abcdef"), RATES, SEEDS, stores, jax.devices()[:1])


def test_as_many_share_a_device_as_fit(run, monkeypatch):
    """By the estimate of one: half of the memory holds three of 1/7."""
    assert most_together(run, replicas=8, devices=2) == 4
    assert most_together(run, replicas=9, devices=2) == 5
    assert most_together(run, replicas=3, devices=8) == 1
    needed = memory.estimate_memory(run, Placement(), probes.parse_topology("cpu:1")).total
    monkeypatch.setattr(probes, "_memory", lambda devices: 7 * needed)
    assert most_together(run, replicas=8, devices=1) == 3
    monkeypatch.setattr(probes, "_memory", lambda devices: needed)
    assert most_together(run, replicas=8, devices=1) == 1  # and the step itself says that it does not fit


@pytest.mark.parametrize(("seconds", "best"), [({1: 1.0, 4: 3.9}, 4), ({1: 1.0, 4: 4.1}, 1)])
def test_the_faster_way_is_taken_and_told(program, runs, stores, monkeypatch, seconds, best):
    """Four on one device: together if that takes less than four times as long as one."""

    def timed(program, step, runs, stores, devices):
        return lambda: seconds[len(runs)]

    monkeypatch.setattr(probes, "_timed_step", timed)
    said = []
    assert probes._faster(program, None, runs, stores, jax.devices()[:1], 4, said.append) == best
    assert f"{1e3 * seconds[4] / 4:.3g} ms with 4 on a device together, and 1e+03 ms with one" in said[0]
    assert probes._faster(program, None, runs, stores, jax.devices()[:4], 1, said.append) == 1
    assert len(said) == 1  # nothing to measure


def test_what_is_measured_takes_time(program, runs, stores):
    devices = jax.devices()[:2]
    seconds = probes._timed_step(program, together(program, devices), runs[:3], stores, devices)()
    assert 0 < seconds < 60
