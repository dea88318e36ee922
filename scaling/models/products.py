"""The product of activations with a weight, in bf16 such that a CPU computes it in bf16 too.

XLA's CPU compiler has bf16 kernels (of the library YNNPACK) for products of rows with columns or rows whose result is
fp32. All others it computes in fp32, from copies in fp32, at less than half of the speed: a product whose result is
asked for in bf16, and any sum of products over the rows of both, which the gradient of a weight is. Here results are
fp32 and rounded afterwards, and a weight's gradient is a product with columns.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def product(x_BxLxD: jax.Array, w_DxF: jax.Array) -> jax.Array:
    """x w, B x L x F in the type of both."""
    return jnp.matmul(x_BxLxD, w_DxF, preferred_element_type=jnp.float32).astype(x_BxLxD.dtype)


def _forward(x_BxLxD: jax.Array, w_DxF: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(x_BxLxD, w_DxF), (x_BxLxD, w_DxF)


def _backward(kept: tuple[jax.Array, jax.Array], g_BxLxF: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_BxLxD, w_DxF = kept
    x_TxD, g_TxF = x_BxLxD.reshape(-1, x_BxLxD.shape[-1]), g_BxLxF.reshape(-1, g_BxLxF.shape[-1])
    x_grad_TxD = jnp.matmul(g_TxF, w_DxF.T, preferred_element_type=jnp.float32)
    x_grad_BxLxD = x_grad_TxD.astype(x_BxLxD.dtype).reshape(x_BxLxD.shape)
    if x_TxD.shape[1] <= g_TxF.shape[1]:  # the narrower of the two is much cheaper to transpose
        w_grad_DxF = jnp.matmul(_columns(x_TxD), g_TxF, preferred_element_type=jnp.float32)
        return x_grad_BxLxD, w_grad_DxF.astype(w_DxF.dtype)
    w_grad_FxD = jnp.matmul(_columns(g_TxF), x_TxD, preferred_element_type=jnp.float32)
    return x_grad_BxLxD, _columns(w_grad_FxD.astype(w_DxF.dtype))


product.defvjp(_forward, _backward)


def _columns(x_TxD: jax.Array) -> jax.Array:
    """The transpose. In bf16 as an array of its own, put together from two halves: a plain one the compiler makes part
    of the product, which then is one over the rows of both."""
    if x_TxD.dtype != jnp.bfloat16:
        return x_TxD.T
    half = len(x_TxD) // 2
    return jnp.concatenate([x_TxD[:half].T, x_TxD[half:].T], axis=1)
