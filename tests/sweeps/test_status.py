"""Watching a sweep: throughput and time left from known records, what is listed, when the watch ends, and how."""

import dataclasses
import json
import math
import os
import pathlib
import pty
import signal
import socket
import subprocess
import sys
import time

import pandas as pd
import pytest

from scaling.errors import InputError
from scaling.files import write_json
from scaling.runs import DataSpec, ModelShape, OptimizerSpec, Run, ScheduleSpec
from scaling.sweeps.cells import Cell
from scaling.sweeps.status import ask_profile, duration, notes, status_row, status_rows, status_text, time_left
from scaling.sweeps.watch import ANALYSIS_SECONDS, is_over, watch
from scaling.sweeps.workdir import Sweep, run_directory, save_sweep
from scaling.training.claims import Sightings
from scaling.training.failures import Failure
from scaling.training.profiling import REQUEST

ROOT = pathlib.Path(__file__).parents[2]
RUN = Run(
    model=ModelShape(16, 2, 2, 32, vocab_size=264, tied_embeddings=True),
    data=DataSpec("cafe", sequence_length=16, eval_windows=10),
    batch_size=8,
    steps=1000,
    optimizer=OptimizerSpec(peak_lr=0.01),
    schedule=ScheduleSpec("cosine", warmup_steps=2),
)
TOKENS = 8 * 16  # a step


def write_records(workdir, cell, paces, loss=2.5, result=False):
    """The records of a run that logs every 10 steps. paces: (steps, seconds of training a step) one after the other.

    Besides, it compiled for 60 s, and evaluates for 0.5 s every 10 steps.
    """
    directory = run_directory(workdir, cell.id)
    directory.mkdir(parents=True)
    step, seconds = 0, {"compile": 60.0, "train": 0.0, "evaluate": 0.0}
    with open(directory / "metrics.jsonl", "w") as metrics, open(directory / "timing.jsonl", "w") as timing:
        for steps, pace in paces:
            for _ in range(0, steps, 10):
                step, seconds["train"] = step + 10, seconds["train"] + 10 * pace
                seconds["evaluate"] += 0.5
                held_out = {"validation": {"loss": loss, "stderr": 0.1}, "code": {"loss": 1.0, "stderr": 0.1}}
                for line in ({"loss": 9.0}, {"eval": held_out}):
                    metrics.write(json.dumps({"step": step, "tokens": step * TOKENS, **line}) + "\n")
                timing.write(json.dumps({"step": step, "seconds": seconds}) + "\n")
    if result:
        write_result(directory)
    return directory


def write_result(directory, **timing):
    (directory / "result.json").write_text(json.dumps({"run": directory.name, "loss": 2.5, "timing": timing}))


def take(directory):
    """Claims a run, as the process that trains it does."""
    return Sightings(60.0).take(directory)


@pytest.fixture
def make_sweep(tmp_path, make_config):
    """A sweep of so many cells, that differ by their seeds, in tmp_path."""

    def make(count, **changes):
        cells = tuple(Cell(dataclasses.replace(RUN, seed=seed), 1e10) for seed in range(count))
        sweep = Sweep(make_config("small", **changes), {"cafe": "/stores/s"}, cells, ())
        save_sweep(tmp_path, sweep)
        return sweep

    return make


def test_throughput_of_a_running_cell_is_that_of_its_latest_steps(make_sweep, tmp_path):
    """500 steps at 2 s, then 100 at 0.25 s, each 10 with an evaluation of 0.5 s: 400 steps are left."""
    (cell,) = make_sweep(1).cells
    directory = write_records(tmp_path, cell, [(500, 2.0), (100, 0.25)])
    take(directory)
    row = status_row(tmp_path, cell)
    assert (row["status"], row["progress"], row["loss"]) == ("running", 0.6, 2.5)
    assert row["tokens_per_second"] == pytest.approx(TOKENS / 0.25)
    assert row["seconds_left"] == pytest.approx(400 * (0.25 + 0.05))
    assert row["seconds"] == pytest.approx(60 + 1025 + 30)


def test_throughput_of_a_cell_at_its_beginning_is_known_from_its_first_line(make_sweep, tmp_path):
    """Compilation is no part of it."""
    (cell,) = make_sweep(1).cells
    take(write_records(tmp_path, cell, [(10, 0.5)]))
    row = status_row(tmp_path, cell)
    assert row["tokens_per_second"] == pytest.approx(TOKENS / 0.5)
    assert row["seconds_left"] == pytest.approx(990 * (0.5 + 0.05))


def test_throughput_of_a_done_cell_is_that_of_all_its_steps(make_sweep, tmp_path):
    (cell,) = make_sweep(1).cells
    write_records(tmp_path, cell, [(500, 2.0), (500, 1.0)], result=True)
    row = status_row(tmp_path, cell)
    assert row["tokens_per_second"] == pytest.approx(TOKENS / 1.5)
    assert math.isnan(row["seconds_left"])


def test_nothing_is_said_of_a_cell_that_has_not_begun(make_sweep, tmp_path):
    sweep = make_sweep(2)
    run_directory(tmp_path, sweep.cells[0].id).mkdir(parents=True)
    take(run_directory(tmp_path, sweep.cells[0].id))
    table = status_rows(tmp_path, sweep)
    assert table["status"].tolist() == ["running", "missing"]
    assert table[["loss", "tokens_per_second", "seconds_left"]].isna().all(axis=None)
    assert "nan" not in status_text(table)


def test_the_sweep_takes_no_less_than_the_longest_of_its_running_cells(make_sweep, tmp_path):
    sweep = make_sweep(2)
    write_records(tmp_path, sweep.cells[0], [(1000, 0.1)], result=True)
    take(write_records(tmp_path, sweep.cells[1], [(100, 60.0)]))
    assert time_left(status_rows(tmp_path, sweep)).startswith("about 15.0 h left")  # 900 steps of 60.05 s


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (3600, "60 min"), (9000, "2.5 h"), (36 * 3600, "1.5 days")],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_columns_that_say_nothing_are_not_shown(make_sweep, tmp_path):
    table = status_rows(tmp_path, make_sweep(1))
    assert "variant" not in status_text(table)
    told = status_text(table.assign(variant="optimizer.peak_lr=0.01", budget=float("nan")))
    assert "optimizer.peak_lr=0.01" in told
    assert "budget" not in told


def test_a_watch_that_is_no_terminal_prints_until_nothing_is_left(make_sweep, tmp_path, capsys):
    """Of 100 cells, those that failed are listed, and the rest are counted."""
    sweep = make_sweep(100)
    for cell in sweep.cells:
        run_directory(tmp_path, cell.id).mkdir(parents=True)
        write_result(run_directory(tmp_path, cell.id))
    failed = run_directory(tmp_path, sweep.cells[7].id)
    (failed / "result.json").unlink()
    (failed / "failure.json").write_text(json.dumps(Failure("not_finite", "step 7: loss nan").to_json()))
    save_sweep(tmp_path, dataclasses.replace(sweep, config=dataclasses.replace(sweep.config, prediction=0.0)))
    watch(tmp_path, 0.01, all_cells=False)
    lines = capsys.readouterr().out.splitlines()
    assert "99 done, 1 failed; " in lines[0]
    assert lines[0].endswith("nothing left to run")
    assert lines[1] == "failed now: not_finite 1"
    assert len(lines) == 5
    assert lines[-1] == f"failed: {sweep.cells[7].id}: step 7: loss nan"
    watch(tmp_path, 0.01, all_cells=True)
    assert len(capsys.readouterr().out.splitlines()) == 104


def test_a_watch_sees_cells_end_and_cells_that_join(make_sweep, tmp_path, capsys, monkeypatch):
    """What happens between two looks happens while it sleeps."""
    sweep = make_sweep(1)
    held = take(write_records(tmp_path, sweep.cells[0], [(100, 0.1)]))
    test = Cell(dataclasses.replace(RUN, steps=2000), 2e10, "prediction")

    def ends(_):
        write_result(run_directory(tmp_path, sweep.cells[0].id))
        held.release()

    def joins(_):
        write_records(tmp_path, test, [(2000, 0.1)], result=True)
        save_sweep(tmp_path, dataclasses.replace(sweep, cells=(*sweep.cells, test)))

    changes = iter([ends, joins])
    monkeypatch.setattr(time, "sleep", lambda seconds: next(changes)(seconds))
    watch(tmp_path, 3.0, all_cells=False)
    heads = [line for line in capsys.readouterr().out.splitlines() if "FLOPs" in line]
    assert ["1 running" in heads[0], "  1 done; " in heads[1], "  2 done; " in heads[2]] == [True] * 3
    assert len(heads) == 3


def test_a_watch_waits_for_the_run_that_tests_the_law_but_not_for_ever(make_sweep, tmp_path):
    sweep = make_sweep(1)
    directory = write_records(tmp_path, sweep.cells[0], [(1000, 0.1)], result=True)
    table = status_rows(tmp_path, sweep)
    assert sweep.config.prediction > 0
    assert not is_over(tmp_path, sweep, table)
    assert is_over(tmp_path, sweep, pd.concat([table, table.assign(role="prediction")]))
    assert not is_over(tmp_path, sweep, pd.concat([table, table.assign(role="prediction", status="running")]))
    old = time.time() - ANALYSIS_SECONDS - 1
    os.utime(directory / "result.json", (old, old))
    assert is_over(tmp_path, sweep, table)
    assert not is_over(tmp_path, sweep, table.assign(status="missing"))


def write_attempts(directory, *outcomes, **fields):
    """attempt.json of attempts one after the other: (outcome, kind) each."""
    for number, (outcome, kind) in enumerate(outcomes, 1):
        values = {"attempt": number, "time": time.time() - 1800, "outcome": outcome, "kind": kind, **fields}
        write_json(directory / "attempts" / str(number) / "attempt.json", values)


def test_failures_are_counted_by_their_kinds(make_sweep, tmp_path):
    """Over all attempts, those of cells that came through included; an attempt that ended without a word was killed,
    unless it is under way. Besides, why cells have failed as they stand."""
    running, done, diverged, new = make_sweep(4).cells
    for cell in (running, done, diverged):
        run_directory(tmp_path, cell.id).mkdir(parents=True)
    for _ in range(3):
        held = take(run_directory(tmp_path, running.id))
        if held.attempt < 3:
            held.release()
    write_attempts(run_directory(tmp_path, running.id), ("failed", "disk_full"), ("stopped", None), (None, None))
    write_attempts(run_directory(tmp_path, done.id), (None, None), (None, None), ("recorded", None))
    write_result(run_directory(tmp_path, done.id))
    write_attempts(run_directory(tmp_path, diverged.id), ("failed", "diverged"))
    failure = Failure("diverged", "the loss rose").to_json()
    write_json(run_directory(tmp_path, diverged.id) / "failure.json", failure)
    table = pd.DataFrame([status_row(tmp_path, cell) for cell in (running, done, diverged, new)])
    assert "failed attempts so far: killed 2, disk_full 1, diverged 1; failed now: diverged 1" in notes(table)


def test_throughput_is_told_of_what_runs(make_sweep, tmp_path):
    """Three results within the half hour since the first attempt began are six an hour."""
    sweep = make_sweep(5)
    for cell in sweep.cells[:3]:
        write_records(tmp_path, cell, [(1000, 0.1)], result=True)
        write_attempts(run_directory(tmp_path, cell.id), ("recorded", None))
    for cell in sweep.cells[3:]:
        take(write_records(tmp_path, cell, [(100, 0.5)]))
    table = status_rows(tmp_path, sweep)
    rate = 2 * sweep.cells[0].flops / 1000 / 0.5
    assert notes(table)[0] == f"at work on {socket.gethostname()} (2), {rate:.3g} FLOP/s, 6 cells an hour"
    assert notes(table[:3]) == []


def test_a_cell_slower_than_its_peers_is_told_with_both_numbers(make_sweep, tmp_path):
    """Those on as many devices of the same kind, of a size within a factor of two: of three at 0.1 s a step, the fourth
    takes 0.3 s; at 0.15 s it would do."""
    sweep = make_sweep(6)
    paces = {0: 0.1, 1: 0.1, 2: 0.1, 3: 0.3, 4: 0.001, 5: 0.001}
    for index, pace in paces.items():
        directory = write_records(tmp_path, sweep.cells[index], [(100, pace)])
        take(directory)
        write_attempts(directory, (None, None), device_kind="cpu" if index < 4 else "TPU v4", devices=2)
    table = status_rows(tmp_path, sweep)
    each = sweep.cells[0].flops / 1000 / 2
    (slow,) = [line for line in notes(table) if line.startswith("slow")]
    assert slow == (
        f"slow: {sweep.cells[3].id}: {each / 0.3:.3g} FLOP/s a device on {socket.gethostname()}; the median of 3 cells "
        f"like it is {each / 0.1:.3g}"
    )
    for changed in (
        table.assign(flops_per_second=table["flops_per_second"].where(table.index != 3, 2 * each / 0.15)),
        table.assign(N=table["N"].where(table.index != 3, 2.1 * table["N"][3])),
        table.assign(devices=table["devices"].where(table.index != 3, 4)),
        table.assign(device_kind=table["device_kind"].where(table.index != 3, "")),
        table.drop(index=[1, 2]),
    ):
        assert not [line for line in notes(changed) if line.startswith("slow")]


def test_a_silent_cell_is_told_with_its_host(make_sweep, tmp_path):
    """Still running by its claim after 40 s, and free to be taken over after a minute; told until somebody does."""
    sweep = make_sweep(1)
    (cell,) = sweep.cells
    directory = write_records(tmp_path, cell, [(10, 0.5)])
    take(directory)
    claim = json.loads((directory / "claim.json").read_text())
    for seconds, status in ((10, "running"), (40, "running"), (89, "missing")):
        other = {**claim, "machine": "another", "host": "node7", "time": time.time() - seconds}
        write_json(directory / "claim.json", other)
        table = status_rows(tmp_path, sweep)
        assert table["status"].tolist() == [status]
        told = f"quiet: {cell.id}: no sign of life for {seconds} s on node7"
        assert (told in notes(table)) == (seconds > 20)


@pytest.mark.parametrize("terminal", [False, True])
def test_ctrl_c_ends_a_watch_with_0(make_sweep, tmp_path, terminal):
    """On a terminal the line is erased and written anew, and the cursor is given back at the end."""
    make_sweep(2)
    command = [sys.executable, "-m", "tools.status", f"--workdir={tmp_path}", "--watch=0.1"]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=theirs if terminal else subprocess.PIPE, stderr=subprocess.PIPE
    )
    os.close(theirs)
    source = ours if terminal else process.stdout.fileno()
    shown = b""
    while shown.count(b"2 missing") < 3:
        shown += os.read(source, 4096)
    process.send_signal(signal.SIGINT)
    errors = process.stderr.read()
    assert process.wait() == 0, errors
    assert errors == b""
    if terminal:
        shown += os.read(ours, 4096)
    assert (b"\x1b[2K" in shown, shown.count(b"\x1b[?25h")) == (terminal, int(terminal))
    os.close(ours)


def test_a_profile_is_asked_of_a_running_cell(make_sweep, tmp_path):
    sweep = make_sweep(3)
    one, other, third = sweep.cells
    for cell in (one, other):
        take(write_records(tmp_path, cell, [(10, 0.5)]))
    assert ask_profile(tmp_path, sweep.cells, one.id) == run_directory(tmp_path, one.id) / "profile"
    ask_profile(tmp_path, sweep.cells, f"{other.id}:12")
    asked = [json.loads((run_directory(tmp_path, cell.id) / REQUEST).read_text()) for cell in (one, other)]
    assert asked == [{"steps": 5}, {"steps": 12}]
    for wish, fault in (
        (one.id[:-1], rf"'{one.id[:-1]}' is not running \(did you mean {one.id}\?\)"),
        (f"{one.id}:0", "RUN:STEPS"),
        (f"{one.id}:", "RUN:STEPS"),
        (f"{one.id}:few", "RUN:STEPS"),
        (third.id, f"'{third.id}' is not running"),
    ):
        with pytest.raises(InputError, match=fault):
            ask_profile(tmp_path, sweep.cells, wish)
    assert not run_directory(tmp_path, third.id).exists()


def test_a_profile_of_a_sweep_that_stands_still_is_refused(make_sweep, tmp_path):
    sweep = make_sweep(1)
    with pytest.raises(InputError, match="nothing is running"):
        ask_profile(tmp_path, sweep.cells, sweep.cells[0].id)
