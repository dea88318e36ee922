"""What to train: the compute-optimal run at each target, and the loss to expect of any run, with intervals."""

from typing import TYPE_CHECKING, Any

import numpy as np

from scaling.analysis import frontier
from scaling.analysis.fitting import law_loss
from scaling.analysis.uncertainty import estimate, prediction_draws
from scaling.errors import InputError

if TYPE_CHECKING:
    from scaling.analysis.analyze import Analysis


def predict_loss(analysis: "Analysis", N: float, D: float) -> dict[str, Any]:
    """EST of the measured loss, in the table's unit, of a new run of N parameters on D tokens.

    The value is the fitted law's. The interval joins the law's uncertainty (bootstrap draws) with the scatter of single
    runs about it (resampled residuals, inflated by sqrt(n / (n - P))). It supposes that the law holds at (N, D).
    """
    if not (N > 0 and D > 0):
        raise InputError(f"N={N}, D={D}: both must be positive")
    fit = analysis.fit
    loss_B = law_loss(fit.law, analysis.theta_BxP, fit.centre, np.array([N]), np.array([D]))[:, 0]
    rng = np.random.default_rng([analysis.seed, 1])
    draws = prediction_draws(loss_B, fit.residual_R, len(fit.theta_P), rng) if len(loss_B) else None
    return estimate(float(fit.loss(N, D)), draws)


def optima(analysis: "Analysis") -> list[dict[str, Any]]:
    """The optimum at every target: {"C", "N": EST, "D": EST, "loss": EST}; loss is that of a run to be measured
    there."""
    fit, C_G = analysis.fit, np.array(analysis.target_flops)
    if not len(C_G):
        return []
    point = frontier.optima(fit.law, fit.theta_P[None], fit.centre, analysis.cost, C_G)
    drawn = frontier.optima(fit.law, analysis.theta_BxP, fit.centre, analysis.cost, C_G)
    found = []
    for g, C in enumerate(C_G):
        N, D = point.N_BxG[0, g], point.D_BxG[0, g]
        known = bool(np.isfinite(N))
        found.append(
            {
                "C": float(C),
                "N": estimate(N, drawn.N_BxG[:, g]),
                "D": estimate(D, drawn.D_BxG[:, g]),
                "loss": predict_loss(analysis, N, D) if known else estimate(float("nan")),
            }
        )
    return found


def next_runs(analysis: "Analysis") -> list[dict[str, Any]]:
    """The run to do next at each target at which the law has an optimum."""
    largest = float(analysis.table.C_R.max())
    return [
        {
            "target_flops": optimum["C"],
            "N": optimum["N"],
            "D": optimum["D"],
            "tokens_per_parameter": optimum["D"]["value"] / optimum["N"]["value"],
            "loss": optimum["loss"],
            "extrapolation_factor": optimum["C"] / largest,
        }
        for optimum in analysis.optima
        if optimum["N"]["value"] is not None
    ]
