"""How far each cell of a sweep is, and what is the matter with it, from the files that its runs write."""

import collections
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd

from scaling.errors import InputError, nearest
from scaling.files import read_json
from scaling.models.counts import flops_per_token, parameters
from scaling.runs import MAIN_SPLIT
from scaling.specs import require
from scaling.sweeps.cells import Cell
from scaling.sweeps.forks import groups, trunk_steps, trunks
from scaling.sweeps.results import cell_status, records
from scaling.sweeps.tasks import read_failure, read_result
from scaling.sweeps.workdir import Sweep, run_directory
from scaling.training.claims import BEAT_SECONDS, Claim, read_claim, seems_alive
from scaling.training.profiling import request_profile

RECENT_LINES = 10  # of timing.jsonl, over which the throughput of a running cell is taken
PROFILED_STEPS = 5
OVER = ("done", "failed")
QUIET_BEATS = 4  # heartbeats missed before it is worth a line
HOUR = 3600.0
# A running cell is slow if its FLOP/s a device are under half the median of at least two others that ought to be as
# fast: on as many devices of the same kind, with an N within a factor of two.
SLOW, PEERS, NEAR = 0.5, 2, 2.0
NAN = float("nan")


def status_rows(workdir: pathlib.Path, sweep: Sweep) -> pd.DataFrame:
    """A table of `status_row`, a row a cell."""
    expected = expected_steps(workdir, sweep)
    return pd.DataFrame([status_row(workdir, cell, expected.get(cell.id, 0)) for cell in sweep.cells])


def expected_steps(workdir: pathlib.Path, sweep: Sweep) -> dict[str, int]:
    """How many steps of each fork its trunk will take for it: of a trunk that is not over."""
    found = groups(sweep.config, sweep.cells)
    steps, trunk_of = trunk_steps(found), trunks(found)
    over = {group.trunk.id for group in found if cell_status(run_directory(workdir, group.trunk.id))[0] in OVER}
    return {name: steps[name] for name, trunk in trunk_of.items() if steps[name] and trunk not in over}


def status_row(workdir: pathlib.Path, cell: Cell, expected: int = 0) -> dict[str, Any]:
    """How far a cell is: run, role, variant, budget, N, C, status, progress (0 to 1), latest held-out loss,
    tokens_per_second, flops_per_second, seconds_left (an estimate, of a running cell), seconds spent, reason, kind of
    its failure, first, the share of its steps that a trunk takes for it, and those of `_whereabouts`. NaN: not known
    yet. expected: so many steps, before anything of the cell is on record.

    Throughput is that of training alone: of a running cell over its latest steps, of another over all it did.
    """
    run, directory = cell.run, run_directory(workdir, cell.id)
    status, reason = cell_status(directory)
    metrics = records(directory, "metrics.jsonl")
    timings = records(directory, "timing.jsonl")
    if not (timings and not timings[0]["seconds"]):  # the first line of a fork is of the steps of its trunk
        timings = [{"step": 0, "seconds": {}}, *timings]
    losses = [line["eval"][MAIN_SPLIT]["loss"] for line in metrics if "eval" in line]
    done = max((line["step"] for line in metrics), default=0)
    running = status == "running"
    train, whole = _seconds_per_step(timings[-RECENT_LINES:][0] if running else timings[0], timings[-1])
    return {
        "run": cell.id,
        "role": cell.role,
        "variant": cell.variant,
        "budget": NAN if cell.budget is None else cell.budget,
        "N": parameters(run.model).N,
        "C": cell.flops,
        "status": status,
        "progress": done / run.steps,
        "first": (timings[0]["step"] if done else expected) / run.steps,
        "loss": losses[-1] if losses else NAN,
        "tokens_per_second": run.batch_tokens / train,
        "flops_per_second": flops_per_token(run.model, run.data.sequence_length) * run.batch_tokens / train,
        "seconds_left": (run.steps - done) * whole if running else NAN,
        "seconds": sum(timings[-1]["seconds"].values()),
        "reason": reason,
        "kind": _kind(directory) if status == "failed" else "",
        **_whereabouts(directory, status),
    }


def _kind(directory: pathlib.Path) -> str:
    try:
        failure = read_failure(directory)
    except InputError:  # which is the reason, and told as that
        failure = None
    return "unreadable" if failure is None else failure.kind


def _whereabouts(directory: pathlib.Path, status: str) -> dict[str, Any]:
    """Of a cell: host, of the process that has it or had it last; quiet, seconds since its last sign of life by the
    clocks of hosts (NaN: it has ended, or let go); device_kind and devices; began and ended, by the clock ("" and NaN:
    not known); faults, the kinds of all failures, killed being an attempt that was not ended in an orderly way.
    """
    try:
        claim = read_claim(directory)
    except InputError:  # a claim that cannot be read is the reason that the cell failed
        claim = None
    attempts = _attempts(directory)
    last = attempts[-1] if attempts else {}
    result = (read_result(directory) or {}) if status == "done" else {}
    timing = result.get("timing", {})
    at_work = claim is not None and not claim.released and seems_alive(claim, float("inf"))
    return {
        "host": claim.host if claim is not None else "",
        "quiet": max(0.0, time.time() - claim.time) if at_work and status != "done" else NAN,
        "device_kind": timing.get("device_kind") or last.get("device_kind") or "",
        "devices": timing.get("devices") or last.get("devices") or NAN,
        "began": min((attempt["time"] for attempt in attempts if "time" in attempt), default=NAN),
        "ended": (directory / "result.json").stat().st_mtime if result else NAN,
        "faults": tuple(filter(None, (_fault(attempt, claim, at_work) for attempt in attempts))),
    }


def _attempts(directory: pathlib.Path) -> list[dict[str, Any]]:
    """What the attempts at a run have left in attempt.json, in their order."""
    found = [read_json(path) for path in directory.glob("attempts/*/attempt.json")]
    told = [values for values in found if isinstance(values, dict) and isinstance(values.get("attempt"), int)]
    return sorted(told, key=lambda values: values["attempt"])


def _fault(attempt: dict[str, Any], claim: Claim | None, at_work: bool) -> str:
    """The kind of an attempt's failure, "" if it did not fail."""
    if "trunk" in attempt:  # of which nothing is lost: the trunk does it again
        return ""
    if attempt.get("outcome") == "failed":
        return str(attempt.get("kind"))
    under_way = at_work and claim is not None and claim.attempt == attempt["attempt"]
    return "killed" if attempt.get("outcome") is None and not under_way else ""


def _seconds_per_step(first: dict[str, Any], last: dict[str, Any]) -> tuple[float, float]:
    """Between two lines of timing.jsonl: of training alone, and with evaluating and saving. NaN if of one step."""
    spent = {what: last["seconds"].get(what, 0.0) - first["seconds"].get(what, 0.0) for what in last["seconds"]}
    steps = last["step"] - first["step"]
    train = spent.get("train", 0.0)
    if not steps or not train:
        return NAN, NAN
    return train / steps, (train + spent.get("evaluate", 0.0) + spent.get("save", 0.0)) / steps


def notes(table: pd.DataFrame) -> list[str]:
    """What a reader of the status has to know besides, in lines: throughput, who is at work, failures, and which cells
    are slow or give no sign of life."""
    running = table[table["status"] == "running"]
    lines = [_throughput(table, running)] if len(running) else []
    faults = collections.Counter(kind for faults in table["faults"] for kind in faults)
    given_up = collections.Counter(table.loc[table["status"] == "failed", "kind"])
    if faults or given_up:
        told = [f"failed attempts so far: {_counted(faults)}"] if faults else []
        told += [f"failed now: {_counted(given_up)}"] if given_up else []
        lines.append("; ".join(told))
    begun = int(((table["status"] == "missing") & (table["progress"] > 0)).sum())
    if begun:
        lines.append(
            f"begun: {begun} of {int((table['status'] == 'missing').sum())} missing go on from their checkpoints"
        )
    waiting = int(((table["status"] == "missing") & (table["progress"] == 0) & (table["first"] > 0)).sum())
    if waiting:
        lines.append(f"forks: {waiting} of {int((table['status'] == 'missing').sum())} missing wait for their trunks")
    for row in table.itertuples():
        if row.quiet > QUIET_BEATS * BEAT_SECONDS:
            lines.append(f"quiet: {row.run}: no sign of life for {duration(row.quiet)} on {row.host}")
    return lines + [line for index in running.index if (line := _slow(table, index))]


def _counted(kinds: collections.Counter[str]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())


def _throughput(table: pd.DataFrame, running: pd.DataFrame) -> str:
    """FLOP/s of what runs, cells an hour, and on which hosts."""
    now = time.time()
    since = max(now - HOUR, table["began"].min())
    rate = (table["ended"] >= since).sum() / (now - since) * HOUR if since < now else NAN
    hosts = ", ".join(f"{host} ({count})" for host, count in running["host"].value_counts().items())
    words = [f"at work on {hosts}"]
    words += [f"{running['flops_per_second'].sum():.3g} FLOP/s"] if running["flops_per_second"].notna().any() else []
    words += [f"{rate:.3g} cells an hour"] if rate > 0 else []
    return ", ".join(words)


def _slow(table: pd.DataFrame, index: int) -> str:
    """What to say of a running cell that is slower than its peers, "" of another."""
    each = table["flops_per_second"] / table["devices"]
    cell, near = table.loc[index], table["N"] / table.loc[index, "N"]
    alike = (table["device_kind"] == cell["device_kind"]) & (table["devices"] == cell["devices"])
    peers = each[alike & near.between(1 / NEAR, NEAR) & (table.index != index) & each.notna()]
    if len(peers) < PEERS or not each[index] < SLOW * peers.median():
        return ""
    return (
        f"slow: {cell['run']}: {each[index]:.3g} FLOP/s a device on {cell['host']}; the median of {len(peers)} cells "
        f"like it is {peers.median():.3g}"
    )


def time_left(table: pd.DataFrame) -> str:
    """An estimate in words: the FLOPs left, at the rate of those done, by as many cells at a time as run now; and no
    less than the longest of these needs."""
    at_work = table[table["status"].isin(["running", "missing"])]
    running = table[table["status"] == "running"]
    left = (at_work["C"] * (1 - at_work[["progress", "first"]].max(axis=1))).sum()
    spent = (table["C"] * (table["progress"] - table["first"]).clip(lower=0)).sum()
    if not left:
        return "nothing left to run"
    if not len(running):
        return "nothing is running: experiments.sweep goes on"
    if not spent:
        return "no estimate of the time left yet"
    seconds = left / (spent / table["seconds"].sum()) / len(running)
    return (
        f"about {duration(max(seconds, running['seconds_left'].fillna(0).max()))} left (estimated from the rate so far)"
    )


def duration(seconds: float) -> str:
    """Seconds as a reader says them: 45 s, 15 min, 3.2 h, 4.1 days; "" of NaN."""
    if seconds != seconds:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36 * 3600 else f"{seconds / 86400:.1f} days"


def status_text(table: pd.DataFrame) -> str:
    """Rows of `status_row` as a table to read, and a line for each that failed, with its reason."""
    number = {
        "budget": "{:.3g}",
        "N": "{:,.0f}",
        "progress": "{:.0%}",
        "loss": "{:.4f}",
        "tokens_per_second": "{:,.0f}",
    }
    shown = table.assign(left=table["seconds_left"].map(duration))
    shown = shown.assign(**{name: shown[name].map(form.format).replace("nan", "") for name, form in number.items()})
    columns = ["run", "role", "variant", "budget", "N", "status", "progress", "loss", "tokens_per_second", "left"]
    told = [name for name in columns if name not in ("variant", "budget") or (shown[name] != "").any()]
    lines = [shown[told].rename(columns={"tokens_per_second": "tokens/s"}).to_string(index=False)]
    lines += [f"{row.status}: {row.run}: {row.reason}" for row in table.itertuples() if row.reason]
    return "\n".join(lines)


def ask_profile(workdir: pathlib.Path, cells: Sequence[Cell], asked: str) -> pathlib.Path:
    """Asks a running cell, RUN or RUN:STEPS, for a profile of some steps. Returns where the trace will be.

    Raises InputError for one that does not run, with the nearest that does, and for no number of steps.
    """
    name, colon, steps = asked.partition(":")
    running = [cell.id for cell in cells if cell_status(run_directory(workdir, cell.id))[0] == "running"]
    require(bool(running), f"--profile={asked}: nothing is running")
    require(name in running, f"--profile={asked}: {name!r} is not running", nearest(name, running))
    require(not colon or (steps.isdecimal() and int(steps) > 0), f"--profile={asked}", "RUN:STEPS, as in RUN:5")
    directory = run_directory(workdir, name)
    request_profile(directory, int(steps) if colon else PROFILED_STEPS)
    return directory / "profile"
