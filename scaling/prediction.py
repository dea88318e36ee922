"""The test of a law: a loss predicted before its run is trained, and what came of it."""

import hashlib
import json
import pathlib
from typing import Any

import pandas as pd

from scaling.analysis.analyze import Analysis
from scaling.analysis.decisions import predict_loss
from scaling.analysis.report import inside
from scaling.models.counts import counts
from scaling.sweeps.cells import Cell
from scaling.sweeps.results import cell_status
from scaling.sweeps.tasks import read_result
from scaling.sweeps.workdir import Sweep, add_cells, run_directory, update


def predict(
    workdir: pathlib.Path, sweep: Sweep, cell: Cell, results: pd.DataFrame, analysis: Analysis
) -> tuple[Sweep, dict[str, Any]]:
    """The loss that the law expects of a recommended cell, written to prediction.json before that run is trained.

    A prediction once made from the losses of a grid stands, whoever has made it. A grid that has grown, or has lost a
    result for a while, makes a new one; the earlier ones are kept beside it, and stand again if their grid does.
    """
    losses = results.loc[results["role"] == "grid", ["run", "loss"]].to_csv(index=False)
    digest = hashlib.sha256(losses.encode()).hexdigest()
    found: list[dict[str, Any]] = []

    def standing(text: str | None) -> str:
        known = [] if text is None else _unfolded(json.loads(text))
        same = [each for each in known if (each["grid_sha256"], each["target_flops"]) == (digest, cell.budget)]
        if not same:
            add_cells(workdir, sweep, [cell])  # first: who finds a prediction finds its cell
            same = [_prediction(workdir, cell, analysis, digest)]
        found.append(same[0])
        earlier = [each for each in known if each is not same[0]]
        return json.dumps({**same[0], "earlier": earlier}, indent=2, allow_nan=False) + "\n"

    update(workdir / "prediction.json", standing)
    return add_cells(workdir, sweep, []), found[-1]


def _unfolded(made: dict[str, Any]) -> list[dict[str, Any]]:
    """The prediction that stands in a file, and those that stood there before."""
    return [{name: value for name, value in made.items() if name != "earlier"}, *made.get("earlier", ())]


def _prediction(workdir: pathlib.Path, cell: Cell, analysis: Analysis, digest: str) -> dict[str, Any]:
    run = cell.run
    counted = counts(run.model, run.data.sequence_length, run.tokens)
    return {
        "target_flops": cell.budget,
        "run": cell.id,
        **{name: counted[name] for name in ("N", "D", "C")},
        "predicted": predict_loss(analysis, counted["N"], counted["D"]),
        "blind": cell_status(run_directory(workdir, cell.id))[0] != "done",
        "grid_sha256": digest,
    }


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
    result = read_result(run_directory(workdir, prediction["run"])) or {}
    return {**prediction, "measured": result.get("loss"), "loss_stderr": result.get("loss_stderr")}
