"""What to train: the optimum at each target, plain, with limited data, or for serving; what a wrong size wastes.

Everything comes with intervals from the bootstrap draws of the analysis. They suppose that the law goes on as it is.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from scaling.analysis import allocation, frontier
from scaling.analysis.intervals import Forecast, prediction
from scaling.analysis.selection import predict as stacked
from scaling.analysis.uncertainty import estimate
from scaling.analysis.waste import signed_waste, size_of
from scaling.errors import InputError

if TYPE_CHECKING:
    from scaling.analysis.analyze import Analysis


def predict_loss(analysis: "Analysis", N: float, D: float, unique_tokens: float | None = None) -> dict[str, Any]:
    """EST of the measured loss, in the table's unit, of a new run of N parameters on D tokens.

    The value is the fitted law's. The interval joins the law's uncertainty (bootstrap draws) with the scatter of single
    runs about it (resampled residuals, inflated by sqrt(n / (n - P))). It supposes that the law holds at (N, D).
    unique_tokens: how many of the D differ, for the data-constrained law (None: all); other laws count all as new.
    """
    if not (N > 0 and D > 0):
        raise InputError(f"N={N}, D={D}: both must be positive")
    fit = analysis.fit
    inputs = frontier.inputs_at(fit.law, np.array([N]), np.array([D]))
    if unique_tokens is not None and "U" in fit.law.needs:
        inputs = inputs._replace(U_R=np.array([min(unique_tokens, D)]))
    loss, loss_B = (
        np.exp(fit.law.log_loss(theta_BxP, inputs, fit.centre))[:, 0]
        for theta_BxP in (fit.theta_P[None], analysis.theta_BxP)
    )
    rng = np.random.default_rng([analysis.seed, 1])
    forecast = Forecast(float(loss[0]), loss_B, fit.residual_R, len(fit.theta_P))
    drawn = analysis.bootstrap
    return prediction([forecast], rng, clusters=drawn.clusters, spread=drawn.spread)


def optima(analysis: "Analysis") -> list[dict[str, Any]]:
    """The optimum at every target: {"C", "N": EST, "D": EST, "loss": EST}; loss is that of a run to be measured
    there."""
    fit, C_G = analysis.fit, np.array(analysis.target_flops)
    if not len(C_G):
        return []

    def solve(theta_BxP: np.ndarray) -> frontier.Optimum:
        return frontier.optima(fit.law, theta_BxP, fit.centre, analysis.cost, C_G)

    point = solve(fit.theta_P[None])
    return [
        {
            "C": float(C),
            "N": _at(analysis, solve, g, "N"),
            "D": _at(analysis, solve, g, "D"),
            "loss": _expected(analysis, point.N_BxG[0, g], point.D_BxG[0, g]),
        }
        for g, C in enumerate(C_G)
    ]


def next_runs(analysis: "Analysis") -> list[dict[str, Any]]:
    """The runs to do next where the law has an optimum, those that the report recommends first.

    "purpose": "limited data" where a limit was given and moves the optimum, "training" for the compute-optimal run,
    "serving" where tokens to serve were given. target_flops: C of the training itself. loss_stacked: EST of the loss by
    several laws together (`selection.predict`), None where they were not compared.
    """
    optima = [entry for entry in analysis.optima if entry["N"]["value"] is not None]
    limited = [entry for entry in analysis.data_limited if entry["binds"] and entry["N"]["value"] is not None]
    served = [entry for entry in analysis.inference if entry["N"]["value"] is not None]
    training = [float(analysis.cost.flops(np.log(entry["N"]["value"])) * entry["D"]["value"]) for entry in served]
    return [
        *(_next_run(analysis, "limited data", entry["C"], entry) for entry in limited),
        *(_next_run(analysis, "training", entry["C"], entry) for entry in optima),
        *(_next_run(analysis, "serving", C, entry) for C, entry in zip(training, served, strict=True)),
    ]


def _next_run(analysis: "Analysis", purpose: str, C: float, found: dict[str, Any]) -> dict[str, Any]:
    N, D, selection = found["N"], found["D"], analysis.selection
    return {
        "purpose": purpose,
        "target_flops": C,
        "N": N,
        "D": D,
        "tokens_per_parameter": D["value"] / N["value"],
        "loss": found["loss"],
        "loss_stacked": None if isinstance(selection, str | None) else stacked(selection, N["value"], D["value"]),
        "extrapolation_factor": C / float(analysis.table.C_R.max()),
    }


def data_limited(analysis: "Analysis", unique_tokens: float) -> list[dict[str, Any]]:
    """The optimum at every target with so many unique tokens (Muennighoff et al. 2023; see `allocation`).

    {"C", "unique_tokens", "N", "D", "loss": EST each, "epochs": EST of D / U (one where not all tokens are read),
    "binds": whether the limit moves the optimum, "basis": what repeated tokens count for, in words}.
    Raises InputError for unique_tokens that is not positive.
    """
    fit, C_G = analysis.fit, np.array(analysis.target_flops)

    def solve(theta_BxP: np.ndarray) -> allocation.Limited:
        return allocation.data_limited(fit, analysis.cost, C_G, unique_tokens, theta_BxP)

    point = solve(fit.theta_P[None])
    basis = (
        "as the fitted data-constrained law has it"
        if "U" in fit.law.needs
        else f"as good as new up to {allocation.EPOCHS:g} epochs, beyond which none is read (Muennighoff et al. 2023); "
        "the fitted law has seen no repetition"
    )
    return [
        {
            "C": float(C),
            "unique_tokens": float(unique_tokens),
            "N": _at(analysis, solve, g, "N"),
            "D": _at(analysis, solve, g, "D"),
            "loss": _expected(analysis, point.N_BxG[0, g], point.D_BxG[0, g], unique_tokens),
            "epochs": _at(analysis, solve, g, "epochs"),
            "binds": bool(point.binds_BxG[0, g]),
            "basis": basis,
        }
        for g, C in enumerate(C_G)
    ]


def inference(analysis: "Analysis", inference_tokens: float) -> list[dict[str, Any]]:
    """At every target, the cheapest run of the compute-optimal run's loss when so many tokens are served (Sardana et
    al. 2024).

    {"C": FLOPs of the compute-optimal run's training, "inference_tokens", "N", "D": EST each, "loss": EST of a measured
    run, "total_flops": EST, training and serving together, "saved": EST of the share that the compute-optimal run would
    take beyond that}. Serving takes a third of the FLOPs per token of training. Raises InputError for a negative count.
    """
    fit, C_G = analysis.fit, np.array(analysis.target_flops)

    def solve(theta_BxP: np.ndarray) -> allocation.Served:
        return allocation.for_inference(fit, analysis.cost, C_G, inference_tokens, theta_BxP)

    point = solve(fit.theta_P[None])
    return [
        {
            "C": float(C),
            "inference_tokens": float(inference_tokens),
            "N": _at(analysis, solve, g, "N"),
            "D": _at(analysis, solve, g, "D"),
            "loss": _expected(analysis, point.N_BxG[0, g], point.D_BxG[0, g]),
            "total_flops": _at(analysis, solve, g, "C"),
            "saved": _at(analysis, solve, g, "share_saved", positive=False),
        }
        for g, C in enumerate(C_G)
    ]


def waste(analysis: "Analysis") -> list[dict[str, Any]]:
    """What is lost at every target by following Approach 2 where Approach 3 is right, and the other way round.

    {"C", "follow", "if_right": "approach2" or "approach3", "N": size followed, "share": EST of the share of C wasted}.
    The size followed is a choice, not an estimate: draws are of the approach that is right. Approach 2 has no law of
    its own: where it is right, the law's valley is taken to lie about Approach 2's optimum. Empty where one of the two
    has no optimum or no draws.
    """
    if isinstance(analysis.isoflop, str) or analysis.isoflop_draws is None:
        return []
    fit, cost, theta_BxP = analysis.fit, analysis.cost, analysis.theta_BxP
    C_G = np.array(analysis.target_flops)
    law_G = frontier.optima(fit.law, fit.theta_P[None], fit.centre, cost, C_G).N_BxG[0]
    law_BxG = frontier.optima(fit.law, theta_BxP, fit.centre, cost, C_G).N_BxG
    valley_G, valley_BxG = analysis.isoflop.N_power.at(C_G)[0], analysis.isoflop_draws.N_power.at(C_G)
    found = []
    for g, C in enumerate(C_G):
        law, law_B, valley, valley_B = law_G[g], law_BxG[:, g], valley_G[g], valley_BxG[:, g]
        if not (np.isfinite(law) and np.isfinite(valley)):
            continue
        # Where Approach 2 is right, the law's size is law / valley times the optimum; so is the size taken for it here.
        for follow, if_right, N, followed, followed_B in (
            ("approach2", "approach3", valley, valley, np.full_like(law_B, valley)),
            ("approach3", "approach2", law, law * (law / valley), law_B * (law / valley_B)),
        ):
            share = signed_waste(fit.law, fit.theta_P[None], fit.centre, cost, C, np.array([followed]))[0]
            share_B = signed_waste(fit.law, theta_BxP, fit.centre, cost, C, followed_B)
            entry = {"C": float(C), "follow": follow, "if_right": if_right, "N": float(N)}
            found.append({**entry, "share": size_of(float(share), share_B)})
    return found


def _at(
    analysis: "Analysis", solve: Callable[[np.ndarray], Any], g: int, name: str, positive: bool = True
) -> dict[str, Any]:
    """EST, at target g, of one field of what solve(theta_BxP) finds."""
    return analysis.est(lambda theta_BxP: getattr(solve(theta_BxP), f"{name}_BxG")[:, g], positive=positive)


def _expected(analysis: "Analysis", N: float, D: float, unique_tokens: float | None = None) -> dict[str, Any]:
    """`predict_loss`, or no value where there is no optimum."""
    known = np.isfinite(N) and np.isfinite(D)
    return predict_loss(analysis, N, D, unique_tokens) if known else estimate(float("nan"))
