"""Which placements a run may have on a topology, and which of those that fit in memory is the fastest. No JAX.

All meshes that use every device are tried, within limits that keep a plan of hundreds of cells to seconds: `tensor` up
to 16 and within a node of GPUs; `context` for sequences of 8,192 tokens and more, or where a batch has too few
sequences to deal out; `expert` with experts; `stage` across nodes of GPUs, or where nothing else fits. Between slices
of TPUs only `data` (and then `stage`) goes. Each mesh comes with every ZeRO stage, microbatch (halves of halves) and
remat policy, but `offload`, whose cost depends on the host.

Memory and time are estimates (scaling.parallel.memory, scaling.parallel.roofline); what is chosen leaves MARGIN free.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

from scaling.errors import InputError
from scaling.parallel.chips import GIB
from scaling.parallel.memory import MemoryEstimate, estimate_memory
from scaling.parallel.roofline import StepEstimate, estimate_step
from scaling.parallel.topology import Topology, of_the_same_chips
from scaling.runs import Placement, Run

MARGIN = 0.1  # of a device's memory, left to what the estimate misses
LONG = 8192  # tokens from which a sequence may be cut over `context`
REMAT = ("none", "dots", "named", "full")  # from the fastest to the smallest


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A placement with what is estimated for it."""

    placement: Placement
    memory: MemoryEstimate
    step: StepEstimate


def choose(run: Run, topology: Topology) -> list[Candidate]:
    """The placements whose estimated memory fits, the fastest first. Raises InputError where none does, with the least
    topology of the same chips that would hold the run, or because the batch cannot be dealt over so many devices."""
    return list(_choose(_essentials(run), topology))


def candidates(run: Run, topology: Topology) -> list[Placement]:
    """All placements of the run on the topology, whether or not they fit in memory."""
    return [p for mesh in _meshes(run, topology, stages=True) for family in _families(run, mesh) for p in family]


def _essentials(run: Run) -> Run:
    """The run with all at its simplest that neither memory nor time depends on, so that one answer serves many runs."""
    data = dataclasses.replace(run.data, store="", eval_windows=2, seed=0, mixture=(), validation=())
    schedule = dataclasses.replace(run.schedule, kind="cosine", warmup_steps=0, decay_steps=0)
    optimizer = dataclasses.replace(run.optimizer, peak_lr=1.0)
    return Run(run.model, data, run.batch_size, 1, optimizer, schedule, run.precision)


@functools.lru_cache(maxsize=4096)
def _choose(run: Run, topology: Topology) -> tuple[Candidate, ...]:
    found = _fitting(run, topology)
    if not found:
        raise _nothing_fits(run, topology)
    return tuple(sorted(found, key=lambda candidate: (candidate.step.seconds, candidate.memory.total)))


def _fitting(run: Run, topology: Topology) -> list[Candidate]:
    """Pipelines only where they are cheap to send to, or nothing else fits: each costs a bubble."""
    across_nodes = topology.chip.platform == "cuda" and topology.slices > 1
    for stages in (True,) if across_nodes else (False, True):
        found = [
            Candidate(p, memory, estimate_step(run, p, topology))
            for mesh in _meshes(run, topology, stages)
            for family in _families(run, mesh)
            for p, memory in _largest_that_fit(run, family, topology)
        ]
        if found:
            return found
    return []


def _largest_that_fit(
    run: Run, family: list[Placement], topology: Topology
) -> Iterator[tuple[Placement, MemoryEstimate]]:
    """Of placements that differ in their microbatch, the two largest that fit: smaller ones are only slower."""
    left = 2
    for p in family:
        memory = estimate_memory(run, p, topology)
        if memory.total <= (1 - MARGIN) * topology.device_memory:
            yield p, memory
            left -= 1
        if left == 0:
            return


def _families(run: Run, mesh: dict[str, int]) -> Iterator[list[Placement]]:
    """For each ZeRO stage and remat policy of a mesh, its placements from the largest microbatch on."""
    shards = mesh["data"] * mesh["fsdp"] * mesh["expert"]
    microbatches = [run.batch_size]
    while microbatches[-1] % (2 * shards) == 0:
        microbatches.append(microbatches[-1] // 2)
    if mesh["stage"] > 1:  # a pipeline with fewer microbatches than stages is mostly idle
        microbatches = [size for size in microbatches if run.batch_size // size >= mesh["stage"]]
    for zero in (1, 2, 3) if mesh["fsdp"] > 1 else (3,):
        for remat in REMAT:
            yield [_placement(zero, None if size == run.batch_size else size, remat, **mesh) for size in microbatches]


@functools.lru_cache(maxsize=2**16)
def _placement(zero: int, microbatch: int | None, remat: str, **mesh: int) -> Placement:
    """Placements recur from run to run, and checking the fields of one takes longer than estimating its memory."""
    return Placement(**mesh, zero=zero, microbatch=microbatch, remat=remat)


def _meshes(run: Run, topology: Topology, stages: bool) -> Iterator[dict[str, int]]:
    """Mesh sizes whose product is the number of devices and that divide the run."""
    shape, devices = run.model, topology.devices
    together = topology.slice_shape[0] if topology.chip.platform == "cuda" else 16
    apart = run.data.sequence_length >= LONG or run.batch_size < devices
    sizes = itertools.product(
        _powers(min(16, together)),
        _powers(min(16, shape.n_layers)) if stages else [1],
        _divisors(shape.n_experts) if shape.n_experts else [1],
        _powers(16) if apart else [1],
    )
    for tensor, stage, expert, context in sizes:
        rest, left_over = divmod(devices, tensor * stage * expert * context)
        for fsdp in _divisors(rest) if not left_over else []:
            mesh = {"tensor": tensor, "stage": stage, "expert": expert, "context": context}
            mesh |= {"fsdp": fsdp, "data": rest // fsdp}
            if _divides(mesh, run) and mesh["data"] * stage % topology.data_slices == 0:
                yield mesh


def _divides(mesh: dict[str, int], run: Run) -> bool:
    """Whether `Placement.check` would pass, without the search for what would instead."""
    shape, length, tensor, context = run.model, run.data.sequence_length, mesh["tensor"], mesh["context"]
    return not (
        run.batch_size % (mesh["data"] * mesh["fsdp"] * mesh["expert"])
        or shape.d_model % mesh["fsdp"]
        or shape.kv_heads % tensor
        or shape.d_ff % tensor
        or shape.vocab_size % (tensor * mesh["stage"])
        or shape.n_layers % mesh["stage"]
        or length % (tensor * context)
        or (context > 1 and length % (2 * context))
    )


def _powers(most: int) -> list[int]:
    return [2**k for k in range(max(1, most).bit_length())]


@functools.lru_cache
def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _nothing_fits(run: Run, topology: Topology) -> InputError:
    """Why, and the least topology that would do."""
    where = f"a model of width {run.model.d_model} and {run.model.n_layers} layers on {topology.text}"
    smallest = _smallest(run, topology)
    if smallest is None:
        return InputError(
            f"no mesh deals batch_size={run.batch_size} over {topology.devices} devices",
            where,
            f"a batch that is a multiple of {topology.devices}, or fewer chips",
        )
    needed, has = smallest.total / (1 - MARGIN) / GIB, topology.device_memory / GIB
    larger = (other for other in of_the_same_chips(topology) if other.chips > topology.chips)
    holds = next((other for other in larger if _fitting(run, other)), None)
    do = "no slice of these chips would: fewer sequences a step, shorter ones, or other chips"
    return InputError(
        f"fits nowhere: the smallest placement needs an estimated {needed:.1f} GiB a device, which has {has:.1f}",
        where,
        do if holds is None else f"the least that would hold it is {holds.text}, {holds.chips} chips",
    )


def _smallest(run: Run, topology: Topology) -> MemoryEstimate | None:
    estimates = (estimate_memory(run, p, topology) for p in candidates(run, topology))
    return min(estimates, key=lambda memory: memory.total, default=None)
