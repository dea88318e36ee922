"""The result of a run, as result.json has it."""

import math
from typing import Any

import jax

from scaling.data.batches import Stores, epochs, eval_stores, unique_tokens
from scaling.models.counts import counts
from scaling.parallel.chips import peak_flops
from scaling.runs import MAIN_SPLIT, Placement, Run, run_id

SCHEMA = 1
Losses = dict[str, dict[str, float]]  # of each evaluation set: loss and stderr, nats a token


def make_result(
    run: Run, placement: Placement, stores: Stores, losses: Losses, seconds: dict[str, float]
) -> dict[str, Any]:
    """What stands in result.json: counts, use of the data, final losses, and timings apart from all that."""
    counted = counts(run.model, run.data.sequence_length, run.tokens)
    flops_per_second = counted["C"] / seconds["train"]
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
            **{f"{what}_seconds": seconds.get(what, 0.0) for what in ("compile", "train", "evaluate", "save")},
            "tokens_per_second": run.tokens / seconds["train"],
            "flops_per_second": flops_per_second,
            "mfu": mfu(flops_per_second, placement.devices),
            "device_kind": jax.local_devices()[0].device_kind,
            "devices": placement.devices,
            "jax": jax.__version__,
        },
    }


def mfu(flops_per_second: float, devices: int) -> float | None:
    """Model FLOPs utilisation: model FLOP/s over the published peak of the devices, None where that is unknown."""
    peak = peak_flops(jax.local_devices()[0].device_kind)
    return None if peak is None else flops_per_second / (peak * devices)
