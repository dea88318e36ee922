"""From the command to the finished report: `experiments.sweep` beside the same cells one after the other.

Ours is the command as a user starts it: a worker a core, each with the programs of the sizes that it has met. The
yardstick is a loop in a shell: `experiments.cell` for one cell after the other, each a process of its own with all
cores, that compiles for itself; at the end `experiments.sweep`, which then finds all cells of the grid done, trains the
one that its own law predicts, in a process with all cores too, and reports. Nothing is compiled before, on either side,
and the text is tokenised.

Both train the same grid to the same losses: `apart` says how far they are from each other.
"""

import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from scaling.files import read_json
from scaling.specs import require
from scaling.speed.rows import Row, row_of
from scaling.speed.start import as_a_user, first_step_seconds
from scaling.sweeps.tasks import ROOT, read_result
from scaling.sweeps.workdir import read_sweep, run_directory, save_sweep
from scaling.training.records import attempt_folder

CONFIG = "experiments/configs/laptop.py"
WORK = ("train", "evaluate", "compile", "save")  # what a cell's clock measures
ASKED_SHARE = 0.85
# Two threads add a matrix product up in another order than one does. A difference of 1e-7 grows over thousands of steps
# of training at a high rate, as any other does: to what another seed would make of the run, at worst.
MOST_APART = 0.02


@dataclasses.dataclass(frozen=True)
class Finished:
    """A sweep that is done. began: by time.time; seconds: from the first command to the end of the last."""

    workdir: pathlib.Path
    began: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """Where the seconds of all workers together went. start: until the first cell began; end: from the last result to
    the end of the command; of what is between, WORK as the cells' clocks have it, `rest` the cells' other time (claims,
    files, checks), and `idle` that of workers without a cell."""

    workers: int
    start: float
    work: dict[str, float]
    rest: float
    idle: float
    end: float

    @property
    def share_of_steps(self) -> float:
        """Of the time between the beginning of the first cell and the last result."""
        return self.work["train"] / (sum(self.work.values()) + self.rest + self.idle)


def measure(
    repeats: int, peer: bool, say: Callable[[str], None], overrides: Sequence[str] = (), workers: int | None = None
) -> list[Row]:
    """The time to the report beside the yardstick's, and the share of it that training steps take.

    overrides: flags such as --config.grid.sizes=4, to measure a part of the sweep. workers: of ours, by default one a
    core. peer: whether the yardstick is measured. A turn takes minutes, so there is one, whatever `repeats` says.
    """
    del repeats
    workers = workers or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        environment = as_a_user(root)
        say("sweep: bytecode and text")
        first_step_seconds(root / "first", root / "first", environment)
        _run([sys.executable, "-c", "import experiments.sweep, scaling.conclusions"], environment)
        asked = [f"--config={CONFIG}", *overrides]
        say("sweep: ours")
        ours = our_sweep(root / "ours", asked, workers, environment)
        parts = breakdown(ours, workers)
        say(words(parts, ours.seconds))
        theirs = None
        if peer:
            say("sweep: the yardstick")
            theirs = one_after_the_other(root / "theirs", ours.workdir, asked, environment)
            say(f"{theirs.seconds:.1f} s; losses are at most {apart(ours.workdir, theirs.workdir):.1e} apart")
    what = " ".join(["seconds from the command to the report,", *asked])
    peer_is = "experiments.cell for each cell, one after the other, all cores each, nothing kept compiled"
    seconds = ((ours.seconds, theirs and theirs.seconds),)
    share = ((parts.share_of_steps, ASKED_SHARE),)
    return [
        row_of("sweep to report", "s", seconds, what, peer_is if theirs else ""),
        row_of("sweep in steps", "share", share, "of the workers' time from first to last cell", "what is asked"),
    ]


def our_sweep(workdir: pathlib.Path, asked: Sequence[str], workers: int, environment: dict[str, str]) -> Finished:
    """The sweep as a user starts it."""
    began, started = time.time(), time.perf_counter()
    _run(_module("experiments.sweep", workdir, [*asked, f"--workers={workers}"]), environment)
    return Finished(workdir, began, time.perf_counter() - started)


def one_after_the_other(
    workdir: pathlib.Path, like: pathlib.Path, asked: Sequence[str], environment: dict[str, str]
) -> Finished:
    """The same cells, each in a process that has all cores and compiles for itself, and then the report.

    like: a sweep of the same grid, whose sweep.json says which its cells are. The cell that it has predicted is left
    out: from losses that are a rounding apart, this one may predict another, and would train both.
    """
    sweep = read_sweep(like)
    save_sweep(workdir, dataclasses.replace(sweep, cells=sweep.grid))
    began, started = time.time(), time.perf_counter()
    for number, cell in enumerate(sweep.grid):
        kept = f"--compilations={workdir / f'compiled{number}'}"
        _run(_module("experiments.cell", workdir, [f"--cell={cell.id}", kept]), environment)
    _run(_module("experiments.sweep", workdir, [*asked, "--workers=1"]), environment)
    return Finished(workdir, began, time.perf_counter() - started)


def breakdown(done: Finished, workers: int) -> Breakdown:
    """Of a sweep of so many workers, from its files. Raises InputError if a cell was tried twice: it has two clocks."""
    timings, begun, ended = [], [], []
    for cell in read_sweep(done.workdir).cells:
        directory = run_directory(done.workdir, cell.id)
        timings.append(read_result(directory)["timing"])
        require(timings[-1]["attempt"] == 1, "was started more than once", "measure again", str(directory))
        begun.append(read_json(attempt_folder(directory, 1) / "attempt.json")["time"])
        ended.append((directory / "result.json").stat().st_mtime)
    work = {part: sum(timing[f"{part}_seconds"] for timing in timings) for part in WORK}
    held = sum(timing["wall_seconds"] for timing in timings)
    first, last = min(begun), max(ended)
    return Breakdown(
        workers,
        start=(first - done.began) * workers,
        work=work,
        rest=held - sum(work.values()),
        idle=(last - first) * workers - held,
        end=(done.began + done.seconds - last) * workers,
    )


def words(parts: Breakdown, seconds: float) -> str:
    """The breakdown as a line a part, with its share of the workers' time."""
    whole = seconds * parts.workers
    rows = {
        "until the first cell: imports, plan, workers": parts.start,
        **{f"cells: {part}": value for part, value in parts.work.items()},
        "cells: claims, files, checks": parts.rest,
        "workers without a cell": parts.idle,
        "analysis and report": parts.end,
    }
    told = [f"  {value / parts.workers:8.2f} s {value / whole:6.1%}  {name}" for name, value in rows.items()]
    head = f"{seconds:.1f} s with {parts.workers} workers, of whose time from first to last cell "
    return "\n".join([f"{head}{parts.share_of_steps:.1%} is in training steps:", *told])


def apart(one: pathlib.Path, other: pathlib.Path) -> float:
    """How far the losses of two sweeps of one grid are apart at most, a share. Raises InputError beyond MOST_APART."""
    cells = read_sweep(one).grid
    losses = [[read_result(run_directory(sweep, cell.id))["loss"] for cell in cells] for sweep in (one, other)]
    most = max(abs(a / b - 1) for a, b in zip(*losses, strict=True))
    require(most <= MOST_APART, f"the losses are {most:.2%} apart", f"they may be {MOST_APART:.0%}")
    return most


def _module(name: str, workdir: pathlib.Path, arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", name, f"--workdir={workdir}", *arguments]


def _run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    told = done.stderr.strip().splitlines()[-1:] or ["nothing"]
    require(done.returncode == 0, f"{' '.join(command)} has ended with {done.returncode} and said: {told[0]}")
