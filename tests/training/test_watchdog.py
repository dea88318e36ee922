"""The watchdog ends what hangs, and says where; what is slow, paused or done it leaves alone."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import timeit

import pytest

from scaling.training import watchdog
from scaling.training.care import Care
from scaling.training.watchdog import EXIT_CODE, Watchdog

ROOT = pathlib.Path(__file__).parents[2]

# argv: the stacks' file. SAY is where a test reads on; `note` is what the loop writes, failure.json say.
HEAD = """
import ctypes, pathlib, sys, time
from scaling.training import watchdog
from scaling.training.care import Care
from scaling.training.watchdog import Watchdog

stacks = pathlib.Path(sys.argv[1])
care = Care(compile_seconds=1.5, step_seconds=0.5, save_seconds=1.0)
note = lambda reason: stacks.with_name("note").write_text(reason)

def hangs():
    time.sleep(60)

"""


def start(tmp_path, code):
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + code, str(tmp_path / "stacks.txt")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(tmp_path, code):
    """Exit code, standard error, and seconds from `print` of the program to its end."""
    process = start(tmp_path, code)
    process.stdout.readline()
    begun = time.monotonic()
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors, time.monotonic() - begun


def test_a_hang_is_dumped_noted_and_ended(tmp_path):
    code = """
with Watchdog(care, note, stacks) as dog, dog.phase("step"):
    dog.alive(7)
    print(flush=True)
    hangs()
"""
    code, errors, seconds = ended(tmp_path, code)
    assert code == EXIT_CODE == 124
    for text in (errors, (tmp_path / "stacks.txt").read_text()):
        assert re.search(r"step after step 7: no sign of life for 1 s, the limit is 0\.5 s", text)
        assert re.search(r"in hangs\b", text)
        assert "most recent call first" in text
    assert (tmp_path / "note").read_text().startswith("step after step 7")
    # A limit of 0.5 s is looked at every 0.125 s; 5 s are for a machine that does other things.
    assert 0.5 <= seconds < 5.5


def test_each_phase_has_its_own_limit_and_the_outer_one_goes_on(tmp_path):
    """Compiling and saving may take longer than a step; what then hangs is a step again."""
    code = """
with Watchdog(care, note, stacks) as dog, dog.phase("step"):
    print(flush=True)
    with dog.phase("compile"):
        time.sleep(1.0)
    with dog.phase("save"):
        time.sleep(0.75)
    print("slow phases passed", file=sys.stderr, flush=True)
    hangs()
"""
    code, errors, seconds = ended(tmp_path, code)
    assert code == EXIT_CODE
    assert "slow phases passed" in errors
    assert "watchdog: step: " in errors
    assert seconds >= 1.0 + 0.75 + 0.5 - 0.3  # less two of its ticks, and what the outer phase had used up


def test_a_phase_inside_is_ended_by_its_own_limit(tmp_path):
    code = """
with Watchdog(care, note, stacks) as dog, dog.phase("step"), dog.phase("save"):
    print(flush=True)
    hangs()
"""
    code, errors, seconds = ended(tmp_path, code)
    assert code == EXIT_CODE
    assert "watchdog: save: no sign of life" in errors
    assert seconds >= 1.0


def test_what_hangs_between_phases_is_ended_too(tmp_path):
    """By the limit of a step: closing a tracker, say, after an error."""
    code = """
with Watchdog(care, note, stacks) as dog:
    print(flush=True)
    with dog.phase("compile"):
        pass
    hangs()
"""
    code, errors, _ = ended(tmp_path, code)
    assert code == EXIT_CODE
    assert "watchdog: other work: no sign of life" in errors


def test_a_note_that_hangs_too_does_not_hold_it_up(tmp_path):
    code = """
watchdog.NOTE_SECONDS = 0.5
with Watchdog(care, lambda reason: time.sleep(60), stacks) as dog, dog.phase("step"):
    print(flush=True)
    hangs()
"""
    code, _, seconds = ended(tmp_path, code)
    assert code == EXIT_CODE
    assert seconds < 6.0
    assert "in hangs" in (tmp_path / "stacks.txt").read_text()


def test_what_cannot_be_written_is_said_and_ends_it_all_the_same(tmp_path):
    (tmp_path / "stacks.txt").mkdir()
    code = """
with Watchdog(care, note, stacks) as dog, dog.phase("step"):
    print(flush=True)
    hangs()
"""
    code, errors, _ = ended(tmp_path, code)
    assert code == EXIT_CODE
    assert "IsADirectoryError" in errors
    assert (tmp_path / "note").exists()


def test_code_that_keeps_pythons_lock_is_ended_by_the_second_line(tmp_path):
    """ctypes.PyDLL calls without letting go of the lock, so no thread of Python runs, the watchdog's neither."""
    code = """
watchdog.GRACE_SECONDS = 0.5

def hangs_in_c():
    ctypes.PyDLL(None).sleep(60)

with Watchdog(care, note, stacks) as dog, dog.phase("step"):
    print(flush=True)
    hangs_in_c()
"""
    code, errors, seconds = ended(tmp_path, code)
    assert code == 1  # faulthandler knows no other
    assert "in hangs_in_c" in errors
    assert "Timeout" in errors
    assert 1.0 <= seconds < 6.0
    assert not (tmp_path / "note").exists()


def test_signs_of_life_keep_it_quiet(tmp_path):
    """For three times the limit; then everything that it started is gone."""
    expired = []
    before = threading.active_count()
    with Watchdog(Care(step_seconds=0.4), expired.append, tmp_path / "stacks.txt") as dog, dog.phase("step"):
        for step in range(24):
            time.sleep(0.05)
            dog.alive(step)
    assert threading.active_count() == before
    assert not (tmp_path / "stacks.txt").exists()
    assert expired == []


def test_it_leaves_no_timer_behind(tmp_path):
    """Nor does an error inside: a timer left behind would end the process half a second later."""
    code = """
watchdog.GRACE_SECONDS = 0.0
try:
    with Watchdog(care, note, stacks) as dog, dog.phase("step"):
        raise KeyError
except KeyError:
    print(flush=True)
time.sleep(1.5)
"""
    assert ended(tmp_path, code)[0] == 0


def test_a_process_that_was_paused_is_not_taken_to_hang(tmp_path):
    """Paused for twice the limit, it goes on and ends by itself."""
    code = """
with Watchdog(care, note, stacks) as dog, dog.phase("save"):
    until = time.monotonic() + 2.5  # the clock on the wall goes on in a pause: this is over soon after it wakes up
    print(flush=True)
    while time.monotonic() < until:
        time.sleep(0.05)
"""
    process = start(tmp_path, code)
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.2)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert not (tmp_path / "stacks.txt").exists()


def test_a_sign_of_life_costs_next_to_nothing(tmp_path):
    """It is given once a step: less than 20 us, and 0.1 us here."""
    with Watchdog(Care(), print, tmp_path / "stacks.txt") as dog, dog.phase("step"):
        assert min(timeit.repeat(lambda: dog.alive(1), number=1000, repeat=5)) / 1000 < 20e-6


def test_phases_without_a_name_of_theirs_are_refused(tmp_path):
    with Watchdog(Care(), print, tmp_path / "stacks.txt") as dog, pytest.raises(KeyError), dog.phase("lunch"):
        pass
    assert watchdog.TICK_SECONDS < Care().step_seconds
