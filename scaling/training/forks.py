"""Forks of a run: shorter runs that are the same as it, their trunk, up to where they begin to decay.

While the trunk trains, a fork is a plain value, its prefix: the lines of metrics.jsonl that it would have written by
now, logged and evaluated at its own steps, and what its losses say of divergence. Prefixes stand in each checkpoint of
the trunk, so a trunk that was killed goes on with them as it does with its own state. After the fork's last step before
its decay the trunk leaves in the fork's own directory what that run would have left there had it been stopped then: an
attempt with its metrics, and a checkpoint. So whoever starts the fork later resumes it, and knows no more of forking.

    RUN/attempts/1/attempt.json    outcome "handed_over", by which trunk and after how many steps
    RUN/attempts/1/metrics.jsonl   timing.jsonl has one line, of no time: the fork has spent none
    RUN/checkpoints/STEP-1         whose page says trunk_steps, the steps that were not the fork's own

The state after a step is a function of the run and the step (scaling.training.loop), and up to there the two runs have
the same functions: the same rates and batches, from the same start. So the fork ends with the bits of one from scratch.
Whatever goes wrong, a trunk that fails or a fork that another process is at, costs time alone: a fork to which nothing
was handed over trains from scratch.
"""

import contextlib
import dataclasses
import os
import pathlib
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scaling.errors import BusyError, InputError
from scaling.files import make_directory, write_json, write_text
from scaling.runs import Run, run_id, run_to_dict
from scaling.training import claims, hosts, records
from scaling.training.attempts import recorded
from scaling.training.checkpoints import Checkpoints
from scaling.training.divergence import History, after, divergence
from scaling.training.schedules import check_fork, fork_step
from scaling.training.step import State

Fork = tuple[Run, pathlib.Path]  # and its directory
OVERTAKEN = "it has come as far by itself"


@dataclasses.dataclass(frozen=True)
class Prefix:
    """What a fork would have on record if it had been trained alone up to here. until: the steps its trunk takes for
    it. eval_steps: after which its held-out loss is taken."""

    name: str
    run: Run
    directory: pathlib.Path
    until: int
    eval_steps: frozenset[int]
    history: History
    lines: tuple[str, ...] = ()

    def with_line(self, done: int, record: Mapping[str, Any]) -> "Prefix":
        line = records.line_of({"step": done, "tokens": done * self.run.batch_tokens, **record})
        return dataclasses.replace(self, lines=(*self.lines, line))


class Forks:
    """The forks that a trunk still carries, the same on all its processes. say: told of each that it lets go of."""

    def __init__(self, trunk: Run, forks: Sequence[Fork], stale_seconds: float, say: Callable[[str], None]):
        self._trunk, self._stale_seconds, self._say = run_id(trunk), stale_seconds, say
        for run, _ in forks:
            check_fork(trunk, run)
        wanted = hosts.told(lambda: [_is_wanted(run, directory) for run, directory in forks])
        self._asked = [_empty(*fork) for fork, is_wanted in zip(forks, wanted, strict=True) if is_wanted]
        self._carried: list[Prefix] = []

    def begin(self) -> None:
        """With a trunk that begins."""
        self._carried = list(self._asked)

    def resume(self, saved: Mapping[str, Any], start: int) -> None:
        """With a trunk that goes on after `start` steps, from the page of a checkpoint."""
        self._carried = []
        for prefix in self._asked:
            if prefix.name in saved:
                page = saved[prefix.name]
                history, lines = History.from_json(page["history"]), tuple(page["lines"])
                self._carried.append(dataclasses.replace(prefix, history=history, lines=lines))
            else:
                self._tell(prefix, f"the trunk goes on from step {start}, and what it was before is not on record")

    def to_json(self) -> dict[str, Any]:
        """What `resume` needs, by run."""
        return {p.name: {"history": p.history.to_json(), "lines": list(p.lines)} for p in self._carried}

    def stepped(self, done: int, record: Mapping[str, float]) -> None:
        """After each step of the trunk, with what a fork would log of it."""
        kept = []
        for prefix in self._carried:
            prefix = dataclasses.replace(prefix, history=after(prefix.history, record["loss"]))
            if reason := divergence(prefix.history):
                self._tell(prefix, f"alone it would have {reason}")
                continue
            kept.append(prefix.with_line(done, record) if records.is_logged(prefix.run, done) else prefix)
        self._carried = kept

    def evaluates(self, done: int) -> bool:
        """Whether the held-out loss after so many steps is one that a fork records."""
        return any(done in prefix.eval_steps for prefix in self._carried)

    def evaluated(self, done: int, losses: Mapping[str, Any]) -> None:
        """After each evaluation."""
        self._carried = [
            prefix.with_line(done, {"eval": losses}) if done in prefix.eval_steps else prefix
            for prefix in self._carried
        ]

    def due(self, done: int) -> bool:
        """Whether a fork is to be handed over after so many steps."""
        return any(prefix.until == done for prefix in self._carried)

    def hand_over(self, done: int, state: State) -> None:
        """Leaves each fork that is due with the state, to go on from there, and lets go of it."""
        for prefix in [prefix for prefix in self._carried if prefix.until == done]:
            if why := _hand_over(prefix, state, self._trunk, self._stale_seconds, self._say):
                self._tell(prefix, why)
            self._carried.remove(prefix)

    def _tell(self, prefix: Prefix, why: str) -> None:
        if hosts.writes():
            self._say(f"fork {prefix.name} is not handed over, and trains from its own start: {why}")


def _empty(run: Run, directory: pathlib.Path) -> Prefix:
    """The prefix of a fork before the first step."""
    steps = frozenset(records.evaluation_steps(run))
    return Prefix(run_id(run), run, directory, fork_step(run), steps, History(run.steps))


def _is_wanted(run: Run, directory: pathlib.Path) -> bool:
    """Whether a fork has not come as far by itself. Of a directory that is not its own, the fork's own start tells."""
    with contextlib.suppress(InputError):
        until = fork_step(run)
        return until > 0 and recorded(run, directory) is None and records.saved_step(directory) < until
    return False


def _hand_over(
    prefix: Prefix, state: State, trunk: str, stale_seconds: float, say: Callable[[str], None]
) -> str | None:
    """Leaves an attempt and a checkpoint in the fork's directory. Returns why not, if another has come before.

    A disk that does not take them raises, as for a checkpoint of the trunk itself.
    """
    directory, step = prefix.directory, prefix.until
    with contextlib.ExitStack() as held_here:
        told: dict[str, Any] = {}

        def begin() -> int | str:
            """The number of the attempt, its metrics written; or why it is not to be."""
            if not _is_wanted(prefix.run, directory):
                return OVERTAKEN
            make_directory(directory)
            try:
                held = claims.take_patiently(directory, stale_seconds)
            except (BusyError, InputError) as error:
                return str(error)
            held.counted.append(lambda: {"wall_seconds": 0.0})  # the time is the trunk's
            held_here.enter_context(held.beating())
            if not _is_wanted(prefix.run, directory):  # by the one that was at it until now
                return OVERTAKEN
            write_json(directory / "run.json", run_to_dict(prefix.run))
            told.update(attempt=held.attempt, host=socket.gethostname(), pid=os.getpid(), time=time.time())
            told.update(outcome=None, trunk=trunk, step=step)
            folder = records.attempt_folder(directory, held.attempt)
            write_json(folder / "attempt.json", told)
            write_text(folder / "metrics.jsonl", "".join(prefix.lines))
            records.sync(folder / "metrics.jsonl")
            nothing = {"step": step, "seconds": {}, "tokens_per_second": None, "peak_memory_bytes": None}
            write_text(folder / "timing.jsonl", records.line_of(nothing))
            return held.attempt

        number = hosts.told(begin)
        if isinstance(number, str):
            return number
        progress = {
            "seconds": {},
            "history": prefix.history.to_json(),
            "metrics": records.checksum("".join(prefix.lines)),
            "trunk_steps": step,
        }
        with Checkpoints(directory / "checkpoints", prefix.name, number, say=say) as checkpoints:
            checkpoints.save(step, state, progress)
            checkpoints.wait()
        folder = records.attempt_folder(directory, number)
        hosts.told(lambda: write_json(folder / "attempt.json", {**told, "outcome": "handed_over"}))
    if hosts.writes():
        say(f"fork {prefix.name} is handed over after step {step} of {prefix.run.steps}")
    return None
