"""What a benchmark leaves: a file of rows with the machine, the versions and the date, and the comparison of two.

A ratio belongs to its machine: with other cores, or with units for bf16 that another has not, the two sides of a ratio
move apart although no code has changed. So a record of another machine is refused, before anything is measured, and the
refusal says how to get one of this machine. Other versions of the libraries are told and compared all the same: to
notice what they change is what a comparison is for.
"""

import dataclasses
import datetime
import os
import pathlib
import platform
from collections.abc import Sequence
from importlib import metadata

from scaling.errors import InputError
from scaling.files import Path, read_json, write_json
from scaling.parallel.chips import GIB
from scaling.specs import from_dict, require, settle, shown
from scaling.speed.rows import Row, row_from_dict, row_to_dict

ALLOWED = 0.9  # of an earlier ratio; what is below fails
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers")


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where something was measured. cores: those that the process might use. device: jax's kind of device."""

    cpu: str
    cores: int
    memory_gib: float
    device: str
    devices: int

    def __post_init__(self) -> None:
        settle(self, "machine")

    @property
    def words(self) -> str:
        """All but the memory, of which containers of one machine get different shares."""
        return f"{self.cpu}, {self.cores} cores, {self.devices} x {self.device}"


@dataclasses.dataclass(frozen=True)
class Record:
    """What was measured on a day. left_out: what could not be, and why, by the name that its row would have had."""

    machine: Machine
    versions: dict[str, str]
    date: str
    rows: tuple[Row, ...]
    left_out: dict[str, str]

    def __post_init__(self) -> None:
        settle(self, "record")
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError:
            raise InputError(f"date={shown(self.date)} is none", do="YYYY-MM-DD") from None
        names = [row.name for row in self.rows]
        require(len(set(names)) == len(names), "has two rows of one name")
        readable = all(text.isprintable() for pair in self.versions.items() for text in pair)
        require(readable, "a name or a version of a package is not readable")


def this_machine(device: str, devices: int) -> Machine:
    """The machine that this process is on, with the devices that JAX sees."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(_cpu(), len(os.sched_getaffinity(0)), round(memory / GIB, 1), device, devices)


def _cpu() -> str:
    """As Linux names it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of Python and of the libraries that make the difference, those that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # it is not in the file either
    return found


def write_record(path: Path, record: Record) -> None:
    """Writes a record as JSON."""
    values = dataclasses.asdict(record)
    write_json(path, {**values, "rows": [row_to_dict(row) for row in record.rows]})


def read_record(path: Path) -> Record:
    """Reads a record that anyone may have written. Raises InputError, which names the file, for what is none."""
    values = read_json(path)
    where = str(path)
    require(isinstance(values, dict) and isinstance(values.get("rows"), list), "is no benchmark's file", where=where)
    rows = tuple(row_from_dict(row, f"{where}: row {k}") for k, row in enumerate(values["rows"]))
    return from_dict(Record, {**values, "rows": rows}, where)


def check_machine(record: Record, machine: Machine, where: str) -> None:
    """Raises InputError, with both machines, if a record is not of this one."""
    require(
        record.machine.words == machine.words,
        f"was measured on {record.machine.words}; this is {machine.words}: ratios of another machine do not compare",
        "measure what you compare with on this machine, with --out=FILE",
        where,
    )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """lines: what is told of the two records. fallen: of each row that has fallen too far, a line."""

    lines: tuple[str, ...]
    fallen: tuple[str, ...]


def compare(old: Record, new: Record) -> Comparison:
    """The ratios of the rows that both have. Raises InputError if there are none: that would find nothing wrong."""
    before, now = ({row.name: row for row in record.rows} for record in (old, new))
    lines = [
        f"{name} was {old.versions.get(name, 'not there')} and is {new.versions.get(name, 'not there')}"
        for name in sorted(old.versions.keys() | new.versions.keys())
        if old.versions.get(name) != new.versions.get(name)
    ]
    lines += [f"not measured now: {name}" for name in before if name not in now]
    lines += [f"not measured in {old.date}: {name}" for name in now if name not in before]
    both = [(before[name], row) for name, row in now.items() if name in before]
    lines += [f"no ratio on both sides: {row.name}" for was, row in both if was.ratio is None or row.ratio is None]
    pairs = [(was.ratio, row) for was, row in both if was.ratio is not None and row.ratio is not None]
    require(bool(pairs), "none of its rows with a ratio was measured now", "the same --of and --peer as then")
    fallen = []
    for was, row in pairs:
        line = f"{row.name}: {was:.3f}x on {old.date}, {row.ratio:.3f}x now ({row.ratio / was - 1:+.1%})"
        (fallen if row.ratio < ALLOWED * was else lines).append(line)
    return Comparison(tuple(lines), tuple(fallen))


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as lines of text, one each, with a head."""
    heads = ("row", "unit", "ours", "peer", "ratio", "of turns")
    said = [heads, *(_said(row) for row in rows)]
    widths = [max(len(line[k]) for line in said) for k in range(len(heads))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in said]


def _said(row: Row) -> tuple[str, ...]:
    spread = f"{row.spread[0]:.2f} to {row.spread[1]:.2f}" if row.spread else ""
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
    return row.name, row.unit, _figures(row.ours), "" if row.peer is None else _figures(row.peer), ratio, spread


def _figures(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.4g}"
