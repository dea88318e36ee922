"""Several launchers on one workdir, as users start them: real sweeps, one of whose launchers is killed."""

import collections
import os
import pathlib
import subprocess
import sys
import time

import pandas as pd
import pytest

from scaling.files import read_json
from scaling.sweeps.results import TIMINGS, cell_status
from scaling.sweeps.workdir import read_sweep, run_directory

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
SWEEP = (
    "experiments.sweep",
    "--config=experiments/configs/smoke.py",
    "--config.grid.budgets=(2e10, 3e10)",
    "--workers=1",
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a command, as a user has it: one device, and stores of this file."""
    given = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    stores = str(tmp_path_factory.mktemp("stores"))
    environment = {**given, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SCALING_STORES": stores}

    def begin(*arguments):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-m", *arguments], cwd=ROOT, env=environment, **pipes)

    return begin


def finish(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def table(workdir):
    """results.csv without what differs from time to time."""
    return pd.read_csv(workdir / "results.csv").drop(columns=list(TIMINGS))


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "sweep"
    finish(start(*SWEEP, f"--workdir={workdir}"))
    return workdir


def attempts(workdir):
    """attempt.json of all attempts, by run."""
    found = collections.defaultdict(list)
    for path in sorted((workdir / "runs").glob("*/attempts/*/attempt.json")):
        found[path.parents[2].name].append(read_json(path))
    return found


def test_two_launchers_share_a_sweep_and_one_that_is_killed_loses_nothing(start, undisturbed, tmp_path):
    """Both start at the same moment, on nothing. The survivor takes over what the other had, and the table is that of
    an undisturbed sweep, to the bit; each cell is recorded once."""
    workdir = tmp_path / "sweep"
    killed, survivor = (start(*SWEEP, f"--workdir={workdir}") for _ in range(2))
    deadline = time.monotonic() + 120
    while not list((workdir / "runs").glob("*/result.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    finish(survivor)
    assert table(workdir).equals(table(undisturbed))
    for name in ("curves.csv", "prediction.json"):
        assert (workdir / name).read_bytes() == (undisturbed / name).read_bytes()
    outcomes = {run: [attempt["outcome"] for attempt in told] for run, told in attempts(workdir).items()}
    assert {run: told.count("recorded") for run, told in outcomes.items()} == dict.fromkeys(outcomes, 1)
    assert sum(len(told) for told in outcomes.values()) <= len(outcomes) + 1  # the cell that was under way
    assert len({attempt["pid"] for told in attempts(workdir).values() for attempt in told}) >= 2


def test_two_launchers_that_live_end_with_the_same_report(start, undisturbed, tmp_path):
    """Each waits for the cells of the other, and writes what the other writes."""
    workdir = tmp_path / "sweep"
    first, second = (finish(process) for process in [start(*SWEEP, f"--workdir={workdir}") for _ in range(2)])
    said = [output.splitlines()[1:] for output in (first, second)]
    assert said[0] == said[1]
    assert table(workdir).equals(table(undisturbed))
    reports = [read_json(place / "report" / "report.json") for place in (workdir, undisturbed)]
    for part in (
        "approach1",
        "approach2",
        "approach3",
        "optima",
        "laws",
        "prediction",
        "warnings",
    ):  # no timings in them
        assert reports[0][part] == reports[1][part], part
    assert all(len(told) == 1 for told in attempts(workdir).values())


def test_a_cell_as_schedulers_start_it(start, undisturbed, tmp_path):
    """From a sweep.json alone: trained once, as by a worker, and left alone when it is done. Another is refused."""
    workdir = tmp_path / "sweep"
    workdir.mkdir()
    (workdir / "sweep.json").write_bytes((undisturbed / "sweep.json").read_bytes())
    cell = min(read_sweep(workdir).grid, key=lambda cell: cell.flops)
    command = ("experiments.cell", f"--workdir={workdir}", f"--cell={cell.id}")
    assert f"{cell.id}: done, held-out loss" in finish(start(*command))
    directory, other = run_directory(workdir, cell.id), run_directory(undisturbed, cell.id)
    assert cell_status(directory) == ("done", "")
    assert (directory / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert finish(start(*command)) == f"{cell.id}: done before\n"
    assert len(attempts(workdir)[cell.id]) == 1
    unknown = start(*command[:2], f"--cell={cell.id[:-1]}")
    assert f"did you mean {cell.id}?" in unknown.communicate()[1]
    assert unknown.returncode == 2


def test_a_cell_that_is_asked_to_stop_saves_and_exits_with_75(start, undisturbed, tmp_path):
    workdir = tmp_path / "sweep"
    workdir.mkdir()
    (workdir / "sweep.json").write_bytes((undisturbed / "sweep.json").read_bytes())
    cell = max(read_sweep(workdir).cells, key=lambda cell: cell.run.steps)
    directory, command = (
        run_directory(workdir, cell.id),
        ("experiments.cell", f"--workdir={workdir}", f"--cell={cell.id}"),
    )
    process = start(*command)
    while not list(directory.glob("attempts/1/metrics.jsonl")) and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert list((directory / "checkpoints").iterdir())
    finish(start(*command))
    other = run_directory(undisturbed, cell.id)
    assert (directory / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
