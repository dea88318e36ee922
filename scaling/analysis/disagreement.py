"""Do Approach 2 and a fitted law disagree by more than noise? A paired test on the very same runs.

Comparing the two intervals tests little: they come from one set of losses, so that their errors go together, and where
the law misses by several per cent its own interval is wide because it is wrong. So the law is held against Approach 2
where both look: Approach 2 is applied to the losses that the fitted law predicts for the runs of the isoFLOP budgets,
and its exponent there is taken from the one in the data. Simulation says how large that gap would be if the law were
right (a parametric bootstrap of a specification test; Cox 1961, Davison & Hinkley 1997, 4.2.3): losses of the law plus
noise, both fits again, the gap again. The noise is that about the budgets' smooth curves, not the residuals of the law,
which hold its misfit.
"""

from typing import NamedTuple

import numpy as np

from scaling.analysis.fitting import Fit, refit
from scaling.analysis.isoflop import IsoFLOP
from scaling.analysis.minima import candidates, minima
from scaling.analysis.powers import power_law
from scaling.analysis.table import Table
from scaling.errors import InputError

RESAMPLES = 200  # of which the test needs the spread alone


class Disagreement(NamedTuple):
    """Exponents of N*(C) by Approach 2: in the data, and in the law's losses for the same runs.

    gap: the first less the second; sd: of the gap if the law were right; p: two-sided, of a gap as large.
    """

    data: float
    law: float
    gap: float
    sd: float
    p: float


def disagreement(fitted: Fit, found: IsoFLOP, table: Table, rng: np.random.Generator) -> Disagreement | None:
    """The paired test of a fit to all rows of the table against Approach 2; None for fewer than two optima.

    sd and p are NaN where the law puts its optima beyond the sizes, so that it has no exponent there. Raises InputError
    for a fit to other rows.
    """
    if len(found.usable) < 2:
        return None
    if len(fitted.loss_R) != len(table.loss_R):
        what = f"the fit is to {len(fitted.loss_R)} rows, the table has {len(table.loss_R)}"
        raise InputError(what, do="fit the law to the table that the budgets are of")
    inputs = fitted.inputs
    predicted_R = fitted.predict(inputs)
    law = float(_exponents(found, predicted_R[None])[0])
    noise_BxR = found.noise * rng.standard_normal((RESAMPLES, len(predicted_R)))
    loss_BxR = predicted_R * np.exp(noise_BxR)
    theta_BxP = refit(
        fitted,
        inputs,
        table.loss_R,
        np.ones(loss_BxR.shape),
        seed=int(rng.integers(2**31)),
        loss_BxR=loss_BxR,
    ).theta_BxP
    scatter_BxK = found.scatter * rng.standard_normal((RESAMPLES, len(found.usable)))
    again_BxR = np.exp(fitted.law.log_loss(theta_BxP, inputs, fitted.centre))
    null_B = _exponents(found, loss_BxR, scatter_BxK) - _exponents(found, again_BxR)
    null_B = null_B[np.isfinite(null_B)]
    data = float(found.N_power.exponent_B[0])
    gap = data - law
    if not np.isfinite(gap) or len(null_B) < 2:
        return Disagreement(data, law, gap, float("nan"), float("nan"))
    beyond = int((np.abs(null_B) >= abs(gap)).sum())
    return Disagreement(data, law, gap, float(null_B.std()), (1 + beyond) / (1 + len(null_B)))


def _exponents(found: IsoFLOP, loss_BxR: np.ndarray, scatter_BxK: np.ndarray | float = 0.0) -> np.ndarray:
    """Approach 2's exponent_B in other losses of the same runs: those budgets, those weights, other curves."""
    usable = found.usable
    seen = [candidates(np.log(budget.cells.N_S), budget.cells.count_S) for budget in usable]
    losses = [np.stack([loss_BxR[:, r].mean(1) for r in budget.cells.rows_S], axis=1) for budget in usable]
    lowest = minima(seen, losses)
    log_N_BxK = np.where(lowest.inside_BxK, lowest.log_N_BxK, np.nan) + scatter_BxK
    C_1xK = np.array([[budget.C for budget in usable]])
    return power_law(C_1xK, np.exp(log_N_BxK), found.weight_K).exponent_B
