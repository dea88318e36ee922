"""Least absolute deviations, exactly: minimise over theta  sum over runs r of  w_r |residual_r|,  B problems at once.

The sum has kinks where a residual is zero, and at its minimum about as many residuals are zero as there are
parameters. Huber's loss divided by its zone tends to it as the zone shrinks. Once the zone holds just the residuals
that end at zero, the rest is smooth (Madsen & Nielsen 1993, for linear models): with Z those residuals, Newton's method
on the conditions of Karush, Kuhn and Tucker

    sum over r not in Z of  w_r sign(residual_r) J_r  +  sum over r in Z of  m_r J_r  =  0,   residual_r = 0 for r in Z

solves for theta and the multipliers m to machine precision. It is a minimum if |m_r| <= w_r, the curvature along
residual_Z = 0 is positive, all other signs are as they were, and the sum is no higher; where that fails, the zone was
too wide, and shrinks further.
"""

from typing import NamedTuple

import numpy as np

from scaling.analysis.laws import Evaluation, Inputs
from scaling.analysis.newton import MAX_STEPS, ROUNDING, Minimum, Problem, Steps, approach, minimise, residuals

FIRST_ZONE = 0.5  # of the mean absolute residual, from a start anywhere
NEAR_ZONE = 0.1  # of it, from a start near the minimum
SHRINK = 0.4  # of the zone, from one to the next
LAST_ZONE = 1e-9  # of the mean absolute residual: a narrower zone would be decided by rounding
NEWTON = 6  # steps on the conditions, which converge quadratically
SLACK = 1e-9  # of a multiplier beyond its weight, of the sum, of the gradient: rounding
SINGULAR = 1e-15  # eigenvalue, relative to the largest, that cannot be told from none
TINY = 1e-12  # a mean absolute residual below it, relative to the loss, is rounding


def descend(problem: Problem, weight_BxR: np.ndarray, start_BxP: np.ndarray) -> Minimum:
    """The minima of B weighted problems, each from a start anywhere; the problem's own zone does not matter.

    value_B: the sum of absolute deviations. gradient_B: the smallest subgradient, relative; where the conditions could
    not be solved, the relative amount by which the sum may be above a minimum, if that is more.
    """
    problem, weight_BxR = _merged(problem, weight_BxR)
    return _shrink(problem, weight_BxR, approach(problem, weight_BxR, start_BxP), FIRST_ZONE, MAX_STEPS)


def polish(problem: Problem, weight_BxR: np.ndarray, start_BxP: np.ndarray, most: int = MAX_STEPS) -> Minimum:
    """The minima of B weighted problems, each from a start near it, in at most `most` steps a zone."""
    return _shrink(*_merged(problem, weight_BxR), start_BxP, NEAR_ZONE, most)


def _merged(problem: Problem, weight_BxR: np.ndarray) -> tuple[Problem, np.ndarray]:
    """The same problems with equal rows as one: several residuals that are zero together have no multipliers.

    Rows without weight make up for those that are then fewer than parameters.
    """
    if problem.loss_BxR is not None:
        return problem, weight_BxR
    columns = [values for values in (*problem.inputs, problem.loss_R) if values is not None]
    _, first_U, group_R = np.unique(np.stack(columns, axis=1), axis=0, return_index=True, return_inverse=True)
    missing = max(0, len(problem.law.parameters) - len(first_U))
    first_U = np.append(first_U, np.repeat(first_U[:1], missing))
    weight_BxU = np.zeros((len(weight_BxR), len(first_U)))
    np.add.at(weight_BxU, (slice(None), group_R.ravel()), weight_BxR)
    inputs = Inputs(*(None if values is None else values[first_U] for values in problem.inputs))
    return problem._replace(inputs=inputs, loss_R=problem.loss_R[first_U]), weight_BxU


def _shrink(problem: Problem, weight_BxR: np.ndarray, start_BxP: np.ndarray, zone: float, most: int) -> Minimum:
    """Huber's minima in ever narrower zones, for each problem until its conditions are solved."""
    B = len(start_BxP)
    found = Minimum(start_BxP.copy(), np.full(B, np.inf), np.ones(B), np.zeros(B, np.int64), np.ones(B))
    unit = np.mean(problem.loss_R) if problem.raw else 1.0
    scale_B = np.maximum(_deviation(problem, weight_BxR, start_BxP) / weight_BxR.sum(1), TINY * unit)
    open_A = np.arange(B)
    while len(open_A) and zone >= LAST_ZONE:
        at = problem.take(open_A)._replace(delta=zone * scale_B[open_A, None])
        smooth = minimise(at, weight_BxR[open_A], found.theta_BxP[open_A], Steps(tolerance=SLACK, most=most))
        end, solved_A = _solve(at, weight_BxR[open_A], smooth)
        end = end._replace(steps_B=end.steps_B + found.steps_B[open_A])
        for old, new in zip(found, end, strict=True):
            old[open_A] = new
        open_A, zone = open_A[~solved_A], zone * SHRINK
    return found


def _deviation(problem: Problem, weight_BxR: np.ndarray, theta_BxP: np.ndarray) -> np.ndarray:
    f_BxR = problem.law.log_loss(theta_BxP, problem.inputs, problem.centre)
    return (weight_BxR * np.abs(residuals(problem, f_BxR)[0])).sum(1)


class _Active(NamedTuple):
    """What the zone of Huber's minimum says of the minimum: which residuals are zero, and the signs of the others.

    zero_BxP: rows of the P smallest residuals, of which those in the zone are used_BxP (Z). pull_BxR: weights times
    signs. held_BxP: parameters at a bound.
    """

    zero_BxP: np.ndarray
    used_BxP: np.ndarray
    few_B: np.ndarray
    pull_BxR: np.ndarray
    multiplier_BxP: np.ndarray
    held_BxP: np.ndarray


def _active(problem: Problem, weight_BxR: np.ndarray, theta_BxP: np.ndarray) -> _Active:
    lower_P, upper_P = problem.law.bounds(problem.loss_R)
    residual_BxR, _, _ = residuals(problem, problem.law.log_loss(theta_BxP, problem.inputs, problem.centre))
    size_BxR = np.where(weight_BxR > 0, np.abs(residual_BxR), np.inf)
    zero_BxP = np.argsort(size_BxR, axis=1)[:, : theta_BxP.shape[1]]
    return _Active(
        zero_BxP=zero_BxP,
        used_BxP=_of(size_BxR, zero_BxP) <= problem.delta,
        few_B=(size_BxR <= problem.delta).sum(1) <= theta_BxP.shape[1],
        pull_BxR=weight_BxR * np.sign(residual_BxR),
        multiplier_BxP=_of(weight_BxR * (residual_BxR / problem.delta).clip(-1, 1), zero_BxP),
        held_BxP=(theta_BxP <= lower_P) | (theta_BxP >= upper_P),
    )


class _Conditions(NamedTuple):
    """The conditions at B points: the sum's gradient_BxP, all residuals, and their slopes and units (`residuals`)."""

    at: Evaluation
    force_BxR: np.ndarray
    gradient_BxP: np.ndarray
    residual_BxR: np.ndarray
    slope_BxR: np.ndarray
    unit_BxR: np.ndarray


def _conditions(problem: Problem, active: _Active, theta_BxP: np.ndarray, multiplier_BxP: np.ndarray) -> _Conditions:
    pull_BxR = active.pull_BxR.copy()
    np.put_along_axis(pull_BxR, active.zero_BxP, multiplier_BxP, axis=1)
    at = problem.law.evaluate(theta_BxP, problem.inputs, problem.centre)
    residual_BxR, slope_BxR, unit_BxR = (np.broadcast_to(x, pull_BxR.shape) for x in residuals(problem, at.f_BxR))
    force_BxR = pull_BxR * slope_BxR
    gradient_BxP = np.matmul(at.J_BxPxR, force_BxR[:, :, None])[:, :, 0]
    return _Conditions(at, force_BxR, gradient_BxP, residual_BxR, slope_BxR, unit_BxR)


def _solve(problem: Problem, weight_BxR: np.ndarray, smooth: Minimum) -> tuple[Minimum, np.ndarray]:
    """Minima by Newton's method on the conditions from Huber's minima, which stay where that fails; where it did not.

    |r| is above Huber's loss divided by its zone by half a zone at most: so much may Huber's minima miss.
    """
    lower_P, upper_P = problem.law.bounds(problem.loss_R)
    active = _active(problem, weight_BxR, smooth.theta_BxP)
    theta_BxP, multiplier_BxP = smooth.theta_BxP, active.multiplier_BxP
    with np.errstate(over="ignore", invalid="ignore"):  # a step that leads astray solves nothing, and is not taken
        for _ in range(NEWTON):
            step_BxP, more_BxP, bowl_B = _newton(
                _conditions(problem, active, theta_BxP, multiplier_BxP), problem, active
            )
            theta_BxP = (theta_BxP + step_BxP).clip(lower_P, upper_P)
            multiplier_BxP = multiplier_BxP + more_BxP
        end = _conditions(problem, active, theta_BxP, multiplier_BxP)
        value_B = (weight_BxR * np.abs(end.residual_BxR)).sum(1)
        scale_BxP = np.matmul(np.abs(end.at.J_BxPxR), (weight_BxR * end.slope_BxR)[:, :, None])[:, :, 0]
        relative_BxP = np.abs(end.gradient_BxP) / np.maximum(scale_BxP, np.finfo(np.float64).tiny)
        gradient_B = np.where(active.held_BxP, 0.0, relative_BxP).max(1)
    smooth_B = _deviation(problem, weight_BxR, smooth.theta_BxP)
    solved_B = (
        active.few_B
        & bowl_B
        & (gradient_B <= SLACK)
        & (value_B <= smooth_B * (1 + SLACK))
        & _holds(end, active, weight_BxR, multiplier_BxP)
        & _outward(end, theta_BxP, lower_P, active)
    )
    missed_B = 0.5 * problem.delta[:, 0] * weight_BxR.sum(1) / np.maximum(smooth_B, np.finfo(np.float64).tiny)
    left = smooth._replace(value_B=smooth_B, gradient_B=np.maximum(smooth.gradient_B, np.minimum(missed_B, 1.0)))
    return left._replace(theta_BxP=theta_BxP, value_B=value_B, gradient_B=gradient_B).where(solved_B, left), solved_B


def _newton(here: _Conditions, problem: Problem, active: _Active) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The step of theta, that of the multipliers, and whether the curvature along residual_Z = 0 is positive.

    Held parameters, those that no residual depends on, and unused places stay. The curvature is positive if the matrix
    has as many negative eigenvalues as Z has rows (Nocedal & Wright 2006, theorem 16.3).
    """
    P = active.held_BxP.shape[1]
    H_BxPxP = here.at.curvature(here.force_BxR)
    if problem.raw:  # exp is its own second derivative
        Jt_BxRxP = here.at.J_BxPxR.transpose(0, 2, 1)
        H_BxPxP = H_BxPxP + np.matmul(here.at.J_BxPxR * here.force_BxR[:, None, :], Jt_BxRxP)
    J_BxPxR = here.at.J_BxPxR * here.slope_BxR[:, None, :]
    J_BxPxZ = np.take_along_axis(J_BxPxR, active.zero_BxP[:, None, :], axis=2)
    fixed_BxM = np.concatenate([active.held_BxP | (J_BxPxR == 0).all(2), ~active.used_BxP], axis=1)
    top = np.concatenate([H_BxPxP, J_BxPxZ], axis=2)
    bottom = np.concatenate([J_BxPxZ.transpose(0, 2, 1), np.zeros_like(H_BxPxP)], axis=2)
    both_BxMxM = ~fixed_BxM[:, :, None] & ~fixed_BxM[:, None, :]
    matrix_BxMxM = np.where(both_BxMxM, np.concatenate([top, bottom], axis=1), np.eye(2 * P) * fixed_BxM[:, None, :])
    astray_B = ~np.isfinite(matrix_BxMxM).all((1, 2))
    matrix_BxMxM[astray_B] = np.eye(2 * P)
    misfit_BxM = np.concatenate([here.gradient_BxP, _of(here.residual_BxR, active.zero_BxP)], axis=1)
    value_BxM, V_BxMxM = np.linalg.eigh(matrix_BxMxM)
    none_BxM = np.abs(value_BxM) <= SINGULAR * np.abs(value_BxM).max(1, keepdims=True)
    along_BxM = np.matmul(V_BxMxM.transpose(0, 2, 1), np.where(fixed_BxM, 0.0, misfit_BxM)[:, :, None])[:, :, 0]
    along_BxM = np.where(none_BxM, 0.0, along_BxM / np.where(none_BxM, 1.0, value_BxM))
    step_BxM = np.where(fixed_BxM, 0.0, -np.matmul(V_BxMxM, along_BxM[:, :, None])[:, :, 0])
    bowl_B = ((value_BxM < 0) & ~none_BxM).sum(1) <= active.used_BxP.sum(1)
    return step_BxM[:, :P], step_BxM[:, P:], bowl_B & ~astray_B


def _holds(end: _Conditions, active: _Active, weight_BxR: np.ndarray, multiplier_BxP: np.ndarray) -> np.ndarray:
    """Whether residuals of Z are zero, multipliers within their weights, and the other signs as they were."""
    within_BxP = np.abs(multiplier_BxP) <= _of(weight_BxR, active.zero_BxP) * (1 + SLACK)
    size_BxP = np.abs(_of(end.residual_BxR, active.zero_BxP))
    zero_BxP = (size_BxP <= 100 * ROUNDING * _of(end.unit_BxR, active.zero_BxP)) | ~active.used_BxP
    same_BxR = (end.residual_BxR * active.pull_BxR > 0) | (weight_BxR == 0)
    np.put_along_axis(same_BxR, active.zero_BxP, _of(same_BxR, active.zero_BxP) | active.used_BxP, axis=1)
    return within_BxP.all(1) & zero_BxP.all(1) & same_BxR.all(1)


def _outward(end: _Conditions, theta_BxP: np.ndarray, lower_P: np.ndarray, active: _Active) -> np.ndarray:
    """Whether the sum falls beyond the bound of every parameter that is held at one."""
    out_BxP = np.where(theta_BxP <= lower_P, end.gradient_BxP >= 0, end.gradient_BxP <= 0)
    return (out_BxP | ~active.held_BxP).all(1)


def _of(values_BxR: np.ndarray, rows_BxP: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values_BxR, rows_BxP, axis=1)
