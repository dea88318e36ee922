"""The whole loop: grid, training, tables, laws, a prediction made before its run is trained, and the report."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from scaling.analysis import decisions, report
from scaling.analysis.analyze import Analysis, analyze
from scaling.analysis.curves import curves_from_frame
from scaling.analysis.table import table_from_frame
from scaling.data.token_store import TokenStore
from scaling.errors import InputError, RunFailedError
from scaling.files import read_json, write_json
from scaling.models.counts import counts
from scaling.runs import run_from_dict, run_to_dict
from scaling.sweeps.config import SweepConfig
from scaling.sweeps.execution import execute
from scaling.sweeps.grid import Cell, make_grid, recommended_run
from scaling.sweeps.results import cell_status, collect, totals
from scaling.sweeps.workdir import Sweep, run_directory, save_sweep, write_sweep


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study came to: tables, the analysis, the prediction if there is one, and the cells that failed."""

    results: pd.DataFrame
    analysis: Analysis
    prediction: dict[str, Any] | None
    failed: tuple[tuple[Cell, str], ...]
    report: pathlib.Path


def run_study(
    config: SweepConfig, store: TokenStore, workdir: pathlib.Path, workers: int, say: Callable[[str], None] = print
) -> Study:
    """Runs what is not done yet of a sweep, analyses it, puts its law to the test, and reports.

    say: told in a line what comes next, where it takes time.
    Raises InputError if the config, the store and the directory do not fit, before anything is written, or if too few
    cells came through for a law; RunFailedError if none did; StoppedError if it was asked to stop.
    """
    cells, dropped = make_grid(config, store)
    for cell in cells:
        config.placement.check(cell.run)
    sweep = write_sweep(workdir, config, store, cells, dropped)
    grid = [cell for cell in sweep.cells if cell.role == "grid"]
    say(f"{len(grid)} cells, {len(dropped)} dropped, on {store.splits['train'].tokens:,} training tokens")
    failed = execute(workdir, grid, store, config.placement, workers)
    results, curves = collect(workdir, sweep)
    if not (results["status"] == "done").any():
        cell, reason = failed[0]
        raise RunFailedError(f"no cell has a result ({totals(results)}); the first to fail, {cell.id}: {reason}")
    target = (config.prediction or 2.0) * max(cell.budget for cell in grid)
    analysis = _analyse(results, curves, target)
    runs = configured(config, store, decisions.next_runs(analysis))
    prediction = None
    if config.prediction and runs and runs[0]["run"]:
        cell = Cell(run_from_dict(runs[0]["run"]), target, "prediction")
        sweep, prediction = _predict(workdir, sweep, cell, results, analysis)
        tested = [cell for cell in sweep.cells if cell.id == prediction["run"]]
        say(f"predicted, before it is trained: {predicted_line(prediction)}")
        failed += execute(workdir, tested, store, config.placement, workers)
        results, _ = collect(workdir, sweep)
        prediction = _measure(workdir, prediction)
        # The tested run has no part in any number: only the table now has its row, among those dropped.
        analysis = dataclasses.replace(analysis, table=table_from_frame(results))
    report.write_report(
        analysis,
        workdir / "report",
        next_runs=runs,
        prediction=prediction,
        title=f"{workdir.resolve().name}: isoFLOP study on {store.source}",
        notes=_notes(store, sweep, results, runs),
    )
    return Study(results, analysis, prediction, tuple(failed), workdir / "report" / "report.html")


def _analyse(results: pd.DataFrame, curves: pd.DataFrame, target: float) -> Analysis:
    return analyze(table_from_frame(results), curves_from_frame(curves), [target])


def _predict(
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
        "predicted": decisions.predict_loss(analysis, counted["N"], counted["D"]),
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


def _measure(workdir: pathlib.Path, prediction: dict[str, Any]) -> dict[str, Any]:
    path = run_directory(workdir, prediction["run"]) / "result.json"
    result = read_json(path) if path.exists() else {}
    return {**prediction, "measured": result.get("loss"), "loss_stderr": result.get("loss_stderr")}


def configured(config: SweepConfig, store: TokenStore, next_runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The next runs, each with the configuration to train under "run": null, and "why", where there is none."""
    found = []
    for next_run in next_runs:
        try:
            run = recommended_run(config, store, next_run["target_flops"], next_run["N"]["value"])
        except InputError as error:
            found.append({**next_run, "run": None, "why": str(error)})
        else:
            found.append({**next_run, "run": run_to_dict(run)})
    return found


def _notes(store: TokenStore, sweep: Sweep, results: pd.DataFrame, runs: Sequence[dict[str, Any]]) -> Sequence[str]:
    """What the reader must know of the runs, beside their numbers."""
    train = store.splits["train"]
    notes = [
        f"Text: {store.source}, {train.tokens:,} training tokens ({store.tokenizer}), content {store.content_id}.",
        f"Recipe: {sweep.config.recipe}. Its learning rates follow a rule and were not tuned for each size: a rate "
        "that is worse for some sizes than for others bends the exponents.",
        f"Cells: {totals(results)}.",
    ]
    repeated = results[results["epochs"].fillna(0) > 1]
    if len(repeated):
        notes.append(
            f"Repeated data, up to {repeated['epochs'].max():.2f} epochs: {', '.join(repeated['run'])}. A repeated "
            "token teaches less than a fresh one, which the law does not know."
        )
    if len(sweep.config.seeds) == 1:
        notes.append("One seed a cell: the noise between seeds is in the residuals, not measured apart.")
    notes += [f"No configuration at {run['target_flops']:.3g} FLOPs: {run['why']}." for run in runs if not run["run"]]
    notes += [f"Dropped: {d.size:,.0f} parameters at {d.budget:.3g} FLOPs: {d.reason}." for d in sweep.dropped]
    return notes
