"""The sentences of a report: what was done, how far it reaches, and what it does not say."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from scaling.analysis.analyze import Analysis
from scaling.analysis.fitting import STARTS
from scaling.analysis.frontier import REACH
from scaling.analysis.intervals import LEVEL, widening
from scaling.analysis.reporting.style import si
from scaling.analysis.verdicts import exponents as all_exponents
from scaling.analysis.verdicts import flops, times

STATIONARY = 1e-8  # relative gradient: below it, what is left is rounding
MINIMA = (
    "N* is the lowest point of a curve through the losses of a budget: a constant plus a falling and a rising "
    "exponential in ln N, of exponents that all budgets share, plus a smooth departure from it where the losses show "
    f"one. Brackets are {LEVEL:.0%} intervals of that point alone."
)
BIAS = (
    "The last column is by how much the minimum of one parabola in ln N through all sizes of the budget would miss N*, "
    "in closed form, for a valley of the fitted shape at these very sizes. It is not in the numbers here."
)
CHECKLIST = (
    "What Li, Kudugunta and Zettlemoyer 2025, (Mis)Fitting Scaling Laws, ask of every paper on them, in our words; "
    "filled in from the table and the analysis. What the table does not tell, its makers should."
)
WASTE = (
    "What it would cost to train the size of one approach if the other is right: the share of the compute that buys "
    "nothing, since the compute-optimal run of the same loss is cheaper by that much. The size is taken as given; the "
    "intervals are of what is supposed to be right."
)
NONE = {  # why an approach that was not skipped has no exponent
    "approach1": "no exponent: too few runs take turns on the envelope",
    "approach2": "no exponent: fewer than two budgets have a minimum inside their sizes",
    "approach3": "no exponent: the law is not one of N and D",
}
NOT_TOLD = {
    "tuned": None,
    "rule": None,
    "said": [
        "Whether the learning rates were tuned is not known to this report. A rate that suits some sizes better than "
        "others bends the exponents: in Porian et al. 2024, that of N* went from 0.71 to 0.50 as warm-up, decay, and "
        "rate and batch per size were put right."
    ],
    "rows": [],
}


def lead(analysis: Analysis) -> str:
    """Under the title: what there was to learn from."""
    table = analysis.table
    return (
        f"{len(table.N_R)} runs, {extent(table.N_R)} parameters, {extent(table.D_R)} tokens, "
        f"{flops(table.C_R.min())} to {flops(table.C_R.max())} FLOPs "
        f"(a factor of {times(table.C_R.max() / table.C_R.min())})."
    )


def extent(values_R: np.ndarray) -> str:
    """From the smallest to the largest, or that the table does not say (NaN)."""
    return "unknown" if np.isnan(values_R).any() else f"{si(values_R.min())} to {si(values_R.max())}"


def next_run(analysis: Analysis) -> str:
    """What the recommendation rests on."""
    fresh = " All tokens are new here: see below for limited data." if analysis.data_limited else ""
    return (
        "N and D minimise the fitted law (Approach 3) at the target, with FLOPs per token estimated by a smooth curve "
        f"through those of the runs ({_nearness(analysis.cost.error)}). The interval of N and D is that of "
        "the law; the interval of the loss also holds the scatter of single runs about the law, so that it is meant "
        f"for the measurement of one new run. Brackets are {LEVEL:.0%} intervals throughout.{fresh}"
    )


def _nearness(off: float) -> str:
    """How close the curve of FLOPs per token comes to the runs."""
    return f"within {off:.2%} of every run" if off >= 5e-5 else "it meets every run to rounding"


def prediction(record: dict[str, Any], unit: str) -> str:
    """What was predicted, when, and what came of it. unit: of the loss."""
    when = (
        "The loss below was predicted before the run was trained, from the other runs only; the law of this report is "
        "still fitted without it."
        if record["blind"]
        else "The run had been trained when the prediction was made; the law was fitted without it."
    )
    if record["measured"] is None:
        return f"{when} It has not been measured yet."
    error = record["measured"] / record["predicted"]["value"] - 1
    inside = record["inside"]
    fell = "" if inside is None else f" It fell {'inside' if inside else 'outside'} the {LEVEL:.0%} interval."
    side = "above" if error > 0 else "below"
    stderr = record.get("loss_stderr")
    shared = (
        f" The choice of the evaluation text gives the loss a standard error of {stderr:.4f} {unit}, which is not in "
        "the interval: all runs share that text."
        if stderr
        else ""
    )
    return f"{when} The measurement is {abs(error):.2%} {side} the predicted value.{fell}{shared}"


def exponents(analysis: Analysis) -> str:
    """How to read three exponents side by side."""
    table = analysis.table
    factor = table.C_R.max() / table.C_R.min()
    widths = {
        name: pair[0]["ci"][1] - pair[0]["ci"][0] for name, pair in all_exponents(analysis).items() if pair[0]["ci"]
    }
    wide = ", ".join(f"{width:.2f} wide in Approach {name[-1]}" for name, width in widths.items())
    text = f"The runs span a factor of {times(factor)} in compute."
    if widths:
        text += f" The {LEVEL:.0%} interval of the exponent of N* is {wide}."
    if widths and max(widths.values()) > 0.1:
        width = max(widths.values())
        text += (
            f" At 100 times the compute, an exponent known to ±{width / 2:.2f} alone leaves N* uncertain by a factor "
            f"of {100 ** (width / 2):.2g} either way: read the exponents as rough."
        )
    return text


def under(name: str, parameters: Sequence[str]) -> str:
    """What an approach's exponents are of."""
    if name == "approach1":
        return "runs on the lower envelope of all curves"
    if name == "approach2":
        return "minima of the budgets"
    formula = "beta / (alpha + beta), with C = 6ND" if {"alpha", "beta"} <= set(parameters) else "law with C = 6ND"
    return formula


def law(found: dict[str, Any], equation: str) -> str:
    """The law and its objective."""
    said = objective(found["objective"]["kind"], found["objective"]["delta"])
    return f"{equation}, fitted to {found['certificate']['rows']} rows by minimising the {said}."


def units(analysis: Analysis) -> str:
    """Units of the law's variables; those of its parameters follow."""
    named = {"N": "N in parameters", "D": "D in tokens", "U": "U in unique tokens", "C": "C in FLOPs"}
    used = [said for name, said in named.items() if name in analysis.fit.law.needs]
    said = f"L is in {analysis.table.unit}, {', '.join(used)}." if used else f"L is in {analysis.table.unit}."
    if "U" in analysis.fit.law.needs:
        said += " N' and D' are what N and D are worth when tokens are repeated."
    return said


def objective(kind: str, delta: float) -> str:
    """What is minimised: "huber_log" -> sum of Huber's losses (delta = 0.001) of the residuals of log loss."""
    rho, residuals = kind.split("_")
    said = {"huber": f"Huber's losses (delta = {delta:g})", "squares": "squares", "absolute": "absolute values"}[rho]
    return f"sum of {said} of the residuals of {'log loss' if residuals == 'log' else 'the loss'}"


def served(tokens: float) -> str:
    """What the table of runs to be served minimises."""
    return (
        "The run that reaches the loss of the compute-optimal one, on tokens that are all new, with the fewest FLOPs "
        f"for training and for serving {si(tokens)} tokens together, at a third of the FLOPs per token of training "
        "(Sardana et al. 2024). Saved: "
        "the share by which training the compute-optimal run and serving it would cost more."
    )


def setting(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {meaning}" for name, meaning in value.items())
    if isinstance(value, list):
        return "; ".join(map(setting, value)) or "none"
    if isinstance(value, float):
        return flops(value)
    return "none" if value is None else str(value)


def certified(facts: dict[str, Any]) -> str:
    """What the certificate proves, and what it does not."""
    if not facts["gradient_norm"] <= STATIONARY:
        return (
            "Not certified: the relative gradient at the end point is not zero to rounding, so that the numbers above "
            "may not be the minimum. The objective is kinked or flat there."
        )
    said = "The numbers above are a minimum, and not where an optimiser stopped: the gradient is zero to rounding."
    share = facts["share_reaching_best"]
    if share == 1:
        return f"{said} All {facts['starts']} starts end there."
    return f"{said} Of {facts['starts']} starts, {share:.0%} end there and none lower."


def certificate(found: dict[str, Any], law_entry: dict[str, Any]) -> list[tuple[str, str]]:
    """The certificate as rows of a table."""
    facts, held_out = found["certificate"], law_entry["held_out_rmse"]
    return [
        ("Objective at the optimum (sum over rows)", f"{facts['objective']:.9g}"),
        ("Relative gradient norm", f"{facts['gradient_norm']:.1e}"),
        ("Starts that reached the best value", f"{facts['share_reaching_best']:.0%} of {facts['starts']}"),
        ("Different minima found", str(facts["basins"])),
        ("Condition number (normalised)", f"{facts['condition_number']:.3g}"),
        ("Parameters at a bound", ", ".join(facts["at_bound"]) or "none"),
        ("RMSE of log loss on the largest budget, held out", "unknown" if held_out is None else f"{held_out:.2%}"),
    ]


def curves(facts: dict[str, Any]) -> list[str]:
    """What the training curves are."""
    split = f"split {facts['split']}" if facts["split"] else "no column split, all points taken as held-out losses"
    said = [f"Training curves: {facts['points']} points of {facts['runs']} runs, {split}, {facts['unit']}."]
    unused = ", ".join(f"{count} ({reason})" for reason, count in facts["unused"].items())
    return said + ([f"Points of the curves that were left out: {unused}."] if unused else [])


def exclusion(entry: dict[str, Any]) -> str:
    """What the user left out, and why."""
    rows = "1 row" if entry["rows"] == 1 else f"{entry['rows']} rows"
    return f"Excluded by {entry['expression']}, {rows}, because {entry['reason'].rstrip('.')}."


def limits(analysis: Analysis) -> list[str]:
    """What the report does not tell."""
    table = analysis.table
    factor, top = table.C_R.max() / table.C_R.min(), table.C_R.max()
    said = [
        f"The runs cover a factor of {times(factor)} in compute and end at {flops(top)} FLOPs. Beyond that, nothing "
        "was measured: the intervals suppose that the law keeps its form, and published laws have over-predicted the "
        "loss of the next budget.",
        "The intervals come from resampling these runs. They hold the noise of the runs and the scatter about the "
        "law, and not what all runs share: the data, the tokenizer, the optimizer and how its settings change with "
        "size, the schedule.",
        "An optimum here is optimal among runs made by this recipe. A size that was tuned worse than the others moves "
        "it.",
        "The loss is the mean over held-out text of one distribution. It says nothing of other text, or of what a "
        "model can do.",
    ]
    if factor < 100:
        said.insert(
            1,
            f"A factor of {factor:.3g} in compute is short for an exponent: use it to choose the next run, within "
            f"about {flops(top * factor**0.5)} FLOPs, rather than to extrapolate.",
        )
    if isinstance(analysis.noise, str):
        said.append(f"The noise of a single run is not measured apart from the misfit of the law: {analysis.noise}.")
    return said


def _intervals(analysis: Analysis) -> str:
    drawn = analysis.bootstrap
    if not len(drawn.theta_BxP):
        return "Intervals: none, since the runs are one observation."
    w = widening(drawn.clusters)
    return (
        f"Intervals: {LEVEL:.0%}, percentiles of {analysis.resamples} bootstrap resamples, seed "
        f"{analysis.seed}. Approach 3 resamples {drawn.clusters} {drawn.unit} and refits the law; distances from the "
        f"estimate are multiplied by {w:.3f}, for Student's t and the variance that a bootstrap of so few lacks. "
        "Approach 1 resamples whole curves."
    )


def methods(analysis: Analysis) -> list[str]:
    """How every number was computed, for a reader who wants to do it again."""
    said = [
        "Approach 3: exact minimum by damped Newton steps with analytic derivatives, in ln N and ln D centred on the "
        f"data, from {STARTS} starts.",
        _intervals(analysis),
        "Loss of a new run: bootstrap draws of the law times resampled residuals of log loss, centred and inflated by "
        f"sqrt(n / (n - {len(analysis.fit.law.parameters)})).",
    ]
    if analysis.cost is not None:
        said.append(
            "FLOPs per token as a function of size: least squares of log(C / (D N)) on a quadratic in log N, continued "
            f"with its end slopes beyond the runs, at most a factor of {REACH:g} away; "
            f"{_nearness(analysis.cost.error)}."
        )
    if not isinstance(analysis.isoflop, str):
        said.append(
            f"Approach 2: {analysis.isoflop.method}. Its interval comes from draws of the posterior of those curves: "
            "exponents, roughness, the noise's size, and the curves between the sizes (where rows share a run or a "
            "trunk, the noise is that cluster's residuals with a random sign). Scatter of the minima about their power "
            "law beyond that is added."
        )
    if analysis.unconverged:
        said.append(
            f"{analysis.unconverged} of {analysis.resamples} refits of the law ended on a kink or in a flat valley, "
            f"short of a stationary point; they are among the draws."
        )
    for number, draws in ((1, analysis.envelope_draws), (2, analysis.isoflop_draws)):
        if draws is not None:
            said.append(f"Approach {number}: {draws.failed} of {analysis.resamples} resamples gave no slope.")
    return said
