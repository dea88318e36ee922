"""A decoder-only transformer in Flax linen, scanned over its layers. All of the architecture is on this page.

Letters: B batch, L sequence, D model width, F feed-forward, H heads, G key-value heads, K head size, V vocabulary.
The experts of a sparse one are in scaling.models.moe, and what all modules share is in scaling.models.module.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from scaling.models.attention import attention, balanced_order, rotary_tables, rotate
from scaling.models.embedding import look_up
from scaling.models.kernels import MOST_UNROLLED
from scaling.models.module import PLAIN, Module, Norm, fan_in, residual_init, shifted
from scaling.models.moe import Experts
from scaling.models.pipeline import pipeline, tied
from scaling.models.pointwise import gelu
from scaling.models.remat import remat_policy
from scaling.runs import ModelShape

Tables = tuple[jax.Array, jax.Array] | None
Stats = dict[str, jax.Array]  # of the routers, summed over sequences; {} without experts


class Attention(Module):
    """Multi-head causal attention; optional norm of queries and keys (Dehghani et al. 2023, 2.1)."""

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, rotary: Tables) -> jax.Array:
        s = self.shape
        D, H, G, K = s.d_model, s.n_heads, s.kv_heads, s.head_size
        q_BxLxHxK = self.to_heads(x_BxLxD, self.weight("q", fan_in(D), embed=D, heads=H, head_size=K))
        k_BxLxGxK = self.to_heads(x_BxLxD, self.weight("k", fan_in(D), embed=D, heads=G, head_size=K))
        v_BxLxGxK = self.to_heads(x_BxLxD, self.weight("v", fan_in(D), embed=D, heads=G, head_size=K))
        q_BxLxHxK = self.biased(q_BxLxHxK, "q", "heads")
        k_BxLxGxK = self.biased(k_BxLxGxK, "k", "heads")
        v_BxLxGxK = self.biased(v_BxLxGxK, "v", "heads")
        if s.qk_norm:
            q_BxLxHxK = Norm(*self.common, name="q_norm")(q_BxLxHxK)
            k_BxLxGxK = Norm(*self.common, name="k_norm")(k_BxLxGxK)
        if rotary is not None:
            q_BxLxHxK, k_BxLxGxK = rotate(q_BxLxHxK, rotary), rotate(k_BxLxGxK, rotary)
        q_BxLxHxK, k_BxLxGxK, v_BxLxGxK = (
            self.constrain(t, "batch", "length", "heads", None) for t in (q_BxLxHxK, k_BxLxGxK, v_BxLxGxK)
        )
        o_BxLxHxK = attention(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, self.kernels.attention, self.layout)
        out = self.weight("out", residual_init(s, H * K), heads=H, head_size=K, embed=D)
        return self.biased(self.from_heads(o_BxLxHxK, out), "out", "embed")


class FeedForward(Module):
    """GELU (Hendrycks & Gimpel 2016) or SwiGLU (Shazeer 2020, eq. 6) between two matrices, three for SwiGLU."""

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        s = self.shape
        D, F = s.d_model, s.d_ff
        h_BxLxF = self.biased(self.product(x_BxLxD, self.weight("up", fan_in(D), embed=D, mlp=F)), "up", "mlp")
        if s.activation == "swiglu":
            gate = self.weight("gate", fan_in(D), embed=D, mlp=F)
            gate_BxLxF = self.biased(self.product(x_BxLxD, gate), "gate", "mlp")
            h_BxLxF = h_BxLxF * jax.nn.silu(gate_BxLxF)
        else:
            h_BxLxF = gelu(h_BxLxF)
        h_BxLxF = self.constrain(h_BxLxF, "batch", "length", "mlp")
        down = self.weight("down", residual_init(s, F), mlp=F, embed=D)
        return self.biased(self.product(h_BxLxF, down), "down", "embed")


class Block(Module):
    """Pre-norm residual block. Returns (x, statistics of its router): the carry and the output that a scan asks for.

    Between the two halves each position is on its own, so the stream and its norms are cut along the sequence over
    `tensor` too; the matrices in between see it whole (Korthikanti et al. 2022, figure 5).
    """

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, rotary: Tables) -> tuple[jax.Array, Stats]:
        x_BxLxD = checkpoint_name(x_BxLxD, "residual")
        h_BxLxD = self.constrain(Norm(*self.common, name="norm1")(x_BxLxD), "batch", "length", None)
        h_BxLxD = Attention(*self.common, name="attention")(h_BxLxD, rotary)
        x_BxLxD = x_BxLxD + self.constrain(h_BxLxD, "batch", "residual", None)
        h_BxLxD = Norm(*self.common, name="norm2")(x_BxLxD)
        stats: Stats = {}
        if self.shape.n_experts:  # they gather what they need
            h_BxLxD, stats = Experts(*self.common, name="experts")(h_BxLxD)
        else:
            h_BxLxD = FeedForward(*self.common, name="mlp")(self.constrain(h_BxLxD, "batch", "length", None))
        x_BxLxD = x_BxLxD + self.constrain(h_BxLxD, "batch", "residual", None)
        return self.constrain(x_BxLxD, "batch", "residual", None), stats


class Transformer(Module):
    """Tokens B x L -> (final hidden states B x L x D, statistics of the routers, N each).

    With a layout over `context`, positions come and go in the order of `balanced_order`. `head` is the matrix D x V
    that turns hidden states into logits, which `logits` does.
    """

    remat: str = "none"
    scan: bool = True

    def setup(self) -> None:
        s = self.shape
        D, V = s.d_model, s.vocab_size
        self.embedding_VxD = self.weight("embedding", fan_in(D), vocab=V, embed=D)
        if s.positions == "learned":
            self.positions_LxD = self.weight("positions", fan_in(D), positions=s.n_positions, embed=D)
        if not s.tied_embeddings:
            self.head_DxV = self.weight("head", fan_in(D), embed=D, vocab=V)
        policy = remat_policy(self.remat, self.layout)
        unrolled = self.kernels.one_cpu and s.n_layers <= MOST_UNROLLED
        in_loop = self.scan and not unrolled
        block = Block if policy is None else nn.remat(Block, policy=policy, prevent_cse=not in_loop)
        if self.scan:
            self.blocks = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=s.n_layers,
                unroll=s.n_layers if unrolled else 1,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(*self.common)
        else:
            self.layers = [block(*self.common) for _ in range(s.n_layers)]
        self.final_norm = Norm(*self.common)

    def __call__(self, tokens_BxL: jax.Array) -> tuple[jax.Array, Stats]:
        x_BxLxD = look_up(self.embedding_VxD, tokens_BxL, self.layout)
        positions_L = balanced_order(tokens_BxL.shape[1], self.layout.context if self.layout else 1)
        rotary = None
        if self.shape.positions == "learned":
            x_BxLxD = shifted(x_BxLxD, self.positions_LxD[positions_L])
        else:
            rotary = rotary_tables(positions_L, self.shape.head_size, self.shape.rotary_base)
        x_BxLxD = self.constrain(x_BxLxD, "batch", "residual", None)
        x_BxLxD, stats = self._all_blocks(x_BxLxD, rotary)
        return self.constrain(self.final_norm(x_BxLxD), "batch", "length", None), stats

    def _all_blocks(self, x_BxLxD: jax.Array, rotary: Tables) -> tuple[jax.Array, Stats]:
        if self.layout is not None and self.layout.stages > 1:
            return self._pipeline(x_BxLxD, rotary)
        if self.scan:
            return self.blocks(x_BxLxD, rotary)
        stats = []
        for layer in self.layers:
            x_BxLxD, of_layer = layer(x_BxLxD, rotary)
            stats.append(of_layer)
        return x_BxLxD, jax.tree.map(lambda *values: jnp.stack(values), *stats)

    def _pipeline(self, x_BxLxD: jax.Array, rotary: Tables) -> tuple[jax.Array, Stats]:
        def layer(params: Any, x_bxLxD: jax.Array) -> tuple[jax.Array, Stats]:
            return Block(*self.common, parent=None).apply({"params": params}, x_bxLxD, rotary)

        policy = remat_policy(self.remat, self.layout)
        if policy is not None:
            layer = jax.checkpoint(tied(layer), policy=policy, prevent_cse=False)
        stages, b = self.layout.stages, self.layout.microbatch or x_BxLxD.shape[0]
        microbatches = x_BxLxD.shape[0] // b
        return pipeline(layer, self.blocks.variables["params"], x_BxLxD, stages, microbatches, self.layout)

    def head(self) -> jax.Array:
        """The output matrix D x V, in the compute type."""
        return self.embedding_VxD.T if self.shape.tied_embeddings else self.head_DxV

    def logits(self, x_BxLxD: jax.Array) -> jax.Array:
        """fp32 logits B x L x V of final hidden states."""
        out_BxLxV = jnp.einsum("bld,dv->blv", x_BxLxD, self.head(), preferred_element_type=jnp.float32)
        return self.constrain(out_BxLxV, "batch", "length", "vocab")


def init_params(model: Transformer, key: jax.Array) -> Any:
    """The parameter tree, its leaves boxed with their logical axes. Shapes do not depend on batch, length or layout."""
    alone = model.clone(layout=None, kernels=PLAIN)
    return alone.init(key, jnp.zeros((1, 2), jnp.int32))["params"]


def abstract_params(shape: ModelShape) -> Any:
    """The tree that `init_params` would make, as shapes with logical axes and no memory: the truth about a model."""
    return jax.eval_shape(lambda key: init_params(Transformer(shape), key), jax.random.key(0))
