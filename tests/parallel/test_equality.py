"""Any placement gives what one device gives: the loss and every leaf of the gradient. On eight fake devices."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from scaling.parallel.mesh import make_mesh
from scaling.runs import DataSpec, ModelShape, OptimizerSpec, Placement, Run, ScheduleSpec
from scaling.training.step import State, make_program

pytestmark = pytest.mark.usefixtures("quick_compilation")

B, L = 8, 16
SHAPE = ModelShape(d_model=32, n_layers=8, n_heads=8, d_ff=64, vocab_size=48, activation="swiglu")
LEARNED = dataclasses.replace(SHAPE, positions="learned", n_positions=L, tied_embeddings=True, qk_norm=True)
GROUPED = dataclasses.replace(SHAPE, n_kv_heads=4, norm="layernorm", activation="gelu", biases=True)
SWITCH = dataclasses.replace(SHAPE, n_layers=2, n_experts=8, capacity_factor=1.0)
DROPLESS = dataclasses.replace(SHAPE, n_layers=2, n_experts=8, experts_per_token=2)
# Without clipping, and with the first moment at (1 - b1) g after one step from zero, the state holds the gradient.
OPTIMIZER = OptimizerSpec(peak_lr=0.01, b1=0.5, eps=1e-3, clip_norm=None)  # eps: see test_mesh.py
# Sums of some thousand fp32 terms in another order: errors of the square root of their number in units of 6e-8, of a
# few layers one upon the other. A mistake in the layout of anything is of order one.
NORM_RELATIVE = 1e-5
CASES = {
    "data 8": (SHAPE, {"data": 8}),
    "fsdp 8": (SHAPE, {"fsdp": 8}),
    "fsdp 8, ZeRO 1": (SHAPE, {"fsdp": 8, "zero": 1}),
    "fsdp 8, ZeRO 2": (SHAPE, {"fsdp": 8, "zero": 2}),
    "tensor 8": (SHAPE, {"tensor": 8}),
    "context 8": (SHAPE, {"context": 8}),
    "stage 8": (SHAPE, {"stage": 8, "microbatch": 2}),
    "expert 8, capacity": (SWITCH, {"expert": 8}),
    "expert 8, dropless": (DROPLESS, {"expert": 8}),
    "data x fsdp x tensor": (SHAPE, {"data": 2, "fsdp": 2, "tensor": 2}),
    "data x fsdp x tensor, learned positions": (LEARNED, {"data": 2, "fsdp": 2, "tensor": 2}),
    "fsdp x context": (SHAPE, {"fsdp": 2, "context": 4}),
    "fsdp x expert, capacity": (SWITCH, {"fsdp": 4, "expert": 2}),
    "fsdp x expert, dropless": (DROPLESS, {"fsdp": 2, "expert": 4}),
    "tensor x expert, accumulated": (DROPLESS, {"data": 2, "expert": 2, "tensor": 2, "microbatch": 4, "zero": 2}),
    "context x expert, capacity": (SWITCH, {"context": 4, "expert": 2}),
    "context x expert, dropless, remat dots": (DROPLESS, {"context": 4, "expert": 2, "remat": "dots"}),
    "data x stage": (SHAPE, {"data": 2, "stage": 4, "microbatch": 2}),
    "tensor x stage": (SHAPE, {"tensor": 2, "stage": 4, "microbatch": 2}),
    "fsdp x stage, ZeRO 2": (SHAPE, {"data": 2, "fsdp": 2, "stage": 2, "microbatch": 4, "zero": 2}),
    "expert x stage, capacity": (SWITCH, {"fsdp": 2, "expert": 2, "stage": 2, "microbatch": 4}),
    "expert x stage, dropless": (DROPLESS, {"tensor": 2, "expert": 2, "stage": 2, "microbatch": 4, "remat": "named"}),
    "tied table over tensor x stage": (
        LEARNED,
        {"tensor": 2, "context": 2, "stage": 2, "microbatch": 4, "loss_chunk": 4},
    ),
    "grouped queries over tensor, accumulated": (GROUPED, {"fsdp": 2, "tensor": 4, "microbatch": 2}),
    "accumulated, ZeRO 1": (SHAPE, {"data": 2, "fsdp": 2, "tensor": 2, "microbatch": 4, "zero": 1}),
    "remat dots": (SHAPE, {"fsdp": 4, "tensor": 2, "remat": "dots"}),
    "remat named": (SHAPE, {"fsdp": 4, "tensor": 2, "remat": "named"}),
    "remat full, chunks of the loss": (SHAPE, {"fsdp": 4, "tensor": 2, "remat": "full", "loss_chunk": 4}),
    "remat offload": (SHAPE, {"fsdp": 4, "tensor": 2, "remat": "offload"}),
    "no scan": (dataclasses.replace(SHAPE, n_layers=2), {"fsdp": 4, "tensor": 2, "scan_layers": False}),
}
TOKENS_BxM = np.random.default_rng(0).integers(SHAPE.vocab_size, size=(B, L + 1)).astype(np.int32)


@functools.cache
def stepped(shape, placement, precision="fp32"):
    """Metrics of a step from the same numbers on any mesh, the gradient, and the losses of windows."""
    run = Run(shape, DataSpec("store", L, 2), B, 10, OPTIMIZER, ScheduleSpec("cosine", 1), precision, z_loss=1e-3)
    mesh = make_mesh(placement)
    program = make_program(run, placement, mesh)
    rng = np.random.default_rng(1)

    def numbers(x):
        return jax.device_put((0.2 * rng.standard_normal(x.shape)).astype(x.dtype), x.sharding)

    with jax.set_mesh(mesh):
        params = jax.tree.map(numbers, program.abstract_state.params)
        zeros = jax.tree.map(
            lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), program.abstract_state.optimizer
        )
        losses_W = np.asarray(program.window_losses(params, TOKENS_BxM))
        state, metrics = program.step(State(params, zeros), TOKENS_BxM, np.float32(0.01))
        gradient = jax.tree.map(lambda m: np.asarray(m) / (1 - OPTIMIZER.b1), state.optimizer[0].mu)
        return {name: float(x) for name, x in metrics.items()}, gradient, losses_W, jax.device_get(state.params)


def distance(x, y):
    return np.linalg.norm(np.ravel(x - y)) / max(np.linalg.norm(np.ravel(y)), 1e-8)


@pytest.mark.parametrize(("shape", "axes"), CASES.values(), ids=CASES)
def test_equals_one_device(shape, axes):
    placement = Placement(**axes)
    assert placement.devices == 8
    alone = Placement(scan_layers=placement.scan_layers)
    metrics, gradient, losses_W, params = stepped(shape, placement)
    expected_metrics, expected_gradient, expected_losses_W, expected_params = stepped(shape, alone)
    assert metrics.keys() == expected_metrics.keys()
    assert {name for name in metrics if name.startswith("router")} != set() or not shape.n_experts
    for name, value in metrics.items():
        np.testing.assert_allclose(value, expected_metrics[name], rtol=NORM_RELATIVE, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(losses_W, expected_losses_W, rtol=NORM_RELATIVE)
    for (path, x), y in zip(jax.tree.leaves_with_path(gradient), jax.tree.leaves(expected_gradient), strict=True):
        assert distance(x, y) < NORM_RELATIVE, jax.tree_util.keystr(path)
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(expected_params), strict=True):
        assert distance(x, y) < NORM_RELATIVE


ROUNDED = {
    "tensor x stage": {"fsdp": 2, "tensor": 2, "stage": 2, "microbatch": 4},
    "tensor x context": {"data": 2, "tensor": 2, "context": 2, "zero": 1},
}


@pytest.mark.parametrize("axes", ROUNDED.values(), ids=ROUNDED)
def test_bf16_loses_no_more_on_a_mesh(axes):
    """Of each leaf of the gradient, against fp32. On one device it is off by at most the roundings of a dozen products
    in a row, sqrt(12) x 2 x 0.4 %. A mesh rounds parts before it adds them up, which is far from doubling that. Both
    by the same kernels: those of one CPU alone sum more of their parts in fp32."""
    shape = dataclasses.replace(GROUPED, n_layers=2, tied_embeddings=True)
    _, exact, losses_W, _ = stepped(shape, Placement())
    _, alone, _, _ = stepped(shape, Placement(kernels="plain"), "bf16")
    _, gradient, rounded_losses_W, _ = stepped(shape, Placement(**axes, kernels="plain"), "bf16")
    np.testing.assert_allclose(rounded_losses_W, losses_W, rtol=2.0**-8)  # of a mean over tokens, one rounding
    leaves = jax.tree.leaves_with_path(exact), jax.tree.leaves(alone), jax.tree.leaves(gradient)
    for (path, expected), y, x in zip(*leaves, strict=True):
        assert 0 < distance(y, expected) < 0.03, jax.tree_util.keystr(path)
        assert distance(x, expected) < 2 * distance(y, expected), jax.tree_util.keystr(path)


def test_the_gradient_is_that_of_one_device_and_not_nothing():
    _, gradient, _, _ = stepped(SHAPE, Placement())
    assert all(np.linalg.norm(leaf) > 1e-4 for leaf in jax.tree.leaves(gradient))
