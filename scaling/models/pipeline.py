"""Pipeline stages: the layers dealt over devices, and the batch sent through them in microbatches.

Plain GPipe (Huang et al. 2019, section 2.2): each of S stages holds N / S consecutive layers. At step t the first stage
takes microbatch t, and every other one what the stage before it made at step t - 1; after A + S - 1 steps the last
stage has made all A microbatches. Autodiff runs the steps backwards and turns every send round.

What it costs: each stage is idle in S - 1 of the A + S - 1 steps, the bubble (section 2.3 there). Each step sends one
microbatch of the residual stream to the next stage, and in the backward pass its gradient to the one before. The
result, which only the last stage has, reaches the others by one all-reduce of the batch, and so does the gradient of
the input, which only the first stage has.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from scaling.models.axes import Layout
from scaling.specs import require

Stats = dict[str, jax.Array]
Layer = Callable[[Any, jax.Array], tuple[jax.Array, Stats]]


def pipeline(
    layer: Layer,
    params_N: Any,
    x_BxLxD: jax.Array,
    stages: int,
    microbatches: int,
    layout: Layout,
) -> tuple[jax.Array, Stats]:
    """The N layers one after the other, as `jax.lax.scan` over them would compute it, on the mesh that is set.

    layer(params, x_bxLxD) -> (y_bxLxD, stats): one layer, whose stats are sums over the sequences of x. params_N: its
    parameters, each leaf N x ..., laid over `stage` along N. x_BxLxD is whole on every stage, and so is y_BxLxD;
    stats_N are sums over all sequences, each N. The layer may constrain arrays to the other axes of the mesh, and map
    kernels over them. A layer that is rematerialised should be `tied` first.
    Raises InputError if the stages do not divide the layers, or the microbatches the batch.
    """
    N, B = len(jax.tree.leaves(params_N)[0]), len(x_BxLxD)
    S, A, T = stages, microbatches, microbatches + stages - 1
    require(N % S == 0, f"{S} stages do not divide {N} layers")
    require(B % A == 0, f"{A} microbatches do not divide {B} sequences")

    def one_stage(params_n: Any, x_1xAxbxLxD: jax.Array) -> tuple[jax.Array, Stats]:
        stage = jax.lax.axis_index("stage")
        x_AxbxLxD = x_1xAxbxLxD[0]
        own_TxbxLxD = jnp.concatenate([x_AxbxLxD, jnp.repeat(x_AxbxLxD[-1:], S - 1, axis=0)])

        def step(made_bxLxD: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, Stats]]:
            t, own_bxLxD = now
            received_bxLxD = jax.lax.ppermute(made_bxLxD, "stage", [(s, s + 1) for s in range(S - 1)])
            busy = (stage <= t) & (t < stage + A)
            # An idle stage works on the model's own input and not on zeros, at which a layer may be singular: the
            # gradient there is multiplied by zero, which would leave it not a number.
            x_bxLxD = jnp.where(busy & (stage > 0), received_bxLxD, own_bxLxD)
            y_bxLxD, stats_n = jax.lax.scan(lambda x_bxLxD, params: layer(params, x_bxLxD), x_bxLxD, params_n)
            return y_bxLxD, (y_bxLxD, jax.tree.map(lambda s_n: jnp.where(busy, s_n, 0), stats_n))

        steps = jnp.arange(T), own_TxbxLxD
        _, (y_TxbxLxD, stats_Txn) = jax.lax.scan(step, jnp.zeros_like(own_TxbxLxD[0]), steps)
        y_AxbxLxD = jnp.where(stage == S - 1, y_TxbxLxD[S - 1 :], 0)
        return y_AxbxLxD[None], jax.tree.map(lambda s_Txn: jnp.sum(s_Txn, axis=0), stats_Txn)

    # A microbatch takes every A-th row: each device cuts its own rows, and none has to move.
    x_AxbxLxD = jnp.swapaxes(x_BxLxD.reshape(B // A, A, *x_BxLxD.shape[1:]), 0, 1)
    # Copying over stages and summing over them stand outside of the manual part. Inside, XLA's CPU compiler ends at an
    # all-reduce of bf16; and without `check_vma`, under which each scan in a layer would need casts of what it carries,
    # the sum's gradient would be a second all-reduce.
    axes = ("layers", None, "batch", "residual", None)
    x_SxAxbxLxD = layout.constrain(jnp.broadcast_to(x_AxbxLxD, (S, *x_AxbxLxD.shape)), *axes)
    over_stages = PartitionSpec("stage")
    y_SxAxbxLxD, stats_N = jax.shard_map(
        one_stage, in_specs=over_stages, out_specs=over_stages, axis_names={"stage"}, check_vma=False
    )(params_N, x_SxAxbxLxD)
    # All but one of the summands are zeros: exact in bf16, which `jnp.sum` would send as fp32.
    y_AxbxLxD = jax.lax.reduce_sum(layout.constrain(y_SxAxbxLxD, *axes), (0,))
    y_BxLxD = jnp.swapaxes(y_AxbxLxD, 0, 1).reshape(x_BxLxD.shape)
    return layout.constrain(y_BxLxD, "batch", "residual", None), stats_N


def tied(layer: Layer) -> Layer:
    """The same layer, which cannot touch its parameters before its input is there. For use inside of jax.checkpoint.

    What depends on the parameters alone is the same at every step, and jax computes it once, ahead of the steps. Of a
    gather over `fsdp` that makes all weights of a stage, whole, at once, where one layer after the other is meant.
    Without jax.checkpoint around it, what is tied would be kept for the backward pass as often as there are steps.
    """

    def waiting(params: Any, x_bxLxD: jax.Array) -> tuple[jax.Array, Stats]:
        return layer(*jax.lax.optimization_barrier((params, x_bxLxD)))

    return waiting
