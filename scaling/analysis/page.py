"""report.html: one file that opens anywhere, with every figure inside it and nothing fetched, scripted or hidden."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from scaling.analysis import words
from scaling.analysis.analyze import Analysis
from scaling.analysis.html import bullets, document, est, figure, flops, folded, sections, table
from scaling.analysis.style import APPROACH_NAME, si


def page(
    analysis: Analysis,
    report: dict[str, Any],
    runs: Sequence[dict[str, Any]],
    figures: dict[str, str],
    title: str,
    notes: Sequence[str],
) -> str:
    """The whole page. report: the content of report.json; runs: of next_run.json; figures: SVG text by name, as
    many as there are."""
    drawn = {name: figure(svg, name, words.caption(name, analysis)) for name, svg in figures.items()}
    parts = [
        ("", _head(analysis, title)),
        ("What to run next", _next(analysis, runs)),
        ("The prediction, put to the test", _prediction(report.get("prediction"))),
        ("How the optimum grows with compute", _exponents(analysis, report) + drawn.get("optima", "")),
        ("IsoFLOP minima (Approach 2)", _isoflop(report["approach2"], drawn)),
        ("The fitted law (Approach 3)", _law(report["approach3"], report["laws"][0], drawn)),
        ("The noise floor", _noise(analysis, report["noise"])),
        ("The envelope of the training curves (Approach 1)", _envelope(report["approach1"], drawn)),
        ("Learning rates", _rates(report["learning_rates"])),
        ("Warnings", _warnings(analysis)),
        ("What this does not tell you", bullets(words.limits(analysis))),
        ("The data", _data(report["data"], notes)),
        ("How it was computed", bullets(words.methods(analysis))),
    ]
    return document(title, sections(parts))


def _head(analysis: Analysis, title: str) -> str:
    return f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(words.lead(analysis))}</p>\n'


def _next(analysis: Analysis, runs: Sequence[dict[str, Any]]) -> str:
    if not runs:
        return "<p>The law has no optimum within reach of the sizes tried, so that nothing can be recommended.</p>"
    first = runs[0]
    answer = (
        f"At {flops(first['target_flops'])} FLOPs: <strong>{si(first['N']['value'])} parameters on "
        f"{si(first['D']['value'])} tokens</strong>, {first['tokens_per_parameter']:.3g} tokens per parameter. "
        f"Expected loss {est(first['loss'])} {analysis.table.unit}."
    )
    rows = [
        [
            flops(run["target_flops"]),
            est(run["N"], si),
            est(run["D"], si),
            f"{run['tokens_per_parameter']:.3g}",
            est(run["loss"]),
            f"{run['extrapolation_factor']:.3g}",
        ]
        for run in runs
    ]
    header = [
        "Target <i>C</i> (FLOPs)",
        "<i>N</i>",
        "<i>D</i>",
        "<i>D</i>/<i>N</i>",
        "Loss",
        "Target over largest <i>C</i>",
    ]
    configs = "".join(
        folded(
            f"The configuration for {flops(run['target_flops'])} FLOPs",
            f"<pre>{escape(json.dumps(run['run'], indent=2))}</pre>",
        )
        for run in runs
        if run.get("run") is not None
    )
    text = escape(words.next_run(analysis))
    return f'<div class="answer">{answer}</div>\n{table(header, rows)}<p>{text}</p>\n{configs}'


def _prediction(prediction: dict[str, Any] | None) -> str:
    if prediction is None:
        return ""
    measured = prediction["measured"]
    shown = "not measured yet" if measured is None else f"{measured:.4f}"
    verdict = {None: "&ndash;", True: "inside the interval", False: "outside the interval"}[prediction["inside"]]
    row = [
        escape(str(prediction["run"])),
        flops(prediction["C"]),
        si(prediction["N"]),
        si(prediction["D"]),
        est(prediction["predicted"], "{:.4f}".format),
        shown,
        verdict,
    ]
    header = ["Run", "<i>C</i> (FLOPs)", "<i>N</i>", "<i>D</i>", "Predicted loss", "Measured loss", "Verdict"]
    return f"<p>{escape(words.prediction(prediction))}</p>\n{table(header, [row])}"


def _exponents(analysis: Analysis, report: dict[str, Any]) -> str:
    rows = []
    for name in ("approach1", "approach2", "approach3"):
        found = report[name]
        if "skipped" in found:
            rows.append([APPROACH_NAME[name], "&ndash;", "&ndash;", escape(f"skipped: {found['skipped']}")])
        else:
            rows.append([APPROACH_NAME[name], est(found["N_exponent"]), est(found["D_exponent"]), words.UNDER[name]])
    local = report["approach3"]["N_exponent_local"]
    how = "local slope in the middle of the runs"
    rows.append(["Approach 3 under the table's own <i>C</i>", est(local), "&ndash;", how])
    header = ["", "<i>N</i>* ∝ <i>C</i><sup>a</sup>", "<i>D</i>* ∝ <i>C</i><sup>b</sup>", "how"]
    both = ""
    for key in ("without_outliers", "with_outliers"):
        if key in report:
            other = report[key]["N_exponent"]
            said = ", ".join(f"Approach {name[-1]} {value:.3f}" for name, value in other.items() if value is not None)
            both = f"<p>{key.replace('_', ' ').capitalize()}, the exponents of <i>N</i>* would be: {said}.</p>\n"
    return table(header, rows, wordy=[3]) + f"<p>{escape(words.exponents(analysis))}</p>\n" + both


def _isoflop(found: dict[str, Any], drawn: dict[str, str]) -> str:
    if "skipped" in found:
        return f"<p>Skipped: {escape(found['skipped'])}.</p>"
    rows = [
        [
            flops(budget["C"]),
            str(budget["n"]),
            escape(budget["status"].replace("_", " ")),
            si(budget["N_opt"]) if budget["N_opt"] else "&ndash;",
            si(budget["D_opt"]) if budget["D_opt"] else "&ndash;",
            f"{budget['D_opt'] / budget['N_opt']:.3g}" if budget["N_opt"] else "&ndash;",
            f"{budget['loss_opt']:.4f}" if budget["loss_opt"] else "&ndash;",
        ]
        for budget in found["budgets"]
    ]
    header = ["<i>C</i> (FLOPs)", "Runs", "Status", "<i>N</i>*", "<i>D</i>*", "<i>D</i>*/<i>N</i>*", "Loss at minimum"]
    method = f"<p>Method: {escape(found['method'])}.</p>\n"
    return drawn.get("isoflop", "") + table(header, rows) + method


def _law(found: dict[str, Any], law: dict[str, Any], drawn: dict[str, str]) -> str:
    parameters = found["parameters"]
    rows = [[f"<i>{escape(name)}</i>", est(value, words.parameter)] for name, value in parameters.items()]
    certificate = [[escape(name), escape(text)] for name, text in words.certificate(found, law)]
    return (
        f"<p>{escape(words.law(found))}</p>\n"
        + table(["Parameter", "Estimate and 90&nbsp;% interval"], rows)
        + drawn.get("surface", "")
        + drawn.get("residuals", "")
        + f"<p>{escape(words.CERTIFICATE)}</p>\n"
        + table(["Certificate of the fit", ""], certificate)
    )


def _envelope(found: dict[str, Any], drawn: dict[str, str]) -> str:
    said = f"Skipped: {found['skipped']}." if "skipped" in found else found["caution"]
    return f"<p>{escape(said)}</p>\n" + drawn.get("envelope", "") + drawn.get("curves", "")


def _warnings(analysis: Analysis) -> str:
    if not analysis.warnings:
        return "<p>None.</p>"
    lines = "".join(
        f'<li><span class="code">{escape(warning["code"])}</span> {escape(warning["message"])}</li>\n'
        for warning in analysis.warnings
    )
    return f"<ul>{lines}</ul>\n"


def _noise(analysis: Analysis, found: dict[str, Any]) -> str:
    said = "".join(f"<p>{escape(sentence)}</p>\n" for sentence in words.noise(analysis))
    if not found.get("budgets"):
        return said
    rows = [
        [flops(budget["C"]), str(budget["dof"]), est(budget["sd_log_loss"], "{:.2%}".format)]
        for budget in found["budgets"]
    ]
    return said + table(["<i>C</i> (FLOPs)", "Degrees of freedom", "Standard deviation of one run"], rows)


def _rates(rates: dict[str, Any]) -> str:
    said = f"<p>{escape(' '.join(rates['said']))}</p>\n"
    if not rates["rows"]:
        return said
    rows = [
        [
            escape(str(row["run"])),
            si(row["N"]),
            f"{row['batch_tokens']:,.0f}" if row["batch_tokens"] else "&ndash;",
            *(f"{row[name]:.3g}" if row[name] else "&ndash;" for name in ("peak_lr", "rule_lr", "ratio")),
        ]
        for row in rates["rows"]
    ]
    header = ["Run", "<i>N</i>", "Batch (tokens)", "Peak rate", "Rate of the rule", "Ratio"]
    return said + folded(f"The rates of {len(rows)} runs", table(header, rows))


def _data(data: dict[str, Any], notes: Sequence[str]) -> str:
    facts = [f"{data['used']} of {data['rows']} rows were used."]
    facts += [f"{name}: {meaning}." for name, meaning in data["conventions"].items()]
    facts += words.curves(data["curves"]) if data["curves"] else []
    facts += [words.exclusion(entry) for entry in data["excluded"]]
    facts += [note.rstrip(".") + "." for note in notes]
    dropped = ""
    if data["dropped"]:
        reasons = dict.fromkeys(drop["reason"] for drop in data["dropped"])
        rows = [
            [_ranges([drop["row"] for drop in data["dropped"] if drop["reason"] == reason]), escape(reason)]
            for reason in reasons
        ]
        dropped = folded(
            f"{len(data['dropped'])} rows were left out, and why",
            table(["Rows (from 0)", "Reason"], rows, wordy=[0, 1]),
        )
    return bullets(facts) + dropped + f'<p class="hash">SHA-256 of the table: {escape(data["sha256"])}</p>\n'


def _ranges(rows: Sequence[int]) -> str:
    """Rising numbers of rows: 0-6, 28."""
    starts = [row for k, row in enumerate(rows) if k == 0 or rows[k - 1] != row - 1]
    ends = [row for k, row in enumerate(rows) if k == len(rows) - 1 or rows[k + 1] != row + 1]
    spans = zip(starts, ends, strict=True)
    return ", ".join(f"{start}" if start == end else f"{start}&ndash;{end}" for start, end in spans)
