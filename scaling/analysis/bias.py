"""How far a polynomial through an isoFLOP budget misses the minimum, in closed form (Czech et al. 2026).

A budget of a law E + A / N^alpha + B / D^beta is the valley phi(u; alpha, beta) of u = ln(N / N*) up to scale and
height (`valley`). A least-squares polynomial is linear in the losses, so that its minimum does not depend on E, A, B or
C, only on the exponents and on where the sizes lie: the shift below is exact for the actual grid and its weights, and
needs no simulation. Where all budgets have the same grid about their optimum the shift is the same at all of them, and
the exponents of N*(C) and D*(C) are right though their scales are not; a grid that drifts with C biases both.
"""

from typing import NamedTuple

import numpy as np

from scaling.analysis.powers import power_law
from scaling.analysis.valley import phi


class Miss(NamedTuple):
    """What polynomials make of D*(C): relative error of D* at some C, and error of its exponent."""

    tokens: float
    exponent: float


def parabola_shift(u_S: np.ndarray, alpha: float, beta: float, weight_S: np.ndarray | None = None) -> float:
    """ln of (minimum of the weighted least-squares parabola / N*) for sizes at u_S = ln(N / N*).

    Exact for any grid: the normal equations of 1, u, u^2 with phi as the losses.
    """
    return polynomial_shift(u_S, alpha, beta, 2, weight_S)


def symmetric_shift(w_S: np.ndarray, alpha: float, beta: float) -> float:
    """The same for unweighted sizes that lie symmetrically about N*, by the formula of Czech et al. 2026.

    -a1 / 2 a2 with a1 = sum(w L) / sum(w^2) and a2 = (sum(w^2 L) - sum(w^2) mean(L)) / (sum(w^4) - sum(w^2)^2 / n).
    """
    L_S, square_S = phi(w_S, alpha, beta), w_S**2
    a1 = (w_S * L_S).sum() / square_S.sum()
    a2 = ((square_S * L_S).sum() - square_S.sum() * L_S.mean()) / ((square_S**2).sum() - square_S.sum() ** 2 / len(w_S))
    return float(-a1 / (2 * a2))


def polynomial_shift(
    u_S: np.ndarray, alpha: float, beta: float, degree: int, weight_S: np.ndarray | None = None
) -> float:
    """The same of a polynomial of any degree."""
    return vertex(u_S, phi(u_S, alpha, beta), degree, weight_S)


def vertex(u_S: np.ndarray, loss_S: np.ndarray, degree: int = 2, weight_S: np.ndarray | None = None) -> float:
    """Where the weighted least-squares polynomial of loss_S has its minimum, in the units of u_S.

    Of several minima, wherever they are, the one nearest to its lowest point between the sizes; NaN where it has none.
    """
    weight_S = np.ones(len(u_S)) if weight_S is None else weight_S
    middle, half = 0.5 * (u_S.min() + u_S.max()), 0.5 * np.ptp(u_S)
    t_S = (u_S - middle) / half  # in [-1, 1], where high powers are far from collinear
    X_SxP = np.vander(t_S, degree + 1, increasing=True)
    fitted = np.polynomial.Polynomial(np.linalg.solve((X_SxP.T * weight_S) @ X_SxP, (X_SxP.T * weight_S) @ loss_S))
    roots = fitted.deriv().roots()
    roots = roots[np.abs(roots.imag) < 1e-9].real
    roots = roots[fitted.deriv(2)(roots) > 0]
    if not len(roots):
        return float("nan")
    between_G = np.linspace(-1, 1, 1001)
    return float(middle + half * roots[np.abs(roots - between_G[fitted(between_G).argmin()]).argmin()])


def extrapolated(
    alpha: float, beta: float, C_K: np.ndarray, grids: list[np.ndarray], C: float, degree: int = 2
) -> Miss:
    """What follows for D* at C under 6ND: the power law through the polynomials' minima of K noise-free budgets.

    grids: u_S = ln(N / N*) of each budget's sizes. Neither E, A nor B matter.
    """
    shift_K = np.array([polynomial_shift(u_S, alpha, beta, degree) for u_S in grids])
    power = power_law(C_K[None], np.exp(-shift_K)[None])  # of D / D*: tokens fall as sizes rise at the same C
    return Miss(float(power.at(C)[0, 0] - 1), float(power.exponent_B[0]))
