"""The result of a run, as result.json has it: bit for bit the same however often it was killed, but for `timing`."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from scaling.data.batches import Stores, epochs, eval_stores, unique_tokens
from scaling.models.counts import counts
from scaling.parallel.chips import peak_flops
from scaling.runs import MAIN_SPLIT, Placement, Run, run_id
from scaling.training.energy import kilowatt_hours

SCHEMA = 1
WORK = ("compile", "train", "evaluate", "save")  # what the seconds of a run are spent on
Losses = dict[str, dict[str, float]]  # of each evaluation set: loss and stderr, nats a token


def make_result(
    run: Run,
    placement: Placement,
    stores: Stores,
    losses: Losses,
    seconds: Mapping[str, float],
    spent: Mapping[str, float],
    attempt: int,
    trunk_steps: int = 0,
) -> dict[str, Any]:
    """What stands in result.json: counts, use of the data, final losses, and timings apart from all that.

    seconds: of the work that stands, by what they were spent on (scaling.training.records.Clock): what a kill undid is
    not among them. spent: wall_seconds, tokens and energy (scaling.training.energy) of all attempts, what was undone
    included; what was not counted is None in the result. attempt: the number of this one, from 1. trunk_steps: those
    that a trunk has taken for this run (scaling.training.forks), whose time is not among these.
    """
    counted = counts(run.model, run.data.sequence_length, run.tokens)
    own = 1 - trunk_steps / run.steps
    flops_per_second = own * counted["C"] / seconds["train"]
    return {
        "schema": SCHEMA,
        "run": run_id(run),
        **counted,
        "unique_tokens": unique_tokens(stores, run.data, run.tokens),
        "epochs": epochs(stores, run.data, run.tokens),
        "steps": run.steps,
        "loss": losses[MAIN_SPLIT]["loss"],
        "loss_stderr": losses[MAIN_SPLIT]["stderr"],
        "losses": {
            name: {
                **losses[name],
                "bits_per_byte": losses[name]["loss"] / math.log(2) / store.splits["validation"].bytes_per_token,
            }
            for name, store in eval_stores(stores, run.data).items()
        },
        "seed": run.seed,
        "timing": {
            **{f"{what}_seconds": seconds.get(what, 0.0) for what in WORK},
            "tokens_per_second": own * run.tokens / seconds["train"],
            "flops_per_second": flops_per_second,
            "mfu": mfu(flops_per_second, placement.devices),
            "device_kind": jax.local_devices()[0].device_kind,
            "devices": placement.devices,
            "jax": jax.__version__,
            **_spending(seconds, spent),
            "attempt": attempt,
            "trunk_steps": trunk_steps,
        },
    }


def _spending(seconds: Mapping[str, float], spent: Mapping[str, float]) -> dict[str, float | None]:
    """What all attempts have cost together.

    wall_seconds: from when each had claimed the run to its end, or its last heartbeat if it was killed. lost_seconds:
    those of them that are in none of the four above: undone by a kill, or spent on starting, restoring and waiting.
    tokens_trained: of all steps taken, those taken again included. energy: as scaling.training.energy has it, of which
    at least one is None; `_est` if any of it is estimated.
    """
    wall = spent.get("wall_seconds")
    measured, estimated = kilowatt_hours(spent)
    return {
        "wall_seconds": wall,
        "lost_seconds": None if wall is None else max(0.0, wall - sum(seconds.get(what, 0.0) for what in WORK)),
        "tokens_trained": spent.get("tokens"),
        "energy_kwh": measured,
        "energy_kwh_est": estimated,
    }


def mfu(flops_per_second: float, devices: int) -> float | None:
    """Model FLOPs utilisation: model FLOP/s over the published peak of the devices, None where that is unknown."""
    peak = peak_flops(jax.local_devices()[0].device_kind)
    return None if peak is None else flops_per_second / (peak * devices)
