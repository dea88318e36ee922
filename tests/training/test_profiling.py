"""Traces are read back: which steps are in them, by the marks that the loop sets."""

import json
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from scaling.errors import InputError
from scaling.training.profiling import REQUEST, profile_steps, request_profile


@jax.jit
def step(x_NxN):
    return x_NxN @ x_NxN / 100, x_NxN.sum()


def train(directory, steps, first=0, count=0, log_every=1, before=lambda done: None):
    """The loop of scaling.training.loop, in miniature. before: called before each step, with how many are done."""
    x_NxN, _ = step(jnp.ones((100, 100)))
    with profile_steps(directory, first, count) as profile:
        for done in range(1, steps + 1):
            before(done - 1)
            with jax.profiler.StepTraceAnnotation("train", step_num=done):
                x_NxN, metric = step(x_NxN)
            if profile.due(done, logged=done % log_every == 0):
                float(metric)
                profile.turn(done)


def traced(directory):
    """Name of a trace -> the numbers of the steps that are in it."""
    found = {}
    for path in sorted((directory / "profile").rglob("*.xplane.pb")):
        events = [
            e
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes
            for line in plane.lines
            for e in line.events
        ]
        found[path.parent.name] = sorted(dict(e.stats)["step_num"] for e in events if e.name == "train")
    return found


def test_a_trace_has_exactly_the_steps_asked_for(tmp_path):
    train(tmp_path, 12, first=4, count=3)
    assert traced(tmp_path) == {"steps_5_to_7": [5, 6, 7]}
    sizes = Counter(
        {"".join(path.suffixes[-2:]): path.stat().st_size for path in tmp_path.rglob("*.*") if path.is_file()}
    )
    assert min(sizes[".xplane.pb"], sizes[".json.gz"]) > 0, sizes


def test_without_a_wish_there_is_no_profile(tmp_path):
    train(tmp_path, 5)
    assert not list(tmp_path.iterdir())


def test_a_running_loop_takes_a_request_at_its_next_logged_step(tmp_path):
    train(tmp_path, 20, log_every=5, before=lambda done: request_profile(tmp_path, 4) if done in (6, 12) else None)
    # asked after step 6, seen at 10; asked after step 12, in the middle of the trace, seen at 15
    assert traced(tmp_path) == {"steps_11_to_14": [11, 12, 13, 14], "steps_16_to_19": [16, 17, 18, 19]}
    assert not (tmp_path / REQUEST).exists()


def test_a_request_waits_for_the_profile_that_was_planned(tmp_path):
    train(tmp_path, 12, first=4, count=2, before=lambda done: request_profile(tmp_path, 1) if done == 2 else None)
    assert traced(tmp_path) == {"steps_5_to_6": [5, 6], "steps_8_to_8": [8]}


def test_a_run_that_ends_early_leaves_the_steps_it_did(tmp_path):
    def fail(done):
        if done == 6:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(tmp_path, 12, first=4, count=5, before=fail)
    assert traced(tmp_path) == {"steps_5_to_9": [5, 6]}
    train(tmp_path, 12, first=10, count=1)  # and another trace can be taken
    assert traced(tmp_path)["steps_11_to_11"] == [11]


@pytest.mark.parametrize("text", ["", "5", "{}", '{"steps": 0}', '{"steps": "5"}', "[1]"])
def test_a_request_written_wrongly_by_hand_ends_no_training(tmp_path, caplog, text):
    (tmp_path / REQUEST).write_text(text)
    train(tmp_path, 3)
    assert not list(tmp_path.iterdir())
    assert "asks for no profile" in caplog.text


def test_a_request_for_no_steps_is_refused(tmp_path):
    with pytest.raises(InputError, match="a profile of 0 steps"):
        request_profile(tmp_path, 0)
    request_profile(tmp_path, 5)
    assert json.loads((tmp_path / REQUEST).read_text()) == {"steps": 5}
