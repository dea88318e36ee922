"""The proof that a run's step fits on hardware that is not here: its compilation by that hardware's compiler.

    python -m scaling.training.proof < {"run": ..., "placement": ..., "topology": "v5e:16x16"}

A process of its own, started by scaling.sweeps.prove: compilers read the environment when JAX starts, keep memory, and
may end the process. In: one JSON object on standard input. Out: one JSON line, the fields of a `Proof`, {"refused":
{"what", "where", "do"}} for an InputError, or {"failed": reason}; whatever libraries print goes to standard error.
"""

import dataclasses
import json
import os
import resource
import sys
import threading
import time
import traceback
from typing import Any

import jax

from scaling.errors import InputError
from scaling.parallel.absent import EXTRA, absent_devices, collectives_of, compiler_of, memory_of, too_large
from scaling.parallel.chips import GIB
from scaling.parallel.mesh import make_mesh
from scaling.parallel.topology import Topology, parse_topology
from scaling.runs import Placement, Run, run_from_dict
from scaling.specs import from_dict, require, to_dict
from scaling.training.step import lowered_step, make_program


@dataclasses.dataclass(frozen=True)
class Proof:
    """What the compiler says of a step. Memory in GiB a device; times in seconds.

    fits: it compiled, and its peak is within hbm_gib. reason: why not. peak_gib: of a program that was refused, what it
    asks for; None where the compiler gave no number. peak_is: which number that is. collectives: kind -> count and gib,
    in the program text, where a loop's body counts once. rss_gib: the most that the compiling process held.
    """

    topology: str
    placement: dict[str, Any]
    fits: bool
    reason: str
    hbm_gib: float
    peak_gib: float | None
    peak_is: str
    arguments_gib: float | None
    temporary_gib: float | None
    compile_seconds: float
    rss_gib: float
    collectives: dict[str, dict[str, float]]
    jax: str
    compiler: str


def prove(run: Run, placement: Placement, topology: Topology) -> Proof:
    """Compiles the step of a run for a topology. Raises InputError for a placement that cannot be the run's there, and
    if the compiler is not installed; a compiler that fails is a proof that does not fit, with its reason."""
    if placement.devices != topology.devices:
        raise InputError(f"the placement has {placement.devices} devices, {topology.text} has {topology.devices}")
    mesh = make_mesh(placement, absent_devices(topology))
    hbm_gib = topology.device_memory / GIB
    began = time.perf_counter()
    try:
        compiled, refusal = _compiled_step(run, placement, mesh), None
    except jax.errors.JaxRuntimeError as error:
        compiled, refusal = None, error
    except RuntimeError as error:
        require(
            "cuDNN not found" not in str(error), "the attention kernel of GPUs needs cuDNN, and it is not here", EXTRA
        )
        raise
    seconds = time.perf_counter() - began
    facts = _refused(refusal) if compiled is None else _accepted(compiled, topology.chip.platform, hbm_gib)
    return Proof(
        topology=topology.text,
        placement=to_dict(placement),
        hbm_gib=hbm_gib,
        compile_seconds=seconds,
        rss_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        jax=jax.__version__,
        compiler=compiler_of(topology.chip.platform),
        **facts,
    )


def _compiled_step(run: Run, placement: Placement, mesh: jax.sharding.Mesh) -> jax.stages.Compiled:
    program = make_program(run, placement, mesh)
    with jax.set_mesh(mesh):
        return lowered_step(program, run).compile()


def _accepted(compiled: jax.stages.Compiled, platform: str, hbm_gib: float) -> dict[str, Any]:
    """Of a program that compiled: that does not say that it fits, as the compiler for GPUs has no limit."""
    memory = memory_of(compiled, platform)
    fits = memory["peak_gib"] <= hbm_gib
    reason = "" if fits else f"its peak of {memory['peak_gib']:.2f} GiB is above the {hbm_gib:.2f} GiB of a device"
    return {"fits": fits, "reason": reason, "collectives": collectives_of(compiled.as_text()), **memory}


def _refused(error: Exception) -> dict[str, Any]:
    memory = {"peak_gib": too_large(error), "arguments_gib": None, "temporary_gib": None, "peak_is": "asked for"}
    return {"fits": False, "reason": str(error).splitlines()[0][:400], "collectives": {}, **memory}


def _end_with(parent: int) -> None:
    """Ends the process when the one that has asked is gone: a compilation takes GiB and minutes."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """Answers the one question on standard input."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    asked = json.load(sys.stdin)
    try:
        run = run_from_dict(asked["run"])
        placement = from_dict(Placement, asked["placement"], "placement")
        answer = dataclasses.asdict(prove(run, placement, parse_topology(asked["topology"])))
    except InputError as error:
        answer = {"refused": {"what": error.what, "where": error.where, "do": error.do}}
    except Exception as error:
        traceback.print_exc()
        answer = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:400]}
    answers.write(json.dumps(answer, allow_nan=False) + "\n")
    answers.close()


if __name__ == "__main__":
    main()
