"""The rows of the embedding for a batch of tokens, from a table whose words and whose batch lie on many devices.

Left to the partitioner, the gradient is made by columns: every device sorts the tokens of the whole batch. Here each
device looks up, and sums, what its own tokens say of its own words (Shoeybi et al. 2019, section 3), and the gradient
is summed over devices once, straight into the parts in which `fsdp` keeps it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from scaling.models.axes import RULES, Layout, on_each_device, spec

OTHERS = tuple(axis for axis in (*RULES["batch"], *RULES["length"]) if axis != "fsdp")  # that tokens are dealt over


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def look_up(table_VxD: jax.Array, tokens_BxL: jax.Array, layout: Layout | None) -> jax.Array:
    """The rows of a table, B x L x D, laid out as the residual stream.

    Gradients of a row add up in fp32: a frequent token has thousands of them, of which bf16, with its 8 bits, would
    lose all but the first few hundred.
    """
    if layout is None:
        return jnp.take(table_VxD, tokens_BxL, axis=0)
    arguments = spec(("vocab", None)), spec(("batch", "length"))
    return on_each_device(_rows, layout, arguments, spec(("batch", "residual", None)))(table_VxD, tokens_BxL)


def _forward(
    table_VxD: jax.Array, tokens_BxL: jax.Array, layout: Layout | None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    like_Vx0 = jnp.zeros((len(table_VxD), 0), table_VxD.dtype)  # all that the backward pass asks of the table
    return look_up(table_VxD, tokens_BxL, layout), (tokens_BxL, like_Vx0)


def _backward(layout: Layout | None, saved: tuple[jax.Array, jax.Array], g_BxLxD: jax.Array) -> tuple[jax.Array, None]:
    tokens_BxL, like_Vx0 = saved
    zero_VxD = jnp.zeros((len(like_Vx0), g_BxLxD.shape[-1]), jnp.float32)
    if layout is None:
        return zero_VxD.at[tokens_BxL].add(g_BxLxD.astype(jnp.float32)).astype(like_Vx0.dtype), None
    arguments = spec(("vocab", None)), spec(("batch", "length")), spec(("batch", "residual", None))
    summed = on_each_device(_summed, layout, arguments, spec(("vocab", "embed")))
    return summed(zero_VxD, tokens_BxL, g_BxLxD).astype(like_Vx0.dtype), None


look_up.defvjp(_forward, _backward)


# What follows sees one device's part of everything.


def _own(tokens_BxL: jax.Array, words: int) -> jax.Array:
    """Tokens as rows of the device's own part of the table, and what other devices have as one row past its end."""
    own_BxL = tokens_BxL - jax.lax.axis_index(RULES["vocab"]) * words
    return jnp.where((own_BxL >= 0) & (own_BxL < words), own_BxL, words)


def _rows(table_VxD: jax.Array, tokens_BxL: jax.Array) -> jax.Array:
    x_BxLxD = jnp.take(table_VxD, _own(tokens_BxL, len(table_VxD)), axis=0, mode="fill", fill_value=0)
    x_BxLxD = jax.lax.psum(x_BxLxD, "stage")  # of all but one zeros, so exact in any type
    return jax.lax.psum_scatter(x_BxLxD, "tensor", scatter_dimension=1, tiled=True)


def _summed(zero_VxD: jax.Array, tokens_BxL: jax.Array, g_BxLxD: jax.Array) -> Any:
    g_BxLxD = jax.lax.all_gather(g_BxLxD, "tensor", axis=1, tiled=True)
    own_BxL = _own(tokens_BxL, len(zero_VxD))
    grad_VxD = zero_VxD.at[own_BxL].add(g_BxLxD.astype(jnp.float32), mode="drop")
    return jax.lax.psum(jax.lax.psum_scatter(grad_VxD, "fsdp", scatter_dimension=1, tiled=True), OTHERS)
