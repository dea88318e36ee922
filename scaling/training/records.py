"""The files a run writes while it trains: metrics.jsonl, which is compared, and timing.jsonl, which is not."""

import json
import math
import os
import pathlib
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import google_crc32c
import numpy as np

from scaling.errors import InputError
from scaling.files import parse_json, read_bytes, read_json, understood, write_json
from scaling.runs import Run
from scaling.specs import require, shown

LOGGED_LINES = 100  # a run, about


def is_logged(run: Run, done: int) -> bool:
    """Whether the step after which so many are done has a line in metrics.jsonl."""
    return done % max(1, math.ceil(run.steps / LOGGED_LINES)) == 0 or done == run.steps


def evaluation_steps(run: Run) -> list[int]:
    """After how many steps the held-out loss is taken: evenly spaced in log from a tenth of the run to its end."""
    points = np.geomspace(max(1.0, run.steps / 10), run.steps, run.eval_points) if run.eval_points > 1 else [run.steps]
    return sorted({round(point) for point in points} | {run.steps})


def attempt_folder(directory: pathlib.Path, number: int) -> pathlib.Path:
    """Where an attempt at the run of a directory writes: see scaling.training.attempts."""
    return directory / "attempts" / str(number)


def records_of(directory: pathlib.Path) -> pathlib.Path:
    """The folder that has the metrics of a run: its own once they were published, else that of the attempt that has
    recorded the result, else that of the newest."""
    if (directory / "metrics.jsonl").exists():
        return directory
    if (directory / "result.json").exists():
        return _winner(directory)
    folders = [attempt_folder(directory, number) for number in attempts_at(directory)]
    begun = [folder for folder in folders if (folder / "metrics.jsonl").exists()]
    return begun[-1] if begun else directory


def attempts_at(directory: pathlib.Path) -> list[int]:
    """The numbers of the attempts at a run that have a folder, in their order."""
    names = [path.name for path in directory.glob("attempts/*")]
    return sorted(int(name) for name in names if name.isdecimal())


def saved_step(directory: pathlib.Path) -> int:
    """How many steps the furthest checkpoint of a run has, by its name: as a hint, nothing of it is read. 0: none."""
    names = (re.fullmatch(r"(\d+)-\d+", path.name) for path in directory.glob("checkpoints/*"))
    return max((int(name[1]) for name in names if name), default=0)


def publish(directory: pathlib.Path) -> None:
    """Makes a run that has a result look like it: the metrics of the attempt that recorded it are moved up beside it,
    the attempt says that it did, and no failure of an earlier one is left.

    Done again it does nothing; so where a kill cuts it short, whoever comes next does the rest. metrics.jsonl moves
    last: where it is, all was done.
    """
    winner = _winner(directory)
    told = read_json(winner / "attempt.json")
    with understood(winner / "attempt.json"):
        if told["outcome"] != "recorded":
            write_json(winner / "attempt.json", {**told, "outcome": "recorded"})
    (directory / "failure.json").unlink(missing_ok=True)
    for name in ("timing.jsonl", "metrics.jsonl"):
        with suppress(FileNotFoundError):
            os.replace(winner / name, directory / name)


def _winner(directory: pathlib.Path) -> pathlib.Path:
    result = read_json(directory / "result.json")
    try:
        return attempt_folder(directory, int(result["timing"]["attempt"]))
    except (KeyError, TypeError, ValueError):
        raise InputError("names no attempt: it is not of this version", str(directory / "result.json")) from None


def up_to(path: pathlib.Path, steps: int, evaluations_from: float = math.inf) -> str:
    """The lines of a .jsonl file that stand: up to `steps`, without evaluations from a step on, and without a last line
    that a kill broke."""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            record = _record(line, path)
        except InputError:
            break  # only the last line can be half-written
        past = record["step"] > steps or ("eval" in record and record["step"] >= evaluations_from)
        if not past and line.endswith(b"\n"):
            kept.append(line.decode())
    return "".join(kept)


def checksum(text: str) -> int:
    """Of the lines that belong to a checkpoint: CRC-32C, as stored in it."""
    return google_crc32c.value(text.encode())


def sync(path: pathlib.Path) -> None:
    """Makes what was appended to a file outlast the machine: a checkpoint must not be newer than its metrics."""
    if path.exists():
        with open(path, "rb") as f:
            os.fsync(f.fileno())


def append(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Adds a line to a .jsonl file."""
    with open(path, "a", encoding="utf-8") as f:
        f.write(line_of(record))


def line_of(record: dict[str, Any]) -> str:
    """A record as it stands in a .jsonl file."""
    return json.dumps(record, allow_nan=False) + "\n"


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """All whole lines of a .jsonl file, [] if there is none. A last line without its end is still being written."""
    if not path.exists():
        return []
    content = read_bytes(path)
    return [_record(line, path) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def _record(line: bytes, path: pathlib.Path) -> dict[str, Any]:
    """A line of a .jsonl file: an object with its step. Raises InputError for anything else."""
    record = parse_json(line, f"{path}: a line")
    known = isinstance(record, dict) and type(record.get("step")) is int
    require(known, f"a line is no record of a step: {shown(record)}", where=str(path))
    return record


class Clock:
    """Wall seconds by what they were spent on, adding up over restarts."""

    def __init__(self, seconds: dict[str, float]):
        self.seconds = defaultdict(float, seconds)
        self._since: dict[str, float] = {}

    @contextmanager
    def measure(self, what: str) -> Iterator[None]:
        self._since[what] = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - self._since.pop(what)

    def so_far(self) -> dict[str, float]:
        """The seconds up to now, of what is being measured too."""
        now = time.perf_counter()
        running = {what: self.seconds[what] + now - since for what, since in self._since.items()}
        return {**self.seconds, **running}
