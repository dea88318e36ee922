"""Profiles: how far a parameter can move when all others may follow, before the objective says no.

The profile of a parameter is the objective minimised over all others with this one held, S(x). Its interval is where

    S(x) - S(fit) <= threshold = kappa / 2 * F(level; 1, dof)

(Venzon & Moolgavkar 1988). Unlike a percentile interval it can be open: where S does not reach the threshold before the
bound of the law, the runs do not bound the parameter, and the end is None.

kappa is one for a log likelihood. For a robust objective it is not known from the objective (Schrader & Hettmansperger
1980); for rows that share their noise, not even for least squares (Kent 1982). It is found for each parameter:

- From bootstrap draws x_b where they are given. They scatter about the fit as the fit does about the truth, so that
  S(x_b) - S(fit) has the median kappa / 2 * 0.455, that of chi-square with one degree of freedom. This holds for
  clusters and heavy tails, and a few wild draws do not move a median. kappa is multiplied by n / (n - P), by which
  residuals are smaller than noise; dof: the clusters less one. One cluster is one observation: no threshold, and every
  interval is open.
- For least squares without draws: kappa = 2 S(fit) / (n - P), dof = n - P, the F interval.
- For robust objectives without draws: from a sandwich estimate (see `sandwich`), an approximation.
- For both, where rows repeat a size: from the sandwich of sizes, if that is more. What a law misses by, and the noise
  that checkpoints share, is common to rows of one size.
"""

import dataclasses

import numpy as np
from scipy import stats

from scaling.analysis.fitting import Fit, problem_of
from scaling.analysis.intervals import LEVEL
from scaling.analysis.newton import Problem, huber, residuals
from scaling.analysis.pinning import Quantity, pinned, quantities, quantity_named
from scaling.analysis.profile_search import Curve, Search, explore, fill, start
from scaling.analysis.resampling import Bootstrap
from scaling.analysis.sandwich import Sandwich, sandwich
from scaling.errors import InputError

INNER = 0.6  # central share of the draws that a profile must span before they calibrate it
ROUNDING = 1e-12  # residual of log loss that is rounding: no threshold is below that of residuals of this size


@dataclasses.dataclass(frozen=True, eq=False)
class Profile:
    """The profile of one parameter; values are natural ones.

    grid_G: values, ascending. objective_G: (S(x) - S(fit)) / threshold, so that 1 marks the interval; below zero it is
    a better minimum than the fit. interval: its ends at `level`, None where the objective is still below the threshold
    at the end of the grid. threshold: in the unit of the objective.
    """

    name: str
    value: float
    interval: tuple[float | None, float | None]
    level: float
    grid_G: np.ndarray
    objective_G: np.ndarray
    threshold: float


def profile(fitted: Fit, name: str, level: float = LEVEL, bootstrap: Bootstrap | None = None) -> Profile:
    """The profile of one parameter of a fit, or of the exponent "a" of N*(C). Raises InputError for another name."""
    return _profiles(fitted, (quantity_named(fitted.law, name),), level, bootstrap)[0]


def profiles(fitted: Fit, level: float = LEVEL, bootstrap: Bootstrap | None = None) -> tuple[Profile, ...]:
    """The profiles of all parameters that are one coordinate of the law, and of the exponent "a" of N*(C).

    bootstrap: of this fit; its draws calibrate the threshold. Without it, rows of different sizes are independent.
    """
    return _profiles(fitted, quantities(fitted.law), level, bootstrap)


def _profiles(
    fitted: Fit, held: tuple[Quantity, ...], level: float, bootstrap: Bootstrap | None
) -> tuple[Profile, ...]:
    if not held:
        return ()
    _refuse_weights(fitted)
    problem = problem_of(pinned(fitted.law, held), fitted.inputs, fitted.loss_R, fitted.centre, fitted.objective)
    limit_Qx2 = np.array([quantity.limits(fitted.law, fitted.loss_R) for quantity in held])
    search = Search(problem, fitted.objective.absolute, held, limit_Qx2, fitted.value)
    spread = sandwich(fitted)
    threshold_Q = _assumed(search, fitted, spread, level)
    step_Q = _first_steps(search, fitted, spread, threshold_Q)
    curves = start(search, fitted.theta_P)
    if bootstrap is not None and bootstrap.clusters < 2:
        threshold_Q = np.full(len(held), np.inf)  # one observation says nothing of what another would give
    elif bootstrap is not None:
        x_QxB = np.array([quantity.x(bootstrap.theta_BxP) for quantity in held])
        inner_Qx2 = np.quantile(x_QxB, [(1 - INNER) / 2, (1 + INNER) / 2], axis=1).T
        curves = explore(search, curves, step_Q, threshold_Q, inner_Qx2)
        quantile = stats.f.ppf(level, 1, bootstrap.clusters - 1) * len(fitted.loss_R) / spread.dof[0]
        threshold_Q = _calibrated(search, curves, x_QxB, threshold_Q, quantile, level)
    anywhere_Qx2 = limit_Qx2[:, ::-1]  # the threshold alone decides how far
    curves = fill(search, explore(search, curves, step_Q, threshold_Q, anywhere_Qx2), threshold_Q)
    return tuple(_finished(search, fitted, q, curve, threshold_Q[q], level) for q, curve in enumerate(curves))


def _refuse_weights(fitted: Fit) -> None:
    """A fit does not keep its weights, so that its objective is not the one that would be profiled."""
    problem = problem_of(fitted.law, fitted.inputs, fitted.loss_R, fitted.centre, fitted.objective)
    residual_BxR, _, _ = residuals(problem, np.log(fitted.loss_R)[None] - fitted.residual_R)
    rho_BxR = np.abs(residual_BxR) if fitted.objective.absolute else huber(residual_BxR, problem.delta)[0]
    if not np.isclose(rho_BxR.sum(), fitted.value, rtol=1e-6, atol=_rounding(problem, fitted.objective.absolute)):
        raise InputError("a fit with weights has no profile", do="fit the same rows without weight_R")


def _first_steps(search: Search, fitted: Fit, spread: Sandwich, threshold_Q: np.ndarray) -> np.ndarray:
    """A third of the half width that the curvature at the fit promises, within reason."""
    flat_Q = np.array([spread.inverse_curvature(quantity.slope(fitted.theta_P)) for quantity in search.held])
    range_Q = np.ptp(search.limit_Qx2, axis=1)
    return np.clip(np.sqrt(2 * threshold_Q * flat_Q) / 3, 1e-6 * range_Q, 0.05 * range_Q)


def _assumed(search: Search, fitted: Fit, spread: Sandwich, level: float) -> np.ndarray:
    """threshold_Q where no draws are given."""
    dof, sizes = spread.dof
    quantile, quantile_of_sizes = stats.f.ppf(level, 1, dof), stats.f.ppf(level, 1, sizes)
    squares, repeated = fitted.objective.kind.startswith("squares"), sizes + 1 < len(fitted.loss_R)
    floor = _rounding(search.problem, search.absolute)

    def threshold(quantity: Quantity) -> float:
        flat = spread.inverse_curvature(quantity.slope(fitted.theta_P))
        rows, of_sizes = spread.variance(quantity.slope(fitted.theta_P))
        if not flat > 0:
            return np.nan
        kappa = 2 * fitted.value / dof if squares else rows / flat
        return max(kappa * quantile, repeated * of_sizes / flat * quantile_of_sizes, 2 * floor) / 2

    threshold_Q = np.array([threshold(quantity) for quantity in search.held])
    # A parameter at its bound has no variance of its own: the largest threshold of all of the law's serves.
    largest = np.nanmax([*(threshold(quantity) for quantity in quantities(fitted.law)), floor])
    return np.where(np.isnan(threshold_Q), largest, threshold_Q)


def _calibrated(
    search: Search, curves: list[Curve], x_QxB: np.ndarray, assumed_Q: np.ndarray, quantile: float, level: float
) -> np.ndarray:
    """threshold_Q from bootstrap draws of the quantities; quantile: of F, inflated for the parameters.

    A fit at a limit has most draws there with it, and their median says nothing: the level's quantile serves, if it is
    more than what was assumed without draws.
    """
    rise_QxB = np.array([_rise(search, curve, x_B) for curve, x_B in zip(curves, x_QxB, strict=True)])
    fit_Q = np.array([curve.x_G[np.argmin(np.abs(curve.root(search.best)))] for curve in curves])
    inner_Q = (fit_Q > search.limit_Qx2[:, 0]) & (fit_Q < search.limit_Qx2[:, 1])
    bound_Q = np.maximum(np.quantile(rise_QxB, level, axis=1), assumed_Q)
    floor = _rounding(search.problem, search.absolute)
    half_kappa_Q = np.median(rise_QxB, axis=1) / stats.chi2.ppf(0.5, 1)
    return np.where(inner_Q, np.maximum(half_kappa_Q * quantile, floor), bound_Q)


def _rise(search: Search, curve: Curve, x_M: np.ndarray) -> np.ndarray:
    """S(x) - S(fit) between the points of a profile, and at its end beyond it."""
    return np.interp(x_M, curve.x_G, curve.root(search.best)) ** 2


def _rounding(problem: Problem, absolute: bool) -> float:
    """The objective of residuals that are rounding."""
    size = ROUNDING * (float(np.median(problem.loss_R)) if problem.raw else 1.0)
    return len(problem.loss_R) * (size if absolute else 0.5 * size**2)


def _finished(search: Search, fitted: Fit, q: int, curve: Curve, threshold: float, level: float) -> Profile:
    quantity, relative_G = search.held[q], (curve.value_G - search.best) / threshold
    low, high = (None if x is None else float(quantity.natural(x)) for x in _interval(curve.x_G, relative_G))
    return Profile(
        name=quantity.name,
        value=float(quantity.natural(quantity.x(fitted.theta_P[None]))[0]),
        interval=(low, high),
        level=level,
        grid_G=quantity.natural(curve.x_G),
        objective_G=relative_G,
        threshold=float(threshold),
    )


def _interval(x_G: np.ndarray, relative_G: np.ndarray) -> tuple[float | None, float | None]:
    """The outermost crossings of 1 that were found, in x; None on a side that ends below it."""
    inside = np.flatnonzero(relative_G <= 1)
    root_G = np.sqrt(np.maximum(relative_G, 0.0))
    ends = []
    for edge, step in ((inside[0], -1), (inside[-1], 1)):
        if not 0 <= edge + step < len(x_G):
            ends.append(None)
            continue
        share = (1 - root_G[edge]) / (root_G[edge + step] - root_G[edge])
        ends.append(float(x_G[edge] + share * (x_G[edge + step] - x_G[edge])))
    return ends[0], ends[1]
