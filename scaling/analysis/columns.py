"""Columns of anyone's CSV files: read as text, given this project's names, and turned into numbers row by row."""

import io
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from scaling.errors import InputError, nearest
from scaling.files import Path

SHOWN = 40  # characters of a value that is refused


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV file as text columns. Raises InputError where it cannot be read, is no CSV, or has no rows."""
    try:
        # Text first: numbers are converted below, where a bad one can be named by its row.
        data = pathlib.Path(path).read_bytes()
        frame = pd.read_csv(io.BytesIO(data), dtype=str, skipinitialspace=True)
        header = pd.read_csv(io.BytesIO(data), dtype=str, skipinitialspace=True, header=None, nrows=1).iloc[0]
    except OSError as error:
        raise InputError(f"cannot read it: {error.strerror}", where=str(path)) from None
    except ValueError as error:  # what pandas raises for what is no CSV, and for what is not UTF-8
        raise InputError(f"not a CSV table: {str(error).strip()}", where=str(path)) from None
    twice = header[header.notna() & header.duplicated()]
    if len(twice):  # pandas would call the second one NAME.1, and use the first
        raise InputError(f"two columns are named {twice.iloc[0]!r}", where=str(path), do="rename or remove one")
    if frame.empty:
        raise InputError("the table has no rows", where=str(path))
    return frame


def parse_columns(pairs: Sequence[str], flag: str) -> dict[str, str]:
    """["N=params", "loss=val/loss"] -> {our name: their name}. Raises InputError for what is not such a pair."""
    columns = {}
    for pair in pairs:
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if not (ours and equals and theirs):
            raise InputError(f"--{flag}: {pair!r} is no column map", do="write NAME=THEIRS, say N=params,loss=val/loss")
        if ours in columns:
            raise InputError(f"--{flag}: {ours} is given twice")
        columns[ours] = theirs
    return columns


def map_columns(frame: pd.DataFrame, columns: Mapping[str, str], where: str) -> pd.DataFrame:
    """The frame with each of our names given the values of theirs; their columns stay too."""
    if not frame.columns.is_unique:  # a name would stand for two columns
        twice = frame.columns[frame.columns.duplicated()][0]
        raise InputError(f"two columns are named {twice!r}", where, do="rename or remove one")
    for theirs in columns.values():
        if theirs not in frame.columns:
            raise InputError(f"no column {theirs}", where, nearest(theirs, map(str, frame.columns)))
    return frame.assign(**{ours: frame[theirs] for ours, theirs in columns.items()})


def text(frame: pd.DataFrame, name: str) -> pd.Series:
    """A column as text, empty where it is missing."""
    if name not in frame.columns:
        return pd.Series("", index=frame.index)
    return frame[name].astype(object).where(frame[name].notna(), "").astype(str).str.strip()


def numbers(frame: pd.DataFrame, name: str) -> np.ndarray:
    """A column as float64, NaN where there is no number: integers would overflow in 6ND above 9.2e18."""
    return pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64, copy=True)


def positive(frame: pd.DataFrame, name: str, where: str) -> np.ndarray:
    """A column as float64. Refuses what is not a positive number, by its row (the column `row`)."""
    values = numbers(frame, name)
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if bad.size:
        row, given = frame["row"].iloc[bad[0]], text(frame, name).iloc[bad[0]]
        fault = "positive" if np.isfinite(values[bad[0]]) else "a finite number"
        what = (
            f"{name} is missing in row {row}"
            if given in ("", "nan")
            else f"{name}={given:.{SHOWN}} in row {row} is not {fault}"
        )
        do = (
            "give a loss, or a column status that says why there is none"
            if name == "loss"
            else "correct or remove the row"
        )
        raise InputError(f"{what} (counting from 0)", where, do)
    return values


def flag(frame: pd.DataFrame, name: str, where: str) -> np.ndarray:
    """A column of true and false; empty is false."""
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "": False}
    given = text(frame, name).str.lower()
    unknown = given[~given.isin(list(known))]
    if len(unknown):
        raise InputError(
            f"{name}={unknown.iloc[0]:.{SHOWN}} in row {frame['row'][unknown.index[0]]} (counting from 0)",
            where,
            "use true or false",
        )
    return given.map(known).to_numpy(bool)
