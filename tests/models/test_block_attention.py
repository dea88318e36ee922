import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.models.attention import attention, causal_attention
from scaling.models.axes import Layout
from scaling.models.block_attention import MOST_BLOCKS, block_attention
from scaling.models.kernels import CPU_BLOCK as BLOCK
from scaling.parallel.mesh import make_mesh
from scaling.runs import Placement

pytestmark = pytest.mark.usefixtures("quick_compilation")

# fp32 sums of at most some hundred terms in another order: relative errors of some ten units of 6e-8.
SUMMED = 3e-6
# Both round queries, weights and results to bf16's 8 bits, and each of its own sums: a few units of 2^-8.
SUMMED_IN_BF16 = 3 * 2**-8


@functools.cache
def arrays(L, G=2, H=4, B=2, K=8):
    """Queries, keys, values, and the direction along which the output is differentiated."""
    rng = np.random.default_rng(L)
    return tuple(rng.standard_normal((B, L, heads, K)).astype(np.float32) for heads in (H, G, G, H))


def value_and_gradients(f, q, k, v, along):
    def both(q, k, v, along):
        o, back = jax.vjp(f, q, k, v)
        return o, *back(along)

    return jax.jit(both)(q, k, v, along)


def check(got, expected, tolerance):
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        b = np.asarray(b, np.float32)  # what is zero, as the gradients of one position alone, may be rounding instead
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("G", [1, 2, 4])
@pytest.mark.parametrize("L", [1, BLOCK - 1, BLOCK, 2 * BLOCK + 5])
def test_blocks_are_plain_attention(L, G):
    tensors = arrays(L, G)
    expected = value_and_gradients(causal_attention, *tensors)
    check(value_and_gradients(block_attention, *tensors), expected, SUMMED)


def test_a_long_sequence_has_larger_blocks_and_not_more():
    tensors = arrays(MOST_BLOCKS * (BLOCK + 1) - 1, G=1, H=1, B=1)
    expected = value_and_gradients(causal_attention, *tensors)
    check(value_and_gradients(block_attention, *tensors), expected, SUMMED)
    products = str(jax.make_jaxpr(block_attention)(*tensors[:3])).count("dot_general")
    assert products == 2 * MOST_BLOCKS


def test_blocks_are_plain_attention_in_bf16():
    tensors = [jnp.asarray(t, jnp.bfloat16) for t in arrays(BLOCK + 9)]
    expected = value_and_gradients(causal_attention, *tensors)
    check(value_and_gradients(block_attention, *tensors), expected, SUMMED_IN_BF16)


def test_no_position_sees_the_future():
    """Bit for bit: also those of a block whose keys the product reads and the mask takes out."""
    L, changed = 2 * BLOCK, BLOCK + 7
    q, k, v, _ = arrays(L)
    of = jax.jit(block_attention)
    before = of(q, k, v)
    q, k, v = (np.concatenate([t[:, :changed], 1e4 + 0 * t[:, changed:]], axis=1) for t in (q, k, v))
    after = of(q, k, v)
    assert np.array_equal(before[:, :changed], after[:, :changed])
    assert not np.array_equal(before[:, changed], after[:, changed])


def test_large_scores_do_not_overflow():
    q, k, v, along = arrays(BLOCK + 3)
    for t in value_and_gradients(block_attention, 300 * q, 300 * k, v, along):
        assert np.isfinite(t).all()


def test_the_backward_pass_keeps_no_scores():
    q, k, v, _ = arrays(3 * BLOCK)
    kept = sum(leaf.size for leaf in jax.tree.leaves(jax.vjp(block_attention, q, k, v)[1]))
    B, L, H, _ = q.shape
    assert kept == 2 * q.size + k.size + v.size + B * H * L  # the output, and a number of each row


def test_on_a_mesh_it_gives_what_one_device_gives():
    tensors = arrays(BLOCK + 9, B=4)
    f = functools.partial(attention, kernel="blocks", layout=Layout())
    with jax.set_mesh(make_mesh(Placement(data=2, fsdp=2, tensor=2))):
        got = value_and_gradients(f, *tensors)
    check(got, value_and_gradients(block_attention, *tensors), SUMMED)
