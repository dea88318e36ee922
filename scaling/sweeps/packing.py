"""Packed cells: those too small to fill a machine, side by side on parts of its devices. No JAX.

How many devices a cell is given is free, and its time follows from it: the more, the sooner, at worse use of each. Such
tasks are called malleable, and a good packing comes in two steps (Turek, Wolf & Yu 1992, "Approximate algorithms for
scheduling parallelizable tasks"): for a bound on the time of a single cell, give each what it uses best within the
bound; pack the cells of that choice; and take the bound whose packing is the shortest.

Cells of one width (devices a cell) run together, as many at a time as fit, the longest first, each in turn to the
worker that is free first (Graham 1969: at most 4/3 - 1/(3m) times the shortest that m workers can do); then those of
the next width, from the widest on, which leaves the small ones for the end. A worker is a process, and has devices of
its own, which the environment tells it when it starts.
"""

import dataclasses
import heapq
from collections.abc import Hashable, Mapping, Sequence

from scaling.parallel.topology import Topology, parse_topology

DEALT = ("gpu", "tpu")  # platforms of which `visible` can show a process some devices alone
FIRST_PORT = 8476  # libtpu's own; each process of a host needs another
Times = Mapping[int, float]  # seconds of a cell, by the devices that it is given


@dataclasses.dataclass(frozen=True)
class Packing:
    """widths: devices of each cell. seconds: of all cells together. busy: the share of the devices' time that cells
    have, of those that they are given."""

    widths: tuple[int, ...]
    seconds: float
    busy: float


def widths_of(topology: Topology) -> dict[int, Topology]:
    """The equal parts in which one machine's devices can be dealt out, by the devices of a part, itself included.

    A node of GPUs in any; a host of v5e or v6e in single chips. Larger slices are one: their hosts train
    together. The fake devices of a CPU are one, too: they share its cores.
    """
    chip, whole = topology.chip, {topology.devices: topology}
    if chip.platform == "cuda" and topology.slices == 1:
        parts = [n for n in range(1, topology.devices) if topology.devices % n == 0]
        whole |= {n: parse_topology(f"{chip.name}:{n}") for n in parts}
    if chip.torus_axes == 2 and topology.slices == 1 and topology.chips <= 4:
        whole[1] = parse_topology(f"{chip.name}:1x1")
    return whole


def pack(cells: Sequence[Times], programs: Sequence[Hashable], devices: int) -> Packing:
    """The shortest packing of cells on so many devices, of those that a bound on a cell's time gives.

    Each cell's times are by the widths that it may have, one at least, all of which divide `devices`. programs: of each
    cell. Cells of one program get one width, that of the longest: they share what is compiled, and of forked cells the
    checkpoints.
    """
    longest: dict[Hashable, Times] = {}
    for times, program in zip(cells, programs, strict=True):
        longest[program] = max(longest.get(program, times), times, key=lambda each: max(each.values()))
    bounds = {seconds for times in longest.values() for seconds in times.values()}
    choices = [{program: _best_within(times, bound) for program, times in longest.items()} for bound in sorted(bounds)]
    packings = [_packing([widths[program] for program in programs], cells, devices) for widths in choices]
    return min(packings, key=lambda packing: packing.seconds, default=Packing((), 0.0, 1.0))


def _best_within(times: Times, bound: float) -> int:
    """The width that takes the least of the devices' time among those within the bound; the fastest if none is."""
    within = [width for width, seconds in times.items() if seconds <= bound]
    if not within:
        return min(times, key=lambda width: (times[width], width))
    return min(within, key=lambda width: (width * times[width], width))


def _packing(widths: Sequence[int], cells: Sequence[Times], devices: int) -> Packing:
    seconds = [times[width] for width, times in zip(widths, cells, strict=True)]
    return Packing(tuple(widths), *side_by_side(widths, seconds, devices))


def side_by_side(widths: Sequence[int], seconds: Sequence[float], devices: int) -> tuple[float, float]:
    """Of cells that have their widths: the time of all together, in the unit of theirs, and the share of the devices'
    time in it that they use."""
    jobs = list(zip(widths, seconds, strict=True))
    whole = sum(list_schedule([s for w, s in jobs if w == width], devices // width) for width in set(widths))
    used = sum(w * s for w, s in jobs)
    return whole, min(1.0, used / (whole * devices)) if whole else 1.0  # min: sums in another order round otherwise


def list_schedule(seconds: Sequence[float], workers: int) -> float:
    """When the last is done, if each, from the longest on, goes to the worker that is free first."""
    free = [0.0] * workers
    for each in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def groups(devices: int, width: int, workers: int | None = None) -> list[tuple[int, ...]]:
    """The devices of each worker: `width` each, no device twice, and at most so many workers. A width of more than
    there are gives one worker all: its cells then say what they lack."""
    if width > devices:
        return [tuple(range(devices))]
    most = min(devices // width, workers or devices)
    return [tuple(range(k * width, (k + 1) * width)) for k in range(most)]


def visible(platform: str, group: Sequence[int], devices: int, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables by which a process sees a group of the devices that `environment` lets it see; {} for all of them.

    GPUs: CUDA_VISIBLE_DEVICES. TPUs, of which libtpu gives a chip to one process at a time: the chips, that they are a
    mesh of one process, and a port of its own (as jax's own tests of several processes on a host do it; documented for
    Cloud TPU VMs; not run here on a TPU).
    """
    if len(group) == devices:
        return {}
    if platform == "gpu":
        before = environment.get("CUDA_VISIBLE_DEVICES", "")
        names = before.split(",") if before else [str(k) for k in range(devices)]
        return {"CUDA_VISIBLE_DEVICES": ",".join(names[k] for k in group)}
    if platform == "tpu":
        port = str(FIRST_PORT + group[0])
        return {
            "TPU_VISIBLE_CHIPS": ",".join(map(str, group)),
            "TPU_CHIPS_PER_PROCESS_BOUNDS": f"1,{len(group)},1",
            "TPU_PROCESS_BOUNDS": "1,1,1",
            "TPU_PROCESS_ADDRESSES": f"localhost:{port}",
            "TPU_PROCESS_PORT": port,
            "CLOUD_TPU_TASK_ID": "0",
        }
    return {}
