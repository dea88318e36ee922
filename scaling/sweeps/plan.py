"""What each cell of a sweep will compute and need, known before it is run."""

from collections.abc import Sequence
from typing import Any

from scaling.data.batches import epochs, unique_tokens
from scaling.data.token_store import TokenStore
from scaling.models.counts import counts
from scaling.sweeps.grid import Cell

BYTES_A_PARAMETER = 16  # fp32: the parameter, its gradient and the two moments of Adam


def plan_rows(cells: Sequence[Cell], store: TokenStore) -> list[dict[str, Any]]:
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
                "shape": f"{run.model.d_model}x{run.model.n_layers}, {run.model.n_heads} heads",
                **counted,
                "tokens_per_parameter": run.tokens / counted["N"],
                "batch_tokens": run.batch_tokens,
                "steps": run.steps,
                "peak_lr": run.optimizer.peak_lr,
                "unique_tokens": unique_tokens(store, run.data, run.tokens),
                "epochs": epochs(store, run.data, run.tokens),
                "flops_error": counted["C"] / cell.budget - 1,
                "state_gib_est": BYTES_A_PARAMETER * counted["N"] / 2**30,
            }
        )
    return rows
