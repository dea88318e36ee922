"""What a reader must know before believing a number: the warnings of an analysis, in plain words."""

from typing import TYPE_CHECKING, Any

import numpy as np

from scaling.analysis.fitting import Fit, fit
from scaling.analysis.isoflop import isoflop
from scaling.analysis.laws import CHINCHILLA, Inputs
from scaling.analysis.table import Table, warning
from scaling.analysis.uncertainty import LEVEL, estimate

if TYPE_CHECKING:
    from scaling.analysis.analyze import Analysis

WIDE = 1.0  # an interval as wide as its own estimate says little more than the sign
FAILED = 0.05  # share of resamples
SIGNIFICANT = 0.05  # of the test of lack of fit


def warnings(analysis: "Analysis") -> list[dict[str, Any]]:
    """All warnings of an analysis beyond those of its table."""
    return [
        *_correlated(analysis),
        *_budgets(analysis),
        *_resamples(analysis),
        *_bounds(analysis.fit),
        *_weak(analysis),
        *_misfit(analysis),
        *_disagreement(analysis),
        *_extrapolation(analysis),
    ]


def flops(value: float) -> str:
    """5e11 rather than 5e+11."""
    return f"{value:.3g}".replace("e+", "e")


def exponents(analysis: "Analysis") -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """EST of the exponents of N*(C) and D*(C) by approach: "approach1" .. "approach3"; only those that exist."""
    found = {}
    for name, result, draws in (
        ("approach1", analysis.envelope, analysis.envelope_draws),
        ("approach2", analysis.isoflop, analysis.isoflop_draws),
    ):
        if isinstance(result, str) or draws is None:
            continue
        found[name] = tuple(
            estimate(power.exponent_B[0], drawn.exponent_B)
            for power, drawn in ((result.N_power, draws.N_power), (result.D_power, draws.D_power))
        )
    a, a_B = _exponent(analysis.fit.parameters), _exponent(drawn_parameters(analysis))
    found["approach3"] = (estimate(a, a_B), estimate(1 - a, 1 - a_B))
    return found


def drawn_parameters(analysis: "Analysis") -> dict[str, np.ndarray]:
    """Natural parameters of the law in each bootstrap draw: name -> values_B."""
    return analysis.fit.law.natural(analysis.theta_BxP, analysis.fit.centre)


def _exponent(parameters: dict[str, Any]) -> Any:
    """beta / (alpha + beta), the exponent of N* under C = 6ND (Hoffmann et al. 2022, eq. 4)."""
    return parameters["beta"] / (parameters["alpha"] + parameters["beta"])


def _correlated(analysis: "Analysis") -> list[dict[str, Any]]:
    table = analysis.table
    if not table.correlated:
        return []
    clusters = len(np.unique(table.cluster_R))
    if clusters == 1:
        message = f"The {len(table.N_R)} rows come from one trunk or run: one observation, which gives no interval."
        return [warning("correlated_rows", message, rows=len(table.N_R), clusters=clusters)]
    message = (
        f"The {len(table.N_R)} rows come from {clusters} trunks or runs. Rows of one share their noise, so that whole "
        "trunks or runs were resampled; the intervals are those of that many independent observations."
    )
    return [warning("correlated_rows", message, rows=len(table.N_R), clusters=clusters)]


def _budgets(analysis: "Analysis") -> list[dict[str, Any]]:
    if isinstance(analysis.isoflop, str):
        return []
    said = {
        "edge": (
            "optimum_at_edge",
            "the lowest loss is at the smallest or largest size, so the optimum may lie beyond",
        ),
        "too_few": ("too_few_points", "fewer than four sizes"),
        "not_convex": ("not_bracketed", "the losses around the lowest one do not curve upwards"),
        "not_bracketed": ("not_bracketed", "the fitted minimum lies outside the sizes tried"),
    }
    found = []
    for budget in analysis.isoflop.budgets:
        if budget.status != "ok":
            code, why = said[budget.status]
            message = f"Budget C = {flops(budget.C)}: {why}. It has no optimum and no part in Approach 2."
            found.append(warning(code, message, C=budget.C, status=budget.status))
    ok = sum(budget.status == "ok" for budget in analysis.isoflop.budgets)
    if ok < 3:
        message = f"{ok} budgets have an optimum: a power law through fewer than three points cannot be checked."
        found.append(warning("too_few_points", message, budgets=ok))
    return found


def _resamples(analysis: "Analysis") -> list[dict[str, Any]]:
    found = []
    for number, draws in ((1, analysis.envelope_draws), (2, analysis.isoflop_draws)):
        if draws is not None and draws.failed > FAILED * analysis.resamples:
            rest = (
                "so that it has no interval" if 2 * draws.failed > analysis.resamples else "its interval is the others'"
            )
            message = f"{draws.failed} of {analysis.resamples} resamples gave Approach {number} no slope: {rest}."
            found.append(warning("weakly_identified", message, approach=number, failed=draws.failed))
    if analysis.unconverged > FAILED * analysis.resamples:
        message = (
            f"{analysis.unconverged} of {analysis.resamples} refits of the law did not end at a stationary point: the "
            f"objective is flat or kinked there, and the runs hardly determine the law."
        )
        found.append(warning("weakly_identified", message, approach=3, failed=analysis.unconverged))
    return found


def _bounds(fitted: Fit) -> list[dict[str, Any]]:
    return [
        warning("parameter_at_bound", f"{name} of the {fitted.law.name} law ended at its bound.", parameter=name)
        for name in fitted.certificate["at_bound"]
    ]


def _weak(analysis: "Analysis") -> list[dict[str, Any]]:
    drawn = drawn_parameters(analysis)
    loose = []
    for name in ("E", "alpha", "beta"):  # A and B are the terms at N = 1 and D = 1: far outside any data, never tight
        est = estimate(analysis.fit.parameters[name], drawn[name])
        if est["ci"] and est["ci"][1] - est["ci"][0] > WIDE * est["value"]:
            loose.append(f"{name} {est['value']:.3g} [{est['ci'][0]:.3g}, {est['ci'][1]:.3g}]")
    if not loose:
        return []
    message = f"The runs hardly determine {', '.join(loose)} ({LEVEL:.0%} intervals as wide as the estimates or wider)."
    return [warning("weakly_identified", message)]


def _misfit(analysis: "Analysis") -> list[dict[str, Any]]:
    if isinstance(analysis.noise, str) or analysis.noise.misfit.get("p", 1.0) >= SIGNIFICANT:
        return []
    test, floor = analysis.noise.misfit, analysis.noise.sd_log_loss["value"]
    message = (
        f"The law misses by more than the noise between seeds (p = {test['p']:.2g}): by about "
        f"{test['sd_log_loss']:.2%} of the loss, where single runs scatter by {floor:.2%}. No interval covers misfit."
    )
    return [warning("misfit", message, p=test["p"], sd_log_loss=test["sd_log_loss"])]


def _disagreement(analysis: "Analysis") -> list[dict[str, Any]]:
    ests = {name: pair[0] for name, pair in exponents(analysis).items()}
    ests["approach3"] = analysis.local_slope  # under the table's own C, as the other two are
    names = [name for name, est in ests.items() if est["value"] is not None and est["ci"]]
    found = []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            one, two = ests[first], ests[second]
            half = [0.5 * (est["ci"][1] - est["ci"][0]) for est in (one, two)]
            gap = abs(one["value"] - two["value"])
            if gap > np.hypot(*half):
                message = (
                    f"Approach {first[-1]} gives N* ~ C^{one['value']:.3f}, Approach {second[-1]} "
                    f"C^{two['value']:.3f}: further apart than their {LEVEL:.0%} intervals explain. Either the law "
                    "does not describe these runs, or the optima are biased (windows, schedules that are not "
                    "annealed, tuning that differs with size)."
                )
                found.append(warning("approaches_disagree", message, approaches=[first, second], gap=float(gap)))
    return found


def _extrapolation(analysis: "Analysis") -> list[dict[str, Any]]:
    table, found = analysis.table, []
    for optimum in analysis.optima:
        if optimum["N"]["value"] is None:
            message = f"At C = {flops(optimum['C'])} the law has no optimum within a factor of 10,000 of the sizes."
            found.append(warning("extrapolation", message, C=optimum["C"]))
            continue
        beyond = []
        for name, value, values_R in (
            ("C", optimum["C"], table.C_R),
            ("N", optimum["N"]["value"], table.N_R),
            ("D", optimum["D"]["value"], table.D_R),
        ):
            low, high = values_R.min(), values_R.max()
            if value > high * (1 + 1e-9) or value < low * (1 - 1e-9):
                factor = value / high if value > high else low / value
                beyond.append(f"{name} is {factor:.3g} times {'above' if value > high else 'below'} the runs'")
        if beyond:
            message = (
                f"The optimum at C = {flops(optimum['C'])} is an extrapolation: {'; '.join(beyond)}. Its intervals "
                f"suppose that the law goes on as it is."
            )
            found.append(
                warning("extrapolation", message, C=optimum["C"], factor=optimum["C"] / float(table.C_R.max()))
            )
    return found


def point_exponents(table: Table) -> dict[str, float | None]:
    """Exponents of N* without intervals, of a table with the opposite decision about its outliers."""
    fitted = fit(CHINCHILLA, Inputs(table.N_R, table.D_R), table.loss_R)
    valleys = isoflop(table)
    second = np.nan if isinstance(valleys, str) else float(valleys.N_power.exponent_B[0])
    return {"approach2": second if np.isfinite(second) else None, "approach3": _exponent(fitted.parameters)}
