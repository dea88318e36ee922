"""Bootstrap of all three approaches: the same fits on resampled runs, percentile intervals (Efron & Tibshirani 1993).

Approach 3 resamples pairs: whole clusters of runs with replacement, where a cluster is a trunk, else a run, else a row.
Checkpoints or forks of one run share their noise; resampling them one by one would give intervals that cover 40 % of
the time at a nominal 90 %.
Approach 1 resamples whole curves in the same way.
Approach 2 resamples residuals: a budget has five to ten sizes by design, and drawing them with replacement keeps 63 %
of them, which takes the minimum or one side of the valley away. The sizes stay; to the losses are added residuals of
the local quadratics, pooled over the budgets and inflated for their leverage. Where rows share a cluster, each
cluster's residuals keep together and are multiplied by one random sign instead (wild bootstrap, Liu 1988). Where the
minima scatter about their power law by more than that noise explains, the excess is added to the draws.
"""

from typing import Any, NamedTuple

import numpy as np

from scaling.analysis.curves import Curves
from scaling.analysis.envelope import Envelope, powers, winners
from scaling.analysis.fitting import Fit, refit
from scaling.analysis.isoflop import Budget, IsoFLOP, tokens_at, vertices
from scaling.analysis.laws import Inputs
from scaling.analysis.newton import Minimum
from scaling.analysis.powers import Power, power_law
from scaling.analysis.table import Table

LEVEL = 0.9


class Draws(NamedTuple):
    """Bootstrap draws of one approach's N*(C) and D*(C); those that gave no slope are NaN and counted in `failed`."""

    N_power: Power
    D_power: Power
    failed: int


def estimate(value: float, draws_B: np.ndarray | None = None) -> dict[str, Any]:
    """An EST of the report: the value and the percentile interval of its draws, null where fewer than half exist."""
    value = float(value) if np.isfinite(value) else None
    interval = None
    if draws_B is not None:
        known = draws_B[np.isfinite(draws_B)]
        if len(known) >= max(2, len(draws_B) / 2):
            interval = [float(x) for x in np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]
    return {"value": value, "ci": interval, "level": LEVEL}


def law_draws(fitted: Fit, table: Table, resamples: int, rng: np.random.Generator) -> Minimum:
    """The law refitted to resampled clusters of runs.

    A resample without three different N and D cannot determine the law; it is drawn again (a condition on the design,
    not on the outcome).
    """
    inputs = Inputs(table.N_R, table.D_R)
    if resamples == 0:
        return Minimum(np.empty((0, len(fitted.theta_P))), *np.empty((4, 0)))
    weight_BxR = np.zeros((0, len(table.N_R)))
    while len(weight_BxR) < resamples:
        more = cluster_weights(table.cluster_R, resamples, rng)
        enough = _distinct(more, table.N_R) & _distinct(more, table.D_R)
        weight_BxR = np.concatenate([weight_BxR, more[enough]])[:resamples]
    return refit(fitted, inputs, table.loss_R, weight_BxR, seed=int(rng.integers(2**31)))


def cluster_weights(cluster_R: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each row is in each resample, weight_BxR: as many clusters as there are, drawn with replacement."""
    K = int(cluster_R.max()) + 1
    return rng.multinomial(K, np.full(K, 1.0 / K), size=resamples).astype(np.float64)[:, cluster_R]


def _distinct(weight_BxR: np.ndarray, values_R: np.ndarray) -> np.ndarray:
    values = np.unique(values_R)
    present = np.stack([weight_BxR[:, values_R == value].any(1) for value in values])
    return present.sum(0) >= 3


def envelope_draws(found: Envelope, curves: Curves, resamples: int, rng: np.random.Generator) -> Draws:
    """Approach 1 on resampled runs."""
    K = len(curves.names)
    present_BxK = cluster_weights(np.arange(K), resamples, rng) > 0
    N_power, D_power = powers(found.race, *winners(found.race, present_BxK))
    return Draws(N_power, D_power, int(np.isnan(N_power.exponent_B).sum()))


def isoflop_draws(found: IsoFLOP, table: Table, resamples: int, rng: np.random.Generator) -> Draws:
    """Approach 2 on losses with resampled residuals; budgets without an optimum in a resample are left out of it."""
    usable = [budget for budget in found.budgets if budget.status == "ok"]
    noise_BxR = _noise(found, table, resamples, rng)
    C = np.array([[budget.C for budget in usable]])
    log_N_BxK = np.full((resamples, len(usable)), np.nan)
    for k, budget in enumerate(usable):
        cells = budget.cells
        noise_BxS = np.stack([noise_BxR[:, rows].mean(1) for rows in cells.rows_S], axis=1)
        share_S = budget.weight_S / cells.count_S
        base_S = share_S * _curve(budget) + (1 - share_S) * cells.loss_S
        redrawn = vertices(cells, base_S + noise_BxS)
        log_N_BxK[:, k] = np.where(redrawn.status_B == "ok", redrawn.log_N_B, np.nan)
    log_N_BxK = log_N_BxK + _excess(found, usable, log_N_BxK) * rng.standard_normal(log_N_BxK.shape)
    D_BxK = np.stack([tokens_at(budget.cells, log_N_BxK[:, k]) for k, budget in enumerate(usable)], axis=1)
    N_BxK = np.exp(log_N_BxK)
    N_power, D_power = power_law(C, N_BxK), power_law(C, D_BxK)
    return Draws(N_power, D_power, int(np.isnan(N_power.exponent_B).sum()))


def _excess(found: IsoFLOP, usable: list[Budget], log_N_BxK: np.ndarray) -> float:
    """Scatter of ln N* about its power law beyond what the noise of the losses explains (DerSimonian & Laird 1986).

    Budgets differ by more than noise: by the shapes of their sizes, and where N*(C) is no power law at all.
    """
    K = len(usable)
    if K < 3 or not len(log_N_BxK):
        return 0.0  # a line through two points leaves nothing to see it by
    off_K = np.log([budget.N_opt for budget in usable] / found.N_power.at([budget.C for budget in usable])[0])
    explained = float(np.nanmean(np.nanvar(log_N_BxK, axis=0)))
    return float(np.sqrt(max(0.0, (off_K**2).sum() / (K - 2) - explained)))


def _curve(budget: Budget) -> np.ndarray:
    """The fitted local parabola at the budget's sizes."""
    return np.vander(np.log(budget.cells.N_S / budget.N_0), 3, increasing=True) @ budget.parabola


def _noise(found: IsoFLOP, table: Table, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Noise_BxR to add to the losses: resampled residuals of the local fits, or signed ones where rows are
    correlated."""
    residual_R, weight_R = np.zeros((2, len(table.N_R)))
    for budget in found.budgets:
        if budget.status == "ok":
            rows = np.concatenate(budget.cells.rows_S)
            residual_R[rows], weight_R[rows] = _residuals(budget, table.loss_R)
    if table.correlated:
        sign_BxK = rng.choice([-1.0, 1.0], size=(resamples, int(table.cluster_R.max()) + 1))
        return sign_BxK[:, table.cluster_R] * residual_R
    # Towards the end of a window the parabola itself is off: its residuals enter the pool by their weight in the fit.
    chance_R = weight_R / weight_R.sum()
    return rng.choice(residual_R - chance_R @ residual_R, size=(resamples, len(residual_R)), p=chance_R)


def _residuals(budget: Budget, loss_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Residuals of a budget's runs from its parabola, each divided by what the fit leaves of unit noise; and weights.

    With the smoother matrix S of the local fit, residuals of unit noise have variance diag((I - S)(I - S)^T).
    """
    cells = budget.cells
    index = np.repeat(np.arange(len(cells.N_S)), cells.count_S)
    weight = (budget.weight_S / cells.count_S)[index]
    X = np.vander(np.log(cells.N_S / budget.N_0), 3, increasing=True)[index]
    rest = np.eye(len(index)) - X @ np.linalg.solve((X * weight[:, None]).T @ X, (X * weight[:, None]).T)
    left = np.sqrt((rest**2).sum(1))
    # A run that the parabola all but passes through tells nothing of the noise, and must not be blown up.
    residual = (loss_R[np.concatenate(cells.rows_S)] - _curve(budget)[index]) / np.maximum(left, 0.2)
    return np.where(weight > 0, residual, 0.0), weight


def prediction_draws(
    loss_B: np.ndarray, residual_R: np.ndarray, parameters: int, rng: np.random.Generator, per_draw: int = 20
) -> np.ndarray:
    """Measured losses of a new run: each law draw times exp of centred residuals of log loss, inflated for the
    parameters.

    The residuals carry noise and misfit together. sqrt(n / (n - P)) makes up for the P fitted parameters.
    """
    n = len(residual_R)
    noise = (residual_R - residual_R.mean()) * np.sqrt(n / max(n - parameters, 1))
    return (loss_B[:, None] * np.exp(rng.choice(noise, size=(len(loss_B), per_draw)))).ravel()
