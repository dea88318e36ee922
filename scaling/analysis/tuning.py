"""A tuning sweep as a whole, its tables and words; and how far the cells of a study are from the rule they follow."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from scaling.analysis.columns import numbers
from scaling.analysis.rates import LOCAL, Optima, Optimum, find_optima
from scaling.analysis.reporting.style import si
from scaling.analysis.rule_fit import fit_rule
from scaling.rules import LEVEL, LearningRateRule
from scaling.specs import to_dict

CLOSE = 1.05  # factor within which a rate is said to be the rule's
PORIAN = "Porian et al. 2024 (arXiv 2406.19146)"
HEADER = ["N", "batch", "D", "rates", "peak lr*", f"{LEVEL:.0%} interval", "cost of a factor 2", "status"]


@dataclasses.dataclass(frozen=True, eq=False)
class Tuning:
    """A tuning sweep's optima and their rule."""

    optima: Optima
    rule: LearningRateRule


def tune(frame: pd.DataFrame, base: str, source: str, where: str = "table") -> Tuning:
    """The optima of a table of runs and the rule through them. Raises as `find_optima` and `fit_rule`."""
    optima = find_optima(frame, where)
    return Tuning(optima, fit_rule(optima, base, source))


def table_rows(groups: Sequence[Optimum]) -> list[list[str]]:
    """The optima as rows of text under HEADER, for the page and the terminal."""
    rows = []
    for group in groups:
        rates, found = group.rates, group.status == "ok"
        failed = f" + {len(rates.failed_J)} failed" if len(rates.failed_J) else ""
        rows.append(
            [
                si(rates.N),
                "unknown" if rates.B is None else si(rates.B),
                si(rates.D),
                f"{len(rates.lr_K)}{failed}",
                f"{group.lr:.3g}" if found else "none",
                f"{group.ci[0]:.3g} to {group.ci[1]:.3g}" if group.ci else "none",
                f"{group.penalty:.2g}" if found else "none",
                group.status + (f": needs {group.do}" if group.do else ""),
            ]
        )
    return rows


def methods(tuning: Tuning) -> list[str]:
    """How the numbers came about."""
    optima = tuning.optima
    noise = f"{optima.noise:.2g} nats ({optima.df} degrees of freedom)" if optima.df else "not known: no residuals"
    said = [
        f"Optimum of a size: minimum of the parabola in ln rate through the lowest loss, its neighbours and the "
        f"nearest rates within {LOCAL:.0%} of it, five at most; its interval is Fieller's. Cost of a factor 2: the "
        "rise of the parabola, in nats per token, at twice or half the optimal rate.",
        f"Noise of one run about the parabolas, pooled: {noise}.",
        "Rule: c from the optima within sizes; a and b through the means of the sizes, weighted by their errors and "
        "the scatter beyond them; intervals are Student's t with as many degrees of freedom as sizes beyond two.",
    ]
    if optima.failed:
        said.append(f"{optima.failed} runs failed. Above all rates that were trained, they bound the optimum.")
    if optima.unfinished:
        said.append(f"{optima.unfinished} runs were not finished and are left out.")
    return said


def tuning_dict(tuning: Tuning) -> dict[str, Any]:
    """The content of tuning.json."""
    optima, rule = tuning.optima, tuning.rule
    return {
        "groups": [_group_dict(group) for group in optima.groups],
        "noise": {"sd": _number(optima.noise), "df": optima.df},
        "failed": optima.failed,
        "unfinished": optima.unfinished,
        "rule": {**to_dict(rule), "formula": rule.formula(), "coefficients": rule.coefficients()},
    }


def _group_dict(group: Optimum) -> dict[str, Any]:
    rates = group.rates
    used_K = np.zeros(len(rates.lr_K), bool) if group.used_K is None else group.used_K
    columns = zip(rates.lr_K, rates.loss_K, rates.count_K, used_K, strict=True)
    return {
        "N": rates.N,
        "batch_tokens": rates.B,
        "D": rates.D,
        "status": group.status,
        "needs": group.do or None,
        "peak_lr": {"value": _number(group.lr), "ci": list(group.ci) if group.ci else None, "level": LEVEL},
        "loss": _number(group.loss),
        "penalty_of_factor_2": _number(group.penalty),
        "rates": [
            {"peak_lr": float(lr), "loss": float(loss), "runs": int(count), "used": bool(used)}
            for lr, loss, count, used in columns
        ],
        "failed": [float(lr) for lr in rates.failed_J],
    }


def rates_report(frame: pd.DataFrame, rule: LearningRateRule | None, recipe: str) -> dict[str, Any]:
    """Whether the rates of a study's cells were tuned, and how far each is from the rule: for the study's report.

    frame: its results, with N and where present run, D, batch_tokens, peak_lr; a row without N or a rate is left out.
    rule: that of the recipe, None where it has none.
    """
    rows = [row for row in _rows(frame, rule) if row["N"] and row["peak_lr"]]
    if rule is None:
        return {"tuned": False, "rule": None, "said": _untuned(recipe), "rows": rows}
    fitted = {**to_dict(rule), "formula": rule.formula(), "coefficients": rule.coefficients()}
    return {"tuned": True, "rule": fitted, "said": _tuned(frame, rule, rows), "rows": rows}


def _rows(frame: pd.DataFrame, rule: LearningRateRule | None) -> list[dict[str, Any]]:
    columns = [_column(frame, column) for column in ("N", "batch_tokens", "peak_lr")]
    runs = frame["run"].astype(str) if "run" in frame.columns else pd.Series(range(len(frame))).astype(str)
    rows = []
    for run, N, B, peak_lr in zip(runs, *columns, strict=True):
        known = rule is not None and N > 0 and (B > 0 or rule.c == 0)
        rule_lr = rule.peak_lr(N, B) if known else None
        ratio = _number(peak_lr / rule_lr) if known else None
        row = {"run": run, "N": _number(N), "batch_tokens": _number(B), "peak_lr": _number(peak_lr)}
        rows.append({**row, "rule_lr": rule_lr, "ratio": ratio})
    return rows


def _untuned(recipe: str) -> list[str]:
    return [
        f"The learning rates are those of recipe {recipe} and were not tuned for each size.",
        "A rate that is worse for some sizes than for others bends the exponents: in "
        f"{PORIAN} that of N* went from 0.71 to 0.50 as warm-up, decay, and rate and batch per size were put right.",
        "A tuning sweep and python -m tools.tune give a rule, which --config.recipe=rule:PATH follows.",
    ]


def _tuned(frame: pd.DataFrame, rule: LearningRateRule, rows: list[dict[str, Any]]) -> list[str]:
    b = rule.coefficients()["b"]["ci"]
    doubt = f", {LEVEL:.0%} interval of its exponent {b[0]:.2f} to {b[1]:.2f}" if b else ", without an interval"
    said = [
        f"The learning rates were tuned: {rule.formula()}{doubt}, fitted to {rule.optima} optima of {rule.sizes} "
        f"sizes, recipe {rule.base}, from N {si(rule.N_range[0])} to {si(rule.N_range[1])}."
    ]
    factors = {row["run"]: max(row["ratio"], 1 / row["ratio"]) for row in rows if row["ratio"]}
    if factors:
        near, far = sum(factor <= CLOSE for factor in factors.values()), max(factors, key=factors.__getitem__)
        said.append(f"{near} of {len(factors)} cells have the rule's rate, to {CLOSE - 1:.0%}.")
        if factors[far] > CLOSE:
            loss = rule.penalty * math.log2(factors[far]) ** 2
            said[-1] += (
                f" The farthest, {far}, is a factor of {factors[far]:.3g} away, which costs {loss:.2g} nats per token "
                "by the curvature of the tuning sweep (an estimate)."
            )
    beyond = [rule.extrapolation(row["N"], row["batch_tokens"] or math.nan) for row in rows if row["rule_lr"]]
    outside = [factor for factor in beyond if factor > 1]
    if outside:
        said.append(
            f"Beyond the sizes or batches that were tuned: {len(outside)} of {len(beyond)} cells, by up to a factor of "
            f"{max(outside):.3g}. There the rule is extrapolated."
        )
    D = _column(frame, "D")
    longer = np.nanmax(np.maximum(rule.D_range[0] / D, D / rule.D_range[1]), initial=1.0)
    if longer > 1:
        said.append(
            f"Durations reach a factor of {longer:.3g} beyond those tuned, {si(rule.D_range[0])} to "
            f"{si(rule.D_range[1])} tokens. The rule does not know D."
        )
    return said + list(rule.notes)


def _column(frame: pd.DataFrame, column: str) -> np.ndarray:
    return numbers(frame, column) if column in frame.columns else np.full(len(frame), np.nan)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
