"""What all modules of the model share: named parameters, how they are gathered before use, initialisation, norms.

Parameters are fp32 and carry logical axis names, from which shardings, the decay mask and the memory plan derive.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scaling.models.axes import Axes, Layout, constrain, spec, without_embed
from scaling.models.pointwise import normalised
from scaling.models.products import product
from scaling.runs import ModelShape

Init = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Kernels:
    """Which implementation computes what has several: see `choose_attention`, `choose_grouped_matmul`, `on_one_cpu`."""

    attention: str = "plain"
    grouped_matmul: str = "plain"
    one_cpu: bool = False  # layers one after the other without a loop, and the products of scaling.models.products


PLAIN = Kernels()


def fan_in(size: int, scale: float = 1.0) -> Init:
    """Normal with variance scale^2 / size, so that a sum over `size` unit inputs has standard deviation `scale`."""
    return nn.initializers.normal(scale / math.sqrt(size))


def residual_init(shape: ModelShape, size: int) -> Init:
    """Of a projection into the residual stream: zero, or scaled by 1/sqrt(2N) (GPT-2, Radford et al. 2019, 2.3)."""
    zero = shape.output_init == "zero"
    return nn.initializers.zeros if zero else fan_in(size, 1 / math.sqrt(2 * shape.n_layers))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def gathered(w: jax.Array, axes: Axes, dtype: Any, layout: Layout | None) -> jax.Array:
    """A stored parameter as it is used: in the compute type, whole along `embed`, whatever the ZeRO stage.

    It is cast before it is sent, so that a gather moves half of the bytes; without the explicit gather the partitioner
    may leave the contraction sharded and move activations instead. Its gradient is summed straight into the parts in
    which it is kept, not first into a whole on every device.
    """
    if layout is None:
        return w.astype(dtype)
    w = jax.lax.with_sharding_constraint(w.astype(dtype), layout.stored(axes))
    return jax.lax.with_sharding_constraint(w, spec(without_embed(axes)))


def _gathered_forward(w: jax.Array, axes: Axes, dtype: Any, layout: Layout | None) -> tuple[jax.Array, jax.Array]:
    return gathered(w, axes, dtype, layout), jnp.zeros((0,), w.dtype)  # an array, as types alone cannot be kept


def _gathered_backward(axes: Axes, dtype: Any, layout: Layout | None, like: jax.Array, g: jax.Array) -> tuple[Any]:
    if layout is not None:
        g = jax.lax.with_sharding_constraint(g, layout.gradient(axes))
    return (g.astype(like.dtype),)


gathered.defvjp(_gathered_forward, _gathered_backward)


def shifted(x: jax.Array, shift: jax.Array) -> jax.Array:
    """x plus what is the same for many tokens, in the type of x. In fp32 in between, as then the gradient of the shift
    is, a sum over all these tokens: bf16, with its 8 bits, would lose all but the first few hundred of them."""
    return (x.astype(jnp.float32) + shift.astype(jnp.float32)).astype(x.dtype)


class Module(nn.Module):
    """A part of the model. layout: how its arrays lie on the mesh that is set; None on one device."""

    shape: ModelShape
    dtype: Any = jnp.float32  # of the computation
    layout: Layout | None = None
    kernels: Kernels = PLAIN

    @property
    def common(self) -> tuple[ModelShape, Any, Layout | None, Kernels]:
        """The fields above, for the modules inside."""
        return self.shape, self.dtype, self.layout, self.kernels

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Lays an activation out by its logical axes."""
        return constrain(self.layout, x, *axes)

    def weight(self, name: str, init: Init, **sizes: int) -> jax.Array:
        """A parameter with named axes, gathered for use."""
        axes, dimensions = tuple(sizes), tuple(sizes.values())
        w = self.param(name, nn.with_logical_partitioning(init, axes), dimensions, jnp.float32)
        return gathered(w, axes, self.dtype, self.layout)

    def product(self, x_BxLxD: jax.Array, w_DxF: jax.Array) -> jax.Array:
        """x w, B x L x F."""
        return product(x_BxLxD, w_DxF) if self.kernels.one_cpu else x_BxLxD @ w_DxF

    def to_heads(self, x_BxLxD: jax.Array, w_DxHxK: jax.Array) -> jax.Array:
        """x w, B x L x H x K. Axes are merged on one device alone: on a mesh they may lie over different ones."""
        if not self.kernels.one_cpu:
            return jnp.einsum("bld,dhk->blhk", x_BxLxD, w_DxHxK)
        D, H, K = w_DxHxK.shape
        return self.product(x_BxLxD, w_DxHxK.reshape(D, H * K)).reshape(*x_BxLxD.shape[:2], H, K)

    def from_heads(self, x_BxLxHxK: jax.Array, w_HxKxD: jax.Array) -> jax.Array:
        """x w, B x L x D."""
        if not self.kernels.one_cpu:
            return jnp.einsum("blhk,hkd->bld", x_BxLxHxK, w_HxKxD)
        (B, L, H, K), D = x_BxLxHxK.shape, w_HxKxD.shape[2]
        return self.product(x_BxLxHxK.reshape(B, L, H * K), w_HxKxD.reshape(H * K, D))

    def biased(self, y: jax.Array, name: str, axis: str) -> jax.Array:
        """A projection's result B x L x ..., plus its bias where the shape has them.

        A bias is flat, also over heads and their entries: its one axis tells the decay mask that it is no matrix.
        """
        if not self.shape.biases:
            return y
        each = y.shape[2:]
        return shifted(y, self.weight(f"{name}_bias", nn.initializers.zeros, **{axis: math.prod(each)}).reshape(each))


class Norm(Module):
    """RMSNorm (Zhang & Sennrich 2019) or LayerNorm (Ba et al. 2016) over the last axis, computed in fp32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def vector(name: str, init: Init) -> jax.Array:
            return self.param(name, nn.with_logical_partitioning(init, ("norm",)), x.shape[-1:], jnp.float32)

        scale_D = vector("scale", nn.initializers.ones)
        bias_D = vector("bias", nn.initializers.zeros) if self.shape.norm == "layernorm" else None
        return normalised(x, scale_D, bias_D, self.shape.norm_epsilon, self.dtype)
