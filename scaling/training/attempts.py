"""An attempt at a run: the claim on it, a folder of its own, and how it ended.

    claim.json                 who is at work on the run: see scaling.training.claims
    attempts/3/attempt.json    of the third attempt: who, where, from which step, and how it ended
    attempts/3/metrics.jsonl   and timing.jsonl, which begin with the lines up to the step that it went on from
    result.json                recorded once; the metrics of the attempt that did so then move up beside it
    failure.json               why the last attempt failed; gone with success

Two attempts never write one file, so one that was taken for dead and wakes up again spoils nothing.
"""

import contextlib
import os
import pathlib
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from scaling.errors import BusyError, InputError, LostClaimError, RunFailedError, StoppedError
from scaling.files import make_directory, read_json, write_json
from scaling.runs import Run, run_to_dict
from scaling.training import claims, hosts, records
from scaling.training.failures import Failure, failure_from, failure_of


class Attempt:
    """What the processes of a run know of their attempt at it. Process 0 alone holds the claim, and writes."""

    def __init__(self, directory: pathlib.Path, number: int, held: claims.Held | None):
        self.directory, self.number, self._held = directory, number, held
        self.folder = records.attempt_folder(directory, number)
        self.step: int | None = None  # the last that was taken, for the record of a failure
        self._told: dict[str, Any] = {
            "attempt": number,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "time": time.time(),
            "outcome": None,
        }

    def check(self) -> None:
        """Raises LostClaimError, on every process, if another has taken the run over. Asked before each save."""
        if not hosts.told(lambda: self._held.is_mine()):
            raise claims.lost(self.directory)

    def is_taken_over(self) -> bool:
        """Whether process 0 knows that another has the run; the others leave it to that one to say."""
        try:
            return self._held is not None and not self._held.is_mine()
        except (OSError, ValueError):
            return False  # a disk that is full or away: nobody knows

    def count(self, more: Callable[[], claims.Spent]) -> None:
        """Adds what this attempt spends, joules say, to the sums that its heartbeat writes."""
        if self._held is not None:
            self._held.counted.append(more)

    def spent(self) -> claims.Spent:
        """Over all attempts up to now, on every process: wall_seconds, and what was counted."""
        return hosts.told(lambda: self._held.spent())

    def tell(self, **facts: Any) -> None:
        """Adds to attempt.json, on process 0."""
        self._told.update(facts)
        if self._held is not None:
            write_json(self.folder / "attempt.json", self._told)

    def leave_word(self, **facts: Any) -> None:
        """As `tell`, where an error is under way that one of a full disk must not replace."""
        try:
            self.tell(**facts)
        except (OSError, ValueError, InputError) as error:
            print(f"{self.folder}: attempt.json could not be written: {error}", file=sys.stderr)

    def record(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Records the result, unless another attempt was first, and returns what then stands in result.json."""

        def recorded() -> dict[str, Any]:
            path = self.directory / "result.json"
            if not claims.record_once(path, result):
                first = read_json(path)
                self.tell(outcome="duplicate", same={**first, "timing": None} == {**result, "timing": None})
            records.publish(self.directory)
            return read_json(path)

        return hosts.told(recorded)

    def fail(self, failure: Failure) -> None:
        """Leaves the reason of a failure: in attempt.json, and in failure.json while the run is ours.

        One that a process but process 0 has alone is left beside attempt.json, where process 0, which only sees its
        peer go, finds it.
        """
        if self._held is None:
            if failure.kind != "peer_lost":
                write_json(self.folder / f"failure-{jax.process_index()}.json", failure.to_json())
            return
        if failure.kind == "peer_lost":
            told = sorted(self.folder.glob("failure-*.json"))
            failure = failure_from(read_json(told[0]), str(told[0])) if told else failure
        facts = {"kind": failure.kind, "reason": failure.reason, "step": failure.step}
        if failure.kind == "disk_full":  # the save that did not fit makes room for the reason
            for leftover in self.directory.glob(f"checkpoints/*-{self.number}.*"):
                shutil.rmtree(leftover, ignore_errors=True)
        try:
            self.tell(outcome="failed", **facts)
            if self._held.is_mine():
                write_json(self.directory / "failure.json", failure.to_json())
        except (OSError, ValueError, InputError) as error:
            # Where nothing can be written, on a disk that is full say, the reason goes to standard error alone.
            print(f"{self.directory}: failure.json could not be written: {error}", file=sys.stderr)


@contextlib.contextmanager
def begun(run: Run, directory: pathlib.Path, stale_seconds: float) -> Iterator[Attempt]:
    """Holds the run of a directory for the processes that train it, and leaves word of how that ended.

    An attempt that tells nothing, as it finds the result there, leaves no folder behind.

    Raises BusyError while others hold it. What is raised inside becomes StoppedError, LostClaimError, BusyError,
    InputError or RunFailedError with its kind; what has no kind is a bug, and raised as it is.
    """
    with contextlib.ExitStack() as held_here:
        held: list[claims.Held] = []

        def begin() -> int:
            make_directory(directory)
            held.append(claims.take_patiently(directory, stale_seconds))
            held_here.enter_context(held[0].beating())
            recorded(run, directory)  # refuses another run, which may have begun here a moment ago
            write_json(directory / "run.json", run_to_dict(run))
            return held[0].attempt

        number = hosts.told(lambda: _classified(begin))
        attempt = Attempt(directory, number, held[0] if held else None)
        try:
            yield attempt
        except (StoppedError, LostClaimError) as error:
            attempt.leave_word(outcome="stopped" if isinstance(error, StoppedError) else "lost")
            raise
        except Exception as error:
            if attempt.is_taken_over():  # then nothing that goes wrong here is a failure of the run
                attempt.leave_word(outcome="lost")
                raise claims.lost(directory) from error
            failure = failure_of(error, attempt.step, attempt.number)
            attempt.fail(failure)
            if failure.kind == "bug" or isinstance(error, InputError | RunFailedError | BusyError):
                raise
            if failure.kind in ("device", "storage"):  # of which a line does not tell enough
                traceback.print_exc()
            raise RunFailedError(failure.reason, failure.kind, failure.step) from error


def _classified(begin: Callable[[], int]) -> int:
    """What `begin` returns; of a directory that cannot be written to, the reason in our own words."""
    try:
        return begin()
    except (OSError, ValueError) as error:
        failure = failure_of(error)
        if failure.kind == "bug":
            raise
        raise RunFailedError(failure.reason, failure.kind) from error


def recorded(run: Run, directory: pathlib.Path) -> dict[str, Any] | None:
    """The result of a run that has one. Raises InputError if the directory is that of another run."""
    run_path, result_path = directory / "run.json", directory / "result.json"
    if run_path.exists() and read_json(run_path) != run_to_dict(run):
        raise InputError("holds another run", where=str(directory), do="give another --workdir")
    if not result_path.exists():
        return None
    records.publish(directory)
    return read_json(result_path)
