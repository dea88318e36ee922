"""Losses on the way: the training curves that Approach 1 reads."""

import dataclasses
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from scaling.analysis import columns, imports, table
from scaling.errors import InputError, nearest
from scaling.files import Path

NEEDED = ("run", "N", "D", "C", "loss")
SPLIT = "validation"  # a training loss is of one batch; only held-out losses compare between runs


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """Held-out losses during training: P points of several runs, each run's points by rising C.

    run_P: the run's number. N parameters, D tokens so far, C FLOPs so far, loss in `unit`. names: of the runs.
    split: the held-out text, empty where the curves have no column split. unused: why points were left out, and how
    many.
    """

    run_P: np.ndarray
    N_P: np.ndarray
    D_P: np.ndarray
    C_P: np.ndarray
    loss_P: np.ndarray
    names: tuple[str, ...]
    unit: str
    split: str
    unused: dict[str, int]

    def of(self, run: int) -> np.ndarray:
        """The points of one run."""
        return np.flatnonzero(self.run_P == run)

    def facts(self) -> dict[str, Any]:
        """What the report repeats of them."""
        counted = {"runs": len(self.names), "points": len(self.C_P), "unused": dict(self.unused)}
        return {**counted, "split": self.split or None, "unit": self.unit}


def read_curves(
    paths: Path | Sequence[Path],
    *,
    runs: pd.DataFrame | None = None,
    columns: Mapping[str, str] | None = None,
    tokens_per_step: float | None = None,
    split: str = SPLIT,
    loss_unit: table.LossUnit = "nats",
    left_out: Collection[str] = (),
) -> Curves:
    """Reads training curves from CSV files, exports of Weights & Biases and TensorBoard, and event files.

    columns: {our name: theirs}. What the curves do not tell of their runs (N, C; tokens from steps) is taken from runs,
    the table of runs (table.read_frame), by the column `run`. Raises InputError for what cannot be understood.
    """
    paths = [paths] if isinstance(paths, str | pathlib.Path) else list(paths)
    where = ", ".join(str(path) for path in paths)
    names = set() if runs is None else set(runs["run"].dropna()) if "run" in runs.columns else set()
    points = pd.concat([imports.read_points(path, columns or {}, names) for path in paths], ignore_index=True)
    points = imports.join(points, runs, tokens_per_step, where)
    return curves_from_frame(points, split=split, loss_unit=loss_unit, left_out=left_out, where=where)


def curves_from_frame(
    frame: pd.DataFrame,
    *,
    split: str = SPLIT,
    loss_unit: table.LossUnit = "nats",
    left_out: Collection[str] = (),
    where: str = "curves",
) -> Curves:
    """The same from a pandas DataFrame with the columns run, N, D, C, loss, and split, if it has several.

    Left out, and counted in `unused`: other splits, points before any token, points without a finite loss (a run that
    diverged), and the runs named in left_out.
    """
    missing = [name for name in NEEDED if name not in frame.columns]
    if missing:
        raise InputError(f"no column {', '.join(missing)}", where, f"training curves need {', '.join(NEEDED)}")
    frame = frame.assign(row=np.arange(len(frame)))
    split = split if "split" in frame.columns else ""
    loss = columns.numbers(frame, "loss")
    reasons = (
        ("other splits", (columns.text(frame, "split") != split).to_numpy()),
        ("runs that were excluded", columns.text(frame, "run").isin(left_out).to_numpy()),
        ("before any token", columns.numbers(frame, "D") == 0),  # the loss at initialisation has cost nothing
        ("no finite loss", np.isinf(loss) | columns.text(frame, "loss").str.lower().isin(["", "nan"]).to_numpy()),
    )
    keep, unused = np.ones(len(frame), bool), {}
    for reason, gone in reasons:
        unused[reason] = int((keep & gone).sum())
        keep &= ~gone
        if not keep.any():
            raise _nothing_left(frame, reason, split, where)
    frame = frame[keep]
    values = {name: columns.positive(frame, name, where) for name in ("N", "D", "C", "loss")}
    run_P, names = pd.factorize(columns.text(frame, "run"))
    if len(names) == len(frame) > 1:
        raise InputError(f"each of the {len(names)} runs has one point", where, "a curve needs at least two")
    order = np.lexsort((values["C"], run_P))
    return Curves(
        run_P=run_P[order],
        N_P=values["N"][order],
        D_P=values["D"][order],
        C_P=values["C"][order],
        loss_P=values["loss"][order] * table.SCALE[loss_unit],
        names=tuple(names),
        unit=table.UNIT[loss_unit],
        split=split,
        unused={reason: count for reason, count in unused.items() if count},
    )


def _nothing_left(frame: pd.DataFrame, reason: str, split: str, where: str) -> InputError:
    if reason == "other splits":
        do = f"only held-out losses compare between runs; {nearest(split, set(columns.text(frame, 'split')))}"
        return InputError(f"no row with split={split}", where, do)
    return InputError("no point is left of the curves", where, f"the last were left out for: {reason}")
