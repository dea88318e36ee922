"""The parts of a benchmark, each measured in a process of its own: none meets the threads, devices or compiled programs
of another, and a parent without JAX leaves accelerators to the processes that a part starts."""

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from scaling.errors import InputError
from scaling.runs import Placement, Run
from scaling.speed.records import Machine, this_machine
from scaling.speed.rows import Row

PARTS = ("step", "start", "data", "sweep")

T = TypeVar("T")


def machine() -> Machine:
    """This machine, with the devices that JAX sees."""
    return _alone("the devices of this machine", _machine)


def measure_part(part: str, repeats: int, peer: bool) -> list[Row]:
    """The rows of one of PARTS. peer: whether PyTorch, or the sweep's loop, is measured too."""
    return _alone(part, _part, part, repeats, peer)


def measure_model(name: str, run: Run, placement: Placement | None, repeats: int) -> list[Row]:
    """The rows of a run's model as scaling.speed.throughput makes them. Raises InputError where it does not fit."""
    return _alone(name, _model, name, run, placement, repeats)


def _alone(what: str, function: Callable[..., T], *arguments: object) -> T:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            do = "the system kills processes that use up its memory: its log may say so"
            raise InputError(f"{what}: the process that measured it has ended without a word", do=do) from None


def _machine() -> Machine:
    import jax

    return this_machine(jax.local_devices()[0].device_kind, jax.local_device_count())


def _part(part: str, repeats: int, peer: bool) -> list[Row]:
    from scaling.speed import data, start, step, sweep

    modules = {"step": step, "start": start, "data": data, "sweep": sweep}
    return modules[part].measure(repeats, peer, _say)


def _model(name: str, run: Run, placement: Placement | None, repeats: int) -> list[Row]:
    from scaling.speed.throughput import measure_run

    _say(f"train {name}")
    return measure_run(name, run, placement, repeats)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
