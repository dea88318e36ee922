"""Ends a process that hangs, and says where: in a collective whose peer is gone, in a compiler, on a dead file system.

A hang raises nothing, so it takes a second pair of eyes. A thread counts the seconds for which the phase under way
(compile, step or save, each with its limit; outside of them that of a step) gave no sign of life. Past the limit it
dumps the stack of every thread, calls for a note of the failure, and ends the process with EXIT_CODE: its peers then
end by the connections that it closes, and launchers start it again.

The thread counts its own ticks, of a second at most two seconds each, and not the clock on the wall: a process that
was paused (SIGSTOP, a suspended SLURM job) or a laptop that slept has not hung. It cannot run while some C code keeps
Python's lock. For that there is a second line without Python, faulthandler's timer, which the thread puts off as long
as it runs: GRACE_SECONDS after the limit it dumps all stacks to standard error and ends the process with 1, the one
code that it knows, and with no note. It does go by the clock, so a process that is paused for longer than that, half an
hour with the default limits, may be ended as it wakes: it has long lost its claim then (scaling.training.claims).
"""

import contextlib
import dataclasses
import faulthandler
import os
import pathlib
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Literal

from scaling.training.care import Care

EXIT_CODE = 124  # as of timeout(1)
TICK_SECONDS = 1.0
GRACE_SECONDS = 30.0
NOTE_SECONDS = 10.0  # for stacks and note: the file system may be what hangs
STANDARD_ERROR = 2  # the descriptor, for which no Python is needed

PhaseName = Literal["compile", "step", "save"]


@dataclasses.dataclass
class _Phase:
    """A part of the work. The worker adds signs of life; the thread alone keeps the seconds since the last one seen."""

    name: str
    limit: float
    signs: int = 0
    seen: int = 0
    seconds: float = 0.0


class Watchdog:
    """Watches the thread that opens it, while it is open. One at a time in a process.

    expired: told the reason when a phase is over its limit, on a thread of its own, with NOTE_SECONDS to write it down.
    It must not wait for other processes. stacks: a file that the stacks are added to, besides standard error; it may be
    set later.
    """

    def __init__(self, care: Care, expired: Callable[[str], None], stacks: pathlib.Path | None = None):
        self._limits = {"compile": care.compile_seconds, "step": care.step_seconds, "save": care.save_seconds}
        self._expired, self.stacks = expired, stacks
        self._tick = min(TICK_SECONDS, min(self._limits.values()) / 4)
        self._phases = (_Phase("other work", care.step_seconds),)  # the innermost last
        self._step: int | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._turn_to(self._phases)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @contextlib.contextmanager
    def phase(self, name: PhaseName, at_least: float = 0.0) -> Iterator[None]:
        """Limits what is done inside. Its limit alone counts until its end; the clock outside stands still.

        at_least: seconds that it may take in any case, where its work says how long that is.
        """
        self._turn_to((*self._phases, _Phase(name, max(self._limits[name], at_least))))
        try:
            yield
        finally:
            self._turn_to(self._phases[:-1])

    def alive(self, step: int | None = None) -> None:
        """A sign of life: the clock of the phase starts again. step: the last that was taken, for the reason."""
        if step is not None:
            self._step = step
        self._phases[-1].signs += 1

    def _turn_to(self, phases: tuple[_Phase, ...]) -> None:
        """At once, and not at the next tick: what comes now may keep Python's lock."""
        self._phases = phases
        _second_line(phases[-1])

    def _watch(self) -> None:
        last = time.monotonic()
        try:
            while not self._over.wait(self._tick):
                now = time.monotonic()
                phase = self._phases[-1]
                _count(phase, min(now - last, 2 * self._tick))
                if phase.seconds > phase.limit:
                    self._end(phase)
                _second_line(self._phases[-1])  # asked again: it may have changed
                last = now
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _end(self, phase: _Phase) -> None:
        step = "" if self._step is None else f" after step {self._step}"
        reason = f"{phase.name}{step}: no sign of life for {phase.seconds:.0f} s, the limit is {phase.limit:g} s"
        last_resort = threading.Timer(NOTE_SECONDS, os._exit, [EXIT_CODE])
        last_resort.daemon = True
        last_resort.start()
        for tell in (
            lambda: _dump(reason, STANDARD_ERROR),
            lambda: self.stacks is None or _dump(reason, self.stacks),
            lambda: self._expired(reason),
        ):
            try:
                tell()
            except Exception:
                traceback.print_exc()  # the next may still succeed
        os._exit(EXIT_CODE)


def _count(phase: _Phase, seconds: float) -> None:
    if phase.seen != phase.signs:
        phase.seen, phase.seconds = phase.signs, 0.0
    else:
        phase.seconds += seconds


def _second_line(phase: _Phase) -> None:
    """Sets the timer that needs no Python to the end of a phase and GRACE_SECONDS."""
    left = max(phase.limit - phase.seconds, 0.0)
    faulthandler.dump_traceback_later(left + GRACE_SECONDS, exit=True, file=STANDARD_ERROR)


def _dump(reason: str, to: pathlib.Path | int) -> None:
    with open(to, "a", encoding="utf-8", closefd=to != STANDARD_ERROR) as f:
        f.write(f"watchdog: {reason}. All threads:\n")
        f.flush()
        faulthandler.dump_traceback(f, all_threads=True)
        f.write("\n")
