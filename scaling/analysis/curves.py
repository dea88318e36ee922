"""Losses on the way: the training curves that Approach 1 reads."""

import dataclasses

import numpy as np
import pandas as pd

from scaling.analysis import table
from scaling.errors import InputError
from scaling.files import Path

COLUMNS = ("run", "step", "N", "D", "C", "loss", "split")
SPLIT = "validation"  # a training loss is of one batch; only held-out losses compare between runs


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """Held-out losses during training: P points of several runs, each run's points by rising C.

    run_P: the run's number. N parameters, D tokens so far, C FLOPs so far, loss nats per token. names: of the runs.
    """

    run_P: np.ndarray
    N_P: np.ndarray
    D_P: np.ndarray
    C_P: np.ndarray
    loss_P: np.ndarray
    names: tuple[str, ...]

    def of(self, run: int) -> np.ndarray:
        """The points of one run."""
        return np.flatnonzero(self.run_P == run)


def read_curves(path: Path, *, loss_unit: table.LossUnit = "nats") -> Curves:
    """Reads a curves.csv (columns run, step, N, D, C, loss, split). Raises InputError for what cannot be understood."""
    return curves_from_frame(table.read_csv(path), loss_unit=loss_unit, where=str(path))


def curves_from_frame(frame: pd.DataFrame, *, loss_unit: table.LossUnit = "nats", where: str = "curves") -> Curves:
    """The same from a pandas DataFrame; rows of other splits than validation, and points before any token, are
    unused."""
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise InputError(f"no column {', '.join(missing)}", where, f"training curves need {', '.join(COLUMNS)}")
    frame = frame.assign(row=np.arange(len(frame)))
    frame = frame[frame["split"] == SPLIT]
    frame = frame[pd.to_numeric(frame["D"], errors="coerce") != 0]  # the loss at initialisation has cost nothing
    if frame.empty:
        raise InputError(f"no row with split={SPLIT}", where, "only held-out losses compare between runs")
    numbers = {name: table.positive(frame, name, where) for name in ("N", "D", "C", "loss")}
    run_P, names = pd.factorize(frame["run"].astype(str))
    order = np.lexsort((numbers["C"], run_P))
    return Curves(
        run_P=run_P[order],
        N_P=numbers["N"][order],
        D_P=numbers["D"][order],
        C_P=numbers["C"][order],
        loss_P=numbers["loss"][order] * table.NATS[loss_unit],
        names=tuple(names),
    )
