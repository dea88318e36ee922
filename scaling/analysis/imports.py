"""Training curves as other people's tools export them, as one table: run, step, D, loss and whatever else they tell.

Understood: long CSV files (a row a point); the CSV of a chart of Weights & Biases (a column a run, beside its __MIN and
__MAX); the CSV of a TensorBoard scalar ("Wall time,Step,Value", a file a run); and TensorBoard's event files.
"""

import pathlib
import re
from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

from scaling.analysis import columns
from scaling.errors import InputError, nearest
from scaling.files import Path

SCALAR_CSV = ["Wall time", "Step", "Value"]
MEAN, LOW = " - ", "__MIN"  # "RUN - METRIC", and the lowest value of the points that the chart drew as one
STEP_AXES = ("Step", "_step")
EVENTS = "tfevents"  # in the name of every event file
BEYOND = 1.01  # a run's last step may round; 1 % more is another count of steps


def read_points(path: Path, names: Mapping[str, str], runs: Collection[str]) -> pd.DataFrame:
    """The points of one file, or of a folder of event files.

    names: {our name: theirs}; theirs of `loss` is the metric of a chart, or the tag of event files. runs: names of the
    runs there are, to know a run by the name of its file. Raises InputError for what cannot be understood.
    """
    path = pathlib.Path(path)
    if path.is_dir() or EVENTS in path.name:
        return _events(path, names.get("loss"), runs)
    frame = columns.read_csv(path)
    if list(frame.columns) == SCALAR_CSV:
        run = _known(_file_names(path.stem), runs)
        return frame.rename(columns={"Step": "step", "Value": "loss"}).assign(run=run)
    if "run" not in names and "run" not in frame.columns and any(name.endswith(LOW) for name in frame.columns):
        return _chart(frame, names, str(path))
    frame = columns.map_columns(frame, names, str(path))
    missing = [name for name in ("run", "loss") if name not in frame.columns]
    if missing:
        have = f"nearest: {nearest(missing[0], frame.columns)}; map it with --curve_columns={missing[0]}=THEIRS"
        raise InputError(f"no column {', '.join(missing)}", str(path), have)
    return frame


def join(
    points: pd.DataFrame, runs: pd.DataFrame | None, tokens_per_step: float | None, where: str = "curves"
) -> pd.DataFrame:
    """The points with N, D and C: tokens from steps, and by the column `run` what only the table of runs knows.

    C is in proportion to D: C of the run times D over D of the run. Raises InputError where a run is not in the table.
    """
    if not {"D", "step"} & set(points.columns):
        do = "map one of them: --curve_columns=D=THEIRS or step=THEIRS"
        raise InputError("no column D (tokens so far), and no column step", where, do)
    need = [name for name in ("D", "N", "C") if name not in points.columns]
    if not need or (need == ["D"] and tokens_per_step):
        return points if not need else points.assign(D=_tokens(points, tokens_per_step, where))
    facts = _facts(runs, where)
    run = columns.text(points, "run")
    unknown = run[~run.isin(facts.index)]
    if len(unknown):
        do = f"{nearest(unknown.iloc[0], facts.index)} The curves have no {', '.join(need)} of their own."
        raise InputError(f"run {unknown.iloc[0]!r} of the curves is not in the table of runs", where, do)
    of_run = facts.loc[run].reset_index(drop=True).set_index(points.index)
    if "D" in need:
        points = points.assign(D=_tokens(points, tokens_per_step or _per_step(points, of_run, where), where))
    if "N" in need:
        points = points.assign(N=of_run["N"])
    if "C" in need:
        points = points.assign(C=of_run["C"] * columns.numbers(points, "D") / of_run["D"])
    return points


def _tokens(points: pd.DataFrame, tokens_per_step: float | pd.Series, where: str) -> np.ndarray:
    step = columns.numbers(points, "step")
    bad = np.flatnonzero(~(np.isfinite(step) & (step >= 0)))
    if bad.size:
        given = columns.text(points, "step").iloc[bad[0]]
        raise InputError(f"step={given} is not a number of steps", where, f"point {bad[0]} (counting from 0)")
    return step * np.asarray(tokens_per_step)


def _facts(runs: pd.DataFrame | None, where: str) -> pd.DataFrame:
    """N, D, C and steps of each run: of its row with the most tokens, where it has several."""
    if runs is None or "run" not in runs.columns:
        raise InputError("the curves do not tell N, D and C of each point", where, "give a table of runs with `run`")
    known = {name: columns.numbers(runs, name) for name in ("N", "D", "C", "steps") if name in runs.columns}
    facts = pd.DataFrame({"run": columns.text(runs, "run"), **known})
    facts = facts[facts["run"] != ""].sort_values("D", kind="stable")
    sizes = facts.groupby("run")["N"].nunique()
    if (sizes > 1).any():
        raise InputError(f"run {sizes.idxmax()!r} has {sizes.max()} different N in the table of runs", where)
    if "C" not in facts.columns:
        facts["C"] = 6.0 * facts["N"] * facts["D"]  # the table of runs warns of it
    return facts.groupby("run").tail(1).set_index("run")


def _per_step(points: pd.DataFrame, of_run: pd.DataFrame, where: str) -> pd.Series:
    """Tokens a step of each point's run: D over steps of the table of runs."""
    if "steps" not in of_run.columns or of_run["steps"].isna().any():
        do = "give --tokens_per_step, or a column steps (of each run) in the table of runs"
        raise InputError("the curves have steps and no tokens", where, do)
    beyond = np.flatnonzero(columns.numbers(points, "step") > BEYOND * of_run["steps"])
    if beyond.size:
        point = points.iloc[beyond[0]]
        what = f"step {point['step']} of run {point['run']} is beyond its {of_run['steps'].iloc[beyond[0]]:.0f} steps"
        raise InputError(what, where, "the export counts something else: give --tokens_per_step")
    return of_run["D"] / of_run["steps"]


def _chart(frame: pd.DataFrame, names: Mapping[str, str], where: str) -> pd.DataFrame:
    """A chart of Weights & Biases: the x axis, then "RUN - METRIC" columns, empty where a run has no point."""
    axis, *others = frame.columns
    drawn = [name for name in others if MEAN in name and f"{name}{LOW}" in frame.columns]
    metrics = sorted({name.rsplit(MEAN, 1)[1] for name in drawn} - {"_step"})
    if not metrics:
        raise InputError("the chart holds no metric", where, 'its columns are "RUN - METRIC", each with its __MIN')
    wanted = names.get("loss", metrics[0] if len(metrics) == 1 else "")
    if wanted not in metrics:
        do = nearest(wanted, metrics) if wanted else f"choose one: --curve_columns=loss={metrics[0]}"
        said = f"no metric {wanted}" if wanted else f"the chart holds several metrics: {', '.join(metrics)}"
        raise InputError(said, where, do)
    parts = []
    for name in drawn:
        run, metric = name.rsplit(MEAN, 1)
        if metric == wanted:
            along = _along(frame, axis, run, names, where)
            part = pd.DataFrame({"run": run, **along, "loss": frame[name]})
            parts.append(part[part["loss"].notna()])
    return pd.concat(parts, ignore_index=True)


def _along(frame: pd.DataFrame, axis: str, run: str, names: Mapping[str, str], where: str) -> dict[str, pd.Series]:
    """Where the points of a chart lie: tokens or steps, by its x axis, else by the steps that come with it."""
    if names.get("D") == axis:
        return {"D": frame[axis]}
    if axis in STEP_AXES or names.get("step") == axis:
        return {"step": frame[axis]}
    if f"{run}{MEAN}_step" in frame.columns:
        return {"step": frame[f"{run}{MEAN}_step"]}
    do = f"say what it is: --curve_columns=D={axis} (tokens) or step={axis}"
    raise InputError(f"the x axis of the chart is {axis!r}", where, do)


def _events(path: pathlib.Path, tag: str | None, runs: Collection[str]) -> pd.DataFrame:
    """One scalar of every run below a folder: a folder with event files is a run."""
    try:
        from tensorboard.backend.event_processing import event_accumulator
        from tensorboard.util import tensor_util
    except ImportError:
        raise InputError("event files need TensorBoard", str(path), "pip install tensorboard") from None
    folders = [path] if path.is_file() else sorted({file.parent for file in path.rglob(f"*{EVENTS}*")})
    if not folders:
        raise InputError("no event files in this folder", str(path))
    everything = {event_accumulator.SCALARS: 0, event_accumulator.TENSORS: 0}  # 0: no thinning out
    found = {}
    for folder in folders:
        events = event_accumulator.EventAccumulator(str(folder), everything).Reload()
        scalars = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
        tensors = {  # scalars as TensorFlow 2 writes them
            name: [(e.step, tensor_util.make_ndarray(e.tensor_proto).item()) for e in events.Tensors(name)]
            for name in events.Tags()["tensors"]
            if events.SummaryMetadata(name).plugin_data.plugin_name == "scalars"
        }
        within = () if path.is_file() else folder.relative_to(path).parts
        outer = path.parent.name if path.is_file() else path.name
        found[_known(["/".join(within), *reversed(within), outer], runs)] = {**scalars, **tensors}
    if len(found) < len(folders):
        raise InputError("two folders of events are of one run", str(path), "give a folder that holds one a run")
    tag = _tag(tag, sorted({name for scalars in found.values() for name in scalars}), str(path))
    parts = [
        pd.DataFrame(scalars[tag], columns=["step", "loss"]).assign(run=run)
        for run, scalars in found.items()
        if tag in scalars
    ]
    return pd.concat(parts, ignore_index=True)


def _tag(tag: str | None, tags: list[str], where: str) -> str:
    """The scalar to read."""
    if tag in tags:
        return tag
    if tag is None and len(tags) == 1:
        return tags[0]
    said = f"no scalar {tag}" if tag else f"the events hold {len(tags)} scalars, and none is chosen"
    guess = nearest(tag, tags) if tag else f"tags: {', '.join(tags)}"
    raise InputError(said, where, f"{guess}; --curve_columns=loss=TAG")


def _file_names(stem: str) -> list[str]:
    """What a run may be called whose TensorBoard CSV has this name: "run-NAME-tag-TAG", "NAME"."""
    found = re.fullmatch(r"run[-_](.+?)[-_]tag-.*", stem)
    return [found[1], stem] if found else [stem]


def _known(candidates: list[str], runs: Collection[str]) -> str:
    """The candidate that is a run of the table, also where a file's name holds _ for /; else the first one."""
    candidates = [name for name in candidates if name]
    as_file = {re.sub(r"[^\w.-]", "_", run): run for run in runs}
    for name in candidates:
        if name in runs or name in as_file:
            return name if name in runs else as_file[name]
    return candidates[0]
