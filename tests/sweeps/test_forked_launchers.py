"""A forked sweep as users start it, on real text: the same runs as from scratch, to the bit, whatever is killed."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from scaling.files import read_json
from scaling.sweeps.forks import groups, savings, trunk_steps, trunks
from scaling.sweeps.results import TIMINGS
from scaling.sweeps.workdir import read_sweep

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
SWEEP = (
    "experiments.sweep",
    "--config=experiments/configs/forked.py",
    "--config.grid.budgets=(2e10, 3e10, 5e10)",
    "--config.grid.prior_flops=2e10",
    "--config.grid.prior_size=17e3",
    "--config.grid.prior_exponent=0.0",
    "--config.grid.below=1.6",
    "--config.grid.above=2.6",
    "--config.grid.sizes=4",
    "--config.data.eval_windows=32",
    "--config.eval_points=3",
    "--config.prediction=0",
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a sweep, as a user has it: one device, and stores of this file."""
    given = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    stores = str(tmp_path_factory.mktemp("stores"))
    environment = {**given, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SCALING_STORES": stores}

    def begin(workdir, schedule="forked", workers=1):
        command = [*SWEEP, f"--workdir={workdir}", f"--config.sweep.schedule={schedule}", f"--workers={workers}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=environment, **pipes)

    return begin


def finish(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def table(workdir):
    """results.csv without timings, and what forking adds to it."""
    frame = pd.read_csv(workdir / "results.csv").drop(columns=list(TIMINGS))
    return frame.drop(columns=[name for name in ("trunk", "trunk_steps") if name in frame])


@pytest.fixture(scope="module")
def scratch(start, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("scratch") / "sweep"
    output = finish(start(workdir, "scratch"))
    assert "forked" not in output
    return workdir


def assert_same_runs(workdir, scratch):
    """Tables, metrics and results of all runs."""
    assert table(workdir).equals(table(scratch))
    assert (workdir / "curves.csv").read_bytes() == (scratch / "curves.csv").read_bytes()
    for expected in (scratch / "runs").iterdir():
        directory = workdir / "runs" / expected.name
        assert (directory / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()
        result, as_expected = (read_json(where / "result.json") for where in (directory, expected))
        assert {**result, "timing": None} == {**as_expected, "timing": None}


def test_a_forked_sweep_is_the_sweep_from_scratch(start, scratch, tmp_path):
    """And says what it saved; nothing is trained twice, and both start at the same moment on one directory."""
    workdir = tmp_path / "sweep"
    launchers = [start(workdir) for _ in range(2)]
    outputs = [finish(launcher) for launcher in launchers]
    assert_same_runs(workdir, scratch)
    sweep = read_sweep(workdir)
    found = groups(sweep.config, sweep.cells)
    words = "1.6e+11 of 4e+11 FLOPs saved (40%)"
    assert f"{savings(found)[0]:.3g} of {savings(found)[1]:.3g} FLOPs saved (40%)" == words
    for output in outputs:
        assert f"forked: 4 trunks, 8 decays; {words}" in output
        assert f"forked decays: 8 of 12 runs; {words}" in output
    results, steps = pd.read_csv(workdir / "results.csv").set_index("run"), trunk_steps(found)
    assert results["trunk"].to_dict() == trunks(found)
    assert results["trunk_steps"].to_dict() == steps
    for cell in sweep.cells:
        timing = read_json(workdir / "runs" / cell.id / "result.json")["timing"]
        assert timing["tokens_trained"] == (cell.run.steps - steps[cell.id]) * cell.run.batch_tokens
    report = read_json(workdir / "report" / "report.json")
    assert "correlated_rows" in json.dumps(report["warnings"])
    assert "Runs of one trunk share its noise" in (workdir / "report" / "report.html").read_text()


@pytest.mark.parametrize("when", ["metrics.jsonl", "checkpoints"])
def test_launchers_and_trunks_that_are_killed_lose_nothing_but_time(start, scratch, tmp_path, when):
    """Again and again, as a trunk begins to train, or as it hands over: kill -9 to the launcher, which takes its
    workers along, with no time for anything. The last is left alone."""
    workdir = tmp_path / "sweep"
    pattern = {"metrics.jsonl": "*/attempts/*/metrics.jsonl", "checkpoints": "*/checkpoints/*"}[when]
    for _ in range(3):
        before = len(list((workdir / "runs").glob(pattern)))
        launcher = start(workdir)
        deadline = time.monotonic() + 60
        while len(list((workdir / "runs").glob(pattern))) <= before and time.monotonic() < deadline:
            time.sleep(0.002)
        launcher.send_signal(signal.SIGKILL)
        launcher.communicate()
    output = finish(start(workdir))
    assert_same_runs(workdir, scratch)
    assert "forked decays: 8 of 12 runs" in output
