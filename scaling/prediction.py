"""The test of a law: a loss predicted before its run is trained, and what came of it."""

import dataclasses
import hashlib
import pathlib
from typing import Any

import pandas as pd

from scaling.analysis.analyze import Analysis
from scaling.analysis.decisions import predict_loss
from scaling.analysis.report import inside
from scaling.files import read_json, write_json
from scaling.models.counts import counts
from scaling.sweeps.cells import Cell
from scaling.sweeps.results import cell_status
from scaling.sweeps.workdir import Sweep, run_directory, save_sweep


def predict(
    workdir: pathlib.Path, sweep: Sweep, cell: Cell, results: pd.DataFrame, analysis: Analysis
) -> tuple[Sweep, dict[str, Any]]:
    """The loss that the law expects of a recommended cell, written to prediction.json before that run is trained.

    A prediction once made from the losses of a grid stands; a grid that has grown makes a new one.
    """
    path = workdir / "prediction.json"
    losses = results.loc[results["role"] == "grid", ["run", "loss"]].to_csv(index=False)
    digest = hashlib.sha256(losses.encode()).hexdigest()
    if path.exists():
        made = read_json(path)
        if made["grid_sha256"] == digest and made["target_flops"] == cell.budget:
            return sweep, made
    run = cell.run
    counted = counts(run.model, run.data.sequence_length, run.tokens)
    prediction = {
        "target_flops": cell.budget,
        "run": cell.id,
        **{name: counted[name] for name in ("N", "D", "C")},
        "predicted": predict_loss(analysis, counted["N"], counted["D"]),
        "blind": cell_status(run_directory(workdir, cell.id))[0] != "done",
        "grid_sha256": digest,
    }
    if cell.id not in {known.id for known in sweep.cells}:
        sweep = dataclasses.replace(sweep, cells=(*sweep.cells, cell))
        save_sweep(workdir, sweep)
    write_json(path, prediction)
    return sweep, prediction


def predicted_line(prediction: dict[str, Any]) -> str:
    """A prediction in words."""
    predicted = prediction["predicted"]
    interval = (
        "no interval"
        if predicted["ci"] is None
        else "{:.0%} interval {:.3f} to {:.3f}".format(predicted["level"], *predicted["ci"])
    )
    return (
        f"N {prediction['N']:,.0f}, D {prediction['D']:,.0f} at {prediction['C']:.3g} FLOPs: loss "
        f"{predicted['value']:.3f}, {interval}"
    )


def prediction_line(prediction: dict[str, Any]) -> str:
    """Prediction and measurement side by side."""
    told, loss = f"predicted: {predicted_line(prediction)}", prediction["measured"]
    if loss is None:
        return f"{told}; not measured"
    where = {None: "", True: ", inside", False: ", outside"}[inside(prediction)]
    when = "" if prediction["blind"] else " (its run was trained before the prediction was made)"
    return f"{told}\nmeasured: loss {loss:.3f}{where}{when}"


def measured(workdir: pathlib.Path, prediction: dict[str, Any]) -> dict[str, Any]:
    """A prediction with what its run came to: None while it has no result."""
    path = run_directory(workdir, prediction["run"]) / "result.json"
    result = read_json(path) if path.exists() else {}
    return {**prediction, "measured": result.get("loss"), "loss_stderr": result.get("loss_stderr")}
