"""The host stays ahead of the devices: what is read of a step waits until the next one is on its way."""

import jax
import pytest

from scaling.runs import Placement
from scaling.training import trainer
from scaling.training.loop import train

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Later:
    """A result of a step that runs. Only jax.device_get, as below, may wait for it: any other look at it is refused."""

    def __init__(self, step, value):
        self.step, self.value = step, value

    def _waits(self, *_):
        raise AssertionError(f"the host waits for step {self.step}")

    __float__ = __array__ = __bool__ = __int__ = __index__ = __repr__ = __format__ = block_until_ready = _waits


@pytest.fixture
def order(monkeypatch):
    """What the loop does, in order: (batch, k) made and sent, (step, k) dispatched, (read, k) waited for."""
    done = []
    compiled, make_batch, device_get = trainer.Trainer.compiled, trainer.Trainer.batch, jax.device_get

    def spied(self):
        step, window_losses = compiled(self)

        def dispatch(state, tokens_BxM, lr):
            k = sum(what == "step" for what, _ in done)
            done.append(("step", k))
            state, metrics = step(state, tokens_BxM, lr)
            return state, {name: Later(k, value) for name, value in metrics.items()}

        return dispatch, window_losses

    def batch(self, k):
        done.append(("batch", k))
        return make_batch(self, k)

    def get(tree):
        values = tree.values() if isinstance(tree, dict) else ()
        done.extend(("read", k) for k in sorted({value.step for value in values if isinstance(value, Later)}))
        return device_get(jax.tree.map(lambda x: x.value if isinstance(x, Later) else x, tree))

    monkeypatch.setattr(trainer.Trainer, "compiled", spied)
    monkeypatch.setattr(trainer.Trainer, "batch", batch)
    monkeypatch.setattr(jax, "device_get", get)
    return done


def test_a_step_is_read_when_the_next_is_on_its_way(run, stores, tmp_path, order):
    """And its batch is made and sent while the step before runs. Only before an evaluation, here at steps 2, 4, 9 and
    20, is the last step read at once."""
    train(run, Placement(), stores, tmp_path / "run")
    expected, unread = [], None
    for k in range(run.steps):
        expected += [("batch", k), ("step", k)]
        expected += [("read", unread)] if unread is not None else []
        unread = k
        if k + 1 in (2, 4, 9, 20):
            expected += [("read", k)]
            unread = None
    assert order == expected


def test_a_loop_that_waits_for_each_step_is_found(run, stores, tmp_path, order, monkeypatch):
    """As if the loss were printed after every step."""
    monkeypatch.setattr(trainer.Trainer, "read", lambda self, pending: pending and float(pending[1]["loss"]))
    with pytest.raises(AssertionError, match="the host waits for step 0"):
        train(run, Placement(), stores, tmp_path / "run")


@pytest.mark.parametrize("placement", [Placement(), Placement(data=2, fsdp=4)], ids=["one device", "eight"])
def test_nothing_goes_from_device_to_device_or_back_unasked(run, stores, tmp_path, monkeypatch, placement):
    """Batches are sent on purpose, to where the step wants them; of the numbers of a step none is fetched by the way.
    The rate, one number, goes with the call: sent on purpose it takes 40 us more, 1 % of a small step."""
    steps_from = trainer.Trainer.steps_from

    def guarded(*arguments):
        with jax.transfer_guard_device_to_host("disallow"), jax.transfer_guard_device_to_device("disallow"):
            return steps_from(*arguments)

    monkeypatch.setattr(trainer.Trainer, "steps_from", guarded)
    train(run, placement, stores, tmp_path / "run")


def test_a_batch_that_lies_elsewhere_is_found(run, stores, tmp_path, monkeypatch):
    """One whole batch on the first of eight devices, which each step would have to deal out."""
    steps_from, batch = trainer.Trainer.steps_from, trainer.Trainer.batch

    def guarded(*arguments):
        with jax.transfer_guard_device_to_device("disallow"):
            return steps_from(*arguments)

    monkeypatch.setattr(trainer.Trainer, "steps_from", guarded)
    monkeypatch.setattr(trainer.Trainer, "batch", lambda self, k: jax.device_put(jax.device_get(batch(self, k))))
    with pytest.raises(Exception, match=r"device-to-device|sharding"):
        train(run, Placement(data=2, fsdp=4), stores, tmp_path / "run")
