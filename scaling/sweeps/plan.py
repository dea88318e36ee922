"""What each cell of a sweep will compute and need, known before it is run."""

import math
from collections.abc import Sequence
from typing import Any

from scaling.data.batches import Stores, epochs, unique_tokens
from scaling.models.counts import counts
from scaling.sweeps.cells import Cell, all_stores
from scaling.sweeps.config import SweepConfig
from scaling.sweeps.texts import Texts

BYTES_A_PARAMETER = 16  # fp32: the parameter, its gradient and the two moments of Adam


def plan_rows(cells: Sequence[Cell], stores: Stores) -> list[dict[str, Any]]:
    """A row a cell: counts in all conventions, steps, batch, rate, repetition of data, FLOP error, memory of the state.

    state_gib_est: parameters, gradients and optimizer state over all devices; activations come on top of it.
    """
    rows = []
    for cell in cells:
        run = cell.run
        counted = counts(run.model, run.data.sequence_length, run.tokens)
        rows.append(
            {
                "run": cell.id,
                "budget": cell.budget,
                "variant": cell.variant,
                "shape": f"{run.model.d_model}x{run.model.n_layers}, {run.model.n_heads} heads",
                **counted,
                "tokens_per_parameter": run.tokens / counted["N"],
                "batch_tokens": run.batch_tokens,
                "steps": run.steps,
                "peak_lr": run.optimizer.peak_lr,
                "unique_tokens": unique_tokens(stores, run.data, run.tokens),
                "epochs": epochs(stores, run.data, run.tokens),
                "flops_error": counted["C"] / cell.budget - 1 if cell.budget else None,
                "state_gib_est": BYTES_A_PARAMETER * counted["N"] / 2**30,
            }
        )
    return rows


def repetition(config: SweepConfig, texts: Texts, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Which cells need more tokens than their text has, how often they repeat it, and whether a sweep may, in lines."""
    sizes = {store.source: store.splits["train"].tokens for store in all_stores(texts).values()}
    held = "; ".join(f"{source} holds {tokens:,} training tokens" for source, tokens in sizes.items())
    repeated = [row for row in rows if row["epochs"] > 1]
    if not repeated:
        return [f"{held}: no cell repeats its data"]
    lines = [f"{held}: too few for {len(repeated)} of {len(rows)} cells, which repeat their data:"]
    lines += [
        f"  N {row['N']:,.0f} at {row['C']:.3g} FLOPs needs {row['D']:.3g} tokens: {row['epochs']:.2f} epochs"
        for row in sorted(repeated, key=lambda row: -row["epochs"])
    ]
    most, allowed = max(row["epochs"] for row in repeated), config.data.max_epochs
    if most > allowed:
        lines.append(
            f"experiments.sweep refuses more than config.data.max_epochs={allowed:g}; give more text, a smaller grid, "
            f"or --config.data.max_epochs={math.ceil(most * 10) / 10}"
        )
    return lines
