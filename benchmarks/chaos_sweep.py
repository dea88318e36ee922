"""A sweep that two launchers share while both are disturbed: what benchmarks.chaos does with --mode=sweep.

At random instants a launcher is killed, whose workers must be gone soon after; a worker is killed; a worker is paused
until the run that it owns was taken over, and woken up; or a launcher is asked to stop (SIGTERM). What has ended is
started again. At last both are left alone, and must both end well.
"""

import dataclasses
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any

from benchmarks.alike import attempts, outcome_of, outcomes, sweep_differences
from benchmarks.chaos_run import LONGEST, ROOT, Say, environment, make_text
from scaling.training.claims import read_claim

STALE_SECONDS = 2.0
CARE = f"checkpoint_seconds=0.3,stale_seconds={STALE_SECONDS:g}"
GONE_SECONDS = 2.0  # after which no worker of a launcher that was killed may be there
TAKEN_SECONDS = 20.0  # to wait for a takeover while an owner is paused: the other launcher may have a cell to end first
LEARNED_SECONDS = 20.0  # for an owner that was woken up to find out that it is none any more: it asks before each save
BETWEEN = (0.5, 5.0)  # seconds between two disturbances

Paused = list[tuple[pathlib.Path, int]]  # runs, and the attempts at them whose owners were paused and taken over


@dataclasses.dataclass
class Launcher:
    """A launcher, which is started again in the same place."""

    command: list[str]
    log: pathlib.Path
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Starts it, in a session of its own."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def workers(self) -> list[int]:
        """The processes that train for it."""
        return [pid for pid in children(self.process.pid) if "scaling.sweeps.worker" in command_of(pid)]

    def wrong(self, codes: tuple[int, ...] = (0,)) -> list[str]:
        """Waits for its end. Returns what was wrong with it, as a sentence, if anything was."""
        try:
            code = self.process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            return [f"{self.log.stem} had not ended after {LONGEST:g} s"]
        last = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
        return [] if code in codes else [f"{self.log.stem} ended with code {code}: {' '.join(last)}"]


def survive(kills: int, seed: int, workdir: pathlib.Path, say: Say = print) -> dict[str, Any]:
    """Disturbs sweeps so often, and compares each with a twin that one launcher made. Returns what came of it.

    A sweep that ends before is followed by another. differences: sentences; none, if all is well. taken_over: of the
    owners that were paused, how many found on waking up that their run had been; woken: how their attempts ended.
    """
    luck = random.Random(seed)
    source = f"files:{make_text(workdir).path.parents[1] / 'text'}/*.txt"
    twin = workdir / "twin"
    alone = Launcher(sweep_command(twin, source, workers=2), workdir / "twin.log")
    alone.start()
    found = alone.wrong()
    where, woken, sweeps = Counter(), Counter(), []
    kinds = [list(DISTURBANCES)[k % len(DISTURBANCES)] for k in range(kills)]
    luck.shuffle(kinds)
    while kinds and not found:
        directory = workdir / f"sweep{len(sweeps)}"
        sweeps.append(directory)
        command = sweep_command(directory, source, workers=1)
        launchers = [Launcher(command, workdir / f"{directory.name}-launcher{k}.log") for k in range(2)]
        paused: Paused = []
        before = sum(where.values())
        found += disturbed(kinds, luck, launchers, directory, where, paused)
        for launcher in launchers:
            found += launcher.wrong()
        found += sweep_differences(directory, twin)
        woken.update(outcome_of(run, number) for run, number in paused)
        say(f"{directory.name}: {sum(where.values()) - before} disturbances, {'; '.join(found) or 'as its twin'}")
    runs = [run for directory in sweeps for run in (directory / "runs").glob("*")]
    cells = len(list((twin / "runs").glob("*"))) * len(sweeps)
    return {
        "kills": sum(where.values()),
        "where": dict(where.most_common()),
        "sweeps": len(sweeps),
        "cells": cells,
        "taken_over": woken.total(),
        "woken": dict(woken),
        "computed_twice": sum("duplicate" in outcomes(run) for run in runs),
        "attempts": sum(len(attempts(run)) for run in runs),
        "differences": found,
        "results_lost": cells - sum((run / "result.json").exists() for run in runs),
        "recorded_twice": sum(outcomes(run).count("recorded") > 1 for run in runs),
    }


def sweep_command(workdir: pathlib.Path, source: str, workers: int) -> list[str]:
    """The smoke study on the text of a source, by one launcher of so many workers."""
    flags = {
        "config": ROOT / "experiments" / "configs" / "smoke.py",
        "config.data.source": source,
        "workdir": workdir,
        "stores": workdir.parent / "sweep-stores",
        "workers": workers,
        "retries": 100,  # workers are killed more often here than any limit for bad luck allows
        "care": CARE,
    }
    return [sys.executable, "-m", "experiments.sweep", *(f"--{name}={value}" for name, value in flags.items())]


def disturbed(
    kinds: list[str],
    luck: random.Random,
    launchers: list[Launcher],
    directory: pathlib.Path,
    where: Counter[str],
    paused: Paused,
) -> list[str]:
    """Disturbs one sweep, by `kinds` from its end on, until it is done or they are used up. Returns what was wrong.

    where: counts what was done. paused: gets the runs, and the attempts at them, whose owners were paused until others
    had taken over.
    """
    for launcher in launchers:
        launcher.start()
    while kinds:
        time.sleep(luck.uniform(*BETWEEN))
        launcher = luck.choice(launchers)
        if launcher.process.poll() is not None:
            return []  # the sweep is done; how its launchers have ended is looked at by the caller
        wrong = DISTURBANCES[kinds[-1]](launcher, luck, directory, paused)
        if wrong is None:
            continue  # there was nothing to disturb: its worker was not there yet
        where[kinds.pop()] += 1
        if wrong:
            return wrong
        if launcher.process.poll() is not None:
            launcher.start()
    return []


def kill_launcher(launcher: Launcher, luck: random.Random, directory: pathlib.Path, paused: Paused) -> list[str] | None:
    """kill -9 of a launcher alone; its workers, and their own processes, must go with it."""
    theirs = descendants(launcher.process.pid)
    launcher.process.kill()
    launcher.process.wait()
    deadline = time.monotonic() + GONE_SECONDS
    while any(map(is_alive, theirs)):
        if time.monotonic() > deadline:
            left = ", ".join(f"{pid} ({command_of(pid)})" for pid in theirs if is_alive(pid))
            return [f"of a launcher that was killed there is, after {GONE_SECONDS:g} s, still process {left}"]
        time.sleep(0.01)
    return []


def kill_worker(launcher: Launcher, luck: random.Random, directory: pathlib.Path, paused: Paused) -> list[str] | None:
    """kill -9 of a worker."""
    workers = launcher.workers()
    if not workers:
        return None
    os.kill(luck.choice(workers), signal.SIGKILL)
    return []


def pause_owner(launcher: Launcher, luck: random.Random, directory: pathlib.Path, paused: Paused) -> list[str] | None:
    """SIGSTOP of a worker that owns a run, until another has taken it over, or could have; then SIGCONT."""
    owned = {pid: run for pid in launcher.workers() if (run := run_of(pid, directory)) is not None}
    if not owned:
        return None
    pid, run = luck.choice(sorted(owned.items()))
    os.kill(pid, signal.SIGSTOP)
    claim = read_claim(run)
    deadline = time.monotonic() + TAKEN_SECONDS
    while (now := read_claim(run)).owner == claim.owner and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(luck.uniform(0, 2))
    os.kill(pid, signal.SIGCONT)
    if now.owner != claim.owner and claim.process.startswith(f"{pid} "):
        paused.append((run, claim.attempt))
        deadline = time.monotonic() + LEARNED_SECONDS
        while outcome_of(run, claim.attempt) == "killed" and is_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.05)  # it is left alone until it has learned that the run is another's
    return []


def stop_launcher(launcher: Launcher, luck: random.Random, directory: pathlib.Path, paused: Paused) -> list[str] | None:
    """SIGTERM of a launcher, which has its workers save, and ends."""
    theirs = descendants(launcher.process.pid)
    launcher.process.terminate()
    wrong = launcher.wrong(codes=(0, 75, -signal.SIGTERM))  # the last: before it listens, while Python starts
    return wrong or [f"a launcher that was stopped has left process {pid}" for pid in theirs if is_alive(pid)]


DISTURBANCES = {
    "owner paused (SIGSTOP) and woken": pause_owner,
    "launcher killed (SIGKILL)": kill_launcher,
    "worker killed (SIGKILL)": kill_worker,
    "launcher stopped (SIGTERM)": stop_launcher,
}


def run_of(pid: int, workdir: pathlib.Path) -> pathlib.Path | None:
    """The directory of the run that a process of this machine has claimed."""
    for directory in (workdir / "runs").glob("*"):
        claim = read_claim(directory)
        if claim is not None and claim.process.startswith(f"{pid} ") and not claim.released:
            return directory
    return None


def children(pid: int) -> list[int]:
    """The processes that a process has started. Of Linux."""
    try:
        return [
            int(child)
            for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children")
            for child in path.read_text().split()
        ]
    except OSError:
        return []  # it has just ended


def descendants(pid: int) -> list[int]:
    """Its children, and theirs."""
    return [each for child in children(pid) for each in (child, *descendants(child))]


def is_alive(pid: int) -> bool:
    """Whether there is such a process that has not ended; whether it was waited for does not matter."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def command_of(pid: int) -> str:
    """The command line of a process."""
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""
