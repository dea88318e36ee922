"""What a reader must know before believing a number: the warnings of an analysis, in plain words."""

from typing import TYPE_CHECKING, Any

import numpy as np

from scaling.analysis import identifiability
from scaling.analysis.disagreement import Disagreement
from scaling.analysis.fitting import Fit, fit
from scaling.analysis.intervals import LEVEL, interval
from scaling.analysis.isoflop import isoflop
from scaling.analysis.laws import Law, inputs_of
from scaling.analysis.pinning import PAIRS
from scaling.analysis.resampling import FEW
from scaling.analysis.table import Table, warning
from scaling.analysis.uncertainty import estimate

if TYPE_CHECKING:
    from scaling.analysis.analyze import Analysis

FAILED = 0.05  # share of resamples
SIGNIFICANT = 0.05  # of the test of lack of fit


CAUSES = (
    "Either the law does not describe these runs, or the optima are biased (schedules that are not annealed, tuning "
    "that differs with size, outliers)."
)


def warnings(analysis: "Analysis") -> list[dict[str, Any]]:
    """All warnings of an analysis beyond those of its table."""
    return [
        *_correlated(analysis),
        *_budgets(analysis),
        *_resamples(analysis),
        *identifiability.warnings(analysis.verdicts),
        *_misfit(analysis),
        *_disagreement(analysis),
        *_extrapolation(analysis),
    ]


def flops(value: float) -> str:
    """5e11 rather than 5e+11."""
    return f"{value:.3g}".replace("e+", "e")


def times(factor: float) -> str:
    """How many times: 2.5, 33.3, 1,670."""
    return f"{factor:.3g}" if factor < 999.5 else f"{float(f'{factor:.3g}'):,.0f}"


def exponents(analysis: "Analysis") -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """EST of the exponents of N*(C) and D*(C) by approach: "approach1" .. "approach3"; only those that exist."""
    found = {}
    first, second = analysis.envelope_draws, analysis.isoflop_draws
    if first is not None:
        curves = len(analysis.curves.names)
        found["approach1"] = tuple(
            interval(power.exponent_B[0], drawn.exponent_B, clusters=curves)
            for power, drawn in ((analysis.envelope.N_power, first.N_power), (analysis.envelope.D_power, first.D_power))
        )
    if second is not None:
        found["approach2"] = tuple(
            estimate(power.exponent_B[0], drawn.exponent_B)
            for power, drawn in ((analysis.isoflop.N_power, second.N_power), (analysis.isoflop.D_power, second.D_power))
        )
    law, centre = analysis.fit.law, analysis.fit.centre
    if law_exponent(law, analysis.fit.parameters) is not None:
        found["approach3"] = (
            analysis.est(lambda theta_BxP: law_exponent(law, law.natural(theta_BxP, centre))),
            analysis.est(lambda theta_BxP: 1 - law_exponent(law, law.natural(theta_BxP, centre))),
        )
    return found


def law_exponent(law: Law, parameters: dict[str, Any]) -> Any:
    """The exponent of N*(C) under C = 6ND, beta / (alpha + beta) (Hoffmann et al. 2022, eq. 4).

    One half for a law with one exponent of N and D; None for a law that gives no N* and D*; NaN where both exponents
    are zero. Of floats or arrays.
    """
    if not law.allocates:
        return None
    for size, data in PAIRS:
        if {size, data} <= parameters.keys():
            with np.errstate(invalid="ignore"):
                return np.divide(parameters[data], np.add(parameters[size], parameters[data]))
    return 0.5 + 0.0 * next(iter(parameters.values()))


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
    if clusters < FEW:
        message += f" So few (below {FEW}) tell little of their own spread: the intervals are those of a jackknife."
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
            rest = "it has no interval" if 2 * draws.failed > analysis.resamples else "its interval is the others'"
            message = f"{draws.failed} of {analysis.resamples} resamples gave Approach {number} no slope: {rest}."
            found.append(warning("weakly_identified", message, approach=number, failed=draws.failed))
    if analysis.unconverged > FAILED * analysis.resamples:
        message = (
            f"{analysis.unconverged} of {analysis.resamples} refits of the law did not end at a stationary point: the "
            f"objective is flat or kinked there, and the runs hardly determine the law."
        )
        found.append(warning("weakly_identified", message, approach=3, failed=analysis.unconverged))
    return found


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
    """Approach 2 against the law by the paired test; Approach 1 against both by their intervals."""
    ests = {name: pair[0] for name, pair in exponents(analysis).items()}
    ests["approach3"] = analysis.local_slope  # under the table's own C, as the other two are
    known = {name: est for name, est in ests.items() if est["value"] is not None and est["ci"]}
    found = _tested(analysis.disagreement) if analysis.disagreement else []
    one = known.pop("approach1", None)
    for name, two in known.items() if one else ():
        half = [0.5 * (est["ci"][1] - est["ci"][0]) for est in (one, two)]
        gap = abs(one["value"] - two["value"])
        if gap > np.hypot(*half):
            message = (
                f"Approach 1 gives N* ~ C^{one['value']:.3f}, Approach {name[-1]} C^{two['value']:.3f}: further apart "
                f"than their {LEVEL:.0%} intervals explain. {CAUSES}"
            )
            found.append(warning("approaches_disagree", message, approaches=["approach1", name], gap=float(gap)))
    return found


def _tested(test: Disagreement) -> list[dict[str, Any]]:
    if not test.p < SIGNIFICANT:  # NaN: the law puts its optima beyond the sizes
        return [] if np.isfinite(test.p) else [_elsewhere()]
    message = (
        f"Approach 2 gives N* ~ C^{test.data:.3f} on the runs, and C^{test.law:.3f} on the losses that the law of "
        f"Approach 3 has for the same runs: noise alone makes such a gap with probability {test.p:.2g}. {CAUSES}"
    )
    return [warning("approaches_disagree", message, approaches=["approach2", "approach3"], gap=abs(test.gap), p=test.p)]


def _elsewhere() -> dict[str, Any]:
    message = (
        "The law of Approach 3 puts the optima of the budgets beyond the sizes that were run, where Approach 2 finds "
        f"them among these. {CAUSES}"
    )
    return warning("approaches_disagree", message, approaches=["approach2", "approach3"], gap=None, p=None)


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
                end = "the largest" if value > high else "below the smallest"
                beyond.append(f"{name} is {times(factor)} times {end} of the runs")
        if beyond:
            message = (
                f"The optimum at C = {flops(optimum['C'])} is an extrapolation: {'; '.join(beyond)}. Its intervals "
                f"suppose that the law goes on as it is."
            )
            found.append(
                warning("extrapolation", message, C=optimum["C"], factor=optimum["C"] / float(table.C_R.max()))
            )
    return found


def point_exponents(table: Table, fitted: Fit) -> dict[str, float | None]:
    """Exponents of N* without intervals, of a table with the opposite decision about its outliers.

    fitted: the law and the objective to fit.
    """
    other = fit(fitted.law, inputs_of(table, fitted.law), table.loss_R, fitted.objective)
    valleys = isoflop(table)
    second = None if isinstance(valleys, str) else valleys.N_power.exponent_B[0]
    third = law_exponent(other.law, other.parameters)
    return {
        name: float(value) if value is not None and np.isfinite(value) else None
        for name, value in (("approach2", second), ("approach3", third))
    }
