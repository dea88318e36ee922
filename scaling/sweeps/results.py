"""From the files of a sweep's runs to its tables: results.csv, a row a cell, and curves.csv, a row a held-out loss."""

import fcntl
import io
import pathlib
from typing import Any

import pandas as pd

from scaling.files import read_json, write_text
from scaling.models.counts import counts
from scaling.runs import MAIN_SPLIT, Run
from scaling.sweeps.cells import Cell
from scaling.sweeps.workdir import Sweep, run_directory
from scaling.training.records import LOCK, read_lines

CURVE_COLUMNS = ["run", "step", "N", "D", "C", "loss", "split"]
TIMINGS = (
    "compile_seconds",
    "train_seconds",
    "evaluate_seconds",
    "save_seconds",
    "flops_per_second",
    "mfu",
)


def collect(workdir: pathlib.Path, sweep: Sweep) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Writes results.csv and curves.csv from what the runs have written so far, and returns both tables.

    curves.csv has the grid's runs only: it is what Approach 1 reads, which must not see the run that tests the law.
    """
    results = pd.DataFrame([_row(workdir, cell) for cell in sweep.cells])
    runs = {cell.id: cell for cell in sweep.grid}.values()
    curves = pd.DataFrame([point for cell in runs for point in curve(workdir, cell)], columns=CURVE_COLUMNS)
    for name, table in (("results.csv", results), ("curves.csv", curves)):
        text = io.StringIO()
        table.to_csv(text, index=False, lineterminator="\n")
        write_text(workdir / name, text.getvalue())
    return results, curves


def cell_status(directory: pathlib.Path) -> tuple[str, str]:
    """done, failed, running or missing, and the reason if it failed."""
    if (directory / "result.json").exists():
        return "done", ""
    if _is_locked(directory / LOCK):
        return "running", ""
    if (directory / "failure.json").exists():
        return "failed", read_json(directory / "failure.json")["reason"]
    return "missing", ""


def curve(workdir: pathlib.Path, cell: Cell) -> list[dict[str, Any]]:
    """The held-out losses of a run on its way, as rows of curves.csv."""
    run = cell.run
    rows = []
    for record in read_lines(run_directory(workdir, cell.id) / "metrics.jsonl"):
        for split, values in record.get("eval", {}).items():
            counted = counts(run.model, run.data.sequence_length, record["tokens"])
            point = {"run": cell.id, "step": record["step"], "loss": values["loss"], "split": split}
            rows.append({**point, **{name: counted[name] for name in ("N", "D", "C")}})
    return rows


def totals(results: pd.DataFrame) -> str:
    """How many cells are in which state, in words."""
    counted = results["status"].value_counts()
    return ", ".join(
        f"{counted[status]} {status}" for status in ("done", "running", "failed", "missing") if status in counted
    )


def _row(workdir: pathlib.Path, cell: Cell) -> dict[str, Any]:
    run = cell.run
    directory = run_directory(workdir, cell.id)
    status, reason = cell_status(directory)
    result = read_json(directory / "result.json") if status == "done" else {}
    return {
        "run": cell.id,
        "status": status,
        "reason": reason,
        "role": cell.role,
        "budget": cell.budget,
        "variant": cell.variant,
        **counts(run.model, run.data.sequence_length, run.tokens),
        "loss": result.get("loss"),
        "loss_stderr": result.get("loss_stderr"),
        **_losses(run, result),
        "seed": run.seed,
        "unique_tokens": result.get("unique_tokens"),
        "epochs": result.get("epochs"),
        "steps": run.steps,
        "batch_tokens": run.batch_tokens,
        "width": run.model.d_model,
        "depth": run.model.n_layers,
        **({"n_experts": run.model.n_experts} if run.model.n_experts else {}),
        "peak_lr": run.optimizer.peak_lr,
        **{name: result.get("timing", {}).get(name) for name in TIMINGS},
    }


def _losses(run: Run, result: dict[str, Any]) -> dict[str, float | None]:
    """Bits a byte of the main evaluation set, and nats a token and bits a byte of the others, by their names."""
    losses = result.get("losses", {})
    found = {"bits_per_byte": losses.get(MAIN_SPLIT, {}).get("bits_per_byte")}
    for part in run.data.validation:
        found[f"loss_{part.name}"] = losses.get(part.name, {}).get("loss")
        found[f"bits_per_byte_{part.name}"] = losses.get(part.name, {}).get("bits_per_byte")
    return found


def _is_locked(path: pathlib.Path) -> bool:
    if not path.exists():
        return False
    with open(path) as f:
        try:
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
