"""The device mesh of a placement, and which mesh axis each logical axis is laid over."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from scaling.errors import InputError
from scaling.runs import Placement

AXES = ("data", "fsdp", "tensor")

# Logical axes of parameters and activations -> mesh axes. Weights are stored sharded by `embed` over fsdp (ZeRO-3).
RULES = (
    ("batch", ("data", "fsdp")),
    ("length", None),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("head_size", None),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("norm", None),
    ("layers", None),
)


def make_mesh(placement: Placement, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh data x fsdp x tensor over the first devices. Raises InputError if there are too few.

    Its axes are Auto: under the Explicit type, the default of jax.make_mesh, linen's constraints become assertions.
    Use it with `jax.set_mesh`; under a plain `with mesh:` flax ignores the constraints without a word.
    """
    devices = jax.devices() if devices is None else devices
    if placement.devices > len(devices):
        raise InputError(
            f"placement needs {placement.devices} devices, this machine has {len(devices)}",
            do="lower placement.data, fsdp or tensor",
        )
    shape = (placement.data, placement.fsdp, placement.tensor)
    grid = np.asarray(devices[: placement.devices]).reshape(shape)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def shardings(boxed_tree: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf of a tree boxed with logical axes; leaves without a box are replicated."""
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed_tree), mesh, RULES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of an array B x L: the batch over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None))
