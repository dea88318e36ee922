"""The sentences of a report: what was done, how far it reaches, and what it does not say."""

from typing import Any

from scaling.analysis.analyze import Analysis
from scaling.analysis.curves import SPLIT
from scaling.analysis.fitting import STARTS
from scaling.analysis.frontier import REACH
from scaling.analysis.isoflop import METHOD
from scaling.analysis.style import si
from scaling.analysis.uncertainty import LEVEL
from scaling.analysis.verdicts import SIGNIFICANT, flops
from scaling.analysis.verdicts import exponents as all_exponents

CAPTIONS = {
    "optima": (
        "Compute-optimal parameters and tokens against compute. Lines are the approaches, bands their 90 % bootstrap "
        "intervals, dots the measured isoFLOP minima. Grey: beyond the largest budget that was run."
    ),
    "isoflop": (
        "Loss against model size, one colour a budget. Thick curves are the local parabolas that locate the minima "
        "(stars); thin lines only join the runs. A red cross marks a lowest point that is not an optimum."
    ),
    "surface": (
        "The fitted loss over compute and size. Contours are in {unit}, evenly spaced in the logarithm of the "
        "reducible loss; the line joins the points of lowest loss at each compute."
    ),
    "residuals": (
        "Measured loss over the loss of the law, run by run. Scatter is noise; a pattern in compute or size is "
        "misfit, which no interval here covers."
    ),
    "envelope": (
        "Held-out loss{split} on the way against compute spent, one line a run. Dotted: the lowest loss reached so "
        "far by any run. Black: where a run lowers it with smaller and larger sizes in the race, the points that "
        "Approach 1 uses."
    ),
    "curves": "Held-out loss{split} on the way against tokens trained on, one line a run; dots are the final losses.",
}
UNDER = {
    "approach1": "runs on the lower envelope of all curves",
    "approach2": "minima of the budgets",
    "approach3": "beta / (alpha + beta), that is under C = 6ND",
}
CERTIFICATE = (
    "That the numbers above are the minimum, and not where an optimiser stopped: the relative gradient at the end "
    "point is zero to rounding, and independent starts end at the same place."
)


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


def caption(name: str, analysis: Analysis) -> str:
    """What stands below a figure."""
    split = "" if analysis.curves is None or analysis.curves.split in ("", SPLIT) else f" ({analysis.curves.split})"
    return CAPTIONS[name].format(unit=analysis.table.unit, split=split)


def lead(analysis: Analysis) -> str:
    """Under the title: what there was to learn from."""
    table = analysis.table
    return (
        f"{len(table.N_R)} runs, {si(table.N_R.min())} to {si(table.N_R.max())} parameters, {si(table.D_R.min())} to "
        f"{si(table.D_R.max())} tokens, {flops(table.C_R.min())} to {flops(table.C_R.max())} FLOPs "
        f"(a factor of {table.C_R.max() / table.C_R.min():.3g})."
    )


def next_run(analysis: Analysis) -> str:
    """What the recommendation rests on."""
    return (
        "N and D minimise the fitted law (Approach 3) at the target, with FLOPs per token estimated by a smooth curve "
        f"through those of the runs (within {analysis.cost.error:.1%} of each). The interval of N and D is that of "
        "the law; the interval of the loss also holds the scatter of single runs about the law, so that it is meant "
        f"for the measurement of one new run. Brackets are {LEVEL:.0%} intervals throughout."
    )


def prediction(record: dict[str, Any]) -> str:
    """What was predicted, when, and what came of it."""
    when = (
        "The loss below was predicted before the run was trained, from the other runs only."
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
    shared = f" Its standard error over the evaluation text, {stderr:.4f}, is shared by all runs." if stderr else ""
    return f"{when} The measurement is {abs(error):.2%} {side} the predicted value.{fell}{shared}"


def exponents(analysis: Analysis) -> str:
    """How to read three exponents side by side."""
    table = analysis.table
    factor = table.C_R.max() / table.C_R.min()
    widths = {
        name: pair[0]["ci"][1] - pair[0]["ci"][0] for name, pair in all_exponents(analysis).items() if pair[0]["ci"]
    }
    wide = ", ".join(f"{width:.2f} wide in Approach {name[-1]}" for name, width in widths.items())
    text = (
        f"The runs span a factor of {factor:.3g} in compute. The {LEVEL:.0%} interval of the exponent of N* is {wide}."
    )
    if widths and max(widths.values()) > 0.1:
        width = max(widths.values())
        text += (
            f" An exponent known to ±{width / 2:.2f} leaves N* uncertain by a factor of {100 ** (width / 2):.2g} "
            "either way 100 times beyond the runs, and more from where the law is less certain: read the exponents "
            "as rough."
        )
    return text


def parameter(value: float) -> str:
    """Four significant digits, without an exponent where it reads well."""
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.3e}"


def law(found: dict[str, Any]) -> str:
    """The law and its objective."""
    objective = found["objective"]
    return (
        "L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022), fitted by the sum of Huber losses of the residuals "
        f"of log loss with delta = {objective['delta']:g}, over {found['certificate']['rows']} runs."
    )


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


def noise(analysis: Analysis) -> list[str]:
    """What single runs scatter by, and whether the law misses by more."""
    found = analysis.noise
    if isinstance(found, str):
        return [
            f"Not measured: {found}. The residuals about the law hold the noise of single runs and the misfit of the "
            "law together, and nothing here tells one from the other."
        ]
    low, high = found.sd_log_loss["ci"]
    said = [
        f"{found.replicates} runs repeat {found.settings} settings with other seeds ({found.dof} degrees of freedom). "
        f"About the mean of its setting, a run's loss has a standard deviation of {found.sd_log_loss['value']:.2%} "
        f"[{low:.2%}, {high:.2%}], or {found.sd_loss['value']:.4f} {found.unit}, pooled over settings: the noise "
        f"floor. The difference of two single runs has {2**0.5:.2f} times that."
    ]
    if found.residual_rms is not None:
        ratio = found.residual_rms / found.sd_log_loss["value"]
        said.append(
            f"All runs scatter about the law by {found.residual_rms:.2%} (root mean square of the residuals of log "
            f"loss, adjusted for its parameters), {ratio:.2g} times as much."
        )
    said += _misfit(found.misfit)
    if found.differ:
        said.append(
            f"The runs taken as replicates agree in {', '.join(found.agree)}. They differ in {', '.join(found.differ)} "
            "as well: if one of these is a setting, they are no replicates."
        )
    return said


def _misfit(test: dict[str, Any]) -> list[str]:
    if "skipped" in test:
        return [f"Whether the law misses by more than noise was not tested: {test['skipped']}."]
    numbers = "F({}, {}) = {:.3g}, p = {:.2g}".format(*test["dof"], test["F"], test["p"])
    how = "a test of lack of fit by least squares, which supposes normal noise, in proportion to the loss"
    if test["p"] < SIGNIFICANT:
        return [
            f"The law misses by more than this noise: {numbers} ({how}). Beyond the noise, its misfit has a standard "
            f"deviation of about {test['sd_log_loss']:.2%} of the loss."
        ]
    return [
        f"No misfit beyond this noise is detected: {numbers} ({how}). That does not prove that there is none: with "
        f"these numbers of runs, F up to {test['critical_F']:.2f} would pass."
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
        f"The runs cover a factor of {factor:.3g} in compute and end at {flops(top)} FLOPs. Beyond that, nothing was "
        "measured: the intervals suppose that the law keeps its form, and published laws have over-predicted the "
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


def methods(analysis: Analysis) -> list[str]:
    """How every number was computed, for a reader who wants to do it again."""
    said = [
        "Approach 3: exact minimum by damped Newton steps with analytic derivatives, in ln N and ln D centred on the "
        f"data, from {STARTS} starts.",
        f"Approach 2: {METHOD}. Its interval comes from residuals of the local parabolas, each divided by what the "
        "fit leaves of unit noise, pooled over budgets and resampled; the sizes of a budget stay as they were "
        "designed. Scatter of the minima about their power law beyond that noise is added.",
        f"Intervals: {LEVEL:.0%} percentile intervals of {analysis.resamples} bootstrap resamples, seed "
        f"{analysis.seed}. Approaches 1 and 3 resample whole clusters of runs (a trunk, else a run, else a row) and "
        "refit.",
        "Loss of a new run: bootstrap draws of the law times resampled residuals of log loss, centred and inflated by "
        "sqrt(n / (n - 5)).",
        "FLOPs per token as a function of size: least squares of log(C / (D N)) on a quadratic in log N, continued "
        f"with its end slopes beyond the runs, at most a factor of {REACH:g} away; within {analysis.cost.error:.2%} "
        "of every run.",
    ]
    if analysis.unconverged:
        said.append(
            f"{analysis.unconverged} of {analysis.resamples} refits of the law ended on a kink or in a flat valley, "
            f"short of a stationary point; they are among the draws."
        )
    for number, draws in ((1, analysis.envelope_draws), (2, analysis.isoflop_draws)):
        if draws is not None:
            said.append(f"Approach {number}: {draws.failed} of {analysis.resamples} resamples gave no slope.")
    return said
