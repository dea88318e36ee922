"""What stands below the figures of a report."""

from scaling.analysis.analyze import Analysis
from scaling.analysis.curves import SPLIT

# In the order of the page.
CAPTIONS = {
    "optima": (
        "Compute-optimal parameters and tokens against compute. Lines are the approaches, bands their 90% intervals "
        "(a line without a band has none), dots the minima of the budgets. Grey: beyond the largest "
        "budget that was run."
    ),
    "isoflop": (
        "Loss against model size, one colour a budget. Thick curves are the fits that locate the minima "
        "(stars); thin lines only join the runs. A cross marks a lowest point that is not an optimum."
    ),
    "surface": (
        "The fitted loss over compute and size. Contours are in {unit}, evenly spaced in the logarithm of the "
        "reducible loss; the line joins the points of lowest loss at each compute.{fresh}"
    ),
    "residuals": (
        "Measured loss over the loss of the law, run by run. Scatter is noise; a pattern in compute or size is "
        "misfit, which no interval here covers. Colour: parameters."
    ),
    "profiles": (
        "The objective along each parameter, all others fitted anew at every point, over the rise that ends the 90% "
        "interval (dotted). Shaded: the interval. Orange and dashed: a parameter that these runs do not fix."
    ),
    "held_out": (
        "Error of each law on the largest budgets, fitted to the smaller ones only. Filled: has a part in the weighted "
        "mean of laws; ringed: the one law that would be chosen, by its forecasts from all smaller budgets."
    ),
    "sensitivity": (
        "The exponent of N* when one choice of the analysis is made otherwise. The line is the exponent reported, the "
        "band its 90% interval."
    ),
    "envelope": (
        "Held-out loss{split} on the way against compute spent, one line a run. Dotted: the lowest loss reached so "
        "far by any run. Black: where a run lowers it with smaller and larger sizes in the race, the points that "
        "Approach 1 uses."
    ),
    "curves": "Held-out loss{split} on the way against tokens trained on, one line a run; dots are the final losses.",
}


def caption(name: str, analysis: Analysis) -> str:
    """What stands below a figure."""
    split = "" if analysis.curves is None or analysis.curves.split in ("", SPLIT) else f" ({analysis.curves.split})"
    fresh = " All tokens new." if "U" in analysis.fit.law.needs else ""
    return CAPTIONS[name].format(unit=analysis.table.unit, split=split, fresh=fresh)
