"""Doing what a sweep has not done yet, by the engine that was asked for, under one progress line."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from scaling.errors import NEVER, InputError, StoppedError
from scaling.progress import progress_bar
from scaling.sweeps.cells import Cell
from scaling.sweeps.forks import groups, trunk_steps, trunks
from scaling.sweeps.launch import run_local
from scaling.sweeps.tasks import Engine, Event, Task, Way, make_task, read_failure, read_result
from scaling.sweeps.workdir import Sweep, run_directory
from scaling.training.records import saved_step

LAUNCHERS = ("local", "slurm", "ray")


def engine(launcher: str) -> Engine:
    """The engine of a launcher. Only its own module is imported: the others need what may not be installed."""
    if launcher == "slurm":
        from scaling.sweeps.on_slurm import run_slurm

        return run_slurm
    if launcher == "ray":
        from scaling.sweeps.on_ray import run_ray

        return run_ray
    return run_local


def check_engine(way: Way) -> None:
    """Raises InputError if the engine of a way cannot work here: what it needs is not installed, or does not answer."""
    if way.launcher == "slurm":
        from scaling.sweeps import on_slurm

        on_slurm.check()
    if way.launcher == "ray":
        from scaling.sweeps import on_ray

        on_ray.check(way.ray_address)


def execute(workdir: pathlib.Path, sweep: Sweep, cells: Sequence[Cell], way: Way) -> list[tuple[Cell, str]]:
    """Trains the cells that have no result, largest first. Returns those that failed, with reasons.

    cells: of the sweep that stands in the workdir's sweep.json. Other launchers may be at work on them, and what they
    do counts. A cell that failed before of itself, of a loss that was not finite say, is not tried again: it would fail
    again. Others are: this start is another chance. Raises StoppedError, with everything saved, if it was asked to
    stop.
    """
    failed, todo = [], []
    cells = list({cell.id: cell for cell in cells}.values())  # a run that two variants share is trained once
    for cell in cells:
        directory = run_directory(workdir, cell.id)
        try:
            done, failure = read_result(directory) is not None, read_failure(directory)
        except InputError as error:  # a file that a person has to look at; the others go on
            failed.append((cell, str(error)))
            continue
        if done:
            continue
        if failure is not None and failure.retry == NEVER:
            failed.append((cell, failure.reason))
        else:
            todo.append(cell)
    tasks = {cell.id: make_task(workdir, cell, sweep.config.placement, way) for cell in todo}
    tasks |= _forks(sweep, tasks)
    # Largest first, so that no worker is left with a long one at the end; small models take longer for a FLOP.
    todo.sort(key=lambda c: (-(c.budget or c.flops) * tasks[c.id].flops / c.flops, c.run.model.d_model))
    ordered = [tasks[cell.id] for cell in todo]
    failed += _train(workdir, todo, ordered, len(cells) - len(todo), way) if todo else []
    return failed


def _forks(sweep: Sweep, tasks: Mapping[str, Task]) -> dict[str, Task]:
    """Those of the tasks whose trunks take steps for them: that were handed over, or will be by a trunk among them."""
    found = groups(sweep.config, sweep.cells)
    trunk_of, steps = trunks(found), trunk_steps(found)
    forks = {}
    for name, task in tasks.items():
        first, trunk = steps.get(name, 0), trunk_of.get(name)
        if first and (trunk in tasks or saved_step(task.directory) >= first):
            flops = task.flops * (1 - first / task.steps)
            forks[name] = dataclasses.replace(task, after=trunk if trunk in tasks else None, first=first, flops=flops)
    return forks


def _train(workdir: pathlib.Path, todo: list[Cell], tasks: list[Task], before: int, way: Way) -> list[tuple[Cell, str]]:
    failed: list[tuple[Cell, str]] = []
    done_flops = [0.0] * len(tasks)
    finished = before
    with progress_bar(sum(task.flops for task in tasks), "FLOP", _line(finished, before, todo, failed)) as bar:

        def on_event(index: int, event: Event) -> None:
            nonlocal finished
            kind, flops = event["event"], tasks[index].flops
            share = tasks[index].share(event["done"]) if kind == "progress" else 1.0
            if kind in ("progress", "done", "failed"):
                bar.update(flops * share - done_flops[index])
                done_flops[index] = flops * share
            if kind == "done":
                finished += 1
            if kind == "again":
                bar.write(f"{todo[index].id}: {event['reason']}; it is tried again, {event['tries']} of {way.retries}")
            if kind == "failed":
                failed.append((todo[index], event["reason"]))
                bar.write(f"failed: {todo[index].id}: {event['reason']}")
            bar.set_description(_line(finished, before, todo, failed), refresh=False)

        complete = engine(way.launcher)(workdir, tasks, way, on_event)
    if not complete:
        raise StoppedError("every cell in progress is saved; the same command goes on from here")
    return failed


def _line(finished: int, before: int, todo: list[Cell], failed: list[Any]) -> str:
    cells = f"{finished}/{before + len(todo)} cells"
    return f"{cells}, {len(failed)} failed" if failed else cells
