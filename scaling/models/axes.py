"""Which mesh axis each logical axis of the model is laid over: one table, for parameters and activations alike.

Parameters and activations name their axes ("embed", "heads"), and a layout turns names into the axes of the mesh
(scaling.runs.MESH_AXES). Flax's own rules replicate an array, without a word, where two of its axes ask for one mesh
axis; this table refuses them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

# Batches are dealt out over every axis that is not busy with one sequence. `residual` is the length of the residual
# stream, where each position is on its own: it is cut over tensor too (sequence parallelism, Korthikanti et al. 2022,
# section 4.2.2). `embed` is laid out by the ZeRO stage: see `Layout`.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "routed_batch": ("data", "fsdp"),  # where experts, and no longer sequences, are dealt over `expert`
    "length": ("context",),
    "residual": ("context", "tensor"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "head_size": (),
    "mlp": ("tensor",),
    "vocab": ("tensor", "stage"),
    "experts": ("expert",),
    "norm": (),
    "positions": (),
    "layers": ("stage",),
}
Axes = tuple[str | None, ...]


def spec(axes: Axes) -> PartitionSpec:
    """The mesh axes of an array's logical axes. Raises ValueError for an unknown one, or a mesh axis used twice."""
    taken: list[str] = []
    for axis in axes:
        if axis is not None and axis not in RULES:
            raise ValueError(f"no rule for the logical axis {axis!r} of {axes}")
        taken += RULES[axis] if axis is not None else ()
    if len(set(taken)) < len(taken):
        twice = sorted({name for name in taken if taken.count(name) > 1})
        raise ValueError(f"{axes} lays two axes of one array over {', '.join(twice)}")
    return PartitionSpec(*(RULES[axis] or None if axis is not None else None for axis in axes))


@dataclasses.dataclass(frozen=True)
class Layout:
    """How arrays lie on the mesh that is set (`jax.set_mesh`), and how many parts the model itself must know of.

    zero: what is sharded by `embed`: 1 the optimizer state, 2 and the gradients, 3 and the parameters (ZeRO,
    Rajbhandari et al. 2020). context: parts of a sequence. stages: of the pipeline, through which `microbatch`
    sequences go at once.
    """

    zero: int = 3
    context: int = 1
    stages: int = 1
    microbatch: int | None = None

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Lays an activation out. Raises, as jax does, if no mesh is set: nothing is replicated in silence."""
        return jax.lax.with_sharding_constraint(x, spec(axes))

    def stored(self, axes: Axes) -> PartitionSpec:
        """Of a parameter between steps."""
        return spec(axes if self.zero >= 3 else without_embed(axes))

    def gradient(self, axes: Axes) -> PartitionSpec:
        """Of its gradient."""
        return spec(axes if self.zero >= 2 else without_embed(axes))


def without_embed(axes: Axes) -> Axes:
    """The axes of a parameter that is whole along `embed`, as it is used."""
    return tuple(None if axis == "embed" else axis for axis in axes)


def constrain(layout: Layout | None, x: jax.Array, *axes: str | None) -> jax.Array:
    """`layout.constrain`; without a layout, on one device, nothing."""
    return x if layout is None else layout.constrain(x, *axes)


def on_each_device(f: Callable[..., Any], layout: Layout | None, arguments: Any, results: Any) -> Callable[..., Any]:
    """f of arrays laid out by the specs `arguments`, as each device computes it on its own parts; what devices send to
    each other, f says. `results` are the specs of what it returns. Without a layout, f itself.

    Within a pipeline, which is such a region over `stage`, it is one over the other axes.
    """
    if layout is None:
        return f
    mesh = jax.sharding.get_abstract_mesh()
    free = set(mesh.axis_names) - set(mesh.manual_axes)
    return jax.shard_map(f, in_specs=arguments, out_specs=results, axis_names=free, check_vma=False)
