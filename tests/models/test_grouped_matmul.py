import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.models.grouped_matmul import choose_grouped_matmul, grouped_matmul

pytestmark = pytest.mark.usefixtures("quick_compilation")

D, F = 24, 40
# fp32 sums of at most some hundred terms in another order: relative errors of some ten units of 6e-8.
SUMMED = 2e-6
SIZES = {
    "even": (4, 4, 4, 4),
    "uneven, and a rest": (7, 1, 3, 2),
    "empty groups": (0, 9, 0, 5),
    "nothing": (0, 0, 0, 0),
    "one group": (0, 0, 16, 0),
}


@pytest.fixture
def interpreted(monkeypatch):
    """Runs the TPU's kernel on a CPU, by its own interpreter."""
    from jax.experimental.pallas.ops.tpu.megablox import ops

    monkeypatch.setattr(ops, "gmm", functools.partial(ops.gmm, interpret=True))


def arrays(sizes_E, T=16):
    rng = np.random.default_rng(0)
    x_TxD, w_ExDxF = rng.standard_normal((T, D)), rng.standard_normal((len(sizes_E), D, F))
    return x_TxD.astype(np.float32), w_ExDxF.astype(np.float32), rng.standard_normal((T, F)).astype(np.float32)


def by_loop(x_TxD, w_ExDxF, along_TxF, sizes_E):
    """In float64: the product, and the gradients of its sum against `along`."""
    x_TxD, w_ExDxF, along_TxF = (np.asarray(t, np.float64) for t in (x_TxD, w_ExDxF, along_TxF))
    y_TxF, x_grad, w_grad = np.zeros(along_TxF.shape), np.zeros(x_TxD.shape), np.zeros(w_ExDxF.shape)
    ends = np.cumsum(sizes_E)
    for e, (start, end) in enumerate(zip(ends - sizes_E, ends, strict=True)):
        y_TxF[start:end] = x_TxD[start:end] @ w_ExDxF[e]
        x_grad[start:end] = along_TxF[start:end] @ w_ExDxF[e].T
        w_grad[e] = x_TxD[start:end].T @ along_TxF[start:end]
    return y_TxF, x_grad, w_grad


def check(kernel, sizes_E, T):
    x_TxD, w_ExDxF, along_TxF = arrays(sizes_E, T)
    sizes_E = np.array(sizes_E, np.int32)
    y_TxF, back = jax.vjp(lambda x, w: grouped_matmul(x, w, jnp.asarray(sizes_E), kernel), x_TxD, w_ExDxF)
    expected = by_loop(x_TxD, w_ExDxF, along_TxF, sizes_E)
    for got, of in zip((y_TxF, *back(along_TxF)), expected, strict=True):
        np.testing.assert_allclose(got, of, rtol=0, atol=SUMMED * max(1, np.abs(of).max()))
    rest = sizes_E.sum()
    assert np.array_equal(y_TxF[rest:], np.zeros((T - rest, F)))
    assert np.array_equal(back(along_TxF)[0][rest:], np.zeros((T - rest, D)))


@pytest.mark.parametrize("name", SIZES)
def test_plain_is_the_loop_over_groups(name):
    check("plain", SIZES[name], 16)


@pytest.mark.parametrize("name", SIZES)
def test_megablox_is_the_loop_over_groups(name, interpreted):
    check("megablox", SIZES[name], 16)


def test_megablox_over_several_tiles_with_groups_across_their_edges(interpreted):
    check("megablox", (600, 0, 3, 420), 1100)


def test_the_kernel_is_the_platforms_own():
    assert choose_grouped_matmul("auto", "tpu") == "megablox"
    assert {choose_grouped_matmul("plain", "tpu"), *(choose_grouped_matmul("auto", p) for p in ("gpu", "cpu"))} == {
        "plain"
    }
    with pytest.raises(ValueError, match="no grouped matmul kernel 'fast'"):
        grouped_matmul(*arrays((4, 4))[:2], np.array([4, 4], np.int32), "fast")


COMPILE = """
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from scaling.models.grouped_matmul import grouped_matmul
from scaling.parallel.absent import absent_devices
from scaling.parallel.topology import parse_topology
device = absent_devices(parse_topology("v5e:2x2"))[0]
def abstract(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))
def loss(x, w, sizes):
    return jnp.sum(grouped_matmul(x, w, sizes, "megablox").astype(jnp.float32) ** 2)
for T, D, F in ((8192, 2048, 8192), (640, 320, 1100)):
    arguments = abstract(jnp.bfloat16, T, D), abstract(jnp.bfloat16, 8, D, F), abstract(jnp.int32, 8)
    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile().as_text()
    assert text.count("tpu_custom_call") >= 3, text.count("tpu_custom_call")
"""


@pytest.mark.slow
def test_megablox_compiles_for_a_tpu():
    pytest.importorskip("libtpu", reason="needs XLA's compiler for TPUs")
    absent = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    subprocess.run([sys.executable, "-c", COMPILE], check=True, env={**os.environ, **absent}, timeout=300)
