"""Scaling laws as functions a fitter can use: log loss with its derivatives, starts, bounds, and natural parameters.

A law is a value of type `Law`; the fitter and the bootstrap know nothing else of it. Laws are evaluated for B parameter
vectors at once on R runs, in coordinates centred on the data: with ln N and ln D measured from their means, the terms
and the exponents are nearly uncorrelated, and the many local minima reported for this problem do not exist.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from scaling.errors import InputError


class Inputs(NamedTuple):
    """What a law is a function of, R runs; the fields a law needs are named in Law.needs."""

    N_R: np.ndarray
    D_R: np.ndarray


class Evaluation(NamedTuple):
    """log loss f_BxR, its gradient J_BxPxR, and curvature(c_BxR) = sum over r of c * (second derivatives of
    f)_BxPxP."""

    f_BxR: np.ndarray
    J_BxPxR: np.ndarray
    curvature: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Law:
    """One law. Vectors theta hold its P centred coordinates; natural parameters are what a paper prints.

    centre(inputs): the constants of the centring. log_loss(theta_BxP, inputs, centre): f_BxR, where inputs may also
    differ by parameter vector (N_BxR). evaluate(theta_BxP, inputs, centre): the same with derivatives. starts(count,
    inputs, loss_R, centre, rng): theta_SxP. bounds(loss_R): of theta. natural(theta_BxP, centre): name -> values_B.
    check(inputs): raises InputError where the runs cannot determine the law.
    """

    name: str
    equation: str
    parameters: tuple[str, ...]
    centre: Callable[[Inputs], np.ndarray]
    log_loss: Callable[[np.ndarray, Inputs, np.ndarray], np.ndarray]
    evaluate: Callable[[np.ndarray, Inputs, np.ndarray], Evaluation]
    starts: Callable[[int, Inputs, np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
    bounds: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    natural: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]
    check: Callable[[Inputs], None]


# The law of Hoffmann et al. 2022, eq. 2: L = E + A / N^alpha + B / D^beta.
# theta = (e, a, b, alpha, beta) with E = exp(e), and exp(a), exp(b) the two terms at the centre of the data.
MAX_EXPONENT = 20.0
NEGLIGIBLE = 1e-9  # of the smallest loss: a term below it is at its bound


def _centre(inputs: Inputs) -> np.ndarray:
    return np.array([np.log(inputs.N_R).mean(), np.log(inputs.D_R).mean()])


def _log_loss(theta_BxP: np.ndarray, inputs: Inputs, centre: np.ndarray) -> np.ndarray:
    e, a, b, alpha, beta = theta_BxP.T[:, :, None]
    size = a - alpha * (np.log(inputs.N_R) - centre[0])
    data = b - beta * (np.log(inputs.D_R) - centre[1])
    return np.logaddexp(np.logaddexp(size, data), e)


def _evaluate(theta_BxP: np.ndarray, inputs: Inputs, centre: np.ndarray) -> Evaluation:
    n_R, d_R = np.log(inputs.N_R) - centre[0], np.log(inputs.D_R) - centre[1]
    e, a, b, alpha, beta = theta_BxP.T[:, :, None]
    term_TxBxR = np.stack([np.broadcast_to(e, (len(e), len(n_R))), a - alpha * n_R, b - beta * d_R])
    top_BxR = term_TxBxR.max(0)
    share_TxBxR = np.exp(term_TxBxR - top_BxR)
    total_BxR = share_TxBxR.sum(0)
    share_TxBxR /= total_BxR
    pE_BxR, pA_BxR, pB_BxR = share_TxBxR
    J_BxPxR = np.stack([pE_BxR, pA_BxR, pB_BxR, -n_R * pA_BxR, -d_R * pB_BxR], axis=1)
    powers_n_Rx3 = np.stack([np.ones_like(n_R), -n_R, n_R * n_R], axis=1)
    powers_d_Rx3 = np.stack([np.ones_like(d_R), -d_R, d_R * d_R], axis=1)

    def curvature(c_BxR: np.ndarray) -> np.ndarray:
        # f = log sum exp z_t with z linear in theta: f'' = sum_t p_t z_t' z_t'^T - J J^T
        H_BxPxP = -np.matmul(J_BxPxR * c_BxR[:, None, :], J_BxPxR.transpose(0, 2, 1))
        H_BxPxP[:, 0, 0] += (c_BxR * pE_BxR).sum(1)
        for term, slope, p_BxR, powers_Rx3 in ((1, 3, pA_BxR, powers_n_Rx3), (2, 4, pB_BxR, powers_d_Rx3)):
            moment_Bx3 = (c_BxR * p_BxR) @ powers_Rx3
            H_BxPxP[:, term, term] += moment_Bx3[:, 0]
            H_BxPxP[:, term, slope] += moment_Bx3[:, 1]
            H_BxPxP[:, slope, term] += moment_Bx3[:, 1]
            H_BxPxP[:, slope, slope] += moment_Bx3[:, 2]
        return H_BxPxP

    return Evaluation(top_BxR + np.log(total_BxR), J_BxPxR, curvature)


def _starts(count: int, inputs: Inputs, loss_R: np.ndarray, centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    # A mixture: the three terms share out the typical loss, so that none is dead (gradient zero) at any start.
    share_SxT = rng.dirichlet([1.0, 1.0, 1.0], size=count).clip(1e-3)
    exponent_Sx2 = np.exp(rng.uniform(np.log(0.05), np.log(1.5), size=(count, 2)))
    return np.hstack([np.log(loss_R).mean() + np.log(share_SxT), exponent_Sx2])


def _bounds(loss_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # A term is at most the smallest loss; below NEGLIGIBLE of it, it is indistinguishable from absent.
    low, high = np.log(loss_R.min() * NEGLIGIBLE), np.log(loss_R.max())
    return np.array([low, low, low, 0.0, 0.0]), np.array([high, high, high, MAX_EXPONENT, MAX_EXPONENT])


def _natural(theta_BxP: np.ndarray, centre: np.ndarray) -> dict[str, np.ndarray]:
    e, a, b, alpha, beta = theta_BxP.T
    return {
        "E": np.exp(e),
        "A": np.exp(a + alpha * centre[0]),
        "B": np.exp(b + beta * centre[1]),
        "alpha": alpha,
        "beta": beta,
    }


def _check(inputs: Inputs) -> None:
    rows = len(inputs.N_R)
    if rows < 6:
        raise InputError(f"{rows} runs cannot determine the five parameters of {CHINCHILLA.equation}", do="add runs")
    for name, values_R in (("N", inputs.N_R), ("D", inputs.D_R)):
        if len(np.unique(values_R)) < 3:
            raise InputError(
                f"the runs have {len(np.unique(values_R))} different {name}: the exponent of {name} is not determined",
                do=f"add runs with other {name}; three are the least",
            )


CHINCHILLA = Law(
    name="chinchilla",
    equation="L = E + A / N^alpha + B / D^beta",
    parameters=("E", "A", "B", "alpha", "beta"),
    centre=_centre,
    log_loss=_log_loss,
    evaluate=_evaluate,
    starts=_starts,
    bounds=_bounds,
    natural=_natural,
    check=_check,
)
