import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.models.pointwise import gelu, normalised
from scaling.models.products import product

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROUNDED = 4e-6  # fp32 sums of tens of terms, in another order
X = np.random.default_rng(0).standard_normal((3, 5, 24)).astype(np.float32)
ALONG = np.random.default_rng(1).standard_normal(X.shape).astype(np.float32)


def both(f, *args, along=ALONG):
    y, back = jax.vjp(f, *args)
    return jax.tree.leaves((y, back(jnp.asarray(along, y.dtype))))


def check(got, expected, tolerance=ROUNDED):
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        b = np.asarray(b, np.float32)
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=0, atol=tolerance * np.abs(b).max())


def test_gelu_is_that_of_jax_and_so_is_its_derivative():
    check(both(gelu, 3 * X), both(jax.nn.gelu, 3 * X))
    extremes = np.array([-1e4, -30.0, 0.0, 30.0, 1e4], np.float32)
    value, slope = both(gelu, extremes, along=np.ones(5))
    assert value.tolist() == [0, 0, 0, 30, 1e4]
    assert slope.tolist() == [0, 0, 0.5, 1, 1]


def by_definition(x, scale_D, bias_D, epsilon, dtype):
    y = x.astype(jnp.float32)
    if bias_D is not None:
        y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y / jnp.sqrt(jnp.mean(y**2, axis=-1, keepdims=True) + epsilon) * scale_D
    return (y if bias_D is None else y + bias_D).astype(dtype)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("epsilon", [1e-6, 0.5])
def test_norms_and_their_gradients_are_those_of_the_definition(centred, epsilon):
    scale_D = 1 + 0.3 * ALONG[0, 0]
    vectors = (scale_D, X[1, 1]) if centred else (scale_D,)

    def of(f):
        return lambda x, scale, bias=None: f(x, scale, bias, epsilon, jnp.float32)

    check(both(of(normalised), 2 + 3 * X, *vectors), both(of(by_definition), 2 + 3 * X, *vectors))


def test_a_norm_of_bf16_computes_in_fp32():
    x, scale_D = jnp.asarray(2 + 3 * X, jnp.bfloat16), 1 + 0.3 * ALONG[0, 0]

    def of(f):
        return lambda x, scale: f(x, scale, None, 1e-6, jnp.bfloat16)

    # Either rounds its result once, to 8 bits, and where sums differ by rounding, one may round up and the other down.
    check(both(of(normalised), x, scale_D), both(of(by_definition), x, scale_D), 2**-8)


def test_what_is_kept_for_the_backward_pass():
    """The input, of a norm two numbers a row and its vectors, and nothing as large as the input besides."""
    for f in (gelu, lambda x: normalised(x, jnp.ones(24), jnp.zeros(24), 1e-6, jnp.float32)):
        kept = [leaf.size for leaf in jax.tree.leaves(jax.vjp(f, X)[1])]
        assert kept.count(X.size) == 1
        assert sum(kept) <= X.size + 2 * X.size // 24 + 48


@pytest.mark.parametrize("width", [16, 24, 40])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, ROUNDED), (jnp.bfloat16, 2**-7)])
def test_a_product_and_its_gradients_are_those_of_matmul(dtype, tolerance, width):
    """To a narrower and to a wider array. Of bf16 to a unit of its last bit: jax's own may round sums on the way."""
    w = jnp.asarray(np.random.default_rng(2).standard_normal((24, width)), dtype)
    along = np.random.default_rng(3).standard_normal((*X.shape[:2], width))
    check(*(both(f, jnp.asarray(X, dtype), w, along=along) for f in (product, jnp.matmul)), tolerance)


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (1, 8, 8), (7, 5, 3), (64, 16, 64), (64, 64, 16), (511, 33, 129)], ids=str
)
def test_products_of_any_size_in_bf16(sizes):
    """XLA's CPU compiler keeps a product in bf16 if its library has it; one that another pass then turns into a product
    that the library has not, as it does a transposed result, ends the step with "BF16 x BF16 = F32"."""
    T, D, F = sizes
    rng = np.random.default_rng(T)
    x, w, along = (rng.standard_normal(shape).astype(jnp.bfloat16) for shape in ((1, T, D), (D, F), (1, T, F)))
    got = jax.jit(lambda *args: both(product, *args, along=along))(x, w)
    wide_x, wide_w, wide_along = (t.astype(np.float64) for t in (x[0], w, along[0]))
    expected = wide_x @ wide_w, (wide_along @ wide_w.T), wide_x.T @ wide_along
    for a, b in zip(got, expected, strict=True):  # sums in fp32, rounded once to 8 bits
        np.testing.assert_allclose(np.asarray(a, np.float64).reshape(b.shape), b, rtol=2**-8, atol=1e-5)
