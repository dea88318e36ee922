"""Power laws y = G x^k through points, by weighted least squares in log-log, for many replicates at once."""

from typing import NamedTuple

import numpy as np


class Power(NamedTuple):
    """exponent_B and log_scale_B of y = exp(log_scale) x^exponent; NaN where fewer than two different x were given."""

    exponent_B: np.ndarray
    log_scale_B: np.ndarray

    def at(self, x: np.ndarray | float) -> np.ndarray:
        """y_BxX at points x_X."""
        return np.exp(self.log_scale_B[:, None] + self.exponent_B[:, None] * np.log(np.atleast_1d(x)))


def power_law(x_BxK: np.ndarray, y_BxK: np.ndarray, weight_K: np.ndarray | None = None) -> Power:
    """The least-squares line of log y on log x in each of B rows; points where either is NaN are left out.

    weight_K: inverse variances of log y up to a factor; none: all points count the same.
    """
    x_BxK, y_BxK = np.broadcast_arrays(x_BxK, y_BxK)
    known_BxK = np.isfinite(x_BxK) & np.isfinite(y_BxK)
    weight_BxK = known_BxK * (1.0 if weight_K is None else weight_K / weight_K.max(initial=0.0))
    total_B = np.maximum(weight_BxK.sum(1), np.finfo(np.float64).tiny)
    log_x_BxK = np.log(np.where(known_BxK, x_BxK, 1.0))
    log_y_BxK = np.log(np.where(known_BxK, y_BxK, 1.0))
    mean_x_B = (weight_BxK * log_x_BxK).sum(1) / total_B
    mean_y_B = (weight_BxK * log_y_BxK).sum(1) / total_B
    off_BxK = np.where(known_BxK, log_x_BxK - mean_x_B[:, None], 0.0)
    spread_B = (weight_BxK * off_BxK**2).sum(1)
    determined_B = (known_BxK.sum(1) >= 2) & (spread_B > 1e-12)
    exponent_B = (weight_BxK * off_BxK * log_y_BxK).sum(1) / np.where(determined_B, spread_B, np.nan)
    return Power(exponent_B, np.where(determined_B, mean_y_B, np.nan) - exponent_B * mean_x_B)


def excess(x_K: np.ndarray, y_K: np.ndarray, variance_K: np.ndarray) -> float:
    """Variance of log y about its power law beyond variance_K, the known ones; 0 for fewer than three points.

    By moments of the weighted residuals (DerSimonian & Laird 1986; with a line, Thompson & Sharp 1999).
    """
    K = len(x_K)
    if K < 3:
        return 0.0  # a line through two points leaves nothing to see it by
    weight_K = 1.0 / variance_K
    X_Kx2 = np.stack([np.ones(K), np.log(x_K)], axis=1)
    inverse_2x2 = np.linalg.inv((X_Kx2.T * weight_K) @ X_Kx2)
    residual_K = np.log(y_K) - X_Kx2 @ (inverse_2x2 @ (X_Kx2.T @ (weight_K * np.log(y_K))))
    trace = weight_K.sum() - np.trace(inverse_2x2 @ (X_Kx2.T * weight_K**2) @ X_Kx2)
    return max(0.0, float((weight_K * residual_K**2).sum() - (K - 2)) / trace)
