import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.models.axes import Layout
from scaling.models.chunks import whole_chunk
from scaling.models.cross_entropy import summed_cross_entropy, token_nll
from scaling.parallel.mesh import make_mesh
from scaling.runs import Placement

pytestmark = pytest.mark.usefixtures("quick_compilation")

B, L, D, V = 8, 24, 8, 32
Z_LOSS = 0.01
# fp32 sums of at most some thousand terms, in another order than float64: relative errors of some 60 units of 6e-8.
SUMMED = 4e-6
# bf16 keeps 8 bits, so the gradients that are made of rounded ones are off by some 2^-8 of their norm.
BF16 = 2**-7


@functools.cache
def arrays():
    rng = np.random.default_rng(0)
    hidden_BxLxD = rng.standard_normal((B, L, D)).astype(np.float32)
    head_DxV = rng.standard_normal((D, V)).astype(np.float32)
    return hidden_BxLxD, head_DxV, rng.integers(V, size=(B, L)).astype(np.int32)


def written_out(hidden_BxLxD, head_DxV, targets_BxL):
    """In float64: nll and log Z of each token, and the gradients of sum(nll + Z_LOSS log(Z)^2)."""
    x_TxD, y_T = np.asarray(hidden_BxLxD, np.float64).reshape(-1, D), targets_BxL.reshape(-1)
    head_DxV = np.asarray(head_DxV, np.float64)
    logits_TxV = x_TxD @ head_DxV
    log_z_T = np.log(np.exp(logits_TxV).sum(axis=1))
    nll_T = log_z_T - logits_TxV[np.arange(len(y_T)), y_T]
    p_TxV = np.exp(logits_TxV - log_z_T[:, None])
    grad_TxV = p_TxV * (1 + 2 * Z_LOSS * log_z_T[:, None]) - np.eye(V)[y_T]
    hidden_grad_BxLxD = (grad_TxV @ head_DxV.T).reshape(hidden_BxLxD.shape)
    return nll_T.reshape(targets_BxL.shape), log_z_T, hidden_grad_BxLxD, x_TxD.T @ grad_TxV


def off(x, expected):
    return np.linalg.norm(np.asarray(x, np.float64) - expected) / np.linalg.norm(expected)


def loss_and_gradients(chunk, layout, scale=1.0, dtype=jnp.float32):
    hidden_BxLxD, head_DxV, targets_BxL = arrays()

    def loss(hidden_BxLxD, head_DxV):
        loss, nll = summed_cross_entropy(hidden_BxLxD, head_DxV, targets_BxL, Z_LOSS, chunk, layout)
        return scale * loss, nll

    f = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (loss, nll), gradients = f(jnp.asarray(hidden_BxLxD, dtype), jnp.asarray(head_DxV, dtype))
    return loss, nll, *gradients


def check(loss, nll, hidden_grad_BxLxD, head_grad_DxV, scale=1.0):
    nll_BxL, log_z_T, hidden_BxLxD, head_DxV = written_out(*arrays())
    assert off(nll, nll_BxL.sum()) < SUMMED
    assert off(loss, scale * (nll_BxL.sum() + Z_LOSS * np.square(log_z_T).sum())) < SUMMED
    assert off(hidden_grad_BxLxD, scale * hidden_BxLxD) < SUMMED
    assert off(head_grad_DxV, scale * head_DxV) < SUMMED


@pytest.mark.parametrize("chunk", [1, 6, L, None])
def test_is_the_formula_in_float64_whatever_the_chunk(chunk):
    check(*loss_and_gradients(chunk, None))
    nll_BxL = jax.jit(token_nll, static_argnums=(3, 4))(*arrays(), chunk, None)
    assert off(nll_BxL, written_out(*arrays())[0]) < SUMMED


def test_a_factor_of_the_loss_scales_its_gradients():
    check(*loss_and_gradients(6, None, scale=-3.0), scale=-3.0)


def test_large_logits_do_not_overflow():
    hidden_BxLxD, head_DxV, targets_BxL = arrays()
    loss, _ = summed_cross_entropy(1e3 * hidden_BxLxD, 1e3 * head_DxV, targets_BxL, 0.0, 6, None)
    assert np.isfinite(loss)


def test_the_gradient_where_that_of_log_z_vanishes():
    """One word with a logit of -1: of -logit + log Z + log(Z)^2 / 2, with log Z = -1, only -1 is left."""
    one_1x1x1, target_1x1 = jnp.ones((1, 1, 1)), jnp.zeros((1, 1), jnp.int32)

    def loss(hidden_1x1x1, head_1x1):
        return summed_cross_entropy(hidden_1x1x1, head_1x1, target_1x1, 0.5, 1, None)[0]

    value, (hidden_grad, head_grad) = jax.value_and_grad(loss, argnums=(0, 1))(one_1x1x1, -one_1x1x1[0])
    assert float(value) == 0.5
    assert math.isclose(hidden_grad.item(), 1.0, rel_tol=2e-6)  # what the smallest slope is off by, and rounding
    assert math.isclose(head_grad.item(), -1.0, rel_tol=2e-6)


def test_the_gradient_of_a_head_in_bf16_is_summed_in_fp32():
    """Its error is that of one rounding, however many tokens there are; each token's own gradient is rounded too."""
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) for x in arrays()[:2]]
    _, _, hidden_BxLxD, head_DxV = written_out(*rounded, arrays()[2])
    loss, _, hidden_grad_BxLxD, head_grad_DxV = loss_and_gradients(1, None, dtype=jnp.bfloat16)
    assert loss.dtype == jnp.float32
    assert hidden_grad_BxLxD.dtype == head_grad_DxV.dtype == jnp.bfloat16
    assert off(hidden_grad_BxLxD, hidden_BxLxD) < BF16
    assert off(head_grad_DxV, head_DxV) < BF16


PLACEMENTS = {
    "data x fsdp x tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "context": {"context": 8},
    "fsdp x context": {"fsdp": 2, "context": 4},
    "context x tensor x stage": {"context": 2, "tensor": 2, "stage": 2},
    "expert x stage": {"expert": 4, "stage": 2},
}


@pytest.mark.parametrize("name", PLACEMENTS)
def test_any_mesh_gives_what_one_device_gives(name):
    placement = Placement(**PLACEMENTS[name])
    layout = Layout(context=placement.context)
    with jax.set_mesh(make_mesh(placement)):
        check(*loss_and_gradients(6, layout))
        nll_BxL = jax.jit(token_nll, static_argnums=(3, 4))(*arrays(), 6, layout)
    assert off(nll_BxL, written_out(*arrays())[0]) < SUMMED


def compiled(placement, chunk):
    """The text of the program for one device: its shapes are those of a device's parts."""
    hidden_BxLxD, head_DxV, targets_BxL = arrays()
    layout = Layout(context=placement.context)

    def loss(hidden_BxLxD, head_DxV):
        return summed_cross_entropy(hidden_BxLxD, head_DxV, targets_BxL, Z_LOSS, chunk, layout)[0]

    with jax.set_mesh(make_mesh(placement)):
        return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden_BxLxD, head_DxV).compile().as_text()


def largest(text):
    """Entries of the largest array that a text of XLA names."""
    return max(math.prod(map(int, shape.split(","))) for shape in re.findall(r"[a-z]\d+\[([\d,]+)\]", text))


def test_logits_of_a_whole_sequence_never_exist():
    placement, whole = Placement(data=2, fsdp=2, tensor=2), B // 4 * L * V // 2
    assert largest(compiled(placement, chunk=6)) < whole <= largest(compiled(placement, chunk=L))


def test_the_gradient_of_the_head_is_summed_over_devices_once():
    """While chunks go by, only the tokens' maxima and sums are exchanged, between the devices that share the words."""
    text, chunk = compiled(Placement(data=2, fsdp=2, tensor=2), chunk=6), B // 4 * 6
    names = re.findall(r"body=%([\w.]+)", text)
    bodies = [re.search(rf"^%{re.escape(name)} .*?^}}", text, re.M | re.S)[0] for name in names]
    exchanges = re.findall(r"^.* (?:all-reduce|reduce-scatter)\(", "\n".join(bodies), re.M)
    assert exchanges
    assert all(largest(line) <= chunk for line in exchanges)
    parts = f"f32[{D // 2},{V // 2}]"
    assert len(re.findall(rf"= {re.escape(parts)}\S* reduce-scatter\(", text)) == 1


@pytest.mark.parametrize(
    ("length", "vocab_size", "chunk"),
    [(2048, 32_768, 128), (2048, 2048, 2048), (2048, 2049, 1024), (64, 257, 64), (100, 2**21, 2), (7, 2**23, 1)],
)
def test_the_chunk_is_the_largest_whose_logits_fit_sixteen_mebibytes(length, vocab_size, chunk):
    assert whole_chunk(length, vocab_size) == chunk
    assert chunk * vocab_size * 4 <= 2**24 or chunk == 1
