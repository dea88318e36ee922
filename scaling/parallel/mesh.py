"""The device mesh of a placement, and the shardings of a model's parameters and batches on it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from scaling.errors import InputError
from scaling.models.axes import Axes, Layout, spec
from scaling.runs import MESH_AXES, Placement


def make_mesh(placement: Placement, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a placement over the first devices. Raises InputError if there are too few.

    On TPU slices its axes follow the wires of the torus; of several slices, which only the slow network joins, `data`
    or else `stage` is cut first. Its axes are Auto: under the Explicit type, the default of jax.make_mesh, constraints
    become assertions. Use it with `jax.set_mesh`.
    """
    devices = jax.devices() if devices is None else devices
    if placement.devices > len(devices):
        raise InputError(
            f"placement needs {placement.devices} devices, this machine has {len(devices)}",
            do=f"lower placement.{', '.join(MESH_AXES)}: their product is the number of devices",
        )
    grid = _grid(placement, list(devices[: placement.devices]))
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _grid(placement: Placement, devices: list[jax.Device]) -> np.ndarray:
    shape = [getattr(placement, axis) for axis in MESH_AXES]
    if devices[0].platform != "tpu" or len(devices) == 1:
        return np.asarray(devices).reshape(shape)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    across = [1] * len(shape)
    left = slices
    for axis in ("data", "stage"):
        k = MESH_AXES.index(axis)
        across[k] = math.gcd(left, shape[k])
        left //= across[k]
    if left > 1:
        raise InputError(
            f"{slices} slices, of which placement.data={placement.data} and stage={placement.stage} take "
            f"{slices // left}",
            do="between slices there is only the slow network: make data a multiple of their number",
        )
    within = [size // parts for size, parts in zip(shape, across, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def layout_of(placement: Placement) -> Layout | None:
    """What the model must know of a placement; None for one device."""
    if placement.devices == 1:
        return None
    return Layout(placement.zero, placement.context, placement.stage, placement.microbatch)


def shardings(boxed_tree: Any, mesh: Mesh, laid_out: Callable[[Axes], PartitionSpec] = spec) -> Any:
    """The sharding of every leaf of a tree boxed with logical axes; leaves without a box are replicated."""

    def sharding(leaf: Any) -> NamedSharding:
        boxed = isinstance(leaf, nn.LogicallyPartitioned)
        return NamedSharding(mesh, laid_out(leaf.names) if boxed else PartitionSpec())

    return jax.tree.map(sharding, boxed_tree, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of an array B x L: the batch over data, fsdp and expert."""
    return NamedSharding(mesh, spec(("batch", None)))
