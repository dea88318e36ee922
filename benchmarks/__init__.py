"""Benchmarks and simulations: each is run by hand and its result stands in its docstring."""

import argparse
import json
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from scaling.files import write_json

VARIABLE = "SCALING_PUBLISHED_DATA"


def add_data(parser: argparse.ArgumentParser) -> None:
    """--data: the folder of published data sets; where it is not given, the environment variable says it."""
    given = os.environ.get(VARIABLE)
    said = f"folder of published data sets (default: {VARIABLE})"
    parser.add_argument("--data", type=pathlib.Path, default=given, required=given is None, help=said)


def asked_rows(about: str, rows: Collection[str]) -> tuple[list[str], pathlib.Path | None]:
    """The flags of a benchmark of rows that are kept: which of them, by default all, and the file of finished ones."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(rows), help="Which, comma-separated.")
    parser.add_argument("--out", type=pathlib.Path, help="File of finished rows, which are not run again.")
    arguments = parser.parse_args()
    names = arguments.rows.split(",")
    if unknown := [name for name in names if name not in rows]:
        parser.error(f"no row {unknown[0]!r}; rows are {', '.join(rows)}")
    return names, arguments.out


def kept_rows(
    path: pathlib.Path | None, names: Sequence[str], measure: Callable[[str], dict[str, Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each name with its row: that of the file where it is there, else measured, and then kept in the file."""
    rows = json.loads(path.read_text()) if path is not None and path.exists() else {}
    for name in names:
        if name not in rows:
            rows[name] = measure(name)
            if path is not None:
                write_json(path, rows)
        yield name, rows[name]
