"""Causal attention a block of queries at a time, for a CPU: nothing is computed of keys that all queries of a block
would mask, and the scores, of which none is kept, stay in the processor's caches.

As in FlashAttention-2 (Dao 2023, section 3.1), the forward pass keeps of each row the logarithm of its sum of
exponentials, and the backward pass computes the scores again. Unlike there, a block of queries takes all of its keys at
once, so that a row's softmax needs no second look, and all is written as matrix products over batch and heads.
"""

from typing import Any

import jax
import jax.numpy as jnp

from scaling.models.kernels import CPU_BLOCK

MOST_BLOCKS = 16  # of a sequence, however long: each is compiled on its own

Kept = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


@jax.custom_vjp
def block_attention(q_BxLxHxK: jax.Array, k_BxLxGxK: jax.Array, v_BxLxGxK: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v over past and present, H/G query heads to a key head; positions in natural order.

    Scores and softmax are fp32, as is all that is summed. Returns B x L x H x K in the type of the values.
    """
    return _forward(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK)[0]


def _forward(q_BxLxHxK: jax.Array, k_BxLxGxK: jax.Array, v_BxLxGxK: jax.Array) -> tuple[jax.Array, Kept]:
    dtype, scale = v_BxLxGxK.dtype, q_BxLxHxK.shape[-1] ** -0.5
    q_BxGxRxLxK = _by_heads(q_BxLxHxK, k_BxLxGxK.shape[2])
    k_BxGxLxK, v_BxGxLxK = (jnp.swapaxes(t, 1, 2) for t in (k_BxLxGxK, v_BxLxGxK))
    outs, log_sums = [], []
    for start, end in _blocks(q_BxLxHxK.shape[1]):
        scores_BxGxRxIxJ = _product("bgrik,bgjk->bgrij", q_BxGxRxLxK[:, :, :, start:end], k_BxGxLxK[:, :, :end])
        scores_BxGxRxIxJ = jnp.where(_past(start, end), scores_BxGxRxIxJ, -jnp.inf)
        top_BxGxRxI = jnp.max(scores_BxGxRxIxJ, axis=-1)
        e_BxGxRxIxJ = jnp.exp(scale * (scores_BxGxRxIxJ - top_BxGxRxI[..., None]))
        z_BxGxRxI = jnp.sum(e_BxGxRxIxJ, axis=-1)
        sums_BxGxRxIxK = _product("bgrij,bgjk->bgrik", e_BxGxRxIxJ.astype(dtype), v_BxGxLxK[:, :, :end])
        outs.append((sums_BxGxRxIxK / z_BxGxRxI[..., None]).astype(dtype))
        log_sums.append(scale * top_BxGxRxI + jnp.log(z_BxGxRxI))
    out_BxLxHxK = _by_positions(jnp.concatenate(outs, axis=3))
    return out_BxLxHxK, (q_BxGxRxLxK, k_BxGxLxK, v_BxGxLxK, out_BxLxHxK, jnp.concatenate(log_sums, axis=3))


def _backward(kept: Kept, g_BxLxHxK: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    # Behind a barrier the scores are not the forward pass's own, which XLA would keep instead of computing them again.
    q_BxGxRxLxK, k_BxGxLxK, v_BxGxLxK, out_BxLxHxK, log_sum_BxGxRxL = jax.lax.optimization_barrier(kept)
    G, L, K = k_BxGxLxK.shape[1:]
    dtype, scale = v_BxGxLxK.dtype, K**-0.5
    # What softmax subtracts from the gradient of a row of weights: their mean, which is also g . out (Dao et al. 2022,
    # eq. 4).
    both_BxLxHxK = g_BxLxHxK.astype(jnp.float32) * out_BxLxHxK.astype(jnp.float32)
    mean_BxGxRxL = _by_heads(jnp.sum(both_BxLxHxK, axis=-1, keepdims=True), G)[..., 0]
    g_BxGxRxLxK = _by_heads(g_BxLxHxK, G)
    q_grads: list[jax.Array] = []
    k_grad_BxGxLxK = v_grad_BxGxLxK = jnp.zeros(k_BxGxLxK.shape, jnp.float32)
    for start, end in _blocks(L):
        q_BxGxRxIxK, g_BxGxRxIxK = q_BxGxRxLxK[:, :, :, start:end], g_BxGxRxLxK[:, :, :, start:end]
        log_sum_BxGxRxI, mean_BxGxRxI = log_sum_BxGxRxL[..., start:end], mean_BxGxRxL[..., start:end]
        k_BxGxJxK, v_BxGxJxK = k_BxGxLxK[:, :, :end], v_BxGxLxK[:, :, :end]
        scores_BxGxRxIxJ = _product("bgrik,bgjk->bgrij", q_BxGxRxIxK, k_BxGxJxK)
        # No weight is above 1, whatever is left of the difference where scores are in the millions.
        log_w_BxGxRxIxJ = jnp.minimum(scale * scores_BxGxRxIxJ - log_sum_BxGxRxI[..., None], 0.0)
        w_BxGxRxIxJ = jnp.where(_past(start, end), jnp.exp(log_w_BxGxRxIxJ), 0.0)
        w_grad_BxGxRxIxJ = _product("bgrik,bgjk->bgrij", g_BxGxRxIxK, v_BxGxJxK)
        scores_grad_BxGxRxIxJ = (scale * w_BxGxRxIxJ * (w_grad_BxGxRxIxJ - mean_BxGxRxI[..., None])).astype(dtype)
        q_grads.append(_product("bgrij,bgjk->bgrik", scores_grad_BxGxRxIxJ, k_BxGxJxK).astype(dtype))
        k_part_BxGxJxK = _product("bgrij,bgrik->bgjk", scores_grad_BxGxRxIxJ, q_BxGxRxIxK)
        v_part_BxGxJxK = _product("bgrij,bgrik->bgjk", w_BxGxRxIxJ.astype(dtype), g_BxGxRxIxK)
        k_grad_BxGxLxK = k_grad_BxGxLxK.at[:, :, :end].add(k_part_BxGxJxK)
        v_grad_BxGxLxK = v_grad_BxGxLxK.at[:, :, :end].add(v_part_BxGxJxK)
    k_grad_BxLxGxK, v_grad_BxLxGxK = (jnp.swapaxes(t, 1, 2).astype(dtype) for t in (k_grad_BxGxLxK, v_grad_BxGxLxK))
    return _by_positions(jnp.concatenate(q_grads, axis=3)), k_grad_BxLxGxK, v_grad_BxLxGxK


block_attention.defvjp(_forward, _backward)


def _blocks(length: int) -> list[tuple[int, int]]:
    """First and past-the-last query of each block; the last may be shorter."""
    size = max(CPU_BLOCK, -(-length // MOST_BLOCKS))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _past(start: int, end: int) -> jax.Array:
    """Which of the keys up to `end` each query of a block may see, I x J."""
    return jnp.arange(start, end)[:, None] >= jnp.arange(end)


def _product(equation: str, *arrays: jax.Array) -> Any:
    return jnp.einsum(equation, *arrays, preferred_element_type=jnp.float32)


def _by_heads(x_BxLxHxK: jax.Array, G: int) -> jax.Array:
    """B x G x R x L x K: the R query heads of each of G key heads."""
    B, L, H, K = x_BxLxHxK.shape
    return jnp.transpose(x_BxLxHxK.reshape(B, L, G, H // G, K), (0, 2, 3, 1, 4))


def _by_positions(x_BxGxRxLxK: jax.Array) -> jax.Array:
    """The inverse, B x L x H x K."""
    B, G, R, L, K = x_BxGxRxLxK.shape
    return jnp.transpose(x_BxGxRxLxK, (0, 3, 1, 2, 4)).reshape(B, L, G * R, K)
