"""How far each cell of a sweep is, from the files that its runs write."""

import pathlib
from collections.abc import Sequence
from typing import Any

import pandas as pd

from scaling.errors import nearest
from scaling.models.counts import parameters
from scaling.runs import MAIN_SPLIT
from scaling.specs import require
from scaling.sweeps.cells import Cell
from scaling.sweeps.results import cell_status
from scaling.sweeps.workdir import Sweep, run_directory
from scaling.training.profiling import request_profile
from scaling.training.records import read_lines

RECENT_LINES = 10  # of timing.jsonl, over which the throughput of a running cell is taken
PROFILED_STEPS = 5
NAN = float("nan")


def status_rows(workdir: pathlib.Path, sweep: Sweep) -> pd.DataFrame:
    """A table of `status_row`, a row a cell."""
    return pd.DataFrame([status_row(workdir, cell) for cell in sweep.cells])


def status_row(workdir: pathlib.Path, cell: Cell) -> dict[str, Any]:
    """How far a cell is: run, role, variant, budget, N, C, status, progress (0 to 1), latest held-out loss,
    tokens_per_second, seconds_left (an estimate, of a running cell), seconds spent, reason. NaN: not known yet.

    Throughput is that of training alone: of a running cell over its latest steps, of another over all it did.
    """
    run, directory = cell.run, run_directory(workdir, cell.id)
    status, reason = cell_status(directory)
    metrics = read_lines(directory / "metrics.jsonl")
    timings = [{"step": 0, "seconds": {}}, *read_lines(directory / "timing.jsonl")]
    losses = [line["eval"][MAIN_SPLIT]["loss"] for line in metrics if "eval" in line]
    done = max((line["step"] for line in metrics), default=0)
    running = status == "running"
    train, whole = _seconds_per_step(timings[-RECENT_LINES:][0] if running else timings[0], timings[-1])
    return {
        "run": cell.id,
        "role": cell.role,
        "variant": cell.variant,
        "budget": NAN if cell.budget is None else cell.budget,
        "N": parameters(run.model).N,
        "C": cell.flops,
        "status": status,
        "progress": done / run.steps,
        "loss": losses[-1] if losses else NAN,
        "tokens_per_second": run.batch_tokens / train,
        "seconds_left": (run.steps - done) * whole if running else NAN,
        "seconds": sum(timings[-1]["seconds"].values()),
        "reason": reason,
    }


def _seconds_per_step(first: dict[str, Any], last: dict[str, Any]) -> tuple[float, float]:
    """Between two lines of timing.jsonl: of training alone, and with evaluating and saving. NaN if of one step."""
    spent = {what: last["seconds"].get(what, 0.0) - first["seconds"].get(what, 0.0) for what in last["seconds"]}
    steps = last["step"] - first["step"]
    train = spent.get("train", 0.0)
    if not steps or not train:
        return NAN, NAN
    return train / steps, (train + spent.get("evaluate", 0.0) + spent.get("save", 0.0)) / steps


def time_left(table: pd.DataFrame) -> str:
    """An estimate in words: the FLOPs left, at the rate of those done, by as many cells at a time as run now; and no
    less than the longest of these needs."""
    at_work = table[table["status"].isin(["running", "missing"])]
    running = table[table["status"] == "running"]
    left = (at_work["C"] * (1 - at_work["progress"])).sum()
    spent = (table["C"] * table["progress"]).sum()
    if not left:
        return "nothing left to run"
    if not len(running):
        return "nothing is running: experiments.sweep goes on"
    if not spent:
        return "no estimate of the time left yet"
    seconds = left / (spent / table["seconds"].sum()) / len(running)
    return (
        f"about {duration(max(seconds, running['seconds_left'].fillna(0).max()))} left (estimated from the rate so far)"
    )


def duration(seconds: float) -> str:
    """Seconds as a reader says them: 45 s, 15 min, 3.2 h, 4.1 days; "" of NaN."""
    if seconds != seconds:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36 * 3600 else f"{seconds / 86400:.1f} days"


def status_text(table: pd.DataFrame) -> str:
    """Rows of `status_row` as a table to read, and a line for each that failed, with its reason."""
    number = {
        "budget": "{:.3g}",
        "N": "{:,.0f}",
        "progress": "{:.0%}",
        "loss": "{:.4f}",
        "tokens_per_second": "{:,.0f}",
    }
    shown = table.assign(left=table["seconds_left"].map(duration))
    shown = shown.assign(**{name: shown[name].map(form.format).replace("nan", "") for name, form in number.items()})
    columns = ["run", "role", "variant", "budget", "N", "status", "progress", "loss", "tokens_per_second", "left"]
    told = [name for name in columns if name not in ("variant", "budget") or (shown[name] != "").any()]
    lines = [shown[told].rename(columns={"tokens_per_second": "tokens/s"}).to_string(index=False)]
    lines += [f"{row.status}: {row.run}: {row.reason}" for row in table.itertuples() if row.reason]
    return "\n".join(lines)


def ask_profile(workdir: pathlib.Path, cells: Sequence[Cell], asked: str) -> pathlib.Path:
    """Asks a running cell, RUN or RUN:STEPS, for a profile of some steps. Returns where the trace will be.

    Raises InputError for one that does not run, with the nearest that does, and for no number of steps.
    """
    name, colon, steps = asked.partition(":")
    running = [cell.id for cell in cells if cell_status(run_directory(workdir, cell.id))[0] == "running"]
    require(bool(running), f"--profile={asked}: nothing is running")
    require(name in running, f"--profile={asked}: {name!r} is not running", nearest(name, running))
    require(not colon or (steps.isdecimal() and int(steps) > 0), f"--profile={asked}", "RUN:STEPS, as in RUN:5")
    directory = run_directory(workdir, name)
    request_profile(directory, int(steps) if colon else PROFILED_STEPS)
    return directory / "profile"
