"""Cells as work to hand out: what an engine is given, how a cell is started, and what came of it, from its files alone.

An engine gets cells done somewhere: in worker processes here (scaling.sweeps.launch), as jobs of SLURM (on_slurm) or as
tasks of Ray (on_ray). It is a function (workdir, tasks, way, on_event) -> bool that tells of each task what happens to
it, and returns False only if it was stopped by SIGINT or SIGTERM before all were done or given up. Cells claim their
runs themselves (scaling.training.claims), so an engine may start one twice, or lose sight of one, and no harm is done.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

from scaling.errors import SOON, InputError, nearest
from scaling.files import read_json, write_json
from scaling.parallel.xla_flags import with_malloc
from scaling.runs import Placement, run_to_dict
from scaling.specs import require, to_dict
from scaling.sweeps.cells import Cell
from scaling.sweeps.forks import forks_of
from scaling.sweeps.workdir import Sweep, run_directory
from scaling.training.care import Care
from scaling.training.claims import Claim, read_claim, seems_alive
from scaling.training.failures import Failure, failure_from
from scaling.training.planned import Planned
from scaling.training.records import attempt_folder, records_of, saved_step

ROOT = pathlib.Path(__file__).resolve().parents[2]  # where `python -m experiments.cell` finds its module
LONGEST_PAUSE = 300.0
ELSEWHERE_PAUSE = 5.0  # the least where a scheduler stands between: a node that is lost is not noticed at once
_KIND_OF = {1: "bug", 2: "refused"}  # what a command that has left no word says by its exit code
TAIL = 8192  # bytes of a metrics.jsonl that hold its last line, several times over


@dataclasses.dataclass(frozen=True)
class Task:
    """A cell to be done. flops: of its own steps. processes: how many train it together. after: the run of its trunk,
    if that is to be done too; first: how many of its steps a trunk takes for it (scaling.sweeps.forks)."""

    run: str
    directory: pathlib.Path
    flops: float
    steps: int
    processes: int = 1
    after: str | None = None
    first: int = 0
    devices: int = 1  # on which it is trained

    def share(self, done: int) -> float:
        """How much of its own work is done after so many steps."""
        return max(0, done - self.first) / (self.steps - self.first)


@dataclasses.dataclass(frozen=True)
class Way:
    """How and where cells are run, which changes no result.

    workers: cells at a time; None leaves it to the engine. planned: by run, those of the plan at `plan`; a cell that is
    not among them is placed as the sweep's config says. retries: how often a cell is tried again that failed of what
    may be gone. devices_per_process: how many of a cell's devices each of its processes has; None: all. sbatch: options
    NAME=VALUE of SLURM. ray_resources: what a process of a cell takes of a Ray node.
    """

    workers: int | None = None
    trackers: tuple[str, ...] = ()  # of scaling.training.trackers
    profile_steps: int = 0
    planned: Mapping[str, Planned] = dataclasses.field(default_factory=dict)
    plan: str | None = None
    launcher: str = "local"
    care: Care = Care()  # noqa: RUF009 - a frozen value
    compilations: str | None = None  # where they are kept: as scaling.command.compilations has it
    retries: int = 3
    devices_per_process: int | None = None
    sbatch: tuple[str, ...] = ()
    ray_address: str = "auto"
    ray_resources: Mapping[str, float] = dataclasses.field(default_factory=dict)


# What happens to a task, told with its index: progress (done, steps), done, stopped (its state is saved), again (kind,
# reason, tries: it failed, and will be tried again) or failed (kind, reason, retry: it will not).
Event = dict[str, Any]
OnEvent = Callable[[int, Event], None]
Engine = Callable[[pathlib.Path, Sequence[Task], Way, OnEvent], bool]


def make_task(workdir: pathlib.Path, cell: Cell, placement: Placement, way: Way) -> Task:
    """The task of a cell. Raises InputError if its devices cannot be dealt out among processes of so many each."""
    placement = placement_of(cell, placement, way)
    each = way.devices_per_process or placement.devices
    require(
        placement.devices % each == 0,
        f"--devices_per_process={each} does not divide the {placement.devices} devices of {cell.id}",
    )
    directory = run_directory(workdir, cell.id)
    devices = placement.devices
    return Task(cell.id, directory, cell.flops, cell.run.steps, devices // each, devices=devices)


def placement_of(cell: Cell, placement: Placement, way: Way) -> Placement:
    """Where a cell goes: as it is planned, or else to the placement of its sweep."""
    return way.planned[cell.id].placement if cell.id in way.planned else placement


def waits(task: Task, left: Container[str]) -> bool:
    """Whether a fork is not to be started yet: its trunk, of the runs that are left, has not handed over to it."""
    return task.after in left and saved_step(task.directory) < task.first


def cell_of(sweep: Sweep, run: str) -> Cell:
    """The cell of a sweep that has a run. Raises InputError, with the nearest, if none has."""
    found = {cell.id: cell for cell in sweep.cells}
    require(run in found, f"{run!r} is no cell of this sweep", nearest(run, found))
    return found[run]


def cell_item(workdir: pathlib.Path, cell: Cell, sweep: Sweep, way: Way) -> dict[str, Any]:
    """All that a process needs to know to train a cell, as JSON: see `scaling.sweeps.one_cell.train_cell`.

    A fork that is placed otherwise than its trunk, which a plan of some cells may do, is none of its forks: their
    layouts, and so their bits, may differ.
    """
    planned, placement = way.planned.get(cell.id), placement_of(cell, sweep.config.placement, way)
    item = {
        "directory": str(run_directory(workdir, cell.id)),
        "run": run_to_dict(cell.run),
        "stores": [sweep.stores[name] for name in cell.run.stores],
        "placement": to_dict(placement),
        "trackers": list(way.trackers),
        "profile_steps": way.profile_steps,
        "care": way.care.text(),
    }
    forks = forks_of(sweep.config, sweep.cells, cell)
    if forks := [fork for fork in forks if placement_of(fork, sweep.config.placement, way) == placement]:
        item["forks"] = [
            {"run": run_to_dict(fork.run), "directory": str(run_directory(workdir, fork.id))} for fork in forks
        ]
    if planned is not None:
        item["planned"] = {"topology": planned.topology.text, "needed_gib": planned.needed_gib}
    return item


def cell_command(workdir: pathlib.Path, run: str, way: Way) -> list[str]:
    """The command that trains a cell, wherever the workdir is seen; of several processes, add how they find each other.

    It needs `cell_environment`, or this package installed. Started again it goes on; started twice, one of them trains.
    """
    flags = {
        "workdir": str(pathlib.Path(workdir).absolute()),
        "cell": run,
        "plan": way.plan and str(pathlib.Path(way.plan).absolute()),
        "trackers": ",".join(way.trackers),
        "profile_steps": way.profile_steps,
        "care": way.care.text(),
        "compilations": way.compilations and str(pathlib.Path(way.compilations).absolute()),
    }
    given = [f"--{name}={value}" for name, value in flags.items() if value]
    return [sys.executable, "-m", "experiments.cell", *given]


def cell_environment() -> dict[str, str]:
    """This process's environment, in which `cell_command` finds this package and memory in large pages."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return with_malloc({**os.environ, "PYTHONPATH": path})


def pause(tries: int, elsewhere: bool = False) -> float:
    """Seconds before a cell is tried again that has failed so often: 2, 4, 8, up to five minutes."""
    return max(min(LONGEST_PAUSE, 2.0 ** min(tries, 30)), ELSEWHERE_PAUSE if elsewhere else 0.0)


def outcome(directory: pathlib.Path, code: int) -> Event:
    """What came of a cell's command that ended with an exit code, negative for a signal: done, stopped or failed.

    stopped: asked to stop, or another process has the run. The caller decides whether to try again after a failure.
    """
    if read_result(directory) is not None:
        return {"event": "done"}
    claim = read_claim(directory)
    ended = _outcome_of(directory, claim)
    # Of a fork that found its trunk at it, the last attempt may be the trunk's, handed over since.
    orderly = ("stopped", "lost", "handed_over")
    if code == 75 and (ended in orderly or (ended is None and seems_alive(claim, float("inf")))):
        return {"event": "stopped"}
    failure = read_failure(directory)
    # Of several processes, the code may be that of one which was ended because another had failed, and left word.
    if failure is not None and (ended == "failed" or (failure.exit_code == code and code != 75)):
        return failed(failure)
    # While it held the run it would have left word, of a bug too: what ends a process then ends it from outside.
    cut_short = ended is None and claim is not None and not claim.released
    return failed(died(directory, exit_words(code), "killed" if cut_short else _KIND_OF.get(code, "killed")))


def failed(failure: Failure) -> Event:
    """The event of a failure."""
    return {"event": "failed", "kind": failure.kind, "reason": failure.reason, "retry": failure.retry}


def after_failure(event: Event, tries: int, way: Way) -> Event:
    """The event to tell of a failure after so many tries before it: again, if another may cure it, or the failure."""
    if event["retry"] != SOON or tries >= way.retries:
        return event
    return {"event": "again", "kind": event["kind"], "reason": event["reason"], "tries": tries + 1}


def read_result(directory: pathlib.Path) -> dict[str, Any] | None:
    """The result of a run, None if it has none yet. Raises InputError for a file that is none."""
    path = directory / "result.json"
    if not path.exists():
        return None
    values = read_json(path)
    known = isinstance(values, dict) and values.get("run") == directory.name and isinstance(values.get("loss"), float)
    require(known, f"is no result of {directory.name}", "remove the file: the cell is then trained again", str(path))
    return values


def read_failure(directory: pathlib.Path) -> Failure | None:
    """Why the last attempt at a run failed, if it did. Raises InputError for a file that is no failure."""
    path = directory / "failure.json"
    return failure_from(read_json(path), str(path)) if path.exists() else None


def died(directory: pathlib.Path, reason: str, kind: str = "killed") -> Failure:
    """The failure of a cell whose process has ended without a word (kill -9, say), left in failure.json.

    Not where another attempt is under way since, or has recorded the result: then nothing is written.
    """
    claim = read_claim(directory)
    failure = Failure(kind, reason, attempt=None if claim is None else claim.attempt)
    try:
        if not seems_alive(claim, Care().stale_seconds) and not (directory / "result.json").exists():
            write_json(directory / "failure.json", failure.to_json())
    except (OSError, InputError) as error:  # a disk that is full, say, must not end the launcher too
        print(f"{directory}: failure.json could not be written: {error}", file=sys.stderr)
    return failure


def exit_words(code: int) -> str:
    """How a process ended, of its exit code as subprocess has it."""
    by = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
    return f"its process ended with {by}" + (", as when memory runs out" if code in (-signal.SIGKILL, 137) else "")


def steps_done(directory: pathlib.Path) -> int:
    """How many steps of a run its metrics tell of."""
    try:
        with open(records_of(directory) / "metrics.jsonl", "rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - TAIL))
            lines = f.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    try:
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except (ValueError, TypeError, KeyError):
        raise InputError("the last line is no record of a step", str(directory / "metrics.jsonl")) from None


@contextlib.contextmanager
def on_stop(ask: Callable[[], None]) -> Iterator[None]:
    """While open, SIGINT and SIGTERM call `ask`, and nothing else."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: ask()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def die_with_parent(parent: int) -> None:
    """Makes this process be killed when the process that started it ends, however that ends. On Linux alone.

    parent: the number of that process: it may have ended before. To be exact, the system does this when the thread ends
    that has started this process (prctl(2), PR_SET_PDEATHSIG).
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _outcome_of(directory: pathlib.Path, claim: Claim | None) -> str | None:
    """How the attempt of a claim ended, None if it has left no word."""
    if claim is None:
        return None
    path = attempt_folder(directory, claim.attempt) / "attempt.json"
    values = read_json(path) if path.exists() else {}
    return values.get("outcome") if isinstance(values, dict) else None
