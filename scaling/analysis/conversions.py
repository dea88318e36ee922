"""One frontier under several ways of counting: exponents of N*(C) where N or C leave out a part of the model.

Kaplan et al. (2020) counted parameters without embeddings, Hoffmann et al. (2022) all of them; on the same law this
alone turns an exponent of 0.51 into 0.78 at small scale (Pearce & Song 2024). With N_E parameters beside the embeddings
and N = N_E + gamma N_E^(1/3) in all, the size that minimises E + A / N^alpha + B / D^beta under C_E = 6 N_E D obeys

    D^beta = (beta B) / (alpha A) N^(1 + alpha) / (N_E + gamma N_E^(1/3) / 3)

and its local slope g = d ln N_E* / d ln C_E is, in x = N_E,

    1 / g = 1 - (x^(2/3) + gamma / 9) / (x^(2/3) + gamma / 3) / beta
              + (alpha + 1) (x^(2/3) + gamma / 3) / (x^(2/3) + gamma) / beta,

beta / (alpha / 3 + beta) where embeddings are all, beta / (alpha + beta) where they are nothing, more between.

`every_convention` does the same for a fitted law and a sweep's own columns: another C is another constraint, and the
optimum is found again under it; another N is another name for the same optimum.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from scaling.analysis.fitting import Fit
from scaling.analysis.frontier import cost_through, local_slope, optima
from scaling.analysis.powers import power_law
from scaling.errors import InputError

GAMMA = 47491.0  # of the Chinchilla models: N = N_E + GAMMA N_E^(1/3), vocabulary 32,000 (Pearce & Song 2024)
KAPLAN_SIZES = (2.9, 9.2, 20)  # log10 of the smallest and the largest N_E of Kaplan et al., and how many between them
TOKENS = (6.0, 25.0, 1000)  # likewise of D, of the grid in Pearce & Song's script


class Surface(NamedTuple):
    """L = E + A / N^alpha + B / D^beta in all parameters N; gamma: how many of them are embeddings."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    gamma: float = GAMMA

    def loss(self, N_E: np.ndarray, D: np.ndarray) -> np.ndarray:
        """The loss of a model of N_E parameters beside its embeddings on D tokens."""
        return self.E + self.A / total(N_E, self.gamma) ** self.alpha + self.B / D**self.beta


def total(N_E: np.ndarray | float, gamma: float = GAMMA) -> np.ndarray:
    """All parameters of a model with N_E beside the embeddings (Pearce & Song 2024)."""
    N_E = np.asarray(N_E, np.float64)
    return N_E + gamma * np.cbrt(N_E)


def without_embeddings(N: np.ndarray | float, gamma: float = GAMMA) -> np.ndarray:
    """The inverse of `total`: the real root of t^3 + gamma t = N, cubed (Viete's hyperbolic form)."""
    N = np.asarray(N, np.float64)
    width = 2 * np.sqrt(gamma / 3)
    return (width * np.sinh(np.arcsinh(3 * N / (gamma * width)) / 3)) ** 3


def compute_without_embeddings(surface: Surface, N_E: np.ndarray) -> np.ndarray:
    """C_E = 6 N_E D at which N_E is the best size (Pearce & Song 2024)."""
    _, A, B, alpha, beta, gamma = surface
    N, bend = total(N_E, gamma), N_E + gamma * np.cbrt(N_E) / 3
    return 6 * N_E * (beta * B / (alpha * A) * N ** (1 + alpha) / bend) ** (1 / beta)


def slope_without_embeddings(surface: Surface, N_E: np.ndarray | float) -> np.ndarray:
    """g = d ln N_E* / d ln C_E at the optimum N_E, in closed form (Pearce & Song 2024)."""
    _, _, _, alpha, beta, gamma = surface
    x = np.cbrt(np.asarray(N_E, np.float64)) ** 2
    inverse = 1 - (x + gamma / 9) / (x + gamma / 3) / beta + (alpha + 1) * (x + gamma / 3) / (x + gamma) / beta
    return 1 / inverse


def exponent_on_grid(surface: Surface, log10_C: tuple[float, float], embeddings: bool) -> float:
    """The exponent that Pearce & Song (2024) print: of a line through 100 optima on their grid of sizes and tokens.

    log10_C: ends of the range of compute. embeddings: whether N and C count them. Each optimum is the best of 20 sizes,
    each at the tokens of the grid whose C is nearest. The steps of the grid are in the result: the closed form's line
    over the same range (`exponent_over`) differs in the third digit.
    """
    N_E_S, D_M, C_K = (np.logspace(*ends) for ends in (KAPLAN_SIZES, TOKENS, (*log10_C, 100)))
    N_S = total(N_E_S, surface.gamma) if embeddings else N_E_S
    nearest_KxS = np.abs(6 * N_S[:, None] * D_M - C_K[:, None, None]).argmin(2)
    best_K = surface.loss(N_E_S, D_M[nearest_KxS]).argmin(1)
    return _exponent(C_K, N_S[best_K])


def exponent_over(surface: Surface, log10_C: tuple[float, float]) -> float:
    """The exponent of a line through 100 exact optima N_E*(C_E), evenly in log C_E."""
    log_N_M = np.linspace(np.log(1e-3), np.log(1e18), 4001)  # log C_E along it is smooth: its inverse is good to 1e-6
    log_C_M = np.log(compute_without_embeddings(surface, np.exp(log_N_M)))
    C_K = np.logspace(*log10_C, 100)
    return _exponent(C_K, np.exp(np.interp(np.log(C_K), log_C_M, log_N_M)))


def exponents(
    C_K: np.ndarray, optima_K: Mapping[str, np.ndarray], group_K: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """Exponents of optima that were found under several conventions: {convention: {quantity: exponent}}.

    optima_K: {"N": N*_K, "D": D*_K} at budgets C_K. group_K: the convention of each row; None: one for all, named "".
    """
    group_K = np.full(len(C_K), "") if group_K is None else np.asarray(group_K)
    return {
        str(group): {name: _exponent(C_K[group_K == group], y_K[group_K == group]) for name, y_K in optima_K.items()}
        for group in np.unique(group_K)
    }


def every_convention(
    fit: Fit, D_R: np.ndarray, sizes: Mapping[str, np.ndarray], computes: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """The local exponent of N*(C) in every convention of N and of C, from one fitted law and the columns of its runs.

    sizes: {name: N_R}, the first being the one that the law was fitted in; computes: {name: C_R} in FLOPs. Rows of
    {"N", "C": names, "C_at": FLOPs, the geometric middle of the runs' by that count, "N_at": the optimum there by that
    count, "exponent", "error"}. Sizes by one count are taken for a smooth function (a quadratic in logarithms) of those
    by another, as FLOPs per token are; error is the furthest that a run lies off these curves, a relative distance. NaN
    where there is no optimum within reach.
    """
    if not sizes or not computes:
        raise InputError("no conventions given", do="name at least one column of N and one of C")
    N_R = np.asarray(next(iter(sizes.values())), np.float64)
    found = []
    for compute, C_R in computes.items():
        cost = cost_through(N_R, np.asarray(C_R, np.float64) / D_R)
        C = float(np.sqrt(np.min(C_R) * np.max(C_R)))
        theta_1xP = fit.theta_P[None]
        log_N = np.log(optima(fit.law, theta_1xP, fit.centre, cost, np.array([C])).N_BxG[0, 0])
        slope = local_slope(fit.law, theta_1xP, fit.centre, cost, C)[0]
        for size, other_R in sizes.items():
            other = cost_through(N_R, np.asarray(other_R, np.float64))  # the same kind of curve: another N against N
            at = {"N": size, "C": compute, "C_at": C, "N_at": float(other.flops(log_N))}
            exponent, error = float(slope * other.slope(log_N)), max(cost.error, other.error)
            found.append({**at, "exponent": exponent, "error": error})
    return found


def _exponent(x_K: np.ndarray, y_K: np.ndarray) -> float:
    return float(power_law(x_K[None], np.asarray(y_K, np.float64)[None]).exponent_B[0])
