"""Softmax cross-entropy of the head, a chunk of each sequence at a time, over a vocabulary that may be sharded.

Logits are the largest array of a small model. Here only those of `chunk` positions of each sequence exist at a time,
and the forward pass makes the gradients of hidden states and head along with the loss, chunk by chunk, while the logits
are there (Liger Kernel, Hsu et al. 2024, section 3.2): the backward pass only scales them; no product is made twice.

Each device works on its own sequences, positions and words. Devices that share the vocabulary exchange one maximum and
two sums a token (Shoeybi et al. 2019, section 3). The gradient of the head is summed over devices once, after the last
chunk, straight into the parts in which `fsdp` keeps it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scaling.models.axes import RULES, Layout, on_each_device, spec
from scaling.models.chunks import own_chunk

TOKENS = (*RULES["batch"], *RULES["length"])  # the mesh axes over which tokens are dealt
Names = tuple[str, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def summed_cross_entropy(
    hidden_BxLxD: jax.Array,
    head_DxV: jax.Array,
    targets_BxL: jax.Array,
    z_loss: float,
    chunk: int | None,
    layout: Layout | None,
) -> tuple[jax.Array, jax.Array]:
    """Over all tokens, the sum of -log p(target) + z_loss log(Z)^2, and that of -log p(target): nats, in fp32.

    z_loss: weight of PaLM's auxiliary loss (Chowdhery et al. 2022, section 5). chunk: positions of a sequence whose
    logits exist at a time; None: `chunks.whole_chunk`. The second sum is to be looked at and has no gradient. The
    gradient of the head is summed in fp32 and then has the head's type.
    """
    return _forward(hidden_BxLxD, head_DxV, targets_BxL, z_loss, chunk, layout)[0]


def token_nll(
    hidden_BxLxD: jax.Array, head_DxV: jax.Array, targets_BxL: jax.Array, chunk: int | None, layout: Layout | None
) -> jax.Array:
    """-log p(target) of every token, B x L in nats, in fp32. For evaluation: a gradient would keep all logits."""
    losses = functools.partial(_losses, C=_own_chunk(hidden_BxLxD, head_DxV, chunk, layout))
    return _spread(losses, layout, spec(("batch", "length")))(hidden_BxLxD, head_DxV, targets_BxL)


def _forward(
    hidden_BxLxD: jax.Array,
    head_DxV: jax.Array,
    targets_BxL: jax.Array,
    z_loss: float,
    chunk: int | None,
    layout: Layout | None,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """The sums, and the gradients of the first of them."""
    C = _own_chunk(hidden_BxLxD, head_DxV, chunk, layout)
    both = functools.partial(_sums_and_gradients, C=C, z_loss=z_loss)
    results = (spec(()), spec(())), (spec(("batch", "residual", None)), spec(("embed", "vocab")))
    return _spread(both, layout, results)(hidden_BxLxD, head_DxV, targets_BxL)


def _backward(
    z_loss: float, chunk: int | None, layout: Layout | None, gradients: tuple[jax.Array, jax.Array], along: Any
) -> tuple[jax.Array, jax.Array, None]:
    hidden_BxLxD, head_DxV = (g * along[0].astype(g.dtype) for g in gradients)
    return hidden_BxLxD, head_DxV, None


summed_cross_entropy.defvjp(_forward, _backward)


def _own_chunk(hidden_BxLxD: jax.Array, head_DxV: jax.Array, chunk: int | None, layout: Layout | None) -> int:
    return own_chunk(hidden_BxLxD.shape[1], head_DxV.shape[1], chunk, layout.context if layout else 1)


def _spread(f: Callable[..., Any], layout: Layout | None, results: Any) -> Callable[..., Any]:
    """f(hidden, head, targets) on each device's part; it is told over which mesh axes the words are dealt."""
    arguments = spec(("batch", "length", None)), spec((None, "vocab")), spec(("batch", "length"))
    here = functools.partial(f, words=RULES["vocab"] if layout else ())
    return on_each_device(here, layout, arguments, results)


# What follows sees one device's part: B, L and V are the sequences, positions and words that fall to it, and C is its
# positions at a time. `words` are the mesh axes over which the vocabulary is dealt, () on one device.


def _losses(hidden_BxLxD: jax.Array, head_DxV: jax.Array, y_BxL: jax.Array, C: int, words: Names) -> jax.Array:
    def one(n: jax.Array, nll_BxL: jax.Array) -> jax.Array:
        part = _chunk(_cut(hidden_BxLxD, n, C), head_DxV, _cut(y_BxL, n, C), words)
        return _put(nll_BxL, part.top_BxC + jnp.log(part.z_BxC) - part.target_BxC, n, C)

    return jax.lax.fori_loop(0, y_BxL.shape[1] // C, one, jnp.zeros(y_BxL.shape, jnp.float32))


def _sums_and_gradients(
    hidden_BxLxD: jax.Array, head_DxV: jax.Array, y_BxL: jax.Array, C: int, z_loss: float, words: Names
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    dtype = head_DxV.dtype

    def one(n: jax.Array, carry: Any) -> Any:
        loss, nll, hidden_BxLxD, head_grad_DxV = carry
        x_BxCxD, y_BxC = _cut(hidden_BxLxD, n, C), _cut(y_BxL, n, C)
        part = _chunk(x_BxCxD, head_DxV, y_BxC, words)
        log_z_BxC = part.top_BxC + jnp.log(part.z_BxC)
        nll_BxC = log_z_BxC - part.target_BxC
        loss += jnp.sum(nll_BxC + z_loss * jnp.square(log_z_BxC))
        # The derivative by the logits is (1 + 2 z_loss log Z) e / Z, less 1 at the target. What a token's words have in
        # common is taken out: they are many, and every operation on all of them counts.
        slope_BxC = 1 + 2 * z_loss * log_z_BxC
        slope_BxC = jnp.where(slope_BxC == 0, 1e-6, slope_BxC)  # it is divided by, and 1e-6 is as good as 0
        common_BxC = slope_BxC / part.z_BxC
        at_target_BxC = jnp.exp(part.target_BxC - part.top_BxC) - 1 / common_BxC
        hit_BxCxV = _own_words(y_BxC, head_DxV, words)[..., None] == jnp.arange(head_DxV.shape[1])
        grad_BxCxV = jnp.where(hit_BxCxV, at_target_BxC[..., None], part.e_BxCxV).astype(dtype)
        scaled_BxCxD = (x_BxCxD * common_BxC[..., None]).astype(dtype)
        head_grad_DxV += jnp.einsum("bcd,bcv->dv", scaled_BxCxD, grad_BxCxV, preferred_element_type=jnp.float32)
        # Nobody reads these hidden states again: their gradient takes their place.
        back_BxCxD = jnp.einsum("bcv,dv->bcd", grad_BxCxV, head_DxV, preferred_element_type=jnp.float32)
        hidden_BxLxD = _put(hidden_BxLxD, back_BxCxD * common_BxC[..., None], n, C)
        return loss, nll + jnp.sum(nll_BxC), hidden_BxLxD, head_grad_DxV

    zero = jnp.zeros((), jnp.float32)
    start = zero, zero, hidden_BxLxD, jnp.zeros(head_DxV.shape, jnp.float32)
    loss, nll, hidden_grad_BxLxD, head_grad_DxV = jax.lax.fori_loop(0, y_BxL.shape[1] // C, one, start)
    if words:  # so far each device has what its own tokens and words add
        loss, nll = jax.lax.psum((loss, nll), TOKENS)
        hidden_grad_BxLxD = jax.lax.psum(hidden_grad_BxLxD, "stage")
        hidden_grad_BxLxD = jax.lax.psum_scatter(hidden_grad_BxLxD, "tensor", scatter_dimension=1, tiled=True)
        head_grad_DxV = jax.lax.psum_scatter(head_grad_DxV, "fsdp", scatter_dimension=0, tiled=True)
        head_grad_DxV = jax.lax.psum(head_grad_DxV, tuple(name for name in TOKENS if name != "fsdp"))
    return (loss, nll), (hidden_grad_BxLxD, head_grad_DxV.astype(dtype))


class _Part(NamedTuple):
    """Of each token of a chunk, over all words: the largest logit, the sum of e, the target's logit; and e, which is
    exp(logit - largest), of the device's own words. All fp32."""

    top_BxC: jax.Array
    z_BxC: jax.Array
    target_BxC: jax.Array
    e_BxCxV: jax.Array


def _chunk(x_BxCxD: jax.Array, head_DxV: jax.Array, y_BxC: jax.Array, words: Names) -> _Part:
    logits_BxCxV = jnp.einsum("bcd,dv->bcv", x_BxCxD, head_DxV, preferred_element_type=jnp.float32)
    y_BxC = _own_words(y_BxC, head_DxV, words)
    own_BxC = (y_BxC >= 0) & (y_BxC < head_DxV.shape[1])
    target_BxC = jnp.take_along_axis(logits_BxCxV, y_BxC[..., None], axis=-1, mode="clip")[..., 0]
    top_BxC = jax.lax.pmax(jnp.max(logits_BxCxV, axis=-1), words)
    e_BxCxV = jnp.exp(logits_BxCxV - top_BxC[..., None])
    z_BxC, target_BxC = jax.lax.psum((jnp.sum(e_BxCxV, axis=-1), jnp.where(own_BxC, target_BxC, 0)), words)
    return _Part(top_BxC, z_BxC, target_BxC, e_BxCxV)


def _own_words(y_BxC: jax.Array, head_DxV: jax.Array, words: Names) -> jax.Array:
    """Targets as columns of the device's own part of the head; outside it, those of other devices."""
    return y_BxC - jax.lax.axis_index(words) * head_DxV.shape[1] if words else y_BxC


def _cut(x_BxLxD: jax.Array, n: jax.Array, C: int) -> jax.Array:
    """The n-th C positions."""
    return jax.lax.dynamic_slice_in_dim(x_BxLxD, n * C, C, axis=1)


def _put(x_BxLxD: jax.Array, part_BxCxD: jax.Array, n: jax.Array, C: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x_BxLxD, part_BxCxD.astype(x_BxLxD.dtype), n * C, axis=1)
