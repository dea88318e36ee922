"""What is handed to an engine and in which order, what came of it, and cells that several launchers share."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from scaling.errors import InputError, StoppedError
from scaling.files import write_json
from scaling.runs import DataSpec, ModelShape, OptimizerSpec, Run, ScheduleSpec, run_from_dict
from scaling.sweeps import execution, launch
from scaling.sweeps.cells import Cell
from scaling.sweeps.execution import check_engine, engine, execute
from scaling.sweeps.results import collect
from scaling.sweeps.tasks import (
    Task,
    Way,
    cell_command,
    cell_item,
    cell_of,
    died,
    outcome,
    pause,
    read_result,
    steps_done,
)
from scaling.sweeps.workdir import Sweep, add_cells, read_sweep, run_directory, save_sweep, update, write_sweep
from scaling.training.care import parse_care
from scaling.training.claims import Sightings
from scaling.training.failures import Failure

ROOT = pathlib.Path(__file__).parents[2]
SHAPE = ModelShape(d_model=8, n_layers=2, n_heads=1, d_ff=16, vocab_size=256)
RUN = Run(SHAPE, DataSpec("cafe", 16, 4), 2, 100, OptimizerSpec(1e-2), ScheduleSpec("cosine", 5))


@pytest.fixture
def sweep(tmp_path, make_config):
    """Four cells of rising budgets, the middle one in two widths, in tmp_path."""
    wide = dataclasses.replace(SHAPE, d_model=16)
    runs = [
        RUN,
        dataclasses.replace(RUN, model=wide),
        dataclasses.replace(RUN, steps=200),
        dataclasses.replace(RUN, steps=400),
    ]
    cells = tuple(Cell(run, budget) for run, budget in zip(runs, (1e6, 2e6, 2e6, 4e6), strict=True))
    sweep = Sweep(make_config("small"), {"cafe": "/stores/s"}, cells, ())
    save_sweep(tmp_path, sweep)
    return sweep


@pytest.fixture
def engine_of(monkeypatch):
    """Puts a made-up engine in the place of all."""
    return lambda run: monkeypatch.setattr(execution, "engine", lambda launcher: run)


def record(directory, **timing):
    """A result as training leaves it."""
    write_json(directory / "result.json", {"run": directory.name, "loss": 2.0, "timing": {"attempt": 1, **timing}})
    (directory / "metrics.jsonl").write_text('{"step": 100, "tokens": 3200, "loss": 2.0}\n')


def fail(directory, kind, reason, **fields):
    write_json(directory / "failure.json", Failure(kind, reason, **fields).to_json())


def test_what_is_not_done_is_run_largest_first(engine_of, tmp_path, sweep):
    """What failed of itself is not tried again; what was killed, or may have been mended, is: a start is a chance."""
    asked = []

    def run_none(workdir, tasks, way, on_event):
        asked.append([task.run for task in tasks])
        for index in range(len(tasks)):
            on_event(index, {"event": "done"})
        return True

    engine_of(run_none)
    small, wide, narrow, large = (cell.id for cell in sweep.cells)
    assert execute(tmp_path, sweep, sweep.cells, Way(2)) == []
    assert asked == [[large, narrow, wide, small]]
    record(run_directory(tmp_path, large))
    fail(run_directory(tmp_path, wide), "not_finite", "loss nan")
    fail(run_directory(tmp_path, small), "killed", "killed")
    fail(run_directory(tmp_path, narrow), "refused", "no such store")
    failed = execute(tmp_path, sweep, sweep.cells, Way(2))
    assert [(cell.id, reason) for cell, reason in failed] == [(wide, "loss nan")]
    assert asked[1] == [narrow, small]


def test_failures_are_returned_and_the_rest_goes_on(engine_of, tmp_path, sweep):
    def one_fails(workdir, tasks, way, on_event):
        told = {"kind": "killed", "reason": "killed"}
        on_event(0, {"event": "progress", "done": 1, "steps": 2})
        on_event(0, {"event": "again", **told, "tries": 1})
        on_event(0, {"event": "failed", **told, "retry": "soon"})
        on_event(1, {"event": "done"})
        return True

    engine_of(one_fails)
    assert execute(tmp_path, sweep, sweep.cells[:2], Way(2)) == [(sweep.cells[1], "killed")]


def test_a_stop_is_said(engine_of, tmp_path, sweep):
    engine_of(lambda *arguments: False)
    with pytest.raises(StoppedError, match="saved; the same command goes on from here"):
        execute(tmp_path, sweep, sweep.cells, Way(2))


def test_nothing_to_do_starts_nothing(engine_of, tmp_path, sweep):
    for cell in sweep.cells:
        record(run_directory(tmp_path, cell.id))
    engine_of(None)
    assert execute(tmp_path, sweep, sweep.cells, Way(2)) == []


def test_a_file_that_is_no_result_fails_its_cell_and_no_other(engine_of, tmp_path, sweep):
    done = []
    engine_of(lambda workdir, tasks, *rest: done.extend(task.run for task in tasks) or True)
    torn = run_directory(tmp_path, sweep.cells[0].id) / "result.json"
    torn.parent.mkdir(parents=True)
    torn.write_text('{"run": "d8')
    ((cell, reason),) = execute(tmp_path, sweep, sweep.cells, Way(2))
    assert cell == sweep.cells[0]
    assert str(torn) in reason
    assert len(done) == 3


def test_a_result_whose_process_was_killed_then_is_finished(engine_of, tmp_path, sweep):
    """Its metrics are moved up, and the failure of an earlier attempt goes."""
    directory = run_directory(tmp_path, sweep.cells[0].id)
    record(directory)
    write_json(directory / "attempts" / "1" / "attempt.json", {"attempt": 1, "outcome": None})
    (directory / "metrics.jsonl").rename(directory / "attempts" / "1" / "metrics.jsonl")
    fail(directory, "killed", "x")
    engine_of(lambda *arguments: True)
    execute(tmp_path, sweep, sweep.cells, Way())
    collect(tmp_path, sweep)
    assert (directory / "metrics.jsonl").exists()
    assert not (directory / "failure.json").exists()


def test_each_launcher_has_its_engine():
    assert engine("local") is launch.run_local
    check_engine(Way())
    assert engine("slurm").__name__ == "run_slurm"


def test_pauses_double_up_to_five_minutes():
    assert [pause(tries) for tries in (1, 2, 3, 8, 9, 10**6)] == [2.0, 4.0, 8.0, 256.0, 300.0, 300.0]
    assert [pause(tries, elsewhere=True) for tries in (1, 2, 3)] == [5.0, 5.0, 8.0]


def test_the_command_of_a_cell_says_all_that_the_way_does(tmp_path, sweep, monkeypatch):
    """From any directory: paths are absolute. Its item is that of a worker."""
    monkeypatch.chdir(tmp_path)
    way = Way(trackers=("wandb",), profile_steps=2, plan="plan.json", care=parse_care("step_seconds=600,keep_every=3"))
    run = sweep.cells[0].id
    assert cell_command(pathlib.Path("."), run, way) == [
        sys.executable,
        "-m",
        "experiments.cell",
        f"--workdir={tmp_path}",
        f"--cell={run}",
        f"--plan={tmp_path}/plan.json",
        "--trackers=wandb",
        "--profile_steps=2",
        f"--care={way.care.text()}",
    ]
    assert parse_care(way.care.text()) == way.care
    assert cell_command(tmp_path, run, Way())[3:] == [f"--workdir={tmp_path}", f"--cell={run}"]
    item = json.loads(json.dumps(cell_item(tmp_path, sweep.cells[0], sweep, way)))
    assert run_from_dict(item.pop("run")) == RUN
    assert item == {
        "directory": str(tmp_path / "runs" / run),
        "stores": ["/stores/s"],
        "placement": {},
        "trackers": ["wandb"],
        "profile_steps": 2,
        "care": way.care.text(),
    }


def test_an_unknown_cell_is_refused_with_the_nearest(sweep):
    known = sweep.cells[0].id
    assert cell_of(sweep, known) == sweep.cells[0]
    with pytest.raises(InputError, match=f"is no cell of this sweep .did you mean {known}"):
        cell_of(sweep, known[:-1])


def attempt(directory, **fields):
    """Claims a run and lets go of it, with an attempt.json, as training does."""
    held = Sightings(60.0).take(directory)
    write_json(directory / "attempts" / str(held.attempt) / "attempt.json", {"attempt": held.attempt, **fields})
    held.release()


@pytest.mark.parametrize(
    ("code", "told", "files"),
    [
        (0, {"event": "done"}, {"result": True}),
        (-9, {"event": "done"}, {"result": True}),
        (75, {"event": "stopped"}, {"outcome": "stopped"}),
        (75, {"event": "stopped"}, {"outcome": "lost", "failure": ("killed", "of before")}),
        (75, {"event": "stopped"}, {"outcome": "handed_over"}),  # by a trunk that still had the claim
        (75, {"kind": "disk_full", "retry": "soon"}, {"outcome": "failed", "failure": ("disk_full", "x")}),
        (3, {"kind": "diverged", "retry": "never"}, {"outcome": "failed", "failure": ("diverged", "x")}),
        (137, {"kind": "diverged", "retry": "never"}, {"outcome": "failed", "failure": ("diverged", "x")}),
        (2, {"kind": "refused", "retry": "when mended"}, {"failure": ("refused", "no such store")}),
        (124, {"kind": "hung", "retry": "soon"}, {"outcome": "failed", "failure": ("hung", "x")}),
        (-9, {"kind": "killed", "retry": "soon"}, {"outcome": None}),
        (137, {"kind": "killed", "retry": "soon"}, {"outcome": None, "failure": ("hung", "of before")}),
        (1, {"kind": "bug", "retry": "when mended"}, {}),
        (2, {"kind": "refused", "retry": "when mended"}, {}),
    ],
)
def test_what_came_of_a_command_is_told_by_its_files_and_its_code(tmp_path, code, told, files):
    directory = tmp_path / "runs" / "r"
    directory.mkdir(parents=True)
    if "outcome" in files:
        attempt(directory, outcome=files["outcome"])
    if "failure" in files:
        fail(directory, *files["failure"])
    if "result" in files:
        record(directory)
    event = outcome(directory, code)
    assert {name: event[name] for name in told} == told
    assert (event["event"] == "failed") == ("kind" in told)
    if "kind" in told:
        assert json.loads((directory / "failure.json").read_text())["reason"] == event["reason"]


def test_what_ends_in_the_training_without_a_word_was_killed(tmp_path):
    """By the watchdog's second line, which knows the code of bugs alone; a bug there would have left word."""
    Sightings(60.0).take(tmp_path)
    assert outcome(tmp_path, 1)["kind"] == "killed"


def test_the_death_of_an_attempt_is_not_laid_on_the_next(tmp_path):
    """Whoever sees a process die may be late: another has the run by then, or has even recorded it."""
    Sightings(60.0).take(tmp_path)
    assert died(tmp_path, "killed").attempt == 1
    assert not (tmp_path / "failure.json").exists()


def test_the_steps_of_a_run_elsewhere_are_read_from_the_end_of_its_metrics(tmp_path):
    assert steps_done(tmp_path) == 0
    lines = [json.dumps({"step": step, "tokens": step, "loss": 2.0}) for step in range(1000)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 100')
    assert steps_done(tmp_path) == 999


@pytest.fixture
def agenda(tmp_path, monkeypatch):
    """The agenda of a launcher over cells a, b, c in tmp_path, looked at without delay, and what it tells."""
    monkeypatch.setattr(launch, "LOOK_SECONDS", 0.05)
    told = []

    def make(**fields):
        for name in "abc":
            (tmp_path / name).mkdir(exist_ok=True)
        tasks = [Task(name, tmp_path / name, 1.0, 100) for name in "abc"]
        return launch.Agenda(tasks, Way(**fields), lambda index, event: told.append(("abc"[index], event["event"])))

    make.told = told
    return make


def test_a_cell_that_another_launcher_has_is_passed_over_and_looked_at_again(agenda, tmp_path):
    """It is done when the other is done with it; let go of without a result, it is ours."""
    work, stop = agenda(), threading.Event()
    first, second = (Sightings(60.0).take(tmp_path / name) for name in "ab")
    assert work.next(stop) == 2
    record(tmp_path / "a")
    first.release()
    threading.Timer(0.3, second.release).start()
    assert work.next(stop) == 1
    assert ("a", "done") in agenda.told
    assert ("b", "progress") in agenda.told
    assert ("b", "done") not in agenda.told
    assert work.next(stop) is None


def test_a_cell_of_an_owner_that_is_gone_is_ours_at_once(agenda, tmp_path):
    code = "import pathlib, sys; from scaling.training.claims import Sightings; Sightings(60.0).take(pathlib.Path('.'))"
    (tmp_path / "a").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "a", check=True, env=environment)
    assert agenda().next(threading.Event()) == 0


def test_a_cell_of_a_silent_owner_elsewhere_is_ours_when_its_claim_is_stale(agenda, tmp_path):
    (tmp_path / "a").mkdir()
    Sightings(60.0).take(tmp_path / "a")
    claim = json.loads((tmp_path / "a" / "claim.json").read_text())
    write_json(tmp_path / "a" / "claim.json", {**claim, "machine": "another", "host": "another"})
    work, stop, start = agenda(care=parse_care("stale_seconds=1")), threading.Event(), time.monotonic()
    assert [work.next(stop) for _ in range(3)] == [1, 2, 0]
    assert 0.5 < time.monotonic() - start < 5


def test_a_failure_that_another_launcher_meets_is_ours_too(agenda, tmp_path):
    """Of the run itself, or to be mended: it is not tried here as well. What was there before is, once."""
    (tmp_path / "b").mkdir()
    fail(tmp_path / "b", "refused", "of before")
    work, stop = agenda(), threading.Event()
    fail(tmp_path / "a", "diverged", "x")
    assert work.next(stop) == 1
    fail(tmp_path / "c", "killed", "x")
    assert work.next(stop) == 2
    assert agenda.told == [("a", "failed")]


def test_a_stop_ends_the_waiting(agenda, tmp_path):
    held = [Sightings(60.0).take(path) for path in (tmp_path / name for name in "abc") if not path.mkdir()]
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    assert agenda().next(stop) is None
    assert len(held) == 3


def test_a_changed_text_is_changed_again(tmp_path):
    """Two who add a line each at the same time: both lines are there."""
    path = tmp_path / "lines"

    def change(text):
        if text is None:
            path.write_text("other\n")
        return (text or "") + "mine\n"

    update(path, change)
    assert path.read_text() == "other\nmine\n"


def test_cells_that_two_launchers_add_at_once_are_all_kept(tmp_path, make_config, make_texts, sweep):
    """Each has read the sweep before the other's were there."""
    more = [Cell(dataclasses.replace(RUN, seed=seed), 1e6) for seed in (5, 6)]
    one = add_cells(tmp_path, sweep, more[:1])
    two = add_cells(tmp_path, sweep, more[1:])
    assert one.cells == (*sweep.cells, more[0])
    assert two.cells == (*sweep.cells, *more) == read_sweep(tmp_path).cells


def test_launchers_that_begin_at_once_make_one_sweep(tmp_path, make_config, make_texts):
    """The same content from each, whoever is first; none takes what another has begun for something foreign."""
    config, faults = make_config("small"), []

    def begin():
        try:
            write_sweep(tmp_path / "sweep", config, make_texts(), [Cell(RUN, 1e6)], ())
            (tmp_path / "sweep" / "workers.log").write_text("")
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert faults == []
    assert [cell.run for cell in read_sweep(tmp_path / "sweep").cells] == [RUN]


def test_a_result_is_read_whole_or_not_at_all(tmp_path):
    assert read_result(tmp_path) is None
    record(tmp_path)
    assert read_result(tmp_path)["loss"] == 2.0
    (tmp_path / "result.json").write_text('{"run": "another", "loss": 2.0}')
    with pytest.raises(InputError, match=r"is no result of .*remove the file"):
        read_result(tmp_path)
