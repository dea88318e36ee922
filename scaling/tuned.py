"""The outcome of a sweep over learning rates: the optima, the rule through them, and the files that say so."""

import pathlib

import pandas as pd

from scaling.analysis.rates import LEAST, Optima
from scaling.analysis.tuning import HEADER, Tuning, table_rows, tune, tuning_dict
from scaling.analysis.tuning_plots import tuning_page
from scaling.files import write_json, write_text
from scaling.recipes import base_recipe
from scaling.rules import LEVEL, write_rule
from scaling.sweeps.config import SweepConfig

RATES = ("lr_factor", "optimizer.peak_lr")


def tunes_rates(config: SweepConfig) -> bool:
    """Whether a sweep is one over learning rates: several of them, and nothing beside them but batch and seed."""
    fields = {field for variant in config.variants for field, _ in variant}
    rates = {tuple(pair for pair in variant if pair[0] in RATES) for variant in config.variants}
    return len(rates) >= LEAST and fields <= {*RATES, "batch_size", "seed"}


def write_tuning(frame: pd.DataFrame, base: str, source: str, out: pathlib.Path, where: str) -> str:
    """Fits the rule of a tuning sweep's table, writes rule.json, tuning.json and tuning.html, and says what it found.

    base: recipe that the runs followed but for the rate. source: SHA-256 of the table. Raises InputError where the
    table does not determine a rule, with the rates that each size lacks.
    """
    tuning = tune(frame, base_recipe(base), source, where)
    page = tuning_page(tuning)  # before anything is written
    write_json(out / "tuning.json", tuning_dict(tuning))
    write_text(out / "tuning.html", page)
    write_rule(tuning.rule, out / "rule.json")
    follow = f"next: python -m experiments.sweep --config=... --config.recipe=rule:{out}/rule.json --workdir=..."
    return "\n".join([optima_table(tuning.optima), _said(tuning), follow])


def optima_table(optima: Optima) -> str:
    """The optima in aligned columns, those that are not bracketed included."""
    rows = [HEADER, *table_rows(optima.groups)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _said(tuning: Tuning) -> str:
    rule = tuning.rule
    lines = [f"{rule.formula()}, from {rule.optima} optima of {rule.sizes} sizes"]
    for name, est in rule.coefficients().items():
        interval = f"{LEVEL:.0%} interval {est['ci'][0]:.3f} to {est['ci'][1]:.3f}" if est["ci"] else "no interval"
        lines.append(f"  {name} = {est['value']:.3f}, {interval}")
    return "\n".join([*lines, *rule.notes])
