"""Routing, capacity and expert parallelism, against plain loops in float64 and against one device."""

import dataclasses
import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.errors import InputError
from scaling.models.attention import balanced_order
from scaling.models.counts import expert_rows
from scaling.models.huggingface import layout_of as hf_layout_of
from scaling.models.moe import Experts, likeliest, route, router_logits, seats, take, weighted
from scaling.models.transformer import FeedForward
from scaling.parallel.mesh import layout_of, make_mesh
from scaling.runs import ModelShape, Placement

pytestmark = pytest.mark.usefixtures("quick_compilation")

B, L, D, F, E = 8, 16, 16, 24, 8
SHAPE = ModelShape(D, n_layers=2, n_heads=2, d_ff=F, vocab_size=50, activation="swiglu", n_experts=E)
TOP_2 = dataclasses.replace(SHAPE, experts_per_token=2)
ROUNDING = 1e-5  # of fp32 sums over at most a few hundred terms, relative to the norm


routed = jax.jit(route, static_argnums=1)


def with_factor(shape, factor):
    return dataclasses.replace(shape, capacity_factor=factor)


@functools.partial(jax.jit, static_argnums=0)
def computed(model, params, x_BxLxD):
    return model.apply({"params": params}, x_BxLxD)


@functools.cache
def weights(activation="swiglu"):
    shape = dataclasses.replace(SHAPE, activation=activation)
    return nn.unbox(Experts(shape).init(jax.random.key(0), jnp.zeros((1, 2, D))))["params"]


@functools.cache
def inputs():
    """Inputs with a routing margin: no two of the four likeliest experts of a token are nearer than 1e-3 in logits of
    size one, which is a thousand times what the order of an fp32 sum can change."""
    x_BxLxD = jax.random.normal(jax.random.key(21), (B, L, D))
    logits = np.asarray(x_BxLxD, float) @ np.asarray(weights()["router"], float)
    top = -np.sort(-logits, axis=-1)[..., :4]
    assert np.diff(top).max() < -1e-3
    return x_BxLxD


def by_hand(shape, rows=None):
    """The same in float64, token by token: result, dropped share of each sequence, and choices."""
    w = {name: np.asarray(leaf, float) for name, leaf in weights(shape.activation).items()}
    x = np.asarray(inputs(), float)
    y, dropped = np.zeros_like(x), np.zeros(B)
    k = shape.experts_per_token
    for b in range(B):
        taken = np.zeros(E, int)
        for t in range(L):
            logits = x[b, t] @ w["router"]
            p = np.exp(logits) / np.exp(logits).sum()
            chosen = np.argsort(-logits)[:k]
            for e in chosen:
                taken[e] += 1
                if rows is not None and taken[e] > rows:
                    dropped[b] += 1 / (k * L)
                    continue
                up = x[b, t] @ w["up"][e]
                if shape.activation == "swiglu":
                    gate = x[b, t] @ w["gate"][e]
                    h = up * gate / (1 + np.exp(-gate))
                else:
                    h = 0.5 * up * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
                y[b, t] += (p[e] if k == 1 else p[e] / p[chosen].sum()) * (h @ w["down"][e])
    return y, dropped


def near(found, expected, tolerance=ROUNDING):
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("choices", [1, 2, 3])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_dropless_is_a_loop_over_tokens(activation, choices):
    shape = dataclasses.replace(SHAPE, activation=activation, experts_per_token=choices)
    y, stats = computed(Experts(shape), weights(activation), inputs())
    near(y, by_hand(shape)[0])
    assert stats["dropped"] == 0


@pytest.mark.parametrize(("choices", "factor"), [(1, 1.0), (2, 1.0), (2, 0.4), (3, 0.7)])
def test_who_comes_late_is_dropped(choices, factor):
    shape = with_factor(dataclasses.replace(SHAPE, experts_per_token=choices), factor)
    y, stats = computed(Experts(shape), weights(), inputs())
    expected, dropped = by_hand(shape, rows=math.ceil(round(choices * L / E * factor, 9)))
    near(y, expected)
    assert dropped.min() > 0
    assert stats["dropped"] == pytest.approx(dropped.sum(), rel=1e-6)  # a sum of eight fp32 numbers


def loss(params, x_BxLxD, model):
    """A scalar in which every output matters, and every output that carries no gradient."""
    y_BxLxD, stats = model.apply({"params": params}, x_BxLxD)
    total = jnp.sum(jnp.sin(y_BxLxD + 0.3)) + stats["balance"] + 0.1 * stats["router_z"]
    return total, (y_BxLxD, stats)


@functools.partial(jax.jit, static_argnums=2)
def differentiated(params, x_BxLxD, model):
    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x_BxLxD, model)


def all_near(found, expected):
    for path, leaf in jax.tree.leaves_with_path(expected):
        name = jax.tree_util.keystr(path)
        other = functools.reduce(
            lambda tree, entry: tree[getattr(entry, "key", getattr(entry, "idx", None))], path, found
        )
        assert np.linalg.norm(other - leaf) <= ROUNDING * np.linalg.norm(leaf), name


@pytest.mark.parametrize("shape", [SHAPE, TOP_2], ids=["top1", "top2"])
def test_room_for_all_is_dropless(shape):
    all_near(
        differentiated(weights(), inputs(), Experts(with_factor(shape, 1e3))),
        differentiated(weights(), inputs(), Experts(shape)),
    )


PLACEMENTS = [
    Placement(expert=8),
    Placement(expert=2, fsdp=4),
    Placement(expert=2, tensor=2, data=2),
    Placement(context=2, expert=2),
    Placement(context=2, tensor=2, fsdp=2),
]


def placed(params, x_BxLxD, shape, placement):
    """What one device computes, computed on a mesh; positions come and go in the balanced order."""
    order = balanced_order(L, placement.context)
    with jax.set_mesh(make_mesh(placement)):
        (total, (y, stats)), (of_params, of_x) = differentiated(
            params, x_BxLxD[:, order], Experts(shape, layout=layout_of(placement))
        )
    back = np.argsort(order)
    return jax.device_get(((total, (y[:, back], stats)), (of_params, of_x[:, back])))


@pytest.mark.parametrize("shape", [SHAPE, TOP_2], ids=["top1", "top2"])
@pytest.mark.parametrize("factor", [None, 0.7])
@pytest.mark.parametrize(
    "placement",
    PLACEMENTS,
    ids=lambda p: " ".join(
        f"{a}{getattr(p, a)}" for a in ("data", "fsdp", "expert", "context", "tensor") if getattr(p, a) > 1
    ),
)
def test_every_placement_equals_one_device(placement, factor, shape):
    """Loss, result, statistics and the gradients of every leaf and of the input."""
    shape = with_factor(shape, factor)
    expected = jax.device_get(differentiated(weights(), inputs(), Experts(shape)))
    assert (expected[0][1][1]["dropped"] > 0) == (factor is not None)
    all_near(placed(weights(), inputs(), shape, placement), expected)


@pytest.mark.parametrize("factor", [None, 0.7])
def test_inside_of_the_pipeline(factor):
    """Where `stage` is taken by a surrounding shard_map, the other axes are still there to be spread over."""
    placement = Placement(stage=2, expert=2, tensor=2)
    shape = with_factor(TOP_2, factor)
    model = Experts(shape, layout=layout_of(placement))
    P = jax.sharding.PartitionSpec

    @jax.jit
    def both_stages(params, x):
        def stage(params, x):
            (_, (y, stats)), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x[0], model)
            return jax.tree.map(lambda leaf: leaf[None], (y, stats, gradients))

        spread = jax.shard_map(
            stage, in_specs=(P(), P("stage")), out_specs=P("stage"), axis_names={"stage"}, check_vma=False
        )
        return spread(params, x)

    with jax.set_mesh(make_mesh(placement)):
        found = jax.device_get(both_stages(weights(), jnp.stack([inputs(), inputs()[::-1]])))
    for k, x in enumerate((inputs(), inputs()[::-1])):
        (_, (y, stats)), gradients = jax.device_get(differentiated(weights(), x, Experts(shape)))
        all_near(jax.tree.map(lambda leaf, k=k: leaf[k], found), (y, stats, gradients))


def test_the_order_of_a_batch_does_not_matter():
    shape, order = with_factor(TOP_2, 0.7), np.random.default_rng(0).permutation(B)
    y, stats = computed(Experts(shape), weights(), inputs())
    shuffled, same = computed(Experts(shape), weights(), inputs()[order])
    near(shuffled, y[order])
    all_near(same, stats)


@pytest.mark.parametrize("factor", [None, 0.7])
def test_no_token_sees_a_later_one(factor):
    """Not even through the room that it takes."""
    shape = with_factor(TOP_2, factor)
    other = inputs().at[:, L // 2 :].set(inputs()[::-1, L // 2 :])
    y, changed = (computed(Experts(shape), weights(), x)[0] for x in (inputs(), other))
    near(changed[:, : L // 2], y[:, : L // 2])
    assert np.abs(changed - y)[:, L // 2 :].max() > 0.1


def test_equal_experts_are_one_feed_forward():
    """Whatever the router does: with two choices the weights sum to one; with one it is the probability."""
    same = {
        name: leaf if name == "router" else jnp.broadcast_to(leaf[:1], leaf.shape) for name, leaf in weights().items()
    }
    dense = dataclasses.replace(SHAPE, n_experts=0)
    expected = FeedForward(dense).apply({"params": {n: leaf[0] for n, leaf in same.items() if n != "router"}}, inputs())
    near(computed(Experts(TOP_2), same, inputs())[0], expected)
    top_BxLx1 = jax.nn.softmax(inputs() @ same["router"]).max(-1, keepdims=True)
    near(computed(Experts(SHAPE), same, inputs())[0], top_BxLx1 * expected)


def test_statistics_of_a_router():
    logits_BxLxE = 2 * np.random.default_rng(0).normal(size=(3, 5, 4))
    choice, gate, stats_B = routed(jnp.asarray(logits_BxLxE, jnp.float32), 2)
    p = np.exp(logits_BxLxE) / np.exp(logits_BxLxE).sum(-1, keepdims=True)
    ranked = np.argsort(-logits_BxLxE, axis=-1)[..., :2]
    assert (np.asarray(choice) == ranked).all()
    top = np.take_along_axis(p, ranked, -1)
    near(gate, top / top.sum(-1, keepdims=True))
    for b in range(3):
        load = np.bincount(ranked[b].ravel(), minlength=4) / 10
        expected = {
            "balance": 4 * (load * p[b].mean(0)).sum(),
            "router_z": (np.log(np.exp(logits_BxLxE[b]).sum(-1)) ** 2).mean(),
            "load_max": 4 * load.max(),
            "router_entropy": -(p[b] * np.log(p[b])).sum(-1).mean(),
        }
        assert {name: float(value_B[b]) for name, value_B in stats_B.items()} == pytest.approx(expected, rel=1e-5)


def test_an_even_router_has_balance_one():
    """Token t prefers expert t mod E, by a hair: all loads and mean probabilities are alike."""
    logits_BxLxE = 1e-3 * jnp.tile(jnp.eye(4), (2, 1))[None]
    _, _, stats_B = routed(logits_BxLxE, 1)
    assert stats_B["balance"][0] == pytest.approx(1, abs=1e-6)
    assert stats_B["load_max"][0] == 1
    assert stats_B["router_entropy"][0] == pytest.approx(math.log(4), abs=1e-6)


@pytest.mark.parametrize("choices", [1, 3])
def test_balance_pulls_towards_the_experts_that_are_free(choices):
    """A step down its gradient makes the load of the fullest smaller, though the load itself has no derivative."""
    logits_BxLxE = jax.random.normal(jax.random.key(0), (1, 64, E)) + jnp.arange(E) / 4

    def balance(logits_BxLxE):
        return routed(logits_BxLxE, choices)[2]["balance"][0]

    before, slope = jax.value_and_grad(balance)(logits_BxLxE)
    stepped = logits_BxLxE - 50 * slope
    assert balance(stepped) < before
    assert routed(stepped, choices)[2]["load_max"][0] < routed(logits_BxLxE, choices)[2]["load_max"][0]


def test_logits_are_fp32_under_bf16():
    """Inputs are rounded to bf16, and nothing else is: a router rounded to 8 bits would be 1e-3 off."""
    x_BxLxD = inputs().astype(jnp.bfloat16)
    logits = router_logits(x_BxLxD, weights()["router"])
    assert logits.dtype == jnp.float32
    near(logits, np.asarray(x_BxLxD, float) @ np.asarray(weights()["router"], float), 1e-6)


@pytest.mark.parametrize("factor", [None, 0.7])
def test_bf16_is_near_fp32_on_a_mesh(factor):
    """Within 2 %: bf16 has 8 bits, and three products in a row and their gradients round to them."""
    placement, x_BxLxD = Placement(expert=2, tensor=2, fsdp=2), inputs().astype(jnp.bfloat16)
    shape = with_factor(TOP_2, factor)
    model = Experts(shape, jnp.bfloat16, layout_of(placement))
    with jax.set_mesh(make_mesh(placement)):
        (_, (y, _)), (gradients, _) = differentiated(weights(), x_BxLxD, model)
    (_, (expected, _)), (of_params, _) = differentiated(weights(), x_BxLxD.astype(jnp.float32), Experts(shape))
    near(y, expected, 0.02)
    for name, leaf in of_params.items():
        assert gradients[name].dtype == jnp.float32
        near(gradients[name], leaf, 0.02)


def kinds_sent(shape, placement):
    """What the compiled forward pass sends between devices."""
    model = Experts(shape, layout=layout_of(placement))
    with jax.set_mesh(make_mesh(placement)):
        x = jax.ShapeDtypeStruct((B, L, D), jnp.float32, sharding=jax.P(("data", "fsdp", "expert")))
        text = jax.jit(lambda params, x: model.apply({"params": params}, x)[0]).lower(weights(), x).compile().as_text()
    return set(re.findall(r" (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(", text))


def test_rows_travel_and_nothing_else():
    """With capacity only rows do, to their experts and back; without, all tokens do. Logits and choices stay."""
    assert kinds_sent(with_factor(TOP_2, 1.0), Placement(expert=8)) == {"all-to-all"}
    assert kinds_sent(with_factor(TOP_2, 1.0), Placement(fsdp=8)) == {"all-gather"}  # of weights
    assert kinds_sent(TOP_2, Placement(expert=8)) == {"all-gather", "reduce-scatter"}


def test_the_likeliest_are_the_top_k():
    logits_BxLxE = jax.random.normal(jax.random.key(3), (4, 32, E)).at[0, 0].set(0.0)  # equal: the first ones
    for choices in (1, 3, E):
        assert (likeliest(logits_BxLxE, choices) == jax.lax.top_k(logits_BxLxE, choices)[1]).all()


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize(("choices", "rows"), [(1, 3), (2, 4), (3, 16)])
def test_seats_and_pairs_are_each_others_inverse(choices, rows, parts):
    """Each pair has one row in all parts together, or none; and each row that is taken knows its pair."""
    rng = np.random.default_rng(parts + choices)
    natural_LxJ = np.stack([rng.permutation(E)[:choices] for _ in range(L)])
    order = balanced_order(L, parts)
    found = jax.jit(seats, static_argnums=(1, 2, 3))(natural_LxJ[order], E, rows, parts)
    row_PxLxJ, pair_PxExC, dropped = (np.asarray(value) for value in found)
    C = pair_PxExC.shape[-1]
    assert -(-rows // parts) == C
    seated, taken = {}, np.zeros(E, int)
    for position, rank in np.ndindex(L, choices):
        e = natural_LxJ[position, rank]
        seated[position, rank] = (e, taken[e]) if taken[e] < rows else None
        taken[e] += 1
    assert dropped == pytest.approx(sum(seat is None for seat in seated.values()) / (L * choices))
    for part, place, rank in np.ndindex(parts, L, choices):
        seat, row = seated[order[place], rank], row_PxLxJ[part, place, rank]
        if seat is not None and seat[1] % parts == part:
            assert row == seat[0] * C + seat[1] // parts
            assert pair_PxExC[part].ravel()[row] == place * choices + rank
        else:
            assert row == E * C
    assert (pair_PxExC < L * choices).sum() == sum(seat is not None for seat in seated.values())


def test_the_gradient_of_taking_is_that_of_indexing():
    """Three of five rows are taken, one of them twice; one index is out of range."""
    source = jax.random.normal(jax.random.key(0), (5, 3))
    index, inverse = jnp.array([4, 1, 5, 4, 0]), jnp.array([[4, 5], [1, 5], [5, 5], [5, 5], [0, 3]])
    weight = jnp.arange(15.0).reshape(5, 3)
    ours = jax.grad(lambda s: jnp.sum(weight * take(s, index, inverse)))(source)
    plain = jax.grad(lambda s: jnp.sum(weight * jnp.where(index[:, None] < 5, s[index % 5], 0)))(source)
    assert (take(source, index, inverse)[2] == 0).all()
    assert (ours == plain).all()


def test_the_gradient_of_a_weight_is_summed_in_fp32():
    """Over 4096 entries of D, of numbers that are exact in bf16, against float64. A sum in bf16 would be off by 1 %."""
    rng = np.random.default_rng(0)
    gate = jnp.asarray(rng.random((2, 3, 2)), jnp.float32)
    y, along = (jnp.asarray(rng.standard_normal(of), jnp.bfloat16) for of in ((2, 3, 2, 4096), (2, 3, 4096)))
    found, back = jax.vjp(weighted, gate, y)
    of_gate, of_y = back(along)
    exact = [np.asarray(x, float) for x in (gate, y, along)]
    assert (of_gate.dtype, found.dtype, of_y.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    near(of_gate, np.einsum("bld,bljd->blj", exact[2], exact[1]))
    near(found, np.einsum("blj,bljd->bld", *exact[:2]), 2.0**-8)
    near(of_y, exact[0][..., None] * exact[2][:, :, None], 2.0**-8)


@pytest.mark.parametrize(
    ("length", "choices", "experts", "factor", "rows"),
    [
        (2048, 1, 8, 1.25, 320),
        (2048, 2, 8, 1.0, 512),
        (10, 1, 10, 1.1, 2),
        (100, 1, 10, 1.1, 11),  # 10 x 1.1 in floats is above 11
        (16, 2, 8, 100.0, 16),
        (2, 1, 64, 1.0, 1),
    ],
)
def test_rows_of_an_expert(length, choices, experts, factor, rows):
    shape = dataclasses.replace(SHAPE, n_experts=experts, experts_per_token=choices, capacity_factor=factor)
    assert expert_rows(shape, length) == rows


def test_a_mixture_is_not_exported_as_a_dense_model():
    shape = dataclasses.replace(SHAPE, norm="rmsnorm", activation="swiglu")
    with pytest.raises(InputError, match=r"llama has n_experts=0, not 8 "):
        hf_layout_of(shape)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_experts": 1}, r"model.n_experts=1 \(0 for none, or at least 2\)"),
        ({"experts_per_token": 9}, "model.experts_per_token=9 is outside 1 to n_experts=8"),
        ({"capacity_factor": 0.0}, "model.capacity_factor=0.0 is not positive"),
        ({"router_z_loss": -1.0}, "a weight of the router's losses is negative"),
        ({"biases": True}, "model.biases with experts"),
        ({"n_experts": 0, "capacity_factor": 1.0}, "model.capacity_factor=1.0 without experts"),
    ],
)
def test_impossible_experts_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SHAPE, **fields)
