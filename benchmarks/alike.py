"""Whether a run, or a sweep, that was disturbed is the one that it would have been: compared with an undisturbed twin.

Nothing is taken from what the training says of itself: files are compared byte by byte, and checkpoints are read by
orbax alone, leaf by leaf. Timings are what may differ: those of result.json, and the columns TIMINGS of results.csv.
"""

import json
import pathlib
import re
from typing import Any

import numpy as np
import pandas as pd

from scaling.files import read_json
from scaling.sweeps.results import TIMINGS

_CHECKPOINT = re.compile(r"(\d+)-(\d+)")  # STEP-ATTEMPT; those that are being written, or were set aside, have more


def differences(directory: pathlib.Path, twin: pathlib.Path) -> list[str]:
    """All in which a finished run differs from its twin, or breaks the rules of a run's files; a sentence each."""
    found = [
        *_missing(directory, ("run.json", "placement.json", "result.json", "metrics.jsonl")),
        *_missing(twin, ("run.json", "placement.json", "result.json", "metrics.jsonl")),
    ]
    if found:
        return found
    for name in ("run.json", "placement.json"):
        if (directory / name).read_bytes() != (twin / name).read_bytes():
            found.append(f"{directory / name} is not that of the twin")
    return [
        *found,
        *_results_differ(directory / "result.json", twin / "result.json"),
        *_lines_differ(directory / "metrics.jsonl", twin / "metrics.jsonl"),
        *_states_differ(directory, twin),
        *_attempts_wrong(directory),
        *([f"{directory / 'failure.json'} is there, of a run that has come through"] * _failed(directory)),
    ]


def sweep_differences(workdir: pathlib.Path, twin: pathlib.Path) -> list[str]:
    """The same of a whole sweep: its tables, timings aside, and its runs, of which none may be missing or new."""
    found = [*_missing(workdir, ("results.csv", "curves.csv")), *_missing(twin, ("results.csv", "curves.csv"))]
    if found:
        return found
    runs, expected = (sorted(path.name for path in (root / "runs").iterdir()) for root in (workdir, twin))
    if runs != expected:
        found.append(f"{workdir}: its runs are {', '.join(runs)}, the twin's {', '.join(expected)}")
    table, other = (
        pd.read_csv(root / "results.csv", dtype=str).drop(columns=list(TIMINGS)) for root in (workdir, twin)
    )
    if not table.equals(other):
        found.append(f"{workdir / 'results.csv'}: {_first_cell(table, other)}")
    found += _lines_differ(workdir / "curves.csv", twin / "curves.csv")
    for name in sorted({*runs} & {*expected}):
        found += differences(workdir / "runs" / name, twin / "runs" / name)
    return found


def results_of(workdir: pathlib.Path) -> pd.DataFrame:
    """results.csv without its timings, as the text that stands there."""
    return pd.read_csv(workdir / "results.csv", dtype=str, keep_default_na=False).drop(columns=list(TIMINGS))


def outcomes(directory: pathlib.Path) -> list[str]:
    """How each attempt at a run has ended, in their order; "killed" for those that have left no word."""
    return [attempt.get("outcome") or "killed" for attempt in attempts(directory)]


def outcome_of(directory: pathlib.Path, number: int) -> str:
    """How one attempt at a run has ended, "killed" if it has left no word."""
    return next((a.get("outcome") for a in attempts(directory) if a["attempt"] == number), None) or "killed"


def attempts(directory: pathlib.Path) -> list[dict[str, Any]]:
    """The attempt.json of each attempt at a run, in their order."""
    folders = [path for path in (directory / "attempts").glob("*") if (path / "attempt.json").exists()]
    return [read_json(path / "attempt.json") for path in sorted(folders, key=lambda path: int(path.name))]


def last_checkpoint(directory: pathlib.Path) -> pathlib.Path:
    """The newest whole checkpoint of a run."""
    found = {path: _CHECKPOINT.fullmatch(path.name) for path in (directory / "checkpoints").iterdir()}
    return max((int(match[1]), int(match[2]), path) for path, match in found.items() if match)[2]


def leaves(checkpoint: pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of a checkpoint's train state, by its path in the tree, as orbax reads it without being told any."""
    import jax
    import orbax.checkpoint as ocp
    from etils import epath

    (state,) = (epath.Path(path.parent) for path in checkpoint.rglob("_METADATA"))
    handler = ocp.PyTreeCheckpointHandler()
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(state).tree)
    tree = handler.restore(state, args=ocp.args.PyTreeRestore(restore_args=how))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def leaves_differ(ours: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> list[str]:
    """In which leaves two states differ, by a bit or more, in type or in shape."""
    found = [f"{name} is in one state alone" for name in sorted(ours.keys() ^ others.keys())]
    for name in sorted(ours.keys() & others.keys()):
        a, b = ours[name], others[name]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            found.append(f"{name}: {a.dtype}{list(a.shape)}, the twin's {b.dtype}{list(b.shape)}")
        elif a.tobytes() != b.tobytes():
            apart = sum(x != y for x, y in zip(a.tobytes(), b.tobytes(), strict=True))
            found.append(f"{name}: {apart} of {a.nbytes} bytes are not the twin's")
    return found


def _missing(directory: pathlib.Path, names: tuple[str, ...]) -> list[str]:
    return [f"{directory / name} is not there" for name in names if not (directory / name).exists()]


def _failed(directory: pathlib.Path) -> bool:
    return (directory / "failure.json").exists()


def _results_differ(path: pathlib.Path, twin: pathlib.Path) -> list[str]:
    ours, others = ({**read_json(each), "timing": None} for each in (path, twin))
    # As text, in which 0.1 and 0.1 + 2^-55 differ, 1 and 1.0 too, and the order of keys.
    if json.dumps(ours) == json.dumps(others):
        return []
    names = [name for name in {**ours, **others} if json.dumps(ours.get(name)) != json.dumps(others.get(name))]
    apart = [f"{name} {ours.get(name)!r}, the twin's {others.get(name)!r}" for name in names]
    return [f"{path}: {'; '.join(apart) or 'the order of its keys is not that of the twin'}"]


def _lines_differ(path: pathlib.Path, twin: pathlib.Path) -> list[str]:
    if path.read_bytes() == twin.read_bytes():
        return []
    ours, others = (each.read_bytes().splitlines() for each in (path, twin))
    number = next((k for k, pair in enumerate(zip(ours, others, strict=False)) if pair[0] != pair[1]), None)
    if number is None:
        return [f"{path}: {len(ours)} lines, the twin has {len(others)}; those that both have are the same"]
    return [f"{path}: line {number + 1} is {ours[number]!r}, the twin's {others[number]!r}"]


def _states_differ(directory: pathlib.Path, twin: pathlib.Path) -> list[str]:
    steps = read_json(twin / "result.json")["steps"]
    ours, others = last_checkpoint(directory), last_checkpoint(twin)
    early = [path for path in (ours, others) if int(path.name.partition("-")[0]) != steps]
    if early:
        return [f"{path} is the last checkpoint, of a run of {steps} steps" for path in early]
    return [f"{ours}: {each}" for each in leaves_differ(leaves(ours), leaves(others))]


def _attempts_wrong(directory: pathlib.Path) -> list[str]:
    ended = outcomes(directory)
    found = []
    if ended.count("recorded") != 1:
        found.append(f"{directory}: {ended.count('recorded')} attempts say that they have recorded the result: {ended}")
    for attempt in attempts(directory):
        if attempt.get("outcome") == "duplicate" and attempt.get("same") is not True:
            found.append(f"{directory}: attempt {attempt['attempt']} came to another result")
    return found


def _first_cell(table: pd.DataFrame, other: pd.DataFrame) -> str:
    """The first value in which two tables differ, in words."""
    if table.shape != other.shape or list(table.columns) != list(other.columns):
        return f"{table.shape[0]} rows of {list(table.columns)}, the twin has {other.shape[0]} of {list(other.columns)}"
    row, column = next((r, c) for c in table.columns for r in table.index if table.loc[r, c] != other.loc[r, c])
    return f"{column} of {table.loc[row, 'run']} is {table.loc[row, column]!r}, the twin's {other.loc[row, column]!r}"
