"""What to train when tokens run out, and when the model will be served: optima beyond the plain frontier.

With U unique tokens, repeating them is worth less and less. The data-constrained law (Muennighoff et al. 2023, eq. 5
and 6) puts effective tokens D' and parameters N' for D and N:

    L = E + A / N'^alpha + B / D'^beta,   D' = U + U R_D (1 - exp(-(D / U - 1) / R_D)),   N' likewise with U_N, R_N,

where U_N = G (G U)^(beta / alpha) parameters are optimal for U tokens. Along a budget F(N) D = C the derivative of L by
ln N has the sign of

    beta B D'^-beta e_D e_F - alpha A N'^-alpha e_N,   e: elasticities of D' by D, N' by N, F by N.

N' rises with N and e_N falls, D' and e_D do the opposite: the first term rises and the second falls, so that there is
one root, the optimum, and halving an interval finds it to rounding. (The authors search a grid and ask for better.)

A law that was fitted without repeated tokens cannot say what they are worth. For it tokens are capped at EPOCHS times
U: up to four epochs of repeated data changed the loss negligibly against new data (Muennighoff et al. 2023, abstract).

For T tokens to be served, the cheapest run that reaches a given loss is a smaller model on more tokens than the
compute-optimal one (Sardana et al. 2024): minimise F(N) (D + T / 3) at L(N, D) = loss. It is the size at which the best
loss for a lifetime budget, `frontier.optima` with T, equals the given one; Newton's method finds the budget.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from scaling.analysis import frontier
from scaling.analysis.fitting import Fit
from scaling.analysis.frontier import FORWARD, REACH, TokenCost, inputs_at, optima, unlimited
from scaling.analysis.laws import Law
from scaling.errors import InputError

EPOCHS = 4.0  # of repetition that a law without repeated tokens may count as new
HALVINGS = 80  # of an interval of 30 in ln N: to rounding
ROUNDING = 1e-12  # of ln N
SAME_LOSS = 1e-10  # of ln C at which the loss is the given one
ROUNDS, FURTHEST = 60, 2.0  # Newton steps in ln C and the longest: a loss near E is not to be overshot
STEP = 0.01  # of the five-point difference in ln D


class Limited(NamedTuple):
    """The optimum of B laws at G budgets where unique tokens are limited: each BxG; NaN where none is within reach.

    binds_BxG: whether the limit moves the optimum; elsewhere the optimum is the plain one.
    """

    N_BxG: np.ndarray
    D_BxG: np.ndarray
    loss_BxG: np.ndarray
    epochs_BxG: np.ndarray
    binds_BxG: np.ndarray


class Served(NamedTuple):
    """The cheapest run of a given loss, training and serving together: each BxG; NaN where none is within reach.

    C_BxG: FLOPs of both. share_saved_BxG: of the FLOPs that the compute-optimal run of the same loss takes for both.
    """

    N_BxG: np.ndarray
    D_BxG: np.ndarray
    loss_BxG: np.ndarray
    C_BxG: np.ndarray
    share_saved_BxG: np.ndarray


def data_limited(
    fit: Fit, cost: TokenCost, C_G: np.ndarray, unique_tokens: float, theta_BxP: np.ndarray | None = None
) -> Limited:
    """The best N and D at budgets of C_G FLOPs with U unique tokens (Muennighoff et al. 2023).

    theta_BxP: laws to do it for (bootstrap draws); none: the fit's own, B = 1. Laws other than the data-constrained one
    are capped at EPOCHS epochs, all of which they count as new. Raises InputError for U that is not positive.
    """
    if not (np.isfinite(unique_tokens) and unique_tokens > 0):
        raise InputError(f"unique_tokens={unique_tokens} is not a positive number of tokens")
    theta_BxP = fit.theta_P[None] if theta_BxP is None else theta_BxP
    C_G = np.atleast_1d(np.asarray(C_G, np.float64))
    plain = optima(fit.law, theta_BxP, fit.centre, cost, C_G)
    if "U" in fit.law.needs:
        limit = unique_tokens
        N_BxG = _repeating(fit.law.natural(theta_BxP, fit.centre), cost, C_G, unique_tokens)
        D_BxG = C_G / cost.flops(np.log(N_BxG))
    else:
        limit = EPOCHS * unique_tokens
        N_BxG, D_BxG = np.exp(_within_reach(cost, _log_size(cost, C_G / limit))), limit
    binds_BxG = plain.D_BxG > limit
    N_BxG, D_BxG = np.where(binds_BxG, N_BxG, plain.N_BxG), np.where(binds_BxG, D_BxG, plain.D_BxG)
    inputs = inputs_at(fit.law, N_BxG, D_BxG)
    if "U" in fit.law.needs:
        inputs = inputs._replace(U_R=np.minimum(unique_tokens, D_BxG))
    with np.errstate(invalid="ignore"):  # NaN where there is no optimum
        loss_BxG = np.where(binds_BxG, np.exp(fit.law.log_loss(theta_BxP, inputs, fit.centre)), plain.loss_BxG)
    return Limited(N_BxG, D_BxG, loss_BxG, np.maximum(1.0, D_BxG / unique_tokens), binds_BxG)


def for_inference(
    fit: Fit, cost: TokenCost, C_G: np.ndarray, inference_tokens: float, theta_BxP: np.ndarray | None = None
) -> Served:
    """The cheapest run, T served tokens included, of the loss that a compute-optimal run of C_G FLOPs reaches.

    Each of B laws keeps the loss that it expects itself. Raises InputError for T that is negative.
    """
    if not (np.isfinite(inference_tokens) and inference_tokens >= 0):
        raise InputError(f"inference_tokens={inference_tokens} is not a number of tokens")
    theta_BxP = fit.theta_P[None] if theta_BxP is None else theta_BxP
    C_G = np.atleast_1d(np.asarray(C_G, np.float64))
    plain = optima(fit.law, theta_BxP, fit.centre, cost, C_G)
    lifetime_BxG = C_G + FORWARD * inference_tokens * cost.flops(np.log(plain.N_BxG))
    C_BxG, found = cheapest(
        fit.law, theta_BxP, fit.centre, cost, plain.loss_BxG, lifetime_BxG, inference_tokens=inference_tokens
    )
    return Served(found.N_BxG, found.D_BxG, found.loss_BxG, C_BxG, np.maximum(0.0, 1 - C_BxG / lifetime_BxG))


def cheapest(
    law: Law,
    theta_BxP: np.ndarray,
    centre: np.ndarray,
    cost: TokenCost,
    loss_BxG: np.ndarray,
    first_BxG: np.ndarray,
    *,
    inference_tokens: float = 0.0,
) -> tuple[np.ndarray, frontier.Optimum]:
    """The fewest FLOPs C_BxG, T served tokens included, at which B laws reach losses loss_BxG; and the run.

    first_BxG: FLOPs to start from. Newton's method on ln L*(ln C), whose slope is, by the envelope theorem, that of
    ln L by ln D times the share (D + T / 3) / D. NaN where a law never reaches the loss, or not within reach.
    """
    law, theta_BxP, centre = unlimited(law, theta_BxP, centre)
    log_C_BxG = np.log(first_BxG)
    step_BxG = np.full_like(log_C_BxG, np.inf)
    for _ in range(ROUNDS):
        at = optima(law, theta_BxP, centre, cost, np.exp(log_C_BxG), inference_tokens)
        share_BxG = 1 + FORWARD * inference_tokens / at.D_BxG
        slope_BxG = share_BxG * _token_slope(law, theta_BxP, centre, at)
        with np.errstate(divide="ignore", invalid="ignore"):  # a flat frontier goes on for ever
            step_BxG = ((np.log(loss_BxG) - np.log(at.loss_BxG)) / slope_BxG).clip(-FURTHEST, FURTHEST)
        log_C_BxG = log_C_BxG + step_BxG
        if not (np.abs(step_BxG) > SAME_LOSS).any():  # those that are NaN stay so
            break
    C_BxG = np.where(np.abs(step_BxG) <= SAME_LOSS, np.exp(log_C_BxG), np.nan)  # NaN steps are not small
    return C_BxG, optima(law, theta_BxP, centre, cost, C_BxG, inference_tokens)


def _token_slope(law: Law, theta_BxP: np.ndarray, centre: np.ndarray, at: frontier.Optimum) -> np.ndarray:
    """d ln L / d ln D at fixed N, by five-point differences."""

    def log_loss(steps: int) -> np.ndarray:
        return law.log_loss(theta_BxP, inputs_at(law, at.N_BxG, at.D_BxG * np.exp(steps * STEP)), centre)

    with np.errstate(invalid="ignore"):  # NaN where there is no optimum
        return (log_loss(-2) - 8 * log_loss(-1) + 8 * log_loss(1) - log_loss(2)) / (12 * STEP)


def _repeating(value: dict[str, np.ndarray], cost: TokenCost, C_G: np.ndarray, U: float) -> np.ndarray:
    """N at the optimum of the data-constrained law where D >= U, by halving, N_BxG; value: natural parameters_B."""
    A, B, alpha, beta, R_D, R_N = (value[name][:, None] for name in ("A", "B", "alpha", "beta", "R_D", "R_N"))
    log_G = np.log(alpha * A / (beta * B)) / (alpha + beta)
    log_U_N = log_G + beta / alpha * (log_G + np.log(U))  # parameters that U tokens are optimal for

    def larger_is_better(x_BxG: np.ndarray) -> np.ndarray:
        # In logarithms: after thousands of epochs, what one more is worth is too small for a number.
        log_D_BxG = np.log(C_G / cost.flops(x_BxG))
        data, log_e_D = _worth(log_D_BxG - np.log(U), R_D)
        size, log_e_N = _worth(np.maximum(x_BxG - log_U_N, 0.0), R_N)
        size_term = np.log(alpha * A) - alpha * (np.minimum(x_BxG, log_U_N) + size) + log_e_N
        data_term = np.log(beta * B) - beta * (np.log(U) + data) + log_e_D
        return size_term > data_term + np.log(cost.slope(x_BxG))

    shape = np.broadcast_shapes(alpha.shape, C_G.shape)
    largest_BxG = np.broadcast_to(_log_size(cost, C_G / U), shape)  # at which D = U
    x_BxG = _halve(larger_is_better, np.full(shape, cost.low - np.log(REACH)), largest_BxG)
    return np.exp(_within_reach(cost, x_BxG))


def _worth(log_ratio: np.ndarray, R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ln(1 + R (1 - exp(-x / R))) for x = ratio - 1 repetitions, and the logarithm of its elasticity by the ratio."""
    repeats = np.expm1(log_ratio)
    log_worth = np.log1p(-R * np.expm1(-repeats / R))
    return log_worth, log_ratio - repeats / R - log_worth


def _log_size(cost: TokenCost, flops_G: np.ndarray) -> np.ndarray:
    """ln N at which a token takes so many FLOPs; where that is out of reach, the end of the reach."""
    low, high = cost.low - np.log(REACH), cost.high + np.log(REACH)
    return _halve(lambda x_G: cost.flops(x_G) < flops_G, np.full_like(flops_G, low), np.full_like(flops_G, high))


def _within_reach(cost: TokenCost, x: np.ndarray) -> np.ndarray:
    """ln N, or NaN at the ends of the reach, beyond which the optimum lies."""
    low, high = cost.low - np.log(REACH), cost.high + np.log(REACH)
    return np.where((x > low + ROUNDING) & (x < high - ROUNDING), x, np.nan)


def _halve(go_up: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where go_up turns from true to false between low and high."""
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        up = go_up(middle)
        low, high = np.where(up, middle, low), np.where(up, high, middle)
    return 0.5 * (low + high)
