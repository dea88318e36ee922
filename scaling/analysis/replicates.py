"""Which runs repeat each other: rows of a table that differ in their seed only."""

import dataclasses

import numpy as np
import pandas as pd

from scaling.analysis import columns

# What is set before a run is trained. Rows that agree in those of these that a table has, and differ in `seed`, are
# replicates. All other columns are results or labels, or a setting that this list does not know: those that differ
# between replicates are named in the report.
SETTINGS = (
    "N", "D", "C", "budget", "N_active", "n_experts", "width", "depth", "family", "variant", "unique_tokens", "steps",
    "batch_tokens", "sequence_length", "peak_lr", "weight_decay", "warmup_steps", "schedule", "optimizer", "recipe",
    "dataset", "data", "tokenizer", "precision",
)  # fmt: skip
# Results and labels that differ between any two runs.
LABELS = ("row", "run", "name", "trunk", "seed", "status", "reason", "role", "outlier", "loss", "loss_stderr", "mfu")


@dataclasses.dataclass(frozen=True, eq=False)
class Seeds:
    """setting_R: rows with one number differ in their seed only; seed_R: a number for each seed, -1 where it is
    missing. agree: the settings that the table has. differ: other columns that differ between replicates."""

    setting_R: np.ndarray
    seed_R: np.ndarray
    agree: tuple[str, ...]
    differ: tuple[str, ...]


def seeds(frame: pd.DataFrame) -> Seeds | None:
    """Numbers the settings and the seeds of a table's rows; None where it has no column seed."""
    if "seed" not in frame.columns:
        return None
    agree = tuple(name for name in SETTINGS if name in frame.columns)
    settings = pd.DataFrame({name: _values(frame, name) for name in agree})
    setting_R = settings.groupby(list(agree), sort=False, dropna=False).ngroup().to_numpy()
    seed = columns.text(frame, "seed")
    seed_R = np.where(seed == "", -1, pd.factorize(seed)[0])
    repeated = pd.Series(seed_R).where(seed_R >= 0).groupby(setting_R).transform("nunique").to_numpy() > 1
    others = [name for name in frame.columns if name not in (*agree, *LABELS) and not _is_result(str(name))]
    differ = [
        name for name in others if (_values(frame, name)[repeated].groupby(setting_R[repeated]).nunique() > 1).any()
    ]
    return Seeds(setting_R, seed_R, agree, tuple(map(str, differ)))


def _values(frame: pd.DataFrame, name: str) -> pd.Series:
    """A column as numbers where it is one of numbers, so that 1e7 and 10000000 agree, else as text."""
    text = columns.text(frame, name)
    number = pd.Series(columns.numbers(frame, name), index=frame.index)
    return text if (number.isna() & (text != "")).any() else number


def _is_result(name: str) -> bool:
    return name.startswith(("loss_", "bits_per_byte")) or name.endswith(("_seconds", "_per_second"))
