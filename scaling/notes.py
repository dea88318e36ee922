"""What the reader of a study's report must know of its runs, beside their numbers."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from scaling.data.synthetic import best_loss
from scaling.data.token_store import TokenStore
from scaling.sweeps.cells import Common
from scaling.sweeps.forks import saved_words
from scaling.sweeps.results import totals
from scaling.sweeps.workdir import Sweep


def of_study(shared: Common, sweep: Sweep, results: pd.DataFrame, runs: Sequence[dict[str, Any]]) -> Sequence[str]:
    """The notes of a report, in sentences. runs: the next runs, with what keeps one from being configured."""
    text = shared.text
    notes = [f"Loss is on held-out documents of {_told(text.main)}."]
    # A filter leaves out documents, and another tokenizer tells other tokens: the best loss is then not known.
    if text.main.source.startswith("synthetic:") and "|" not in text.main.source and text.main.tokenizer == "bytes":
        best = best_loss(text.main.source, shared.length)
        notes.append(f"Its text is a Markov chain: no model's expected loss is below {best:.4f} nats per token.")
    if text.mixture:
        total = sum(weight for weight, _ in text.mixture)
        parts = [f"{weight / total:.1%} {_told(store)}" for weight, store in text.mixture]
        notes.append(f"Trained on a mixture: {'; '.join(parts)}.")
    notes += [f"Also evaluated on {name}: {_told(store)}." for name, store in text.validation]
    notes.append(f"Recipe: {shared.config.recipe}. Cells: {totals(results)}.")
    if "trunk" in results:
        notes.append(f"{saved_words(results)}. Runs of one trunk share its noise.")
    refined = sum(cell.refined for cell in sweep.grid)
    if refined:
        notes.append(
            f"{refined} of the runs were added by a second pass around the optima that the first found, so that where "
            "they lie depends on its losses."
        )
    repeated = results[results["epochs"].fillna(0) > 1]
    if len(repeated):
        notes.append(
            f"Repeated data, up to {repeated['epochs'].max():.2f} epochs: {', '.join(repeated['run'])}. A repeated "
            "token teaches less than a fresh one, which the law does not know."
        )
    notes += [f"No configuration at {run['target_flops']:.3g} FLOPs: {run['why']}." for run in runs if not run["run"]]
    notes += [f"Dropped: {cell}." for cell in sweep.dropped]
    return notes


def _told(store: TokenStore) -> str:
    return (
        f"{store.source} ({store.splits['train'].tokens:,} training tokens of {store.tokenizer}, content "
        f"{store.content_id})"
    )
