"""The compute-optimal frontier of a fitted law under the table's own FLOPs: minimise L(N, D) with F(N) D = C.

F(N), the FLOPs per token of a run of N parameters, is a smooth curve through C / D of the table's rows (a quadratic of
log F / N in log N, continued with its end slopes): an estimate, which says how far it is off. Attention and head make F
differ from 6N by a share that changes with size. Under C = 6ND the optimum has the closed form N* = G (C / 6)^(beta /
(alpha + beta)).
"""

from typing import NamedTuple

import numpy as np

from scaling.analysis.fitting import law_loss
from scaling.analysis.laws import Law
from scaling.analysis.table import Table

REACH = 1e4  # how far beyond the table's sizes an optimum is looked for, a factor
COARSE, FINE, ZOOMS = 97, 17, 5  # points of the search grids in log N


class TokenCost(NamedTuple):
    """FLOPs per token as a smooth function of size, fitted where log N lies between low and high.

    coefficients_3: of ln F = ln N + c0 + c1 x + c2 x^2 in x = ln N - middle. error: largest relative distance of a row.
    """

    coefficients_3: np.ndarray
    middle: float
    low: float
    high: float
    error: float

    def flops(self, log_N: np.ndarray) -> np.ndarray:
        """F at sizes of any shape; beyond the ends F / N goes on with the slope it has there."""
        x = np.asarray(log_N) - self.middle
        inside = x.clip(self.low - self.middle, self.high - self.middle)
        c0, c1, c2 = self.coefficients_3
        return np.exp(log_N + c0 + c1 * x + c2 * (inside**2 + 2 * inside * (x - inside)))

    def tokens(self, C: np.ndarray | float, log_N: np.ndarray) -> np.ndarray:
        """D at which sizes cost C FLOPs; positive, however far the cost is continued."""
        return np.maximum(C / self.flops(log_N), np.finfo(np.float64).tiny)


class Optimum(NamedTuple):
    """N, D and loss at the optimum of B laws at G compute budgets, each BxG; NaN where there is none within reach."""

    N_BxG: np.ndarray
    D_BxG: np.ndarray
    loss_BxG: np.ndarray


def token_cost(table: Table) -> TokenCost:
    """The table's FLOPs per token against size, by least squares over its rows.

    A curve through every size would follow the ups and downs of their shapes, and the optimum would jump with its
    slope.
    """
    log_N_R, y_R = np.log(table.N_R), np.log(table.C_R / table.D_R / table.N_R)
    low, high = float(log_N_R.min()), float(log_N_R.max())
    middle = 0.5 * (low + high)
    degree = min(2, len(np.unique(log_N_R)) - 1)
    design_Rx3 = np.vander(log_N_R - middle, 3, increasing=True) * (np.arange(3) <= degree)
    coefficients_3 = np.linalg.lstsq(design_Rx3, y_R)[0]
    error = float(np.abs(np.expm1(design_Rx3 @ coefficients_3 - y_R)).max())
    return TokenCost(coefficients_3, middle, low, high, error)


def optima(law: Law, theta_BxP: np.ndarray, centre: np.ndarray, cost: TokenCost, C_G: np.ndarray) -> Optimum:
    """The best N and D of B parameter vectors at budgets C_G, by a search in log N refined to 1e-7."""
    B, G = len(theta_BxP), len(C_G)
    low, high = cost.low - np.log(REACH), cost.high + np.log(REACH)
    best_BxG, outside_BxG = np.empty((B, G)), np.empty((B, G), bool)
    for g, C in enumerate(C_G):
        grid_M = np.linspace(low, high, COARSE)
        loss_BxM = law_loss(law, theta_BxP, centre, np.exp(grid_M), cost.tokens(C, grid_M))
        at_B = loss_BxM.argmin(1)
        outside_BxG[:, g] = (at_B == 0) | (at_B == COARSE - 1)
        centre_B, step = grid_M[at_B], grid_M[1] - grid_M[0]
        for _ in range(ZOOMS):
            x_BxM = centre_B[:, None] + np.linspace(-step, step, FINE)
            loss_BxM = law_loss(law, theta_BxP, centre, np.exp(x_BxM), cost.tokens(C, x_BxM))
            centre_B, step = x_BxM[np.arange(B), loss_BxM.argmin(1)], 2 * step / (FINE - 1)
        best_BxG[:, g] = centre_B
    D_BxG = cost.tokens(C_G, best_BxG)
    loss_BxG = law_loss(law, theta_BxP, centre, np.exp(best_BxG), D_BxG)
    return Optimum(*(np.where(outside_BxG, np.nan, values) for values in (np.exp(best_BxG), D_BxG, loss_BxG)))


def local_slope(law: Law, theta_BxP: np.ndarray, centre: np.ndarray, cost: TokenCost, C: float) -> np.ndarray:
    """d ln N* / d ln C under the table's own C, over a factor of two around C: slope_B."""
    N_Bx2 = optima(law, theta_BxP, centre, cost, np.array([C / np.sqrt(2.0), C * np.sqrt(2.0)])).N_BxG
    return np.diff(np.log(N_Bx2), axis=1)[:, 0] / np.log(2.0)
