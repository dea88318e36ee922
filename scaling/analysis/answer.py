"""The answer in three sentences: what to train, how far to trust that, what to do next.

The grade of the second is a rule and no judgement:
- "not settled" where a warning says that the answer may be wrong (remedies.WRONG);
- "a rough guide" where the target is more than FAR times beyond the runs, or further beyond them than they reach from
  smallest to largest; where N* is not known to a factor of LOOSE (or has no interval at all); where only one approach
  could be done, or no budget could be held out to test the law; or where the runs do not fix the exponent;
- "well supported" otherwise.
"""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from scaling.analysis import remedies
from scaling.analysis.check_words import joined
from scaling.analysis.style import si
from scaling.analysis.uncertainty import LEVEL
from scaling.analysis.verdicts import exponents, flops, times

if TYPE_CHECKING:
    from scaling.analysis.analyze import Analysis

FAR = 10.0  # of compute: further out, the form of the law matters more than its parameters
LOOSE = 4.0  # upper over lower end of the interval of N*: a factor of two either way
GRADES = {"good": "Well supported", "fair": "A rough guide", "grave": "Not settled"}
RULE = (
    "“Not settled” where a warning says that the answer may be wrong. “A rough guide” where the target is more than "
    f"{FAR:g} times beyond the runs, or further beyond them than they reach from smallest to largest; where N* is not "
    f"known to a factor of {LOOSE**0.5:g} either way; where only one approach could be done, or no budget could be "
    "held out to test the law; or where the runs do not fix the exponent of N*. “Well supported” otherwise."
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
    first = analysis.optima[0]
    if first["N"]["value"] is None or remedies.gravest(analysis.warnings):
        return "grave"
    ci = first["N"]["ci"]
    loose = ci is None or not ci[1] < LOOSE * ci[0]
    C_R = analysis.table.C_R
    far = first["C"] > min(FAR, C_R.max() / C_R.min()) * C_R.max()
    untested = len(_slopes(analysis)) < 2 or analysis.held_out_rmse is None
    return "fair" if loose or far or untested or "a" in weak_names(analysis) else "good"


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
    first = analysis.optima[0]
    N, D, loss = first["N"], first["D"], first["loss"]
    if N["value"] is None:
        return NOTHING
    return (
        f"With {flops(first['C'])} FLOPs, train {spoken(N, si)} parameters on {spoken(D, si)} tokens "
        f"({D['value'] / N['value']:.3g} tokens per parameter), and expect a loss of {spoken(loss)} "
        f"{analysis.table.unit} ({LEVEL:.0%} intervals)."
    )


def _slopes(analysis: "Analysis") -> dict[str, float]:
    """The exponent of N* by the number of its approach, all under the table's own C; only those that exist."""
    ests = {name[-1]: pair[0] for name, pair in exponents(analysis).items()}
    ests["3"] = analysis.local_slope
    return {number: est["value"] for number, est in ests.items() if est["value"] is not None}


def _agreement(analysis: "Analysis") -> str:
    slopes = _slopes(analysis)
    if len(slopes) == 1:
        return f"only Approach {next(iter(slopes))} could be done, so that nothing checks it"
    said = f"Approaches {joined(list(slopes))}"
    values = joined([f"{value:.3f}" for value in slopes.values()])
    disagree = any(warning["code"] == "approaches_disagree" for warning in analysis.warnings)
    if not disagree:
        return f"{said} agree within noise on the exponent of N* ({values})"
    C, others = analysis.optima[0]["C"], []
    for number, result in (("1", analysis.envelope), ("2", analysis.isoflop)):
        if number in slopes:
            others.append(f"{si(float(result.N_power.at([C])[0][0]))} parameters by Approach {number}")
    return f"{said} disagree on the exponent of N* ({values}); at this compute it would be {joined(others)}"


def _held_out(analysis: "Analysis") -> str:
    error = analysis.held_out_rmse
    if error is None:
        return "there are too few budgets to hold one out"
    said = f"the law fitted without the largest budget misses it by {error:.2%}"
    if analysis.selection is None or isinstance(analysis.selection, str):
        return said
    top = "that" if analysis.selection.held_out == 1 else f"the largest {analysis.selection.held_out}"
    return f"{said} (a stack of several laws misses {top} by {analysis.selection.nested_rmse:.2%})"


def _reach(analysis: "Analysis") -> str:
    factor = analysis.optima[0]["C"] / float(analysis.table.C_R.max())
    if factor <= 1 + 1e-9:
        return "the target lies within the compute of the runs"
    return f"the target has {times(factor)} times the compute of the largest run"


def _unidentified(analysis: "Analysis") -> str:
    if not analysis.verdicts:
        return ""
    weak = weak_names(analysis)
    return f"the runs do not fix {joined(weak)}" if weak else "the runs fix every parameter of the law"


def _next(analysis: "Analysis", grade: str) -> str:
    """A grave warning first; then cells that cost less than the run, where its size is in doubt; else the run."""
    found = remedies.gravest(analysis.warnings)
    if found:
        return f"Next: {found[1][0].lower()}{found[1][1:].rstrip('.')} ({found[0]['code']})."
    cells = analysis.next_cells
    if cells is not None and grade == "fair" and cells["flops"] < analysis.optima[0]["C"]:
        return f"Next: narrow it for less than the run itself; {cells['said']}"
    interval = analysis.optima[0]["loss"]["ci"]
    if interval is None:
        return "Next: train independent runs, so that there is an interval to judge a prediction by."
    return (
        f"Next: train that run; a measured loss outside {interval[0]:.3f} to {interval[1]:.3f} {analysis.table.unit} "
        "would say that the law does not go on as fitted."
    )
