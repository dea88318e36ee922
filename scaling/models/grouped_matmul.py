"""A matrix product in which each group of rows has a matrix of its own: the experts of a mixture without capacity.

Rows come sorted by group. "plain" is jax.lax.ragged_dot, the reference, which XLA computes on GPU and CPU as a product
of all rows with all matrices: E times the work and the memory. "megablox" is the TPU kernel after MegaBlocks (Gale et
al. 2023, section 5) in jax.experimental.pallas.ops.tpu, whose work is that of the rows that are there.
"""

from typing import Literal

import jax
import jax.numpy as jnp

Kernel = Literal["plain", "megablox"]
ROWS, SIDE = 512, 1024  # largest tile: rows, and either side of a matrix


def choose_grouped_matmul(kernels: Literal["auto", "plain"], platform: Literal["tpu", "gpu", "cpu"]) -> Kernel:
    """The kernel that `grouped_matmul` runs: megablox on TPU, else the plain one."""
    return "megablox" if kernels == "auto" and platform == "tpu" else "plain"


def grouped_matmul(x_TxD: jax.Array, w_ExDxF: jax.Array, sizes_E: jax.Array, kernel: Kernel) -> jax.Array:
    """x's first sizes[0] rows times w[0], the next sizes[1] times w[1], ...; rows past the sum of the sizes give zero.

    sizes_E: int32. Products add up in fp32; the result T x F has the type of x. megablox works on one device's arrays:
    call it within jax.shard_map.
    """
    if kernel == "plain":
        return jax.lax.ragged_dot(x_TxD, w_ExDxF, sizes_E, preferred_element_type=jnp.float32).astype(x_TxD.dtype)
    if kernel == "megablox":
        return _megablox(x_TxD, w_ExDxF, sizes_E)
    raise ValueError(f"no grouped matmul kernel {kernel!r}")


def _megablox(x_TxD: jax.Array, w_ExDxF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    # Imported where it is used: loading Pallas for TPU takes time that no other platform should pay.
    from jax.experimental.pallas.ops.tpu.megablox import ops

    T = x_TxD.shape[0]
    rows = min(ROWS, -(-T // 128) * 128)  # of a tile, into which the kernel cuts all rows without a rest
    x_TxD = jnp.pad(x_TxD, ((0, -T % rows), (0, 0)))
    there_Tx1 = (jnp.arange(x_TxD.shape[0]) < jnp.sum(sizes_E))[:, None]

    def tiles(T: int, D: int, F: int) -> tuple[int, int, int]:
        return rows, min(D, SIDE), min(F, SIDE)

    # The kernel never writes the other rows, neither of the result nor of x's gradient: both hold whatever was there.
    x_TxD = jnp.where(there_Tx1, x_TxD, 0)
    y_TxF = ops.gmm(x_TxD, w_ExDxF, sizes_E, x_TxD.dtype, tiles)
    return jnp.where(there_Tx1, y_TxF, 0)[:T]
