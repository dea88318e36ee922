"""Approach 3: fits a law to runs, the global minimum over many starts, with a certificate that it is one."""

import dataclasses
from typing import Any

import numpy as np

from scaling.analysis.laws import Inputs, Law
from scaling.analysis.newton import Minimum, Problem, descend, polish

STARTS = 24
SAME = 1e-7  # relative difference of objectives below which two starts ended in the same minimum


@dataclasses.dataclass(frozen=True)
class Objective:
    """Huber's loss of the residual of log loss, summed over runs (Hoffmann et al. 2022, eq. 3)."""

    kind: str = "huber_log"
    delta: float = 1e-3


HUBER_LOG = Objective()


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
        """The law's loss, in the unit of the runs', at N parameters and D tokens (broadcast)."""
        N, D = np.broadcast_arrays(np.asarray(N, np.float64), np.asarray(D, np.float64))
        return law_loss(self.law, self.theta_P[None], self.centre, N.ravel(), D.ravel())[0].reshape(N.shape)


def fit(law: Law, inputs: Inputs, loss_R: np.ndarray, objective: Objective = HUBER_LOG, seed: int = 0) -> Fit:
    """The global minimum over `STARTS` mixture starts. Raises InputError where the runs cannot determine the law."""
    law.check(inputs)
    centre = law.centre(inputs)
    start_SxP = law.starts(STARTS, inputs, loss_R, centre, np.random.default_rng(seed))
    end = descend(Problem(law, inputs, loss_R, centre, objective.delta), np.ones((STARTS, len(loss_R))), start_SxP)
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
    B = len(weight_BxR)
    problem = Problem(fitted.law, inputs, loss_R, fitted.centre, fitted.objective.delta)
    near = polish(problem, weight_BxR, np.tile(fitted.theta_P, (B, 1)))
    start_BxP = fitted.law.starts(B, inputs, loss_R, fitted.centre, np.random.default_rng(seed))
    far = descend(problem, weight_BxR, start_BxP)
    better_B = far.value_B < near.value_B
    return Minimum(*(np.where(better_B.reshape(-1, *[1] * (x.ndim - 1)), y, x) for x, y in zip(near, far, strict=True)))


def law_loss(
    law: Law, theta_BxP: np.ndarray, centre: np.ndarray, N: np.ndarray | float, D: np.ndarray | float
) -> np.ndarray:
    """loss_BxM of B parameter vectors at points N_M, D_M, or at points of their own, N_BxM, D_BxM."""
    return np.exp(law.log_loss(theta_BxP, Inputs(np.asarray(N, np.float64), np.asarray(D, np.float64)), centre))


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
