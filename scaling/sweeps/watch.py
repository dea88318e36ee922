"""Looking on while a sweep runs: its table again and again, in place where the output is a terminal."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from scaling.sweeps.results import totals
from scaling.sweeps.status import expected_steps, notes, status_row, status_text, time_left
from scaling.sweeps.workdir import Sweep, read_sweep, run_directory

ANALYSIS_SECONDS = 300.0  # from a grid's last result to the run that tests its law: the analysis takes less


def watch(workdir: pathlib.Path, seconds: float, all_cells: bool) -> None:
    """Shows how far the sweep in `workdir` is, every so many seconds, until nothing is left to run.

    Cells that run and those that failed are listed, or all of them; the rest are counted. Raises InputError as
    `read_sweep`.
    """
    rows: dict[str, dict[str, Any]] = {}
    sweep, written = read_sweep(workdir), _written(workdir)
    with _display() as show:
        while True:
            if (now := _written(workdir)) != written:  # cells joined: the run that tests the law comes late
                sweep, written = read_sweep(workdir), now
            expected = expected_steps(workdir, sweep)
            for cell in sweep.cells:
                if cell.id not in rows or rows[cell.id]["status"] != "done":
                    rows[cell.id] = status_row(workdir, cell, expected.get(cell.id, 0))
            table = pd.DataFrame([rows[cell.id] for cell in sweep.cells])
            show(_text(table, all_cells))
            if is_over(workdir, sweep, table):
                return
            time.sleep(seconds)


def is_over(workdir: pathlib.Path, sweep: Sweep, table: pd.DataFrame) -> bool:
    """Whether no cell is left to run and none is to come: once its grid is analysed, a sweep may add one that tests its
    law. A sweep that ended in between adds none, so this is waited for only so long."""
    if table["status"].isin(["running", "missing"]).any():
        return False
    if not sweep.config.prediction or "prediction" in set(table["role"]) or (workdir / "report/report.json").exists():
        return True
    written = [run_directory(workdir, run) / "result.json" for run in table.loc[table["status"] == "done", "run"]]
    return time.time() - max((path.stat().st_mtime for path in written), default=0.0) > ANALYSIS_SECONDS


def _written(workdir: pathlib.Path) -> int:
    return (workdir / "sweep.json").stat().st_mtime_ns


def _text(table: pd.DataFrame, all_cells: bool) -> str:
    """What counts first: a terminal shows the beginning of what is too long for it."""
    done = (table["C"] * table["progress"]).sum() / table["C"].sum()
    head = f"{time.strftime('%H:%M:%S')}  {totals(table)}; {done:.0%} of the FLOPs; {time_left(table)}"
    head = "\n".join([head, *notes(table)])
    listed = table if all_cells else table[table["status"].isin(["running", "failed"])]
    return f"{head}\n{status_text(listed)}" if len(listed) else head


@contextlib.contextmanager
def _display() -> Iterator[Callable[[str], None]]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        yield lambda text: print(text, flush=True)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda text: live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
