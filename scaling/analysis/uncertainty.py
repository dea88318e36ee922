"""Draws of Approach 1, and what the approaches share: how draws are held, and how counts of clusters are drawn.

Approach 1 resamples whole training curves with replacement. Approach 2 resamples residuals, see `isoflop_draws`;
Approach 3 weights clusters of runs, see `resampling`. Intervals of all of them: see `intervals`.
"""

from typing import NamedTuple

import numpy as np

from scaling.analysis.curves import Curves
from scaling.analysis.envelope import Envelope, powers, winners
from scaling.analysis.fitting import Fit, refit
from scaling.analysis.intervals import LEVEL as LEVEL
from scaling.analysis.intervals import percentile
from scaling.analysis.intervals import prediction_draws as prediction_draws
from scaling.analysis.laws import Inputs
from scaling.analysis.newton import Minimum
from scaling.analysis.powers import Power
from scaling.analysis.table import Table

estimate = percentile  # of draws that are no resampled clusters, and where their number is not at hand


class Draws(NamedTuple):
    """Bootstrap draws of one approach's N*(C) and D*(C); those that gave no slope are NaN and counted in `failed`."""

    N_power: Power
    D_power: Power
    failed: int


def law_draws(fitted: Fit, table: Table, resamples: int, rng: np.random.Generator) -> Minimum:
    """The law refitted to resampled clusters of runs.

    A resample without three different N and D cannot determine the law; it is drawn again (a condition on the design,
    not on the outcome).
    """
    inputs = Inputs(table.N_R, table.D_R)
    if resamples == 0:
        return Minimum(np.empty((0, len(fitted.theta_P))), *np.empty((4, 0)))
    weight_BxR = np.zeros((0, len(table.N_R)))
    while len(weight_BxR) < resamples:
        more = cluster_weights(table.cluster_R, resamples, rng)
        enough = _distinct(more, table.N_R) & _distinct(more, table.D_R)
        weight_BxR = np.concatenate([weight_BxR, more[enough]])[:resamples]
    return refit(fitted, inputs, table.loss_R, weight_BxR, seed=int(rng.integers(2**31)))


def cluster_weights(cluster_R: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each row is in each resample, weight_BxR: as many clusters as there are, drawn with replacement."""
    K = int(cluster_R.max()) + 1
    return rng.multinomial(K, np.full(K, 1.0 / K), size=resamples).astype(np.float64)[:, cluster_R]


def _distinct(weight_BxR: np.ndarray, values_R: np.ndarray) -> np.ndarray:
    values = np.unique(values_R)
    present = np.stack([weight_BxR[:, values_R == value].any(1) for value in values])
    return present.sum(0) >= 3


def envelope_draws(found: Envelope, curves: Curves, resamples: int, rng: np.random.Generator) -> Draws:
    """Approach 1 on resampled runs."""
    K = len(curves.names)
    present_BxK = cluster_weights(np.arange(K), resamples, rng) > 0
    N_power, D_power = powers(found.race, *winners(found.race, present_BxK))
    return Draws(N_power, D_power, int(np.isnan(N_power.exponent_B).sum()))
