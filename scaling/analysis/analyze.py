"""The whole analysis: a table of runs in, the three approaches with their uncertainty and every warning out."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from scaling.analysis import decisions, envelope, fitting, frontier, isoflop, laws, noise, uncertainty, verdicts
from scaling.analysis.curves import Curves
from scaling.analysis.table import Table
from scaling.errors import InputError

RESAMPLES = 1000
CONVERGED = 1e-6  # relative gradient of a refit


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
    """Everything that was estimated. Approaches that could not be done are a string that says why.

    fit: Approach 3, with theta_BxP its bootstrap draws, of which `unconverged` are not stationary; isoflop: Approach 2;
    envelope: Approach 1; their *_draws likewise. local_slope: EST of d ln N* / d ln C under the table's own C, at the
    geometric middle of its C. noise: what replicates scatter by.
    """

    table: Table
    curves: Curves | None
    target_flops: tuple[float, ...]
    resamples: int
    seed: int
    fit: fitting.Fit
    theta_BxP: np.ndarray
    unconverged: int
    cost: frontier.TokenCost
    isoflop: isoflop.IsoFLOP | str
    isoflop_draws: uncertainty.Draws | None
    envelope: envelope.Envelope | str
    envelope_draws: uncertainty.Draws | None
    local_slope: dict[str, Any]
    held_out_rmse: float | None
    noise: noise.Noise | str
    optima: tuple[dict[str, Any], ...]
    warnings: tuple[dict[str, Any], ...]


def analyze(
    table: Table,
    curves: Curves | None = None,
    target_flops: Sequence[float] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Analysis:
    """Fits the three approaches and bootstraps them. target_flops: budgets to find the optimum of; none: twice the
    largest C of the table. Raises InputError where the runs cannot determine the law."""
    for C in target_flops:
        if not (np.isfinite(C) and C > 0):
            raise InputError(f"target_flops={C} is not a positive number of FLOPs")
    targets = tuple(float(C) for C in target_flops) or (2.0 * float(table.C_R.max()),)
    # Each part draws from its own stream, so that one approach more or less does not change the others.
    streams = [np.random.default_rng([seed, 0, part]) for part in range(3)]

    if len(np.unique(table.cluster_R)) == 1:
        resamples = 0  # one observation has no spread, and so no interval; a warning says so

    inputs = laws.Inputs(table.N_R, table.D_R)
    fit = fitting.fit(laws.CHINCHILLA, inputs, table.loss_R)
    draws = uncertainty.law_draws(fit, table, resamples, streams[0])
    theta_BxP = draws.theta_BxP
    cost = frontier.token_cost(table)
    middle = float(np.sqrt(table.C_R.min() * table.C_R.max()))
    slope = frontier.local_slope(fit.law, fit.theta_P[None], fit.centre, cost, middle)[0]
    slope_B = frontier.local_slope(fit.law, theta_BxP, fit.centre, cost, middle)

    valleys = isoflop.isoflop(table)
    valley_draws = None
    if not isinstance(valleys, str) and np.isfinite(valleys.N_power.exponent_B[0]):
        valley_draws = uncertainty.isoflop_draws(valleys, table, resamples, streams[1])
    lower = envelope.envelope(curves)
    lower_draws = None
    if not isinstance(lower, str):
        lower_draws = uncertainty.envelope_draws(lower, curves, resamples, streams[2])

    analysis = Analysis(
        table=table,
        curves=curves,
        target_flops=targets,
        resamples=resamples,
        seed=seed,
        fit=fit,
        theta_BxP=theta_BxP,
        unconverged=int((draws.gradient_B > CONVERGED).sum()),
        cost=cost,
        isoflop=valleys,
        isoflop_draws=valley_draws,
        envelope=lower,
        envelope_draws=lower_draws,
        local_slope=uncertainty.estimate(slope, slope_B),
        held_out_rmse=held_out_rmse(table),
        noise=noise.noise(table, fit),
        optima=(),
        warnings=(),
    )
    analysis = dataclasses.replace(analysis, optima=tuple(decisions.optima(analysis)))
    return dataclasses.replace(analysis, warnings=(*table.warnings, *verdicts.warnings(analysis)))


def held_out_rmse(table: Table) -> float | None:
    """RMSE of log loss on the largest budget, by the law fitted to the others; None where the others are too few."""
    top = table.budget_R.max()
    rest = (table.budget_R < top) & (table.budget_R >= 0)
    if len(np.unique(table.budget_R[rest])) < 2:
        return None
    inputs = laws.Inputs(table.N_R[rest], table.D_R[rest])
    try:
        laws.CHINCHILLA.check(inputs)
    except InputError:
        return None  # the report then says null: the smaller budgets alone do not determine the law
    fit = fitting.fit(laws.CHINCHILLA, inputs, table.loss_R[rest])
    test = table.budget_R == top
    error = np.log(table.loss_R[test]) - np.log(fit.loss(table.N_R[test], table.D_R[test]))
    return float(np.sqrt((error**2).mean()))
