"""Mixture of experts: a router sends each token to some of many feed-forwards, which `expert` spreads over devices.

Routing is that of Switch (Fedus et al. 2022, sections 2.1 and 2.2) for one expert a token, and that of Mixtral (Jiang
et al. 2024, section 2.1) for more. Every group in which something is counted, the rows of an expert and the statistics
alike, is one sequence in its natural order, so that no Placement changes what a Run computes.

Rows are moved by gathers of known inverse, never by products with B x L x E x C masks as in GShard (Lepikhin et al.
2021, algorithm 1), which can cost as much as the experts. What crosses the mesh is written out, in `jax.shard_map`.

Letters beside those of scaling.models.transformer: E experts, J choices of a token (k in the papers), Q pairs of a
token and a choice, C rows that an expert has for a sequence, P parts of a sequence (`context`), R rows in all.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from scaling.models.attention import balanced_order
from scaling.models.axes import Layout, constrain, on_each_device, spec
from scaling.models.counts import expert_rows
from scaling.models.grouped_matmul import grouped_matmul
from scaling.models.module import Module, fan_in, gathered, residual_init

Matrices = dict[str, jax.Array]  # up_ExDxF, of SwiGLU gate_ExDxF, down_ExFxD
STREAM = ("batch", "residual", None)  # the residual stream, from which rows come and to which results go


class Experts(Module):
    """Feed-forwards of which a token passes through `experts_per_token`; the others cost it nothing."""

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the weighted sum of the chosen experts' results, and statistics summed over sequences: those of
        `route`, and `dropped`, the share of choices that found their expert full. Such a choice adds nothing."""
        s = self.shape
        D, F, E = s.d_model, s.d_ff, s.n_experts
        names = ("up", "gate") if s.activation == "swiglu" else ("up",)
        w = {name: self.weight(name, fan_in(D), experts=E, embed=D, mlp=F) for name in names}
        w["down"] = self.weight("down", residual_init(s, F), experts=E, mlp=F, embed=D)

        boxed = nn.with_logical_partitioning(fan_in(D), ("embed", None))
        router_DxE = gathered(self.param("router", boxed, (D, E)), ("embed", None), jnp.float32, self.layout)

        x_BxLxD = self.constrain(x_BxLxD, *STREAM)
        logits_BxLxE = self.constrain(router_logits(x_BxLxD, router_DxE), *STREAM)
        choice_BxLxJ, gate_BxLxJ, stats_B = route(logits_BxLxE, s.experts_per_token)
        rows = expert_rows(s, x_BxLxD.shape[1])
        if rows is None:
            kernel = self.kernels.grouped_matmul
            y_BxLxD = dropless(x_BxLxD, choice_BxLxJ, gate_BxLxJ, w, kernel, self.layout)
            stats_B["dropped"] = jnp.zeros_like(stats_B["balance"])
        else:
            y_BxLxD, stats_B["dropped"] = with_capacity(x_BxLxD, choice_BxLxJ, gate_BxLxJ, w, rows, self.layout)
        return y_BxLxD, {name: jnp.sum(value_B) for name, value_B in stats_B.items()}


def router_logits(x_BxLxD: jax.Array, router_DxE: jax.Array) -> jax.Array:
    """fp32, whatever the type of x (Fedus et al. 2022, section 2.4), so that rounding does not choose."""
    exact = jax.lax.Precision.HIGHEST  # matrix units multiply fp32 as bf16 or TF32 unless told so
    return jnp.einsum("bld,de->ble", x_BxLxD.astype(jnp.float32), router_DxE, precision=exact)


def route(logits_BxLxE: jax.Array, choices: int) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Each token's experts, the likeliest first, their weights, and statistics of each sequence, all fp32.

    One choice weighs its probability (Fedus et al. 2022, eq. 2); more weigh a softmax over the chosen alone (Jiang et
    al. 2024, section 2.1). Of a sequence:
        balance         E sum_e f_e P_e (Fedus et al. 2022, eq. 4 to 6): f_e the share of the L J choices that fell on
                        e, before any is dropped, P_e its mean probability; 1 if even; only P carries a gradient
        router_z        mean of (log sum exp logits)^2 (Zoph et al. 2022, eq. 5)
        load_max        E max_e f_e; 1 if even, E / J if all tokens choose alike
        router_entropy  mean entropy of a token's probabilities, nats; ln E if even
    """
    E = logits_BxLxE.shape[-1]
    choice_BxLxJ = likeliest(logits_BxLxE, choices)
    chosen_BxLxJxE = choice_BxLxJ[..., None] == jnp.arange(E)
    top_BxLxJ = jnp.sum(jnp.where(chosen_BxLxJxE, logits_BxLxE[:, :, None], 0.0), axis=-1)
    log_z_BxLx1 = jax.nn.logsumexp(logits_BxLxE, axis=-1, keepdims=True)
    gate_BxLxJ = jnp.exp(top_BxLxJ - log_z_BxLx1) if choices == 1 else jax.nn.softmax(top_BxLxJ, axis=-1)

    log_p_BxLxE = logits_BxLxE - log_z_BxLx1
    p_BxLxE = jnp.exp(log_p_BxLxE)
    load_BxE = jnp.mean(chosen_BxLxJxE.astype(jnp.float32), axis=(1, 2))
    stats_B = {
        "balance": E * jnp.sum(load_BxE * jnp.mean(p_BxLxE, axis=1), axis=-1),
        "router_z": jnp.mean(log_z_BxLx1**2, axis=(1, 2)),
        "load_max": E * jnp.max(load_BxE, axis=-1),
        "router_entropy": -jnp.mean(jnp.sum(p_BxLxE * log_p_BxLxE, axis=-1), axis=1),
    }
    return choice_BxLxJ, gate_BxLxJ, stats_B


def likeliest(logits_BxLxE: jax.Array, choices: int) -> jax.Array:
    """The indices of the largest logits of each token, falling. As jax.lax.top_k, which the partitioner cannot cut: it
    would gather the logits of all devices on each."""
    left_BxLxE, found = jax.lax.stop_gradient(logits_BxLxE), []
    for _ in range(choices):
        found.append(jnp.argmax(left_BxLxE, axis=-1))
        left_BxLxE = jnp.where(found[-1][..., None] == jnp.arange(left_BxLxE.shape[-1]), -jnp.inf, left_BxLxE)
    return jnp.stack(found, axis=-1)


def with_capacity(
    x_BxLxD: jax.Array, choice_BxLxJ: jax.Array, gate_BxLxJ: jax.Array, w: Matrices, rows: int, layout: Layout | None
) -> tuple[jax.Array, jax.Array]:
    """Each expert takes at most `rows` tokens of a sequence. Returns the result, and the share of choices dropped, B.

    Rows travel to their experts' devices and back (all-to-all over `expert`); `context` shares the rows of an expert.
    """
    E, P = w["up"].shape[0], layout.context if layout else 1
    assign = functools.partial(seats, experts=E, rows=rows, parts=P)
    row_BxPxLxJ, pair_BxPxExC, dropped_B = jax.vmap(assign)(constrain(layout, choice_BxLxJ, "batch", None, None))

    def body(
        x_BxLxD: jax.Array, gate_BxLxJ: jax.Array, row_BxPxLxJ: jax.Array, pair_BxPxExC: jax.Array, w: Matrices
    ) -> jax.Array:
        x_BxLxD = _gather(x_BxLxD, ("context", "tensor"), 1, layout)
        row_BxLxJ, pair_BxExC = row_BxPxLxJ[:, 0], pair_BxPxExC[:, 0]  # those of this part
        B, E, C = pair_BxExC.shape
        pair_BxR = pair_BxExC.reshape(B, E * C)
        x_BxRxD = jax.vmap(take)(x_BxLxD, pair_BxR // row_BxLxJ.shape[-1], row_BxLxJ)
        x_BxExCxD = _exchange(x_BxRxD.reshape(B, E, C, -1), 1, 0, layout)
        y_BxExCxD = feed_forward(x_BxExCxD, w, lambda x, w_ExIxO: jnp.einsum("beci,eio->beco", x, w_ExIxO))
        y_BxRxD = _exchange(y_BxExCxD, 0, 1, layout).reshape(B, E * C, -1)
        y_BxLxJxD = jax.vmap(take)(y_BxRxD, row_BxLxJ, pair_BxR[..., None])
        return _scatter(weighted(gate_BxLxJ, y_BxLxJxD), ("context", "tensor"), 1, layout)

    whole, part = spec(("batch", None, None)), spec(("batch", "length", None, None))
    spread = on_each_device(body, layout, (spec(STREAM), whole, part, part, _specs(w)), spec(STREAM))
    return spread(x_BxLxD, gate_BxLxJ, row_BxPxLxJ, pair_BxPxExC, w), dropped_B


def seats(choice_LxJ: jax.Array, experts: int, rows: int, parts: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Who sits where in one sequence: first come, first served, by natural position, a token's likelier choice first.

    So no token's result depends on a later one. It would in GShard's order (Lepikhin et al. 2021, algorithm 1), where
    the first choices of all tokens go before any second one. With one choice both are that of Switch.

    Tokens are in the order of `balanced_order`; a pair (token, choice) has the number token x J + choice. Each of the
    parts holds every parts-th row of an expert. Returns, as each part sees it: the row of each pair, P x L x J, or
    E x C if it has none there; the pair of each row, P x E x C, or L x J if it has none; and the share of pairs that
    have no row anywhere.
    """
    (L, J), E, C = choice_LxJ.shape, experts, -(-rows // parts)
    pair_Q = (np.argsort(balanced_order(L, parts))[:, None] * J + np.arange(J)).reshape(-1)  # as they come
    expert_Q = choice_LxJ.reshape(-1)[pair_Q]
    by_expert_Q = jnp.argsort(expert_Q)  # stable: each expert's own queue, one after the other
    length_E = jnp.sum(expert_Q[:, None] == jnp.arange(E), axis=0)
    start_E = jnp.cumsum(length_E) - length_E
    rank_LxJ = (jnp.argsort(by_expert_Q) - start_E[expert_Q])[np.argsort(pair_Q)].reshape(L, J)

    part_P = jnp.arange(parts)
    here_PxLxJ = (rank_LxJ < rows) & (rank_LxJ % parts == part_P[:, None, None])
    row_PxLxJ = jnp.where(here_PxLxJ, choice_LxJ * C + rank_LxJ // parts, E * C)
    rank_PxC = jnp.arange(C) * parts + part_P[:, None]
    taken_PxExC = rank_PxC[:, None] < jnp.minimum(length_E, rows)[:, None]
    first_PxExC = jnp.where(taken_PxExC, start_E[:, None] + rank_PxC[:, None], 0)
    pair_PxExC = jnp.where(taken_PxExC, jnp.asarray(pair_Q)[by_expert_Q][first_PxExC], L * J)
    return row_PxLxJ, pair_PxExC, jnp.mean(rank_LxJ >= rows, dtype=jnp.float32)


def dropless(
    x_BxLxD: jax.Array, choice_BxLxJ: jax.Array, gate_BxLxJ: jax.Array, w: Matrices, kernel: str, layout: Layout | None
) -> jax.Array:
    """Each expert takes all that chose it: a run of rows in a grouped matrix product (MegaBlocks, Gale et al. 2023).

    How many rows an expert has is not known when this is compiled, so that they cannot be sent to it alone: each device
    of `expert` gathers the tokens of all, computes the rows of its own experts, and the sum is scattered back.
    """
    own_E = jnp.arange(w["up"].shape[0])

    def body(
        x_BxLxD: jax.Array, choice_BxLxJ: jax.Array, gate_BxLxJ: jax.Array, own_E: jax.Array, w: Matrices
    ) -> jax.Array:
        x_BxLxD = _gather(_gather(x_BxLxD, "tensor", 1, layout), "expert", 0, layout)
        (B, L, D), J, E = x_BxLxD.shape, choice_BxLxJ.shape[-1], len(own_E)
        expert_Q = choice_BxLxJ.reshape(-1) - own_E[0]
        expert_Q = jnp.where((expert_Q >= 0) & (expert_Q < E), expert_Q, E)  # those of other devices come last
        pair_R = jnp.argsort(expert_Q)[: B * L * min(J, E)]  # no token has more of its choices here
        row_TxJ = jnp.argsort(jnp.argsort(expert_Q)).reshape(B * L, J)
        sizes_E = jnp.sum(expert_Q[:, None] == jnp.arange(E), axis=0)
        x_RxD = take(x_BxLxD.reshape(B * L, D), pair_R // J, row_TxJ)
        y_RxD = feed_forward(x_RxD, w, lambda x, w_ExIxO: grouped_matmul(x, w_ExIxO, sizes_E, kernel))
        y_BxLxJxD = take(y_RxD, row_TxJ, pair_R[:, None]).reshape(B, L, J, D)  # rows of no expert here are zero
        return _scatter(_scatter(weighted(gate_BxLxJ, y_BxLxJxD), "expert", 0, layout), "tensor", 1, layout)

    routed = spec(("routed_batch", "length", None))
    specs = (spec(STREAM), routed, routed, spec(("experts",)), _specs(w))
    return on_each_device(body, layout, specs, spec(STREAM))(x_BxLxD, choice_BxLxJ, gate_BxLxJ, own_E, w)


def feed_forward(x: jax.Array, w: Matrices, multiply: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """As scaling.models.transformer.FeedForward, each row through the matrices of its expert.

    The products have a name for scaling.models.remat, to which they do not look like products with weights.
    """

    def product(x: jax.Array, name: str) -> jax.Array:
        return checkpoint_name(multiply(x, w[name]), "expert_product")

    h = product(x, "up")
    h = h * jax.nn.silu(product(x, "gate")) if "gate" in w else jax.nn.gelu(h)
    return product(h, "down")


@jax.custom_vjp
def weighted(gate_BxLxJ: jax.Array, y_BxLxJxD: jax.Array) -> jax.Array:
    """The sum over a token's choices of its results, each times its fp32 weight, in the type of the results.

    The gradient of a weight, which is all that a router learns from the loss, is a sum over D, in fp32. Derived, it
    would be one in the type of the results, or keep them in fp32 for it.
    """
    return jnp.sum(gate_BxLxJ[..., None] * y_BxLxJxD, axis=2).astype(y_BxLxJxD.dtype)


def _weighted_forward(gate_BxLxJ: jax.Array, y_BxLxJxD: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return weighted(gate_BxLxJ, y_BxLxJxD), (gate_BxLxJ, y_BxLxJxD)


def _weighted_backward(saved: tuple[jax.Array, jax.Array], g_BxLxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    gate_BxLxJ, y_BxLxJxD = saved
    g_BxLx1xD = g_BxLxD[:, :, None].astype(jnp.float32)
    return jnp.sum(g_BxLx1xD * y_BxLxJxD, axis=-1), (gate_BxLxJ[..., None] * g_BxLx1xD).astype(y_BxLxJxD.dtype)


weighted.defvjp(_weighted_forward, _weighted_backward)


@jax.custom_vjp
def take(source_SxD: jax.Array, index: jax.Array, inverse_SxM: jax.Array) -> jax.Array:
    """source[index], zero where the index is out of range, of shape index.shape x D.

    inverse: where in `index`, counted flat, each row of the source stands; out of range for none. With it the gradient
    is a gather too, where the derivative of indexing would be a scatter, row by row and in no order.
    """
    return jnp.take(source_SxD, index, axis=0, mode="fill", fill_value=0)


def _take_forward(source_SxD: jax.Array, index: jax.Array, inverse_SxM: jax.Array) -> tuple[jax.Array, jax.Array]:
    return take(source_SxD, index, inverse_SxM), inverse_SxM


def _take_backward(inverse_SxM: jax.Array, g: jax.Array) -> tuple[jax.Array, None, None]:
    g_SxMxD = jnp.take(g.reshape(-1, g.shape[-1]), inverse_SxM, axis=0, mode="fill", fill_value=0)
    return jnp.sum(g_SxMxD, axis=1), None, None


take.defvjp(_take_forward, _take_backward)


def _specs(w: Matrices) -> dict[str, PartitionSpec]:
    return {name: spec(("experts", "mlp", None) if name == "down" else ("experts", None, "mlp")) for name in w}


def _alone(mesh_axes: str | tuple[str, ...], layout: Layout | None) -> bool:
    return layout is None or jax.lax.axis_size(mesh_axes) == 1


def _gather(x: jax.Array, mesh_axes: str | tuple[str, ...], dimension: int, layout: Layout | None) -> jax.Array:
    """The parts of all devices along mesh axes, joined."""
    return x if _alone(mesh_axes, layout) else jax.lax.all_gather(x, mesh_axes, axis=dimension, tiled=True)


def _scatter(x: jax.Array, mesh_axes: str | tuple[str, ...], dimension: int, layout: Layout | None) -> jax.Array:
    """The sum over mesh axes, a part of it on each device."""
    if _alone(mesh_axes, layout):
        return x
    return jax.lax.psum_scatter(x, mesh_axes, scatter_dimension=dimension, tiled=True)


def _exchange(x: jax.Array, split: int, join: int, layout: Layout | None) -> jax.Array:
    """Cut along one dimension, and along another joined from what each device of `expert` sends."""
    return x if _alone("expert", layout) else jax.lax.all_to_all(x, "expert", split, join, tiled=True)
