"""Doing what a sweep has not done yet, under one progress line."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from scaling.errors import StoppedError
from scaling.files import read_json, write_json
from scaling.progress import progress_bar
from scaling.runs import Placement, run_to_dict
from scaling.specs import to_dict
from scaling.sweeps.cells import Cell
from scaling.sweeps.launch import run_cells
from scaling.sweeps.workdir import run_directory
from scaling.training.planned import Planned


@dataclasses.dataclass(frozen=True)
class Way:
    """How cells are run, which changes no result: side by side, tracked, some steps of each profiled, each as planned.

    planned: by run; a cell that is not among them is placed as the sweep's config says.
    """

    workers: int = 1
    trackers: tuple[str, ...] = ()  # of scaling.training.trackers
    profile_steps: int = 0
    planned: Mapping[str, Planned] = dataclasses.field(default_factory=dict)


def execute(
    workdir: pathlib.Path, cells: Sequence[Cell], stores: Mapping[str, str], placement: Placement, way: Way
) -> list[tuple[Cell, str]]:
    """Trains the cells that have no result, largest first. Returns those that failed, with reasons.

    stores: paths by content id.

    A cell that failed for good before, of a loss that was not finite, is not tried again: it would fail again.
    Raises StoppedError, with everything saved, if it was asked to stop.
    """
    failed, todo = [], []
    cells = list({cell.id: cell for cell in cells}.values())  # a run that two variants share is trained once
    for cell in cells:
        directory = run_directory(workdir, cell.id)
        if (directory / "result.json").exists():
            continue
        failure = read_json(directory / "failure.json") if (directory / "failure.json").exists() else None
        if failure is not None and failure["final"]:
            failed.append((cell, failure["reason"]))
            continue
        todo.append(cell)
        write_json(directory / "run.json", run_to_dict(cell.run))
    # Largest first, so that no worker is left with a long one at the end; small models take longer for a FLOP.
    todo.sort(key=lambda cell: (-(cell.budget or cell.flops), cell.run.model.d_model))
    failed += _train(workdir, todo, len(cells) - len(todo), stores, placement, way) if todo else []
    return failed


def _train(
    workdir: pathlib.Path,
    todo: list[Cell],
    before: int,
    stores: Mapping[str, str],
    placement: Placement,
    way: Way,
) -> list[tuple[Cell, str]]:
    failed: list[tuple[Cell, str]] = []
    flops = [cell.flops for cell in todo]
    done_flops = [0.0] * len(todo)
    finished = before
    with progress_bar(sum(flops), "FLOP", _line(finished, before, todo, failed)) as bar:

        def on_event(index: int, event: dict[str, Any]) -> None:
            nonlocal finished
            kind = event["event"]
            share = event["done"] / event["steps"] if kind == "progress" else 1.0
            if kind in ("progress", "done", "failed"):
                bar.update(flops[index] * share - done_flops[index])
                done_flops[index] = flops[index] * share
            if kind == "done":
                finished += 1
            if kind == "failed":
                failed.append((todo[index], event["reason"]))
                bar.write(f"failed: {todo[index].id}: {event['reason']}")
            bar.set_description(_line(finished, before, todo, failed), refresh=False)

        items = [
            {
                "directory": str(run_directory(workdir, cell.id)),
                "stores": [stores[name] for name in cell.run.stores],
                "trackers": list(way.trackers),
                "profile_steps": way.profile_steps,
                **_place(cell, placement, way),
            }
            for cell in todo
        ]
        complete = run_cells(items, way.workers, workdir / "workers.log", workdir / "compilations", on_event)
    if not complete:
        raise StoppedError("every cell in progress is saved; the same command goes on from here")
    return failed


def _place(cell: Cell, placement: Placement, way: Way) -> dict[str, Any]:
    """Where a worker is to train a cell, and, of a planned one, the hardware that it is to find."""
    planned = way.planned.get(cell.id)
    if planned is None:
        return {"placement": to_dict(placement)}
    found = {"topology": planned.topology.text, "needed_gib": planned.needed_gib}
    return {"placement": to_dict(planned.placement), "planned": found}


def _line(finished: int, before: int, todo: list[Cell], failed: list[Any]) -> str:
    cells = f"{finished}/{before + len(todo)} cells"
    return f"{cells}, {len(failed)} failed" if failed else cells
