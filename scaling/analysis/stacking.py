"""Stacking: the convex combination of forecasts that would have done best on the runs held out from them.

Breiman (1996, "Stacked regressions") showed that the weights must be learned from held-out forecasts and must not be
negative; Yao et al. (2018, "Using stacking to average Bayesian predictive distributions") that with a set of models
none of which is true, such weights forecast better than the best model or than averages by posterior probability.
Weights that sum to one keep the combination among its members: where every law errs to the same side, it does as well
as the best of them, and where some err to either side, better than any.
"""

from collections.abc import Sequence

import numpy as np
from scipy import optimize

HOPELESS = 4.0  # times the least error: such a forecast would only fit the noise of the others
SUM = 1e4  # how much more a sum of weights other than one counts than all errors together
ROUNDING = 1e-6  # a weight below it is none


def stack(error_folds: Sequence[np.ndarray]) -> np.ndarray:
    """weight_J of J forecasts: non-negative, of sum one, least squares of the held-out errors (Breiman 1996).

    error_folds: of each fold the errors error_JxM on its M held-out runs. Folds count alike, however many runs they
    hold out and however hard they are to forecast: each is measured in the root mean square error of its median
    forecast.
    Forecasts that score HOPELESS times worse than the best get no weight.
    """
    score_J = scores(error_folds)
    kept_K = np.flatnonzero(score_J <= HOPELESS * score_J.min())
    error_MxK = np.concatenate([_unit(error_JxM)[kept_K].T for error_JxM in error_folds])
    much = SUM * max(1.0, float(np.sqrt((error_MxK**2).sum(0).max())))
    stacked_K, _ = optimize.nnls(
        np.vstack([error_MxK, np.full((1, len(kept_K)), much)]),
        np.append(np.zeros(len(error_MxK)), much),
        maxiter=100 * len(kept_K),
    )
    weight_J = np.zeros(len(score_J))
    weight_J[kept_K] = np.where(stacked_K > ROUNDING, stacked_K, 0.0)
    return weight_J / weight_J.sum()


def scores(error_folds: Sequence[np.ndarray]) -> np.ndarray:
    """score_J of J forecasts, smaller is better: the mean over folds of root mean square error, in that of the median
    forecast."""
    return np.mean([rms(_unit(error_JxM)) * np.sqrt(error_JxM.shape[1]) for error_JxM in error_folds], axis=0)


def unseen(error_folds: Sequence[np.ndarray]) -> np.ndarray:
    """error_H on the runs of every fold, of the stack learned from the other folds: weights fitted to a fold's own
    errors would make them look smaller than those to come."""
    others = [[*error_folds[:f], *error_folds[f + 1 :]] for f in range(len(error_folds))]
    return np.concatenate([stack(rest) @ error_JxM for rest, error_JxM in zip(others, error_folds, strict=True)])


def rms(error_JxM: np.ndarray) -> np.ndarray:
    """Root mean square over the last axis."""
    return np.sqrt((error_JxM**2).mean(-1))


def _unit(error_JxM: np.ndarray) -> np.ndarray:
    """The errors of one fold, so scaled that the median forecast's squares sum to one."""
    typical = float(np.median(rms(error_JxM)))
    return error_JxM / (np.sqrt(error_JxM.shape[1]) * (typical if typical > 0 else 1.0))
