"""The curvature of a robust objective as a larger sample would see it, and the variance of what is fitted under it.

For residuals r, psi = rho'(r) and k = E rho''(r), the estimate has covariance A^-1 B A^-1 with A = sum k J J^T and
B = sum psi^2 J J^T (Huber 1967). With least squares k = 1. With a narrow Huber zone or absolute values k is about the
density of r at zero, which the rows show badly: few of them lie in the zone, or none. It is estimated row by row with
a Gaussian kernel (Powell 1991) and the bandwidth of Hall & Sheather 1988 for a median, as usual for quantile regression
(Koenker 2005, section 3.4.2).

B of independent rows is too small where rows share their noise, or what the law misses them by; checkpoints of one run
and runs of one model size do. The second B sums psi J over the rows of each size first (Liang & Zeger 1986).

These are asymptotics. They serve where nothing better is at hand: for the steps of a search, and for a threshold where
no bootstrap was run.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from scaling.analysis.fitting import Fit


class Sandwich(NamedTuple):
    """A, and B of rows and of sizes, of the F coordinates that are free, free_P: those that did not end at a bound.

    dof: of the two B: rows less parameters; sizes less one.
    """

    A_FxF: np.ndarray
    rows_FxF: np.ndarray
    sizes_FxF: np.ndarray
    dof: tuple[int, int]
    free_P: np.ndarray

    def inverse_curvature(self, slope_P: np.ndarray) -> float:
        """The inverse curvature of the profile of a function with derivatives slope_P; zero for one held at a bound."""
        solved_F = self._solved(slope_P)
        return float(solved_F @ self.A_FxF @ solved_F)

    def variance(self, slope_P: np.ndarray) -> tuple[float, float]:
        """The variance of that function, from independent rows and from independent sizes."""
        solved_F = self._solved(slope_P)
        return float(solved_F @ self.rows_FxF @ solved_F), float(solved_F @ self.sizes_FxF @ solved_F)

    def _solved(self, slope_P: np.ndarray) -> np.ndarray:
        # Directions without any curvature are left out: how far they reach is not known.
        return np.linalg.pinv(self.A_FxF, rcond=1e-14, hermitian=True) @ slope_P[self.free_P]


def sandwich(fitted: Fit) -> Sandwich:
    """A and B at the fit; B is inflated for the P fitted parameters and the K sizes by n / (n - P) and K / (K - 1)."""
    lower_P, upper_P = fitted.law.bounds(fitted.loss_R)
    free_P = (fitted.theta_P > lower_P) & (fitted.theta_P < upper_P)
    J_FxR = fitted.law.evaluate(fitted.theta_P[None], fitted.inputs, fitted.centre).J_BxPxR[0][free_P]
    residual_R = fitted.residual_R
    if fitted.objective.raw:
        law_R = fitted.loss_R * np.exp(-fitted.residual_R)
        residual_R, J_FxR = fitted.loss_R - law_R, J_FxR * law_R
    psi_R, bend_R = _slopes(fitted, residual_R)
    _, size_R = np.unique(getattr(fitted.inputs, f"{fitted.law.needs[0]}_R"), return_inverse=True)
    score_KxF = np.zeros((size_R.max() + 1, len(J_FxR)))
    np.add.at(score_KxF, size_R, (J_FxR * psi_R).T)
    n, K = len(residual_R), len(score_KxF)
    dof = (max(n - len(J_FxR), 1), max(K - 1, 1))
    return Sandwich(
        A_FxF=(J_FxR * bend_R) @ J_FxR.T,
        rows_FxF=n / dof[0] * (J_FxR * psi_R**2) @ J_FxR.T,
        sizes_FxF=n / dof[0] * K / dof[1] * score_KxF.T @ score_KxF,
        dof=dof,
        free_P=free_P,
    )


def _slopes(fitted: Fit, residual_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rho' and the expectation of rho'' at each residual."""
    kind, delta = fitted.objective.kind.split("_")[0], fitted.objective.delta
    if kind == "squares":
        return residual_R, np.ones_like(residual_R)
    h = _bandwidth(residual_R)
    if kind == "absolute":
        return np.sign(residual_R), 2 * stats.norm.pdf(residual_R / h) / h
    inside_R = stats.norm.cdf((delta - residual_R) / h) - stats.norm.cdf((-delta - residual_R) / h)
    return residual_R.clip(-delta, delta), inside_R


def _bandwidth(residual_R: np.ndarray) -> float:
    """Hall & Sheather's for the density at the median of n residuals, at 95 %."""
    low, high = np.quantile(residual_R, [0.25, 0.75])
    scale = min(float(np.std(residual_R)), float(high - low) / 1.349)
    share = len(residual_R) ** (-1 / 3) * stats.norm.ppf(0.975) ** (2 / 3) * (1.5 * stats.norm.pdf(0) ** 2) ** (1 / 3)
    width = 2 * stats.norm.ppf(0.5 + min(share, 0.45))
    return max(scale * width, np.finfo(np.float64).eps)
