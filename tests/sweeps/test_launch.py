"""Cells side by side in worker processes: real ones on a tiny model, and made-up ones for the rules between them."""

import collections
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from scaling.errors import StoppedError
from scaling.files import write_json
from scaling.runs import DataSpec, ModelShape, OptimizerSpec, Placement, Run, ScheduleSpec, run_to_dict
from scaling.sweeps import execution, launch
from scaling.sweeps.cells import Cell
from scaling.sweeps.execution import Way, execute
from scaling.sweeps.launch import run_cells
from scaling.sweeps.results import cell_status

ROOT = pathlib.Path(__file__).parents[2]
TINY = ModelShape(d_model=8, n_layers=2, n_heads=1, d_ff=16, vocab_size=256)


PLAIN = {"placement": {}, "trackers": [], "profile_steps": 0}


@pytest.fixture
def stores(text_store):
    return {text_store.content_id: str(text_store.path)}


@pytest.fixture(scope="module")
def tiny_run(text_store):
    data = DataSpec(text_store.content_id, sequence_length=16, eval_windows=4)
    optimizer, schedule = OptimizerSpec(1e-2), ScheduleSpec("cosine", 5)
    return Run(TINY, data, batch_size=2, steps=100, optimizer=optimizer, schedule=schedule, eval_points=3)


def prepare(directory, run, store):
    """A cell as `run_cells` takes it."""
    directory.mkdir(parents=True)
    write_json(directory / "run.json", run_to_dict(run))
    return {"directory": str(directory), "stores": [str(store.path)], **PLAIN}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One compilation cache for all workers of this file: they differ in steps and rates, not in programs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def one_device():
    """Workers as a user has them, not with the fake devices of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
        yield


LONG = 3000  # steps, some seconds: a signal that is sent at the first report comes in good time
Outcome = collections.namedtuple("Outcome", "complete events directories pids")


@pytest.fixture(scope="module")
def four_cells(tmp_path_factory, tiny_run, text_store, cache, one_device):
    """Four real cells by one worker: one good, one whose loss explodes, one whose process is killed, and one more."""
    root = tmp_path_factory.mktemp("cells")
    runs = {
        "good": dataclasses.replace(tiny_run, steps=LONG),
        "explodes": dataclasses.replace(tiny_run, optimizer=OptimizerSpec(1e30)),
        "killed": dataclasses.replace(tiny_run, steps=10**6),
        "last": tiny_run,
    }
    cells = [prepare(root / name, run, text_store) for name, run in runs.items()]
    events, pids = {name: [] for name in runs}, {}
    names = list(runs)

    def on_event(index, event):
        name = names[index]
        events[name].append(event)
        if name == "killed" and event["event"] == "progress":
            os.kill(pids[name], signal.SIGKILL)

    one_cell = launch._one_cell

    def spy(worker, cell, tell):
        pids[pathlib.Path(cell["directory"]).name] = worker.pid
        one_cell(worker, cell, tell)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_one_cell", spy)
        complete = run_cells(cells, 1, root / "workers.log", cache, on_event)
    return Outcome(complete, events, {name: root / name for name in runs}, pids)


def test_a_cell_reports_its_steps_in_order_and_then_its_end(four_cells):
    for name, steps in (("good", LONG), ("last", 100)):
        *progress, end = four_cells.events[name]
        assert end == {"event": "done"}
        assert {event["event"] for event in progress} == {"progress"}
        done = [event["done"] for event in progress]
        assert done == sorted(set(done))
        assert done[-1] == steps
        assert {event["steps"] for event in progress} == {steps}
        assert len(done) == 100


def test_one_failed_cell_does_not_stop_the_others(four_cells):
    assert four_cells.complete
    assert [cell_status(directory)[0] for directory in four_cells.directories.values()] == [
        "done",
        "failed",
        "failed",
        "done",
    ]


def test_a_loss_that_is_not_finite_fails_for_good_with_its_step(four_cells):
    *_, end = four_cells.events["explodes"]
    assert (end["event"], end["final"]) == ("failed", True)
    failure = json.loads((four_cells.directories["explodes"] / "failure.json").read_text())
    assert failure["final"]
    assert f"step {failure['step']} of 100: " in failure["reason"]
    assert "nan" in failure["reason"] or "inf" in failure["reason"]
    assert end["reason"].endswith(failure["reason"])
    assert not (four_cells.directories["explodes"] / "result.json").exists()


def test_a_killed_worker_fails_its_cell_for_this_time_with_the_signal(four_cells):
    *_, end = four_cells.events["killed"]
    reason = "its process ended with signal SIGKILL, as when memory runs out"
    assert end == {"event": "failed", "reason": reason, "final": False}
    failure = json.loads((four_cells.directories["killed"] / "failure.json").read_text())
    assert failure == {"reason": reason, "final": False}


def test_a_worker_trains_cell_after_cell_and_a_dead_one_is_replaced(four_cells):
    pids = four_cells.pids
    assert pids["good"] == pids["explodes"] == pids["killed"] != pids["last"]
    assert all(ended(pid) for pid in four_cells.pids.values())


def test_each_worker_stays_on_cores_of_its_own(tmp_path, one_device):
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this process has one core, or cannot be pinned: nothing to share out")
    workers = [launch._start(share, tmp_path / "log", tmp_path) for share in launch._shares(2)]
    everywhere, deadline = os.sched_getaffinity(0), time.monotonic() + 30
    while any(os.sched_getaffinity(worker.pid) == everywhere for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.02)  # each pins itself when it starts, before it imports jax
    first, second = (os.sched_getaffinity(worker.pid) for worker in workers)
    for worker in workers:
        worker.stdin.close()
        assert worker.wait(timeout=30) == 0
        worker.stdout.close()
    assert not first & second
    assert first | second == everywhere


@pytest.mark.parametrize(
    ("workers", "cores", "shares"),
    [
        (2, [0, 1], ["0", "1"]),
        (2, [1, 4, 6, 7], ["1,6", "4,7"]),
        (3, [0, 1, 2, 3], ["0,3", "1", "2"]),
        (1, [0, 1], [""]),
        (3, [0, 1], ["", "", ""]),
    ],
)
def test_cores_are_dealt_out(monkeypatch, workers, cores, shares):
    monkeypatch.setattr(launch, "_cores", lambda: cores)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, mask: None, raising=False)
    assert launch._shares(workers) == shares


def test_a_stopped_run_goes_on_and_ends_as_an_uninterrupted_one(four_cells, tmp_path, text_store, cache, one_device):
    run = json.loads((four_cells.directories["good"] / "run.json").read_text())
    cells = []
    for name in ("stopped", "waiting"):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "run.json", run)
        cells.append({"directory": str(tmp_path / name), "stores": [str(text_store.path)], **PLAIN})
    events = []

    def stop_at_first_progress(index, event):
        if not events:
            os.kill(os.getpid(), signal.SIGTERM)
        events.append((index, event))

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert not run_cells(cells, 1, tmp_path / "log", cache, stop_at_first_progress)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert {index for index, _ in events} == {0}
    assert events[-1] == (0, {"event": "stopped"})
    stopped_at = max(event["done"] for _, event in events[:-1])
    assert stopped_at < LONG
    assert [cell_status(tmp_path / name)[0] for name in ("stopped", "waiting")] == ["missing", "missing"]
    assert not (tmp_path / "waiting" / "checkpoints").exists()

    events = [None]
    assert run_cells(cells[:1], 1, tmp_path / "log", cache, lambda index, event: events.append(event))
    resumed_at = events[1]["done"]
    assert resumed_at > stopped_at
    assert events[-1] == {"event": "done"}
    whole, parts = four_cells.directories["good"], tmp_path / "stopped"
    results = [json.loads((directory / "result.json").read_text()) for directory in (whole, parts)]
    for result in results:
        del result["timing"]
    assert results[0] == results[1]
    assert (whole / "metrics.jsonl").read_text() == (parts / "metrics.jsonl").read_text()


LAUNCHER = """
import json, pathlib, sys
from scaling.sweeps import launch

start = launch._start
def spy(*arguments):
    worker = start(*arguments)
    print(worker.pid, flush=True)
    return worker
launch._start = spy
cell, log, cache = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
launch.run_cells([cell], 1, log, cache, lambda index, event: print(event["event"], flush=True))
"""


def ended(pid):
    """Whether a process is gone, or only waits for its parent to take note."""
    try:
        os.kill(pid, 0)
        stat = pathlib.Path(f"/proc/{pid}/stat")
        return pathlib.Path("/proc/self").exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


def test_workers_die_with_their_launcher(tmp_path, tiny_run, text_store, cache, one_device):
    """Killed at once, without a chance to tell anyone; until then the cell is running."""
    cell = prepare(tmp_path / "cell", dataclasses.replace(tiny_run, steps=10**6), text_store)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [json.dumps(cell), str(tmp_path / "log"), str(cache)]
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )
    pid = int(launcher.stdout.readline())
    assert launcher.stdout.readline() == "progress\n"
    assert cell_status(tmp_path / "cell") == ("running", "")
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    deadline = time.monotonic() + 10
    while not (ended(pid) and cell_status(tmp_path / "cell")[0] == "missing") and time.monotonic() < deadline:
        time.sleep(0.05)  # its threads end one by one, and the last one lets go of the lock
    assert ended(pid)
    assert cell_status(tmp_path / "cell") == ("missing", "")


FAKE = """
import json, os, signal, sys, time
print("to the log", file=sys.stderr)
for line in sys.stdin:
    what = os.path.basename(json.loads(line)["directory"])
    tell = lambda **event: print(json.dumps(event), flush=True)
    tell(event="progress", done=1, steps=2)
    if what == "exits":
        sys.exit(3)
    if what == "dies-after":
        tell(event="done")
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "half-a-line":
        sys.stdout.write('{"event": "pro')
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "sleeps":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        tell(event="progress", done=2, steps=2)
        time.sleep(600)
    tell(event="failed", reason="no such store", final=False) if what == "refused" else tell(event="done")
"""


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Runs cells named for what their made-up worker does. Returns (complete, events by name)."""
    starts = []

    def start(cores, log, cache):
        starts.append(cores)
        with open(log, "a") as errors:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
            return subprocess.Popen([sys.executable, "-c", FAKE], text=True, **pipes)

    monkeypatch.setattr(launch, "_start", start)

    def run(names, workers=1, on_event=lambda name, event: None):
        cells = []
        for name in names:
            (tmp_path / name).mkdir()
            cells.append({"directory": str(tmp_path / name), "stores": [], **PLAIN})
        events = {name: [] for name in names}

        def note(index, event):
            events[names[index]].append(event)
            on_event(names[index], event)

        return run_cells(cells, workers, tmp_path / "workers.log", tmp_path, note), events

    run.starts = starts
    return run


def test_cells_go_to_workers_in_order_and_share_them(fake):
    complete, events = fake(["a", "b", "c"])
    assert complete
    assert len(fake.starts) == 1
    done = [{"event": "progress", "done": 1, "steps": 2}, {"event": "done"}]
    assert events == {"a": done, "b": done, "c": done}


def test_no_more_workers_than_cells(fake):
    fake(["a", "b"], workers=8)
    assert len(fake.starts) <= 2


def test_a_worker_that_ends_by_itself_fails_its_cell_with_its_code(fake, tmp_path):
    complete, events = fake(["exits", "after"])
    assert complete
    assert events["exits"][-1] == {"event": "failed", "reason": "its process ended with code 3", "final": False}
    assert events["after"][-1] == {"event": "done"}
    assert len(fake.starts) == 2
    assert cell_status(tmp_path / "exits") == ("failed", "its process ended with code 3")


def test_a_refused_cell_is_recorded_by_the_launcher(fake, tmp_path):
    fake(["refused"])
    assert cell_status(tmp_path / "refused") == ("failed", "no such store")


def test_a_worker_that_dies_between_two_cells_costs_at_most_the_second(fake):
    """Whether its end is seen before the next cell is given to it is a matter of time; either is reported."""
    complete, events = fake(["dies-after", "b", "c"])
    assert complete
    assert events["dies-after"][-1] == {"event": "done"}
    assert events["b"][-1]["event"] in ("done", "failed")
    assert events["c"][-1] == {"event": "done"}


def test_a_worker_that_dies_in_the_middle_of_a_line_fails_its_cell_alone(fake):
    complete, events = fake(["half-a-line", "after"])
    assert complete
    assert events["half-a-line"][-1]["event"] == "failed"
    assert events["after"][-1] == {"event": "done"}


def test_what_workers_print_is_in_the_log(fake, tmp_path):
    fake(["a"])
    assert (tmp_path / "workers.log").read_text() == "to the log\n"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_cannot_be_started_is_not_passed_over(fake, monkeypatch):
    """The caller must not take such a sweep for complete: an error, or every cell failed with a reason."""

    def no_start(*arguments):
        raise OSError("cannot allocate memory")

    monkeypatch.setattr(launch, "_start", no_start)
    try:
        complete, events = fake(["a", "b"])
    except OSError:
        return
    assert not complete or all(told and told[-1]["event"] == "failed" for told in events.values())


def test_a_worker_that_does_not_stop_is_killed_after_the_grace(fake, monkeypatch):
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.5)

    def stop(name, event):
        if event.get("done") == 2:
            os.kill(os.getpid(), signal.SIGINT)

    complete, events = fake(["sleeps", "waiting"], on_event=stop)
    assert not complete
    assert events["waiting"] == []
    assert events["sleeps"][-1]["event"] == "failed"


def test_events_come_one_at_a_time(fake):
    inside = threading.Lock()

    def alone(name, event):
        assert inside.acquire(blocking=False)
        time.sleep(0.01)
        inside.release()

    complete, events = fake(list("abcdefgh"), workers=4, on_event=alone)
    assert complete
    assert all(told[-1] == {"event": "done"} for told in events.values())


@pytest.fixture
def cells_to_execute(tiny_run):
    """Three cells of rising budgets, the middle one in two widths."""
    wide = dataclasses.replace(TINY, d_model=16)
    runs = [
        dataclasses.replace(tiny_run, steps=100),
        dataclasses.replace(tiny_run, model=wide),
        dataclasses.replace(tiny_run, steps=200),
        dataclasses.replace(tiny_run, steps=400),
    ]
    return [Cell(run, budget) for run, budget in zip(runs, (1e6, 2e6, 2e6, 4e6), strict=True)]


def test_execute_runs_what_is_not_done_largest_first(monkeypatch, tmp_path, cells_to_execute, stores):
    asked = []

    def run_none(cells, workers, log, cache, on_event):
        asked.append([pathlib.Path(cell["directory"]).name for cell in cells])
        for index in range(len(cells)):
            on_event(index, {"event": "done"})
        return True

    monkeypatch.setattr(execution, "run_cells", run_none)
    small, wide, narrow, large = (cell.id for cell in cells_to_execute)
    assert execute(tmp_path, cells_to_execute, stores, Placement(), Way(2)) == []
    assert asked == [[large, narrow, wide, small]]
    write_json(tmp_path / "runs" / large / "result.json", {})
    write_json(tmp_path / "runs" / wide / "failure.json", {"reason": "loss nan", "final": True})
    write_json(tmp_path / "runs" / small / "failure.json", {"reason": "killed", "final": False})
    failed = execute(tmp_path, cells_to_execute, stores, Placement(), Way(2))
    assert [(cell.id, reason) for cell, reason in failed] == [(wide, "loss nan")]
    assert asked[1] == [narrow, small]


def test_execute_returns_failures_and_goes_on(monkeypatch, tmp_path, cells_to_execute, stores):
    def one_fails(cells, workers, log, cache, on_event):
        on_event(0, {"event": "progress", "done": 1, "steps": 2})
        on_event(0, {"event": "failed", "reason": "killed", "final": False})
        on_event(1, {"event": "done"})
        return True

    monkeypatch.setattr(execution, "run_cells", one_fails)
    failed = execute(tmp_path, cells_to_execute[:2], stores, Placement(), Way(2))
    assert failed == [(cells_to_execute[1], "killed")]


def test_execute_says_when_it_was_stopped(monkeypatch, tmp_path, cells_to_execute, stores):
    monkeypatch.setattr(execution, "run_cells", lambda *arguments: False)
    with pytest.raises(StoppedError, match="saved; the same command goes on from here"):
        execute(tmp_path, cells_to_execute, stores, Placement(), Way(2))


def test_nothing_to_do_starts_nothing(monkeypatch, tmp_path, cells_to_execute, stores):
    for cell in cells_to_execute:
        write_json(tmp_path / "runs" / cell.id / "result.json", {})
    monkeypatch.setattr(execution, "run_cells", None)
    assert execute(tmp_path, cells_to_execute, stores, Placement(), Way(2)) == []
