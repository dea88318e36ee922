"""What was done to runs, sweeps, checkpoints, inputs and hosts, and what was lost by it: the table of the README.

    python -m benchmarks.robustness                             prints the table from benchmarks/robustness.json
    python -m benchmarks.robustness --out=F [--rows=run,sweep]  measures the rows that are not in F, and prints those

    run         a small training, killed at 60 instants: benchmarks.chaos
    sweep       two launchers of one sweep, disturbed 24 times: benchmarks.chaos --mode=sweep
    checkpoint  every file of a checkpoint, damaged in many ways: benchmarks.corruptions
    inputs      files that anyone may have written, spoiled: benchmarks.hostile
    hosts       nodes of SLURM and of Ray on this machine, killed while they train: the slow tests of tests/engines

A row is kept with the machine, the versions and the date that it was measured on. Results lost, and cells recorded
twice, are counted over all rows that have any; a run that ended, but not as its undisturbed twin, is counted as lost.
On 2 cores that others use too, run takes 6 minutes, sweep 10, checkpoint and inputs 3 together.
"""

import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from benchmarks import asked_rows, chaos_run, chaos_sweep, corruptions, hostile, kept_rows

KEPT = pathlib.Path(__file__).with_name("robustness.json")
ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("jax", "orbax-checkpoint", "tensorstore", "numpy")
KILLS, DISTURBANCES = 60, 24
PLACES = 16  # of flipped bytes in a file
EXAMPLES = 1000  # of each file that is read
VARIABLE = "ROBUSTNESS_ROWS"  # names the file to which tests of engines append a line for each host that was lost

Row = dict[str, Any]


def runs_killed(folder: pathlib.Path) -> Row:
    """kill -9 of one training, again and again."""
    return chaos_run.survive(KILLS, 0, folder)


def sweeps_disturbed(folder: pathlib.Path) -> Row:
    """Two launchers and their workers: killed, paused, stopped."""
    return chaos_sweep.survive(DISTURBANCES, 0, folder)


def checkpoints_damaged(folder: pathlib.Path) -> Row:
    """tried, detected, harmless, wrong."""
    directory, work = folder / "checkpoints", folder / "work"
    saved = corruptions.save_two(directory)
    newest, older = (directory / f"{step}-1" for step in sorted(saved, reverse=True))
    damages = list(corruptions.corruptions(newest, older, PLACES))
    found = Counter(corruptions.outcome(damage, saved, directory, work) for damage in damages)
    return {"tried": len(damages), **{name: found[name] for name in ("detected", "harmless", "wrong")}}


def inputs_spoiled(folder: pathlib.Path) -> Row:
    """tried, read, refused, broken, and the readers."""
    found = hostile.tally(EXAMPLES)
    counts = sum(found.values(), Counter())
    return {
        "tried": counts.total(),
        **{name: counts[name] for name in ("read", "refused", "broken")},
        "files": [*found],
    }


def hosts_lost(folder: pathlib.Path) -> Row:
    """How many of each engine, and what the tests that lost them counted. Engines that are not here are named."""
    rows = folder / "rows.jsonl"
    rows.touch()
    command = [sys.executable, "-m", "pytest", "-m", "slow", "-rs", "-q", "tests/engines"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, VARIABLE: str(rows)}, capture_output=True, text=True)
    print(done.stdout[-2000:], flush=True)
    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    return {
        "lost": dict(Counter(line["engine"] for line in lines)),
        "skipped": [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")],
        "failed_tests": done.returncode,
        "results_lost": sum(line["results_lost"] for line in lines),
        "recorded_twice": sum(line["recorded_twice"] for line in lines),
    }


ROWS: dict[str, Callable[[pathlib.Path], Row]] = {
    "run": runs_killed,
    "sweep": sweeps_disturbed,
    "checkpoint": checkpoints_damaged,
    "inputs": inputs_spoiled,
    "hosts": hosts_lost,
}


def measure(name: str) -> Row:
    """A row, with where and when it was measured."""
    with tempfile.TemporaryDirectory(prefix="robustness-") as folder:
        row = ROWS[name](pathlib.Path(folder))
    versions = {package: version(package) for package in PACKAGES}
    return {
        **row,
        "machine": f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {"python": platform.python_version(), **versions},
        "date": datetime.date.today().isoformat(),
    }


def table(rows: dict[str, Row]) -> list[str]:
    """The README's table, of the rows that there are."""
    lines = ["| what was done | how often | what came of it |", "| --- | --- | --- |"]
    if row := rows.get("run"):
        said = f"{_as_twin(row)}; {_told(row['where'])}"
        lines.append(_line("kill -9 of one training, at random instants and aimed", row["kills"], said))
    if row := rows.get("sweep"):
        paused = {name: count for name, count in row["where"].items() if "paused" in name}
        others = {name: count for name, count in row["where"].items() if name not in paused}
        lines.append(_line(f"two launchers of one sweep: {_told(others)}", sum(others.values()), _as_twin(row)))
        ended = _told(row["woken"]) or "none"
        said = f"{row['taken_over']} were taken over meanwhile; how their attempts ended: {ended}"
        lines.append(_line("owners of a run paused and woken", sum(paused.values()), said))
    if row := rows.get("checkpoint"):
        said = f"{row['detected']:,} detected, {row['harmless']:,} harmless, {row['wrong']} silently wrong"
        lines.append(_line("corruptions of a checkpoint", row["tried"], said))
    if row := rows.get("inputs"):
        said = f"{row['refused']:,} refused with the file named, {row['read']:,} read, {row['broken']} anything else"
        lines.append(_line(f"bad inputs, of {len(row['files'])} kinds of files", row["tried"], said))
    if row := rows.get("hosts"):
        skipped = f"; not run: {'; '.join(row['skipped'])}" if row["skipped"] else ""
        said = f"the table of the local launcher, to the bit{skipped}" if not row["failed_tests"] else "TESTS FAILED"
        lines.append(_line(f"hosts lost: {_told(row['lost']) or 'none'}", sum(row["lost"].values()), said))
    counted = [row for row in rows.values() if "results_lost" in row]
    lines.append(_line("results lost", "", sum(row["results_lost"] or bool(row.get("differences")) for row in counted)))
    lines.append(_line("cells recorded twice", "", sum(row["recorded_twice"] for row in counted)))
    if row := rows.get("run"):
        rest = row["lost_seconds"] - row["start_seconds"] - row["again_seconds"]
        said = (
            f"{row['lost_seconds']:.1f} s: imports {row['start_seconds']:.1f}, steps done again "
            f"{row['again_seconds']:.1f}, restoring, compiling and the rest {rest:.1f}"
        )
        lines.append(_line(f"time lost per kill, saving every {chaos_run.CHECKPOINT_SECONDS:g} s", "", said))
    return lines


def _line(what: str, count: Any, said: Any) -> str:
    return f"| {what} | {count:,} | {said} |" if isinstance(count, int) else f"| {what} | {count} | {said} |"


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _as_twin(row: Row) -> str:
    return "; ".join(row["differences"]) or "ended as if left alone, to the bit"


def main() -> None:
    """Measures the rows that are not in the file that is given, and prints the table of all that were asked for."""
    names, path = asked_rows(__doc__, ROWS)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if path is None:
        names = [name for name in names if name in json.loads(KEPT.read_text(encoding="utf-8"))]
    rows = dict(kept_rows(path or KEPT, names, measure))
    print(*table(rows), sep="\n")
    for name, row in rows.items():
        versions = ", ".join(f"{package} {number}" for package, number in row["versions"].items())
        print(f"{name}: {row['date']}, {row['machine']}, {versions}")


if __name__ == "__main__":
    main()
