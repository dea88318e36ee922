"""The reporting checklist for scaling laws, filled in from the analysis, after Li, Kudugunta & Zettlemoyer 2025.

Their survey ("(Mis)Fitting Scaling Laws: A Survey of Scaling Law Fitting Techniques in Deep Learning", ICLR 2025)
finds most papers without what it takes to repeat them, and asks for the hypothesis, the training set-up, the collection
of the data and the fitting algorithm. The items below are these four parts in our words, not the authors'. What only
the makers of the runs can know is filled in from the configuration of a run of the sweep, where there is one, else said
to be told by the columns that carry it, or not to be told.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scaling.analysis.intervals import LEVEL
from scaling.analysis.reporting import words
from scaling.analysis.verdicts import flops

if TYPE_CHECKING:
    from scaling.analysis.analyze import Analysis

NOT_TOLD = "not told by the table"
# What the makers of the runs know, and the words in names of columns that tell it.
SET_UP = {
    "Training data": ("dataset", "corpus", "data_name", "text", "mixture"),
    "Tokenizer and vocabulary": ("tokenizer", "vocab"),
    "Architecture and shape of each size": ("width", "depth", "d_model", "layers", "heads", "model", "family"),
    "Context length": ("seq", "context"),
    "Optimizer": ("optimizer", "weight_decay", "beta1", "beta2", "recipe"),
    "Learning rate, and how it changes with size": ("lr", "learning_rate", "rate"),
    "Schedule: warm-up and decay": ("warmup", "decay", "schedule", "recipe"),
    "Batch size": ("batch",),
    "Numerical precision": ("dtype", "precision"),
    "Repeated data": ("unique_tokens", "epochs"),
    "Seeds": ("seed",),
    "Code and checkpoints of the runs": ("code", "commit", "repository", "checkpoint"),
}
# Where a configuration of experiments.train tells it; what equals a default of that command is not in it.
CONFIGURED = {
    "Training data": ("data", "store"),
    "Tokenizer and vocabulary": ("model", "vocab_size"),
    "Context length": ("data", "sequence_length"),
    "Optimizer": ("optimizer",),
    "Schedule: warm-up and decay": ("schedule",),
}


def checklist(
    analysis: "Analysis",
    rates: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> list[dict[str, str]]:
    """[{"part", "item", "value"}] in the order of the survey. rates, notes: as in report.write_report. run: the
    configuration of a run by the recipe of the table's, as in next_run.json."""
    parts = {
        "Hypothesis": _hypothesis(analysis),
        "Training set-up": _set_up(analysis, rates, run or {}, notes),
        "Data collection": _collection(analysis),
        "Fitting": _fitting(analysis),
    }
    return [{"part": part, "item": item, "value": value} for part, items in parts.items() for item, value in items]


def _hypothesis(analysis: "Analysis") -> list[tuple[str, str]]:
    law = analysis.fit.law
    return [
        ("Form of the law", law.equation),
        ("Parameters that are fitted", ", ".join(law.parameters)),
        ("Variables", "; ".join(f"{name}: {said}" for name, said in analysis.table.conventions.items())),
        ("Definition of D", "tokens trained on, as given in the table"),
        (
            "What is supposed",
            "one law holds over all rows; errors of log loss are independent between clusters of rows; N and D are "
            "known without error",
        ),
    ]


def _set_up(
    analysis: "Analysis", rates: dict[str, Any] | None, run: dict[str, Any], notes: Sequence[str]
) -> list[tuple[str, str]]:
    table = analysis.table
    told = [(item, _configured(item, run) or _told(table.columns, words)) for item, words in SET_UP.items()]
    if notes:
        told.append(("Notes of the sweep", " ".join(note.rstrip(".") + "." for note in notes)))
    tuned = " ".join(rates["said"]) if rates else NOT_TOLD
    return [
        ("Number of runs", f"{len(table.N_R)} rows used, {len(np.unique(table.cluster_R))} independent of each other"),
        ("Sizes", f"{len(np.unique(table.N_R))}, {words.extent(table.N_R)} parameters"),
        ("Tokens", words.extent(table.D_R)),
        ("Compute", f"{flops(table.C_R.min())} to {flops(table.C_R.max())} FLOPs"),
        *told,
        ("Whether the learning rates were tuned", tuned),
    ]


def _configured(item: str, run: dict[str, Any]) -> str:
    """What the configuration of the next run says, which is of the recipe of the sweep; empty where it does not."""
    value: Any = run
    for key in CONFIGURED.get(item, ("",)):
        value = value.get(key) if isinstance(value, dict) else None
    if value is None:
        return ""
    name = CONFIGURED[item][-1]
    parts = value if isinstance(value, dict) else {name: value}
    said = ", ".join(f"{key} {part:.3g}" if isinstance(part, float) else f"{key} {part}" for key, part in parts.items())
    return f"{said} (configuration of the next run, beyond its defaults)"


def _told(columns: Sequence[str], words: Sequence[str]) -> str:
    """Which columns carry something; a word of three letters or fewer must be a whole part of the name."""
    found = [
        column
        for column in columns
        if not column.startswith(("N_", "C_"))
        and any(word in (column.lower() if len(word) > 3 else column.lower().split("_")) for word in words)
    ]
    return f"told by the column{'s' if len(found) > 1 else ''} {', '.join(found)}" if found else NOT_TOLD


def _collection(analysis: "Analysis") -> list[tuple[str, str]]:
    table = analysis.table
    reasons = dict.fromkeys(drop["reason"] for drop in table.dropped)
    dropped = f"{len(table.dropped)} of {table.rows} rows: {'; '.join(reasons)}" if table.dropped else "none"
    rows = "checkpoints or forks of shared runs among them" if table.correlated else "one row a run"
    return [
        ("Rows of the table", f"{table.rows}, {rows}"),
        ("Rows left out, and why", dropped),
        ("Rows marked as outliers", table.outliers),
        ("Evaluation loss", table.conventions["loss"]),
        ("Evaluation text", _told(table.columns, ("split", "eval", "validation"))),
        (
            "Checkpoints changed before evaluation (averaging, annealing)",
            _told(table.columns, ("average", "ema", "anneal")),
        ),
        ("SHA-256 of the table", table.sha256),
    ]


def _fitting(analysis: "Analysis") -> list[tuple[str, str]]:
    fit, facts = analysis.fit, analysis.fit.certificate
    held_out = (
        "none" if analysis.held_out_rmse is None else f"largest budget, RMSE of log loss {analysis.held_out_rmse:.2%}"
    )
    return [
        (
            "Objective",
            f"{words.objective(fit.objective.kind, fit.objective.delta)}; {facts['objective']:.9g} at the optimum",
        ),
        ("Optimiser", "damped Newton with analytic derivatives, float64, in centred logarithms of N and D"),
        (
            "Initialisation",
            f"{facts['starts']} starts, {facts['share_reaching_best']:.0%} of which reach the best value",
        ),
        ("Convergence", f"relative gradient {facts['gradient_norm']:.1e} at the optimum"),
        ("Held-out check", held_out),
        ("Intervals", f"{LEVEL:.0%}, {analysis.resamples} bootstrap resamples of clusters, seed {analysis.seed}"),
        ("Code", "the package scaling, in the version and with the digest under settings and versions"),
    ]
