"""The smoke config as a user runs it: real text, real training, the commands around it. It is run once."""

import dataclasses
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import pandas as pd
import pytest

from scaling.files import read_json, write_json
from scaling.models.counts import counts
from scaling.runs import run_from_dict, run_id
from scaling.training.failures import Failure

ROOT = pathlib.Path(__file__).parents[1]


def environment(stores):
    """As a user has it: one device, and stores of this test."""
    given = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    return {**given, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SCALING_STORES": str(stores)}


@dataclasses.dataclass(frozen=True)
class Smoke:
    """A finished smoke study."""

    workdir: pathlib.Path
    stores: pathlib.Path
    output: str
    report: dict[str, Any]
    files: dict[str, tuple[int, bytes]]  # of its runs

    def command(self, *arguments):
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env=environment(self.stores),
            capture_output=True,
            text=True,
            timeout=300,
        )

    def sweep(self, workdir):
        return self.command("experiments.sweep", "--config=experiments/configs/smoke.py", f"--workdir={workdir}")


def files_of(directory):
    """Path -> (time of the last change, content) of all files."""
    return {
        str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    root = tmp_path_factory.mktemp("smoke")
    empty = Smoke(root / "sweep", root / "stores", "", {}, {})
    done = empty.sweep(empty.workdir)
    assert done.returncode == 0, done.stderr
    return dataclasses.replace(
        empty,
        output=done.stdout,
        report=read_json(empty.workdir / "report" / "report.json"),
        files=files_of(empty.workdir / "runs"),
    )


def test_leaves_the_files_of_the_design(smoke):
    for name in ("sweep.json", "results.csv", "curves.csv", "prediction.json"):
        assert (smoke.workdir / name).stat().st_size > 0, name
    names = {path.name for path in (smoke.workdir / "report").iterdir()}
    figures = {path.stem for path in (smoke.workdir / "report").glob("*.svg")}
    assert len(figures) >= 4
    expected = {"report.html", "report.json", "next_run.json"}
    assert names == expected | {f"{figure}.{kind}" for figure in figures for kind in ("svg", "png")}
    runs = read_json(smoke.workdir / "sweep.json")["runs"]
    assert {path.name for path in (smoke.workdir / "runs").iterdir()} == runs.keys()
    for run in runs:
        here = {path.name for path in (smoke.workdir / "runs" / run).iterdir()}
        assert {"run.json", "placement.json", "metrics.jsonl", "timing.jsonl", "result.json", "checkpoints"} <= here
        assert "failure.json" not in here


def test_identities_are_those_of_the_runs(smoke):
    for name, run in read_json(smoke.workdir / "sweep.json")["runs"].items():
        assert run_id(run_from_dict(run)) == name
        assert read_json(smoke.workdir / "runs" / name / "run.json") == run


def test_report_has_the_keys_of_the_design(smoke):
    report = smoke.report
    for key in ("data", "approach1", "approach2", "approach3", "laws", "optima", "warnings", "prediction"):
        assert key in report, key
    assert report["data"].keys() >= {"rows", "used", "dropped", "sha256", "columns", "conventions"}
    assert report["approach3"]["parameters"].keys() == {"E", "A", "B", "alpha", "beta"}
    for number in (1, 2):
        approach = report[f"approach{number}"]
        assert "skipped" in approach or {"N_exponent", "D_exponent"} <= approach.keys()
    assert all({"code", "message"} <= warning.keys() for warning in report["warnings"])


def test_losses_are_those_of_a_trained_model_of_text(smoke):
    """Better than guessing bytes by their frequency (about 3.2 nats), worse than any model of this size can be."""
    results = pd.read_csv(smoke.workdir / "results.csv")
    assert set(results["status"]) == {"done"}
    assert results["loss"].between(1.2, 3.0).all()


def test_tables_agree_with_the_runs_files(smoke):
    results = pd.read_csv(smoke.workdir / "results.csv").set_index("run")
    curves = pd.read_csv(smoke.workdir / "curves.csv")
    assert curves.columns.tolist() == ["run", "step", "N", "D", "C", "loss", "split"]
    for run, row in results.iterrows():
        result = read_json(smoke.workdir / "runs" / run / "result.json")
        for name in ("N", "D", "C", "C_6nd", "loss", "loss_stderr", "unique_tokens", "epochs", "steps"):
            assert row[name] == result[name], name
        assert row["train_seconds"] == result["timing"]["train_seconds"]
        lines = (smoke.workdir / "runs" / run / "metrics.jsonl").read_text().splitlines()
        evaluated = [line for line in map(json.loads, lines) if "eval" in line]
        points = curves[curves["run"] == run]
        if row["role"] == "prediction":
            assert points.empty  # Approach 1 must not see the run that tests the law
            continue
        assert points["loss"].tolist() == [line["eval"]["validation"]["loss"] for line in evaluated]
        assert points["step"].tolist() == [line["step"] for line in evaluated]
        assert points["loss"].iloc[-1] == row["loss"]
        assert len(points) == 3  # config.eval_points


def test_prediction_was_made_before_its_run_was_trained(smoke):
    prediction = read_json(smoke.workdir / "prediction.json")
    directory = smoke.workdir / "runs" / prediction["run"]
    made = (smoke.workdir / "prediction.json").stat().st_mtime_ns
    assert made < min((directory / name).stat().st_mtime_ns for name in ("run.json", "metrics.jsonl", "result.json"))
    grid = [path.stat().st_mtime_ns for path in (smoke.workdir / "runs").glob("*/result.json")]
    assert sum(time > made for time in grid) == 1
    assert "measured" not in prediction
    assert smoke.report["prediction"]["predicted"] == prediction["predicted"]
    assert smoke.report["prediction"]["measured"] == read_json(directory / "result.json")["loss"]


def test_prints_prediction_and_measurement_side_by_side(smoke):
    prediction = smoke.report["prediction"]
    lines = smoke.output.splitlines()
    (row,) = [number for number, line in enumerate(lines) if line.startswith("measured: ")]
    assert lines[row - 1].startswith("predicted: ")
    assert f"loss {prediction['predicted']['value']:.3f}, 90% interval" in lines[row - 1]
    assert f"loss {prediction['measured']:.3f}, {'inside' if prediction['inside'] else 'outside'}" in lines[row]
    assert f"report: {smoke.workdir}/report/report.html" in lines


def test_prediction_has_no_part_in_the_fit(smoke):
    results = pd.read_csv(smoke.workdir / "results.csv")
    (row,) = results.index[results["role"] == "prediction"]
    assert results["run"][row] == smoke.report["prediction"]["run"]
    data = smoke.report["data"]
    assert data["dropped"] == [{"row": int(row), "reason": "held out to test the prediction"}]
    assert (data["rows"], data["used"]) == (len(results), len(results) - 1)


def test_next_run_is_a_whole_run(smoke):
    """The one that was trained as a test: what experiments.train --run= reads is a file of that content."""
    (next_run,) = read_json(smoke.workdir / "report" / "next_run.json")
    run = run_from_dict(next_run["run"])
    assert run_id(run) == smoke.report["prediction"]["run"]
    assert next_run["run"] == read_json(smoke.workdir / "runs" / run_id(run) / "run.json")
    C = counts(run.model, run.data.sequence_length, run.tokens)["C"]
    assert C == pytest.approx(next_run["target_flops"], rel=0.005)


def test_report_opens_offline(smoke):
    page = (smoke.workdir / "report" / "report.html").read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    assert "<script src" not in page


@pytest.fixture(scope="module")
def again(smoke):
    """The same command in the same directory: (the finished process, its CPU seconds)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = smoke.sweep(smoke.workdir)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_same_command_again_trains_nothing(smoke, again):
    """In 15 s of CPU: the start, and the analysis with its 1,000 resamples."""
    done, seconds = again
    assert done.returncode == 0, done.stderr
    assert files_of(smoke.workdir / "runs") == smoke.files
    assert seconds < 15


def test_the_same_command_again_gives_the_same_report(smoke, again):
    assert read_json(smoke.workdir / "report" / "report.json") == smoke.report


def test_no_warnings_of_libraries(again):
    """What a user sees is meant for them."""
    assert "Warning" not in again[0].stderr


def test_status_of_a_finished_smoke(smoke):
    done = smoke.command("tools.status", f"--workdir={smoke.workdir}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "9 done; nothing left to run"
    results = pd.read_csv(smoke.workdir / "results.csv")
    for run, loss in zip(results["run"], results["loss"], strict=True):
        (line,) = [line for line in done.stdout.splitlines() if run in line]
        assert f"{loss:.4f}" in line
        assert "100%" in line


def test_plan_is_what_was_run(smoke, tmp_path):
    out = tmp_path / "plan.json"
    done = smoke.command("tools.plan", "--config=experiments/configs/smoke.py", f"--out={out}")
    assert done.returncode == 0, done.stderr
    plan = read_json(out)
    results = pd.read_csv(smoke.workdir / "results.csv")
    grid = results[results["role"] == "grid"].set_index("run")
    assert {cell["run"] for cell in plan["cells"]} == set(grid.index)
    for cell in plan["cells"]:
        for name in ("N", "D", "C", "budget", "steps", "batch_tokens", "unique_tokens", "epochs", "peak_lr"):
            assert cell[name] == grid.loc[cell["run"], name], name
    assert f"{len(grid)} cells, " in done.stdout


def test_analyze_on_the_tables_gives_the_report(smoke, tmp_path):
    target = smoke.report["optima"][0]["C"]
    done = smoke.command(
        "tools.analyze",
        f"--runs={smoke.workdir}/results.csv",
        f"--curves={smoke.workdir}/curves.csv",
        f"--out={tmp_path}",
        f"--target_flops={target}",
    )
    assert done.returncode == 0, done.stderr
    again = read_json(tmp_path / "report.json")
    for key in ("approach3", "approach2", "approach1", "optima", "laws"):
        assert again[key] == smoke.report[key], key


@pytest.fixture
def stopped(smoke, tmp_path):
    """A copy of which one cell has failed for good and the longest is trained anew, and stopped on its way.

    (workdir, the failed run, the stopped run, exit code, standard error).
    """
    workdir = tmp_path / "sweep"
    shutil.copytree(smoke.workdir, workdir)
    results = pd.read_csv(workdir / "results.csv")
    *_, failed, longest = results[results["role"] == "grid"].sort_values("steps")["run"]
    (workdir / "runs" / failed / "result.json").unlink()
    failure = Failure("not_finite", "step 7: loss nan", step=7)
    write_json(workdir / "runs" / failed / "failure.json", failure.to_json())
    shutil.rmtree(workdir / "runs" / longest)
    arguments = ["experiments.sweep", "--config=experiments/configs/smoke.py", f"--workdir={workdir}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-m", *arguments], cwd=ROOT, env=environment(smoke.stores), **pipes)
    metrics, deadline = workdir / "runs" / longest / "attempts" / "1" / "metrics.jsonl", time.monotonic() + 120
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    return workdir, failed, longest, process.returncode, errors


def test_exit_75_when_stopped_and_3_when_a_cell_failed(smoke, stopped):
    """Started again, the stopped cell ends as it did without a stop, and the failed one is not tried again."""
    workdir, failed, longest, code, errors = stopped
    assert code == 75, errors
    assert errors.splitlines()[-1].startswith("stopped: ")
    assert not (workdir / "runs" / longest / "result.json").exists()
    steps = read_json(workdir / "runs" / longest / "run.json")["steps"]
    saved = [path.name.split("-") for path in (workdir / "runs" / longest / "checkpoints").iterdir()]
    assert 0 < max(int(step) for step, attempt in saved) < steps
    status = smoke.command("tools.status", f"--workdir={workdir}")
    assert "7 done, 1 failed, 1 missing; nothing is running" in status.stdout
    assert f"failed: {failed}: step 7: loss nan" in status.stdout

    done = smoke.sweep(workdir)
    assert done.returncode == 3, done.stderr
    assert f"failed: {failed}: step 7: loss nan" in done.stdout
    results = pd.read_csv(workdir / "results.csv").set_index("run")
    assert results.loc[failed, ["status", "reason"]].tolist() == ["failed", "step 7: loss nan"]
    first, again = (read_json(place / "runs" / longest / "result.json") for place in (smoke.workdir, workdir))
    assert again["loss"] == first["loss"]
