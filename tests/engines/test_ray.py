"""A small sweep on a real Ray cluster of two nodes on this machine, while things die: the table stays the same."""

import contextlib
import csv
import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import pytest

from scaling.errors import InputError
from scaling.files import read_json
from scaling.sweeps import on_ray
from scaling.sweeps.results import TIMINGS
from scaling.sweeps.tasks import steps_done
from scaling.sweeps.workdir import read_sweep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: the extra `ray` has it"),
]

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
from scaling.sweeps.config import DataConfig, ModelConfig, SweepConfig, config_dict
from scaling.runs import Placement

def get_config():
    data = DataConfig("files:{text}/*.txt", "bytes", sequence_length=64, eval_windows=32)
    points = tuple((N, D) for N in {sizes} for D in {tokens})
    shape = {{"model": ModelConfig(), "eval_points": 3, "placement": Placement(data={devices})}}
    return config_dict(SweepConfig(data, "small", points=points, **shape))
"""
SWEEP = {"sizes": (17e3, 30e3), "tokens": (1e5, 4e5), "devices": 1}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of two nodes. address; replace(k) kills node k and adds another."""
    errors = tmp_path_factory.mktemp("ray") / "errors"
    with open(errors, "w") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(pathlib.Path(__file__).with_name("ray_cluster.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment(tmp_path_factory),
        )
    address = process.stdout.readline().strip()
    assert address, errors.read_text()

    def replace(node):
        process.stdin.write(f"replace {node}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "replaced\n", errors.read_text()

    yield types.SimpleNamespace(address=address, replace=replace)
    process.stdin.close()
    process.wait(60)


def environment(tmp_path_factory, devices=1):
    """As a user has it, with stores of this test, and so many devices a process."""
    stores = tmp_path_factory.getbasetemp() / "ray-stores"
    given = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SCALING_STORES": str(stores)}
    return {**os.environ, **given, "JAX_NUM_CPU_DEVICES": str(devices)}


@pytest.fixture(scope="module")
def start(tmp_path_factory, cluster):
    """Starts experiments.sweep in a directory, on the cluster unless told otherwise: a process."""
    text = tmp_path_factory.mktemp("text")
    for i in range(100):
        (text / f"{i:03}.txt").write_text(" ".join(str(i * j % 9973) for j in range(3000)))

    def start(workdir, sweep, *flags, launcher="ray", devices=1):
        config = workdir.with_name(f"{workdir.name}.py")
        config.write_text(CONFIG.format(text=text, **sweep))
        flags = [f"--config={config}", f"--workdir={workdir}", f"--launcher={launcher}", *flags]
        flags += [f"--ray_address={cluster.address}"] * (launcher == "ray")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        command = [sys.executable, "-m", "experiments.sweep", *flags]
        return subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path_factory, devices), **pipes)

    return start


@pytest.fixture(scope="module")
def local(start, tmp_path_factory):
    """The table of the sweep that the local launcher makes, undisturbed."""
    workdir = tmp_path_factory.mktemp("local") / "sweep"
    finish(start(workdir, SWEEP, "--workers=2", launcher="local"))
    return table(workdir)


def finish(process):
    """Waits for a sweep to end, and returns what it printed: its cells are done, and too few for a law."""
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 2, output
    assert "cannot determine the five parameters" in output
    return output


def table(workdir):
    """results.csv but for the timings, as text."""
    with open(workdir / "results.csv", encoding="utf-8") as f:
        return [{name: value for name, value in row.items() if name not in TIMINGS} for row in csv.DictReader(f)]


def until(found, seconds=90.0):
    """What `found` returns, once it is true; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, f"not within {seconds} s: {found}"
        time.sleep(0.02)
    return value


def cells_of(workdir):
    """The processes of cells of a sweep: (number, run, number of its Ray worker)."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_text().split("\0")
            flags = dict(
                word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word
            )
            if "experiments.cell" in words and flags.get("workdir") == str(workdir):
                found.append((int(path.name), flags["cell"], int(flags["parent"])))
    return found


def in_training(workdir):
    """The cells that are in the middle of their steps, as `cells_of`."""
    if not (workdir / "sweep.json").exists():
        return []
    steps = {cell.id: cell.run.steps for cell in read_sweep(workdir).cells}
    return [found for found in cells_of(workdir) if 0 < steps_done(workdir / "runs" / found[1]) < steps[found[1]]]


def attempts(workdir, run):
    """What became of each attempt at a run."""
    paths = sorted((workdir / "runs" / run / "attempts").glob("*/attempt.json"))
    return [read_json(path)["outcome"] for path in paths]


def test_the_same_table_as_the_local_launcher(start, local, tmp_path):
    finish(start(tmp_path / "sweep", SWEEP))
    assert table(tmp_path / "sweep") == local
    assert {row["status"] for row in local} == {"done"}
    logs = {path.name for path in (tmp_path / "sweep" / "ray").iterdir()}
    assert logs == {"cluster.log"} | {f"{row['run']}.log" for row in local}


@pytest.mark.parametrize("victim", ["cell", "worker", "node"])
def test_the_same_table_after_a_loss(start, local, cluster, tmp_path, victim, host_lost):
    """kill -9 of a cell, of the Ray worker that waits for it, and of all of a node: the cell is trained on."""
    workdir = tmp_path / "sweep"
    process = start(workdir, SWEEP, "--care=checkpoint_seconds=1")
    number, run, worker = until(lambda: in_training(workdir))[0]
    before = cells_of(workdir)
    if victim == "node":
        cluster.replace(0)
        killed = before  # those of the node
    else:
        os.kill(number if victim == "cell" else worker, signal.SIGKILL)
        killed = [(number, run, worker)]
    gone = time.monotonic()
    until(lambda: set(killed) - set(cells_of(workdir)), 10)
    print(f"{victim}: its cell was gone after {time.monotonic() - gone:.1f} s")
    runs = {run for _, run, _ in set(killed) - set(cells_of(workdir))}
    output = finish(process)
    assert table(workdir) == local
    assert any(None in attempts(workdir, run) for run in runs), runs  # it has ended without a word
    recorded = [attempts(workdir, row["run"]).count("recorded") for row in local]
    assert all(count == 1 for count in recorded)
    if victim == "node":
        host_lost("ray", recorded.count(0), sum(count > 1 for count in recorded))
    assert ("signal SIGKILL" in output) == (victim == "cell")  # of the others Ray itself takes care


def test_ctrl_c_saves_kill_takes_the_cells_along_and_the_same_command_goes_on(start, local, tmp_path):
    workdir = tmp_path / "sweep"
    process = start(workdir, SWEEP)
    until(lambda: in_training(workdir))
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert "stopped: every cell in progress is saved" in output
    print(f"stopped after {time.monotonic() - asked:.1f} s")
    assert cells_of(workdir) == []
    runs = [row["run"] for row in local]
    assert any(attempts(workdir, run) == ["stopped"] for run in runs)

    process = start(workdir, SWEEP)
    until(lambda: in_training(workdir))
    process.kill()
    killed = time.monotonic()
    until(lambda: cells_of(workdir) == [], 30)
    print(f"gone {time.monotonic() - killed:.1f} s after their launcher was killed")
    process.communicate()

    finish(start(workdir, SWEEP))
    assert table(workdir) == local
    assert any("stopped" in attempts(workdir, run) for run in runs)


def test_a_cell_of_two_processes_in_a_slice(start, tmp_path):
    """Two bundles of make-believe TPUs, on the two hosts of one slice; the loss is that of one process to 1e-5."""
    cell = {"sizes": (17e3,), "tokens": (1e5,), "devices": 2}
    finish(start(tmp_path / "one", cell, launcher="local", devices=2))
    finish(start(tmp_path / "two", cell, "--devices_per_process=1", "--ray_resources=TPU=4"))
    (one,), (two,) = table(tmp_path / "one"), table(tmp_path / "two")
    assert len(list((tmp_path / "two" / "ray").glob("d*.log"))) == 2
    # The processes may add up gradients in another order than the devices of one.
    assert float(two["loss"]) == pytest.approx(float(one["loss"]), rel=1e-5)


REFUSED = """
import sys, ray
from scaling.errors import InputError
from scaling.sweeps.on_ray import _code
from scaling.sweeps.ray_task import run_cell

ray.init(sys.argv[1], log_to_driver=False)
try:
    _code(ray, ray.remote(run_cell).remote(["python"], "/nowhere/ray/mark", "/nowhere/log", {}))
except InputError as error:
    print("refused:", error)
"""


def test_a_node_that_does_not_see_the_workdir_is_named(cluster, tmp_path_factory):
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, cluster.address],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(tmp_path_factory),
    )
    assert "refused: /nowhere on " in done.stdout, done.stderr
    assert "--workdir has to be on a disk that every node sees" in done.stdout


def test_no_cluster_at_an_address_is_said_in_bounded_time(monkeypatch):
    """Ray by itself tries for five minutes, and then ends the process."""
    monkeypatch.setattr(on_ray, "CONNECT_SECONDS", 5.0)
    with pytest.raises(InputError, match=r"--ray_address=127.0.0.1:1: no Ray cluster has answered"):
        on_ray.check("127.0.0.1:1")
