"""What finds out that something was lost: the comparison with a twin; and the kills themselves, at random instants."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

from benchmarks import chaos, chaos_run, chaos_sweep, robustness
from benchmarks.alike import (
    differences,
    last_checkpoint,
    leaves,
    leaves_differ,
    outcome_of,
    outcomes,
    sweep_differences,
)
from scaling.files import write_json
from scaling.sweeps.results import TIMINGS

STEPS = 20
STATE = {"params": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, "opt_state": [np.int32(7), np.zeros(3)]}


LAST_LINE = (
    json.dumps({"step": STEPS, "tokens": 8 * STEPS, "eval": {"validation": {"loss": 4.8, "stderr": 0.1}}}) + "\n"
)


def finished(directory, state=STATE):
    """A run as the training leaves it, with one attempt killed and one that recorded the result."""
    lines = [{"step": step, "tokens": 8 * step, "loss": 5 - step / 100} for step in range(1, STEPS + 1)]
    result = {"run": "r", "steps": STEPS, "loss": 4.8, "timing": {"wall_seconds": time.time(), "attempt": 2}}
    for name, value in (("run", {"seed": 0}), ("placement", {}), ("result", result)):
        write_json(directory / f"{name}.json", value)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + LAST_LINE)
    for number, outcome in ((1, None), (2, "recorded")):
        write_json(directory / "attempts" / str(number) / "attempt.json", {"attempt": number, "outcome": outcome})
    for step, attempt in ((9, 1), (STEPS, 2)):
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save((directory / "checkpoints" / f"{step}-{attempt}" / "state").absolute(), state)
    (directory / "checkpoints" / "damaged-30-1").mkdir()
    return directory


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("runs") / "twin")


@pytest.fixture
def copy(original, tmp_path):
    """The same run in another place, to be spoiled."""
    return shutil.copytree(original, tmp_path / "copy")


def test_a_run_is_as_its_twin_whatever_its_timings(original, copy):
    write_json(copy / "result.json", {**json.loads((copy / "result.json").read_text()), "timing": {"attempt": 5}})
    assert differences(copy, original) == []
    assert outcomes(copy) == ["killed", "recorded"]
    assert [outcome_of(copy, number) for number in (1, 2, 3)] == ["killed", "recorded", "killed"]
    assert last_checkpoint(copy).name == f"{STEPS}-2"


def edited(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def without(directory, name):
    shutil.rmtree(directory / name) if (directory / name).is_dir() else (directory / name).unlink()


SPOILED = {
    "a byte of the metrics": (lambda run: edited(run / "metrics.jsonl", "4.9", "4.8"), "line 1 is"),
    "a step skipped": (
        lambda run: edited(run / "metrics.jsonl", '{"step": 7, "tokens": 56, "loss": 4.93}\n', ""),
        "line 7",
    ),
    "a step repeated": (
        lambda run: edited(run / "metrics.jsonl", '{"step": 7', '{"step": 6, "tokens": 48, "loss": 4.94}\n{"step": 7'),
        "line 7 is",
    ),
    "no last line": (
        lambda run: edited(run / "metrics.jsonl", LAST_LINE, ""),
        "20 lines, the twin has 21",
    ),
    "the last bit of a loss": (lambda run: edited(run / "result.json", "4.8", "4.800000000000001"), "loss 4.8000"),
    "an integer that became a float": (lambda run: edited(run / "result.json", "20", "20.0"), "steps 20.0"),
    "another run": (lambda run: edited(run / "run.json", "0", "1"), "run.json is not that of the twin"),
    "no result": (lambda run: without(run, "result.json"), "result.json is not there"),
    "a failure": (lambda run: write_json(run / "failure.json", {}), "failure.json is there"),
    "no attempt recorded": (
        lambda run: edited(run / "attempts/2/attempt.json", '"recorded"', "null"),
        "0 attempts say",
    ),
    "two attempts recorded": (
        lambda run: edited(run / "attempts/1/attempt.json", "null", '"recorded"'),
        "2 attempts say",
    ),
    "a duplicate with another result": (
        lambda run: edited(run / "attempts/1/attempt.json", "null", '"duplicate", "same": false'),
        "attempt 1 came to another result",
    ),
    "the last checkpoint gone": (lambda run: without(run, f"checkpoints/{STEPS}-2"), "9-1 is the last checkpoint"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_what_is_wrong_is_found(original, copy, what):
    spoil, said = SPOILED[what]
    spoil(copy)
    (found,) = differences(copy, original)
    assert said in found


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"params": {"w": np.nextafter(STATE["params"]["w"], np.float32(9))}}, "of 24 bytes"),
        ({"params": {"w": STATE["params"]["w"].astype(np.float64)}}, "float64[2, 3], the twin's float32[2, 3]"),
        ({"params": {"w": STATE["params"]["w"].T.copy()}}, "float32[3, 2]"),
        ({"opt_state": [np.int32(7), -np.zeros(3)]}, "3 of 24 bytes"),  # -0.0 equals 0.0, and is another number
        ({"params": {"w": STATE["params"]["w"], "v": np.zeros(2)}}, "in one state alone"),
    ],
    ids=["last bits", "type", "shape", "minus zero", "leaf"],
)
def test_a_leaf_that_is_another_is_found(original, tmp_path, changed, said):
    other = finished(tmp_path / "other", {**STATE, **changed})
    (found,) = differences(other, original)
    assert said in found


def test_all_leaves_are_read_as_they_were_saved(original):
    read = leaves(last_checkpoint(original))
    assert len(read) == 3
    assert leaves_differ(read, read) == []
    saved = (STATE["params"]["w"], STATE["opt_state"][0], STATE["opt_state"][1])
    assert sorted(leaf.tobytes() for leaf in read.values()) == sorted(leaf.tobytes() for leaf in saved)


@pytest.fixture
def sweeps(original, tmp_path):
    """Two sweeps of one run each, the same but for a timing."""
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        shutil.copytree(original, tmp_path / name / "runs" / "r")
        header = ",".join(["run", "loss", *TIMINGS])
        (tmp_path / name / "results.csv").write_text(f"{header}\nr,4.8{f',{seconds}' * len(TIMINGS)}\n")
        (tmp_path / name / "curves.csv").write_text("run,step\nr,20\n")
    return tmp_path / "a", tmp_path / "b"


def test_a_sweep_is_as_its_twin_but_for_timings_and_nothing_else(sweeps):
    ours, twin = sweeps
    assert sweep_differences(ours, twin) == []
    edited(ours / "results.csv", "r,4.8", "r,4.80")
    assert sweep_differences(ours, twin) == [f"{ours / 'results.csv'}: loss of r is '4.80', the twin's '4.8'"]
    edited(ours / "results.csv", "r,4.80", "r,4.8")
    shutil.copytree(ours / "runs" / "r", ours / "runs" / "s")
    assert sweep_differences(ours, twin) == [f"{ours}: its runs are r, s, the twin's r"]
    edited(twin / "curves.csv", "20", "19")
    assert "curves.csv: line 2 is b'r,20'" in sweep_differences(ours, twin)[1]


def test_a_process_is_stopped_before_it_is_looked_at(tmp_path):
    """All threads stand still while the files are read, so where a kill hit is what the files say."""
    code = "import time\nwhile True: open('count', 'a').write('.'); time.sleep(1e-4)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, start_new_session=True)
    life = chaos_run.Life(tmp_path, process, 1, time.time())
    assert chaos_run.until(life, (tmp_path / "count").exists)
    assert chaos_run.stop(life)
    size = (tmp_path / "count").stat().st_size
    time.sleep(0.1)
    assert (tmp_path / "count").stat().st_size == size
    process.kill()
    assert process.wait() < 0
    assert not chaos_run.stop(life)
    assert not chaos_run.until(life, lambda: True)


def test_each_aim_has_its_turn():
    """A run's kills: half at random instants, the rest aimed at each delicate part, and the ends last."""
    found = list(chaos_run.aims(chaos_run.KILLS_A_RUN, random.Random(0), 5.0, 10.0))
    assert len(found) == chaos_run.KILLS_A_RUN
    names = [aim.__qualname__.partition(".")[0] for aim in found]
    assert names[-2:] == ["in_evaluation", "before_publication"]
    counts = {name: names.count(name) for name in names}
    assert counts == {
        "at": 7,
        "in_save": 2,
        "after_commit": 2,
        "in_restore": 2,
        "in_evaluation": 1,
        "before_publication": 1,
    }
    assert len(list(chaos_run.aims(1, random.Random(0), 5.0, 10.0))) == 1


def made(directory, number=1, lines=(), told=None, whole=(), **files):
    """A life whose files are as given."""
    life = chaos_run.Life(directory, None, number, time.time())
    if told is not None:
        write_json(life.folder / "attempt.json", told)
        (life.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in whole:
        (directory / "checkpoints" / name).mkdir(parents=True)
    for name, value in files.items():
        write_json(directory / f"{name}.json", value)
    return life


LAST = chaos_run.STEPS


@pytest.mark.parametrize(
    ("files", "where"),
    [
        ({}, "before the claim (imports)"),
        ({"told": {}, "number": 2}, "before the claim (imports)"),
        ({"told": {"attempt": 1}}, "while initialising"),
        ({"told": {"attempt": 1}, "whole": ["300-1"]}, "while restoring"),
        ({"told": {"from_step": 300}, "lines": [{"step": 300}]}, "while compiling, or in the first steps"),
        ({"told": {"from_step": 0}, "lines": [{"step": 24}]}, "in a step or an evaluation on the way"),
        (
            {"told": {"from_step": 0}, "lines": [{"step": 24}], "whole": ["24-1.orbax-checkpoint-tmp"]},
            "while a checkpoint was written",
        ),
        (
            {"told": {"from_step": 0}, "lines": [{"step": 24}], "whole": ["20-1.orbax-checkpoint-tmp", "24-1"]},
            "while an old checkpoint was removed",
        ),
        ({"told": {"from_step": 0}, "lines": [{"step": 24}], "whole": ["24-1"]}, "right after a commit"),
        ({"told": {"from_step": 0}, "lines": [{"step": LAST}]}, "in the final evaluation"),
        ({"told": {"from_step": 0}, "lines": [{"step": LAST}, {"step": LAST, "eval": {}}]}, "before the result"),
        ({"told": {"from_step": 0}, "result": {"timing": {"attempt": 1}}}, "between the result and its metrics"),
    ],
)
def test_where_a_kill_hit_is_read_from_the_files(tmp_path, files, where):
    assert chaos_run.whereabouts(made(tmp_path, **files)) == where


def test_a_process_and_its_own_are_found_until_they_end():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    while len(found := chaos_sweep.descendants(process.pid)) < 1:
        time.sleep(0.01)
    assert all(map(chaos_sweep.is_alive, found))
    assert "time.sleep(60)" in chaos_sweep.command_of(found[0])
    process.kill()
    process.wait()
    assert chaos_sweep.is_alive(found[0])  # kill -9 of the parent alone leaves it, unless it asks to go with it
    os.kill(found[0], signal.SIGKILL)
    while chaos_sweep.is_alive(found[0]):
        time.sleep(0.01)


COUNTED = {"kills": 30, "results_lost": 0, "recorded_twice": 0, "differences": []}
SECONDS = {"lost_seconds": 6.0, "start_seconds": 2.5, "again_seconds": 0.5, "told_seconds": 3.0, "twin_seconds": 20.0}
ROWS = {
    "run": {**COUNTED, **SECONDS, "where": {"while restoring": 20, "right after a commit": 10}},
    "sweep": {
        **COUNTED,
        "where": {"worker killed": 5, "owner paused and woken": 3},
        "taken_over": 2,
        "woken": {"lost": 2},
    },
    "checkpoint": {"tried": 900, "detected": 700, "harmless": 200, "wrong": 0},
    "inputs": {"tried": 9000, "read": 2000, "refused": 7000, "broken": 0, "files": ["run.json", "plan.json"]},
    "hosts": {"lost": {"slurm": 1}, "skipped": [], "failed_tests": 0, "results_lost": 0, "recorded_twice": 0},
}


def test_the_table_counts_what_was_lost_in_any_row():
    lines = robustness.table(ROWS)
    assert "| results lost |  | 0 |" in lines
    assert "| cells recorded twice |  | 0 |" in lines
    assert (
        "| owners of a run paused and woken | 3 | 2 were taken over meanwhile; how their attempts ended: 2 lost |"
        in lines
    )
    assert lines[-1].endswith("| 6.0 s: imports 2.5, steps done again 0.5, restoring, compiling and the rest 3.0 |")
    worse = {
        "run": {**ROWS["run"], "differences": ["the loss is another"]},
        "hosts": {**ROWS["hosts"], "results_lost": 2, "recorded_twice": 1, "failed_tests": 1},
    }
    lines = robustness.table({**ROWS, **worse})
    assert "| results lost |  | 3 |" in lines  # a result that is another one is lost
    assert "| cells recorded twice |  | 1 |" in lines
    assert any("the loss is another" in line for line in lines)
    assert "| hosts lost: 1 slurm | 1 | TESTS FAILED |" in lines


def test_the_command_says_what_it_did_and_what_differs():
    said = chaos.lines(ROWS["run"])
    assert said[1] == "   20 while restoring"
    assert said[-1] == "all as it would have been"
    assert "of the owners that were paused, 2 were taken over; their attempts: 2 lost" in chaos.lines(ROWS["sweep"])
    assert chaos.lines({**ROWS["sweep"], "differences": ["one", "two"]})[-2:] == ["DIFFERENT: one", "DIFFERENT: two"]


@pytest.mark.slow
def test_a_run_that_is_killed_thirty_times_is_as_if_it_had_not_been(tmp_path):
    row = chaos_run.survive(30, 0, tmp_path)
    print(json.dumps(row, indent=2))
    assert row["differences"] == []
    assert (row["kills"], row["results_lost"], row["recorded_twice"]) == (30, 0, 0)
    # Aimed kills hit what they are aimed at nearly always, and of each kind there are several.
    for where in ("while a checkpoint was written", "while restoring", "in the final evaluation"):
        assert row["where"].get(where, 0) >= 1, row["where"]


@pytest.mark.slow
def test_a_sweep_that_is_disturbed_is_as_if_it_had_not_been(tmp_path):
    row = chaos_sweep.survive(8, 0, tmp_path)
    print(json.dumps(row, indent=2))
    assert row["differences"] == []
    assert (row["kills"], row["results_lost"], row["recorded_twice"]) == (8, 0, 0)
