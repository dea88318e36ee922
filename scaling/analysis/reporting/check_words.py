"""The sentences of how far to trust a fit: what the runs determine, which law predicts best, what moves the answer."""

from collections.abc import Sequence
from typing import Any

from scaling.analysis.intervals import LEVEL
from scaling.analysis.verdicts import times

STATUS = {"identified": "identified", "weakly_identified": "weakly identified", "at_bound": "at its bound"}
REPORTED = "as reported"  # the first row of the sensitivity table
PROFILES = (
    f"A profile fits all other parameters anew at each value of one; its {LEVEL:.0%} interval holds the values at "
    "which the objective rises by less than a threshold. Where it does not end, the runs do not exclude values "
    "that far, and no number stands in its place. The intervals of the fitted law come from resampled runs instead; "
    "where the two differ much, trust the wider."
)
UNJUDGED = (
    "No verdict is given on {names}: what is fitted is the size of each term within the runs, from which they follow "
    "by the exponents. They mean something only together with these."
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
            f"Parameters that change together in the proportions {joined(parts)} make next to no difference to the "
            f"fit: its objective curves {found['curvature_ratio']:.2g} times as much that way as the steepest way."
        )
    return said


OBJECTIVES = {"huber": "Huber", "squares": "least squares", "absolute": "least absolute"}


def variant(row: dict[str, Any]) -> str:
    """How a law was fitted: "Huber, rows by compute"."""
    rho, residuals = row["objective"].split("_")
    raw = "" if residuals == "log" else " of the loss itself"
    weights = "" if row["weighting"] == "equal" else f", by {row['weighting']}"
    return f"{OBJECTIVES[rho]}{raw}{weights}"


def selection(found: dict[str, Any], reported: str) -> list[str]:
    """What was chosen, by what, and the error of the whole procedure. reported: the fit of the answer."""
    chosen = next(row for row in found["rows"] if row["chosen"])
    best = min(row["held_out_rmse"] for row in found["rows"] if row["held_out_rmse"] is not None)
    budgets, top = ("budget", "it") if found["held_out"] == 1 else (f"{found['held_out']} budgets", "them")
    said = [
        f"{len(found['rows'])} candidates, each a law and a way of fitting it (by compute: each row counts in "
        "proportion to its C), were fitted to the smaller budgets and had to forecast the next ones. Over all these "
        f"forecasts the {chosen['law']} law ({variant(chosen)}) errs least. Made in the same way without the largest "
        f"{budgets}, such a choice misses {top} by {found['nested_choice_rmse']:.2%}, and a weighted mean of several "
        f"laws by {found['nested_rmse']:.2%} (root mean squares of log loss): these are errors to expect. The least in "
        f"the figure, {best:.2%}, is not: it was picked by looking.",
        f"The answer above keeps the {reported}, as asked for; what other choices make of it stands under how the "
        "answer moves.",
        f"The comparison took {found['fits']} fits.",
    ]
    return said + [f"The {entry['law']} law was left out: {entry['reason']}." for entry in found["left_out"]]


COUNTS = "N counted as"  # choices under which N, and so its exponent, is another quantity


def sensitivity(rows: Sequence[dict[str, Any]], reported: dict[str, Any]) -> str:
    """How far the answer moves, and what moves it most."""
    known = [row for row in rows if row["a"] is not None and row["what"] not in (REPORTED, COUNTS)]
    counted = [row["a"] for row in rows if row["a"] is not None and row["what"] == COUNTS]
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
    if counted:
        ends = f"{counted[0]:.3f}" if len(counted) == 1 else f"{min(counted):.3f} to {max(counted):.3f}"
        text += f" With N counted otherwise it is the exponent of another N*, and no error: {ends}."
    return text


def cells(found: dict[str, Any], C: float) -> str:
    """What the next cells are for. C: FLOPs of the run that they are to inform."""
    text = f"{found['said'].rstrip('.')}. The gain is an estimate from the fitted law, made before the runs."
    if found["flops"] > C:
        text += (
            f" Together they take {times(found['flops'] / C)} times the compute of the run itself: they are for "
            "those who go on to larger budgets, and not for this run."
        )
    return text
