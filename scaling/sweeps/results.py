"""From the files of a sweep's runs to its tables: results.csv, a row a cell, and curves.csv, a row a held-out loss."""

import contextlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from scaling.errors import InputError
from scaling.models.counts import counts
from scaling.runs import MAIN_SPLIT, Run
from scaling.sweeps.cells import Cell
from scaling.sweeps.forks import groups, trunks
from scaling.sweeps.tasks import read_failure, read_result
from scaling.sweeps.workdir import Sweep, run_directory, update
from scaling.training.care import Care
from scaling.training.claims import read_claim, seems_alive
from scaling.training.records import publish, read_lines, records_of

CURVE_COLUMNS = ["run", "step", "N", "D", "C", "loss", "split"]
TIMINGS = (
    "compile_seconds",
    "train_seconds",
    "evaluate_seconds",
    "save_seconds",
    "flops_per_second",
    "mfu",
    "wall_seconds",
    "attempts",
    "energy_kwh",
    "energy_kwh_est",
)


def collect(workdir: pathlib.Path, sweep: Sweep) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Writes results.csv and curves.csv from what the runs have written so far, and returns both tables.

    curves.csv has the grid's runs only: it is what Approach 1 reads, which must not see the run that tests the law.
    Another launcher may do the same: a table is made again if the file has changed while it was made, so that none is
    replaced by an older one. Of a forked sweep results.csv names the trunk of each run, "" of one that shares its steps
    with no other, and says how many of its steps that has taken for it.
    """
    found = groups(sweep.config, sweep.cells)
    forked = {cell.id: "" for group in found for cell in (group.trunk, *group.forks)} | trunks(found)
    for cell in sweep.cells:
        _finish(run_directory(workdir, cell.id))
    runs = {cell.id: cell for cell in sweep.grid}.values()
    return (
        _kept(workdir / "results.csv", lambda: pd.DataFrame([_row(workdir, cell, forked) for cell in sweep.cells])),
        _kept(
            workdir / "curves.csv",
            lambda: pd.DataFrame([point for cell in runs for point in curve(workdir, cell)], columns=CURVE_COLUMNS),
        ),
    )


def _finish(directory: pathlib.Path) -> None:
    """Moves up the metrics of a run whose process was killed right after it had recorded its result."""
    with contextlib.suppress(InputError):  # of a file that `cell_status` names
        if read_result(directory) is not None and not (directory / "metrics.jsonl").exists():
            publish(directory)


def _kept(path: pathlib.Path, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A table, which is written to a file."""
    made: list[pd.DataFrame] = []

    def text(_: str | None) -> str:
        made.append(make())
        return made[-1].to_csv(index=False, lineterminator="\n")

    update(path, text)
    return made[-1]


def cell_status(directory: pathlib.Path) -> tuple[str, str]:
    """done, failed, running or missing, and the reason if it failed; of files that cannot be read, which and why.

    running is what another process seems to be doing, by its claim and the clocks of hosts.
    """
    try:
        if read_result(directory) is not None:
            return "done", ""
        if seems_alive(read_claim(directory), Care().stale_seconds):
            return "running", ""
        failure = read_failure(directory)
    except InputError as error:
        return "failed", str(error)
    return ("missing", "") if failure is None else ("failed", failure.reason)


def records(directory: pathlib.Path, name: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl or timing.jsonl, wherever they are now; none where result.json, which would
    say so, cannot be read: `cell_status` tells of that."""
    try:
        folder = records_of(directory)
    except InputError:
        return []
    return read_lines(folder / name) or read_lines(directory / name)  # it may have been moved up between two looks


def curve(workdir: pathlib.Path, cell: Cell) -> list[dict[str, Any]]:
    """The held-out losses of a run on its way, as rows of curves.csv."""
    run = cell.run
    rows = []
    for record in records(run_directory(workdir, cell.id), "metrics.jsonl"):
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


def _row(workdir: pathlib.Path, cell: Cell, forked: Mapping[str, str]) -> dict[str, Any]:
    run = cell.run
    directory = run_directory(workdir, cell.id)
    status, reason = cell_status(directory)
    result = (read_result(directory) or {}) if status == "done" else {}
    timing = result.get("timing", {})
    trunk = {"trunk": forked[cell.id], "trunk_steps": timing.get("trunk_steps")} if forked else {}
    return {
        "run": cell.id,
        **trunk,
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
        **{name: timing.get("attempt" if name == "attempts" else name) for name in TIMINGS},
    }


def _losses(run: Run, result: dict[str, Any]) -> dict[str, float | None]:
    """Bits a byte of the main evaluation set, and nats a token and bits a byte of the others, by their names."""
    losses = result.get("losses", {})
    found = {"bits_per_byte": losses.get(MAIN_SPLIT, {}).get("bits_per_byte")}
    for part in run.data.validation:
        found[f"loss_{part.name}"] = losses.get(part.name, {}).get("loss")
        found[f"bits_per_byte_{part.name}"] = losses.get(part.name, {}).get("bits_per_byte")
    return found
