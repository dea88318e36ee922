import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from scaling.models.attention import causal_attention, rotary_tables, rotate
from scaling.models.module import shifted
from scaling.models.parameter_files import flatten, unflatten
from scaling.models.transformer import Transformer, abstract_params, init_params
from scaling.runs import ModelShape
from scaling.training.optimizer import decay_mask
from scaling.training.step import summed_loss

pytestmark = pytest.mark.usefixtures("quick_compilation")

L = 8
SHAPE = ModelShape(d_model=16, n_layers=2, n_heads=4, d_ff=32, vocab_size=L + 1)
TOKENS_1xL = np.arange(L)[None]  # each token once, so that row j of the embedding is the input at position j alone
OPTIONS = {
    "norm": ("rmsnorm", "layernorm"),
    "positions": ("rotary", "learned"),
    "activation": ("gelu", "swiglu"),
    "tied_embeddings": (False, True),
    "qk_norm": (False, True),
    "n_kv_heads": (None, 2),
    "biases": (False, True),
}
# The orthogonal array L8(2^7): each pair of options meets in each of its four combinations, in eight rows for 128.
PAIRWISE = [
    [sum(map(int, f"{row & column:b}")) % 2 for column in range(1, 8)] for row in range(8)
]  # parity of the common bits
EPS = float(np.finfo(np.float32).eps)
# Sums in another order: relative errors of about the square root of the number of terms (at most some thousands of
# them here) in units of EPS, so 1e-5; entries that cancel are as exact as the largest one beside them.
SUMMED = 1e-5


def shape_of(choices):
    values = {name: values[choice] for (name, values), choice in zip(OPTIONS.items(), choices, strict=True)}
    return dataclasses.replace(SHAPE, **values, n_positions=L if values["positions"] == "learned" else None)


ROWS = [shape_of(row) for row in PAIRWISE]


@functools.cache
def initial(shape):
    """Random parameters, with no leaf at zero or one: biases and scales must show when they are misplaced."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), nn.unbox(abstract_params(shape))
    )


def hidden(shape, params, tokens=TOKENS_1xL, **options):
    return Transformer(shape, **options).apply({"params": params}, tokens)[0]


def unstacked(shape, params):
    """The same parameters as the unscanned model names them."""
    layers = {f"layers_{n}": jax.tree.map(lambda x, n=n: x[n], params["blocks"]) for n in range(shape.n_layers)}
    return {**{name: x for name, x in params.items() if name != "blocks"}, **layers}


@functools.cache
def loss_and_gradient(shape, scan=True, **options):
    """At the parameters of `initial`, whichever way the model holds them."""
    tokens_BxM = np.random.default_rng(0).integers(shape.vocab_size, size=(3, L + 1))
    model = Transformer(shape, scan=scan, **options)
    params = initial(shape) if scan else unstacked(shape, initial(shape))
    return jax.jit(jax.value_and_grad(lambda p: summed_loss(model, p, tokens_BxM, 0.0, None)[0] / (3 * L)))(params)


def assert_close(tree, expected, rtol=SUMMED):
    """Leaf by leaf, relative to the leaf's largest entry, or to 1e-3 if that is larger.

    Without rotary positions and norms, a key bias moves all scores of a query alike: its gradient is rounding alone.
    """
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for (path, x), y in zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(expected), strict=True):
        atol = rtol * max(np.abs(y).max(), 1e-3)
        np.testing.assert_allclose(x, y, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


def rows(chosen):
    return pytest.mark.parametrize("shape", ROWS[chosen], ids=["".join(map(str, row)) for row in PAIRWISE[chosen]])


@rows(slice(4))  # in these four, every option that the hidden states see takes both its values
def test_causality_by_gradients(shape):
    """The output at i does not depend on the input at any j > i, exactly, and does depend on each j <= i."""
    params = initial(shape)

    def output(embedding_VxD):
        return hidden(shape, {**params, "embedding": embedding_VxD})[0]

    jacobian_LxDxVxD = jax.jit(jax.jacrev(output))(params["embedding"])
    largest_LxL = jnp.abs(jacobian_LxDxVxD).max(axis=(1, 3))[:, :L]
    assert np.array_equal(largest_LxL > 0, np.tril(np.ones((L, L), bool)))
    assert np.all(largest_LxL[np.tril_indices(L)] > 100 * EPS)  # not by rounding


@rows(slice(4, 8))
def test_scan_equals_unscanned(shape):
    loss, gradient = loss_and_gradient(shape)
    unscanned_loss, unscanned_gradient = loss_and_gradient(shape, scan=False)
    assert math.isclose(loss, unscanned_loss, rel_tol=SUMMED)
    assert_close(unscanned_gradient, unstacked(shape, gradient))


@pytest.mark.parametrize("scan", [True, False])
def test_remat_changes_nothing_and_is_there(scan):
    shape = ROWS[4]
    assert_close(loss_and_gradient(shape, scan, remat="full"), loss_and_gradient(shape, scan))
    params = initial(shape) if scan else unstacked(shape, initial(shape))

    def traced(remat):
        return str(jax.make_jaxpr(lambda p: hidden(shape, p, scan=scan, remat=remat))(params))

    assert "remat" in traced("full")
    assert "remat" not in traced("none")


@rows(slice(8))
def test_zero_output_projections_make_every_block_the_identity(shape):
    """But for biases: the hidden states are then the final norm of embeddings and biases, worked out in float64."""
    shape = dataclasses.replace(shape, norm_epsilon=0.03)
    params = initial(shape)

    def zero_outputs(path, x):
        return jnp.zeros_like(x) if path[-1].key in ("out", "down") else x

    x_LxD = np.asarray(params["embedding"][:L], np.float64)
    if shape.positions == "learned":
        x_LxD = x_LxD + params["positions"]
    if shape.biases:
        blocks = params["blocks"]
        x_LxD = x_LxD + (blocks["attention"]["out_bias"] + blocks["mlp"]["down_bias"]).sum(axis=0)
    if shape.norm == "layernorm":
        x_LxD = x_LxD - x_LxD.mean(axis=-1, keepdims=True)
    expected = x_LxD / np.sqrt((x_LxD**2).mean(axis=-1, keepdims=True) + shape.norm_epsilon)
    expected = expected * params["final_norm"]["scale"] + params["final_norm"].get("bias", 0.0)
    silenced = hidden(shape, jax.tree.map_with_path(zero_outputs, params))[0]
    np.testing.assert_allclose(silenced, expected, rtol=0, atol=10 * EPS * np.abs(expected).max())
    assert np.abs(hidden(shape, params)[0] - expected).max() > 0.01


def test_zero_output_init_is_of_the_output_projections_alone():
    shape = dataclasses.replace(SHAPE, output_init="zero", activation="swiglu", tied_embeddings=True)
    params = nn.unbox(jax.jit(lambda key: init_params(Transformer(shape), key))(jax.random.key(0)))
    zero = {path[-1].key for path, x in jax.tree.leaves_with_path(params) if not np.any(x)}
    assert zero == {"out", "down"}


def test_every_combination_of_options_traces():
    """All 128, abstractly: initialisation, forward pass, logits. The pairwise rows above are really run."""

    def logits(model, tokens_BxL):
        return model.logits(model(tokens_BxL)[0])

    for values in itertools.product((0, 1), repeat=len(OPTIONS)):
        shape = dataclasses.replace(shape_of(values), n_layers=1)
        model = Transformer(shape, scan=False)
        traced, _ = jax.eval_shape(
            lambda key, model=model: model.init_with_output(key, TOKENS_1xL, method=logits), jax.random.key(0)
        )
        assert (traced.shape, traced.dtype) == ((1, L, shape.vocab_size), np.float32)


def test_pairs_of_options_all_meet():
    for a, b in itertools.combinations(range(len(OPTIONS)), 2):
        assert {(row[a], row[b]) for row in PAIRWISE} == set(itertools.product((0, 1), repeat=2))


@rows(slice(4, 6))
def test_bf16_is_close_to_fp32_and_keeps_parameters_and_logits_in_fp32(shape):
    """A bf16 product is off by 2^-8 = 0.4 % at most, at random; a mean over tokens by less: 1 % of the loss."""
    params = initial(shape)
    loss, gradient = loss_and_gradient(shape)
    short_loss, short_gradient = loss_and_gradient(shape, dtype=jnp.bfloat16)
    assert math.isclose(loss, short_loss, rel_tol=0.01)
    assert loss != short_loss  # the type is used
    norm = math.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient)))
    off = jax.tree.map(lambda a, b: a - b, gradient, short_gradient)
    # A gradient sees the errors of the forward and of the backward pass, a dozen products deep: sqrt(12) x 2 x 0.4 %.
    assert math.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(off))) < 0.03 * norm
    assert {x.dtype for x in jax.tree.leaves((params, short_gradient))} == {np.dtype(np.float32)}
    x_BxLxD = hidden(shape, params, dtype=jnp.bfloat16)
    assert x_BxLxD.dtype == jnp.bfloat16
    model = Transformer(shape, jnp.bfloat16)
    assert model.apply({"params": params}, x_BxLxD, method=Transformer.logits).dtype == np.float32


def test_the_rotary_base_is_the_shapes():
    params = initial(SHAPE)
    other = hidden(dataclasses.replace(SHAPE, rotary_base=100.0), params)
    assert np.abs(other - hidden(SHAPE, params)).max() > 1e-3


def test_a_bias_is_what_a_constant_input_adds():
    """Entry 0 of the normed input is made 1 everywhere: row 0 of a matrix then does what its bias does."""
    shape = dataclasses.replace(SHAPE, n_kv_heads=2, norm="layernorm", activation="swiglu", biases=True)
    params = flatten(initial(shape))
    for norm in ("norm1", "norm2"):
        params[f"blocks/{norm}/scale"] = params[f"blocks/{norm}/scale"].at[:, 0].set(0.0)
        params[f"blocks/{norm}/bias"] = params[f"blocks/{norm}/bias"].at[:, 0].set(1.0)
    for name in ("attention/q", "attention/k", "attention/v", "mlp/up", "mlp/gate"):
        matrix, bias = params[f"blocks/{name}"], params[f"blocks/{name}_bias"]
        without = {**params, f"blocks/{name}_bias": jnp.zeros_like(bias)}
        moved = {**without, f"blocks/{name}": matrix.at[:, 0].add(bias.reshape(matrix[:, 0].shape))}
        expected, other, none = (hidden(shape, unflatten(p)) for p in (params, moved, without))
        np.testing.assert_allclose(other, expected, rtol=0, atol=SUMMED * np.abs(expected).max(), err_msg=name)
        assert np.abs(none - expected).max() > 1e-3, name


def test_biases_start_at_zero_and_do_not_decay():
    shape = dataclasses.replace(SHAPE, biases=True, activation="swiglu")
    params = flatten(nn.unbox(jax.jit(lambda key: init_params(Transformer(shape), key))(jax.random.key(0))))
    biases = {name for name in params if name.endswith("_bias")}
    assert len(biases) == 7
    assert {name for name, x in params.items() if not np.any(x)} == biases
    assert {name for name, yes in flatten(decay_mask(abstract_params(shape))).items() if not yes} == {
        name for name in params if name in biases or "norm" in name
    }


def test_the_gradient_of_a_shift_is_summed_in_fp32():
    """Over 65,536 tokens, each with a gradient of 1: in bf16, where 257 is no number, the sum would end too early."""
    x_BxLxD = jnp.zeros((16, 4096, 2), jnp.bfloat16)
    gradient_D = jax.jit(jax.grad(lambda shift_D: jnp.sum(shifted(x_BxLxD, shift_D), dtype=jnp.float32)))(x_BxLxD[0, 0])
    assert gradient_D.dtype == jnp.bfloat16
    assert gradient_D.tolist() == [65536, 65536]


def test_learned_positions_and_rotary_ones_see_the_order():
    """The last output changes when two earlier inputs change places, which without positions it would not.

    Two layers would let the causal mask tell the order: one layer does not.
    """
    swapped = np.array([[1, 0, *range(2, L)]])
    for positions, rows in (("rotary", None), ("learned", L)):
        shape = dataclasses.replace(SHAPE, n_layers=1, positions=positions, n_positions=rows)
        params = initial(shape)
        difference = hidden(shape, params)[0, -1] - hidden(shape, params, swapped)[0, -1]
        assert np.abs(difference).max() > 1e-3
        if positions == "learned":
            without = {**params, "positions": jnp.zeros_like(params["positions"])}
            np.testing.assert_allclose(
                hidden(shape, without)[0, -1], hidden(shape, without, swapped)[0, -1], rtol=0, atol=SUMMED
            )


def test_initial_scales():
    """Each matrix has the standard deviation that its name promises, to four standard errors, layer by layer."""
    shape = ModelShape(64, 3, 2, 256, 512, positions="learned", n_positions=128, activation="swiglu")
    params = nn.unbox(jax.jit(lambda key: init_params(Transformer(shape), key))(jax.random.key(0)))
    D, residual = 1 / math.sqrt(64), 1 / math.sqrt(2 * 3)
    blocks = params["blocks"]
    expected = [(params[name], D) for name in ("embedding", "positions", "head")]
    expected += [(x, D) for n in range(3) for x in (blocks["attention"][w][n] for w in "qkv")]
    expected += [(blocks["mlp"][w][n], D) for n in range(3) for w in ("up", "gate")]
    expected += [(blocks["attention"]["out"][n], residual / math.sqrt(64)) for n in range(3)]
    expected += [(blocks["mlp"]["down"][n], residual / math.sqrt(256)) for n in range(3)]
    for x, std in expected:
        assert abs(jnp.std(x) / std - 1) < 4 / math.sqrt(2 * x.size)
    q_NxDxHxK = blocks["attention"]["q"]
    assert not np.allclose(q_NxDxHxK[0], q_NxDxHxK[1])  # layers are drawn apart


def test_rotary_scores_depend_on_relative_position_only():
    """The same query and key everywhere: scores are constant along diagonals, and differ between them."""
    length, K = 64, 16
    q, k = np.random.default_rng(0).standard_normal((2, K)).astype(np.float32)
    tables = rotary_tables(np.arange(length), K, 10_000.0)
    q_LxK, k_LxK = (rotate(jnp.broadcast_to(x, (1, length, 1, K)), tables)[0, :, 0] for x in (q, k))
    scores_LxL = np.asarray(q_LxK @ k_LxK.T, np.float64)
    # An angle of up to 64 in fp32 is off by up to 64 EPS / 2, and so is the score relative to |q||k|; a pair has two.
    rounding = length * EPS * np.linalg.norm(q) * np.linalg.norm(k)
    np.testing.assert_allclose(scores_LxL[1:, 1:], scores_LxL[:-1, :-1], rtol=0, atol=rounding)
    assert len(np.unique(scores_LxL[-1].round(3))) > length / 2
    assert math.isclose(scores_LxL[0, 0], q @ k, rel_tol=10 * EPS)


@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
def test_rotary_is_a_complex_rotation(base):
    """Su et al. 2021, eq. 15 in its complex form: pair n at position l turns by l / base^(2n / K)."""
    length, K = 32, 8
    x_LxK = np.random.default_rng(0).standard_normal((length, K))
    turned = np.asarray(
        rotate(jnp.asarray(x_LxK, jnp.float32)[None, :, None], rotary_tables(np.arange(length), K, base))[0, :, 0]
    )
    angles_LxK = np.arange(length)[:, None] * base ** (-2 * np.arange(K // 2) / K)
    expected = (x_LxK[:, : K // 2] + 1j * x_LxK[:, K // 2 :]) * np.exp(1j * angles_LxK)
    atol = length * EPS * np.abs(x_LxK).max()  # rounding of the angles
    np.testing.assert_allclose(turned[:, : K // 2], expected.real, rtol=0, atol=atol)
    np.testing.assert_allclose(turned[:, K // 2 :], expected.imag, rtol=0, atol=atol)


def test_attention_equals_its_formula():
    """Vaswani et al. 2017, eq. 1, query by query in float64; query head h reads key-value head h // (H / G)."""
    B, H, G, K = 2, 4, 2, 6
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((B, L, heads, K)).astype(np.float32) for heads in (H, G, G))
    expected = np.empty((B, L, H, K))
    for b, i, h in np.ndindex(B, L, H):
        g = h // (H // G)
        scores = np.exp(k[b, : i + 1, g].astype(np.float64) @ q[b, i, h] / math.sqrt(K))
        expected[b, i, h] = scores / scores.sum() @ v[b, : i + 1, g]
    np.testing.assert_allclose(causal_attention(q, k, v), expected, rtol=0, atol=SUMMED)


def test_grouped_queries_equal_repeated_key_value_heads():
    shape = dataclasses.replace(SHAPE, n_kv_heads=2)
    params = initial(shape)
    attention = params["blocks"]["attention"]
    repeated = {**attention, **{name: jnp.repeat(attention[name], 2, axis=2) for name in ("k", "v")}}
    full = {**params, "blocks": {**params["blocks"], "attention": repeated}}
    assert abstract_params(SHAPE)["blocks"]["attention"]["k"].value.shape == repeated["k"].shape
    np.testing.assert_allclose(hidden(SHAPE, full), hidden(shape, params), rtol=0, atol=SUMMED)
