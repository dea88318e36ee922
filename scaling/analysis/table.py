"""The table of runs, as columns of float64 with everything that was left out and why.

Required columns: N (parameters), D (training tokens), loss; a law that needs no D does without it. C (FLOPs) defaults
to 6ND with a warning. Understood where present: run, trunk, budget, seed, status, reason, role, outlier, the columns of
`EXTRA`, other counts of N and C (columns named N_... and C_...), and the settings of `replicates`. Rows that are not
done, that were held out to test a prediction, or that the user excluded are dropped with their reason; nothing else is
ever left out silently.
"""

import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from scaling.analysis.columns import flag, map_columns, numbers, positive, read_csv, text
from scaling.analysis.expressions import parse_exclusion
from scaling.analysis.replicates import Seeds, seeds
from scaling.errors import InputError, nearest
from scaling.files import Path

GAP = 0.05  # rows whose sorted C differ by more than this belong to different budgets
SPAN = 1.1  # a group whose C spans more than this factor is no budget: small gaps have chained unrelated runs
MIN_SIZES = 4  # fewer sizes are not a budget: a parabola through three points has no residual
NEEDS = ("N", "D")
EXTRA = ("unique_tokens", "N_active", "n_experts", "width", "depth", "loss_lo95", "loss_hi95")
PIECES = ("N_embedding", "N_head", "N_norms", "N_published")  # of N, or a label: not ways to count it
LABELS = ("run", "trunk", "seed")
HELD_OUT = "prediction"
DONE = ("", "done", "finished")  # "finished" is what Weights & Biases calls it
LossUnit = Literal["nats", "bits", "bpb"]
SCALE = {"nats": 1.0, "bits": math.log(2.0), "bpb": 1.0}
UNIT = {"nats": "nats per token", "bits": "nats per token", "bpb": "bits per byte"}  # after that scaling


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Runs to fit: R rows. N parameters, D tokens, C FLOPs, loss in `unit`; all float64.

    row_R: position of each row in the input. cluster_R: rows with one number share their data or trajectory and are
    resampled together. budget_R: number of the row's isoFLOP budget, -1 for none. seeds: which rows repeat each other.
    extra: columns of EXTRA that there are, alternatives those named N_... and C_..., NaN where a value is missing;
    labels: the text of LABELS, "" where missing. Where D is not needed and missing, D_R is NaN.
    excluded: {"expression", "reason", "rows"} of each exclusion; excluded_runs: runs all of whose rows are excluded.
    alternative: the same runs with the opposite decision about rows marked as outliers, None where no row is marked.
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
    unit: str
    seeds: Seeds | None
    extra: dict[str, np.ndarray]
    alternatives: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    excluded: tuple[dict[str, Any], ...]
    excluded_runs: frozenset[str]
    outliers: Literal["none marked", "kept", "dropped"]
    alternative: "Table | None"

    @property
    def correlated(self) -> bool:
        """Whether some rows share a trunk or a run."""
        return len(np.unique(self.cluster_R)) < len(self.N_R)


def read_table(
    paths: Path | Sequence[Path],
    *,
    columns: Mapping[str, str] | None = None,
    loss_unit: LossUnit = "nats",
    drop_outliers: bool = False,
    exclude: Sequence[str] = (),
    needs: Sequence[str] = NEEDS,
) -> Table:
    """Reads one or more CSV files of runs as one table. Raises InputError for what cannot be read or understood.

    columns: {our name: theirs}, say {"N": "params", "loss": "val/loss"}. loss_unit: of the column loss; bits are
    converted to nats, bits per byte ("bpb") are kept. exclude: rows to leave out, "EXPRESSION because REASON" each.
    needs: Law.needs of the law to be fitted; a table for the routing law may have no D.
    """
    paths = [paths] if isinstance(paths, str | pathlib.Path) else list(paths)
    frame = read_frame(paths, columns)
    digest = hashlib.sha256(b"".join(pathlib.Path(path).read_bytes() for path in paths)).hexdigest()
    where = ", ".join(str(path) for path in paths)
    return _table(frame, digest, where, columns or {}, loss_unit, drop_outliers, exclude, needs)


def table_from_frame(
    frame: pd.DataFrame,
    *,
    columns: Mapping[str, str] | None = None,
    loss_unit: LossUnit = "nats",
    drop_outliers: bool = False,
    exclude: Sequence[str] = (),
    needs: Sequence[str] = NEEDS,
    where: str = "table",
) -> Table:
    """The same from a pandas DataFrame."""
    digest = hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()
    mapped = map_columns(frame.reset_index(drop=True), columns or {}, where)
    return _table(mapped, digest, where, columns or {}, loss_unit, drop_outliers, exclude, needs)


def read_frame(paths: Sequence[Path], columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The rows of one or more CSV files, as text, with our names for their columns."""
    if not paths:
        raise InputError("no table of runs given")
    return pd.concat([map_columns(read_csv(path), columns or {}, str(path)) for path in paths], ignore_index=True)


def warning(code: str, message: str, **facts: Any) -> dict[str, Any]:
    """One warning of the report: a code to act on, a sentence to read, and the facts behind it."""
    return {"code": code, "message": message, **facts}


def _table(
    frame: pd.DataFrame,
    digest: str,
    where: str,
    sources: Mapping[str, str],
    loss_unit: LossUnit,
    drop_outliers: bool,
    exclude: Sequence[str],
    needs: Sequence[str],
) -> Table:
    if loss_unit not in UNIT:
        raise InputError(f"loss_unit={loss_unit!r}", where, nearest(loss_unit, UNIT))
    required = [name for name in ("N", "D", "C") if name in needs] + ["loss"]
    missing = [name for name in required if name not in frame.columns and (name != "C" or not {"N", "D"} <= {*frame})]
    if missing:
        names = ", ".join(map(str, frame.columns))
        do = f"a table of runs needs {', '.join(required)}; it has {names}"
        raise InputError(f"no column {', '.join(missing)}", where, do)
    if frame.empty:
        raise InputError("the table has no rows", where)

    rows, given = len(frame), tuple(map(str, frame.columns))
    frame = frame.assign(row=np.arange(rows))
    unfit = _unfit(frame)
    if len(unfit) == rows:
        raise InputError(f"nothing left to fit: all {rows} rows were dropped", where, unfit[0]["reason"])
    frame = frame.drop(index=[drop["row"] for drop in unfit])
    left_out, excluded, warnings = _exclude(frame, exclude, where)
    runs = set(text(frame, "run"))
    frame = frame.drop(index=[drop["row"] for drop in left_out])
    excluded_runs = frozenset(runs - set(text(frame, "run")) - {""})
    values = {name: _values(frame, name, where, name in required) for name in ("N", "D", "loss")}
    if "C" in frame.columns:
        values["C"] = _values(frame, "C", where, bool({"C", "D"} & {*required}))
    else:
        values["C"] = _six_nd(frame, values["N"], values["D"], where)
        warnings.append(warning("six_nd_assumed", "The table has no column C: compute was taken as C = 6ND FLOPs."))
    values["loss"] = values["loss"] * SCALE[loss_unit]
    outlier_R = flag(frame, "outlier", where)
    conventions = _conventions(frame, sources, loss_unit)
    extra = {name: numbers(frame, name) for name in EXTRA if name in frame.columns}
    alternatives = _alternatives(frame, values["N"])
    labels = {name: text(frame, name).to_numpy(str) for name in LABELS}

    def build(drop_outliers: bool, alternative: Table | None) -> Table:
        keep = ~outlier_R if drop_outliers else np.ones(len(frame), bool)
        if not keep.any():
            raise InputError("nothing left to fit: every row is marked as an outlier", where)
        part = {name: column[keep] for name, column in values.items()}
        outliers = "none marked" if not outlier_R.any() else "dropped" if drop_outliers else "kept"
        marked = [{"row": int(row), "reason": "marked as an outlier"} for row in frame["row"][~keep]]
        return Table(
            N_R=part["N"],
            D_R=part["D"],
            C_R=part["C"],
            loss_R=part["loss"],
            row_R=frame["row"].to_numpy()[keep],
            cluster_R=_clusters(frame[keep]),
            budget_R=_budgets(frame[keep], part["C"], part["N"]),
            rows=rows,
            dropped=tuple(sorted(unfit + left_out + marked, key=lambda drop: drop["row"])),
            warnings=(*warnings, *_mixed(frame[keep]), *_duplicates(part), *_outliers(int(outlier_R.sum()), outliers)),
            sha256=digest,
            columns=given,
            conventions=conventions,
            unit=UNIT[loss_unit],
            seeds=seeds(frame[keep]),
            extra={name: column[keep] for name, column in extra.items()},
            alternatives={name: column[keep] for name, column in alternatives.items()},
            labels={name: column[keep] for name, column in labels.items()},
            excluded=tuple(excluded),
            excluded_runs=excluded_runs,
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


def _values(frame: pd.DataFrame, name: str, where: str, required: bool) -> np.ndarray:
    """A column that must be positive; NaN throughout where it is not required and not there, or empty."""
    if not required and (name not in frame.columns or not np.isfinite(numbers(frame, name)).any()):
        return np.full(len(frame), np.nan)
    return positive(frame, name, where)


def _six_nd(frame: pd.DataFrame, N_R: np.ndarray, D_R: np.ndarray, where: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        C_R = 6.0 * N_R * D_R
    if np.isinf(C_R).any():
        raise InputError(f"6ND in row {frame['row'].iloc[np.isinf(C_R).argmax()]} is beyond floats", where)
    return C_R


def _alternatives(frame: pd.DataFrame, N_R: np.ndarray) -> dict[str, np.ndarray]:
    """Other ways to count N and C that a table has: columns N_... and C_..., but pieces of N are none of themselves."""
    named = [str(name) for name in frame.columns if str(name).startswith(("N_", "C_"))]
    counts = {name: numbers(frame, name) for name in named if name not in (*EXTRA, *PIECES)}
    if "N_embedding" in named:
        counts["N_without_embedding"] = N_R - numbers(frame, "N_embedding")
    return {name: count_R for name, count_R in counts.items() if np.isfinite(count_R).any()}


def _conventions(frame: pd.DataFrame, sources: Mapping[str, str], loss_unit: LossUnit) -> dict[str, str]:
    """What N, C and loss mean, in words."""
    N, C, loss = (sources.get(name, name) for name in ("N", "C", "loss"))
    return {
        "N": f"parameters, as given in column {N}",
        "C": f"FLOPs, as given in column {C}" if "C" in frame.columns else "FLOPs, 6ND (no column C)",
        "loss": UNIT[loss_unit]
        + (": the table's bits times ln 2" if loss_unit == "bits" else "")
        + (f", as given in column {loss}" if loss != "loss" else ""),
    }


def _unfit(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows that are not runs to fit, with the reason."""
    status, role, reason = (text(frame, name) for name in ("status", "role", "reason"))
    stopped = ~status.isin(DONE)
    dropped = []
    for row in np.flatnonzero((role == HELD_OUT) | stopped):
        why = f"status {status[row]}" + (f": {reason[row]}" if reason[row] else "")
        dropped.append({"row": int(row), "reason": why if stopped[row] else "held out to test the prediction"})
    return dropped


def _exclude(
    frame: pd.DataFrame, exclude: Sequence[str], where: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows that the user leaves out, with the reason; what each expression says and does; and warnings."""
    known = {str(name): frame[name] for name in frame.columns if name != "row"}
    if {"N", "D"} <= known.keys():
        with np.errstate(over="ignore"):
            known.setdefault("C", pd.Series(6.0 * numbers(frame, "N") * numbers(frame, "D"), index=frame.index))
    reasons: dict[int, str] = {}
    said, warnings = [], []
    for exclusion in map(parse_exclusion, exclude):
        rows = frame["row"].to_numpy()[exclusion.rows(known)]
        said.append({"expression": exclusion.text, "reason": exclusion.reason, "rows": len(rows)})
        for row in rows:
            reasons.setdefault(int(row), f"excluded: {exclusion.reason} ({exclusion.text})")
        if not len(rows):
            warnings.append(warning("nothing_excluded", f"No row is excluded by {exclusion.text}.", rows=0))
    if len(reasons) == len(frame):
        raise InputError(f"nothing left to fit: all {len(frame)} rows are excluded", where, "exclude fewer")
    return [{"row": row, "reason": reason} for row, reason in reasons.items()], said, warnings


def _clusters(frame: pd.DataFrame) -> np.ndarray:
    """A number per row, shared by the rows of one trunk, else of one run."""
    trunk, run, row = text(frame, "trunk"), text(frame, "run"), frame["row"].astype(str)
    name = ("trunk " + trunk).where(trunk != "", ("run " + run).where(run != "", "row " + row))
    return pd.factorize(name)[0]


def _budgets(frame: pd.DataFrame, C_R: np.ndarray, N_R: np.ndarray) -> np.ndarray:
    """Numbers the isoFLOP budgets by rising C: by the column `budget`, else by gaps in sorted log C; -1 for none."""
    named = text(frame, "budget")
    if (named != "").any():
        groups = [np.flatnonzero(named == name) for name in named.unique() if name]
    else:
        order = np.argsort(C_R, kind="stable")
        gaps = np.flatnonzero(~(np.diff(np.log(C_R[order])) <= np.log1p(GAP))) + 1  # an unknown C is alone
        near = [rows for rows in np.split(order, gaps) if C_R[rows].max() <= SPAN * C_R[rows].min()]
        groups = [rows for rows in near if len(np.unique(N_R[rows])) >= MIN_SIZES]
    groups.sort(key=lambda rows: np.log(C_R[rows]).mean())
    budget_R = np.full(len(C_R), -1)
    for number, rows in enumerate(groups):
        budget_R[rows] = number
    return budget_R


def _mixed(frame: pd.DataFrame) -> list[dict[str, Any]]:
    variants = sorted(set(text(frame, "variant")))
    if len(variants) < 2:
        return []
    message = (
        f"The rows are of {len(variants)} variants, {', '.join(map(repr, variants))}, and were fitted as one. For a "
        "law of one of them, leave the others out with --exclude."
    )
    return [warning("mixed_variants", message, variants=variants)]


def _duplicates(values: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    frame = pd.DataFrame(values)
    count = int(frame.duplicated().sum())
    message = f"{count} rows repeat another row exactly; they were kept and count twice."
    return [warning("duplicate_rows", message, rows=count)] if count else []


def _outliers(marked: int, outliers: str) -> list[dict[str, Any]]:
    message = f"{marked} rows are marked as outliers; they were {outliers}. The report shows the exponents both ways."
    return [warning("outliers", message, rows=marked)] if marked else []
