"""Helpers of the tests of training: stop a run after so many steps, and compare two directories to the bit."""

import jax
import numpy as np

from scaling.files import read_json
from scaling.parallel.mesh import make_mesh
from scaling.runs import Placement, run_id
from scaling.training.care import Care
from scaling.training.checkpoints import Checkpoints
from scaling.training.step import make_program

PLAIN = Placement()
SAVES_ALL_STEPS = Care(checkpoint_seconds=1e-9)


def stop_after(steps):
    """Asked after each step, it says stop after so many."""
    answers = iter([False] * (steps - 1))
    return lambda: next(answers, True)


def program_of(run, placement=PLAIN):
    return make_program(run, placement, make_mesh(placement))


def saved(run, directory):
    """The latest checkpoint: steps done, and the state's leaves."""
    with Checkpoints(directory / "checkpoints", run_id(run), 0, read_only=True) as checkpoints:
        step, state, *_ = checkpoints.restore(program_of(run).abstract_state)
    return step, [np.asarray(x) for x in jax.tree.leaves(state)]


def kept_steps(directory):
    return sorted(int(path.name.partition("-")[0]) for path in (directory / "checkpoints").glob("[0-9]*"))


def assert_same_training(run, directory, expected):
    """Bit for bit: the state, the metrics, and the result but for its timing."""
    assert (directory / "metrics.jsonl").read_text() == (expected / "metrics.jsonl").read_text()
    results = [read_json(where / "result.json") for where in (directory, expected)]
    for result in results:
        del result["timing"]
    assert results[0] == results[1]
    (step, leaves), (expected_step, expected_leaves) = saved(run, directory), saved(run, expected)
    assert step == expected_step == run.steps
    assert all(np.array_equal(x, y) for x, y in zip(leaves, expected_leaves, strict=True))
