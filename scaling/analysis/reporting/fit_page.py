"""The sections of a page on what was fitted: exponents, isoFLOP minima, the law, its noise, the envelope, the rates."""

from collections.abc import Sequence
from html import escape
from typing import Any

from scaling.analysis.analyze import Analysis
from scaling.analysis.reporting import check_words, noise_words, words
from scaling.analysis.reporting.html import est, flops, folded, prose, table
from scaling.analysis.reporting.style import APPROACH_NAME, si


def exponents(analysis: Analysis, report: dict[str, Any]) -> str:
    """The exponents of the three approaches side by side, and how to read them."""
    rows = []
    weak = "; weakly identified" if "a" in check_words.weak(report["identifiability"]) else ""
    for name in ("approach1", "approach2", "approach3"):
        found = report[name]
        if "skipped" in found:
            rows.append([APPROACH_NAME[name], "&ndash;", "&ndash;", escape(f"skipped: {found['skipped']}")])
        else:
            rows.append(
                [
                    APPROACH_NAME[name],
                    est(found["N_exponent"]),
                    est(found["D_exponent"]),
                    _how(name, found["N_exponent"], analysis, weak),
                ]
            )
    local = report["approach3"]["N_exponent_local"]
    how = f"local slope in the middle of the runs{weak}"
    rows.append(["Approach 3 under the table's own <i>C</i>", est(local), "&ndash;", how])
    header = ["Approach", "<i>N</i>* ∝ <i>C</i><sup>a</sup>", "<i>D</i>* ∝ <i>C</i><sup>b</sup>", "How"]
    both = ""
    for key in ("without_outliers", "with_outliers"):
        if key in report:
            other = report[key]["N_exponent"]
            said = ", ".join(f"Approach {name[-1]} {value:.3f}" for name, value in other.items() if value is not None)
            which = key.replace("_", " ").replace("outliers", "the rows marked as outliers").capitalize()
            both = f"<p>{which}, the estimates for <i>N</i>* would be (without intervals): {said}.</p>\n"
    return table(header, rows, wordy=[0, 3]) + prose([words.exponents(analysis)]) + both


def _how(name: str, est: dict[str, Any], analysis: Analysis, weak: str) -> str:
    """Where an exponent comes from, and what keeps it from being read as a number."""
    if est["value"] is None:
        return words.NONE[name]
    caveat = weak if name == "approach3" else ""
    if name == "approach1" and est["ci"] is None:
        caveat = "; weakly identified: most resamples gave no slope"
    return words.under(name, analysis.fit.law.parameters) + caveat


def waste(found: Sequence[dict[str, Any]] | None) -> str:
    """What following the wrong approach would cost."""
    if not found:
        return ""
    header = ["<i>C</i> (FLOPs)", "Train the size of", "Where right is", "<i>N</i>", "Compute wasted"]
    rows = [
        [
            flops(entry["C"]),
            f"Approach {entry['follow'][-1]}",
            f"Approach {entry['if_right'][-1]}",
            si(entry["N"]),
            est(entry["share"], "{:.1%}".format),
        ]
        for entry in found
    ]
    return "<h3>What the difference would cost</h3>\n" + prose([words.WASTE]) + table(header, rows)


def isoflop(found: dict[str, Any], drawn: str) -> str:
    """The minimum of each budget."""
    if "skipped" in found:
        return f"<p>Skipped: {escape(found['skipped'])}.</p>"
    header = ["<i>C</i> (FLOPs)", "Rows", "Minimum", "<i>N</i>*", "<i>D</i>*", "<i>D</i>*/<i>N</i>*", "Loss there"]
    biased = any(budget.get("parabola_bias") is not None for budget in found["budgets"])
    rows = [_budget(budget, biased) for budget in found["budgets"]]
    if biased:
        header.append("A parabola misses by")
    return drawn + table(header, rows) + prose([words.MINIMA, *([words.BIAS] if biased else [])])


def _budget(budget: dict[str, Any], biased: bool) -> list[str]:
    known = budget["N_opt"] is not None
    row = [
        flops(budget["C"]),
        str(budget["n"]),
        "inside" if budget["status"] == "ok" else escape(budget["status"].replace("_", " ")),
        est({"value": budget["N_opt"], "ci": budget["N_interval"]}, si),
        est({"value": budget["D_opt"], "ci": budget["D_interval"]}, si),
        f"{budget['D_opt'] / budget['N_opt']:.3g}" if known and budget["D_opt"] else "&ndash;",
        f"{budget['loss_opt']:.4f}" if known else "&ndash;",
    ]
    if biased:
        bias = budget["parabola_bias"]
        row.append("&ndash;" if bias is None else f"{bias:+.1%}")
    return row


def law(analysis: Analysis, report: dict[str, Any], drawn: str) -> str:
    """The law, what it says of each parameter, and the certificate of the fit."""
    found = report["approach3"]
    weak = check_words.weak(report["identifiability"])
    rows = [
        [f"<i>{escape(name)}</i>", escape(weak[name]) if name in weak else est(value, check_words.number)]
        for name, value in found["parameters"].items()
    ]
    certificate = [[escape(name), escape(text)] for name, text in words.certificate(found, report["laws"][0])]
    return (
        prose([words.law(found, analysis.fit.law.equation), words.units(analysis)])
        + table(["Parameter", "Estimate and 90% interval"], rows)
        + drawn
        + "<h3>The certificate of the fit</h3>\n"
        + prose([words.certified(found["certificate"])])
        + table(["Fact", "Value"], certificate, wordy=[0])
    )


def envelope(found: dict[str, Any], drawn: str) -> str:
    """Approach 1, and what to beware of in it."""
    return prose([f"Skipped: {found['skipped']}." if "skipped" in found else found["caution"]]) + drawn


def noise(analysis: Analysis, found: dict[str, Any]) -> str:
    """What single runs scatter by."""
    said = "".join(prose([sentence]) for sentence in noise_words.noise(analysis))
    if not found.get("budgets"):
        return said
    rows = [
        [flops(budget["C"]), str(budget["dof"]), est(budget["sd_log_loss"], "{:.2%}".format)]
        for budget in found["budgets"]
    ]
    return said + table(["<i>C</i> (FLOPs)", "Degrees of freedom", "Standard deviation of one run"], rows)


def rates(found: dict[str, Any]) -> str:
    """Whether the learning rates were tuned, in the caller's words, and the rates run by run."""
    said = prose(found["said"])
    if not found["rows"]:
        return said
    rows = [
        [
            escape(str(row["run"])),
            si(row["N"]),
            f"{row['batch_tokens']:,.0f}" if row["batch_tokens"] else "&ndash;",
            *(f"{row[name]:.3g}" if row[name] else "&ndash;" for name in ("peak_lr", "rule_lr", "ratio")),
        ]
        for row in found["rows"]
    ]
    header = ["Run", "<i>N</i>", "Batch (tokens)", "Peak rate", "Rate of the rule", "Ratio"]
    return said + folded(f"The rates of {len(rows)} runs", table(header, rows))
