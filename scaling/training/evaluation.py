"""Held-out loss on a run's fixed windows."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from scaling.runs import Placement
from scaling.training.distribute import place_rows

TOKENS_AT_A_TIME = 65_536  # over all devices; bounds the memory of the logits, and changes no result


def row_multiple(placement: Placement) -> int:
    """What the windows evaluated together must be a multiple of: the parts that a batch is dealt into, and for a
    pipeline the microbatch, which is dealt so."""
    return placement.microbatch if placement.stage > 1 and placement.microbatch else placement.batch_shards


def rows_at_a_time(windows: int, length: int, shards: int) -> int:
    """Windows evaluated together: at most TOKENS_AT_A_TIME tokens, in a multiple of `shards` (see `row_multiple`)."""
    rows = min(windows, max(1, TOKENS_AT_A_TIME // length))
    return math.ceil(rows / shards) * shards


def evaluate(
    window_losses: Callable[..., jax.Array],
    params: Any,
    tokens_WxM: np.ndarray,
    rows: int,
    sharding: Any,
    alive: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """Mean and standard error over windows of the loss, in nats a token. alive: called after each group of `rows`.

    The standard error is that of the text: runs evaluated on the same windows share it, so it is not their noise.
    """
    W = len(tokens_WxM)
    losses = []
    for start in range(0, W, rows):
        # The last group is filled up with windows from the start, whose losses are cut off again.
        chosen = np.arange(start, start + rows) % W
        group_RxM = place_rows(
            lambda part, chosen=chosen: tokens_WxM[chosen[part]], (rows, tokens_WxM.shape[1]), sharding
        )
        losses.append(np.asarray(jax.device_get(window_losses(params, group_RxM)), np.float64))
        alive()
    loss_W = np.concatenate(losses)[:W]
    return float(loss_W.mean()), float(loss_W.std(ddof=1) / math.sqrt(W))
