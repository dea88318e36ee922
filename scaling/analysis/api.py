"""The Python API: read runs, fit laws, find optima, compare sweeps, write the report. These names and arguments stay.

    from scaling.analysis import api

    runs = api.read_runs("runs.csv")                       # N (parameters), D (tokens), loss, and C (FLOPs) if given
    law = api.fit_law(runs)                                # E + A / N^alpha + B / D^beta, with a certificate
    drawn = api.bootstrap(law, runs)                       # refits of resampled runs
    best = api.optimum(drawn, C=1e21, runs=runs)           # N, D and loss, each with its 90 % interval
    api.report(runs, "report", target_flops=[1e21])        # report.html, report.json and the figures

Wherever runs are asked for, a path of a CSV file (or several), a pandas DataFrame, or a Table from read_runs will do.
Numbers are float64 throughout: N in parameters, D in tokens, C in FLOPs, loss in nats per token unless the table was
read otherwise. An estimate with an interval is a dict {"value": x or None, "ci": [low, high] or None, "level": 0.9}.
What is wrong with the input is raised as scaling.errors.InputError, which names the row and the column.
"""

import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from scaling.analysis import allocation, fitting, frontier, imports, resampling
from scaling.analysis import compare as comparing
from scaling.analysis import envelope as enveloping
from scaling.analysis import isoflop as valleys
from scaling.analysis.analyze import Analysis, analyze
from scaling.analysis.compare import Comparison
from scaling.analysis.curves import Curves, curves_from_frame, read_curves
from scaling.analysis.envelope import Envelope
from scaling.analysis.fitting import HUBER_LOG, Fit, Kind, Objective
from scaling.analysis.intervals import percentile
from scaling.analysis.isoflop import IsoFLOP
from scaling.analysis.laws import CHINCHILLA, LAWS, Law, law_named
from scaling.analysis.report import TITLE, write_report
from scaling.analysis.resampling import RESAMPLES, Bootstrap, Unit
from scaling.analysis.table import NEEDS, LossUnit, Table, read_frame, read_table, table_from_frame
from scaling.errors import InputError
from scaling.files import Path

__all__ = [
    "LAWS",
    "Objective",
    "bootstrap",
    "compare",
    "envelope",
    "fit_law",
    "isoflop",
    "optimum",
    "read_runs",
    "report",
]

Runs = Path | Sequence[Path] | pd.DataFrame | Table
MIN_BUDGETS = 2


def read_runs(
    source: Path | Sequence[Path] | pd.DataFrame,
    *,
    columns: Mapping[str, str] | None = None,
    loss_unit: LossUnit = "nats",
    drop_outliers: bool = False,
    exclude: str | Sequence[str] = (),
    needs: Sequence[str] = NEEDS,
) -> Table:
    """Finished runs as a Table of R float64 rows: N parameters, D tokens, C FLOPs, loss.

    source: a CSV file, several (their rows are joined), or a DataFrame; a row is a run, or a checkpoint of one. Columns
    N, D and loss are needed; C defaults to 6ND with a warning. Understood where present: run, trunk, seed, budget,
    status, reason, role, outlier, unique_tokens, width, depth, n_experts. columns: {our name: theirs}. loss_unit:
    "nats" or "bits" per token (converted to nats), or "bpb", bits per byte (kept). drop_outliers: leave out rows marked
    in the column outlier. exclude: "EXPRESSION because REASON", or several: rows to leave out. needs: of a law that
    does without D, its Law.needs. Integer columns cannot overflow: they become float64 before anything is multiplied.

    Raises InputError, naming row and column, for an N, D, C or loss that is missing or not positive in a row without a
    status other than done, for missing columns, and for a table in which nothing is left to fit.
    """
    if isinstance(source, pd.DataFrame):
        read, given = table_from_frame, source
    elif isinstance(source, os.PathLike | Iterable):
        read, given = read_table, source
    else:
        raise InputError(f"runs={source!r} is no table", do="give a path of a CSV file, several, or a DataFrame")
    exclude = [exclude] if isinstance(exclude, str) else exclude
    return read(given, columns=columns, loss_unit=loss_unit, drop_outliers=drop_outliers, exclude=exclude, needs=needs)


def fit_law(runs: Runs, law: str | Law = "chinchilla", objective: Kind | Objective = HUBER_LOG, seed: int = 0) -> Fit:
    """The global minimum of an objective over the parameters of a law, with a certificate (Approach 3).

    law: a name of LAWS (chinchilla, coupled, kaplan, tied, compute, data_constrained, overtraining, width_depth, moe)
    or a Law, say one of your own by `scaling.analysis.laws.define`. objective: "huber_log" (the default),
    "squares_log", "absolute_log", the same with "_raw" for residuals of loss instead of log loss, or Objective(kind,
    delta) for a delta of Huber's loss other than 1e-3. seed: of the 24 starts.

    Returns a Fit: parameters by the names of law.equation (E, A and B in the loss's unit), predict(Inputs) and
    loss(N, D) -> loss_M, residual_R of log loss, and certificate (gradient, share of starts at the minimum, basins,
    conditioning, parameters at a bound). Raises InputError for fewer runs than the law can be determined from.
    Hoffmann et al. 2022, section 3.3; Besiroglu et al. 2024 on what goes wrong without a certificate.
    """
    law = _law(law)
    return fitting.fit_law(_table(runs, law.needs), law, _objective(objective), _whole("seed", seed))


def isoflop(runs: Runs) -> IsoFLOP:
    """The loss-minimising size of each compute budget, and power laws N*(C), D*(C) through them (Approach 2).

    Runs of one C (a column budget, else values within 5 %) are a budget. Returns an IsoFLOP of K budgets: budgets[k]
    has C, status, N_opt, D_opt, loss_opt, sd (of ln N_opt) and bias (what a parabola would add to ln N_opt); N_power
    and D_power have exponent_B and log_scale_B, B = 1.

    Raises InputError for fewer than two budgets of four sizes or more, and for fewer than two whose minimum is
    bracketed, since neither determines a power law. Hoffmann et al. 2022, section 3.2; Czech et al. 2026.
    """
    found = valleys.isoflop(_table(runs))
    if isinstance(found, str):
        raise InputError(found, do="isoFLOP fits need two budgets, each of one C and four sizes")
    if len(found.budgets) < MIN_BUDGETS:
        what = f"the table has one isoFLOP budget, C = {found.budgets[0].C:.3g}"
        raise InputError(what, do="a power law through the optima needs two: add runs at another C")
    if len(found.usable) < MIN_BUDGETS:
        statuses = ", ".join(f"C = {budget.C:.3g}: {budget.status}" for budget in found.budgets)
        what = f"{len(found.usable)} of {len(found.budgets)} isoFLOP budgets have a minimum between their sizes"
        raise InputError(what, do=f"{statuses}; add sizes beyond the lowest loss")
    return found


def envelope(curves: Path | Sequence[Path] | pd.DataFrame | Curves, runs: Runs | None = None) -> Envelope:
    """The lower envelope of training curves, and power laws N*(C), D*(C) along it (Approach 1).

    curves: held-out losses during training, a row a point, with columns run, N, D (tokens so far), C (FLOPs so far) and
    loss; CSV files, exports of Weights & Biases or TensorBoard, a DataFrame, or Curves. runs: the table of their runs,
    for the N, C and tokens that curves do not tell.

    Raises InputError where the envelope touches fewer than three sizes between the smallest and the largest. Hoffmann
    et al. 2022, section 3.1; intermediate losses are not annealed, which favours the ends of runs.
    """
    found = enveloping.envelope(_curves(curves, runs))
    if isinstance(found, str):
        raise InputError(found, do="Approach 1 needs curves of three sizes or more that overtake each other")
    return found


def bootstrap(
    fitted: Fit,
    runs: Runs,
    *,
    unit: Unit = "auto",
    resamples: int = RESAMPLES,
    seed: int = 0,
    sd: float | None = None,
) -> Bootstrap:
    """B refits of a law to resampled runs: theta_BxP, its coordinates in each, and intervals of whatever follows.

    fitted: the law as fitted to the same runs. unit: what is resampled: "points", "runs", "trunks", "seeds", "noise",
    or "auto" (trunks where the table names any, else runs, else rows): checkpoints of one run share their noise. sd: of
    the noise of log loss, for "noise"; none: as the seeds of the table scatter. Of the result, of(function of
    theta_BxP) gives draws_B, and interval(function) an estimate with its 90 % interval.

    Raises InputError where the table has no column for the unit, and where its rows are not those of the fit. Efron &
    Tibshirani 1993; Rubin 1981; see the module `resampling`.
    """
    table = _table(runs, fitted.law.needs)
    if len(table.loss_R) != len(fitted.loss_R) or (table.loss_R != fitted.loss_R).any():
        raise InputError("these are not the runs that the law was fitted to", do="fit it to them first")
    resamples, seed = _whole("resamples", resamples), _whole("seed", seed)
    return resampling.bootstrap(fitted, table, unit=unit, resamples=resamples, seed=seed, sd=sd)


def optimum(
    fitted: Fit | Bootstrap, C: float, runs: Runs | None = None, *, unique_tokens: float | None = None
) -> dict[str, Any]:
    """The best N and D at C FLOPs, and the law's loss there: {"C", "N": EST, "D": EST, "loss": EST}.

    fitted: a law of N and D. With a Bootstrap each number has its 90 % interval; that of the loss is of the law, not of
    a single run to be measured (`decisions.predict_loss` adds the scatter of runs). runs: their C / D gives FLOPs per
    token as a function of size; none: C = 6ND. unique_tokens: so many different tokens there are, to be repeated:
    beyond four epochs only by the data-constrained law (Muennighoff et al. 2023). A value is None where the optimum is
    not within a factor of 10,000 of the sizes that were fitted.

    Raises InputError for C that is not positive and for a law that is not one of N and D. Hoffmann et al. 2022, eq. 4,
    is the closed form for their law under C = 6ND.
    """
    if not (isinstance(C, numbers.Real) and np.isfinite(C) and C > 0):
        raise InputError(f"C={C!r} is not a positive number of FLOPs")
    law = fitted.fit if isinstance(fitted, Bootstrap) else fitted
    if not {"N", "D"} <= {*law.law.needs}:
        raise InputError(f"the {law.law.name} law is not one of N and D: it has no optimum")
    N_R = law.inputs.N_R
    cost = frontier.six_nd(N_R.min(), N_R.max()) if runs is None else frontier.token_cost(_table(runs))

    def best(theta_BxP: np.ndarray) -> list[np.ndarray]:
        C_1 = np.array([float(C)])
        if unique_tokens is None:
            found = frontier.optima(law.law, theta_BxP, law.centre, cost, C_1)
        else:
            found = allocation.data_limited(law, cost, C_1, unique_tokens, theta_BxP)
        return [found.N_BxG[:, 0], found.D_BxG[:, 0], found.loss_BxG[:, 0]]

    names = ("N", "D", "loss")
    if isinstance(fitted, Fit):
        at = best(fitted.theta_P[None])
        return {"C": float(C)} | {name: percentile(at[i][0]) for i, name in enumerate(names)}
    each = {name: fitted.interval(lambda theta, i=i: best(theta)[i], positive=True) for i, name in enumerate(names)}
    return {"C": float(C)} | each


def compare(
    runs_a: Runs,
    runs_b: Runs,
    *,
    names: tuple[str, str] = ("A", "B"),
    law: str | Law = CHINCHILLA,
    objective: Kind | Objective = HUBER_LOG,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """How much more compute sweep B needs for the loss that sweep A reaches, with an interval, by common resampling.

    Both losses must be of one held-out text, per token of one tokenizer or per byte. law: of N and D, fitted to each.
    Returns a Comparison: multiplier (EST; above one, A is the more efficient), growth, levels, sentence(). Raises
    InputError where the units of loss differ, or no loss is common. Hernandez & Brown 2020.
    """
    if isinstance(names, str) or len(names) != 2 or len({*names}) != 2:
        raise InputError(f"names={names!r}: two different names are needed")
    law, objective = _law(law), _objective(objective)
    resamples, seed = _whole("resamples", resamples), _whole("seed", seed)
    tables = (_table(runs, law.needs) for runs in (runs_a, runs_b))
    return comparing.compare(*tables, names=tuple(names), law=law, objective=objective, resamples=resamples, seed=seed)


def report(runs: Runs | Analysis, out_dir: Path, *, title: str = TITLE, **settings: Any) -> Analysis:
    """The whole analysis, written to a folder: report.html, report.json, next_run.json, figures as SVG and PNG.

    runs: of one sweep, or an Analysis that is at hand. settings: of `analyze.analyze`: target_flops (a budget in FLOPs
    to recommend a run for, or several), law and objective (as for `fit_law`), curves (as for `envelope`), unit,
    unique_tokens, inference_tokens, resamples, seed, thorough. Returns the Analysis. Raises InputError where the folder
    cannot be written, the runs cannot determine the law, or settings come with an Analysis, which has its own.
    """
    if isinstance(runs, Analysis):
        if settings:
            raise InputError(f"an Analysis has its own {', '.join(settings)}", do="give runs, or no settings")
        found = runs
    else:
        law = _law(settings.pop("law", CHINCHILLA))
        table = _table(runs, law.needs)
        found = analyze(table, law=law, **_settings(runs, table, **settings))
    write_report(found, out_dir, title=title)
    return found


def _table(runs: Runs, needs: Sequence[str] = NEEDS) -> Table:
    if isinstance(runs, Table):
        return runs
    return read_runs(runs, needs=[name for name in needs if name in ("N", "D", "C")])


def _law(law: str | Law) -> Law:
    if not isinstance(law, str | Law):
        raise InputError(f"law={law!r} is no law", do=f"give a Law or one of {', '.join(LAWS)}")
    return law_named(law) if isinstance(law, str) else law


def _objective(objective: Kind | Objective) -> Objective:
    return objective if isinstance(objective, Objective) else Objective(objective)


def _whole(name: str, value: int) -> int:
    if not (isinstance(value, numbers.Integral) and value >= 0):
        raise InputError(f"{name}={value!r} is not a whole number", do="0 or more")
    return int(value)


def _curves(
    curves: Path | Sequence[Path] | pd.DataFrame | Curves, runs: Runs | None, left_out: Iterable[str] = ()
) -> Curves:
    """Curves as they are, or read, with what they do not tell of their runs from the table of runs."""
    if isinstance(curves, Curves):
        return curves
    if isinstance(runs, Table):
        runs = pd.DataFrame({"run": runs.labels["run"], "N": runs.N_R, "D": runs.D_R, "C": runs.C_R})
    elif runs is not None and not isinstance(runs, pd.DataFrame):
        runs = read_frame([runs] if isinstance(runs, str | os.PathLike) else runs)
    if isinstance(curves, pd.DataFrame):
        return curves_from_frame(imports.join(curves, runs, None), left_out=left_out)
    return read_curves(curves, runs=runs, left_out=left_out)


def _settings(runs: Runs, table: Table, **settings: Any) -> dict[str, Any]:
    """Settings of `analyze` in the forms that it takes."""
    if settings.get("curves") is not None:
        settings["curves"] = _curves(settings["curves"], runs, table.excluded_runs)
    if "objective" in settings:
        settings["objective"] = _objective(settings["objective"])
    if "target_flops" in settings:
        settings["target_flops"] = np.atleast_1d(settings["target_flops"]).tolist()
        if strange := [C for C in settings["target_flops"] if not isinstance(C, numbers.Real)]:
            raise InputError(f"target_flops={strange[0]!r} is not a positive number")
    return settings | {name: _whole(name, settings[name]) for name in ("resamples", "seed") if name in settings}
