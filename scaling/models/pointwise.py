"""GELU and the norms, with derivatives that start again from the input.

Between forward and backward pass they keep that alone, and of a norm two numbers a token. Derived by jax, a GELU keeps
six arrays as wide as the feed-forward, and a norm two in fp32. Both compute in fp32.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

SLOPE, CUBE = math.sqrt(2 / math.pi), 0.044715  # of the approximation by tanh, which GPT-2 has


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), by tanh (Hendrycks & Gimpel 2016, section 2); in the type of x."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + _tanh(wide))).astype(x.dtype)


def _tanh(x: jax.Array) -> jax.Array:
    return jnp.tanh(SLOPE * x * (1 + CUBE * x * x))


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _gelu_backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    x = again(x)
    wide = x.astype(jnp.float32)
    t = _tanh(wide)
    slope = 0.5 * (1 + t) + 0.5 * wide * (1 - t * t) * SLOPE * (1 + 3 * CUBE * wide * wide)
    return ((g.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def again(kept: Any) -> Any:
    """What the forward pass kept, behind a barrier: else XLA sees that the backward pass computes the same from it, and
    keeps all of that instead."""
    return jax.lax.optimization_barrier(kept)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalised(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None, epsilon: float, dtype: Any) -> jax.Array:
    """RMSNorm (Zhang & Sennrich 2019, eq. 4) over the last axis; with a bias LayerNorm (Ba et al. 2016, eq. 4)."""
    return _norm_forward(x, scale_D, bias_D, epsilon, dtype)[0]


def _norm_forward(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None, epsilon: float, dtype: Any) -> Any:
    mean = None if bias_D is None else jnp.mean(x.astype(jnp.float32), axis=-1, keepdims=True)
    centred = _centred(x, mean)
    inverse = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + epsilon)
    y = centred * inverse * scale_D
    y = y if bias_D is None else y + bias_D
    return y.astype(dtype), (x, mean, inverse, scale_D, bias_D)


def _centred(x: jax.Array, mean: jax.Array | None) -> jax.Array:
    wide = x.astype(jnp.float32)
    return wide if mean is None else wide - mean


def _norm_backward(epsilon: float, dtype: Any, kept: Any, g: jax.Array) -> Any:
    x, mean, inverse, scale_D, bias_D = again(kept)
    unit, g = _centred(x, mean) * inverse, g.astype(jnp.float32)
    tokens = tuple(range(x.ndim - 1))
    along = g * scale_D
    back = along - unit * jnp.mean(along * unit, axis=-1, keepdims=True)
    if bias_D is not None:
        back = back - jnp.mean(along, axis=-1, keepdims=True)
    bias_grad = None if bias_D is None else jnp.sum(g, axis=tokens)
    return (inverse * back).astype(x.dtype), jnp.sum(g * unit, axis=tokens), bias_grad


normalised.defvjp(_norm_forward, _norm_backward)
