"""One sweep of a comparison: its compute-optimal frontier with resamples, and the compute at which it reaches a loss.

The frontier is evaluated at nodes of log C and is a cubic spline between them, good to 1e-7 of the reducible loss. Its
inverse, the compute for a loss, is found on the spline for all resamples at once.
"""

from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline

from scaling.analysis import frontier
from scaling.analysis.fitting import Fit, refit
from scaling.analysis.isoflop import isoflop
from scaling.analysis.laws import inputs_of
from scaling.analysis.table import Table
from scaling.errors import InputError

FURTHEST = 10.0  # times the largest C of its runs to which a sweep is compared, flagged as extrapolated
NODES = 33  # of a frontier, which goes on to FURTHEST^2 for the resamples that need more compute than the fit
INSIDE, OUTSIDE = 9, 3  # levels of loss that both sweeps reach within their runs, and on either side of these


class Side(NamedTuple):
    """One sweep: its frontier at G nodes of log C, of the fit and of B resamples (NaN where there is no optimum)."""

    name: str
    table: Table
    fit: Fit
    log_C_G: np.ndarray
    log_N_G: np.ndarray
    loss_G: np.ndarray
    loss_BxG: np.ndarray

    def loss_at(self, log_C: np.ndarray) -> np.ndarray:
        """The loss of the frontier at any log C within the nodes."""
        return CubicSpline(self.log_C_G, self.loss_G)(log_C)

    def compute_at(self, loss_M: np.ndarray) -> np.ndarray:
        """Log C at which the frontier of the fit reaches each loss."""
        return compute_at(self.log_C_G, self.loss_G[None], loss_M)[0]


def side_of(name: str, table: Table, fitted: Fit, weight_BxR: np.ndarray, seed: int) -> Side:
    """The frontier of a fitted law and of its refits to resampled runs. Raises InputError where it has no optimum."""
    law, cost = fitted.law, frontier.token_cost(table)
    C_G = np.geomspace(table.C_R.min() / FURTHEST**2, table.C_R.max() * FURTHEST**2, NODES)
    point = frontier.optima(law, fitted.theta_P[None], fitted.centre, cost, C_G)
    if not np.isfinite(point.loss_BxG).all():
        raise InputError("the fitted law has no optimum within reach of the runs", name, "add sizes on the other side")
    theta_BxP = np.empty((0, len(fitted.theta_P)))
    if len(weight_BxR):
        theta_BxP = refit(fitted, inputs_of(table, law), table.loss_R, weight_BxR, seed).theta_BxP
    drawn = frontier.optima(law, theta_BxP, fitted.centre, cost, C_G)
    return Side(name, table, fitted, np.log(C_G), np.log(point.N_BxG[0]), point.loss_BxG[0], drawn.loss_BxG)


def compute_at(log_C_G: np.ndarray, loss_BxG: np.ndarray, loss_M: np.ndarray) -> np.ndarray:
    """Log C at which each of B falling frontiers reaches each loss, log_C_BxM, by the cubic through its nodes.

    Infinite where the loss is below all nodes (never reached), minus infinite where it is above all.
    """
    if not len(loss_BxG):
        return np.empty((0, len(loss_M)))
    passed_BxM = (loss_BxG[:, :, None] > loss_M).sum(1)
    node_BxM = (passed_BxM - 1).clip(0, len(log_C_G) - 2)
    c3, c2, c1, c0 = CubicSpline(log_C_G, loss_BxG, axis=1).c[:, node_BxM, np.arange(len(loss_BxG))[:, None]]
    low_BxM = np.zeros(node_BxM.shape)
    high_BxM = np.diff(log_C_G)[node_BxM]
    for _ in range(60):  # bisection: as good as the numbers, and never lost where a frontier is flat
        middle_BxM = 0.5 * (low_BxM + high_BxM)
        above_BxM = ((c3 * middle_BxM + c2) * middle_BxM + c1) * middle_BxM + c0 > loss_M
        low_BxM = np.where(above_BxM, middle_BxM, low_BxM)
        high_BxM = np.where(above_BxM, high_BxM, middle_BxM)
    log_C_BxM = log_C_G[node_BxM] + low_BxM
    return np.select([passed_BxM == 0, passed_BxM == len(log_C_G)], [-np.inf, np.inf], log_C_BxM)


def minima(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Loss and C of a table's isoFLOP minima by rising loss, (loss_K, C_K); empty where it has none."""
    found = isoflop(table)
    budgets = [] if isinstance(found, str) else [budget for budget in found.budgets if budget.status == "ok"]
    budgets = sorted(budgets, key=lambda budget: budget.loss_opt)
    return np.array([budget.loss_opt for budget in budgets]), np.array([budget.C for budget in budgets])


def minima_ratio(a: Side, b: Side, loss_M: np.ndarray) -> np.ndarray:
    """Log of C_b / C_a without a law: log C of the isoFLOP minima, linear in log loss; NaN beyond the minima."""
    log_C = []
    for side in (a, b):
        loss_K, C_K = minima(side.table)
        if len(loss_K) < 2:
            return np.full(len(loss_M), np.nan)
        log_C.append(np.interp(np.log(loss_M), np.log(loss_K), np.log(C_K), left=np.nan, right=np.nan))
    return log_C[1] - log_C[0]


def levels(a: Side, b: Side) -> tuple[np.ndarray, np.ndarray]:
    """Losses to compare two sweeps at, from high to low, and which of them lie beyond the runs of either: loss_M, and
    extrapolated_M.

    They begin where both sweeps have runs, end FURTHEST beyond these, and are evenly spaced in the mean of log C_a and
    log C_b, so that swapping the sweeps inverts the multiplier. Raises InputError where the frontiers have no loss in
    common.
    """
    high = min(float(side.loss_at(np.log(side.table.C_R.min()))) for side in (a, b))
    low = max(float(side.loss_at(np.log(side.table.C_R.max() * FURTHEST))) for side in (a, b))
    if high <= low:
        raise InputError(
            f"{a.name} and {b.name} share no loss, even {FURTHEST:g} times beyond their runs",
            do="check that both losses are of one held-out text and in one unit",
        )
    loss_M = np.linspace(high, low, 1001)
    log_C_a_M, log_C_b_M = a.compute_at(loss_M), b.compute_at(loss_M)
    inside = np.flatnonzero(_within(a, log_C_a_M) & _within(b, log_C_b_M))
    mean_M = 0.5 * (log_C_a_M + log_C_b_M)
    if not len(inside):
        return np.interp(np.linspace(mean_M[0], mean_M[-1], INSIDE), mean_M, loss_M), np.ones(INSIDE, bool)
    first, last = mean_M[inside[[0, -1]]]
    before = np.linspace(mean_M[0], first, OUTSIDE + 1)[:-1] if inside[0] > 0 else []
    after = np.linspace(last, mean_M[-1], OUTSIDE + 1)[1:] if inside[-1] < len(loss_M) - 1 else []
    extrapolated_M = np.repeat([True, False, True], [len(before), INSIDE, len(after)])
    at_M = np.concatenate([before, np.linspace(first, last, INSIDE), after])
    return np.interp(at_M, mean_M, loss_M), extrapolated_M


def _within(side: Side, log_C_M: np.ndarray) -> np.ndarray:
    """Whether a sweep has runs of less and of more compute, and its optimum lies among its sizes."""
    log_N_M = np.interp(log_C_M, side.log_C_G, side.log_N_G)
    log_C_R, log_N_R = np.log(side.table.C_R), np.log(side.table.N_R)
    # The first level is the smallest budget itself, up to rounding.
    inside_C = (log_C_M >= log_C_R.min() - 1e-6) & (log_C_M <= log_C_R.max() + 1e-6)
    return inside_C & (log_N_M >= log_N_R.min()) & (log_N_M <= log_N_R.max())
