"""Causal self-attention with rotary positions and grouped queries: written out, and by kernels of TPU, GPU and CPU.

`attention` is the one function of all of them. "plain" is the reference and runs everywhere; it holds the scores of all
pairs of positions. "splash" (jax.experimental.pallas.ops.tpu.splash_attention), "cudnn" (of
jax.nn.dot_product_attention) and, for a CPU, "blocks" (scaling.models.block_attention) make the softmax block by block
(Dao et al. 2022): what they keep is linear in the length.

With `layout.context` > 1 a sequence is cut over devices: each keeps its queries and gathers all keys and values, as
Llama 3 was trained (Grattafiori et al. 2024, section 3.3.2). In natural order the last device would have nearly all the
work of a causal mask, so sequences come in `balanced_order`: the first and the last of 2P chunks together, and so on.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from scaling.models.axes import Layout, constrain, on_each_device, spec
from scaling.models.block_attention import block_attention
from scaling.models.kernels import SPLASH_BLOCK, Attention

LARGEST_BLOCK = 512  # of splash: blocks of scores, and what goes into them, must fit a TPU's vector memory
_AXES = ("batch", "length", "heads", None)


def rotary_tables(positions_L: np.ndarray | jax.Array, head_size: int, base: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, each L x K/2 in fp32, of rotary positions (Su et al. 2021, eq. 15)."""
    frequencies = base ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    angles_LxK = jnp.asarray(positions_L, jnp.float32)[:, None] * frequencies
    return jnp.cos(angles_LxK), jnp.sin(angles_LxK)


@jax.custom_vjp
def rotate(x_BxLxHxK: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns each pair (k, k + K/2) by its position's angle, in fp32; the result has the input's type.

    Its derivative turns back. Written out, it starts from the gradient in its own type: derived, a whole fp32 copy of
    the gradient would lie in memory.
    """
    cos_Lx1xK, sin_Lx1xK = (table[:, None, :] for table in tables)
    left, right = (half.astype(jnp.float32) for half in jnp.split(x_BxLxHxK, 2, axis=-1))
    turned = left * cos_Lx1xK - right * sin_Lx1xK, right * cos_Lx1xK + left * sin_Lx1xK
    return jnp.concatenate([half.astype(x_BxLxHxK.dtype) for half in turned], axis=-1)


def _rotate_forward(
    x_BxLxHxK: jax.Array, tables: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return rotate(x_BxLxHxK, tables), tables


def _rotate_backward(tables: tuple[jax.Array, jax.Array], g_BxLxHxK: jax.Array) -> tuple[jax.Array, None]:
    cos_LxK, sin_LxK = tables
    return rotate(g_BxLxHxK, (cos_LxK, -sin_LxK)), None


rotate.defvjp(_rotate_forward, _rotate_backward)


def balanced_order(length: int, parts: int) -> np.ndarray:
    """The natural position at each place of a sequence that is cut into equal parts with the same work each.

    Of 2P chunks, part i holds the chunks i and 2P - 1 - i, whose causal pairs together are as many for each i.
    One part keeps the natural order. Raises ValueError if 2P does not divide the length.
    """
    if parts == 1:
        return np.arange(length)
    chunks_CxL = np.arange(length).reshape(2 * parts, -1)
    return np.stack([chunks_CxL[:parts], chunks_CxL[: parts - 1 : -1]], axis=1).reshape(-1)


def natural_order(x_BxLxGxK: jax.Array, parts: int) -> jax.Array:
    """Undoes `balanced_order` along the length, by whole chunks."""
    if parts == 1:
        return x_BxLxGxK
    B, L, G, K = x_BxLxGxK.shape
    pairs_BxPx2xCxGxK = x_BxLxGxK.reshape(B, parts, 2, -1, G, K)
    first, last = pairs_BxPx2xCxGxK[:, :, 0], pairs_BxPx2xCxGxK[:, ::-1, 1]
    return jnp.concatenate([first, last], axis=1).reshape(B, L, G, K)


def causal_attention(
    q_BxLxHxK: jax.Array, k_BxLxGxK: jax.Array, v_BxLxGxK: jax.Array, positions_L: np.ndarray | None = None
) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v over past and present (Vaswani et al. 2017, eq. 1), H/G query heads to a key head.

    positions_L: the natural position at each place; None: the place itself. Scores and softmax are fp32. Returns
    B x L x H x K in the type of the values.
    """
    B, L, H, K = q_BxLxHxK.shape
    G = k_BxLxGxK.shape[2]
    positions_L = np.arange(L) if positions_L is None else positions_L
    q_BxLxGxRxK = q_BxLxHxK.reshape(B, L, G, H // G, K)
    scores_BxGxRxLxL = jnp.einsum("blgrk,bmgk->bgrlm", q_BxLxGxRxK, k_BxLxGxK, preferred_element_type=jnp.float32)
    past_LxL = jnp.asarray(positions_L)[:, None] >= jnp.asarray(positions_L)
    masked_BxGxRxLxL = jnp.where(past_LxL, scores_BxGxRxLxL / math.sqrt(K), -jnp.inf)
    weights_BxGxRxLxL = jax.nn.softmax(masked_BxGxRxLxL, axis=-1).astype(v_BxLxGxK.dtype)
    out_BxLxGxRxK = jnp.einsum("bgrlm,bmgk->blgrk", weights_BxGxRxLxL, v_BxLxGxK)
    return out_BxLxGxRxK.reshape(B, L, H, K)


def attention(
    q_BxLxHxK: jax.Array, k_BxLxGxK: jax.Array, v_BxLxGxK: jax.Array, kernel: Attention, layout: Layout | None
) -> jax.Array:
    """Causal attention of whole sequences in `balanced_order(L, layout.context)`, by the kernel of that name.

    Heads may lie over `tensor`, batch and length as the table of axes says. The output is named "attention" for
    jax.checkpoint; with splash, all that its backward pass needs besides q, k and v is, so that it need not run again.
    Returns B x L x H x K, laid out as the queries. Raises ValueError for a kernel that does not exist, or cannot.
    """
    if kernel == "plain":
        return checkpoint_name(_plain(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, layout), "attention")
    if kernel == "splash":
        return _splash(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, layout)
    if kernel == "blocks":
        return checkpoint_name(_blocks(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, layout), "attention")
    if kernel == "cudnn":
        return checkpoint_name(_cudnn(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, layout), "attention")
    raise ValueError(f"no attention kernel {kernel!r}")


def _plain(q_BxLxHxK: jax.Array, k_BxLxGxK: jax.Array, v_BxLxGxK: jax.Array, layout: Layout | None) -> jax.Array:
    positions_L = balanced_order(q_BxLxHxK.shape[1], layout.context if layout else 1)
    q_BxLxHxK = constrain(layout, q_BxLxHxK, *_AXES)
    k_BxLxGxK, v_BxLxGxK = (constrain(layout, t, "batch", None, "heads", None) for t in (k_BxLxGxK, v_BxLxGxK))
    return constrain(layout, causal_attention(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, positions_L), *_AXES)


def _blocks(q_BxLxHxK: jax.Array, k_BxLxGxK: jax.Array, v_BxLxGxK: jax.Array, layout: Layout | None) -> jax.Array:
    if layout is not None and layout.context > 1:
        raise ValueError("attention in blocks takes whole sequences in their natural order")
    q_BxLxHxK = constrain(layout, q_BxLxHxK, *_AXES)
    k_BxLxGxK, v_BxLxGxK = (constrain(layout, t, "batch", None, "heads", None) for t in (k_BxLxGxK, v_BxLxGxK))
    own = spec(_AXES)
    return on_each_device(block_attention, layout, (own, own, own), own)(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK)


def _cudnn(q_BxLxHxK: jax.Array, k_BxLxGxK: jax.Array, v_BxLxGxK: jax.Array, layout: Layout | None) -> jax.Array:
    if layout is not None and layout.context > 1:
        raise ValueError("the cudnn kernel has no mask for a part of a sequence")
    flash = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    own = spec(_AXES)
    return on_each_device(flash, layout, (own, own, own), own)(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK)


def _splash(q_BxLxHxK: jax.Array, k_BxLxGxK: jax.Array, v_BxLxGxK: jax.Array, layout: Layout | None) -> jax.Array:
    L, H = q_BxLxHxK.shape[1:3]
    if layout is None:
        return _splash_here(_splash_kernel(L, H, 1), q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, 1)
    mesh = jax.sharding.get_abstract_mesh()
    kernel = _splash_kernel(L, H // mesh.shape["tensor"], layout.context)
    # Its tables of which blocks to visit are cut along with the queries; they are the same for every head.
    parts = jax.sharding.AbstractMesh((layout.context,), ("context",))
    kernel_spec = kernel.manual_sharding_spec(jax.sharding.NamedSharding(parts, jax.P(None, "context")))
    here, own = functools.partial(_splash_here, context=layout.context), spec(_AXES)
    spread = on_each_device(here, layout, (kernel_spec, own, own, own), own)
    return spread(kernel, q_BxLxHxK, k_BxLxGxK, v_BxLxGxK)


def _splash_here(
    kernel: Any, q_BxLxHxK: jax.Array, k_BxLxGxK: jax.Array, v_BxLxGxK: jax.Array, context: int
) -> jax.Array:
    """One device's part. The gather's transpose sums the parts of the keys' gradients straight to where they belong."""
    if context > 1:
        k_BxLxGxK, v_BxLxGxK = (
            natural_order(jax.lax.all_gather(t, "context", axis=1, tiled=True), context) for t in (k_BxLxGxK, v_BxLxGxK)
        )
    scaled_BxLxHxK = q_BxLxHxK * q_BxLxHxK.shape[-1] ** -0.5
    q_BxHxLxK, k_BxGxLxK, v_BxGxLxK = (jnp.swapaxes(t, 1, 2) for t in (scaled_BxLxHxK, k_BxLxGxK, v_BxLxGxK))
    return jnp.swapaxes(jax.vmap(kernel)(q_BxHxLxK, k_BxGxLxK, v_BxGxLxK), 1, 2)


def _splash_kernel(length: int, heads: int, context: int) -> Any:
    """The kernel for so many query heads, whose queries come in `balanced_order` and whose keys in natural order.

    Blocks are the largest up to 512 that divide the sequence and, of queries, each chunk: a block that lies across two
    chunks would visit the keys of the later one for both.
    """
    # Imported where it is used: loading Pallas for TPU takes time that no other platform should pay.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    mask = splash_attention_mask.CausalMask((length, length))
    mask.q_sequence = balanced_order(length, context).astype(np.int32)
    chunk = length if context == 1 else length // (2 * context)
    q, kv = max(SPLASH_BLOCK, math.gcd(chunk, LARGEST_BLOCK)), math.gcd(length, LARGEST_BLOCK)
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(q, kv, kv, q, kv, kv, q, kv),  # forward; dk and dv; dq
        head_shards=1,
        q_seq_shards=context,
        residual_checkpoint_name="attention",
    )
