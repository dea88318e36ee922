"""Intervals from bootstrap draws: percentile, widened (the default), expanded, studentised, and of predictions.

The percentile interval of K resampled clusters is too narrow twice over: the bootstrap's variance is (K - 1) / K of the
unbiased one, and normal quantiles stand where Student's t with K - 1 degrees of freedom would. The factor

    w = t_{K-1} / z  sqrt(K / (K - 1))

makes up for both; it is 1.65 for four trunks, 1.08 for twenty runs. Hesterberg (2015, "What teachers should know about
the bootstrap", section 4) takes percentiles further out by it, at the level Phi(w z) of the draws: `expanded`. Draws of
few clusters do not reach that far: of four, the mean's draws end before its t interval does. The default, `interval`,
multiplies the two distances between the estimate and its percentiles by w instead: as asymmetric as the draws, and
right for two clusters as for thirty. Of the mean of K normal numbers, nominal 90 % (1,500 simulations, +-1.5 %):

    K            2     3     4     5     6     8    10    20
    percentile  .49   .67   .75   .81   .80   .82   .87   .88
    expanded    .49   .74   .84   .89   .88   .87   .91   .90
    interval    .87   .89   .89   .91   .89   .88   .91   .90

`benchmarks.coverage` has the same for sweeps. There a law is fitted, which takes degrees of freedom from the clusters
beyond the mean's one; from ten clusters on w is enough, and for fewer `Bootstrap.spread` measures by a jackknife what
is missing. Every function returns the EST of a report: {"value": x or None, "ci": [low, high] or None, "level": 0.9}.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from scaling.errors import InputError

LEVEL = 0.9
KNOWN = 0.5  # share of draws that must exist: with fewer, the interval would be that of the lucky resamples


def interval(
    value: float,
    draws_B: np.ndarray | None = None,
    *,
    clusters: int,
    positive: bool = False,
    spread: float = 1.0,
    level: float = LEVEL,
) -> dict[str, Any]:
    """EST with the widened percentile interval: the default of reports.

    clusters: how many independent units were resampled, `Bootstrap.clusters`; one has no spread and gives null.
    positive: distances are those of logs, as befits N*, D* or a loss: an end is value * (percentile / value)^w. spread:
    a factor of w, `Bootstrap.spread`. Draws that do not exist are NaN; where fewer than half exist, or the draws are
    None, the interval is null.
    """
    if draws_B is None or clusters < 2 or not np.isfinite(value):
        return percentile(value, None, level)
    w = spread * widening(clusters, level)
    est = percentile(value, widen(value, draws_B, w, positive=positive), level)
    if est["ci"] is None:
        return est
    low, high = est["ci"]
    return {**est, "ci": [min(low, est["value"]), max(high, est["value"])]}  # an estimate is in its own interval


def widen(value: float, draws_B: np.ndarray, w: float, *, positive: bool = False) -> np.ndarray:
    """The draws with their distances from the value multiplied by w: what `interval` takes the percentiles of.

    Raises InputError where a quantity said to be positive is not.
    """
    if not positive:
        return value + w * (draws_B - value)
    if not value > 0 or (draws_B < 0).any():
        raise InputError(f"{value:g} with draws down to {np.nanmin([value, *draws_B]):g} is no positive quantity")
    return value * (draws_B / value) ** w


def widening(clusters: int, level: float = LEVEL) -> float:
    """w of K clusters, two or more, which goes to 1 as K grows without end."""
    student, normal = stats.t.ppf((1 + level) / 2, clusters - 1), stats.norm.ppf((1 + level) / 2)
    return float(student / normal * np.sqrt(clusters / (clusters - 1)))


def percentile(value: float, draws_B: np.ndarray | None = None, level: float = LEVEL) -> dict[str, Any]:
    """EST with the interval between two percentiles of the draws (Efron & Tibshirani 1993, 13.3); null as above."""
    return _est(value, draws_B, (1 - level) / 2, level)


def expanded(value: float, draws_B: np.ndarray | None = None, *, clusters: int, level: float = LEVEL) -> dict[str, Any]:
    """EST with the expanded percentile interval (Hesterberg 2015, section 4); null as above."""
    if clusters < 2:
        return _est(value, None, 0.0, level)
    tail = float(stats.norm.sf(widening(clusters, level) * stats.norm.ppf((1 + level) / 2)))
    return _est(value, draws_B, tail, level)


def studentised(
    value: float, left_out_K: np.ndarray, *, positive: bool = False, level: float = LEVEL
) -> dict[str, Any]:
    """EST with value +- t_{K-1} s, where s is the cluster jackknife's standard error about the value.

    left_out_K: the quantity without each of K clusters in turn (`resampling.jackknife`). s^2 = (K - 1) / K times their
    sum of squares about the value, CV3 of MacKinnon, Nielsen & Webb (2023). positive: on the log scale, as befits N* or
    a loss. Null where any of the K does not exist: a jackknife has none to spare.
    """
    K = len(left_out_K)
    known = np.isfinite(value) and K > 1 and np.isfinite(left_out_K).all()
    if not known or (positive and not (value > 0 and (np.asarray(left_out_K) > 0).all())):
        return _est(value, None, 0.0, level)
    centre, left_out_K = (np.log(value), np.log(left_out_K)) if positive else (value, np.asarray(left_out_K))
    s = np.sqrt((K - 1) / K * ((left_out_K - centre) ** 2).sum())
    ends = centre + np.array([-1.0, 1.0]) * stats.t.ppf((1 + level) / 2, K - 1) * s
    return {"value": float(value), "ci": [float(x) for x in (np.exp(ends) if positive else ends)], "level": level}


class Forecast(NamedTuple):
    """One law's loss at a point: of its fit, in B resamples, its residuals of log loss, how many parameters it
    fitted, and its weight among the laws (any scale)."""

    loss: float
    loss_B: np.ndarray
    residual_R: np.ndarray
    parameters: int
    weight: float = 1.0


def prediction(
    laws: Sequence[Forecast], rng: np.random.Generator, *, clusters: int, spread: float = 1.0, level: float = LEVEL
) -> dict[str, Any]:
    """EST of the measured loss of a new run: the uncertainty of each law, the choice of the law, the scatter of runs.

    The value is the geometric mean of the laws by weight. Each draw is of one law, with the chance of its weight, in
    one resample, widened for few clusters as `interval` is, times exp of one of that law's residuals. Where laws that
    fit the runs alike differ at the point, the interval spans them. Null where a law has no draws.
    """
    weight_L = np.array([law.weight for law in laws], np.float64)
    if not (len(laws) and (weight_L >= 0).all() and weight_L.sum() > 0):
        raise InputError(f"weights of laws {weight_L.tolist()}: none may be negative, and one must be positive")
    weight_L /= weight_L.sum()
    value = float(np.exp(weight_L @ np.log([law.loss for law in laws])))
    if clusters < 2 or not min(len(law.loss_B) for law in laws):
        return _est(value, None, 0.0, level)
    draws_LxM = np.stack([_forecast_draws(law, spread * widening(clusters, level), rng) for law in laws])
    law_M = rng.choice(len(laws), size=draws_LxM.shape[1], p=weight_L)
    return percentile(value, draws_LxM[law_M, np.arange(len(law_M))], level)


def _forecast_draws(law: Forecast, w: float, rng: np.random.Generator) -> np.ndarray:
    loss_B = widen(law.loss, law.loss_B, w, positive=True)
    return prediction_draws(loss_B, law.residual_R, law.parameters, rng)


def prediction_draws(
    loss_B: np.ndarray, residual_R: np.ndarray, parameters: int, rng: np.random.Generator, per_draw: int = 20
) -> np.ndarray:
    """Measured losses of a new run: each law draw times exp of centred residuals of log loss, inflated for the
    parameters.

    The residuals carry noise and misfit together. sqrt(n / (n - P)) makes up for the P fitted parameters.
    """
    n = len(residual_R)
    noise = (residual_R - residual_R.mean()) * np.sqrt(n / max(n - parameters, 1))
    return (loss_B[:, None] * np.exp(rng.choice(noise, size=(len(loss_B), per_draw)))).ravel()


def _est(value: float, draws_B: np.ndarray | None, tail: float, level: float) -> dict[str, Any]:
    value = float(value) if np.isfinite(value) else None
    ends = None
    if draws_B is not None:
        known = draws_B[np.isfinite(draws_B)]
        if len(known) >= max(2, KNOWN * len(draws_B)):
            ends = [float(x) for x in np.quantile(known, [tail, 1 - tail])]
    return {"value": value, "ci": ends, "level": level}
