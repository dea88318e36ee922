"""Cells side by side in worker processes: real ones on a tiny model, and made-up ones for the rules between them."""

import collections
import contextlib
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

from scaling.runs import DataSpec, ModelShape, OptimizerSpec, Run, ScheduleSpec, run_from_dict, run_id, run_to_dict
from scaling.sweeps import launch, tasks
from scaling.sweeps.launch import run_cells
from scaling.sweeps.results import cell_status, records
from scaling.sweeps.tasks import Task, Way

ROOT = pathlib.Path(__file__).parents[2]
TINY = ModelShape(d_model=8, n_layers=2, n_heads=1, d_ff=16, vocab_size=256)
PLAIN = {"placement": {}, "trackers": [], "profile_steps": 0, "care": ""}


@pytest.fixture(scope="module")
def tiny_run(text_store):
    data = DataSpec(text_store.content_id, sequence_length=16, eval_windows=4)
    optimizer, schedule = OptimizerSpec(1e-2), ScheduleSpec("cosine", 5)
    return Run(TINY, data, batch_size=2, steps=100, optimizer=optimizer, schedule=schedule, eval_points=3)


def prepare(root, run, store):
    """A cell as `run_cells` takes it: its task, and its item."""
    directory = root / run_id(run)
    item = {"directory": str(directory), "run": run_to_dict(run), "stores": [str(store.path)], **PLAIN}
    return Task(directory.name, directory, 1.0, run.steps), item


def run_all(cells, way, log, cache, on_event):
    return run_cells(*zip(*cells, strict=True), way, log, cache, on_event)


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
    """Four real cells by one worker: one good, one whose loss explodes, one whose process is killed twice, and one
    more. What was killed is tried again once."""
    root = tmp_path_factory.mktemp("cells")
    runs = {
        "good": dataclasses.replace(tiny_run, steps=LONG),
        "explodes": dataclasses.replace(tiny_run, optimizer=OptimizerSpec(1e30)),
        "killed": dataclasses.replace(tiny_run, steps=10**6),
        "last": tiny_run,
    }
    cells = [prepare(root, run, text_store) for run in runs.values()]
    events, pids = {name: [] for name in runs}, {name: [] for name in runs}
    names = list(runs)

    def on_event(index, event):
        name = names[index]
        events[name].append(event)
        if name == "killed" and event["event"] == "progress":
            os.kill(pids[name][-1], signal.SIGKILL)

    one_cell, directories = launch._one_cell, {name: root / run_id(run) for name, run in runs.items()}

    def spy(worker, item, tell):
        (name,) = [name for name, directory in directories.items() if str(directory) == item["directory"]]
        pids[name].append(worker.pid)
        return one_cell(worker, item, tell)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_one_cell", spy)
        complete = run_all(cells, Way(1, retries=1), root / "workers.log", cache, on_event)
    return Outcome(complete, events, directories, pids)


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
    assert (end["event"], end["kind"], end["retry"]) == ("failed", "not_finite", "never")
    failure = json.loads((four_cells.directories["explodes"] / "failure.json").read_text())
    assert (failure["kind"], failure["reason"]) == ("not_finite", end["reason"])
    assert f"step {failure['step']} of 100: " in failure["reason"]
    assert "nan" in failure["reason"] or "inf" in failure["reason"]
    assert not (four_cells.directories["explodes"] / "result.json").exists()
    assert len(four_cells.pids["explodes"]) == 1


def test_a_killed_worker_fails_its_cell_which_is_tried_again_and_then_given_up(four_cells):
    ends = [event for event in four_cells.events["killed"] if event["event"] != "progress"]
    told = {"kind": "killed", "reason": "its process ended with signal SIGKILL, as when memory runs out"}
    assert ends == [{"event": "again", **told, "tries": 1}, {"event": "failed", **told, "retry": "soon"}]
    failure = json.loads((four_cells.directories["killed"] / "failure.json").read_text())
    assert {name: failure[name] for name in told} == told
    assert failure["attempt"] == 2


def test_a_worker_trains_cell_after_cell_and_a_dead_one_is_replaced(four_cells):
    """The cell that was killed waits for its second try: the last one is trained meanwhile."""
    pids = four_cells.pids
    (good,), (explodes,), (first, second), (last,) = pids.values()
    assert good == explodes == first != last == second
    assert all(ended(pid) for pid in (first, second))


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
    assert launch._shares(workers) == [launch.Share(cores, {}) for cores in shares]


def test_a_stopped_run_goes_on_and_ends_as_an_uninterrupted_one(four_cells, tmp_path, text_store, cache, one_device):
    run = run_from_dict(json.loads((four_cells.directories["good"] / "run.json").read_text()))
    cells = [prepare(tmp_path, each, text_store) for each in (run, dataclasses.replace(run, seed=1))]
    stopped, waiting = (task.directory for task, _ in cells)
    events = []

    def stop_at_first_progress(index, event):
        if not events:
            os.kill(os.getpid(), signal.SIGTERM)
        events.append((index, event))

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert not run_all(cells, Way(1), tmp_path / "log", cache, stop_at_first_progress)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert {index for index, _ in events} == {0}
    assert events[-1] == (0, {"event": "stopped"})
    stopped_at = max(event["done"] for _, event in events[:-1])
    assert stopped_at < LONG
    assert [cell_status(directory)[0] for directory in (stopped, waiting)] == ["missing", "missing"]
    assert not waiting.exists()

    events = [None]
    assert run_all(cells[:1], Way(1), tmp_path / "log", cache, lambda index, event: events.append(event))
    resumed_at = events[1]["done"]
    assert resumed_at > stopped_at
    assert events[-1] == {"event": "done"}
    whole, parts = four_cells.directories["good"], stopped
    results = [json.loads((directory / "result.json").read_text()) for directory in (whole, parts)]
    for result in results:
        del result["timing"]
    assert results[0] == results[1]
    assert (whole / "metrics.jsonl").read_text() == (parts / "metrics.jsonl").read_text()


LAUNCHER = """
import json, pathlib, sys
from scaling.sweeps import launch
from scaling.sweeps.tasks import Task, Way

item, log, cache = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
directory = pathlib.Path(item["directory"])
tell = lambda index, event: print(event["event"], flush=True)
launch.run_cells([Task(directory.name, directory, 1.0, 1)], [item], Way(1), log, cache, tell)
"""


def ended(pid):
    """Whether a process is gone, or only waits for its parent to take note."""
    try:
        os.kill(pid, 0)
        stat = pathlib.Path(f"/proc/{pid}/stat")
        return pathlib.Path("/proc/self").exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


def descendants(pid):
    """The processes that a process has started, and those that they have."""
    parents = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a worker is killed with its launcher on Linux alone")
@pytest.mark.parametrize("when", ["compile", "step"])
def test_a_launcher_that_is_killed_takes_its_workers_with_it(tmp_path, tiny_run, text_store, cache, one_device, when):
    """Killed at once, without a chance to tell anyone, while a worker compiles, from nothing, or takes steps. 2 s are
    what a machine with other work needs to take down a process of many threads; each is sent its signal at once."""
    task, item = prepare(tmp_path, dataclasses.replace(tiny_run, steps=10**6), text_store)
    item["run"]["model"]["n_layers"] = 2 if when == "step" else 24
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [json.dumps(item), str(tmp_path / "log"), str(cache if when == "step" else tmp_path / "cache")]
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )
    if when == "step":
        assert launcher.stdout.readline() == "progress\n"
    else:
        while cell_status(task.directory) != ("running", ""):
            time.sleep(0.01)
        time.sleep(0.3)  # it has its claim, and compiles the program of its first state, or the step
    assert cell_status(task.directory) == ("running", "")
    children = descendants(launcher.pid)
    assert children
    launcher.kill()
    deadline = time.monotonic() + 2
    launcher.wait()
    launcher.stdout.close()
    while not all(map(ended, children)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(map(ended, children))
    assert cell_status(task.directory) == ("missing", "")
    assert bool(records(task.directory, "metrics.jsonl")) == (when == "step")


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
    if what == "hung":
        with open(json.loads(line)["directory"] + "/failure.json", "w") as f:
            json.dump({"kind": "hung", "reason": "no step for 1800 s"}, f)
        os._exit(124)
    if what == "disk":
        tell(event="failed", kind="disk_full", reason="no space left", retry="soon")
    elif what == "refused":
        tell(event="failed", kind="refused", reason="no such store", retry="when mended")
    else:
        tell(event="done")
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
    monkeypatch.setattr(launch, "pause", lambda tries: 0.01 * tasks.pause(tries))

    def run(names, workers=1, on_event=lambda name, event: None, retries=0):
        cells = []
        for name in names:
            (tmp_path / name).mkdir()
            cells.append((Task(name, tmp_path / name, 1.0, 2), {"directory": str(tmp_path / name)}))
        events = {name: [] for name in names}

        def note(index, event):
            events[names[index]].append(event)
            on_event(names[index], event)

        way = Way(workers, retries=retries)
        return run_all(cells, way, tmp_path / "workers.log", tmp_path, note), events

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
    reason = "its process ended with code 3"
    assert events["exits"][-1] == {"event": "failed", "kind": "killed", "reason": reason, "retry": "soon"}
    assert events["after"][-1] == {"event": "done"}
    assert len(fake.starts) == 2
    assert cell_status(tmp_path / "exits") == ("failed", "its process ended with code 3")


def test_what_may_be_gone_is_tried_again_with_pauses_and_what_is_not_is_not(fake, monkeypatch):
    pauses = []
    monkeypatch.setattr(launch, "pause", lambda tries: pauses.append(tries) or 0.0)
    complete, events = fake(["disk", "refused", "b"], retries=3)
    assert complete
    assert pauses == [1, 2, 3]
    ends = {name: [event for event in told if event["event"] != "progress"] for name, told in events.items()}
    assert [end["event"] for end in ends["disk"]] == ["again"] * 3 + ["failed"]
    assert ends["refused"] == [
        {"event": "failed", "kind": "refused", "reason": "no such store", "retry": "when mended"}
    ]
    assert ends["b"] == [{"event": "done"}]
    assert len(fake.starts) == 1


def test_what_waits_for_another_try_holds_nobody_up(fake, monkeypatch):
    """The cells behind it are done meanwhile; the launcher then waits for its time."""
    monkeypatch.setattr(launch, "pause", lambda tries: 1.0)
    order = []
    fake(["disk", "b", "c"], retries=1, on_event=lambda name, event: order.append((name, event["event"])))
    assert [pair for pair in order if pair[1] != "progress"] == [
        ("disk", "again"),
        ("b", "done"),
        ("c", "done"),
        ("disk", "failed"),
    ]


def test_the_watchdog_of_a_worker_says_that_it_hung(fake):
    _, events = fake(["hung", "after"])
    told = {"kind": "hung", "reason": "no step for 1800 s", "retry": "soon"}
    assert events["hung"][-1] == {"event": "failed", **told}
    assert events["after"][-1] == {"event": "done"}


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
