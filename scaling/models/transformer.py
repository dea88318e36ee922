"""A decoder-only transformer in Flax linen, scanned over its layers. All of the architecture is on this page.

Letters: B batch, L sequence, D model width, F feed-forward, H heads, G key-value heads, K head size, V vocabulary.
Parameters are fp32 and carry logical axis names, from which shardings, the decay mask and the memory plan derive.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scaling.models.attention import causal_attention, rotary_tables, rotate
from scaling.runs import ModelShape

Tables = tuple[jax.Array, jax.Array] | None


def fan_in(size: int, scale: float = 1.0) -> Callable[..., jax.Array]:
    """Normal with variance scale^2 / size, so that a sum over `size` unit inputs has standard deviation `scale`."""
    return nn.initializers.normal(scale / math.sqrt(size))


def residual_init(shape: ModelShape, size: int) -> Callable[..., jax.Array]:
    """Of a projection into the residual stream: zero, or scaled by 1/sqrt(2N) (GPT-2, Radford et al. 2019, 2.3)."""
    zero = shape.output_init == "zero"
    return nn.initializers.zeros if zero else fan_in(size, 1 / math.sqrt(2 * shape.n_layers))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Lays an activation out by its logical axes on the mesh that is set; without one, on one device, does nothing."""
    return nn.with_logical_constraint(x, axes)


class _Module(nn.Module):
    shape: ModelShape
    dtype: Any = jnp.float32  # of the computation

    def weight(self, name: str, init: Callable[..., jax.Array], **sizes: int) -> jax.Array:
        """A parameter with named axes, stored fp32 and sharded; gathered over `fsdp` in the compute type before use.

        Without the explicit gather the partitioner may leave the contraction sharded and move activations instead.
        """
        axes, dimensions = tuple(sizes), tuple(sizes.values())
        w = self.param(name, nn.with_logical_partitioning(init, axes), dimensions, jnp.float32)
        return nn.with_logical_constraint(w.astype(self.dtype), tuple(None if a == "embed" else a for a in axes))

    def biased(self, y: jax.Array, name: str, axis: str) -> jax.Array:
        """A projection's result B x L x ..., plus its bias where the shape has them.

        A bias is flat, also over heads and their entries: its one axis tells the decay mask that it is no matrix.
        """
        if not self.shape.biases:
            return y
        each = y.shape[2:]
        return y + self.weight(f"{name}_bias", nn.initializers.zeros, **{axis: math.prod(each)}).reshape(each)


class Norm(_Module):
    """RMSNorm (Zhang & Sennrich 2019) or LayerNorm (Ba et al. 2016) over the last axis, computed in fp32."""

    axis: str = "norm"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def vector(name: str, init: Callable[..., jax.Array]) -> jax.Array:
            return self.param(name, nn.with_logical_partitioning(init, (self.axis,)), x.shape[-1:], jnp.float32)

        y = x.astype(jnp.float32)
        if self.shape.norm == "layernorm":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.shape.norm_epsilon)
        y = y * vector("scale", nn.initializers.ones)
        if self.shape.norm == "layernorm":
            y = y + vector("bias", nn.initializers.zeros)
        return y.astype(self.dtype)


class Attention(_Module):
    """Multi-head causal attention; optional norm of queries and keys (Dehghani et al. 2023, 2.1)."""

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, rotary: Tables) -> jax.Array:
        s = self.shape
        D, H, G, K = s.d_model, s.n_heads, s.kv_heads, s.head_size
        q_BxLxHxK = jnp.einsum("bld,dhk->blhk", x_BxLxD, self.weight("q", fan_in(D), embed=D, heads=H, head_size=K))
        k_BxLxGxK = jnp.einsum("bld,dgk->blgk", x_BxLxD, self.weight("k", fan_in(D), embed=D, heads=G, head_size=K))
        v_BxLxGxK = jnp.einsum("bld,dgk->blgk", x_BxLxD, self.weight("v", fan_in(D), embed=D, heads=G, head_size=K))
        q_BxLxHxK = self.biased(q_BxLxHxK, "q", "heads")
        k_BxLxGxK = self.biased(k_BxLxGxK, "k", "heads")
        v_BxLxGxK = self.biased(v_BxLxGxK, "v", "heads")
        if s.qk_norm:
            q_BxLxHxK = Norm(s, self.dtype, name="q_norm")(q_BxLxHxK)
            k_BxLxGxK = Norm(s, self.dtype, name="k_norm")(k_BxLxGxK)
        if rotary is not None:
            q_BxLxHxK, k_BxLxGxK = rotate(q_BxLxHxK, rotary), rotate(k_BxLxGxK, rotary)
        q_BxLxHxK, k_BxLxGxK, v_BxLxGxK = (
            constrain(t, "batch", "length", "heads", None) for t in (q_BxLxHxK, k_BxLxGxK, v_BxLxGxK)
        )
        o_BxLxHxK = causal_attention(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK)
        out = self.weight("out", residual_init(s, H * K), heads=H, head_size=K, embed=D)
        return self.biased(jnp.einsum("blhk,hkd->bld", o_BxLxHxK, out), "out", "embed")


class FeedForward(_Module):
    """GELU (Hendrycks & Gimpel 2016) or SwiGLU (Shazeer 2020, eq. 6) between two matrices, three for SwiGLU."""

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        s = self.shape
        D, F = s.d_model, s.d_ff
        h_BxLxF = self.biased(x_BxLxD @ self.weight("up", fan_in(D), embed=D, mlp=F), "up", "mlp")
        if s.activation == "swiglu":
            gate_BxLxF = self.biased(x_BxLxD @ self.weight("gate", fan_in(D), embed=D, mlp=F), "gate", "mlp")
            h_BxLxF = h_BxLxF * jax.nn.silu(gate_BxLxF)
        else:
            h_BxLxF = jax.nn.gelu(h_BxLxF)
        h_BxLxF = constrain(h_BxLxF, "batch", "length", "mlp")
        down = self.weight("down", residual_init(s, F), mlp=F, embed=D)
        return self.biased(h_BxLxF @ down, "down", "embed")


class Block(_Module):
    """Pre-norm residual block. Returns (x, None): the carry and the empty output that `nn.scan` asks for."""

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, rotary: Tables) -> tuple[jax.Array, None]:
        s = self.shape
        h_BxLxD = Norm(s, self.dtype, name="norm1")(x_BxLxD)
        x_BxLxD = x_BxLxD + Attention(s, self.dtype, name="attention")(h_BxLxD, rotary)
        h_BxLxD = Norm(s, self.dtype, name="norm2")(x_BxLxD)
        x_BxLxD = x_BxLxD + FeedForward(s, self.dtype, name="mlp")(h_BxLxD)
        return constrain(x_BxLxD, "batch", "length", None), None


class Transformer(_Module):
    """Tokens B x L -> final hidden states B x L x D; `logits` turns those into B x L x V, all or a chunk at a time."""

    remat: bool = False
    scan: bool = True

    def setup(self) -> None:
        s = self.shape
        D, V = s.d_model, s.vocab_size
        self.embedding_VxD = self.weight("embedding", fan_in(D), vocab=V, embed=D)
        if s.positions == "learned":
            self.positions_LxD = self.weight("positions", fan_in(D), length=s.n_positions, embed=D)
        if not s.tied_embeddings:
            self.head_DxV = self.weight("head", fan_in(D), embed=D, vocab=V)
        block = nn.remat(Block, prevent_cse=not self.scan) if self.remat else Block
        if self.scan:
            self.blocks = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=s.n_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(s, self.dtype)
        else:
            self.layers = [block(s, self.dtype) for _ in range(s.n_layers)]
        self.final_norm = Norm(s, self.dtype)

    def __call__(self, tokens_BxL: jax.Array) -> jax.Array:
        L = tokens_BxL.shape[1]
        x_BxLxD = jnp.take(self.embedding_VxD, tokens_BxL, axis=0)
        rotary = None
        if self.shape.positions == "learned":
            x_BxLxD = x_BxLxD + self.positions_LxD[:L]
        else:
            rotary = rotary_tables(L, self.shape.head_size, self.shape.rotary_base)
        x_BxLxD = constrain(x_BxLxD, "batch", "length", None)
        if self.scan:
            x_BxLxD, _ = self.blocks(x_BxLxD, rotary)
        else:
            for layer in self.layers:
                x_BxLxD, _ = layer(x_BxLxD, rotary)
        return self.final_norm(x_BxLxD)

    def logits(self, x_BxLxD: jax.Array) -> jax.Array:
        """fp32 logits B x L x V of final hidden states."""
        if self.shape.tied_embeddings:
            out = jnp.einsum("bld,vd->blv", x_BxLxD, self.embedding_VxD, preferred_element_type=jnp.float32)
        else:
            out = jnp.einsum("bld,dv->blv", x_BxLxD, self.head_DxV, preferred_element_type=jnp.float32)
        return constrain(out, "batch", "length", "vocab")


def init_params(model: Transformer, key: jax.Array) -> Any:
    """The parameter tree, its leaves boxed with their logical axes. Shapes do not depend on batch or length."""
    return model.init(key, jnp.zeros((1, 2), jnp.int32))["params"]


def abstract_params(shape: ModelShape) -> Any:
    """The tree that `init_params` would make, as shapes with logical axes and no memory: the truth about a model."""
    return jax.eval_shape(lambda key: init_params(Transformer(shape), key), jax.random.key(0))
