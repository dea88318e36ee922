"""What to do about each warning, and how grave it is: the warnings of a report in the order in which they matter.

A warning names a fault (`code`) and its facts. What a reader needs besides is whether it can overturn the answer, and
the next thing to do about it.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

WRONG = "May make the answer wrong"
LIMIT = "Limit what these runs can tell"
KNOW = "Worth knowing"
GROUPS = (WRONG, LIMIT, KNOW)


class Remedy(NamedTuple):
    """How grave a warning is, and what to do about it: a sentence."""

    group: str
    do: str


REMEDIES = {
    "approaches_disagree": Remedy(
        WRONG,
        "Look for a pattern in the residuals, and under what moves the answer: rows far from the rest (those marked as "
        "outliers first), runs whose learning rate had not decayed, rates that suit some sizes only. Until it is "
        "settled, plan for the range between the approaches.",
    ),
    "misfit": Remedy(
        WRONG,
        "Fit another form of the law, or leave out the rows that it cannot describe with a reason, and compare what "
        "each predicts of the largest budget when it is held out.",
    ),
    "mixed_variants": Remedy(WRONG, "Analyse one variant at a time: leave the others out with --exclude."),
    "parameter_at_bound": Remedy(
        WRONG,
        "Read the law as a description of these runs only: they fit best without the term at the bound, which says "
        "that they do not show it, and not that there is none. Fit a law without it, or add runs over a wider range.",
    ),
    "extrapolation": Remedy(
        LIMIT,
        "Train one run on the way, within three to ten times the largest budget, and check that its loss falls into "
        "its interval before spending more.",
    ),
    "weakly_identified": Remedy(
        LIMIT,
        "Do not quote it as a number. To determine it, train the cells listed under what to run next, or a budget "
        "further out.",
    ),
    "too_few_points": Remedy(
        LIMIT, "Add sizes until each budget has at least five about its minimum, and budgets to three."
    ),
    "optimum_at_edge": Remedy(LIMIT, "Train two sizes beyond that edge: without them this budget says nothing."),
    "not_bracketed": Remedy(
        LIMIT, "Train a smaller and a larger size at this budget, until the lowest loss is between others."
    ),
    "correlated_rows": Remedy(
        LIMIT, "Nothing is wrong; independent runs narrow the intervals, and more checkpoints of the same runs do not."
    ),
    "outliers": Remedy(
        KNOW, "Compare the exponents with and without them, and say in print which were used and why they were marked."
    ),
    "duplicate_rows": Remedy(KNOW, "Remove them if one run was exported twice; keep them if two runs gave one loss."),
    "six_nd_assumed": Remedy(
        KNOW, "Give a column C with the FLOPs of each run: for small models, 6ND is off by the head and the attention."
    ),
    "nothing_excluded": Remedy(KNOW, "Check the expression: it names no row of this table."),
}


# Of warnings whose code says too little: what to do depends on their facts.
NEAR = Remedy(LIMIT, "Note this interval of the loss before the run is trained, and hold the measurement against it.")
REPEATED = Remedy(
    LIMIT,
    "Do not read it as a number: only runs that repeat their tokens more often tell what repeated tokens are worth. An "
    "optimum on tokens that are all new does not depend on it.",
)
NO_SLOPE = {
    1: "Do not quote this exponent. Curves of more sizes and longer runs would make more crossings for the envelope.",
    2: "Do not quote this exponent. Add sizes on both sides of the minima, or budgets.",
    3: "Take the law's intervals as rough: a wider range of sizes and tokens would fix it.",
}
STOP = 10.0  # times the largest budget: up to here the run itself is the test, and one on the way is no cheaper


def grouped(warnings: Sequence[dict[str, Any]]) -> list[tuple[str, list[tuple[dict[str, Any], str]]]]:
    """[(group, [(warning, what to do)])] by falling gravity; groups without a warning are left out. A code that is not
    in REMEDIES limits what the runs can tell, with nothing to do about it but to read it."""
    found = []
    for group in GROUPS:
        inside = [(warning, _remedy(warning).do) for warning in warnings if _remedy(warning).group == group]
        if inside:
            found.append((group, inside))
    return found


def gravest(warnings: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], str] | None:
    """The first warning that may make the answer wrong, by the order of REMEDIES, and what to do about it."""
    order = list(REMEDIES)
    grave = [warning for warning in warnings if _remedy(warning).group == WRONG]
    if not grave:
        return None
    first = min(grave, key=lambda warning: order.index(warning["code"]))
    return first, _remedy(first).do


def _remedy(warning: dict[str, Any]) -> Remedy:
    code = warning["code"]
    if code == "extrapolation" and warning.get("factor", math.inf) <= STOP:
        return NEAR
    if code == "parameter_at_bound" and set(warning.get("parameters", {"E"})) <= {"R_D", "R_N"}:
        return REPEATED
    if code == "weakly_identified" and warning.get("approach") in NO_SLOPE:
        return Remedy(LIMIT, NO_SLOPE[warning["approach"]])
    if code == "weakly_identified" and set(warning.get("parameters", {"E"})) <= {"R_D", "R_N"}:
        return REPEATED
    return REMEDIES.get(code, Remedy(LIMIT, ""))
