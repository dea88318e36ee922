"""Two processes of one job, of which one fails: by an error, a signal, kill -9 or standing still. Neither hangs.

Each ends with a code that launchers act on: the one that fails with its own, the other with 75, start again.
"""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from scaling.files import read_json
from scaling.training import hosts
from scaling.training.watchdog import EXIT_CODE

ROOT = pathlib.Path(__file__).parents[2]
SLACK = 20.0  # seconds that a busy machine may add to any of this
AGAIN = 75

# argv: rank, coordinator, directory, fault, the rank that it befalls. What the errors of `together` and `told` are on
# this rank goes to RANK.json; then follow steps with a collective each, until the fault or their end.
PROCESS = """
import os, pathlib, signal, sys, time
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scaling.data.storage import StorageError
from scaling.errors import BusyError, InputError, LostClaimError, RunFailedError, StoppedError
from scaling.files import write_json
from scaling.training import hosts
from scaling.training.care import Care
from scaling.training.watchdog import Watchdog

rank, coordinator, root, fault, befallen = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3]), *sys.argv[4:]
ERRORS = {
    "input": InputError("no", "there", "mend it"), "busy": BusyError("busy"), "storage": StorageError("away"),
    "failed": RunFailedError("loss nan", "not_finite", step=7), "lost": LostClaimError("taken"),
    "stopped": StoppedError("saved"), "full": OSError(28, "No space left on device"), "bug": KeyError("k"),
}

def raised(do):
    try:
        do()
    except Exception as error:
        return [type(error).__name__, str(error), getattr(error, "kind", None), getattr(error, "step", None)]

def on(other, error):
    def do():
        if rank == other:
            raise error
        return rank
    return do

def both(error):
    def do():
        raise InputError(f"of {rank}")
    return do

with hosts.leaving():
    hosts.connect(coordinator, 2, rank, heartbeat_seconds=60)
    answers = {}
    if fault == "relay":
        for name, error in ERRORS.items():
            answers[name] = {"together": raised(lambda: hosts.together(on(1, error))),
                             "told": raised(lambda: hosts.told(on(0, error)))}
        answers["both"] = raised(lambda: hosts.together(both(rank)))
        answers["none"] = hosts.together(on(2, None))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    total = jax.jit(jnp.sum, out_shardings=whole)
    note = lambda reason: (root / f"note{rank}").write_text(reason)
    with Watchdog(Care(step_seconds=4.0), note, root / f"stacks{rank}") as dog, dog.phase("step"):
        for k in range(100 if fault == "relay" else 10**6):
            float(total(jax.make_array_from_callback((2,), rows, lambda _: np.ones(1, np.float32))))
            dog.alive(k)
            if k == 0:
                write_json(root / f"{rank}.json", answers)
            if k == 20 and rank == int(befallen):
                if fault == "raise":
                    raise KeyError("a bug of one process")
                if fault != "relay":
                    os.kill(os.getpid(), getattr(signal, fault))
"""


def run_pair(tmp_path, fault, befallen=1):
    """Both processes, begun, once each has taken a step."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        coordinator = f"localhost:{s.getsockname()[1]}"
    processes = [start(tmp_path, rank, coordinator, fault, befallen) for rank in range(2)]
    while not all((tmp_path / f"{rank}.json").exists() for rank in range(2)):
        assert None in [process.poll() for process in processes], said(tmp_path)
        time.sleep(0.02)
    return processes


def start(tmp_path, rank, coordinator, fault, befallen):
    with open(tmp_path / f"errors{rank}", "w") as errors:
        return subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), coordinator, str(tmp_path), fault, str(befallen)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"},
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )


def said(tmp_path):
    return "\n".join((tmp_path / f"errors{rank}").read_text() for rank in range(2))


def codes(processes, seconds):
    """Exit codes by rank, once both have ended, which they must within so many seconds."""
    until = time.monotonic() + seconds
    try:
        return [process.wait(max(0.01, until - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()


FREE = "free some space: started again, it goes on from its last good checkpoint"


def test_an_error_of_one_is_raised_by_all(tmp_path):
    """With its type, its kind and its step; what is none of ours as what it amounts to. Then both end well."""
    assert codes(run_pair(tmp_path, "relay"), 60) == [0, 0], said(tmp_path)
    first, second = (read_json(tmp_path / f"{rank}.json") for rank in range(2))
    expected = {
        "input": ["InputError", "there: no{} (mend it)", None, None],
        "busy": ["BusyError", "busy{}", None, None],
        "storage": ["StorageError", "away{}", None, None],
        "failed": ["RunFailedError", "loss nan{}", "not_finite", 7],
        "lost": ["LostClaimError", "taken{}", None, None],
        "stopped": ["StoppedError", "saved{}", None, None],
        "full": ["RunFailedError", f"OSError: [Errno 28] No space left on device ({FREE}){{}}", "disk_full", None],
        "bug": ["RunFailedError", "KeyError: 'k'{}", "bug", None],
    }
    for name, (kind, text, *rest) in expected.items():
        assert first[name]["together"] == [kind, text.format(", says process 1"), *rest]
        assert second[name]["told"] == [kind, text.format(", says process 0"), *rest]
    for own, name in ((first, "told"), (second, "together")):  # where it was raised, it is the error itself
        assert own["failed"][name] == ["RunFailedError", "loss nan", "not_finite", 7]
        assert own["full"][name][:2] == ["OSError", "[Errno 28] No space left on device"]
    assert first["both"] == ["InputError", "of 0", None, None]
    assert second["both"] == ["InputError", "of 0, says process 0", None, None]
    assert (first["none"], second["none"]) == (0, 1)


@pytest.mark.parametrize("befallen", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_an_error_outside_ends_both(tmp_path, befallen):
    """jax's own 300 s, and the SIGABRT after the 5 s that we leave it, do not come to pass."""
    ended = codes(run_pair(tmp_path, "raise", befallen), hosts.LEAVE_SECONDS + SLACK)
    assert (ended[befallen], ended[1 - befallen]) == (1, AGAIN), said(tmp_path)
    assert "KeyError: 'a bug of one process'" in (tmp_path / f"errors{befallen}").read_text()
    assert "failed: ValueError: UNKNOWN: Gloo" in (tmp_path / f"errors{1 - befallen}").read_text()


@pytest.mark.parametrize("befallen", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["SIGKILL", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_other(tmp_path, name, befallen):
    """SIGTERM included: jax's pre-emption service, which is off, would swallow it.

    When process 0 is gone, so is the coordination service: jax may see that first, and ends with SIGABRT.
    """
    ended = codes(run_pair(tmp_path, name, befallen), SLACK)
    assert ended[befallen] == -getattr(signal, name), said(tmp_path)
    assert ended[1 - befallen] in ((AGAIN, -signal.SIGABRT) if befallen == 0 else (AGAIN,)), said(tmp_path)


@pytest.mark.parametrize("befallen", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_stands_still_is_left_by_the_other(tmp_path, befallen):
    """By its watchdog's limit of 4 s, long before the 60 s of heartbeats. Once it goes on, the paused one ends too."""
    processes = run_pair(tmp_path, "SIGSTOP", befallen)
    other = processes[1 - befallen]
    assert codes([other], 4.0 + SLACK) == [EXIT_CODE], said(tmp_path)
    assert (tmp_path / f"note{1 - befallen}").read_text().startswith("step after step ")
    assert "in <module>" in (tmp_path / f"stacks{1 - befallen}").read_text()
    assert processes[befallen].poll() is None
    processes[befallen].send_signal(signal.SIGCONT)
    assert codes([processes[befallen]], hosts.LEAVE_SECONDS + SLACK)[0] in (AGAIN, -signal.SIGABRT), said(tmp_path)
    assert not (tmp_path / f"note{befallen}").exists()
