import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from scaling.models import chunks
from scaling.models.module import Kernels
from scaling.models.transformer import Transformer, abstract_params
from scaling.parallel.mesh import make_mesh
from scaling.runs import DataSpec, ModelShape, OptimizerSpec, Placement, Run, ScheduleSpec
from scaling.training import step as step_module
from scaling.training.optimizer import decay_mask
from scaling.training.step import State, make_program, summed_loss, token_losses

pytestmark = pytest.mark.usefixtures("quick_compilation")

PLAIN = Placement()
B, L = 4, 8
SHAPE = ModelShape(d_model=16, n_layers=2, n_heads=2, d_ff=32, vocab_size=11)
LEARNED = dataclasses.replace(SHAPE, norm="layernorm", positions="learned", n_positions=L, qk_norm=True)
# eps is large so that an update is a smooth function of the gradient; see tests/parallel/test_mesh.py.
SMOOTH = OptimizerSpec(peak_lr=0.01, eps=1.0, weight_decay=0.0, clip_norm=None)
SUMMED = 1e-5  # relative to the largest entry: sums of some hundred fp32 terms in another order
TOKENS_BxM = np.random.default_rng(0).integers(SHAPE.vocab_size, size=(B, L + 1)).astype(np.int32)
LR = np.float32(0.01)


def run_of(shape=SHAPE, optimizer=SMOOTH, **options):
    return Run(shape, DataSpec("store", L, 2), B, 10, optimizer, ScheduleSpec("cosine", 1), **options)


def program_of(run, placement=PLAIN):
    return make_program(run, placement, make_mesh(placement))


def params_of(shape):
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), nn.unbox(abstract_params(shape))
    )


def stepped(run, placement=PLAIN, params=None):
    """One step from given parameters: the state after it, and its metrics."""
    program = program_of(run, placement)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), program.abstract_state.optimizer)
    params = params_of(run.model) if params is None else params
    return program.step(State(jax.tree.map(jnp.copy, params), zeros), TOKENS_BxM, LR)  # a step consumes its state


def hidden_of(params):
    hidden = jax.jit(lambda p: Transformer(SHAPE).apply({"params": p}, TOKENS_BxM[:, :-1])[0])(params)
    return np.asarray(hidden, np.float64)


def mean_loss(shape, params, z_loss=0.0, chunk=None):
    return summed_loss(Transformer(shape), params, TOKENS_BxM, z_loss, chunk)[0] / (B * L)


def norm(tree):
    return math.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree)))


def assert_close(tree, expected, rtol=SUMMED):
    for (path, x), y in zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(expected), strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * max(np.abs(y).max(), 1e-3), err_msg=name)


GOLDEN = {"loss": [2.691555, 2.393624, 1.846008], "grad_norm": [2.807761, 3.892089, 1.592418]}


def test_golden_metrics():
    """The first three steps of a tiny model. They change with initialisation, model, loss, optimizer or step.

    1e-4: jax versions differ in the order of fp32 sums, by 1e-6 of a loss after one step; Adam with its usual eps makes
    that more. Any mistake that matters is larger.
    """
    optimizer = OptimizerSpec(peak_lr=0.01)
    program = program_of(run_of(LEARNED, optimizer, z_loss=1e-3))
    state = program.init(jax.random.key(0))
    metrics = {"loss": [], "grad_norm": []}
    for _ in range(3):
        state, values = program.step(state, TOKENS_BxM, LR)
        for name, value in values.items():
            metrics[name].append(round(float(value), 6))
    for name, expected in GOLDEN.items():
        np.testing.assert_allclose(
            metrics[name],
            expected,
            rtol=1e-4,
            err_msg=f"the first steps of training changed. If that was meant, old results cannot be reproduced any "
            f"more: say so in the change, and set GOLDEN = {metrics}",
        )


def test_the_loss_is_the_mean_of_minus_log_probability():
    """Worked out in float64 from the hidden states; all tokens weigh the same, and the z-loss is not part of it."""
    _, metrics = stepped(run_of(z_loss=0.1))
    params = params_of(SHAPE)
    logits = hidden_of(params) @ np.asarray(params["head"], np.float64)
    log_z = np.log(np.exp(logits).sum(axis=-1))
    nll = log_z - np.take_along_axis(logits, TOKENS_BxM[:, 1:, None], axis=-1)[..., 0]
    assert math.isclose(metrics["loss"], nll.mean(), rel_tol=SUMMED)
    losses_W = program_of(run_of(z_loss=0.1)).window_losses(params, TOKENS_BxM)
    np.testing.assert_allclose(losses_W, nll.mean(axis=1), rtol=SUMMED)


@pytest.mark.parametrize("z_loss", [0.0, 0.5])
def test_gradient_of_the_head_at_zero_logits(z_loss):
    """With a head of zeros, p = 1/V, log Z = ln V and only the head has a gradient: for token v, summed over positions,
    h (1/V - [y = v] + 2 z ln V / V), the last term being that of z (log Z)^2 (PaLM, section 5)."""
    params = {**params_of(SHAPE), "head": jnp.zeros((SHAPE.d_model, SHAPE.vocab_size))}
    _, metrics = stepped(run_of(z_loss=z_loss), params=params)
    V = SHAPE.vocab_size
    error = (1 + 2 * z_loss * math.log(V)) / V - np.eye(V)[TOKENS_BxM[:, 1:]]
    gradient_DxV = np.einsum("bld,blv->dv", hidden_of(params), error) / (B * L)
    assert math.isclose(metrics["loss"], math.log(V), rel_tol=SUMMED)
    assert math.isclose(metrics["grad_norm"], norm(gradient_DxV), rel_tol=SUMMED)


@pytest.mark.parametrize(("chunk", "shape"), [(1, SHAPE), (4, dataclasses.replace(LEARNED, tied_embeddings=True))])
def test_chunked_loss_equals_plain_loss(chunk, shape):
    """Token by token, and the gradient, with the z-loss."""
    losses = jax.jit(lambda p, c: token_losses(Transformer(shape), p, TOKENS_BxM, c), static_argnums=1)
    gradient = jax.jit(jax.grad(lambda p, c: mean_loss(shape, p, 0.1, c)), static_argnums=1)
    params = params_of(shape)
    assert_close(losses(params, chunk), losses(params, L))
    assert_close(gradient(params, chunk), gradient(params, L))


def test_a_large_vocabulary_is_chunked_unasked(monkeypatch):
    monkeypatch.setattr(chunks, "MAX_LOGITS", 2 * SHAPE.vocab_size)
    text = str(jax.make_jaxpr(lambda p: mean_loss(SHAPE, p))(params_of(SHAPE)))
    assert f"f32[{B},2,{SHAPE.vocab_size}]" in text
    assert f"f32[{B},{L},{SHAPE.vocab_size}]" not in text


@pytest.mark.parametrize("microbatch", [1, 2])
def test_accumulation_equals_the_big_batch(microbatch):
    state, metrics = stepped(run_of(z_loss=0.1))
    parts, parts_metrics = stepped(run_of(z_loss=0.1), Placement(microbatch=microbatch))
    assert_close(parts, state)
    assert_close(parts_metrics, metrics)


@pytest.mark.parametrize("clip_norm", [None, 1e-3, 1e3])
def test_first_update_is_adams_of_the_clipped_gradient(clip_norm):
    """Kingma & Ba 2015: with bias correction the first update is g / (|g| + eps); clipping scales g to clip_norm."""
    run = run_of(optimizer=dataclasses.replace(SMOOTH, clip_norm=clip_norm))
    state, metrics = stepped(run)
    params = params_of(SHAPE)
    gradient = jax.jit(jax.grad(lambda p: mean_loss(SHAPE, p)))(params)
    assert 1e-3 < norm(gradient) < 1e3
    scale = 1e-3 / norm(gradient) if clip_norm == 1e-3 else 1.0
    clipped = jax.tree.map(lambda g: np.asarray(g, np.float64) * scale, gradient)
    moved = jax.tree.map(lambda p, new: (np.asarray(p, np.float64) - new) / float(LR), params, state.params)
    expected = jax.tree.map(lambda g: g / (np.abs(g) + run.optimizer.eps), clipped)
    # A parameter of about 1 keeps 2^-24 of itself: 6e-8 / lr of a movement.
    for x, y in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=3 * 2.0**-24 / float(LR))
    assert math.isclose(metrics["grad_norm"], norm(gradient), rel_tol=SUMMED)  # what is logged is before clipping


def test_decay_is_of_matrices_alone_though_scanned_scales_have_two_dimensions():
    mask = decay_mask(abstract_params(LEARNED))
    decayed = {"/".join(entry.key for entry in path) for path, yes in jax.tree.leaves_with_path(mask) if yes}
    attention = {f"blocks/attention/{name}" for name in ("q", "k", "v", "out")}
    assert decayed == {"embedding", "positions", "head", "blocks/mlp/up", "blocks/mlp/down"} | attention
    assert abstract_params(LEARNED)["blocks"]["norm1"]["scale"].value.shape == (2, 16)


def test_decay_takes_the_rate_times_its_weight_from_matrices():
    """Loshchilov & Hutter 2019, algorithm 2: p -= lr (update + decay p); the scales and biases move as without it."""
    params = params_of(LEARNED)
    without, _ = stepped(run_of(LEARNED))
    decayed, _ = stepped(run_of(LEARNED, dataclasses.replace(SMOOTH, weight_decay=0.5)))
    mask = decay_mask(abstract_params(LEARNED))
    for p, a, b, yes in zip(*map(jax.tree.leaves, (params, without.params, decayed.params, mask)), strict=True):
        # Two results of about 1, each rounded to 2^-24, of two programs that are compiled apart.
        np.testing.assert_allclose(a - b, (LR * 0.5 * p if yes else 0 * p), rtol=0, atol=2 * 2.0**-23)


def test_runs_that_differ_in_rate_steps_and_seeds_share_one_program():
    run = run_of()
    other = dataclasses.replace(
        run,
        steps=77,
        seed=5,
        data=dataclasses.replace(run.data, seed=3),
        optimizer=dataclasses.replace(SMOOTH, peak_lr=0.5),
        schedule=ScheduleSpec("wsd", 3, 4),
    )
    assert program_of(other) is program_of(run)
    for changed in (
        run_of(dataclasses.replace(SHAPE, d_ff=64)),
        run_of(z_loss=0.1),
        run_of(precision="bf16"),
        run_of(optimizer=dataclasses.replace(SMOOTH, b2=0.9)),
    ):
        assert program_of(changed) is not program_of(run)
    assert program_of(run, Placement(microbatch=2)) is not program_of(run)


def test_the_rate_scales_the_update():
    """It is an argument of the step: twice the rate moves twice as far, and no rate not at all."""
    program = program_of(run_of())
    params = params_of(SHAPE)

    def moved(lr):
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), program.abstract_state.optimizer)
        state, _ = program.step(State(jax.tree.map(jnp.copy, params), zeros), TOKENS_BxM, np.float32(lr))
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.tree.map(jnp.subtract, params, state.params))])

    assert not np.any(moved(0.0))
    np.testing.assert_allclose(moved(2.0), 2 * moved(1.0), rtol=1e-4, atol=1e-6)  # of parameters of about 1, in fp32


def equations(jaxpr):
    """Of a jaxpr, and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            yield from equations(inner) if hasattr(inner, "eqns") else ()


@pytest.fixture
def traced(monkeypatch):
    """The equations of a step of a model with experts, in some precision and with some kernels."""

    def trace(precision, kernels):
        monkeypatch.setattr(step_module, "kernels_of", lambda *_: kernels)
        step_module._program.cache_clear()
        shape = ModelShape(256, 2, 4, 256, 512, activation="swiglu", n_experts=3, experts_per_token=2)
        run = dataclasses.replace(run_of(shape, precision=precision), data=DataSpec("store", 128, 2))
        program = program_of(run)
        tokens_BxM = jax.ShapeDtypeStruct((B, 129), np.int32)
        return list(equations(jax.make_jaxpr(program.step)(program.abstract_state, tokens_BxM, LR).jaxpr))

    yield trace
    step_module._program.cache_clear()  # no other test is to meet these programs


@pytest.mark.parametrize("kernels", [Kernels(), Kernels("splash", "megablox")], ids=["plain", "of TPUs"])
def test_fp32_is_fp32_in_every_product(kernels, traced):
    """Accelerators multiply fp32 as bf16 or TF32 unless told so: also within the kernels, and in the backward pass."""
    found = traced("fp32", kernels)
    products = [equation for equation in found if "dot" in equation.primitive.name]
    assert {str(equation.params["precision"]) for equation in products} == {"(Precision.HIGHEST, Precision.HIGHEST)"}
    assert any(equation.primitive.name == "pallas_call" for equation in found) == (kernels != Kernels())


def test_bf16_is_of_matrices_and_not_of_norms_and_routers(traced):
    """By the parameters, N x ..., that are cast: of two layers, all matrices but the router's, 256 x 3; no scale."""
    cast = {
        equation.outvars[0].aval.shape
        for equation in traced("bf16", Kernels())
        if equation.primitive.name == "convert_element_type" and equation.outvars[0].aval.dtype == jnp.bfloat16
    }
    attention, experts, tables = {(2, 256, 4, 64), (2, 4, 64, 256)}, {(2, 3, 256, 256)}, {(512, 256), (256, 512)}
    assert attention | experts | tables <= cast
    assert not {(2, 256, 3), (256, 3), (2, 256), (256,)} & cast


@pytest.mark.parametrize("options", [{"biases": True}, {"n_experts": 3, "experts_per_token": 2}], ids=str)
def test_no_sum_is_in_bf16(options):
    """The gradients of biases, of learned positions and of the experts' weights are sums over tokens or features."""
    run = run_of(dataclasses.replace(LEARNED, activation="swiglu", **options), precision="bf16")
    program = program_of(run)
    step = jax.make_jaxpr(program.step)(program.abstract_state, TOKENS_BxM, LR)
    sums = [equation for equation in equations(step.jaxpr) if equation.primitive.name == "reduce_sum"]
    assert sums
    assert "bfloat16" not in {equation.invars[0].aval.dtype.name for equation in sums}


def losses_of(precision, seed, steps=60):
    """The losses of a training by AdamW on sequences that count up from anywhere."""
    program = program_of(run_of(optimizer=OptimizerSpec(peak_lr=0.01), precision=precision))
    state, losses = program.init(jax.random.key(seed)), []
    for k in range(steps):
        first_B = np.random.default_rng(k).integers(SHAPE.vocab_size, size=B)
        tokens_BxM = (first_B[:, None] + np.arange(L + 1)) % SHAPE.vocab_size
        state, metrics = program.step(state, tokens_BxM.astype(np.int32), LR)
        losses.append(float(metrics["loss"]))
    return np.array(losses)


def test_bf16_has_the_loss_curve_of_fp32():
    """With the kernels and products of a CPU: nearer to it, at every step, than a tenth of what another seed is off."""
    exact, rounded, other = losses_of("fp32", 0), losses_of("bf16", 0), losses_of("fp32", 1)
    assert exact[-1] < exact[0] - 1
    assert 0 < np.abs(rounded - exact).max() < 0.1 * np.abs(other - exact).max()


def test_bf16_keeps_the_state_in_fp32():
    state, metrics = stepped(run_of(precision="bf16"))
    _, expected = stepped(run_of())
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    assert 0 < abs(metrics["loss"] / expected["loss"] - 1) < 0.01  # 2^-8 a product, and a mean over tokens
