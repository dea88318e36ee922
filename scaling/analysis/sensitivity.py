"""How the answer moves with what the analyst decides: which rows, which objective, which law, which count of N and C.

Each of these is a choice that published fits made differently, and often without saying so. Leaving out five runs of
240 moves Hoffmann et al.'s exponent from .565 to .514; the same models have exponents from .37 to .70 as embeddings and
head are counted or not. An interval holds none of it. So one table: the exponent a of N*(C), and the optimum at the
target, under each choice alone, all else as in the report.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from scaling.analysis import absolute
from scaling.analysis.fitting import ABSOLUTE_LOG, HUBER_LOG, Fit, Objective, fit, problem_of, refit
from scaling.analysis.frontier import TokenCost, cost_through, local_slope, optima, token_cost
from scaling.analysis.holdout import FLOORLESS, SQUARES, STEPS, fits
from scaling.analysis.laws import CHINCHILLA, LAWS, Inputs, Law
from scaling.analysis.newton import Problem, minimise
from scaling.analysis.table import Table
from scaling.errors import InputError

BEYOND = 2.0  # times the largest C: the target where none is given
STARTS = 4  # of fits that cannot be batched
DROPPED = (1, 2, 5, 10)  # rows
LARGEST_SHARE = 0.25  # of the rows that is ever dropped one by one
ZONES = {f"huber_log, delta {delta:g}": delta for delta in (1e-4, 1e-2, 1e-1, 1.0)} | {"squares_log": SQUARES}
LIMIT_STEPS = 30  # a zone, on the way from the narrowest to none
RAW = {Objective("huber_raw"): "huber_log, delta 0.01", Objective("squares_raw"): "squares_log"}  # and where to start
OTHER_LAWS = (LAWS["tied"], LAWS["coupled"], FLOORLESS, LAWS["kaplan"])


class Setting(NamedTuple):
    """What was decided, and the law that follows from it; theta_P is None where the runs then determine no law.

    rows: how many were fitted; why: the reason where there is no law.
    """

    what: str
    setting: str
    rows: int
    law: Law
    theta_P: np.ndarray | None
    centre: np.ndarray | None
    cost: TokenCost
    why: str = ""


def sensitivity(
    table: Table, target: float | None = None, seed: int = 0, reported: Fit | None = None
) -> tuple[dict[str, Any], ...]:
    """One row for each choice, that of the report first.

    Rows are {"what", "setting", "rows", "a", "N_at_target", "D_at_target", "loss_at_target", "why"}.
    what: "as reported", "rows dropped", "objective", "law", "weighting", "N counted as" or "C counted as". a: d ln N* /
    d ln C under the table's own FLOPs per token, at the geometric middle of its C; beta / (alpha + beta) where C = 6ND
    (Hoffmann et al. 2022, eq. 4). Values are None where the setting leaves no law or no optimum, and why says so. The
    law is Hoffmann et al.'s with Huber's loss unless the row says otherwise. target: FLOPs, twice the largest C where
    None. N and C of a row that counts them differently are in its own count; the target is the same number. reported:
    the fit of the report, where it is of another law or objective; Hoffmann et al.'s is then a row like the others.
    Raises InputError where the table does not determine the law as reported, and for a target that is not positive.
    """
    target = BEYOND * float(table.C_R.max()) if target is None else float(target)
    if not (np.isfinite(target) and target > 0):
        raise InputError(f"target={target} is not a positive number of FLOPs")
    fitted = fit(CHINCHILLA, Inputs(table.N_R, table.D_R), table.loss_R, HUBER_LOG, seed)
    cost = token_cost(table)
    name, R = f"{CHINCHILLA.name}, {_name(HUBER_LOG)}", len(table.N_R)
    settings = [
        *_reported(reported, cost),
        Setting("law" if reported else "as reported", name, R, CHINCHILLA, fitted.theta_P, fitted.centre, cost),
        *_dropped(table, fitted, cost, seed),
        *_outliers(table, seed),
        *_objectives(table, cost, seed),
        *_laws(table, cost, seed),
        *_counts(table, seed),
    ]
    middle = float(np.sqrt(table.C_R.min() * table.C_R.max()))
    return tuple(_row(setting, middle, target) for setting in settings)


def _reported(fitted: Fit | None, cost: TokenCost) -> Iterator[Setting]:
    if fitted is not None:
        name = f"{fitted.law.name}, {_name(fitted.objective)}"
        yield Setting("as reported", name, len(fitted.loss_R), fitted.law, fitted.theta_P, fitted.centre, cost)


def _dropped(table: Table, fitted: Fit, cost: TokenCost, seed: int) -> Iterator[Setting]:
    """Without runs of highest loss, without those furthest from the law, without a budget; and weighted by compute."""
    R = len(table.N_R)
    weight_R: dict[tuple[str, str], np.ndarray] = {}
    worst = {"highest loss": np.argsort(-table.loss_R), "largest residual": np.argsort(-np.abs(fitted.residual_R))}
    for name, order_R in worst.items():
        for count in DROPPED:
            if count <= LARGEST_SHARE * R:
                said = f"the {name}" if count == 1 else f"the {count} of {name}"
                weight_R["rows dropped", said] = (~np.isin(np.arange(R), order_R[:count])).astype(float)
    budgets = int(table.budget_R.max()) + 1
    for name, budget in (("smallest", 0), ("largest", budgets - 1)):
        if budgets > 1:
            weight_R["rows dropped", f"the {name} budget"] = (table.budget_R != budget).astype(float)
    worth = table.C_R.sum() ** 2 / (table.C_R**2).sum()  # Kish's effective number
    weight_R["weighting", f"in proportion to C: worth {worth:.0f} equal rows"] = table.C_R / table.C_R.mean()

    inputs = fitted.inputs
    why = {key: _refusal(fitted.law, inputs.rows(weight > 0)) for key, weight in weight_R.items()}
    fittable = [key for key in weight_R if not why[key]]
    ends = refit(fitted, inputs, table.loss_R, np.array([weight_R[key] for key in fittable]), seed)
    theta = dict(zip(fittable, ends.theta_BxP, strict=True))
    for key, weight in weight_R.items():
        rows = int((weight > 0).sum())
        yield Setting(*key, rows, fitted.law, theta.get(key), fitted.centre, cost, why[key])


def _outliers(table: Table, seed: int) -> Iterator[Setting]:
    """The opposite decision about rows that are marked as outliers."""
    if table.alternative is not None:
        name = "marked outliers kept" if table.outliers == "dropped" else "marked outliers dropped"
        other = table.alternative
        yield _fitted("rows dropped", name, CHINCHILLA, HUBER_LOG, other, other.N_R, token_cost(other), seed)


def _objectives(table: Table, cost: TokenCost, seed: int) -> Iterator[Setting]:
    """Huber's loss of log loss with several zones and in its limits; and objectives of the loss itself."""
    theta_OxP, centre = _quick(CHINCHILLA, table, list(ZONES.values()), seed)
    named = dict(zip(ZONES, theta_OxP, strict=True))
    one_1xR = np.ones((1, len(table.loss_R)))

    def problem(objective: Objective) -> Problem:
        return problem_of(CHINCHILLA, Inputs(table.N_R, table.D_R), table.loss_R, centre, objective)

    # From the narrowest zone to none, and from log loss to loss, it is a few steps.
    limit = absolute.polish(problem(ABSOLUTE_LOG), one_1xR, theta_OxP[:1], LIMIT_STEPS)
    named["absolute_log"] = limit.theta_BxP[0]
    for objective, start in RAW.items():
        named[_name(objective)] = minimise(problem(objective), one_1xR, named[start][None], STEPS).theta_BxP[0]
    for name, theta_P in named.items():
        yield Setting("objective", name, len(table.N_R), CHINCHILLA, theta_P, centre, cost)


def _laws(table: Table, cost: TokenCost, seed: int) -> Iterator[Setting]:
    for law in OTHER_LAWS:
        why = _refusal(law, Inputs(table.N_R, table.D_R))
        (theta_P,), centre = ((None,), None) if why else _quick(law, table, [HUBER_LOG.delta], seed)
        yield Setting("law", law.name, len(table.N_R), law, theta_P, centre, cost, why)


def _quick(law: Law, table: Table, delta_O: list[float], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """theta_OxP of a law fitted to all rows with O zones of Huber's loss, as one batch, and its centre."""
    inputs = Inputs(table.N_R, table.D_R)
    centre = law.centre(inputs)
    theta_Ox1x1xP = fits(law, inputs, centre, table.loss_R, np.ones((1, 1, len(table.loss_R))), delta_O, seed)
    return theta_Ox1x1xP[:, 0, 0], centre


def _counts(table: Table, seed: int) -> Iterator[Setting]:
    """With N or C as other columns of the table count them, on the rows that have them."""
    for name, count_R in table.alternatives.items():
        known_R = np.isfinite(count_R) & (count_R > 0)
        what = f"{name[0]} counted as"
        if not known_R.any():
            yield Setting(what, name, 0, CHINCHILLA, None, None, token_cost(table), "no row has a positive value")
            continue
        N_R, C_R = (count_R, table.C_R) if name.startswith("N_") else (table.N_R, count_R)
        cost = cost_through(N_R[known_R], (C_R / table.D_R)[known_R])
        yield _fitted(what, name, CHINCHILLA, HUBER_LOG, table, N_R, cost, seed, known_R)


def _fitted(
    what: str,
    setting: str,
    law: Law,
    objective: Objective,
    table: Table,
    N_R: np.ndarray,
    cost: TokenCost,
    seed: int,
    rows_R: np.ndarray | slice = slice(None),
) -> Setting:
    """A fit of its own."""
    inputs, loss_R = Inputs(N_R[rows_R], table.D_R[rows_R]), table.loss_R[rows_R]
    try:
        found = fit(law, inputs, loss_R, objective, seed, starts=STARTS)
    except InputError as error:
        return Setting(what, setting, len(loss_R), law, None, None, cost, str(error))
    return Setting(what, setting, len(loss_R), law, found.theta_P, found.centre, cost)


def _name(objective: Objective) -> str:
    return objective.kind + (f", delta {objective.delta:g}" if objective.kind.startswith("huber") else "")


def _refusal(law: Law, inputs: Inputs) -> str:
    """Why these rows cannot determine the law; empty where they can."""
    try:
        law.check(inputs)
    except InputError as error:
        return str(error)
    return ""


def _row(setting: Setting, middle: float, target: float) -> dict[str, Any]:
    values: tuple[float | None, ...] = (None,) * 4
    why = setting.why
    if setting.theta_P is not None:
        theta_1xP = setting.theta_P[None]
        slope = local_slope(setting.law, theta_1xP, setting.centre, setting.cost, middle)[0]
        best = optima(setting.law, theta_1xP, setting.centre, setting.cost, np.array([target]))
        found = (slope, best.N_BxG[0, 0], best.D_BxG[0, 0], best.loss_BxG[0, 0])
        values = tuple(float(value) if np.isfinite(value) else None for value in found)
        if None in values:
            why = "this law has no optimum within a factor of 10,000 of the sizes"
    names = ("a", "N_at_target", "D_at_target", "loss_at_target")
    return {
        "what": setting.what,
        "setting": setting.setting,
        "rows": setting.rows,
        **dict(zip(names, values, strict=True)),
        "why": why,
    }
