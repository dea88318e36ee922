"""What is asked of SLURM: its commands, called with patience, and the few lines of their output that count."""

import contextlib
import pathlib
import re
import subprocess
import time
from collections.abc import Collection

from scaling.errors import InputError
from scaling.specs import require

GRACE_SECONDS = 300.0  # between being asked to stop and being killed: ends when the last job does
STOP = "stop"  # a file in the folder of a submission: nothing of it is to be started any more

Queue = dict[tuple[str, int], tuple[str, str]]  # (name of a job array, index) -> state, and what it waits for


def ask(*command: str, patience: int = 5) -> str:
    """What a command of SLURM prints. A busy controller does not answer at times: it is asked up to so often.

    Raises InputError, with what SLURM says, if it does not come through.
    """
    for attempt in range(patience):
        # A session of its own: Ctrl-C in a terminal is for the launcher to act on.
        done = subprocess.run(command, capture_output=True, text=True, start_new_session=True)
        if done.returncode == 0:
            return done.stdout.strip()
        if attempt < patience - 1:
            time.sleep(2.0**attempt)
    raise InputError(f"{command[0]}: {' '.join(done.stderr.split()) or f'it ended with {done.returncode}'}")


def array_size() -> int:
    """The most tasks that an array may have. Raises InputError if the controller does not answer."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config", patience=2), re.MULTILINE)
    require(found is not None, "scontrol show config tells no MaxArraySize")
    return int(found[1])


def queue_of(folders: Collection[pathlib.Path]) -> Queue | None:
    """What SLURM has of submissions; None if it does not answer, which says nothing about the jobs."""
    if not folders:
        return {}
    names = ",".join(folder.name for folder in folders)
    try:
        return parse_queue(ask("squeue", "-h", "-r", f"--name={names}", "-o", "%j|%K|%T|%r", patience=2))
    except InputError:
        return None


def jobs_of(folders: Collection[pathlib.Path]) -> list[str]:
    """The numbers of the jobs that SLURM still has of submissions. Raises InputError if it does not answer."""
    if not folders:
        return []
    names = ",".join(sorted(folder.name for folder in folders))
    return sorted(set(ask("squeue", "-h", f"--name={names}", "-o", "%F").split()))


def parse_queue(text: str) -> Queue:
    """Of the lines NAME|INDEX|STATE|REASON that squeue prints: (name, index) -> (state, reason)."""
    fields = [line.split("|", 3) for line in text.splitlines()]
    return {(name, int(index)): (state, reason) for name, index, state, reason in fields}


def cancel(folders: Collection[pathlib.Path]) -> None:
    """Ends all jobs of submissions: those that wait at once, those that run when they have saved, in bounded time."""
    for folder in folders:
        (folder / STOP).touch()
        _scancel("--state=PENDING", f"--name={folder.name}")
        _scancel("--batch", "--signal=TERM", f"--name={folder.name}")
    until = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < until and queue_of(folders) != {}:
        time.sleep(1.0)
    for folder in folders:
        _scancel(f"--name={folder.name}")


def _scancel(*options: str) -> None:
    with contextlib.suppress(InputError):  # of a job that has just ended
        ask("scancel", *options, patience=2)
