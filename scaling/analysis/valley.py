"""The valley that a power law of N and one of D cut into a compute budget: two exponentials in ln N.

With D = C / 6N, E + A / N^alpha + B / D^beta is, at fixed C and in u = ln N - ln N*,

    L = L* + k phi(u),   phi(u) = (beta (e^(-alpha u) - 1) + alpha (e^(beta u) - 1)) / (alpha beta (alpha + beta))

for every width of the sweep and wherever its sizes lie (the exact profile behind eq. 4 of Hoffmann et al. 2022). phi
has its minimum, zero, at u = 0 and curvature one there, so that it is u^2 / 2 in the limit of small exponents; its
third derivative beta - alpha is the skew that biases a parabola (Czech et al. 2026; `bias`). About any other centre a
valley is a sum of 1, sigma and phi, with sigma a slope: linear in its three coefficients as a parabola is.
"""

import numpy as np


def phi(u: np.ndarray, alpha: np.ndarray | float, beta: np.ndarray | float) -> np.ndarray:
    """The valley of unit curvature with its minimum at u = 0; u is ln(N / N*)."""
    return (beta * np.expm1(-alpha * u) + alpha * np.expm1(beta * u)) / (alpha * beta * (alpha + beta))


def sigma(u: np.ndarray, alpha: np.ndarray | float, beta: np.ndarray | float) -> np.ndarray:
    """The derivative of phi: u in the limit of small exponents."""
    return (np.exp(beta * u) - np.exp(-alpha * u)) / (alpha + beta)


def basis(u_M: np.ndarray, alpha_H: np.ndarray, beta_H: np.ndarray) -> np.ndarray:
    """Value, slope and curvature at u = 0 as functions of u, for H shapes: basis_HxMx3."""
    u_1xM, alpha_Hx1, beta_Hx1 = u_M[None, :], alpha_H[:, None], beta_H[:, None]
    slope_HxM, bend_HxM = sigma(u_1xM, alpha_Hx1, beta_Hx1), phi(u_1xM, alpha_Hx1, beta_Hx1)
    return np.stack([np.ones_like(slope_HxM), slope_HxM, bend_HxM], axis=-1)
