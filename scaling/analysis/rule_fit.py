"""The rule of the learning rates: a power law of size and batch through the optima of a tuning sweep.

The rule, ln lr* = a + b ln N + c ln B, is fitted to the optima in two steps, so that each exponent is judged by what
was varied for it. c is least squares on the optima within sizes: it is identified if some size has several batches. a
and b go through the means of ln lr* - c ln B of the sizes, with weights 1 / (se^2 + tau^2): se is the error that the
optima have themselves, tau^2 the scatter of the sizes beyond it (DerSimonian & Laird 1986, for a regression). So many
batches or durations of three sizes still count as three sizes.

Sizes are few, so that normal intervals would be far too short, and a bootstrap of three points draws nearly the same
three: intervals are Student's t, with as many degrees of freedom as there are sizes beyond two, on a covariance scaled
by the weighted residuals (Knapp & Hartung 2003). Two sizes leave no residual, and no interval.
"""

import math

import numpy as np
from scipy import stats

from scaling.analysis.rates import Optima
from scaling.analysis.reporting.style import si
from scaling.errors import InputError
from scaling.rules import LEVEL, LearningRateRule

SPREAD = 1.5  # factor by which batches of one size, or durations, must differ to count as different


def fit_rule(optima: Optima, base: str, source: str) -> LearningRateRule:
    """The rule through the bracketed optima. base: recipe that the sweep followed; source: SHA-256 of its tables.

    Raises InputError where no optimum is bracketed, or those of one size only, with the rates that each size lacks.
    """
    ok = optima.ok
    sizes = {group.rates.N for group in ok}
    if len(sizes) < 2:
        found = f"only one size, N {si(min(sizes))}, has" if sizes else "no size has"
        lacking = "; ".join(f"{group.name} needs {group.do}" for group in optima.open)
        raise InputError(f"{found} its optimum bracketed, and a rule needs two sizes", do=lacking or "add sizes")
    log_N_G, log_B_G, y_G = np.log(np.array([(group.rates.N, group.rates.B, group.lr) for group in ok], float)).T
    _, size_G = np.unique(log_N_G, return_inverse=True)
    why = _unidentified(log_B_G, size_G)
    c, half_c = (0.0, 0.0) if why else _within(log_B_G, y_G, size_G)
    log_B_G = np.zeros(len(ok)) if why else log_B_G
    theta_2, cov_2x2, log_B_2 = _across(
        log_N_G, log_B_G, y_G - c * log_B_G, np.array([group.se for group in ok]), size_G
    )
    t = float(stats.t.ppf((1 + LEVEL) / 2, len(sizes) - 2)) if len(sizes) > 2 and half_c is not None else None
    off_G = y_G - theta_2[0] - theta_2[1] * log_N_G - c * log_B_G
    df = len(ok) - (2 if why else 3)
    return LearningRateRule(
        base=base,
        a=float(theta_2[0]),
        b=float(theta_2[1]),
        c=c,
        N_range=_ends([group.rates.N for group in ok]),
        B_range=None if ok[0].rates.B is None else _ends([group.rates.B for group in ok]),
        D_range=_ends([group.rates.D for group in ok]),
        sizes=len(sizes),
        optima=len(ok),
        residual_sd=float(np.sqrt((off_G**2).sum() / df)) if df > 0 else None,
        covariance=None if t is None else _joint(cov_2x2, log_B_2, (half_c / t) ** 2),
        t=t,
        penalty=float(np.median([group.penalty for group in ok])),
        source=source,
        notes=(*why, *_notes(optima, len(sizes), t)),
    )


def _within(log_B_G: np.ndarray, y_G: np.ndarray, size_G: np.ndarray) -> tuple[float, float | None]:
    """c, the slope of ln lr* on ln B within sizes, and half its interval (None where nothing is left to judge it)."""
    count_S = np.bincount(size_G)
    x_G = log_B_G - (np.bincount(size_G, log_B_G) / count_S)[size_G]
    y_G = y_G - (np.bincount(size_G, y_G) / count_S)[size_G]
    c = float(x_G @ y_G / (x_G @ x_G))
    df = len(y_G) - len(count_S) - 1
    if df == 0:
        return c, None
    error = math.sqrt(((y_G - c * x_G) ** 2).sum() / df / (x_G @ x_G))
    return c, float(stats.t.ppf((1 + LEVEL) / 2, df)) * error


def _across(
    log_N_G: np.ndarray, log_B_G: np.ndarray, z_G: np.ndarray, se_G: np.ndarray, size_G: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(a, b) through the means of z = ln lr* - c ln B of the sizes, their Knapp-Hartung covariance given c, and the
    same line through the means of ln B, by which c moves them.

    Without known errors the sizes weigh the same. The covariance is NaN for two sizes.
    """
    count_S = np.bincount(size_G)
    X_Sx2 = np.stack([np.ones(len(count_S)), np.bincount(size_G, log_N_G) / count_S], axis=1)
    z_S, log_B_S = np.bincount(size_G, z_G) / count_S, np.bincount(size_G, log_B_G) / count_S
    variance_S = np.bincount(size_G, se_G**2) / count_S**2
    weight_S = np.ones(len(count_S))
    if np.isfinite(variance_S).all() and (variance_S > 0).all():
        weight_S = 1 / (variance_S + _between(X_Sx2, z_S, 1 / variance_S))
    theta_2, rss, inverse_2x2 = _least_squares(X_Sx2, z_S, weight_S)
    df = len(count_S) - 2
    return theta_2, inverse_2x2 * (rss / df if df else np.nan), _least_squares(X_Sx2, log_B_S, weight_S)[0]


def _joint(cov_2x2: np.ndarray, log_B_2: np.ndarray, variance_c: float) -> tuple[tuple[float, ...], ...]:
    """The covariance of (a, b, c): (a, b) is that given c, moved by -log_B_2 for each unit of c."""
    by_c_3 = np.array([*-log_B_2, 1.0])
    covariance = np.pad(cov_2x2, (0, 1)) + variance_c * np.outer(by_c_3, by_c_3)
    return tuple(tuple(map(float, row)) for row in covariance)


def _between(X_SxP: np.ndarray, y_S: np.ndarray, weight_S: np.ndarray) -> float:
    """tau^2, the variance about the line beyond the points' own: method of moments."""
    _, rss, inverse_PxP = _least_squares(X_SxP, y_S, weight_S)
    trace = weight_S.sum() - np.trace(inverse_PxP @ (X_SxP.T * weight_S**2) @ X_SxP)
    df = len(y_S) - X_SxP.shape[1]
    return max(0.0, (rss - df) / trace) if df else 0.0


def _least_squares(X_SxP: np.ndarray, y_S: np.ndarray, weight_S: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Coefficients, the weighted sum of squares that is left, and (X^T W X)^-1."""
    inverse_PxP = np.linalg.inv((X_SxP.T * weight_S) @ X_SxP)
    theta_P = inverse_PxP @ (X_SxP.T @ (weight_S * y_S))
    return theta_P, float((weight_S * (y_S - X_SxP @ theta_P) ** 2).sum()), inverse_PxP


def _unidentified(log_B_G: np.ndarray, size_G: np.ndarray) -> list[str]:
    """Why the optima do not determine the exponent of the batch; empty if they do."""
    if not np.isfinite(log_B_G).all():
        return ["The exponent of the batch is not identified: the table has no column batch_tokens."]
    if np.ptp(log_B_G) == 0:
        return ["The exponent of the batch is not identified: one batch size."]
    if max(np.ptp(log_B_G[size_G == size]) for size in np.unique(size_G)) < math.log(SPREAD):
        return ["The exponent of the batch is not identified: no size has two batches, so that it is part of b."]
    return []


def _notes(optima: Optima, sizes: int, t: float | None) -> list[str]:
    notes = []
    if sizes == 2:
        notes.append("No interval: two sizes determine the exponent of N and leave nothing to judge it by.")
    elif t is None:
        notes.append("No interval: nothing is left to judge the exponent of the batch by.")
    per_N = np.array([group.rates.D / group.rates.N for group in optima.ok])
    if per_N.max() > SPREAD * per_N.min():
        notes.append(
            f"The optima are of {per_N.min():.3g} to {per_N.max():.3g} tokens a parameter; the rule does not know D."
        )
    return notes + [f"Left out, {group.status}: {group.name}; it needs {group.do}." for group in optima.open]


def _ends(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)
