import dataclasses
import math

import jax
import numpy as np
import pytest

from scaling.models.counts import (
    active_parameters,
    chinchilla_flops_per_token,
    counts,
    flops_per_token,
    forward_flops,
    n_published,
    parameters,
)
from scaling.models.ladder import CHINCHILLA, chinchilla_shape
from scaling.models.transformer import abstract_params
from scaling.parallel.mesh import make_mesh
from scaling.runs import DataSpec, ModelShape, OptimizerSpec, Placement, Run, ScheduleSpec
from scaling.training.step import make_program

SHAPE = ModelShape(d_model=32, n_layers=3, n_heads=4, d_ff=96, vocab_size=50)
# Table A4 of Hoffmann et al. 2022, FLOPs / 6ND at S = 2048, by the label that the size has in Table A9.
TABLE_A4 = {"74M": 1.03, "306M": 1.10, "552M": 1.08, "1143M": 1.04, "1593M": 1.03, "6796M": 0.99}


def random_shape(seed):
    rng = np.random.default_rng(seed)
    heads = int(rng.integers(1, 4)) * 2
    learned = rng.random() < 0.5
    head_size = 2 * int(rng.integers(1, 9))
    experts = {"n_experts": int(rng.integers(3, 9)), "experts_per_token": int(rng.integers(1, 4))} if seed % 3 else {}
    return ModelShape(
        d_model=int(rng.integers(1, 65)) if seed % 2 else heads * head_size,
        n_layers=int(rng.integers(1, 7)),
        n_heads=heads,
        d_ff=int(rng.integers(1, 200)),
        vocab_size=int(rng.integers(2, 400)),
        d_head=head_size if seed % 2 else None,
        n_kv_heads=[None, 1, 2][rng.integers(3)],
        n_positions=int(rng.integers(2, 99)) if learned else None,
        norm=["rmsnorm", "layernorm"][rng.integers(2)],
        positions="learned" if learned else "rotary",
        activation=["gelu", "swiglu"][rng.integers(2)],
        tied_embeddings=bool(rng.integers(2)),
        qk_norm=bool(rng.integers(2)),
        biases=bool(rng.integers(2)) and not experts,
        **experts,
    )


def pieces(shape):
    """Sizes of the abstract tree by the piece that each leaf's name says it belongs to."""
    sizes = dict.fromkeys(("N_embedding", "N_head", "N_blocks", "N_norms"), 0)
    for path, leaf in jax.tree.leaves_with_path(abstract_params(shape)):
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        if any("norm" in name for name in names):
            sizes["N_norms"] += math.prod(leaf.shape)
        elif names[0] == "blocks":
            sizes["N_blocks"] += math.prod(leaf.shape)
        else:
            sizes["N_head" if names == ["head"] else "N_embedding"] += math.prod(leaf.shape)
    return sizes


def traced_step(shape, length, batch_size, scan_layers):
    """The training step and the abstract arguments that it is called with.

    By the plain kernels, as counts are of all pairs of positions: in blocks attention skips some, and computes others
    again.
    """
    data = DataSpec("store", length, 2)
    run = Run(shape, data, batch_size, 10, OptimizerSpec(1e-3), ScheduleSpec("cosine", 1), z_loss=1e-4)
    placement = Placement(scan_layers=scan_layers, loss_chunk=length, kernels="plain")  # a chunk takes one more product
    program = make_program(run, placement, make_mesh(placement))
    tokens_BxM = jax.ShapeDtypeStruct((batch_size, length + 1), np.int32)
    return program.step, (program.abstract_state, tokens_BxM, jax.ShapeDtypeStruct((), np.float32))


def equations(jaxpr, times=1):
    """Every equation of a jaxpr and of those inside it, with how often it runs: a scan's body, once a turn."""
    for equation in jaxpr.eqns:
        inner = [
            getattr(value, "jaxpr", value)
            for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
            if hasattr(value, "eqns") or hasattr(value, "jaxpr")
        ]
        assert equation.primitive.name not in ("while", "cond"), "how often it runs is not known"
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        for body in inner:
            yield from equations(body, times * turns)
        if not inner:
            yield equation, times


def dot_flops(equation):
    """A multiply-add is two, for each entry of the result and of the contracted dimensions."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    lengths = [equation.invars[0].aval.shape[i] for i in contracted]
    return 2 * math.prod(lengths) * equation.outvars[0].aval.size


def ragged_flops(equation):
    """Each row is multiplied once, also where rows are what is contracted and each group has a matrix of its own."""
    x, _, sizes = (variable.aval for variable in equation.invars)
    ragged = equation.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = ragged.dot_dimension_numbers
    groups = sizes.size if set(ragged.lhs_ragged_dimensions) & set(contracted) else 1
    return 2 * math.prod(x.shape[i] for i in contracted) * equation.outvars[0].aval.size // groups


PRODUCTS = {"dot_general": dot_flops, "ragged_dot_general": ragged_flops}


def dots(jaxpr):
    products = ((PRODUCTS[e.primitive.name](e), n) for e, n in equations(jaxpr) if e.primitive.name in PRODUCTS)
    return sum(flops * times for flops, times in products)


@pytest.mark.parametrize("seed", range(24))
def test_parameters_equal_the_abstract_tree_piece_by_piece(seed):
    shape = random_shape(seed)
    counted = parameters(shape)
    assert dataclasses.asdict(counted) == pieces(shape)
    assert counted.N == sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(shape)))


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied_embeddings": True, "output_init": "zero"},
        {"activation": "swiglu", "qk_norm": True},
        {"n_kv_heads": 2, "d_head": 6, "norm": "layernorm", "biases": True},
        {"n_kv_heads": 1, "positions": "learned", "n_positions": 40, "activation": "swiglu", "tied_embeddings": True},
        {"n_experts": 4, "activation": "swiglu"},
        {"n_experts": 4, "experts_per_token": 3},
        {"n_experts": 4, "experts_per_token": 2, "capacity_factor": 1.0, "activation": "swiglu"},  # 12 rows an expert
    ],
)
def test_matmul_flops_equal_the_dot_generals_of_the_step(options, scan_layers):
    """Exactly: forward, and twice that backward, by walking the traced training step."""
    shape, length, batch_size = dataclasses.replace(SHAPE, **options), 24, 3
    step, arguments = traced_step(shape, length, batch_size, scan_layers)
    forward = forward_flops(shape, length)
    expected = 3 * (forward.matmul + forward.attention + forward.head) * length * batch_size
    assert dots(jax.make_jaxpr(step)(*arguments).jaxpr) == expected
    assert flops_per_token(shape, length) * length * batch_size == expected


def test_forward_flops_by_piece():
    """Each piece alone: the head by the vocabulary, attention by the length, the matrices by what is left."""
    twice_V = dataclasses.replace(SHAPE, vocab_size=2 * SHAPE.vocab_size)
    one, head, attention = forward_flops(SHAPE, 24), forward_flops(twice_V, 24), forward_flops(SHAPE, 48)
    assert head == dataclasses.replace(one, head=2 * one.head)
    assert attention == dataclasses.replace(one, attention=2 * one.attention)
    assert one.matmul == 2 * parameters(SHAPE).N_blocks
    assert one.head == 2 * parameters(SHAPE).N_head
    assert one.attention == 2 * (2 * 24 * SHAPE.d_model) * SHAPE.n_layers  # two products, q k^T and weights x v


@pytest.mark.parametrize("label", ["74M", "552M"])
def test_flops_are_within_one_percent_of_xla_from_70m_up(label):
    """XLA also counts softmax, norms, loss and Adam, one FLOP an operation: that is what the 1 % is for.

    Nothing is compiled, and no array exists. Layers are unscanned, as XLA counts the body of a loop once.
    """
    shape, length, batch_size = chinchilla_shape(label), 2048, 8
    step, arguments = traced_step(shape, length, batch_size, scan_layers=False)
    xla = step.lower(*arguments).cost_analysis()["flops"]
    assert 1 < xla / (flops_per_token(shape, length) * length * batch_size) < 1.01


TINY = ModelShape(32, 2, 2, 128, 257, tied_embeddings=True, output_init="zero")


def test_flops_are_within_three_percent_of_xla_at_d_32_with_the_published_vocabulary():
    """V = 32,000 and 16k tokens a step, so that the head and not the norms is most of the work."""
    shape, length, batch_size = dataclasses.replace(TINY, vocab_size=32_000), 64, 256
    step, arguments = traced_step(shape, length, batch_size, scan_layers=False)
    xla = step.lower(*arguments).cost_analysis()["flops"]
    assert 1 < xla / (flops_per_token(shape, length) * length * batch_size) < 1.03


ARITHMETIC = ("add", "add_any", "sub", "mul", "div", "neg", "max", "min", "square", "integer_pow", "eq", "select_n")
REDUCTIONS = ("reduce_sum", "reduce_max")


def test_what_xla_counts_beyond_at_d_32_is_elementwise_arithmetic():
    """With V = 257 XLA counts 7 % more. It is all there in the traced step: an operation an entry of each elementwise
    result, comparisons and choices too, and of each entry that is summed. 0.5 % is for what XLA makes of the others
    (gathers, powers), and for what it finds written twice or for nothing: 0.4 % since the derivatives of norms and GELU
    are written out.
    """
    length, batch_size = 64, 8
    step, arguments = traced_step(TINY, length, batch_size, scan_layers=False)
    jaxpr = jax.make_jaxpr(step)(*arguments).jaxpr
    beyond = 0
    for equation, times in equations(jaxpr):
        name = equation.primitive.name
        beyond += times * equation.outvars[0].aval.size if name in ARITHMETIC else 0
        beyond += times * equation.invars[0].aval.size if name in REDUCTIONS else 0
    model = flops_per_token(TINY, length) * length * batch_size
    xla = step.lower(*arguments).cost_analysis()["flops"]
    assert 1.06 < xla / model < 1.08
    assert abs(xla - beyond - model) < 0.005 * model


@pytest.mark.parametrize("label", CHINCHILLA)
def test_published_sizes(label):
    assert abs(n_published(chinchilla_shape(label)) / (1e6 * int(label[:-1])) - 1) < 0.01


def test_a_real_tree_is_smaller_than_its_label():
    shape = chinchilla_shape("16183M", tied_embeddings=True)
    assert round(1 - parameters(shape).N / 16_183e6, 3) == 0.076
    assert round(1 - parameters(shape).N / n_published(shape), 3) == 0.076


@pytest.mark.parametrize(("label", "ratio"), TABLE_A4.items())
def test_table_a4(label, ratio):
    """Within its rounding, and half a hundredth more: its sizes have three digits, its FLOPs two."""
    shape = chinchilla_shape(label)
    counted = chinchilla_flops_per_token(shape, 2048, layers_only=True) / (6 * n_published(shape))
    assert abs(counted - ratio) < 0.01


def test_table_a4_does_not_come_out_with_the_terms_that_the_text_lists():
    shape = chinchilla_shape("74M")
    counted = chinchilla_flops_per_token(shape, 2048, layers_only=False) / (6 * n_published(shape))
    assert round(counted, 2) == 1.58


def test_counts_of_a_run():
    """Every convention, worked out by hand for D 32, N 3, H 4, F 96, V 50 at L = 24."""
    tokens = 1000
    counted = counts(SHAPE, 24, tokens)
    blocks, norms, head = 3 * (4 * 32 * 32 + 2 * 32 * 96), 7 * 32, 50 * 32
    attention = 4 * 3 * 24 * 32
    assert counted == {
        "N": blocks + norms + 2 * head,
        "N_active": blocks + norms + 2 * head,
        "D": tokens,
        "N_embedding": head,
        "N_head": head,
        "N_blocks": blocks,
        "N_norms": norms,
        "flops_forward_matmul": 2 * blocks,
        "flops_forward_attention": attention,
        "flops_forward_head": 2 * head,
        "C": 3 * (2 * blocks + attention + 2 * head) * tokens,
        "C_6nd": 6 * (blocks + norms + 2 * head) * tokens,
        "C_chinchilla": counted["C_chinchilla_layers"] + 3 * 4 * head * tokens,
        "C_chinchilla_layers": 3 * 3 * (8 * 32 * 32 + 4 * 24 * 32 + 3 * 4 * 24 + 4 * 32 * 96) * tokens,
        "C_causal": 3 * (2 * blocks + attention * 25 / 48 + 2 * head) * tokens,
        "C_nonembedding": 6 * (blocks + norms) * tokens,
    }
    assert all(isinstance(value, float) for value in counted.values())


def test_counts_of_experts():
    """Two of eight: what is stored and what is computed, by hand. Two choices count as a feed-forward twice as wide."""
    shape = dataclasses.replace(SHAPE, n_experts=8, experts_per_token=2)
    attention, one, router, norms, tables = 3 * 4 * 32 * 32, 3 * 2 * 32 * 96, 3 * 32 * 8, 7 * 32, 2 * 50 * 32
    assert parameters(shape).N_blocks == attention + 8 * one + router
    assert active_parameters(shape) == attention + 2 * one + router + norms + tables
    counted = counts(shape, 24, 1000)
    assert counted["N"] == attention + 8 * one + router + norms + tables
    assert counted["N_active"] == active_parameters(shape)
    assert counted["flops_forward_matmul"] == 2 * (attention + 2 * one + router)
    assert counted["C_6nd"] == 6 * active_parameters(shape) * 1000
    assert counted["C_nonembedding"] == 6 * (active_parameters(shape) - tables) * 1000
    wide = counts(dataclasses.replace(SHAPE, d_ff=2 * 96), 24, 1000)
    for name in ("C_chinchilla", "C_chinchilla_layers"):
        assert counted[name] == wide[name]
    for name in ("C", "C_causal"):
        assert counted[name] == wide[name] + 6 * router * 1000


def test_a_capacity_factor_does_not_change_the_counts():
    shape = dataclasses.replace(SHAPE, n_experts=8, experts_per_token=2)
    assert counts(dataclasses.replace(shape, capacity_factor=1.25), 24, 1000) == counts(shape, 24, 1000)


def test_counts_do_not_overflow_at_scale():
    """6 N D of 16G parameters and 1e12 tokens is 1e23, beyond int64."""
    counted = counts(chinchilla_shape("16183M"), 2048, 10**12)
    assert math.isclose(counted["C_6nd"], 6 * counted["N"] * 1e12)
    assert counted["C_6nd"] > 2**63
