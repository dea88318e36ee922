"""Global arrays from the rows that each process can make on its own."""

import functools
from collections.abc import Callable

import jax
import numpy as np


def place_rows(
    rows: Callable[[slice], np.ndarray], shape: tuple[int, ...], sharding: jax.sharding.Sharding
) -> jax.Array:
    """A global array of `shape`, sharded in its first dimension.

    Each process asks `rows` only for what its own devices hold, and once for what several of them hold alike.
    """

    @functools.cache
    def part(start: int, stop: int) -> np.ndarray:
        return rows(slice(start, stop))

    return jax.make_array_from_callback(shape, sharding, lambda index: part(*index[0].indices(shape[0])[:2]))
