"""The sentences of how far to trust a fit: what the runs determine, which law predicts best, what moves the answer."""

from collections.abc import Sequence
from typing import Any

from scaling.analysis.uncertainty import LEVEL

STATUS = {"identified": "identified", "weakly_identified": "weakly identified", "at_bound": "at its bound"}
REPORTED = "as reported"  # the first row of the sensitivity table
PROFILES = (
    f"A profile fits all other parameters anew at each value of one; its {LEVEL:.0%} interval holds the values at "
    "which the objective rises by less than the threshold. Where it does not end, the runs do not exclude values "
    "that far, and no number stands in its place."
)


def number(value: float) -> str:
    """Four significant digits, without an exponent where it reads well."""
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.3e}"


def interval(low: float | None, high: float | None) -> str:
    """between 1 and 2; at least 1; at most 2; anything."""
    if low is None and high is None:
        return "anything"
    if high is None:
        return f"at least {number(low)}"
    return f"at most {number(high)}" if low is None else f"between {number(low)} and {number(high)}"


def weak(found: dict[str, Any] | None) -> dict[str, str]:
    """What to write in the place of the estimates that the runs do not identify, by name: never a number alone."""
    verdicts = [] if found is None else found["verdicts"]
    return {
        verdict["name"]: f"{STATUS[verdict['status']]}, {interval(*verdict['interval'])}"
        for verdict in verdicts
        if verdict["status"] != "identified"
    }


def joined(words: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def flat(directions: Sequence[dict[str, Any]]) -> list[str]:
    """Which combinations of parameters the runs hardly see."""
    said = []
    for found in directions:
        weights = sorted(found["direction"].items(), key=lambda pair: -abs(pair[1]))
        parts = [f"{name} {weight:+.0%}" for name, weight in weights if abs(weight) >= 0.01]
        said.append(
            f"Small changes in the proportions {joined(parts)} cost next to nothing: along that direction the "
            f"objective curves {found['curvature_ratio']:.2g} times as much as along the steepest."
        )
    return said


OBJECTIVES = {"huber": "Huber", "squares": "least squares", "absolute": "least absolute"}


def variant(row: dict[str, Any]) -> str:
    """How a law was fitted: "Huber, rows by compute"."""
    rho, residuals = row["objective"].split("_")
    raw = "" if residuals == "log" else " of the loss itself"
    weights = "" if row["weighting"] == "equal" else f", rows by {row['weighting']}"
    return f"{OBJECTIVES[rho]}{raw}{weights}"


def selection(found: dict[str, Any]) -> list[str]:
    """What was chosen, by what, and the error of the whole procedure."""
    chosen = next(row for row in found["rows"] if row["chosen"])
    best = min(row["held_out_rmse"] for row in found["rows"] if row["held_out_rmse"] is not None)
    budgets = "budget" if found["held_out"] == 1 else f"{found['held_out']} budgets"
    said = [
        f"{len(found['rows'])} candidates, a law and an objective each, were fitted to the smaller budgets and had to "
        f"forecast the next ones. The {chosen['law']} law ({variant(chosen)}) has the least error in these forecasts. "
        f"Nested, with the stack of laws learned from the other budgets alone, the largest {budgets} are missed by "
        f"{found['nested_rmse']:.2%}, and by {found['nested_choice_rmse']:.2%} with the one law chosen from them. The "
        f"candidate that looks best in hindsight has {best:.2%}: no error to expect, since it was picked by it.",
        f"The comparison took {found['fits']} fits.",
    ]
    return said + [f"The {entry['law']} law was left out: {entry['reason']}." for entry in found["left_out"]]


def sensitivity(rows: Sequence[dict[str, Any]], reported: dict[str, Any]) -> str:
    """How far the answer moves, and what moves it most."""
    known = [row for row in rows if row["a"] is not None and row["what"] != REPORTED]
    if not known:
        return "No other choice gave an exponent to compare."
    far = max(known, key=lambda row: abs(row["a"] - reported["value"]))
    low, high = (pick(row["a"] for row in known) for pick in (min, max))
    text = (
        f"Under {len(known)} other choices the exponent of N* goes from {low:.3f} to {high:.3f}; reported is "
        f"{reported['value']:.3f}. It moves most with {far['what']}: {far['setting']} ({far['a']:.3f})."
    )
    if reported["ci"]:
        inside = sum(reported["ci"][0] <= row["a"] <= reported["ci"][1] for row in known)
        text += (
            f" {inside} of them stay inside its {LEVEL:.0%} interval, which holds the scatter of runs and none of "
            "these choices."
        )
    return text


def cells(found: dict[str, Any]) -> str:
    """What the next cells are for."""
    return f"{found['said'].rstrip('.')}. The gain is an estimate from the fitted law, made before the runs."
