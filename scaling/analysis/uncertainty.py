"""Draws of Approach 1, and what the approaches share: how draws are held, and how counts of clusters are drawn.

Approach 1 resamples whole training curves with replacement. Approach 2 resamples residuals, see `isoflop_draws`;
Approach 3 weights clusters of runs, see `resampling`. Intervals of all of them: see `intervals`.
"""

from typing import NamedTuple

import numpy as np

from scaling.analysis.curves import Curves
from scaling.analysis.envelope import Envelope, powers, winners
from scaling.analysis.intervals import percentile
from scaling.analysis.powers import Power

estimate = percentile  # of draws that are no resampled clusters, and where their number is not at hand


class Draws(NamedTuple):
    """Bootstrap draws of one approach's N*(C) and D*(C); those that gave no slope are NaN and counted in `failed`."""

    N_power: Power
    D_power: Power
    failed: int


def cluster_weights(cluster_R: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each row is in each resample, weight_BxR: as many clusters as there are, drawn with replacement."""
    K = int(cluster_R.max()) + 1
    return rng.multinomial(K, np.full(K, 1.0 / K), size=resamples).astype(np.float64)[:, cluster_R]


def envelope_draws(found: Envelope, curves: Curves, resamples: int, rng: np.random.Generator) -> Draws:
    """Approach 1 on resampled runs."""
    K = len(curves.names)
    present_BxK = cluster_weights(np.arange(K), resamples, rng) > 0
    N_power, D_power = powers(found.race, *winners(found.race, present_BxK))
    return Draws(N_power, D_power, int(np.isnan(N_power.exponent_B).sum()))
