"""Global arrays from the rows that each process can make on its own."""

from collections.abc import Callable

import jax
import numpy as np


def place_rows(
    rows: Callable[[slice], np.ndarray], shape: tuple[int, ...], sharding: jax.sharding.Sharding
) -> jax.Array:
    """A global array of `shape`, sharded in its first dimension; each process asks `rows` only for what it holds."""
    return jax.make_array_from_callback(shape, sharding, lambda index: rows(index[0]))
