"""Runs of one shape share what is compiled in a process, whoever compiles it first."""

import dataclasses
import threading

import jax
import pytest

from scaling.runs import Placement
from scaling.training.ahead import compile_ahead
from scaling.training.loop import train

pytestmark = pytest.mark.usefixtures("quick_compilation")
OF_TRAINING = {"init", "step", "window_losses"}


@pytest.fixture
def lowerings():
    """The names of the functions that jax lowers while a test runs, in their order."""
    names = []
    on = True

    def listen(event, seconds, fun_name="", **_):
        if on and event.endswith("/jaxpr_to_mlir_module_duration"):
            names.append(fun_name.removeprefix("jit(").removesuffix(")"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    on = False  # jax has no public way to take a listener away


def trained(run, stores, directory):
    return train(run, Placement(), stores, directory)["losses"]


def wide(run, width, **changes):
    """The run, short, and of a width that no other test has."""
    return dataclasses.replace(run, model=dataclasses.replace(run.model, d_model=width), steps=6, **changes)


def test_cells_of_one_shape_are_lowered_once(run, stores, tmp_path, lowerings):
    """The second differs in all that a sweep varies at one size: length, rate, seed. Nothing at all is lowered for it,
    and of a third with another batch the step alone; its initialisation and evaluation are those of the others."""
    first = wide(run, 12)
    trained(first, stores, tmp_path / "first")
    assert OF_TRAINING <= set(lowerings)
    assert {lowerings.count(name) for name in OF_TRAINING} == {1}
    del lowerings[:]
    second = dataclasses.replace(first, steps=9, seed=1, optimizer=dataclasses.replace(first.optimizer, peak_lr=3e-3))
    trained(second, stores, tmp_path / "second")
    assert lowerings == []
    trained(dataclasses.replace(first, batch_size=4), stores, tmp_path / "third")
    assert lowerings == ["step"]


def test_what_another_thread_has_compiled_is_found_and_gives_the_same_losses(run, stores, tmp_path, lowerings):
    """The programs of the second run are compiled while the first one trains, between two of its steps."""
    first, second = dataclasses.replace(wide(run, 20), steps=40), wide(run, 24)
    apart = trained(second, stores, tmp_path / "apart")
    jax.clear_caches()
    del lowerings[:]
    thread = threading.Thread(target=compile_ahead, args=(second, Placement()))
    started = []

    def report(done, steps):
        if not started:
            started.append(done)
            thread.start()

    train(first, Placement(), stores, tmp_path / "first", report)
    thread.join()
    assert started
    assert [lowerings.count(name) for name in ("init", "step", "window_losses")] == [2, 2, 2]
    del lowerings[:]
    assert trained(second, stores, tmp_path / "second") == apart
    assert not OF_TRAINING & set(lowerings)
