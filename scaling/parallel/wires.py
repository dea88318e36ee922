"""Which wires an axis of the mesh has on a topology: how fast it sends, and what a collective takes at least. No JAX.

On a torus a mesh axis that covers whole axes of the slice has the links of all of them, twice where the ring closes
(Austin et al. 2025, "How to Scale Your Model", parts 2 and 3); one that covers a part of an axis has its links one way.
Mesh axes are laid out as jax's mesh_utils does it, in outline: the innermost first, whole axes that match before parts.
Among GPUs an axis within a node has NVLink; one beyond it has the network cards of the node, which the GPUs share that
fetch the same (part 12). Between slices of TPUs lies the data-centre network.
"""

import math

from scaling.parallel.chips import Chip
from scaling.parallel.topology import Topology
from scaling.runs import MESH_AXES, Placement

HOP = 1e-6  # seconds from one chip of a torus to the next (Austin et al. 2025, part 3)
LATENCY = 1e-5  # seconds of a collective within a node of GPUs, and of one between slices: an estimate
# Bandwidth between the two devices of a tpu7x chip, in links of its torus (Google Cloud's page of TPU7x).
DIE_TO_DIE = 6

Wires = tuple[dict[str, float], dict[str, float]]


def wires(placement: Placement, topology: Topology) -> Wires:
    """For each mesh axis, the bytes/s that a device receives along it, and the least seconds of one collective."""
    sizes = {axis: getattr(placement, axis) for axis in reversed(MESH_AXES)}  # the innermost first
    return _of_torus(sizes, topology) if topology.chip.torus_axes else _of_switch(sizes, topology)


def _of_switch(sizes: dict[str, int], topology: Topology) -> Wires:
    chip, node = topology.chip, topology.slice_shape[0]
    rate, least, inner = {}, {}, 1
    for axis, n in sizes.items():
        if n * inner <= node:
            rate[axis], least[axis] = chip.link, LATENCY
        else:
            rate[axis], least[axis] = min(chip.link, chip.network * max(1, node // inner)), 2 * LATENCY
        inner *= n
    return rate, least


def _of_torus(sizes: dict[str, int], topology: Topology) -> Wires:
    chip, across = topology.chip, topology.slices
    left, cores = list(topology.slice_shape), topology.chip.devices_per_chip
    rate, least = {}, {}
    for axis, n in sizes.items():
        outside = math.gcd(across, n) if axis in ("data", "stage") else 1
        across, n = across // outside, n // outside
        if n == 1:  # nothing to send, or between slices alone
            rate[axis], least[axis] = chip.network / chip.devices_per_chip, LATENCY
            continue
        both = cores if n % cores == 0 else 1  # devices of a chip on this axis: they share what either fetches
        speed, hops = _along(n // both, left, topology)
        rate[axis] = min(speed * both, DIE_TO_DIE * chip.link) if speed else DIE_TO_DIE * chip.link
        least[axis] = HOP * max(1, hops)
        cores //= both
    return rate, least


def _along(n: int, left: list[int], topology: Topology) -> tuple[float, int]:
    """Takes n chips from what is left of the axes of a slice. Returns bandwidth and hops."""
    speed, hops = 0.0, 0
    for i in _match(n, left, topology.slice_shape):
        part = math.gcd(n, left[i])
        if part > 1:
            closed = part == topology.slice_shape[i] and part % topology.chip.ring == 0
            speed += _link(topology.chip) * (2 if closed else 1)
            hops += part // 2 if closed else part - 1
            left[i] //= part
            n //= part
    return speed, hops


def _match(n: int, left: list[int], sides: tuple[int, ...]) -> list[int]:
    """The axes of a slice in the order in which a mesh axis of n takes them: whole ones that together are n, or all."""
    free = [i for i, side in enumerate(sides) if left[i] == side > 1]
    for count in range(len(free), 0, -1):
        for start in range(len(free) - count + 1):
            some = free[start : start + count]
            if math.prod(left[i] for i in some) == n:
                return some
    return sorted(range(len(left)), key=lambda i: left[i])


def _link(chip: Chip) -> float:
    """A device's share of one link, one way."""
    return chip.link / chip.devices_per_chip
