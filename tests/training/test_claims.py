"""Claims on a run: one owner at a time, whatever dies, pauses or comes at once; and a result that is recorded once."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from scaling.errors import BusyError, InputError
from scaling.training import claims
from scaling.training.claims import Sightings, read_claim, record_once, seems_alive, take_patiently

# A process that takes a run, says so, and then holds it, beating, until it is killed.
HOLD = """
import pathlib, sys, time
from scaling.training import claims
claims.BEAT_SECONDS = 0.05  # so that a heartbeat is soon seen
held = claims.Sightings(60.0).take(pathlib.Path(sys.argv[1]))
with held.beating():
    print("taken", flush=True)
    for line in sys.stdin:
        print(held.is_mine(), flush=True)
"""
# A process that waits for a common moment and then tries to take a run, and to record its result.
RACE = """
import pathlib, sys, time
from scaling.errors import BusyError
from scaling.training import claims
directory = pathlib.Path(sys.argv[1])
time.sleep(max(0.0, float(sys.argv[2]) - time.time()))
try:
    claims.Sightings(60.0).take(directory)
    print("taken", claims.record_once(directory / "result.json", {"by": sys.argv[3]}))
except BusyError:
    print("busy", claims.record_once(directory / "result.json", {"by": sys.argv[3]}))
time.sleep(2.0)
"""


def python(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture
def holder(tmp_path):
    process = python(HOLD, tmp_path)
    assert process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.communicate()


def elsewhere(directory):
    """Makes a claim look as if it were of another machine, where nobody can look its process up."""
    claim = dataclasses.replace(read_claim(directory), machine="another")
    (directory / claims.CLAIM).write_text(json.dumps(dataclasses.asdict(claim)))


def test_attempts_are_counted_and_what_they_spend_adds_up(tmp_path):
    first = Sightings(60.0).take(tmp_path)
    first.counted.append(lambda: {"tokens": 100.0})
    first.release()
    second = Sightings(60.0).take(tmp_path)
    second.counted.append(lambda: {"tokens": 10.0, "joules": 1.0})
    assert (first.attempt, second.attempt) == (1, 2)
    spent = second.spent()
    assert spent["tokens"] == 110.0
    assert spent["joules"] == 1.0
    assert spent["wall_seconds"] > read_claim(tmp_path).spent["wall_seconds"] > 0


def test_where_a_claim_was_removed_no_number_is_given_out_again(tmp_path):
    """Two attempts would share a folder, and the lines of metrics.jsonl in it."""
    (tmp_path / "attempts" / "7").mkdir(parents=True)
    assert Sightings(60.0).take(tmp_path).attempt == 8


def test_a_claim_that_is_held_is_refused_with_its_host(tmp_path, holder):
    with pytest.raises(BusyError, match=f"on {read_claim(tmp_path).host}"):
        Sightings(60.0).take(tmp_path)
    assert not Sightings(60.0).is_free(tmp_path)
    assert seems_alive(read_claim(tmp_path), 60.0)


def test_a_process_that_was_killed_on_this_machine_holds_nothing(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert not read_claim(tmp_path).released
    assert Sightings(60.0).is_free(tmp_path)
    assert not seems_alive(read_claim(tmp_path), 60.0)
    assert Sightings(60.0).take(tmp_path).attempt == 2


def test_on_another_machine_one_waits_for_the_heartbeats_to_stay_away(tmp_path, holder):
    holder.kill()
    holder.wait()
    elsewhere(tmp_path)
    sightings, began = Sightings(0.5), time.monotonic()
    with pytest.raises(BusyError):
        sightings.take(tmp_path)
    assert take_patiently(tmp_path, 0.5).attempt == 2
    assert time.monotonic() - began >= 0.5


def test_whoever_still_beats_is_not_waited_for(tmp_path, holder):
    began = time.monotonic()
    with pytest.raises(BusyError):
        take_patiently(tmp_path, 20.0)
    assert time.monotonic() - began < 10.0  # it returns once it has seen a heartbeat


def test_a_paused_owner_that_was_taken_over_learns_of_it_and_cannot_take_it_back(tmp_path, holder):
    os.kill(holder.pid, signal.SIGSTOP)
    sightings, deadline = Sightings(0.3), time.monotonic() + 20
    while not sightings.is_free(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    taken = sightings.take(tmp_path)
    os.kill(holder.pid, signal.SIGCONT)
    holder.stdin.write("?\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "False\n"
    assert taken.is_mine()
    assert read_claim(tmp_path).attempt == 2


def test_of_many_that_come_at_once_one_wins(tmp_path):
    at = time.time() + 3.0
    racers = [python(RACE, tmp_path, at, k) for k in range(6)]
    said = [racer.communicate()[0].split() for racer in racers]
    assert [outcome for outcome, _ in said].count("taken") == 1
    assert [created for _, created in said].count("True") == 1
    (winner,) = (k for k, (_, created) in enumerate(said) if created == "True")
    assert json.loads((tmp_path / "result.json").read_text()) == {"by": str(winner)}


def test_a_number_that_was_given_out_again_is_not_the_owner(tmp_path):
    Sightings(60.0).take(tmp_path)
    claim = read_claim(tmp_path)
    assert not Sightings(60.0).is_free(tmp_path)  # it is this process
    changed = dataclasses.replace(claim, process=f"{claim.process.split()[0]} 1")  # of the same number, started earlier
    (tmp_path / claims.CLAIM).write_text(json.dumps(dataclasses.asdict(changed)))
    assert Sightings(60.0).is_free(tmp_path)


def test_a_released_claim_is_free_at_once_and_stays_released(tmp_path):
    held = Sightings(60.0).take(tmp_path)
    with held.beating():
        assert not Sightings(60.0).is_free(tmp_path)
    assert Sightings(60.0).is_free(tmp_path)
    assert not held.is_mine()


def test_a_file_that_is_no_claim_is_named(tmp_path):
    (tmp_path / claims.CLAIM).write_text('{"owner": 1}')
    with pytest.raises(InputError, match=r"claim\.json: not a claim"):
        read_claim(tmp_path)


def test_a_result_is_recorded_once(tmp_path):
    assert record_once(tmp_path / "result.json", {"loss": 1.0})
    assert not record_once(tmp_path / "result.json", {"loss": 2.0})
    assert json.loads((tmp_path / "result.json").read_text()) == {"loss": 1.0}
    with pytest.raises(ValueError, match="JSON"):
        record_once(tmp_path / "other.json", {"loss": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
