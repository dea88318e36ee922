"""report.json, next_run.json, report.html and the figures of an analysis, in the formats of the design."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from scaling.analysis import decisions, verdicts
from scaling.analysis.analyze import NOT_ASKED, Analysis
from scaling.analysis.envelope import CAUTION, touches
from scaling.analysis.isoflop import tokens_at
from scaling.analysis.isoflop_draws import minima_draws
from scaling.analysis.reporting import page, plots, style, words
from scaling.analysis.reporting.answer import answer, spoken, weak_names
from scaling.analysis.reporting.checklist import checklist
from scaling.analysis.reporting.checks import checks
from scaling.analysis.reporting.versions import versions
from scaling.analysis.uncertainty import estimate
from scaling.errors import InputError
from scaling.files import Path, write_json, write_text

TITLE = "Scaling-law report"


def write_report(
    analysis: Analysis,
    out_dir: Path,
    *,
    next_runs: Sequence[dict[str, Any]] | None = None,
    prediction: dict[str, Any] | None = None,
    rates: dict[str, Any] | None = None,
    title: str = TITLE,
    notes: Sequence[str] = (),
) -> None:
    """Writes report.html, report.json, next_run.json, and each figure as .svg and .png into out_dir.

    next_runs: those to write (with the runs to train, say); none: decisions.next_runs(analysis).
    prediction: {"target_flops", "N", "D", "C", "predicted": EST, "measured": float or None, "loss_stderr", "run",
    "blind"}: a prediction made by an earlier analysis and, once there is one, the measurement. rates: {"tuned": bool,
    "rule": dict or None, "said": [sentences], "rows": [{"run", "N", "batch_tokens", "peak_lr", "rule_lr", "ratio"}]}:
    whether the learning rates were tuned, in the caller's words. notes: plain sentences to print.
    """
    out_dir = pathlib.Path(out_dir)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be a folder to write to: {error.strerror}", where=str(out_dir)) from None
    runs = list(decisions.next_runs(analysis) if next_runs is None else next_runs)
    run = next((run["run"] for run in runs if run.get("run")), None)
    report = report_dict(analysis, prediction, rates, run, notes)
    figures = plots.figures(analysis)
    for name, figure in figures.items():
        style.save(figure, out_dir, name)
    inline = {name: (out_dir / f"{name}.svg").read_text(encoding="utf-8") for name in figures}
    html = page.page(analysis, report, runs, inline, title, notes)
    write_json(out_dir / "next_run.json", runs)
    write_json(out_dir / "report.json", report)
    write_text(out_dir / "report.html", html)


def report_dict(
    analysis: Analysis,
    prediction: dict[str, Any] | None = None,
    rates: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of report.json: strict JSON values only, null where there is no number. run: the configuration of
    the next run, for the checklist; the others as in `write_report`."""
    table = analysis.table
    report = {
        "answer": answer(analysis)._asdict(),
        "data": {
            "rows": table.rows,
            "used": len(table.N_R),
            "dropped": list(table.dropped),
            "sha256": table.sha256,
            "columns": list(table.columns),
            "conventions": dict(table.conventions),
            "outliers": table.outliers,
            "excluded": list(table.excluded),
            "curves": None if analysis.curves is None else analysis.curves.facts(),
        },
        "approach1": _approach1(analysis),
        "approach2": _approach2(analysis),
        "approach3": _approach3(analysis),
        "laws": [_law(analysis), *_others(analysis)],
        "noise": _noise(analysis),
        "learning_rates": words.NOT_TOLD if rates is None else rates,
        "optima": list(analysis.optima),
        "warnings": list(analysis.warnings),
        "bootstrap": {
            "resamples": analysis.resamples,
            "seed": analysis.seed,
            "approach1_failed": None if analysis.envelope_draws is None else analysis.envelope_draws.failed,
            "approach2_failed": None if analysis.isoflop_draws is None else analysis.isoflop_draws.failed,
            "approach3_unconverged": analysis.unconverged,
        },
        **checks(analysis),
        "settings": _settings(analysis),
        "versions": versions(),
        "checklist": checklist(analysis, rates, run, notes),
    }
    if table.alternative is not None:
        key = "without_outliers" if table.outliers == "kept" else "with_outliers"
        report[key] = {"N_exponent": verdicts.point_exponents(table.alternative, analysis.fit)}
    if prediction is not None:
        report["prediction"] = {**prediction, "inside": inside(prediction)}
    return report


def inside(prediction: dict[str, Any]) -> bool | None:
    """Whether the measured loss lies in the predicted interval; None where either is missing."""
    interval, measured = prediction["predicted"]["ci"], prediction["measured"]
    return None if interval is None or measured is None else bool(interval[0] <= measured <= interval[1])


def _settings(analysis: Analysis) -> dict[str, Any]:
    """What was asked for: with the table, all that it takes to compute the report again."""
    table = analysis.table
    return {
        "law": analysis.fit.law.name,
        "objective": words.objective(analysis.fit.objective.kind, analysis.fit.objective.delta),
        "target_flops": list(analysis.target_flops),
        "resamples": analysis.resamples,
        "unit": analysis.bootstrap.unit,
        "seed": analysis.seed,
        "loss_unit": table.unit,
        "outliers": table.outliers,
        "unique_tokens": next((entry["unique_tokens"] for entry in analysis.data_limited), None),
        "inference_tokens": next((entry["inference_tokens"] for entry in analysis.inference), None),
        "thorough": analysis.selection != NOT_ASKED,
        "exclude": [f"{entry['expression']} because {entry['reason']}" for entry in table.excluded],
        "columns": dict(table.conventions),
    }


def _approach1(analysis: Analysis) -> dict[str, Any]:
    found = analysis.envelope
    if isinstance(found, str):
        return {"skipped": found}
    N, D = verdicts.exponents(analysis)["approach1"]
    points = touches(found, analysis.curves.names)
    return {"N_exponent": N, "D_exponent": D, "points": points, "caution": CAUTION}


def _approach2(analysis: Analysis) -> dict[str, Any]:
    found = analysis.isoflop
    if isinstance(found, str):
        return {"skipped": found}
    N, D = verdicts.exponents(analysis).get("approach2", (estimate(np.nan), estimate(np.nan)))
    ends = _minima_intervals(analysis)
    budgets = [
        {
            "C": budget.C,
            "N_opt": _number(budget.N_opt),
            "D_opt": _number(budget.D_opt),
            "loss_opt": _number(budget.loss_opt),
            "status": budget.status,
            "n": budget.n,
            "parabola_bias": _number(float(np.expm1(budget.bias))),
            "N_interval": ends.get(budget.C, (None, None))[0],
            "D_interval": ends.get(budget.C, (None, None))[1],
        }
        for budget in found.budgets
    ]
    return {"N_exponent": N, "D_exponent": D, "method": found.method, "budgets": budgets}


def _minima_intervals(analysis: Analysis) -> dict[float, tuple[list[float] | None, list[float] | None]]:
    """The intervals of N* and D* of each budget by its C: the draws that the exponents of Approach 2 are fitted to.

    More exactly, draws of the same distribution before the scatter of the minima about their line: of each minimum
    alone.
    """
    found = analysis.isoflop
    if analysis.isoflop_draws is None or not analysis.resamples:
        return {}
    rng = np.random.default_rng([analysis.seed, 2])
    log_N_BxK = minima_draws(found, analysis.table, analysis.resamples, rng)
    ends = {}
    for budget, log_N_B in zip(found.usable, log_N_BxK.T, strict=True):
        N = estimate(budget.N_opt, np.exp(log_N_B))
        D = estimate(budget.D_opt, tokens_at(budget.cells, log_N_B))
        ends[budget.C] = (N["ci"], D["ci"])
    return ends


def _approach3(analysis: Analysis) -> dict[str, Any]:
    none = (estimate(np.nan), estimate(np.nan))  # a law of other inputs than N and D
    N, D = verdicts.exponents(analysis).get("approach3", none)
    law = _law(analysis)
    return {
        "law": law["law"],
        "objective": law["objective"],
        "parameters": law["parameters"],
        "N_exponent": N,
        "D_exponent": D,
        "N_exponent_local": analysis.local_slope,
        "certificate": analysis.fit.certificate,
    }


def _law(analysis: Analysis) -> dict[str, Any]:
    fit = analysis.fit
    return {
        "law": fit.law.name,
        "objective": {"kind": fit.objective.kind, "delta": fit.objective.delta, "value": fit.value},
        "parameters": {name: _parameter(analysis, name) for name in fit.law.parameters},
        "weakly_identified": weak_names(analysis),
        "held_out_rmse": analysis.held_out_rmse,
    }


def _parameter(analysis: Analysis, name: str) -> dict[str, Any]:
    law, centre = analysis.fit.law, analysis.fit.centre
    # Levels, factors and scales are positive by their coordinate: their intervals are on the log scale. Exponents not.
    known = law.coordinates.get(name)
    positive = analysis.fit.parameters[name] > 0 and (known is None or known.logarithmic)
    return analysis.est(lambda theta_BxP: law.natural(theta_BxP, centre)[name], positive=positive)


def _others(analysis: Analysis) -> list[dict[str, Any]]:
    """The candidates of the selection, without intervals."""
    if analysis.selection is None or isinstance(analysis.selection, str):
        return []
    return [
        {
            "law": row["law"],
            "objective": {"kind": row["objective"], "weighting": row["weighting"]},
            "parameters": {name: estimate(value) for name, value in row["parameters"].items()},
            "weakly_identified": None,  # not judged
            "held_out_rmse": row["held_out_rmse"],
        }
        for row in analysis.selection.rows()
    ]


def _noise(analysis: Analysis) -> dict[str, Any]:
    found = analysis.noise
    return {"skipped": found} if isinstance(found, str) else dataclasses.asdict(found)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def summary(analysis: Analysis) -> str:
    """A few lines for the terminal: the answer, exponents with intervals, the optima, warnings."""
    lines = [f"{len(analysis.table.N_R)} of {analysis.table.rows} runs used"]
    found = verdicts.exponents(analysis)
    alone = f"the {analysis.fit.law.name} law is not one of N and D"
    reasons = {"approach1": analysis.envelope, "approach2": analysis.isoflop, "approach3": alone}
    for name in ("approach1", "approach2", "approach3"):
        if name in found:
            N, D = (spoken(est) for est in found[name])
            weak = " (weakly identified)" if name == "approach3" and "a" in weak_names(analysis) else ""
            lines.append(f"{style.APPROACH_NAME[name]}: N* ~ C^{N}, D* ~ C^{D}{weak}")
        else:
            why = reasons[name] if isinstance(reasons[name], str) else "fewer than two budgets have an optimum"
            lines.append(f"{style.APPROACH_NAME[name]}: skipped, {why}")
    for run in decisions.next_runs(analysis):
        N, D, loss = (run[key] for key in ("N", "D", "loss"))
        lines.append(
            f"at {verdicts.flops(run['target_flops'])} FLOPs: N {spoken(N, style.si)}, D {spoken(D, style.si)}, "
            f"loss {spoken(loss)} {analysis.table.unit}"
        )
    lines.append(_noise_line(analysis))
    lines += [f"warning {warning['code']}: {warning['message']}" for warning in analysis.warnings]
    said = answer(analysis)
    return "\n".join([*lines, said.train, said.trust, said.next])


def _noise_line(analysis: Analysis) -> str:
    found = analysis.noise
    if isinstance(found, str):
        return f"noise floor: not measured, {found}"
    low, high = found.sd_log_loss["ci"]
    return f"noise floor: {found.sd_log_loss['value']:.2%} [{low:.2%}, {high:.2%}] of the loss, {found.dof} d.o.f."
