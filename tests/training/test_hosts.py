"""Several processes that train one run: two real ones with four fake devices each, against one with eight.

One pair of processes does all that is asked of two, task after task, for a start takes seconds. It answers in files:
Gloo prints to standard output.
"""

import dataclasses
import json
import math
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from scaling.errors import InputError
from scaling.files import read_json
from scaling.runs import Placement, ScheduleSpec, run_id, run_to_dict
from scaling.specs import to_dict
from scaling.training import claims, hosts
from scaling.training.loop import train
from scaling.training.records import read_lines, records_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = pathlib.Path(__file__).parents[2]
PLACEMENT = Placement(data=2, fsdp=4)  # `data` over the processes, `fsdp` within each
STOP = 3

# argv: rank, coordinator, file of the tasks, directory of the answers. A task: {"run", "stores", "placement",
# "directory"}; "stop" and "stop_on": after how many steps which process is asked to; "lost_on": which has no stores;
# "forks": of which it is the trunk, {"run", "directory"} each.
PROCESS = """
import itertools, json, pathlib, sys
from scaling.data.token_store import open_store
from scaling.errors import ScalingError
from scaling.files import read_json, write_json
from scaling.runs import Placement, run_from_dict
from scaling.specs import from_dict
from scaling.training import hosts, loop, trainer

rank, coordinator, tasks, answers = int(sys.argv[1]), sys.argv[2], read_json(sys.argv[3]), pathlib.Path(sys.argv[4])
hosts.connect(coordinator, 2, rank)
whole_batch = trainer.batch

def train(task):
    rows, said, asked = [], [], itertools.count(1)

    def batch(stores, spec, size, step, part):
        rows.append([step, part.start, part.stop])
        return whole_batch(stores, spec, size, step, part)

    trainer.batch = batch
    stores = {} if task.get("lost_on") == rank else {s.content_id: s for s in map(open_store, task["stores"])}
    stopping = lambda: task.get("stop_on") == rank and next(asked) >= task["stop"]
    try:
        result = loop.train(run_from_dict(task["run"]), from_dict(Placement, task["placement"]), stores,
            pathlib.Path(task["directory"]), stopping=stopping, say=said.append,
            forks=[(run_from_dict(fork["run"]), pathlib.Path(fork["directory"])) for fork in task.get("forks", ())])
        answer = {"result": result}
    except ScalingError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    return {**answer, "rows": rows, "said": said}

write_json(answers / f"{rank}.json", {name: train(task) for name, task in tasks.items()})
"""


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def run(run):
    return dataclasses.replace(run, steps=8, eval_points=2)


@pytest.fixture(scope="module")
def expected(run, stores, tmp_path_factory):
    """The run on one process with eight devices: its directory."""
    directory = tmp_path_factory.mktemp("one") / "run"
    train(run, PLACEMENT, stores, directory)
    return directory


@pytest.fixture(scope="module")
def pair(run, store, tmp_path_factory):
    """Both processes' answers to every task, and where the tasks' directories are."""
    root = tmp_path_factory.mktemp("two")
    explodes = dataclasses.replace(
        run,
        optimizer=dataclasses.replace(run.optimizer, peak_lr=1e38),
        schedule=dataclasses.replace(run.schedule, warmup_steps=0),
    )
    trunk = dataclasses.replace(run, schedule=ScheduleSpec("wsd", 2, 2))
    fork = {"run": run_to_dict(dataclasses.replace(trunk, steps=6)), "directory": str(root / "fork")}
    plain = {"run": run_to_dict(run), "stores": [str(store.path)], "placement": to_dict(PLACEMENT)}
    tasks = {
        "whole": {},
        "again": {"directory": str(root / "whole")},
        "stopped": {"stop": STOP, "stop_on": 1},
        "resumed": {"directory": str(root / "stopped")},
        "lost": {"lost_on": 1},
        "used": {},
        "explodes": {"run": run_to_dict(explodes)},
        "half": {"placement": to_dict(Placement(data=4))},
        "trunk": {"run": run_to_dict(trunk), "forks": [fork]},
        "fork": fork,
        "alone": {"run": fork["run"]},
    }
    tasks = {name: {**plain, "directory": str(root / name), **task} for name, task in tasks.items()}
    (root / "tasks.json").write_text(json.dumps(tasks))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(root / "compilations"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    (root / "used").mkdir()
    with claims.Sightings(stale_seconds=60).take(root / "used").beating():
        coordinator = f"localhost:{free_port()}"
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", PROCESS, str(rank), coordinator, str(root / "tasks.json"), str(root)],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return [read_json(root / f"{rank}.json") for rank in range(2)], root


def assert_same_losses(directory, expected):
    """In fp32, where Gloo sums over devices in another order: to 1e-5 over eight steps of a smooth update."""
    lines, others = (read_lines(where / "metrics.jsonl") for where in (directory, expected))
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    for line, other in zip(lines, others, strict=True):
        assert line.keys() == other.keys()
        if "loss" in line:
            assert math.isclose(line["loss"], other["loss"], rel_tol=1e-5)
        else:
            held_out, other_held_out = line["eval"]["validation"], other["eval"]["validation"]
            assert math.isclose(held_out["loss"], other_held_out["loss"], rel_tol=1e-5)


def test_two_processes_train_what_one_does(run, pair, expected):
    """Each line of metrics.jsonl is there once: the steps are those of one process, which are each there once."""
    answers, root = pair
    assert_same_losses(root / "whole", expected)
    results = [answer["whole"]["result"] for answer in answers]
    assert results[0] == results[1] == read_json(root / "whole" / "result.json")
    assert results[0]["timing"]["devices"] == 8
    names = {"run.json", "placement.json", "metrics.jsonl", "timing.jsonl", "result.json", "checkpoints"}
    assert {path.name for path in (root / "whole").iterdir()} == names | {"claim.json", "attempts", "stores.json"}


def test_a_process_asks_for_its_own_rows_only(run, pair):
    """Of 8 rows, process 0 holds 0 to 3 and process 1 the rest, a row a device; each row of each step once."""
    for rank, answer in enumerate(pair[0]):
        rows = answer["whole"]["rows"]
        assert sorted(rows) == [[k, row, row + 1] for k in range(run.steps) for row in range(4 * rank, 4 * rank + 4)]


def test_one_process_talks(run, pair):
    first, second = (answer["whole"]["said"] for answer in pair[0])
    assert len(first) == 1 + run.steps
    assert second == []


def test_a_finished_run_is_returned_to_all(pair):
    for answer in pair[0]:
        assert answer["again"]["result"] == answer["whole"]["result"]
        assert answer["again"]["rows"] == []


def test_all_stop_where_one_is_asked_to(run, pair):
    """What is asked after a step is decided a step later, and at the same one by both."""
    for answer in pair[0]:
        assert answer["stopped"]["error"] == "StoppedError"
        assert f"at step {STOP + 1} of {run.steps}; its state is saved" in answer["stopped"]["message"]


def test_resumed_equals_uninterrupted(pair):
    """Bit for bit, on the same processes."""
    answers, root = pair
    assert all("result" in answer["resumed"] for answer in answers)
    assert (root / "stopped" / "metrics.jsonl").read_text() == (root / "whole" / "metrics.jsonl").read_text()


def test_a_trunk_of_two_processes_hands_over(pair):
    """Its fork goes on from step 4 of 6, and ends bit for bit as alone on the same processes."""
    answers, root = pair
    assert (root / "fork" / "metrics.jsonl").read_text() == (root / "alone" / "metrics.jsonl").read_text()
    results = [[answer[name]["result"] for answer in answers] for name in ("fork", "alone")]
    assert [result["timing"]["trunk_steps"] for result in results[0] + results[1]] == [4, 4, 0, 0]
    assert [{**result, "timing": None} for result in results[0]] == [
        {**result, "timing": None} for result in results[1]
    ]
    for rank, answer in enumerate(answers):
        assert {step for step, *_ in answer["fork"]["rows"]} == {4, 5}
        assert any("is handed over after step 4" in line for line in answer["trunk"]["said"]) == (rank == 0)


def test_what_one_process_refuses_all_refuse(pair):
    lost = [answer["lost"] for answer in pair[0]]
    assert [refusal["error"] for refusal in lost] == ["InputError"] * 2
    assert "says process 1" in lost[0]["message"]
    assert all("reads token store" in refusal["message"] for refusal in lost)
    used = [answer["used"] for answer in pair[0]]
    assert [refusal["error"] for refusal in used] == ["BusyError"] * 2
    assert all("another process is training this run" in refusal["message"] for refusal in used)


def test_a_loss_that_is_not_finite_ends_all(pair):
    answers, root = pair
    assert [answer["explodes"]["error"] for answer in answers] == ["RunFailedError"] * 2
    assert answers[0]["explodes"]["message"] == answers[1]["explodes"]["message"]
    assert read_json(root / "explodes" / "failure.json")["kind"] == "not_finite"


def test_a_placement_that_leaves_a_process_without_a_share_is_refused(pair):
    for answer in pair[0]:
        assert "the placement takes 4 devices, the 2 processes have 8" in answer["half"]["message"]


UNDER_SLURM = """
import pathlib, sys
import jax
from scaling.training import hosts

hosts.connect(None, None, None)
told = hosts.told(lambda: "by process 0")
pathlib.Path(sys.argv[1]).write_text(f"{jax.process_index()} of {jax.process_count()}, {told}")
"""


def test_slurm_needs_no_flags(tmp_path):
    """Two tasks of a job step, told what they are by the variables that srun sets; jax derives a port from the job."""
    job = {"SLURM_JOB_ID": str(random.randrange(10**6)), "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "localhost"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1", **job}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", UNDER_SLURM, str(tmp_path / str(rank))],
            env={**environment, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == [
        f"{rank} of 2, by process 0" for rank in (0, 1)
    ]


@pytest.mark.slow
def test_commands_stop_together_and_go_on(run, store, tmp_path):
    """As two hosts would be: SIGTERM reaches one of them, and both save, end with 75, and go on when started again."""
    run = dataclasses.replace(run, steps=40)
    cell = {"run": run_id(run), "run_spec": run_to_dict(run), "placement": to_dict(PLACEMENT), "placed": "8"}
    (tmp_path / "plan.json").write_text(json.dumps({"topology": "cpu:8", "cells": [cell]}))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "4"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    plan = [f"--plan={tmp_path}/plan.json", "--cell=d16x2", f"--stores={store.path.parent}", f"--workdir={tmp_path}/w"]

    def lines():
        return read_lines(records_of(tmp_path / "w") / "metrics.jsonl")

    def start():
        job = [f"--coordinator=localhost:{free_port()}", "--processes=2"]
        return [
            subprocess.Popen(
                [sys.executable, "-m", "experiments.train", *plan, *job, f"--process_id={rank}"],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]

    def ended(processes):
        said = [process.communicate(timeout=80) for process in processes]
        return [process.returncode for process in processes], said

    processes = start()
    while not lines() and all(process.poll() is None for process in processes):
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    codes, said = ended(processes)
    assert codes == [75, 75], said
    assert all(f"of {run.steps}; its state is saved" in errors for _, errors in said)
    stopped_at = lines()[-1]["step"]
    assert 1 <= stopped_at < run.steps
    codes, said = ended(start())
    assert codes == [0, 0], said
    training = [line["step"] for line in lines() if "loss" in line]
    assert training == list(range(1, run.steps + 1))
    (first, _), (second, _) = said
    assert f"step {stopped_at + 1}/{run.steps}  loss " in first
    assert f"step {stopped_at}/{run.steps}  loss " not in first
    assert "held-out loss" in first
    assert "step" not in second
    assert "GiB" not in second


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (("localhost:1", 2, None), "come together"),
        ((None, None, 1), "come together"),
        (("localhost", 2, 0), r"--coordinator=localhost \(HOST:PORT of process 0\)"),
        (("localhost:port", 2, 0), "HOST:PORT"),
        (("localhost:1", 2, 2), "--process_id=2 is outside 0 to 1"),
    ],
)
def test_flags_that_do_not_fit_are_refused(monkeypatch, flags, fault):
    monkeypatch.setattr(jax.distributed, "initialize", None)
    with pytest.raises(InputError, match=fault):
        hosts.connect(*flags)


def test_no_cluster_says_which_flags_to_give(monkeypatch):
    def undetected(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", undetected)
    with pytest.raises(InputError, match=r"no cluster is recognised here: .*give --coordinator"):
        hosts.connect(None, None, None)
