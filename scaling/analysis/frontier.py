"""The compute-optimal frontier of a fitted law under the table's own FLOPs: minimise L(N, D) with F(N) D = C.

F(N), the FLOPs per token of a run of N parameters, is a smooth curve through C / D of the table's rows (a quadratic of
log F / N in log N, continued with its end slopes): an estimate, which says how far it is off. Attention and head make F
differ from 6N by a share that changes with size. Under C = 6ND the optimum has the closed form N* = G (C / 6)^(beta /
(alpha + beta)) (Hoffmann et al. 2022, eq. 4).

A model that will also serve T tokens spends F(N) / 3 on each, the forward pass alone (2N of 6N). With a budget C for
both, the constraint is F(N) (D + T / 3) = C (Sardana et al. 2024); T = 0 is the frontier of training.
"""

from typing import NamedTuple

import numpy as np

from scaling.analysis.laws import CHINCHILLA, Inputs, Law
from scaling.analysis.table import Table
from scaling.errors import InputError

REACH = 1e4  # how far beyond the table's sizes an optimum is looked for, a factor
FORWARD = 1 / 3  # share of a training token's FLOPs that serving a token takes: 2N of 6N
COARSE = 33  # sizes of the search that brackets the optimum
STEP = 0.01  # of the five-point differences in ln D: they are off by STEP^4 / 30, 3e-10, times a third derivative
EXACT, ROUNDS = 1e-10, 60  # Newton's last step in ln N, and the most steps; halving alone needs 34
BATCH = 4096  # problems at once: their values stay in cache


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

    def slope(self, log_N: np.ndarray) -> np.ndarray:
        """d ln F / d ln N; one under C = 6ND."""
        x = np.asarray(log_N) - self.middle
        _, c1, c2 = self.coefficients_3
        return 1 + c1 + 2 * c2 * x.clip(self.low - self.middle, self.high - self.middle)

    def tokens(self, C: np.ndarray | float, log_N: np.ndarray) -> np.ndarray:
        """D at which sizes cost C FLOPs; positive, however far the cost is continued."""
        return np.maximum(C / self.flops(log_N), np.finfo(np.float64).tiny)


class Optimum(NamedTuple):
    """N, D and loss at the optimum of B laws at G compute budgets, each BxG; NaN where there is none within reach."""

    N_BxG: np.ndarray
    D_BxG: np.ndarray
    loss_BxG: np.ndarray


def token_cost(table: Table) -> TokenCost:
    """The table's FLOPs per token against size."""
    return cost_through(table.N_R, table.C_R / table.D_R)


def cost_through(N_R: np.ndarray, F_R: np.ndarray) -> TokenCost:
    """FLOPs per token against size, by least squares over runs of N_R parameters and F_R FLOPs per token.

    A curve through every size would follow the ups and downs of their shapes, and the optimum would jump with its
    slope.
    """
    log_N_R, y_R = np.log(N_R), np.log(F_R / N_R)
    low, high = float(log_N_R.min()), float(log_N_R.max())
    middle = 0.5 * (low + high)
    degree = min(2, len(np.unique(log_N_R)) - 1)
    design_Rx3 = np.vander(log_N_R - middle, 3, increasing=True) * (np.arange(3) <= degree)
    coefficients_3 = np.linalg.lstsq(design_Rx3, y_R)[0]
    error = float(np.abs(np.expm1(design_Rx3 @ coefficients_3 - y_R)).max())
    return TokenCost(coefficients_3, middle, low, high, error)


def six_nd(smallest: float, largest: float) -> TokenCost:
    """C = 6ND, for sizes between two; for published laws, which come without a table."""
    low, high = float(np.log(smallest)), float(np.log(largest))
    return TokenCost(np.array([np.log(6.0), 0.0, 0.0]), 0.5 * (low + high), low, high, 0.0)


def inputs_at(law: Law, N: np.ndarray, D: np.ndarray) -> Inputs:
    """Runs of N parameters on D tokens, all of them new. Raises InputError for a law that is not of these alone."""
    if not law.allocates:
        what = f"the {law.name} law is one of {', '.join(law.needs)}: N and D alone do not give its loss"
        raise InputError(what, do="a compute-optimal N and D needs a law of N and D, chinchilla say")
    return Inputs(N_R=N, D_R=D, U_R=D if "U" in law.needs else None)


def unlimited(law: Law, theta_BxP: np.ndarray, centre: np.ndarray) -> tuple[Law, np.ndarray, np.ndarray]:
    """The law where no token is ever repeated: of the data-constrained law, Hoffmann's; of any other, itself.

    The data-constrained law also bends where N exceeds what D tokens are optimal for under C = 6ND, which is just at
    the optimum; a search for it needs the smooth law (and under C = 6ND the optimum is the same).
    """
    if "U" not in law.needs:
        return law, theta_BxP, centre
    value = law.natural(theta_BxP, centre)
    levels = [np.log(value[name]) for name in ("E", "A", "B")]
    return CHINCHILLA, np.stack([*levels, value["alpha"], value["beta"]], axis=1), np.zeros(2)


def optima(
    law: Law,
    theta_BxP: np.ndarray,
    centre: np.ndarray,
    cost: TokenCost,
    C: np.ndarray,
    inference_tokens: float = 0.0,
) -> Optimum:
    """The best N and D of B parameter vectors at G budgets of FLOPs, C_G for all of them or C_BxG.

    inference_tokens: T, paid out of the same budgets. All tokens are new, see `unlimited`. The smallest loss on a
    coarse grid of ln N brackets the optimum (along a budget the loss of every law here has one minimum); Newton's
    method, kept inside the bracket, finds it to 1e-10 of ln N.
    """
    law, theta_BxP, centre = unlimited(law, theta_BxP, centre)
    B, G = len(theta_BxP), np.shape(C)[-1]
    theta_KxP = np.repeat(theta_BxP, G, axis=0)
    C_K = np.broadcast_to(C, (B, G)).ravel()
    cuts = [slice(i, i + BATCH) for i in range(0, len(C_K), BATCH)]
    with np.errstate(invalid="ignore"):  # NaN in, or no optimum within reach: NaN out
        parts = [_batch(law, theta_KxP[cut], centre, cost, C_K[cut], FORWARD * inference_tokens) for cut in cuts]
        x_BxG = np.concatenate([np.empty(0), *parts]).reshape(B, G)
        N_BxG = np.exp(x_BxG)
        D_BxG = C_K.reshape(B, G) / cost.flops(x_BxG) - FORWARD * inference_tokens
        loss_BxG = np.exp(law.log_loss(theta_BxP, inputs_at(law, N_BxG, D_BxG), centre))
    return Optimum(N_BxG, D_BxG, loss_BxG)


def local_slope(law: Law, theta_BxP: np.ndarray, centre: np.ndarray, cost: TokenCost, C: float) -> np.ndarray:
    """d ln N* / d ln C under the table's own C, over a factor of two around C: slope_B."""
    N_Bx2 = optima(law, theta_BxP, centre, cost, np.array([C / np.sqrt(2.0), C * np.sqrt(2.0)])).N_BxG
    return np.diff(np.log(N_Bx2), axis=1)[:, 0] / np.log(2.0)


def _batch(
    law: Law, theta_KxP: np.ndarray, centre: np.ndarray, cost: TokenCost, C_K: np.ndarray, served: float
) -> np.ndarray:
    """ln N at the optimum of K problems; NaN where the grid's lowest loss is at its end. served: T / 3."""

    def log_loss(theta: np.ndarray, C: np.ndarray, x_KxM: np.ndarray) -> np.ndarray:
        D_KxM = C[:, None] / cost.flops(x_KxM) - served
        D_KxM = np.maximum(D_KxM, np.finfo(np.float64).tiny)  # a size that serving alone overspends: a huge loss
        return law.log_loss(theta, inputs_at(law, np.exp(x_KxM), D_KxM), centre)

    def derivatives(k: np.ndarray, x_k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # D falls to nothing where serving alone spends the budget: there, steps in ln N shrink with it.
        left_k = 1 - served * cost.flops(x_k) / C_K[k]
        h_k = STEP * np.where(left_k > 0, left_k, 1.0)
        f = log_loss(theta_KxP[k], C_K[k], x_k[:, None] + h_k[:, None] * np.arange(-2, 3)).T
        slope_k = (f[0] - 8 * f[1] + 8 * f[3] - f[4]) / (12 * h_k)
        bend_k = (-f[0] + 16 * f[1] - 30 * f[2] + 16 * f[3] - f[4]) / (12 * h_k**2)
        return np.where(left_k > 0, slope_k, np.inf), bend_k

    grid_M = np.linspace(cost.low - np.log(REACH), cost.high + np.log(REACH), COARSE)
    at_K = log_loss(theta_KxP, C_K, grid_M[None]).argmin(1)
    outside_K = (at_K == 0) | (at_K == COARSE - 1)
    low_K, x_K, high_K = (grid_M[(at_K + shift).clip(0, COARSE - 1)] for shift in (-1, 0, 1))
    going = np.flatnonzero(~outside_K)
    for _ in range(ROUNDS):
        if not len(going):
            break
        slope, bend = derivatives(going, x_K[going])
        high_K[going] = np.where(slope > 0, x_K[going], high_K[going])
        low_K[going] = np.where(slope > 0, low_K[going], x_K[going])
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = x_K[going] - slope / bend
        halfway = 0.5 * (low_K[going] + high_K[going])
        inside = (bend > 0) & (newton >= low_K[going]) & (newton <= high_K[going])
        new = np.where(inside, newton, halfway)
        step, x_K[going] = np.abs(new - x_K[going]), new
        going = going[step > EXACT]
    return np.where(outside_K, np.nan, x_K)
