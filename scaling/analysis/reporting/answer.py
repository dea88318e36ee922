"""The answer in three sentences: what to train, how far to trust that, what to do next.

The grade of the second is a rule and no judgement:
- "not settled" where a warning says that the answer may be wrong (remedies.WRONG);
- "a rough guide" where the target is more than FAR times beyond the runs, or further beyond them than they reach from
  smallest to largest; where N* is not known to a factor of LOOSE (or has no interval at all); where fewer than two
  approaches have an interval of the exponent narrower than WIDE, which anything else would agree with; where no budget
  could be held out to test the law, or the law misses it by more than MISS, or by more than WORSE times what several
  laws together do; or where the runs do not fix the exponent;
- "well supported" otherwise.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from scaling.analysis.intervals import LEVEL, interval
from scaling.analysis.reporting import remedies
from scaling.analysis.reporting.check_words import joined
from scaling.analysis.reporting.style import si
from scaling.analysis.uncertainty import estimate
from scaling.analysis.verdicts import exponents, flops, times

if TYPE_CHECKING:
    from scaling.analysis.analyze import Analysis

FAR = 10.0  # of compute: further out, the form of the law matters more than its parameters
LOOSE = 4.0  # upper over lower end of the interval of N*: a factor of two either way
WIDE = 0.5  # of an interval of an exponent between 0 and 1
MISS = 0.05  # of the loss: between two budgets it falls by about as much
WORSE = 2.0  # of held-out errors: where laws together do that much better, this one or its fit is at fault
GRADES = {"good": "Well supported", "fair": "A rough guide", "grave": "Not settled"}
RULE = (
    "“Not settled” where a warning says that the answer may be wrong. “A rough guide” where the target is more than "
    f"{FAR:g} times beyond the runs, or further beyond them than they reach from smallest to largest; where N* is not "
    f"known to a factor of {LOOSE**0.5:g} either way; where fewer than two approaches have an interval of the exponent "
    f"narrower than {WIDE:g}; where no budget could be held out to test the law, or the law misses it by more than "
    f"{MISS:.0%}, or by more than {WORSE:g} times what several laws together do; or where the runs do not fix the "
    "exponent of N*. “Well supported” otherwise."
)
TERMS = (
    "N: parameters of a model; D: tokens it is trained on; C: FLOPs of its training; N* and D*: those of the lowest "
    "loss at a given C, with exponents a and b: N* ~ C^a, D* ~ C^b. Approach 1 reads N* off the envelope of training "
    "curves, Approach 2 off the lowest point of each budget's losses, Approach 3 off a law fitted to all runs "
    f"(Hoffmann et al. 2022); the answer is Approach 3's. Brackets are {LEVEL:.0%} intervals."
)
NO_RUN = "Next: read below what the runs fix of its parameters; for a run to train, fit a law of N and D."
NOTHING = "The law has no optimum within reach of the sizes tried, so that nothing can be recommended."


class Answer(NamedTuple):
    """Three sentences, and the grade of the second."""

    train: str
    trust: str
    next: str
    grade: Literal["good", "fair", "grave"]


def answer(analysis: "Analysis") -> Answer:
    """The answer at the first target."""
    grade = graded(analysis)
    if not analysis.optima:
        said = f"The {analysis.fit.law.name} law is not one of N and D alone, and so has no compute-optimal run."
        return Answer(said, f"{GRADES[grade]}: {_held_out(analysis)}.", NO_RUN, grade)
    reasons = [
        sentence
        for sentence in (_agreement(analysis), _held_out(analysis), _reach(analysis), _unidentified(analysis))
        if sentence
    ]
    return Answer(_train(analysis), f"{GRADES[grade]}: {'; '.join(reasons)}.", _next(analysis, grade), grade)


def graded(analysis: "Analysis") -> Literal["good", "fair", "grave"]:
    """How far the answer at the first target can be trusted, by the rule above."""
    if not analysis.optima:
        return "grave"
    first = recommended(analysis)
    if first["N"]["value"] is None or remedies.gravest(analysis.warnings):
        return "grave"
    ci = first["N"]["ci"]
    loose = ci is None or not ci[1] < LOOSE * ci[0]
    C_R = analysis.table.C_R
    far = first["C"] > min(FAR, C_R.max() / C_R.min()) * C_R.max()
    sharp = [est for est in _slopes(analysis).values() if est["ci"][1] - est["ci"][0] < WIDE]
    untested = len(sharp) < 2 or analysis.held_out_rmse is None or analysis.held_out_rmse > MISS
    doubtful = loose or far or untested or _outdone(analysis) or "a" in weak_names(analysis)
    return "fair" if doubtful else "good"


def recommended(analysis: "Analysis") -> dict[str, Any]:
    """The optimum at the first target; that with limited data where a limit was given and moves it."""
    limited = [entry for entry in analysis.data_limited[:1] if entry["binds"]]
    return limited[0] if limited else analysis.optima[0]


def per_parameter(N: dict[str, Any], D: dict[str, Any]) -> dict[str, Any]:
    """EST of D / N at one compute, where D falls as N rises: each end of its interval is made of opposite ends."""
    if N["value"] is None:
        return estimate(float("nan"))
    ci = None
    if N["ci"] and D["ci"]:
        ci = [D["ci"][0] / N["ci"][1], D["ci"][1] / N["ci"][0]]
    return {"value": D["value"] / N["value"], "ci": ci, "level": N["level"]}


def spoken(est: dict[str, Any], say: Any = "{:.3f}".format) -> str:
    """An EST as text: 0.512 [0.483, 0.541]."""
    if est["value"] is None:
        return "unknown"
    interval = " (no interval)" if est["ci"] is None else " [{}, {}]".format(*map(say, est["ci"]))
    return say(est["value"]) + interval


def weak_names(analysis: "Analysis") -> list[str]:
    """The parameters that the runs do not fix."""
    return [verdict.name for verdict in analysis.verdicts if verdict.status != "identified"]


def _train(analysis: "Analysis") -> str:
    first = recommended(analysis)
    N, D, loss = first["N"], first["D"], first["loss"]
    if N["value"] is None:
        return NOTHING
    given, ratio = f"{flops(first['C'])} FLOPs", f"{spoken(per_parameter(N, D), '{:.3g}'.format)} tokens per parameter"
    if "epochs" in first:
        given += f" and {si(first['unique_tokens'])} unique tokens"
        ratio = f"{spoken(first['epochs'], '{:.3g}'.format)} epochs, {ratio}"
    return (
        f"With {given}, train {spoken(N, si)} parameters on {spoken(D, si)} tokens ({ratio}), and expect a loss of "
        f"{spoken(loss)} {analysis.table.unit} ({LEVEL:.0%} intervals){_served(analysis)}."
    )


def _served(analysis: "Analysis") -> str:
    """What to train instead where tokens will be served and training tokens are not limited."""
    for entry in analysis.inference[:1]:
        if entry["N"]["value"] is not None and "epochs" not in recommended(analysis):
            return (
                f"; to serve {si(entry['inference_tokens'])} tokens as well, {spoken(entry['N'], si)} parameters on "
                f"{spoken(entry['D'], si)} tokens reach the compute-optimal run's loss with the fewest FLOPs in all"
            )
    return ""


def _slopes(analysis: "Analysis") -> dict[str, dict[str, Any]]:
    """EST of the exponent of N* by the number of its approach, all under the table's own C; only those with an
    interval: a number without one checks nothing."""
    ests = {name[-1]: pair[0] for name, pair in exponents(analysis).items()}
    ests["3"] = analysis.local_slope
    return {number: est for number, est in ests.items() if est["ci"] is not None}


def _agreement(analysis: "Analysis") -> str:
    slopes, apart = _slopes(analysis), disagreeing(analysis.warnings)
    if not (apart or slopes):
        return "no approach has an interval"
    if not apart and len(slopes) == 1:
        return f"only Approach {next(iter(slopes))} gives an exponent with an interval, so that nothing checks it"
    numbers = apart or list(slopes)
    said = f"Approaches {joined(numbers)}"
    values = joined([spoken(slopes[number]) for number in numbers if number in slopes] or ["without intervals"])
    if not apart:
        return f"{said} agree within noise on the exponent of N* ({values})"
    others = [
        f"{spoken(est, si)} parameters by Approach {number}"
        for number, est in sizes(analysis).items()
        if number in apart
    ]
    at = f"; at this compute it would be {joined(others)}" if others else ""
    return f"{said} disagree on the exponent of N* ({values}){at}"


def disagreeing(warnings: Sequence[dict[str, Any]]) -> list[str]:
    """Numbers of the approaches that were found to disagree with one another."""
    found = {
        name[-1] for entry in warnings if entry["code"] == "approaches_disagree" for name in entry.get("approaches", ())
    }
    return sorted(found)


def sizes(analysis: "Analysis") -> dict[str, dict[str, Any]]:
    """EST of N* at the first target by Approaches 1 and 2, where they have one."""
    C, found = [analysis.target_flops[0]], {}
    if analysis.envelope_draws is not None:
        value, draws_B = (power.at(C)[:, 0] for power in (analysis.envelope.N_power, analysis.envelope_draws.N_power))
        found["1"] = interval(value[0], draws_B, clusters=len(analysis.curves.names), positive=True)
    if analysis.isoflop_draws is not None:
        value, draws_B = (power.at(C)[:, 0] for power in (analysis.isoflop.N_power, analysis.isoflop_draws.N_power))
        found["2"] = estimate(value[0], draws_B)
    return {number: est for number, est in found.items() if est["value"] is not None}


def _outdone(analysis: "Analysis") -> bool:
    """Whether several laws together predict what was held out so much better that this fit is at fault."""
    found, error = analysis.selection, analysis.held_out_rmse
    if found is None or isinstance(found, str) or error is None:
        return False
    return error > WORSE * found.nested_rmse


def _held_out(analysis: "Analysis") -> str:
    error = analysis.held_out_rmse
    if error is None:
        return "there are too few budgets to hold one out"
    said = f"the law fitted without the largest budget misses it by {error:.2%} (root mean square"
    if analysis.selection is None or isinstance(analysis.selection, str):
        return f"{said})"
    top = "that" if analysis.selection.held_out == 1 else f"the largest {analysis.selection.held_out}"
    said += f"; several laws together miss {top} by {analysis.selection.nested_rmse:.2%})"
    return f"{said}, so that this fit is in doubt" if _outdone(analysis) else said


def _reach(analysis: "Analysis") -> str:
    factor = analysis.optima[0]["C"] / float(analysis.table.C_R.max())
    if factor <= 1 + 1e-9:
        return "the target lies within the compute of the runs"
    return f"the target has {times(factor)} times the compute of the largest run"


def _unidentified(analysis: "Analysis") -> str:
    if not analysis.verdicts:
        return ""
    weak = weak_names(analysis)
    names = [_named(analysis, name) for name in weak or [verdict.name for verdict in analysis.verdicts]]
    return f"the runs {'do not fix' if weak else 'fix'} {joined(names)}"


def _named(analysis: "Analysis", name: str) -> str:
    """A parameter in words: "a" is no parameter of most laws."""
    return name if name != "a" or "a" in analysis.fit.law.parameters else "the exponent of N*"


def _next(analysis: "Analysis", grade: str) -> str:
    """A grave warning first; then cells that cost less than the run, where its size is in doubt; else the run."""
    found = remedies.gravest(analysis.warnings)
    if found and found[0]["code"] == "approaches_disagree":
        return _settle(analysis)
    if found:
        return f"Next: {found[1][0].lower()}{found[1][1:]}"
    cells = analysis.next_cells
    if isinstance(cells, dict) and grade == "fair" and cells["flops"] < analysis.optima[0]["C"]:
        return f"Next: narrow it for less than the run itself; {cells['said']}"
    interval = recommended(analysis)["loss"]["ci"]
    if interval is None:
        return "Next: train independent runs, so that there is an interval to judge a prediction by."
    return (
        f"Next: train that run; a measured loss outside {interval[0]:.3f} to {interval[1]:.3f} {analysis.table.unit} "
        "would say that the law does not go on as fitted."
    )


def _settle(analysis: "Analysis") -> str:
    """What to do where the approaches disagree, and what to plan for until then."""
    if analysis.table.outliers == "kept":
        first = "analyse again without the rows marked as outliers (--drop_outliers); if that does not settle it,"
    else:
        first = "before spending this compute,"
    said = (
        f"Next: {first} look for a pattern in the residuals, for runs whose learning rate had not decayed at their "
        "end, and for rates that suit some sizes only"
    )
    said += _forecaster(analysis)
    found = [recommended(analysis)["N"], *sizes(analysis).values()]
    values = [est["value"] for est in found if est["value"] is not None]
    if len(values) > 1:
        said += f"; until that is settled, plan for any size from {si(min(values))} to {si(max(values))} parameters"
    return f"{said}."


def _forecaster(analysis: "Analysis") -> str:
    """What the law that forecasts best, fitted as it does, makes of the exponent, where the report fits another way."""
    if analysis.selection is None or isinstance(analysis.selection, str):
        return ""
    best = analysis.selection.choice.candidate
    if best.law.name != analysis.fit.law.name:
        said, what, setting = f"of the laws tried, {best.law.name} forecasts best", "law", best.law.name
    elif best.weighting == "compute":
        said, what, setting = "the law forecasts best with rows weighted in proportion to compute", "weighting", ""
    else:
        return ""
    for row in analysis.sensitivity:
        if row["what"] == what and row["setting"].startswith(setting) and row["a"] is not None:
            return f"; {said}, and gives an exponent of {row['a']:.3f} (no interval)"
    return ""
