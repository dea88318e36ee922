"""Causal self-attention with rotary positions and grouped queries, written out."""

import math

import jax
import jax.numpy as jnp


def rotary_tables(length: int, head_size: int, base: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, each L x K/2 in fp32, of rotary positions (Su et al. 2021, eq. 15)."""
    frequencies = base ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    angles_LxK = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies
    return jnp.cos(angles_LxK), jnp.sin(angles_LxK)


def rotate(x_BxLxHxK: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns each pair (k, k + K/2) by its position's angle, in fp32; the result has the input's type."""
    cos_Lx1xK, sin_Lx1xK = (table[:, None, :] for table in tables)
    left, right = jnp.split(x_BxLxHxK.astype(jnp.float32), 2, axis=-1)
    turned = left * cos_Lx1xK - right * sin_Lx1xK, right * cos_Lx1xK + left * sin_Lx1xK
    return jnp.concatenate(turned, axis=-1).astype(x_BxLxHxK.dtype)


def causal_attention(q_BxLxHxK: jax.Array, k_BxLxGxK: jax.Array, v_BxLxGxK: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v over past and present (Vaswani et al. 2017, eq. 1), H/G query heads to a key head.

    Scores and softmax are fp32. Returns B x L x H x K in the type of the values.
    """
    B, L, H, K = q_BxLxHxK.shape
    G = k_BxLxGxK.shape[2]
    q_BxLxGxRxK = q_BxLxHxK.reshape(B, L, G, H // G, K)
    scores_BxGxRxLxL = jnp.einsum("blgrk,bmgk->bgrlm", q_BxLxGxRxK, k_BxLxGxK, preferred_element_type=jnp.float32)
    past_LxL = jnp.tril(jnp.ones((L, L), bool))
    masked_BxGxRxLxL = jnp.where(past_LxL, scores_BxGxRxLxL / math.sqrt(K), -jnp.inf)
    weights_BxGxRxLxL = jax.nn.softmax(masked_BxGxRxLxL, axis=-1).astype(v_BxLxGxK.dtype)
    out_BxLxGxRxK = jnp.einsum("bgrlm,bmgk->blgrk", weights_BxGxRxLxL, v_BxLxGxK)
    return out_BxLxGxRxK.reshape(B, L, H, K)
