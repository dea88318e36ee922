"""What a trained sweep comes to: tables, a law, a prediction that is put to the test, and the report.

A sweep of one variant comes to a law, a prediction made before its run is trained, and a report; one of several to a
law each; one over learning rates to a rule for them.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from scaling import notes
from scaling.analysis import decisions, report
from scaling.analysis.analyze import Analysis, analyze
from scaling.analysis.compare import compare
from scaling.analysis.curves import curves_from_frame
from scaling.analysis.isoflop import isoflop
from scaling.analysis.table import table_from_frame
from scaling.analysis.tuning import rates_report
from scaling.errors import InputError, RunFailedError
from scaling.files import write_text
from scaling.prediction import measured, predict, predicted_line, prediction_line
from scaling.runs import run_from_dict, run_to_dict
from scaling.sweeps.cells import Cell, Common, common, recommended_run
from scaling.sweeps.config import SweepConfig
from scaling.sweeps.execution import execute
from scaling.sweeps.forks import saved_words
from scaling.sweeps.refine import Found, second_pass
from scaling.sweeps.results import collect, totals
from scaling.sweeps.tasks import Way
from scaling.sweeps.texts import Texts
from scaling.sweeps.vary import Variant, label
from scaling.sweeps.workdir import Sweep, add_cells, rule_of
from scaling.tuned import tunes_rates, write_tuning

Failures = tuple[tuple[Cell, str], ...]


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study came to.

    analyses: by variant, "" for the config as it is; none of a sweep over learning rates. prediction: if one was made.
    said: what to print, a line each. report: the file to read first.
    """

    results: pd.DataFrame
    analyses: dict[str, Analysis]
    prediction: dict[str, Any] | None
    failed: Failures
    said: tuple[str, ...]
    report: pathlib.Path


def conclude(
    config: SweepConfig,
    workdir: pathlib.Path,
    sweep: Sweep,
    texts: Texts,
    failed: Failures,
    way: Way,
    refine: bool = False,
    say: Callable[[str], None] = print,
) -> Study:
    """Analyses a sweep whose grid is done, puts its law to the test, and reports: as scaling.study.run_study has it.

    failed: the cells that have no result, with reasons.
    """
    results, curves = _collected(workdir, sweep, failed)
    if refine:
        sweep, added = _second_pass(workdir, sweep, texts, results)
        say(f"{len(added)} cells added around the optima found" if added else "nothing to add around the optima found")
        failed += tuple(execute(workdir, sweep, added, way))
        results, curves = collect(workdir, sweep)
    variants = list(dict.fromkeys(cell.variant for cell in sweep.grid))
    if tunes_rates(config):
        table = results.to_csv(index=False).encode()
        said = write_tuning(results, config.recipe, hashlib.sha256(table).hexdigest(), workdir / "report", str(workdir))
        return Study(results, {}, None, failed, (said, *_saved(results)), workdir / "report" / "tuning.html")
    if len(variants) > 1:
        return _laws_side_by_side(workdir, sweep, texts, results, curves, variants, failed)
    return _law(workdir, sweep, texts, results, curves, failed, way, say)


def _saved(results: pd.DataFrame) -> tuple[str, ...]:
    """What forking has saved, of a forked sweep."""
    return (saved_words(results),) if "trunk" in results else ()


def _collected(workdir: pathlib.Path, sweep: Sweep, failed: Failures) -> tuple[pd.DataFrame, pd.DataFrame]:
    results, curves = collect(workdir, sweep)
    if not (results["status"] == "done").any():
        cell, reason = failed[0]
        raise RunFailedError(
            f"no cell has a result ({totals(results)}); the first to fail, {cell.id}: {reason}", "no_result"
        )
    return results, curves


def _second_pass(
    workdir: pathlib.Path, sweep: Sweep, texts: Texts, results: pd.DataFrame
) -> tuple[Sweep, tuple[Cell, ...]]:
    """Adds the cells of a second pass. It looks at the first pass alone, so that, asked for again, it is the same."""
    first = [cell.id for cell in sweep.grid if not cell.refined]
    done = results[(results["status"] == "done") & results["run"].isin(first) & results["budget"].notna()]
    valleys = isoflop(table_from_frame(done))
    if isinstance(valleys, str):
        raise InputError(f"there is no optimum to refine: {valleys}", where=str(workdir))
    found = []
    for budget, rows in done.groupby("budget"):
        near = min(valleys.budgets, key=lambda valley, C=budget: abs(np.log(valley.C / C)))
        bracketed = near.status == "ok"
        N = near.N_opt if bracketed else rows.loc[rows["loss"].idxmin(), "N"]
        found.append(Found(float(budget), float(N), "bracketed" if bracketed else "open"))
    cells, dropped = second_pass(sweep, texts, found)
    known = {cell.key for cell in sweep.cells}
    added = tuple(cell for cell in cells if cell.key not in known)
    return add_cells(workdir, sweep, added, dropped), added


def _law(
    workdir: pathlib.Path,
    sweep: Sweep,
    texts: Texts,
    results: pd.DataFrame,
    curves: pd.DataFrame,
    failed: Failures,
    way: Way,
    say: Callable[[str], None],
) -> Study:
    config = sweep.config
    shared = common(config, texts, config.variants[0])
    target = (config.prediction or 2.0) * max(cell.budget or cell.flops for cell in sweep.grid)
    analysis = _analyse(results, curves, target)
    runs = configured(shared, decisions.next_runs(analysis))
    prediction = None
    if config.prediction and runs and runs[0]["run"]:
        cell = Cell(run_from_dict(runs[0]["run"]), target, "prediction")
        sweep, prediction = predict(workdir, sweep, cell, results, analysis)
        tested = [cell for cell in sweep.cells if cell.id == prediction["run"]]
        when = "before it is trained" if prediction["blind"] else "after it was trained, from another grid"
        say(f"predicted, {when}: {predicted_line(prediction)}")
        failed += tuple(execute(workdir, sweep, tested, way))
        results, _ = collect(workdir, sweep)
        prediction = measured(workdir, prediction)
        # The tested run has no part in any number: only the table now has its row, among those dropped.
        analysis = dataclasses.replace(analysis, table=table_from_frame(results))
    title = f"{workdir.resolve().name}: study on {shared.text.main.source}"
    path = _report(workdir / "report", title, analysis, shared, sweep, results, runs, prediction)
    said = (report.summary(analysis), *([prediction_line(prediction)] if prediction else []), *_saved(results))
    return Study(results, {"": analysis}, prediction, failed, said, path)


def _laws_side_by_side(
    workdir: pathlib.Path,
    sweep: Sweep,
    texts: Texts,
    results: pd.DataFrame,
    curves: pd.DataFrame,
    variants: Sequence[str],
    failed: Failures,
) -> Study:
    """A law and a report of each variant, under report/, and the table that compares them, variants.csv."""
    analyses, said, rows = {}, [], []
    for number, variant in enumerate(variants):
        mine = results[results["variant"] == variant]
        row = {"variant": variant, "cells": len(mine), "done": int((mine["status"] == "done").sum())}
        row["lowest_loss"] = mine["loss"].min()
        try:
            analysis = _analyse(mine, curves[curves["run"].isin(mine["run"])], 2.0 * mine["C"].max())
        except InputError as error:
            said.append(f"{variant or 'as configured'}: no law: {error}")
            rows.append({**row, "why": str(error)})
            continue
        analyses[variant] = analysis
        shared = common(sweep.config, texts, _variant_of(sweep.config, variant))
        runs = configured(shared, decisions.next_runs(analysis))
        directory = workdir / "report" / f"variant{number}"
        title = f"{workdir.resolve().name}: {variant or 'as configured'}, on {shared.text.main.source}"
        path = _report(directory, title, analysis, shared, sweep, mine, runs, None)
        said.append(f"{variant or 'as configured'}: {path}\n{report.summary(analysis)}")
        multiplier, sentence = _compared(sweep.config, results, next(iter(analyses)), variant)
        said += [sentence] if sentence else []
        rows.append({**row, **_numbers(analysis), **multiplier})
    table = pd.DataFrame(rows)
    write_text(workdir / "report" / "variants.csv", table.to_csv(index=False))
    said += [table.to_string(index=False), *_saved(results)]
    return Study(results, analyses, None, failed, tuple(said), workdir / "report" / "variants.csv")


def _compared(
    config: SweepConfig, results: pd.DataFrame, first: str, other: str
) -> tuple[dict[str, float | None], str]:
    """The compute that a variant needs for the losses of the first one, over that one's: columns, and a sentence."""
    if other == first:
        return {}, ""
    names = (first or "as configured", other or "as configured")
    fields = {field for name in (first, other) for field, _ in _variant_of(config, name)}
    if any(field.startswith("data.") for field in fields):
        return {}, f"{names[0]} and {names[1]} are evaluated on texts of their own: their losses are not compared."
    tables = [table_from_frame(results[results["variant"] == variant]) for variant in (first, other)]
    try:
        found = compare(*tables, names=names)
    except InputError as error:
        return {}, f"{names[1]} is not compared with {names[0]}: {error}"
    return _interval("compute_multiplier", found.multiplier), found.sentence()


def _variant_of(config: SweepConfig, name: str) -> Variant:
    """The variant of a label; a sweep to which variants were added later keeps its cells without one."""
    return next((variant for variant in config.variants if label(variant) == name), ())


def _numbers(analysis: Analysis) -> dict[str, Any]:
    """What two variants are compared by: exponents and the loss at the target, with intervals; what is not known."""
    told, optimum = report.report_dict(analysis), analysis.optima[0]
    columns: dict[str, Any] = {"target_flops": optimum["C"]}
    for name in ("approach2", "approach3"):
        columns |= _interval(f"N_exponent_{name}", told[name].get("N_exponent"))
    weak = [verdict.name for verdict in analysis.verdicts if verdict.status != "identified"]
    return {**columns, **_interval("loss_at_target", optimum["loss"]), "weakly_identified": " ".join(weak)}


def _interval(name: str, est: dict[str, Any] | None) -> dict[str, float | None]:
    """An EST as three columns."""
    if est is None:
        return {}
    low, high = est["ci"] or (None, None)
    return {name: est["value"], f"{name}_low": low, f"{name}_high": high}


def _report(
    directory: pathlib.Path,
    title: str,
    analysis: Analysis,
    shared: Common,
    sweep: Sweep,
    results: pd.DataFrame,
    runs: Sequence[dict[str, Any]],
    prediction: dict[str, Any] | None,
) -> pathlib.Path:
    recipe = shared.config.recipe
    report.write_report(
        analysis,
        directory,
        next_runs=runs,
        prediction=prediction,
        title=title,
        notes=notes.of_study(shared, sweep, results, runs),
        rates=rates_report(results, rule_of(sweep, recipe), recipe),
    )
    return directory / "report.html"


def _analyse(results: pd.DataFrame, curves: pd.DataFrame, target: float) -> Analysis:
    # With eval_points=1 a run has its final loss and no curve: Approach 1 then says that it had none.
    several = curves["run"].duplicated().any()
    return analyze(table_from_frame(results), curves_from_frame(curves) if several else None, [target])


def configured(shared: Common, next_runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The next runs, each with the configuration to train under "run": null, and "why", where there is none."""
    found = []
    for next_run in next_runs:
        try:
            run = recommended_run(shared, next_run["target_flops"], next_run["N"]["value"])
        except InputError as error:
            found.append({**next_run, "run": None, "why": str(error)})
        else:
            found.append({**next_run, "run": run_to_dict(run)})
    return found
