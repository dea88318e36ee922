"""Held-out loss on a run's fixed windows."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from scaling.parallel.mesh import batch_sharding
from scaling.runs import Placement, Run
from scaling.training.distribute import place_rows
from scaling.training.step import Program

# Over all devices; bounds the memory of the logits, and changes a result by no more than rounding does. On a CPU the
# activations of so many tokens stay in a core's cache, which takes half the time of all windows at once.
TOKENS_AT_A_TIME = {"cpu": 2048, "gpu": 65_536, "tpu": 65_536}


def row_multiple(placement: Placement) -> int:
    """What the windows evaluated together must be a multiple of: the parts that a batch is dealt into, and for a
    pipeline the microbatch, which is dealt so."""
    return placement.microbatch if placement.stage > 1 and placement.microbatch else placement.batch_shards


def rows_at_a_time(windows: int, length: int, shards: int, platform: str) -> int:
    """Windows evaluated together: at most the tokens of TOKENS_AT_A_TIME, in a multiple of `shards` (`row_multiple`).

    platform: of the devices, as jax names it ("cpu", "gpu", "tpu").
    """
    rows = min(windows, max(1, TOKENS_AT_A_TIME[platform] // length))
    return math.ceil(rows / shards) * shards


def rows_of(run: Run, placement: Placement, program: Program) -> int:
    """How many of a run's windows its evaluation takes at a time."""
    platform = program.mesh.devices.flat[0].platform
    return rows_at_a_time(run.data.eval_windows, run.data.sequence_length, row_multiple(placement), platform)


def lowered_losses(program: Program, run: Run, rows: int) -> jax.stages.Lowered:
    """The evaluation of so many windows, to be compiled; to be called under `jax.set_mesh(program.mesh)`."""
    shape = rows, run.data.sequence_length + 1
    tokens_RxM = jax.ShapeDtypeStruct(shape, np.int32, sharding=batch_sharding(program.mesh))
    return program.window_losses.lower(program.abstract_state.params, tokens_RxM)


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
