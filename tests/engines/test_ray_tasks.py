"""What the Ray engine decides without Ray: what a process takes, where a cell's processes go, what its end means."""

import os
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from scaling.errors import InputError
from scaling.files import write_json
from scaling.sweeps import on_ray, ray_task
from scaling.sweeps.on_ray import CANCELLED, LOST, check, run_ray
from scaling.sweeps.ray_task import group_options, lacking, run_cell, task_options
from scaling.sweeps.tasks import Task, Way, failed
from scaling.training.claims import Sightings
from scaling.training.failures import Failure


@pytest.fixture
def task(tmp_path):
    directory = tmp_path / "runs" / "cell"
    directory.mkdir(parents=True)
    return Task("cell", directory, flops=1.0, steps=10)


def test_a_process_takes_a_cpu_and_what_was_asked_for():
    """Ray refuses CPU, GPU and memory among resources: they have options of their own."""
    assert task_options({}) == {"num_cpus": 1, "resources": {}}
    assert task_options({"TPU": 4.0}) == {"num_cpus": 1, "resources": {"TPU": 4.0}}
    taken = {"CPU": 8.0, "GPU": 2.0, "memory": 1e9, "accelerator_type:H100": 0.01}
    expected = {"num_cpus": 8.0, "num_gpus": 2.0, "memory": 1e9, "resources": {"accelerator_type:H100": 0.01}}
    assert task_options(taken) == expected


def test_processes_with_tpus_are_the_hosts_of_one_slice_in_their_order():
    options = group_options(2, {"TPU": 4.0})
    assert options["bundles"] == [{"CPU": 1, "TPU": 4.0}] * 2
    assert options["topology_strategy"] == {"ray.io/tpu-slice-name": "STRICT_PACK"}
    assert options["bundle_label_selector"] == [{"ray.io/tpu-worker-id": "0"}, {"ray.io/tpu-worker-id": "1"}]
    assert "strategy" not in options  # Ray takes one of the two


def test_other_processes_go_close_together():
    assert group_options(3, {"GPU": 1.0}) == {"bundles": [{"CPU": 1, "GPU": 1.0}] * 3, "strategy": "PACK"}


def test_says_what_no_node_has():
    nodes = [{"CPU": 16.0, "TPU": 4.0}, {"CPU": 64.0}]
    assert lacking({"TPU": 4.0}, nodes) == ""
    assert lacking({"TPU": 8.0}, nodes) == "no node has CPU=1, TPU=8"
    assert lacking({"CPU": 32.0, "TPU": 4.0}, nodes) == "no node has CPU=32, TPU=4"  # together
    assert lacking({}, []) == "no node has CPU=1"


def end(task, codes, tries=0, retries=0):
    return on_ray._after(task, codes, tries, Way(retries=retries))


def test_end_of_a_cell_whose_worker_was_lost(task):
    event = end(task, [LOST])
    assert (event["event"], event["kind"], event["retry"]) == ("failed", "killed", "soon")
    assert end(task, [LOST], tries=1, retries=3)["event"] == "again"
    assert end(task, [LOST], tries=3, retries=3)["event"] == "failed"
    assert LOST in event["reason"]
    write_json(task.directory / "result.json", {"run": "cell", "loss": 2.0})
    assert end(task, [LOST]) == {"event": "done"}


def test_end_of_a_cell_that_was_cancelled_before_it_ran(task):
    assert end(task, [CANCELLED, CANCELLED]) == {"event": "stopped"}
    assert not (task.directory / "failure.json").exists()


def test_the_process_that_failed_by_itself_tells_why(task):
    """Of two, one ended by the end of the other, which Ray had to kill."""
    write_json(task.directory / "failure.json", Failure("diverged", "step 7: loss nan").to_json())
    for codes in ([3, LOST], [LOST, 3], [0, 3]):
        event = end(task, codes)
        assert (event["kind"], event["reason"], event["retry"]) == ("diverged", "step 7: loss nan", "never")


def test_a_result_that_is_none_fails_its_cell_and_no_other(task):
    write_json(task.directory / "result.json", {"run": "another", "loss": 2.0})
    for event in (on_ray._before(task, Sightings(60.0)), end(task, [0]), end(task, [LOST])):
        assert (event["event"], event["kind"]) == ("failed", "refused")
        assert "result.json" in event["reason"]


def test_a_fork_is_handed_to_ray_once_its_trunk_has_handed_over_or_is_over(tmp_path, monkeypatch):
    """Two trunks with a fork each, on a Ray that ends what it has at every look: one hands over before it ends."""
    tasks = [Task(run, tmp_path / run, 1.0, 200) for run in "ab"]
    tasks += [Task(run, tmp_path / run, 1.0, 100, after=after, first=80) for run, after in ("ca", "db")]
    started, over, nan = [], [], Failure("not_finite", "loss nan")

    def start(ray, task, shared):
        started.append(task.run)
        if task.run == "a":
            (tmp_path / "c" / "checkpoints" / "80-1").mkdir(parents=True)
        return on_ray.Started([])

    def ended(ray, running):
        for index in list(running):
            if tasks[index].run == "a" and "c" not in started:
                continue  # it goes on while its fork begins
            del running[index]
            over.append(tasks[index].run)
            yield index, [0]

    monkeypatch.setattr(on_ray, "_start", start)
    monkeypatch.setattr(on_ray, "_ended", ended)
    monkeypatch.setattr(on_ray, "_after", lambda task, *_: failed(nan) if task.run == "b" else {"event": "done"})
    monkeypatch.setattr(on_ray, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(on_ray, "LOOK_SECONDS", 0.01)
    events = []
    shared = on_ray.Shared(tmp_path, tmp_path / "mark", Way())
    assert on_ray._drive(None, shared, tasks, lambda *event: events.append(event), threading.Event())
    assert started[:2] == ["a", "b"]
    assert set(started) == set(over) == set("abcd")
    assert over.index("b") < started.index("d")


def test_refuses_without_ray(monkeypatch, tmp_path):
    monkeypatch.setattr(on_ray.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'scaling\[ray\]'"):
        check("auto")
    with pytest.raises(InputError, match="Ray is not installed"):
        run_ray(tmp_path, [], Way(), lambda index, event: None)


def test_refuses_an_address_of_another_kind(monkeypatch):
    monkeypatch.setattr(on_ray.importlib.util, "find_spec", lambda name: types.SimpleNamespace())
    with pytest.raises(InputError, match=r"--ray_address=ray://head:10001 .*HOST:PORT"):
        check("ray://head:10001")


def arguments(tmp_path, code):
    """Of `run_cell`, for a process that runs a line of Python; flags that are added come after it, in sys.argv."""
    (tmp_path / "ray").mkdir(exist_ok=True)
    (tmp_path / "ray" / "mark").touch()
    return ["python", "-c", code], str(tmp_path / "ray" / "mark"), str(tmp_path / "log"), {"SETTING": "given"}


def test_runs_the_command_with_settings_and_returns_its_code(tmp_path):
    code = "import os, sys; print(os.environ['SETTING'], sys.argv[1:]); sys.exit(75)"
    assert run_cell(*arguments(tmp_path, code), "host:1234") == 75
    assert (tmp_path / "log").read_text() == f"given ['--parent={os.getpid()}', '--coordinator=host:1234']\n"


def test_refuses_where_the_workdir_is_not_seen(tmp_path):
    command, mark, *rest = arguments(tmp_path, "pass")
    with pytest.raises(InputError, match=r"is not the launcher's .*a disk that every node sees"):
        run_cell(command, mark + "-of-another", *rest)


def interrupt_soon(log, number):
    """Sends this process a signal once the log of the command has a line."""

    def send():
        until = time.monotonic() + 20
        while time.monotonic() < until and not (log.exists() and log.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_cancelled_task_has_its_cell_save(tmp_path, number):
    """As Ray interrupts it: the command hears SIGTERM and ends by itself; the worker's own handlers come back."""
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); print('on', flush=True); time.sleep(60)"
    )
    before = signal.getsignal(number)
    interrupt_soon(tmp_path / "log", number)
    assert run_cell(*arguments(tmp_path, code)) == 75
    assert signal.getsignal(number) is before


def test_a_cell_that_does_not_stop_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_task, "GRACE_SECONDS", 0.5)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    interrupt_soon(tmp_path / "log", signal.SIGINT)
    assert run_cell(*arguments(tmp_path, code)) == -signal.SIGKILL


def test_nothing_of_ray_is_imported_before_it_is_used():
    code = "import sys, scaling.sweeps.on_ray; assert 'ray' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
