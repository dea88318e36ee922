"""The table of runs, as columns of float64 with everything that was left out and why.

Required columns: N (parameters), D (training tokens), loss. C (FLOPs) defaults to 6ND with a warning. Understood where
present: run, trunk, budget, status, reason, role, outlier. Rows that are not done, or that were held out to test a
prediction, are dropped with their reason; nothing else is ever left out silently.
"""

import dataclasses
import hashlib
import io
import math
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from scaling.errors import InputError, nearest
from scaling.files import Path

GAP = 0.05  # rows whose sorted C differ by more than this belong to different budgets
MIN_SIZES = 4  # fewer sizes are not a budget: a parabola through three points has no residual
REQUIRED = ("N", "D", "loss")
HELD_OUT = "prediction"
LossUnit = Literal["nats", "bits"]
NATS = {"nats": 1.0, "bits": math.log(2.0)}


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Runs to fit: R rows. N parameters, D tokens, C FLOPs, loss nats per token; all float64.

    row_R: position of each row in the input. cluster_R: rows with one number share their data or trajectory and are
    resampled together. budget_R: number of the row's isoFLOP budget, -1 for none. alternative: the same runs with the
    opposite decision about rows marked as outliers, None where no row is marked.
    """

    N_R: np.ndarray
    D_R: np.ndarray
    C_R: np.ndarray
    loss_R: np.ndarray
    row_R: np.ndarray
    cluster_R: np.ndarray
    budget_R: np.ndarray
    rows: int
    dropped: tuple[dict[str, Any], ...]
    warnings: tuple[dict[str, Any], ...]
    sha256: str
    columns: tuple[str, ...]
    conventions: dict[str, str]
    outliers: Literal["none marked", "kept", "dropped"]
    alternative: "Table | None"

    @property
    def correlated(self) -> bool:
        """Whether some rows share a trunk or a run."""
        return len(np.unique(self.cluster_R)) < len(self.N_R)


def read_table(paths: Path | Sequence[Path], *, loss_unit: LossUnit = "nats", drop_outliers: bool = False) -> Table:
    """Reads one or more CSV files of runs as one table. Raises InputError for what cannot be read or understood."""
    paths = [paths] if isinstance(paths, str | pathlib.Path) else list(paths)
    if not paths:
        raise InputError("no table of runs given")
    frame = pd.concat([read_csv(path) for path in paths], ignore_index=True)
    digest = hashlib.sha256(b"".join(pathlib.Path(path).read_bytes() for path in paths)).hexdigest()
    where = ", ".join(str(path) for path in paths)
    return _table(frame, digest, where, loss_unit, drop_outliers)


def table_from_frame(
    frame: pd.DataFrame, *, loss_unit: LossUnit = "nats", drop_outliers: bool = False, where: str = "table"
) -> Table:
    """The same from a pandas DataFrame."""
    digest = hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()
    return _table(frame.reset_index(drop=True), digest, where, loss_unit, drop_outliers)


def warning(code: str, message: str, **facts: Any) -> dict[str, Any]:
    """One warning of the report: a code to act on, a sentence to read, and the facts behind it."""
    return {"code": code, "message": message, **facts}


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV file as text columns. Raises InputError where it cannot be read, is no CSV, or has no rows."""
    try:
        # Text first: numbers are converted below, where a bad one can be named by its row.
        frame = pd.read_csv(io.BytesIO(pathlib.Path(path).read_bytes()), dtype=str, skipinitialspace=True)
    except OSError as error:
        raise InputError(f"cannot read it: {error.strerror}", where=str(path)) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"not a CSV table: {str(error).strip()}", where=str(path)) from None
    if frame.empty:
        raise InputError("the table has no rows", where=str(path))
    return frame


def _table(frame: pd.DataFrame, digest: str, where: str, loss_unit: LossUnit, drop_outliers: bool) -> Table:
    if loss_unit not in NATS:
        raise InputError(f"loss_unit={loss_unit!r}", where, nearest(loss_unit, NATS))
    missing = [name for name in REQUIRED if name not in frame.columns]
    if missing:
        columns = ", ".join(map(str, frame.columns))
        raise InputError(
            f"no column {', '.join(missing)}", where, f"a table of runs needs N, D, loss; it has {columns}"
        )
    if frame.empty:
        raise InputError("the table has no rows", where)

    frame = frame.assign(row=np.arange(len(frame)))
    dropped, kept = _drop(frame)
    frame = frame[kept]
    if frame.empty:
        raise InputError(f"nothing left to fit: all {len(kept)} rows were dropped", where, dropped[0]["reason"])
    numbers = {name: positive(frame, name, where) for name in REQUIRED}
    warnings = []
    if "C" in frame.columns:
        numbers["C"] = positive(frame, "C", where)
    else:
        numbers["C"] = 6.0 * numbers["N"] * numbers["D"]
        warnings.append(warning("six_nd_assumed", "The table has no column C: compute was taken as C = 6ND FLOPs."))
    numbers["loss"] = numbers["loss"] * NATS[loss_unit]
    outlier_R = _flag(frame, "outlier", where)
    conventions = {
        "N": "parameters, as given in column N",
        "C": "FLOPs, as given in column C" if "C" in frame.columns else "FLOPs, 6ND (no column C)",
        "loss": "nats per token" if loss_unit == "nats" else "nats per token: the table's bits times ln 2",
    }

    def build(drop_outliers: bool, alternative: Table | None) -> Table:
        keep = ~outlier_R if drop_outliers else np.ones(len(frame), bool)
        if not keep.any():
            raise InputError("nothing left to fit: every row is marked as an outlier", where)
        part = {name: values[keep] for name, values in numbers.items()}
        outliers = "none marked" if not outlier_R.any() else "dropped" if drop_outliers else "kept"
        left_out = [{"row": int(row), "reason": "marked as an outlier"} for row in frame["row"][~keep]]
        budget_R, found = _budgets(frame[keep], part["C"], part["N"])
        return Table(
            N_R=part["N"],
            D_R=part["D"],
            C_R=part["C"],
            loss_R=part["loss"],
            row_R=frame["row"].to_numpy()[keep],
            cluster_R=_clusters(frame[keep]),
            budget_R=budget_R,
            rows=len(kept),
            dropped=tuple(sorted(dropped + left_out, key=lambda drop: drop["row"])),
            warnings=(*warnings, *found, *_duplicates(part), *_outliers(int(outlier_R.sum()), outliers)),
            sha256=digest,
            columns=tuple(name for name in frame.columns if name != "row"),
            conventions=conventions,
            outliers=outliers,
            alternative=alternative,
        )

    try:
        alternative = build(not drop_outliers, None) if outlier_R.any() else None
    except InputError:
        if drop_outliers:
            raise
        alternative = None  # every row is marked: there is no other way to see this table
    return build(drop_outliers, alternative)


def _text(frame: pd.DataFrame, name: str) -> pd.Series:
    """A column as text, empty where it is missing."""
    if name not in frame.columns:
        return pd.Series("", index=frame.index)
    return frame[name].astype(object).where(frame[name].notna(), "").astype(str).str.strip()


def _drop(frame: pd.DataFrame) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The rows that are not runs to fit, with the reason; and the mask of those that are."""
    status, role, reason = (_text(frame, name) for name in ("status", "role", "reason"))
    held_out = (role == HELD_OUT).to_numpy()
    stopped = ((status != "") & (status != "done")).to_numpy()
    dropped = []
    for row in np.flatnonzero(held_out | stopped):
        why = f"status {status[row]}" + (f": {reason[row]}" if reason[row] else "")
        dropped.append({"row": int(row), "reason": why if stopped[row] else "held out to test the prediction"})
    return dropped, ~(held_out | stopped)


def positive(frame: pd.DataFrame, name: str, where: str) -> np.ndarray:
    """A column as float64: integers would overflow in 6ND above 9.2e18. Refuses what is not a positive number."""
    values = pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64, copy=True)
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if bad.size:
        row, given = frame["row"].iloc[bad[0]], _text(frame, name).iloc[bad[0]]
        what = (
            f"{name} is missing in row {row}"
            if given in ("", "nan")
            else f"{name}={given} in row {row} is not positive"
        )
        do = (
            "give a loss, or a column status that says why there is none"
            if name == "loss"
            else "correct or remove the row"
        )
        raise InputError(f"{what} (counting from 0)", where, do)
    return values


def _flag(frame: pd.DataFrame, name: str, where: str) -> np.ndarray:
    """A column of true and false; empty is false."""
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "": False}
    text = _text(frame, name).str.lower()
    unknown = text[~text.isin(list(known))]
    if len(unknown):
        raise InputError(
            f"{name}={unknown.iloc[0]} in row {frame['row'][unknown.index[0]]}", where, "use true or false"
        )
    return text.map(known).to_numpy(bool)


def _clusters(frame: pd.DataFrame) -> np.ndarray:
    """A number per row, shared by the rows of one trunk, else of one run."""
    trunk, run, row = _text(frame, "trunk"), _text(frame, "run"), frame["row"].astype(str)
    name = ("trunk " + trunk).where(trunk != "", ("run " + run).where(run != "", "row " + row))
    return pd.factorize(name)[0]


def _budgets(frame: pd.DataFrame, C_R: np.ndarray, N_R: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Numbers the isoFLOP budgets by rising C: by the column `budget`, else by gaps in sorted log C."""
    named = _text(frame, "budget")
    if (named != "").any():
        groups = [np.flatnonzero(named == name) for name in named.unique() if name]
    else:
        order = np.argsort(C_R, kind="stable")
        gaps = np.flatnonzero(np.diff(np.log(C_R[order])) > np.log1p(GAP)) + 1
        groups = [rows for rows in np.split(order, gaps) if len(np.unique(N_R[rows])) >= MIN_SIZES]
    groups.sort(key=lambda rows: np.log(C_R[rows]).mean())
    budget_R = np.full(len(C_R), -1)
    for number, rows in enumerate(groups):
        budget_R[rows] = number
    return budget_R, []


def _duplicates(numbers: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    frame = pd.DataFrame(numbers)
    count = int(frame.duplicated().sum())
    message = f"{count} rows repeat another row exactly; they were kept and count twice."
    return [warning("duplicate_rows", message, rows=count)] if count else []


def _outliers(marked: int, outliers: str) -> list[dict[str, Any]]:
    message = f"{marked} rows are marked as outliers; they were {outliers}. The report shows the exponents both ways."
    return [warning("outliers", message, rows=marked)] if marked else []
