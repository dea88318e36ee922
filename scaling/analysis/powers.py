"""Power laws y = G x^k through points, by least squares in log-log, for many replicates at once."""

from typing import NamedTuple

import numpy as np


class Power(NamedTuple):
    """exponent_B and log_scale_B of y = exp(log_scale) x^exponent; NaN where fewer than two different x were given."""

    exponent_B: np.ndarray
    log_scale_B: np.ndarray

    def at(self, x: np.ndarray | float) -> np.ndarray:
        """y_BxX at points x_X."""
        return np.exp(self.log_scale_B[:, None] + self.exponent_B[:, None] * np.log(np.atleast_1d(x)))


def power_law(x_BxK: np.ndarray, y_BxK: np.ndarray) -> Power:
    """The least-squares line of log y on log x in each of B rows; points where either is NaN are left out."""
    x_BxK, y_BxK = np.broadcast_arrays(x_BxK, y_BxK)
    known_BxK = np.isfinite(x_BxK) & np.isfinite(y_BxK)
    count_B = known_BxK.sum(1)
    log_x_BxK = np.log(np.where(known_BxK, x_BxK, 1.0))
    log_y_BxK = np.log(np.where(known_BxK, y_BxK, 1.0))
    mean_x_B = log_x_BxK.sum(1) / np.maximum(count_B, 1)
    mean_y_B = log_y_BxK.sum(1) / np.maximum(count_B, 1)
    off_BxK = np.where(known_BxK, log_x_BxK - mean_x_B[:, None], 0.0)
    spread_B = (off_BxK**2).sum(1)
    determined_B = (count_B >= 2) & (spread_B > 1e-12)
    exponent_B = (off_BxK * log_y_BxK).sum(1) / np.where(determined_B, spread_B, np.nan)
    return Power(exponent_B, np.where(determined_B, mean_y_B, np.nan) - exponent_B * mean_x_B)
