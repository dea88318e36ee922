"""Which of a run's placements the compiler accepts: a process for each compilation, the fastest candidate first.

The planner's estimate only orders the candidates; the compiler of the hardware decides (scaling.training.proof). Its
process gets the environment that compilers for absent hardware need, and may end in any way: that is a reason, and the
next candidate's turn.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from scaling.errors import InputError
from scaling.parallel.placements import Candidate
from scaling.parallel.topology import Topology
from scaling.runs import Placement, Run, run_to_dict
from scaling.specs import to_dict

COMMAND = [sys.executable, "-m", "scaling.training.proof"]
MOST_TRIES = 6
MOST_SECONDS = 900.0  # a compiler that takes longer is taken to hang

Prove = Callable[[Run, Placement, Topology], dict[str, Any]]
Report = Callable[[str], None]
TRIED = ("placement", "fits", "reason", "peak_gib", "compile_seconds")  # what is kept of every try, with its estimate


def prove(run: Run, placement: Placement, topology: Topology) -> dict[str, Any]:
    """The fields of a scaling.training.proof.Proof, from a process of its own; where that gave no answer, the reason,
    and no numbers. Raises InputError as that does."""
    question = {"run": run_to_dict(run), "placement": to_dict(placement), "topology": topology.text}
    try:
        done = subprocess.run(
            COMMAND,
            input=json.dumps(question),
            capture_output=True,
            text=True,
            env=environment(topology),
            timeout=MOST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _unproved(placement, f"the compiler did not end in {MOST_SECONDS:.0f} s")
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
        return _unproved(placement, f"the compiling process ended with {how}: {said[-1][:400]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "refused" in answer:
        raise InputError(**answer["refused"])
    return _unproved(placement, answer["failed"]) if "failed" in answer else answer


def environment(topology: Topology) -> dict[str, str]:
    """Variables for a process that compiles for absent hardware and leaves alone the accelerators that are here.

    TPU_SKIP_MDS_QUERY: libtpu asks no metadata server, which machines outside the cloud have not.
    ALLOW_MULTIPLE_LIBTPU_LOAD: several compile side by side. JAX_NUM_CPU_DEVICES: the fake devices of a cpu topology.
    """
    fake = {"JAX_NUM_CPU_DEVICES": str(topology.devices)} if topology.chip.platform == "cpu" else {}
    needed = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    return {**os.environ, **needed, **fake}


def first_that_fits(
    run: Run, candidates: Sequence[Candidate], topology: Topology, report: Report, prove: Prove = prove
) -> tuple[Candidate | None, dict[str, Any]]:
    """The first candidate that compiles and fits, with its proof, whose "tried" are all tries; None if none of
    `MOST_TRIES` does, with the last proof. Raises InputError as `prove`."""
    left, tried = list(candidates), []
    candidate, proof = None, {}
    while left and len(tried) < MOST_TRIES:
        candidate = left.pop(0)
        proof = prove(run, candidate.placement, topology)
        tried.append({**{name: proof[name] for name in TRIED}, "memory_gib_est": candidate.memory.gib})
        report(outcome(proof, candidate))
        if proof["fits"]:
            return candidate, {**proof, "tried": tried}
        left = next_candidates(left, candidate, proof)
    return None, {**proof, "tried": tried}


def next_candidates(left: Sequence[Candidate], failed: Candidate, proof: dict[str, Any]) -> list[Candidate]:
    """What is left to try after a failure, in order. Where memory was the reason, only what is estimated smaller, and
    first what would fit if its estimate were off by as much as that of the one that failed."""
    if proof["peak_gib"] is None:
        return list(left)
    miss = max(1.0, proof["peak_gib"] / failed.memory.gib)
    smaller = [candidate for candidate in left if candidate.memory.total < failed.memory.total]
    # Stable: what would fit, fastest first, and then the others.
    return sorted(smaller, key=lambda candidate: candidate.memory.gib * miss > proof["hbm_gib"])


def outcome(proof: dict[str, Any], candidate: Candidate) -> str:
    """A try in words."""
    if proof["peak_gib"] is None:
        return proof["reason"]
    verdict = "fits" if proof["fits"] else "does not fit"
    return (
        f"{verdict}: {proof['peak_gib']:.2f} of {proof['hbm_gib']:.2f} GiB (estimated {candidate.memory.gib:.2f}), "
        f"compiled in {proof['compile_seconds']:.0f} s"
    )


def prove_all(jobs: Sequence[Callable[[], Any]], provers: int) -> list[Any]:
    """The jobs' results in order, so many at a time. The first InputError ends it."""
    with ThreadPoolExecutor(provers) as pool:
        waiting = [pool.submit(job) for job in jobs]
        try:
            return [job.result() for job in waiting]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _unproved(placement: Placement, reason: str) -> dict[str, Any]:
    return {
        "placement": to_dict(placement),
        "fits": False,
        "reason": reason,
        "peak_gib": None,
        "compile_seconds": None,
    }
