"""Bad inputs: files that anyone may have written, or that a disk has spoilt, given to what reads them here.

    python -m benchmarks.hostile [--examples=1000]

Each example is a valid file with a fault or several: a key dropped, renamed or twice there, a value of another type,
huge, NaN, nested ten thousand deep, a path out of the folder, half a character; a byte flipped, the end missing,
another encoding. A reader has to give a value, or to refuse in one error of this project, in words short enough to be
read, that name the file. Any other exception, a crash, and a number in a file by which memory or time is spent, are
faults of ours. tests/test_hostile_files.py gives the same readers faults that hypothesis chooses.

Measured with 500 examples of each of 23 files, one core: 11,500 tried, 1,833 read, 9,667 refused, 0 broken, in 28 s
and .65 GiB, most of which the libraries take.
"""

import argparse
import copy
import dataclasses
import json
import pathlib
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks import hostile_readers
from scaling.errors import ScalingError

LONGEST_MESSAGE = 2000  # characters: a screen of them
DEEP = 10_000

# Put in the place of any value. The text of a number can say more than a number holds, so these stand as they are.
AS_TEXT = ("NaN", "-Infinity", "1e400", "9" * 5000, "[" * DEEP + "]" * DEEP, '{"a": 1, "a": 2}', '"\\ud800"', "", "]")
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 3, 10**12, 2**63, -(2**64), 10**400, 0.5, -0.0, 1e308, -1e308, 5e-324),
    *("", "a", "3", "a\0b", "../../../etc/passwd", "/dev/null", "..", "\u202e\x1b[2J", "x" * 10**6, "None"),
    *([], {}, [[]], [None], [1, 2, 3], {"": None}, [{}] * 100, {"a": {"b": {"c": []}}}),
)


def spoilt(content: bytes, kind: str, rng: random.Random) -> bytes:
    """A file with faults. kind: json, jsonl, csv, or bytes, what it is to begin with."""
    if kind == "bytes" or rng.random() < 0.2:
        return _spoilt_bytes(content, rng)
    if kind == "json":
        return _spoilt_json(content, rng)
    lines = content.decode().splitlines(keepends=True)
    at = rng.randrange(len(lines))
    if kind == "jsonl":
        lines[at] = _spoilt_json(lines[at].encode(), rng).decode("utf-8", "surrogatepass") + "\n" * rng.randrange(2)
    else:
        lines[at] = _spoilt_row(lines[at], rng)
    return "".join(lines).encode("utf-8", "surrogatepass")


def _spoilt_json(content: bytes, rng: random.Random) -> bytes:
    """A JSON value changed in one place or up to three; what is no Python value is put in as text."""
    root = [json.loads(content)]
    marks: dict[str, str] = {}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(root))
        holder, key = rng.choice(places)
        if rng.random() < 0.2:
            text = rng.choice(AS_TEXT)
            marks[f"<mark {len(marks)}>"] = text
            value: Any = f"<mark {len(marks) - 1}>"
        else:
            value = copy.deepcopy(rng.choice(VALUES))
        what = (
            rng.choice(("replace", "replace", "replace", "drop", "rename", "copy")) if holder is not root else "replace"
        )
        if what == "drop":
            del holder[key]
        elif what == "rename" and isinstance(holder, dict):
            holder[rng.choice(("", "N", "x" * 5000, "schema", f"{key} "))] = holder.pop(key)
        elif what == "copy":  # what belongs elsewhere
            other, at = rng.choice(places)
            holder[key] = copy.deepcopy(other[at]) if at in _keys(other) else value
        else:
            holder[key] = value
    text = json.dumps(root[0])
    for mark, instead in marks.items():
        text = text.replace(json.dumps(mark), instead)
    return text.encode()


def _places(holder: Any) -> Any:
    """All (object or array, key or index) of a JSON value."""
    for key in _keys(holder):
        yield holder, key
        if isinstance(holder[key], dict | list):
            yield from _places(holder[key])


def _keys(holder: Any) -> list[Any]:
    return list(holder) if isinstance(holder, dict) else list(range(len(holder)))


def _spoilt_row(line: str, rng: random.Random) -> str:
    """A line of a table with one field changed, dropped or added, or a quotation that does not end."""
    fields = line.rstrip("\n").split(",")
    at = rng.randrange(len(fields))
    text = rng.choice([str(value) for value in VALUES] + [*AS_TEXT, '"', "1e-320", "inf", "-", "=1+1", ",,", "\r"])
    what = rng.choice(("replace", "replace", "drop", "add"))
    fields[at : at + (what != "add")] = [] if what == "drop" else [text]
    return ",".join(fields) + "\n"


def _spoilt_bytes(content: bytes, rng: random.Random) -> bytes:
    """A file cut, flipped, filled or encoded in another way."""
    at = rng.randrange(len(content) + 1)
    what = rng.randrange(9)
    if what == 0:
        return content[:at]
    if what == 1:
        return content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
    if what == 2:
        return content[:at] + b"\0" * rng.choice((1, 8, 4096)) + content[at:]
    if what == 3:
        return content[:at] + rng.choice((b"\xff", b"\xed\xa0\x80", b"\xc3(")) + content[at:]
    if what == 4:
        return b"\xef\xbb\xbf" + content
    if what == 5:
        return content.decode("latin-1").encode("utf-16")
    if what == 6:
        return content[at:] + content[:at]
    if what == 7:
        return content[:at] + bytes(rng.randrange(256) for _ in range(16)) + content[at + 16 :]
    return rng.choice((b"", b"{}", b"[]", b"null", b"0", b"\n", b"[" * DEEP, b"PK\3\4", b"\x80\4\x95", content * 2))


@dataclasses.dataclass(frozen=True)
class Tried:
    """What became of an example: "read" or "refused"; fault: what is wrong with how, empty if nothing is."""

    outcome: str
    fault: str
    seconds: float


def attempt(reader: "hostile_readers.Reader", content: bytes) -> Tried:
    """Gives one file to its reader."""
    reader.path.write_bytes(content)
    start = time.process_time()
    outcome, fault = "read", ""
    try:
        reader.read(reader.path)
    except ScalingError as error:
        message = str(error)
        outcome = "refused"
        if (
            not any(path.name in message for path in reader.path.parent.iterdir())
            and str(reader.path.parent) not in message
        ):
            fault = f"does not name the file: {message[:200]}"
        elif len(message) > LONGEST_MESSAGE:
            fault = f"{len(message)} characters: {message[:200]}"
    except BaseException as error:  # a panic of a library in Rust is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        outcome, fault = "broken", f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        reader.path.write_bytes(reader.valid)
    return Tried(outcome, fault, time.process_time() - start)


def tally(examples: int, seed: int = 0, report: Callable[[str], None] = print) -> dict[str, Counter]:
    """Gives so many spoilt files to each reader. Outcomes by file; each fault is reported."""
    found: dict[str, Counter] = {}
    with tempfile.TemporaryDirectory() as folder:
        for reader in hostile_readers.readers(pathlib.Path(folder)):
            rng = random.Random(f"{seed} {reader.name}")
            counted = found[reader.name] = Counter()
            for _ in range(examples):
                tried = attempt(reader, spoilt(reader.valid, reader.kind, rng))
                counted[tried.outcome if not tried.fault else "broken"] += 1
                if tried.fault:
                    report(f"{reader.name}: {tried.fault}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000, help="Of each file.")
    start = time.process_time()
    found = tally(parser.parse_args().examples)
    print(f"{'file':34}{'tried':>8}{'read':>8}{'refused':>9}{'broken':>8}")
    for name, counted in [*found.items(), ("all", sum(found.values(), Counter()))]:
        columns = (counted.total(), counted["read"], counted["refused"], counted["broken"])
        print(f"{name:34}{columns[0]:8,}{columns[1]:8,}{columns[2]:9,}{columns[3]:8,}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{time.process_time() - start:.0f} s of CPU, {peak:.2f} GiB at the peak")


if __name__ == "__main__":
    main()
