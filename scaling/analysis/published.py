"""Ours beside the published numbers of eleven studies: `golden` has theirs, `studies` does them again."""

import dataclasses
import pathlib

import pandas as pd

from scaling.analysis import golden
from scaling.analysis.golden import Quantity, Study, Verdict
from scaling.analysis.studies import OURS
from scaling.errors import InputError


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

    Raises InputError where a file is missing or is not that table.
    """
    missing = absent(study, folder)
    if missing:
        raise InputError(f"no {', '.join(missing)}, which {study.name} needs", where=str(folder))

    def read(name: str) -> pd.DataFrame:
        return pd.read_csv(folder / f"{name}.csv")

    try:
        ours = OURS[study.name](read)
    except (KeyError, pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        files = ", ".join(f"{name}.csv" for name in study.files)
        raise InputError(f"{files} are not the tables of {study.name}: {error}", where=str(folder)) from None
    return [Row(study.name, q, ours[q.name], golden.verdict(q, ours[q.name])) for q in study.quantities]
