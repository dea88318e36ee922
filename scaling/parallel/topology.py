"""Topologies: which chips, in which shape, how many slices. Text such as "v5e:16x16" or "4xv5e:16x16", checked. No JAX.

    v4, v5p, tpu7x:XxYxZ    v5e, v6e:XxY    h100, h200:N (8 a node)    cpu:N    and Nx before a TPU for N slices

What exists: Google Cloud's pages of each TPU. Up to 16 x 16 in two dimensions; in three, sides in ascending order that
are 2 or a multiple of 4, and 2x2x1. Slices are joined by the data-centre network, nodes of GPUs by InfiniBand.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

from scaling.errors import InputError, nearest
from scaling.parallel.chips import CHIPS, Chip
from scaling.specs import require

FORMS = "v5e:16x16, v6e:4x4, v4:2x2x4, v5p:4x4x4, tpu7x:2x2x1, 4xv5e:16x16 for four slices, h100:8, h200:64, cpu:8"
_SLICES_2D = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_OTHER_NAMES = {
    "v5litepod": "v5e",
    "v5lite": "v5e",
    "trillium": "v6e",
    "ironwood": "tpu7x",
    "v7x": "tpu7x",
    "v5": "v5p",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """chips of one kind: `slices` of the shape `slice_shape`; of GPUs a slice is a node, unless there is but one.

    text: how a user writes it, in its one form.
    """

    chip: Chip
    slice_shape: tuple[int, ...]
    slices: int
    text: str

    @property
    def chips(self) -> int:
        return self.slices * math.prod(self.slice_shape)

    @property
    def devices(self) -> int:
        """JAX devices: what a placement counts."""
        return self.chips * self.chip.devices_per_chip

    @property
    def devices_per_slice(self) -> int:
        return self.devices // self.slices

    @property
    def device_memory(self) -> float:
        """Bytes a device."""
        return self.chip.device_memory

    @property
    def data_slices(self) -> int:
        """Slices that only the axis `data` (or `stage`) may span: those of TPUs. Nodes of GPUs any axis may."""
        return self.slices if self.chip.platform == "tpu" else 1

    @property
    def compiler_name(self) -> str:
        """What jax.experimental.topologies calls it: a TPU slice "v5e:16x16", GPUs "slices x hosts x GPUs a host"."""
        if self.chip.platform == "cuda":
            return f"1x{self.slices}x{self.slice_shape[0]}"
        return f"{self.chip.name}:{_times(self.slice_shape)}"


def parse_topology(text: str) -> Topology:
    """Reads a topology. Raises InputError naming the valid forms, or the nearest, for one that does not exist."""
    where = f"topology {text!r}"
    match = re.fullmatch(r"(?:(\d+)x(?=[a-z]))?([a-z]\w*?)[:\-](\d+(?:x\d+)*)", text.strip().lower())
    require(match is not None, "cannot be read", f"valid forms: {FORMS}", where)
    slices, name, shape = int(match[1] or 1), match[2], tuple(map(int, match[3].split("x")))
    known = _OTHER_NAMES.get(name, name)
    require(known in CHIPS, f"unknown chip {name!r}", nearest(name, CHIPS), where)
    chip = CHIPS[known]
    require(slices >= 1 and min(shape) >= 1, "has a size of 0", f"valid forms: {FORMS}", where)
    if known != name or ":" not in text or (chip.torus_axes > 0) != (len(shape) > 1):
        do = f"did you mean {_instead(chip, shape, slices)}? valid forms: {FORMS}"
        raise InputError("is not how topologies are written", where, do)
    if chip.torus_axes == 0:
        require(slices == 1, "has slices, which only TPUs have", f"give the number of devices: {name}:N", where)
        return _switched(chip, shape[0], where)
    require(
        len(shape) == chip.torus_axes,
        f"has {len(shape)} dimensions, {chip.name} has {chip.torus_axes}",
        f"did you mean {_instead(chip, shape, slices)}?",
        where,
    )
    require(
        shape in set(slice_shapes(chip)),
        f"no slice of {chip.name} has the shape {_times(shape)}",
        f"the nearest is {_instead(chip, shape, slices)}; "
        + ("2D slices: " + ", ".join(map(_times, _SLICES_2D)) if chip.torus_axes == 2 else "sides 2 or multiples of 4")
        + f", up to {_times(chip.largest)}",
        where,
    )
    return _slices(chip, shape, slices)


def of_the_same_chips(topology: Topology) -> Iterator[Topology]:
    """The topologies of the same chip, and of as many slices, from the smallest on."""
    if topology.chip.torus_axes == 0:
        yield from (_switched(topology.chip, 2**power, "") for power in range(13))
    else:
        for shape in slice_shapes(topology.chip):
            yield _slices(topology.chip, shape, topology.slices)


def slice_shapes(chip: Chip) -> Iterator[tuple[int, ...]]:
    """The shapes of a slice of a TPU, from the fewest chips on, of as many chips the most compact first."""
    if chip.torus_axes == 2:
        yield from _SLICES_2D
        return
    top = chip.largest
    sides = [1, 2, *range(4, max(top) + 1, 4)]
    shapes = {(x, y, z) for x in sides for y in sides for z in sides if x <= top[0] and y <= top[1] and z <= top[2]}
    # Sides ascend, but for the single tray 2x2x1.
    shapes = {shape for shape in shapes if shape == (2, 2, 1) or (2 <= shape[0] <= shape[1] <= shape[2])}
    yield from sorted(shapes, key=lambda shape: (math.prod(shape), max(shape)))


def _switched(chip: Chip, count: int, where: str) -> Topology:
    node = chip.largest[0]
    require(
        count <= node or count % node == 0,
        f"{count} is no whole number of nodes of {node}",
        f"the nearest is {chip.name}:{max(1, round(count / node)) * node}",
        where,
    )
    nodes = max(1, count // node)
    return Topology(chip, (count // nodes,), nodes, f"{chip.name}:{count}")


def _slices(chip: Chip, shape: tuple[int, ...], slices: int) -> Topology:
    return Topology(chip, shape, slices, (f"{slices}x" if slices > 1 else "") + f"{chip.name}:{_times(shape)}")


def _instead(chip: Chip, shape: tuple[int, ...], slices: int) -> str:
    """The valid topology of about as many chips. Accelerator types such as v5p-128 count cores, two a chip."""
    if chip.torus_axes == 0:
        return f"{chip.name}:{math.prod(shape)}"
    chips = math.prod(shape)
    if len(shape) == 1 and chip.name in ("v4", "v5p"):
        chips = max(1, chips // 2)
    best = min(slice_shapes(chip), key=lambda other: (abs(math.log(math.prod(other) / chips)), max(other)))
    return _slices(chip, best, slices).text


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
