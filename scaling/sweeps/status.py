"""How far each cell of a sweep is, from the files that its runs write."""

import pathlib

import pandas as pd

from scaling.models.counts import parameters
from scaling.sweeps.results import cell_status
from scaling.sweeps.workdir import Sweep, run_directory
from scaling.training.records import read_lines


def status_rows(workdir: pathlib.Path, sweep: Sweep) -> pd.DataFrame:
    """A row a cell: run, role, budget, N, C, status, progress (0 to 1), latest held-out loss, seconds spent, reason."""
    rows = []
    for cell in sweep.cells:
        run, directory = cell.run, run_directory(workdir, cell.id)
        status, reason = cell_status(directory)
        metrics = read_lines(directory / "metrics.jsonl")
        timings = read_lines(directory / "timing.jsonl")
        losses = [line["eval"]["validation"]["loss"] for line in metrics if "eval" in line]
        rows.append(
            {
                "run": cell.id,
                "role": cell.role,
                "budget": cell.budget,
                "N": parameters(run.model).N,
                "C": cell.flops,
                "status": status,
                "progress": max((line["step"] for line in metrics), default=0) / run.steps,
                "loss": losses[-1] if losses else float("nan"),
                "seconds": sum(timings[-1]["seconds"].values()) if timings else 0.0,
                "reason": reason,
            }
        )
    return pd.DataFrame(rows)


def time_left(table: pd.DataFrame) -> str:
    """An estimate in words: the FLOPs left, at the rate of those done, by as many cells at a time as run now."""
    at_work = table[table["status"].isin(["running", "missing"])]
    left = (at_work["C"] * (1 - at_work["progress"])).sum()
    spent = (table["C"] * table["progress"]).sum()
    running = int((table["status"] == "running").sum())
    if not left:
        return "nothing left to run"
    if not running or not spent:
        return "no estimate of the time left yet" if running else "nothing is running: experiments.sweep goes on"
    minutes = left / (spent / table["seconds"].sum()) / running / 60
    return f"about {minutes:.0f} min left (estimated from the rate so far)"
