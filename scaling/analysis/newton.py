"""Exact minima of robust fits: damped Newton steps for B weighted problems (starts, or bootstrap resamples) at once.

    minimise over theta   sum over runs r of  w_r rho(residual_r),   residual = f(theta) - log L  or  exp f(theta) - L

in two stages. From a start anywhere: least squares of log loss by Levenberg and Marquardt's steps, since far away a
narrow Huber zone sees only the signs of the residuals. From there: Newton steps with analytic second derivatives,
damped towards iteratively reweighted least squares (Holland & Welsch 1977). At the optimum the damping vanishes, so
that the end point is stationary to machine precision. First-order methods with their default tolerances stop early
here and report success (Besiroglu et al. 2024, section 3).
"""

from typing import NamedTuple

import numpy as np

from scaling.analysis.laws import Inputs, Law

MAX_STEPS = 300
FIRST_STEPS = 60  # of least squares from a start anywhere: it need only come near
TOLERANCE = 1e-12  # of the gradient, relative to the sum of the absolute contributions of the runs to it
STATIONARY = 1e-6  # a larger relative gradient at the end: the minimisation did not converge
FLOOR = 1e-14  # relative change of the objective that may be rounding
ROUNDING = 4 * np.finfo(np.float64).eps  # of a residual, relative to the loss
FLAT = 1e-12  # curvature, relative to that of reweighted least squares, that cannot be told from none
LOG_SQUARES = 1.0  # the zone of the first stage: residuals of log loss beyond it count by their size only
WIDER = 5.0  # times delta: a zone on the way, in which valleys with kinks are smooth
CELLS = 800_000  # numbers in the second derivatives of a batch of problems: what stays in cache


class Problem(NamedTuple):
    """A law to fit to R runs with Huber's loss of zone delta (infinite: least squares; one number, or one a problem).

    centre: of the law's coordinates. raw: residuals of loss, not of log loss. loss_BxR: losses of each problem, where
    they are not loss_R for all.
    """

    law: Law
    inputs: Inputs
    loss_R: np.ndarray
    centre: np.ndarray
    delta: float | np.ndarray
    raw: bool = False
    loss_BxR: np.ndarray | None = None

    def take(self, index: np.ndarray | slice) -> "Problem":
        """The problems at index, of those that differ in their losses or zones."""
        loss_BxR = None if self.loss_BxR is None else self.loss_BxR[index]
        delta = self.delta if np.ndim(self.delta) == 0 else self.delta[index]
        return self._replace(loss_BxR=loss_BxR, delta=delta)


class Minimum(NamedTuple):
    """End points of B minimisations: theta_BxP, objective value_B, relative gradient_B, steps_B, condition_B."""

    theta_BxP: np.ndarray
    value_B: np.ndarray
    gradient_B: np.ndarray
    steps_B: np.ndarray
    condition_B: np.ndarray

    @property
    def converged_B(self) -> np.ndarray:
        """Which end points are stationary; the others were still on their way after MAX_STEPS."""
        return self.gradient_B <= STATIONARY

    def where(self, chosen_B: np.ndarray, other: "Minimum") -> "Minimum":
        """These end points where chosen, else the other's."""
        pairs = zip(self, other, strict=True)
        return Minimum(*(np.where(chosen_B.reshape(-1, *[1] * (x.ndim - 1)), x, y) for x, y in pairs))


class Steps(NamedTuple):
    """How to step: Newton or Levenberg and Marquardt, the first damping, the relative gradient to stop at, and when to
    give up."""

    newton: bool = True
    damping: float = 1.0
    tolerance: float = TOLERANCE
    most: int = MAX_STEPS


def descend(problem: Problem, weight_BxR: np.ndarray, start_BxP: np.ndarray) -> Minimum:
    """The minima of B weighted problems, each from a start anywhere."""
    theta_BxP = approach(problem, weight_BxR, start_BxP)
    if np.all(np.isfinite(problem.delta)):
        wider = problem._replace(delta=WIDER * problem.delta)
        theta_BxP = minimise(wider, weight_BxR, theta_BxP, Steps(tolerance=1e-6)).theta_BxP
    return polish(problem, weight_BxR, theta_BxP)


def approach(problem: Problem, weight_BxR: np.ndarray, start_BxP: np.ndarray) -> np.ndarray:
    """The first stage alone: theta_BxP near the least squares of log loss, whatever the problem's own objective."""
    squares = problem._replace(delta=LOG_SQUARES, raw=False)
    steps = Steps(newton=False, damping=1e-3, tolerance=1e-3, most=FIRST_STEPS)
    return minimise(squares, weight_BxR, start_BxP, steps).theta_BxP


def polish(problem: Problem, weight_BxR: np.ndarray, start_BxP: np.ndarray, most: int = MAX_STEPS) -> Minimum:
    """The minima of B weighted problems, each from a start near it: the second stage alone, in at most `most` steps."""
    return minimise(problem, weight_BxR, start_BxP, Steps(most=most))


def huber(r: np.ndarray, delta: float | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Huber's loss of r, its first and second derivative, and its weight psi(r) / r; r^2 / 2 for an infinite delta."""
    if np.ndim(delta) == 0 and not np.isfinite(delta):
        one = np.ones_like(r)
        return 0.5 * r * r, r, one, one
    size = np.abs(r)
    inside = size <= delta
    rho = np.where(inside, 0.5 * r * r, delta * (size - 0.5 * delta))
    return rho, r.clip(-delta, delta), inside.astype(np.float64), delta / np.maximum(size, delta)


def minimise(problem: Problem, weight_BxR: np.ndarray, start_BxP: np.ndarray, steps: Steps) -> Minimum:
    """The end points of B minimisations, a batch at a time."""
    (B, P), R = start_BxP.shape, weight_BxR.shape[1]
    if not B:
        return Minimum(start_BxP, *np.empty((4, 0)))
    batch = max(1, CELLS // (P * P * R))
    cuts = [slice(i, i + batch) for i in range(0, B, batch)]
    parts = [_minimise(problem.take(cut), weight_BxR[cut], start_BxP[cut], steps) for cut in cuts]
    return Minimum(*(np.concatenate(values) for values in zip(*parts, strict=True)))


class Local(NamedTuple):
    """Objective value_B, its gradient, the sum of absolute contributions to it, second derivatives, and J^T W J."""

    value_B: np.ndarray
    gradient_BxP: np.ndarray
    scale_BxP: np.ndarray
    newton_BxPxP: np.ndarray
    reweighted_BxPxP: np.ndarray


def local(problem: Problem, weight_BxR: np.ndarray, theta_BxP: np.ndarray, second: bool = True) -> Local:
    """The objective at B points and its derivatives there; without `second`, newton_BxPxP is J^T W J too.

    The scale of the gradient includes what rounding of the residuals may contribute, divided by TOLERANCE: a gradient
    that rounding explains counts as zero. Without it a law through all points would never count as stationary.
    Far away a law may overflow; such a point is not lower than any, and no step is taken to it.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return _local(problem, weight_BxR, theta_BxP, second)


def _local(problem: Problem, weight_BxR: np.ndarray, theta_BxP: np.ndarray, second: bool) -> Local:
    at = problem.law.evaluate(theta_BxP, problem.inputs, problem.centre)
    residual_BxR, slope_BxR, unit = residuals(problem, at.f_BxR)
    rho, psi, bend, ratio = huber(residual_BxR, problem.delta)
    pull_BxR = weight_BxR * psi * slope_BxR
    Jt_BxRxP = at.J_BxPxR.transpose(0, 2, 1)
    newton_BxPxP = reweighted_BxPxP = np.matmul(at.J_BxPxR * (weight_BxR * ratio * slope_BxR**2)[:, None, :], Jt_BxRxP)
    if second:
        # d2 rho / df2 = rho'' slope^2 + rho' d2 residual / df2, and exp is its own second derivative.
        stiff_BxR = weight_BxR * bend * slope_BxR**2 + (pull_BxR if problem.raw else 0.0)
        newton_BxPxP = np.matmul(at.J_BxPxR * stiff_BxR[:, None, :], Jt_BxRxP) + at.curvature(pull_BxR)
    doubt_BxR = np.abs(pull_BxR) + weight_BxR * bend * slope_BxR * unit * (ROUNDING / TOLERANCE)
    return Local(
        value_B=(weight_BxR * rho).sum(1),
        gradient_BxP=np.matmul(at.J_BxPxR, pull_BxR[:, :, None])[:, :, 0],
        scale_BxP=np.matmul(np.abs(at.J_BxPxR), doubt_BxR[:, :, None])[:, :, 0],
        newton_BxPxP=newton_BxPxP,
        reweighted_BxPxP=reweighted_BxPxP,
    )


def residuals(problem: Problem, f_BxR: np.ndarray) -> tuple[np.ndarray, np.ndarray | float, np.ndarray | float]:
    """Residuals (law less data) of log loss or loss, their derivative by f = log law, and the size of what is
    subtracted."""
    loss = problem.loss_R if problem.loss_BxR is None else problem.loss_BxR
    if not problem.raw:
        return f_BxR - np.log(loss), 1.0, 1.0
    law_BxR = np.exp(f_BxR)
    return law_BxR - loss, law_BxR, loss


def _minimise(problem: Problem, weight_BxR: np.ndarray, start_BxP: np.ndarray, steps: Steps) -> Minimum:
    lower_P, upper_P = problem.law.bounds(problem.loss_R)
    B = len(start_BxP)
    theta_BxP = start_BxP.clip(lower_P, upper_P)
    here = local(problem, weight_BxR, theta_BxP, steps.newton)
    # A start may lie where second derivatives overflow (no step leads there): its first step is of reweighted squares.
    lost_B = ~np.isfinite(here.newton_BxPxP).all((1, 2))
    here.newton_BxPxP[lost_B] = here.reweighted_BxPxP[lost_B]
    damping_B, steps_B = np.full(B, steps.damping), np.zeros(B, np.int64)
    alive_A = np.arange(B)
    for _ in range(steps.most):
        free_AxP, size_A = _free(here, theta_BxP, lower_P, upper_P, alive_A)
        going_A = (size_A > steps.tolerance) & (damping_B[alive_A] < 1e9)
        alive_A, free_AxP, size_A = alive_A[going_A], free_AxP[going_A], size_A[going_A]
        if not alive_A.size:
            break
        step_AxP = _step(here, damping_B, free_AxP, alive_A, steps.newton)
        promise_A = np.abs((step_AxP * here.gradient_BxP[alive_A]).sum(1))
        trial_AxP = (theta_BxP[alive_A] + step_AxP).clip(lower_P, upper_P)
        there = local(problem.take(alive_A), weight_BxR[alive_A], trial_AxP, steps.newton)
        everyone = np.arange(len(alive_A))
        _, trial_size_A = _free(there, trial_AxP, lower_P, upper_P, everyone)
        # Near the end the objective is flat to rounding, and only the gradient still tells better from worse.
        flat_A = np.abs(there.value_B - here.value_B[alive_A]) <= FLOOR * here.value_B[alive_A]
        better_A = np.where(flat_A, trial_size_A < 0.9 * size_A, there.value_B < here.value_B[alive_A])
        better_A &= np.isfinite(there.newton_BxPxP).all((1, 2))
        moved_M = alive_A[better_A]
        theta_BxP[moved_M] = trial_AxP[better_A]
        for old, new in zip(here, there, strict=True):
            old[moved_M] = new[better_A]
        steps_B[alive_A] += 1
        damping_B[alive_A] = np.where(better_A, damping_B[alive_A] / 6, np.maximum(damping_B[alive_A] * 5, 1e-6))
        alive_A = alive_A[better_A | (promise_A > FLOOR * here.value_B[alive_A])]
    _, size_B = _free(here, theta_BxP, lower_P, upper_P, np.arange(B))
    free_BxP = (theta_BxP > lower_P) & (theta_BxP < upper_P)
    return Minimum(theta_BxP, here.value_B, size_B, steps_B, _condition(here.reweighted_BxPxP, free_BxP))


def _free(
    here: Local, theta_BxP: np.ndarray, lower_P: np.ndarray, upper_P: np.ndarray, alive_A: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which parameters may move (not held at a bound by their gradient), and the relative gradient in those."""
    theta_AxP, gradient_AxP = theta_BxP[alive_A], here.gradient_BxP[alive_A]
    held_AxP = ((theta_AxP <= lower_P) & (gradient_AxP > 0)) | ((theta_AxP >= upper_P) & (gradient_AxP < 0))
    scale_AxP = np.maximum(here.scale_BxP[alive_A], np.finfo(np.float64).tiny)
    return ~held_AxP, np.where(held_AxP, 0.0, np.abs(gradient_AxP) / scale_AxP).max(1)


def _step(here: Local, damping_B: np.ndarray, free_AxP: np.ndarray, alive_A: np.ndarray, newton: bool) -> np.ndarray:
    """The step of the free parameters, in units in which reweighted least squares has unit curvature along each.

    Newton: (second derivatives + damping * reweighted) step = -gradient; else: (reweighted + damping) step = -gradient.
    Negative and zero curvatures are replaced by their size (at least FLAT), so that every step leads downhill.
    """
    metric_AxPxP, damping_Ax1x1 = here.reweighted_BxPxP[alive_A], damping_B[alive_A][:, None, None]
    diagonal_AxP = np.einsum("app->ap", metric_AxPxP)
    moving_AxP = free_AxP & (diagonal_AxP > np.finfo(np.float64).tiny)
    scale_AxP = np.where(moving_AxP, 1 / np.sqrt(np.where(moving_AxP, diagonal_AxP, 1.0)), 0.0)
    both_AxPxP = scale_AxP[:, :, None] * scale_AxP[:, None, :]
    if newton:
        H_AxPxP = (here.newton_BxPxP[alive_A] + damping_Ax1x1 * metric_AxPxP) * both_AxPxP
    else:
        H_AxPxP = metric_AxPxP * both_AxPxP + damping_Ax1x1 * np.eye(free_AxP.shape[1])
    eigenvalue_AxP, V_AxPxP = np.linalg.eigh(H_AxPxP)
    downhill_AxP = np.matmul(V_AxPxP.transpose(0, 2, 1), (-scale_AxP * here.gradient_BxP[alive_A])[:, :, None])[:, :, 0]
    downhill_AxP /= np.maximum(np.abs(eigenvalue_AxP), FLAT)
    return scale_AxP * np.matmul(V_AxPxP, downhill_AxP[:, :, None])[:, :, 0]


def _condition(metric_BxPxP: np.ndarray, free_BxP: np.ndarray) -> np.ndarray:
    """Condition number of the normalised (unit diagonal) curvature of the free parameters; infinite where that is."""
    known_B = np.isfinite(metric_BxPxP).all((1, 2))
    metric_BxPxP = np.where(known_B[:, None, None], metric_BxPxP, 0.0)
    diagonal_BxP = np.einsum("bpp->bp", metric_BxPxP)
    scale_BxP = np.where(free_BxP & (diagonal_BxP > np.finfo(np.float64).tiny), diagonal_BxP, 1.0) ** -0.5
    both_BxPxP = free_BxP[:, :, None] & free_BxP[:, None, :]
    unit_BxPxP = np.where(both_BxPxP, metric_BxPxP * scale_BxP[:, :, None] * scale_BxP[:, None, :], 0.0)
    unit_BxPxP = unit_BxPxP + np.where(free_BxP, 0.0, 1.0)[:, :, None] * np.eye(free_BxP.shape[1])
    eigenvalue_BxP = np.linalg.eigvalsh(unit_BxPxP)
    return np.where(known_B, eigenvalue_BxP[:, -1] / np.maximum(eigenvalue_BxP[:, 0], 1e-300), np.inf)
