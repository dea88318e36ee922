"""Other people's curves: every form of export gives the curves that the same points give in our own form."""

import sys

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.curves import curves_from_frame, read_curves
from scaling.analysis.table import read_frame
from scaling.errors import InputError

STEPS = 200  # of every run of the table
STEP, TOKENS = ["run", "step", "loss"], ["run", "D", "loss"]


@pytest.fixture
def runs(sweep):
    """The table of runs, with the steps that curves in steps need."""
    return sweep().assign(steps=STEPS)


@pytest.fixture
def points(training_curves):
    """Held-out points of three runs, with run, step and all else."""
    frame = training_curves()
    frame = frame[(frame["split"] == "validation") & frame["run"].isin(["2e+11-0", "5e+11-3", "2e+12-6"])]
    return frame.assign(step=2 * frame["step"]).reset_index(drop=True)  # of 200


def same(found, frame):
    expected = curves_from_frame(frame)
    assert set(found.names) == set(expected.names)
    for name in expected.names:
        one, other = found.of(found.names.index(name)), expected.of(expected.names.index(name))
        for column in ("N_P", "D_P", "C_P", "loss_P"):
            np.testing.assert_allclose(getattr(found, column)[one], getattr(expected, column)[other], rtol=1e-12)


def written(frame, path, **options):
    frame.to_csv(path, index=False, **options)
    return path


def chart(points, axis, metric="val/loss"):
    """What Weights & Biases exports of a chart: columns of each run, a row for each place on the axis."""
    wide = pd.DataFrame({axis[0]: sorted(points[axis[1]].unique())})
    for run, part in points.groupby("run"):
        values = wide[axis[0]].map(part.set_index(axis[1])["loss"])
        for suffix in ("", "__MIN", "__MAX"):
            wide[f"{run} - {metric}{suffix}"] = values
    return wide


def test_a_long_table_with_names_of_its_own(points, runs, tmp_path):
    theirs = points.rename(columns={"run": "name", "D": "tokens", "loss": "val/loss"})
    path = written(theirs[["name", "tokens", "val/loss"]], tmp_path / "curves.csv")
    columns = {"run": "name", "D": "tokens", "loss": "val/loss"}
    found = read_curves(path, runs=runs, columns=columns)
    same(found, points)
    assert (found.split, found.unused) == ("", {})


def test_steps_become_tokens_by_the_table_or_the_flag(points, runs, tmp_path):
    path = written(points[["run", "step", "loss"]], tmp_path / "curves.csv")
    same(read_curves(path, runs=runs), points)
    one = points[points["run"] == "5e+11-3"]
    per_step = float(one["D"].iloc[-1] / STEPS)
    path = written(one[["run", "step", "N", "C", "loss"]], tmp_path / "one.csv")
    same(read_curves(path, tokens_per_step=per_step), one)


def test_the_table_of_runs_may_hold_checkpoints_of_a_run(points, runs, tmp_path):
    halfway = runs.assign(D=runs["D"] / 2, C=runs["C"] / 2, steps=STEPS // 2)
    path = written(points[["run", "step", "loss"]], tmp_path / "curves.csv")
    same(read_curves(path, runs=pd.concat([runs, halfway])), points)


def test_a_chart_of_weights_and_biases(points, runs, tmp_path):
    by_step = written(chart(points, ("Step", "step")), tmp_path / "chart.csv")
    same(read_curves(by_step, runs=runs), points)
    by_tokens = written(chart(points, ("tokens", "D")), tmp_path / "tokens.csv")
    same(read_curves(by_tokens, runs=runs, columns={"D": "tokens"}), points)
    # On another axis, the chart brings the step of each point beside its metric.
    hours = points.assign(hours=np.arange(len(points)))
    wide = chart(hours, ("Relative Time (Process)", "hours"))
    for run, part in hours.groupby("run"):
        wide[f"{run} - _step"] = wide["Relative Time (Process)"].map(part.set_index("hours")["step"])
        wide[f"{run} - _step__MIN"] = wide[f"{run} - _step__MAX"] = wide[f"{run} - _step"]
    same(read_curves(written(wide, tmp_path / "hours.csv"), runs=runs), points)


def test_several_metrics_in_a_chart_and_dashes_in_a_name(points, runs, tmp_path):
    renamed = points.assign(run="a - " + points["run"])
    both = chart(renamed, ("Step", "step")).merge(chart(renamed.assign(loss=9.0), ("Step", "step"), "train/loss"))
    path = written(both, tmp_path / "chart.csv")
    theirs = runs.assign(run="a - " + runs["run"])
    same(read_curves(path, runs=theirs, columns={"loss": "val/loss"}), renamed)
    with pytest.raises(InputError, match="several metrics: train/loss, val/loss"):
        read_curves(path, runs=theirs)
    with pytest.raises(InputError, match=r"no metric val/los .*did you mean val/loss"):
        read_curves(path, runs=theirs, columns={"loss": "val/los"})


@pytest.mark.parametrize("name", ["{}.csv", "run-{}-tag-val_loss.csv", "run_{}_tag-eval.csv"])
def test_scalars_exported_from_tensorboard(points, runs, tmp_path, name):
    paths = []
    for run, part in points.assign(run=points["run"].str.replace("+", "")).groupby("run"):
        scalar = pd.DataFrame({"Wall time": 1.7e9, "Step": part["step"], "Value": part["loss"]})
        paths.append(written(scalar, tmp_path / name.format(run)))
    theirs = runs.assign(run=runs["run"].str.replace("+", ""))
    same(read_curves(paths, runs=theirs), points.assign(run=points["run"].str.replace("+", "")))


def test_a_file_s_name_may_hold_an_underscore_for_a_slash(points, runs, tmp_path):
    one = points[points["run"] == "5e+11-3"].assign(run="big/5e")
    scalar = pd.DataFrame({"Wall time": 1.7e9, "Step": one["step"], "Value": one["loss"]})
    path = written(scalar, tmp_path / "run-big_5e-tag-loss.csv")
    same(read_curves(path, runs=runs.replace("5e+11-3", "big/5e")), one)


def test_event_files(points, runs, tmp_path):
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer", exc_type=ImportError)
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    for run, part in points.groupby("run"):
        events = writer.EventFileWriter(str(tmp_path / "logs" / run / "tensorboard"))
        for point in part.itertuples():
            for tag, loss in (("eval/loss", point.loss), ("train/loss", 9.0)):
                summary = Summary(value=[Summary.Value(tag=tag, simple_value=loss)])
                events.add_event(Event(step=point.step, summary=summary))
        events.close()
    rounded = points.assign(loss=points["loss"].astype(np.float32).astype(np.float64))  # as event files hold them
    same(read_curves(tmp_path / "logs", runs=runs, columns={"loss": "eval/loss"}), rounded)
    file = next((tmp_path / "logs" / "5e+11-3" / "tensorboard").iterdir())
    with pytest.raises(InputError, match=r"2 scalars, and none is chosen .*eval/loss, train/loss"):
        read_curves(file, runs=runs)
    with pytest.raises(InputError, match=r"no scalar evalloss .*did you mean eval/loss"):
        read_curves(tmp_path / "logs", runs=runs, columns={"loss": "evalloss"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no event files"):
        read_curves(tmp_path / "empty", runs=runs)


def test_event_files_without_tensorboard_are_refused_with_what_to_install(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing", None)
    with pytest.raises(InputError, match=r"event files need TensorBoard \(pip install tensorboard\)"):
        read_curves(tmp_path, runs=runs)


def test_what_is_left_out_of_curves_is_counted(points):
    points = points.assign(split=["code"] * 5 + ["validation"] * (len(points) - 5))
    points.loc[6, "loss"], points.loc[7, "loss"], points.loc[8, "D"] = np.nan, np.inf, 0
    found = curves_from_frame(points, left_out=["2e+12-6"])
    assert found.unused == {
        "other splits": 5,
        "runs that were excluded": 10,
        "before any token": 1,
        "no finite loss": 2,
    }
    assert len(found.C_P) == len(points) - 18
    assert curves_from_frame(points, split="code").split == "code"
    with pytest.raises(InputError, match=r"no row with split=cod .*did you mean code"):
        curves_from_frame(points, split="cod")


@pytest.mark.parametrize(
    ("change", "runs_change", "message"),
    [
        (lambda p: p.drop(columns="run"), None, "no column run"),
        (lambda p: p[["run", "N", "C", "loss"]], None, "no column D .tokens so far., and no column step"),
        (lambda p: p[STEP], lambda r: r.drop(columns="steps"), "steps and no tokens.*tokens_per_step"),
        (lambda p: p[STEP].assign(step=2 * p["step"]), None, "step 240 of run .* beyond its 200 steps"),
        (lambda p: p[STEP].assign(step="x"), None, "step=x is not a number of steps"),
        (lambda p: p[TOKENS].replace("5e+11-3", "5e+11-33"), None, "run '5e.11-33' .*did you mean 5e.11-3"),
        (lambda p: p[TOKENS], lambda r: r.drop(columns="run"), "give a table of runs with `run`"),
        (lambda p: p[TOKENS], lambda r: r.assign(run="2e+11-0"), "28 different N"),
        (lambda p: p.groupby("run").tail(1), None, "each of the 3 runs has one point"),
        (lambda p: p.assign(loss=-1), None, "loss=-1 in row 0 is not positive"),
        (lambda p: chart(p.assign(hours=p.index), ("hours", "hours")), None, "the x axis of the chart is 'hours'"),
    ],
)  # fmt: skip
def test_curves_that_do_not_say_enough_are_refused(points, runs, tmp_path, change, runs_change, message):
    path = written(change(points), tmp_path / "curves.csv")
    with pytest.raises(InputError, match=message):
        read_curves(path, runs=runs_change(runs) if runs_change else runs)


def test_two_columns_of_one_name_are_ambiguous(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("N,D,loss,loss\n1,2,3,4\n")
    with pytest.raises(InputError, match="two columns are named 'loss'"):
        read_frame([path])
