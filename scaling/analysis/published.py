"""Ours beside the published numbers of eleven studies: `golden` has theirs, `studies` does them again."""

import dataclasses
import pathlib

import pandas as pd

from scaling.analysis import columns, golden
from scaling.analysis.golden import Quantity, Study, Verdict
from scaling.analysis.studies import OURS
from scaling.errors import InputError

NUMBERS = ("N", "D", "C", "loss", "N_opt", "D_opt")


@dataclasses.dataclass(frozen=True)
class Row:
    """One published number, ours, and how the two compare."""

    study: str
    quantity: Quantity
    ours: float
    verdict: Verdict


def absent(study: Study, folder: pathlib.Path) -> list[str]:
    """The files of a study that the folder does not hold."""
    return [f"{name}.csv" for name in study.files if not (folder / f"{name}.csv").is_file()]


def check(study: Study, folder: pathlib.Path) -> list[Row]:
    """All quantities of one study. folder: holds NAME.csv of each name in study.files.

    Raises InputError where a file is missing or is not that table, by row and column where a number is not one.
    """
    missing = absent(study, folder)
    if missing:
        raise InputError(f"no {', '.join(missing)}, which {study.name} needs", where=str(folder))

    files = ", ".join(f"{name}.csv" for name in study.files)
    try:
        ours = OURS[study.name](lambda name: _read(folder / f"{name}.csv"))
    except KeyError as error:
        raise InputError(f"{files} are not the tables of {study.name}: no column {error}", where=str(folder)) from None
    except InputError as error:  # of a frame, which does not know its file
        where = f"{folder}: {files}" if error.where in ("", "table") else error.where
        raise InputError(error.what, where, error.do) from None
    return [Row(study.name, q, ours[q.name], golden.verdict(q, ours[q.name])) for q in study.quantities]


def _read(path: pathlib.Path) -> pd.DataFrame:
    columns.read_csv(path)  # refuses by its path what is no table
    frame = pd.read_csv(path)
    for name in {*NUMBERS} & {*frame.columns}:
        bad = frame[name][frame[name].notna() & pd.to_numeric(frame[name], errors="coerce").isna()]
        if len(bad):
            raise InputError(f"{name}={bad.iloc[0]} in row {bad.index[0]} is not a number (counting from 0)", str(path))
    return frame
