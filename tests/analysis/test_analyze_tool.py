"""tools.analyze from the command line, and that no part of the analysis needs JAX."""

import json
import os
import pathlib
import subprocess
import sys

import pandas as pd
import pytest

ROOT = pathlib.Path(__file__).parents[2]


def python(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def test_table_in_report_out(sweep, training_curves, tmp_path):
    runs, more, curves, out = (tmp_path / name for name in ("a.csv", "b.csv", "curves.csv", "out"))
    frame = sweep(noise=0.004)
    frame.head(14).to_csv(runs, index=False)
    frame.tail(14).to_csv(more, index=False)
    training_curves().to_csv(curves, index=False)
    done = python(
        "-m",
        "tools.analyze",
        f"--runs={runs},{more}",
        f"--curves={curves}",
        f"--out={out}",
        "--target_flops=5e12,1e13",
        "--resamples=100",
    )
    assert done.returncode == 0, done.stderr
    assert "28 of 28 runs used" in done.stdout
    assert f"report: {out}/report.html" in done.stdout
    for number in (1, 2, 3):
        assert f"Approach {number}: " in done.stdout
    for name in ("report.html", "report.json", "next_run.json", "isoflop.svg", "isoflop.png"):
        assert (out / name).stat().st_size > 0


def test_other_people_s_runs(sweep, training_curves, tmp_path):
    """Names of their own, a chart of Weights & Biases, rows excluded with a reason, seeds: all of it in the report."""
    frame = pd.concat([sweep(noise=0.004, seed=k).assign(seed=k) for k in (0, 1)], ignore_index=True)
    frame["run"] += "-" + frame["seed"].astype(str)
    theirs = frame.assign(steps=100).drop(columns="C")
    theirs = theirs.rename(columns={"run": "Name", "N": "params", "D": "tokens", "loss": "eval/loss"})
    theirs.to_csv(tmp_path / "runs.csv", index=False)
    points = training_curves().query("split == 'validation'")
    chart = points.assign(run=points["run"] + "-0 - eval/loss").pivot(index="step", columns="run", values="loss")
    chart = pd.concat([chart, chart.add_suffix("__MIN"), chart.add_suffix("__MAX")], axis=1)
    chart.rename_axis(index="Step").to_csv(tmp_path / "chart.csv")
    done = python(
        "-m",
        "tools.analyze",
        f"--runs={tmp_path}/runs.csv",
        "--columns=run=Name,N=params,D=tokens",
        "--loss=eval/loss",
        f"--curves={tmp_path}/chart.csv",
        "--exclude=C < 3e11 because too short to leave the warm-up",
        "--exclude=Name == '5e+11-0-1' because its data was broken",
        f"--out={tmp_path}/out",
        "--resamples=100",
    )
    assert done.returncode == 0, done.stderr
    assert "41 of 56 runs used" in done.stdout
    assert "noise floor: 0." in done.stdout
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["data"]["excluded"][0]["reason"] == "too short to leave the warm-up"
    assert [entry["rows"] for entry in found["data"]["excluded"]] == [14, 1]
    assert found["data"]["conventions"]["loss"] == "nats per token, as given in column eval/loss"
    assert found["data"]["curves"]["runs"] == 21  # of the excluded runs, no curve either
    assert found["data"]["curves"]["unused"] == {"runs that were excluded": 70}
    assert found["noise"]["dof"] == 20
    assert found["approach1"]["N_exponent"]["value"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--runs=absent.csv"], "absent.csv: cannot read it"),
        (["--runs={bad}"], "no column loss"),
        (["--runs={good}", "--target_flops=lots"], "--target_flops='lots' is not a number"),
        (["--runs={good}", "--curves={good}"], "each of the 28 runs has one point"),
        (["--runs={good}", "--columns=N"], "--columns: 'N' is no column map"),
        (["--runs={good}", "--loss_unit=bpb", "--curves={good}"], "does not tell the unit of the curves"),
        (["--runs={good}", "--tokens_per_step=512"], "--tokens_per_step without --curves"),
        (["--runs={good}", "--objective=squares_log", "--delta=0.01"], "--delta=0.01 is of Huber's loss"),
        (["--runs={good}", "--law=chinchila"], "did you mean chinchilla?"),
        (["--runs={good}", "--law=width_depth"], "no column width, which the width_depth law needs"),
        (["--runs={good}", "--unique_tokens=-1"], "--unique_tokens=-1"),
        (["--runs={good}", "--unit=seeds"], "unit='seeds' needs a column seed"),
        (["--runs={good}", "--out="], "--out=: name a folder"),
        ([], "--runs"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(sweep, tmp_path, flags, message):
    good, bad, out = tmp_path / "good.csv", tmp_path / "bad.csv", tmp_path / "out"
    sweep().to_csv(good, index=False)
    sweep().drop(columns="loss").to_csv(bad, index=False)
    failed = python("-m", "tools.analyze", f"--out={out}", *[flag.format(good=good, bad=bad) for flag in flags])
    assert failed.returncode == 2
    assert message in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
    assert not out.exists()


def test_help_says_the_command():
    helped = python("-m", "tools.analyze", "--help")
    assert "python -m tools.analyze --runs=a.csv" in helped.stdout
    assert "--target_flops" in helped.stdout


def test_the_analysis_never_imports_jax():
    paths = [path.relative_to(ROOT) for path in (ROOT / "scaling/analysis").rglob("*.py") if path.stem != "__init__"]
    modules = [".".join(path.with_suffix("").parts) for path in paths]
    code = "import importlib, sys\n" + "".join(f"importlib.import_module({name!r})\n" for name in modules)
    done = python("-c", code + "assert not {'jax', 'jaxlib', 'flax'} & set(sys.modules), 'jax was imported'")
    assert len(modules) > 10
    assert done.returncode == 0, done.stderr
