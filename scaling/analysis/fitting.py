"""Fits a law to runs: the exact minimum of a robust loss, from many starts, with a certificate.

    minimise over theta   sum over runs r of  w_r rho(log L_r - f_r(theta))

for B problems (starts, or bootstrap resamples) at once, in two stages. From a start: least squares of log loss by
Levenberg and Marquardt's steps, since far away a narrow Huber zone sees only the signs of the residuals. From there:
Newton steps with analytic second derivatives, damped towards iteratively reweighted least squares (Holland & Welsch
1977); at the optimum the damping vanishes, so that the end point is stationary to machine precision. First-order
methods with their default tolerances stop early here and report success (Besiroglu et al. 2024, section 3).
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from scaling.analysis.laws import Inputs, Law

STARTS = 24
MAX_STEPS = 300
TOLERANCE = 1e-12  # of the gradient, relative to the sum of the absolute contributions of the runs to it
FLOOR = 1e-14  # relative change of the objective that may be rounding
FLAT = 1e-12  # curvature, relative to that of reweighted least squares, that cannot be told from none
LEAST_SQUARES = 1.0  # a Huber zone wider than any residual of log loss
ZONES = (5.0,)  # times delta
SAME = 1e-7  # relative difference of objectives below which two starts ended in the same minimum
BATCH = 512  # problems at once: their Jacobians stay in cache


@dataclasses.dataclass(frozen=True)
class Objective:
    """Huber's loss of the residual of log loss, summed over runs (Hoffmann et al. 2022, eq. 3)."""

    kind: str = "huber_log"
    delta: float = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law. theta_P centred coordinates; parameters natural ones; residual_R = log loss - log law."""

    law: Law
    objective: Objective
    centre: np.ndarray
    theta_P: np.ndarray
    parameters: dict[str, float]
    value: float
    residual_R: np.ndarray
    certificate: dict[str, Any]

    def loss(self, N: np.ndarray | float, D: np.ndarray | float) -> np.ndarray:
        """The law's loss, nats per token, at N parameters and D tokens (broadcast)."""
        N, D = np.broadcast_arrays(np.asarray(N, np.float64), np.asarray(D, np.float64))
        return law_loss(self.law, self.theta_P[None], self.centre, N.ravel(), D.ravel())[0].reshape(N.shape)


class Minimum(NamedTuple):
    """End points of B minimisations: theta_BxP, objective value_B, relative gradient_B, steps_B, condition_B."""

    theta_BxP: np.ndarray
    value_B: np.ndarray
    gradient_B: np.ndarray
    steps_B: np.ndarray
    condition_B: np.ndarray


def fit(law: Law, inputs: Inputs, loss_R: np.ndarray, objective: Objective = Objective(), seed: int = 0) -> Fit:
    """The global minimum over `STARTS` mixture starts. Raises InputError where the runs cannot determine the law."""
    law.check(inputs)
    centre = law.centre(inputs)
    start_SxP = law.starts(STARTS, inputs, loss_R, centre, np.random.default_rng(seed))
    weight_SxR = np.ones((STARTS, len(loss_R)))
    end = descend(law, inputs, centre, loss_R, weight_SxR, start_SxP, objective.delta)
    best = int(np.argmin(end.value_B))
    theta_P = end.theta_BxP[best]
    return Fit(
        law=law,
        objective=objective,
        centre=centre,
        theta_P=theta_P,
        parameters={name: float(value[0]) for name, value in law.natural(theta_P[None], centre).items()},
        value=float(end.value_B[best]),
        residual_R=np.log(loss_R) - law.evaluate(theta_P[None], inputs, centre).f_BxR[0],
        certificate=_certificate(law, end, best, loss_R),
    )


def refit(fitted: Fit, inputs: Inputs, loss_R: np.ndarray, weight_BxR: np.ndarray, seed: int) -> Minimum:
    """The fit under B weightings of the runs (bootstrap resamples): from the fit, and from one mixture start each.

    The second start guards against a resample whose global minimum is another one than the data's; the better is kept.
    """
    args = (fitted.law, inputs, fitted.centre, loss_R, weight_BxR)
    near = minimise(*args, np.tile(fitted.theta_P, (len(weight_BxR), 1)), fitted.objective.delta)
    rng = np.random.default_rng(seed)
    far = descend(*args, fitted.law.starts(len(weight_BxR), inputs, loss_R, fitted.centre, rng), fitted.objective.delta)
    better_B = far.value_B < near.value_B
    return Minimum(*(np.where(better_B.reshape(-1, *[1] * (x.ndim - 1)), y, x) for x, y in zip(near, far, strict=True)))


def law_loss(
    law: Law, theta_BxP: np.ndarray, centre: np.ndarray, N: np.ndarray | float, D: np.ndarray | float
) -> np.ndarray:
    """The loss, nats per token, of B parameter vectors at points (N_M, D_M), or at points of their own N_BxM:
    loss_BxM."""
    return np.exp(law.log_loss(theta_BxP, Inputs(np.asarray(N, np.float64), np.asarray(D, np.float64)), centre))


def huber(r: np.ndarray, delta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Huber's loss of r, its first and second derivative, and its weight psi(r) / r."""
    size = np.abs(r)
    inside = size <= delta
    rho = np.where(inside, 0.5 * r * r, delta * (size - 0.5 * delta))
    return rho, r.clip(-delta, delta), inside.astype(np.float64), delta / np.maximum(size, delta)


def minimise(
    law: Law,
    inputs: Inputs,
    centre: np.ndarray,
    loss_R: np.ndarray,
    weight_BxR: np.ndarray,
    start_BxP: np.ndarray,
    delta: float,
) -> Minimum:
    """The second stage alone: minimises B weighted problems, each from a start near its minimum, within the bounds."""
    return _batched(law, inputs, centre, loss_R, weight_BxR, start_BxP, delta, Steps())


def descend(
    law: Law,
    inputs: Inputs,
    centre: np.ndarray,
    loss_R: np.ndarray,
    weight_BxR: np.ndarray,
    start_BxP: np.ndarray,
    delta: float,
) -> Minimum:
    """Both stages, from B starts anywhere, by way of wider zones: valleys with kinks are smooth in those."""
    args = (law, inputs, centre, loss_R, weight_BxR)
    theta_BxP = _batched(*args, start_BxP, LEAST_SQUARES, Steps(newton=False, damping=1e-2, tolerance=1e-3)).theta_BxP
    for zone in ZONES:
        theta_BxP = _batched(*args, theta_BxP, zone * delta, Steps(tolerance=1e-6)).theta_BxP
    return minimise(*args, theta_BxP, delta)


class Steps(NamedTuple):
    """How to step: Newton or Gauss and Newton, the first damping, and the relative gradient to stop at."""

    newton: bool = True
    damping: float = 1.0
    tolerance: float = TOLERANCE


def _batched(
    law: Law,
    inputs: Inputs,
    centre: np.ndarray,
    loss_R: np.ndarray,
    weight_BxR: np.ndarray,
    start_BxP: np.ndarray,
    delta: float,
    steps: Steps,
) -> Minimum:
    parts = [
        _minimise(law, inputs, centre, loss_R, weight_BxR[i : i + BATCH], start_BxP[i : i + BATCH], delta, steps)
        for i in range(0, len(start_BxP), BATCH)
    ]
    return Minimum(*(np.concatenate(values) for values in zip(*parts, strict=True)))


class _Local(NamedTuple):
    value_B: np.ndarray
    gradient_BxP: np.ndarray
    scale_BxP: np.ndarray
    newton_BxPxP: np.ndarray
    reweighted_BxPxP: np.ndarray


def _local(
    law: Law,
    inputs: Inputs,
    centre: np.ndarray,
    y_R: np.ndarray,
    weight_BxR: np.ndarray,
    theta_BxP: np.ndarray,
    delta: float,
) -> _Local:
    at = law.evaluate(theta_BxP, inputs, centre)
    rho, psi, bend, ratio = huber(at.f_BxR - y_R, delta)
    pull_BxR = weight_BxR * psi
    Jt_BxRxP = at.J_BxPxR.transpose(0, 2, 1)
    gradient_BxP = np.matmul(at.J_BxPxR, pull_BxR[:, :, None])[:, :, 0]
    scale_BxP = np.matmul(np.abs(at.J_BxPxR), np.abs(pull_BxR)[:, :, None])[:, :, 0]
    newton_BxPxP = np.matmul(at.J_BxPxR * (weight_BxR * bend)[:, None, :], Jt_BxRxP) + at.curvature(pull_BxR)
    reweighted_BxPxP = np.matmul(at.J_BxPxR * (weight_BxR * ratio)[:, None, :], Jt_BxRxP)
    return _Local((weight_BxR * rho).sum(1), gradient_BxP, scale_BxP, newton_BxPxP, reweighted_BxPxP)


def _minimise(
    law: Law,
    inputs: Inputs,
    centre: np.ndarray,
    loss_R: np.ndarray,
    weight_BxR: np.ndarray,
    start_BxP: np.ndarray,
    delta: float,
    steps: Steps,
) -> Minimum:
    y_R = np.log(loss_R)
    lower_P, upper_P = law.bounds(loss_R)
    B = len(start_BxP)
    theta_BxP = start_BxP.clip(lower_P, upper_P)
    here = _local(law, inputs, centre, y_R, weight_BxR, theta_BxP, delta)
    damping_B, steps_B = np.full(B, steps.damping), np.zeros(B, np.int64)
    alive_A = np.arange(B)
    for _ in range(MAX_STEPS):
        free_AxP, size_A = _free(here, theta_BxP, lower_P, upper_P, alive_A)
        going_A = (size_A > steps.tolerance) & (damping_B[alive_A] < 1e9)
        alive_A, free_AxP, size_A = alive_A[going_A], free_AxP[going_A], size_A[going_A]
        if not alive_A.size:
            break
        step_AxP = _step(here, damping_B, free_AxP, alive_A, steps.newton)
        promise_A = np.abs((step_AxP * here.gradient_BxP[alive_A]).sum(1))
        trial_AxP = (theta_BxP[alive_A] + step_AxP).clip(lower_P, upper_P)
        there = _local(law, inputs, centre, y_R, weight_BxR[alive_A], trial_AxP, delta)
        everyone = np.arange(len(alive_A))
        _, trial_size_A = _free(there, trial_AxP, lower_P, upper_P, everyone)
        # Near the end the objective is flat to rounding, and only the gradient still tells better from worse.
        flat_A = np.abs(there.value_B / here.value_B[alive_A] - 1) <= FLOOR
        better_A = np.where(flat_A, trial_size_A < 0.9 * size_A, there.value_B < here.value_B[alive_A])
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
    here: _Local, theta_BxP: np.ndarray, lower_P: np.ndarray, upper_P: np.ndarray, alive_A: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which parameters may move (not held at a bound by their gradient), and the relative gradient in those."""
    theta_AxP, gradient_AxP = theta_BxP[alive_A], here.gradient_BxP[alive_A]
    held_AxP = ((theta_AxP <= lower_P) & (gradient_AxP > 0)) | ((theta_AxP >= upper_P) & (gradient_AxP < 0))
    scale_AxP = np.maximum(here.scale_BxP[alive_A], np.finfo(np.float64).tiny)
    return ~held_AxP, np.where(held_AxP, 0.0, np.abs(gradient_AxP) / scale_AxP).max(1)


def _step(here: _Local, damping_B: np.ndarray, free_AxP: np.ndarray, alive_A: np.ndarray, newton: bool) -> np.ndarray:
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
    """Condition number of the normalised (unit diagonal) curvature of the free parameters."""
    diagonal_BxP = np.einsum("bpp->bp", metric_BxPxP)
    scale_BxP = np.where(free_BxP & (diagonal_BxP > 0), diagonal_BxP, 1.0) ** -0.5
    both_BxPxP = free_BxP[:, :, None] & free_BxP[:, None, :]
    unit_BxPxP = np.where(both_BxPxP, metric_BxPxP * scale_BxP[:, :, None] * scale_BxP[:, None, :], 0.0)
    unit_BxPxP = unit_BxPxP + np.where(free_BxP, 0.0, 1.0)[:, :, None] * np.eye(free_BxP.shape[1])
    eigenvalue_BxP = np.linalg.eigvalsh(unit_BxPxP)
    return eigenvalue_BxP[:, -1] / np.maximum(eigenvalue_BxP[:, 0], 1e-300)


def _certificate(law: Law, end: Minimum, best: int, loss_R: np.ndarray) -> dict[str, Any]:
    lower_P, upper_P = law.bounds(loss_R)
    theta_P, value = end.theta_BxP[best], end.value_B[best]
    reached_S = end.value_B <= value * (1 + SAME)
    ordered = np.sort(end.value_B)
    basins = 1 + int((np.diff(ordered) > SAME * ordered[:-1]).sum())
    bound_P = (theta_P <= lower_P) | (theta_P >= upper_P)
    return {
        "gradient_norm": float(end.gradient_B[best]),
        "starts": len(reached_S),
        "share_reaching_best": float(reached_S.mean()),
        "basins": basins,
        "condition_number": float(end.condition_B[best]),
        "at_bound": [name for name, bound in zip(law.parameters, bound_P, strict=True) if bound],
        "rows": len(loss_R),
        "objective": float(value),
        "steps": int(end.steps_B[best]),
    }
