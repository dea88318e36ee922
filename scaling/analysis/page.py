"""report.html: one file that opens anywhere, with every figure inside it and nothing fetched, scripted or hidden."""

import json
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from scaling.analysis import words
from scaling.analysis.analyze import Analysis
from scaling.analysis.style import APPROACH_NAME, si

CSS = """
:root { --ink: #1c1c1c; --soft: #5c5c5c; --line: #dcdcdc; --paper: #fdfdfc; --card: #ffffff; --note: #f4f3ef;
  --mark: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e4df; --soft: #a5a29b; --line: #3a3936; --paper: #1a1a19; --card: #ffffff; --note: #262523;
    --mark: #6db6e8; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 "Charter", "Iowan Old Style", "Source Serif 4", "Georgia", "Cambria", serif; }
main { max-width: 50rem; margin: 0 auto; padding: 3rem 1.25rem 5rem; }
h1, h2, h3, th, .label, figcaption, .code { font-family: "Inter", "Helvetica Neue", "Segoe UI", "Arial", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; letter-spacing: -0.01em; margin: 3rem 0 .6rem; padding-top: 1rem; border-top: 1px solid
var(--line); } p, ul { margin: .6rem 0; } li { margin: .3rem 0; }
.lead { color: var(--soft); margin: 0 0 1.6rem; }
.answer { background: var(--note); border-left: 3px solid var(--mark); padding: .9rem 1.2rem; margin: 1.2rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-size: .88rem; font-variant-numeric: tabular-nums
lining-nums; } th { text-align: right; font-weight: 600; font-size: .76rem; color: var(--soft); vertical-align: bottom;
} td { text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.words { white-space: normal; text-align: left; } th.words { text-align: left; }
th, td { padding: .34rem .6rem; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 1.5px solid var(--soft); }
.ci { color: var(--soft); }
figure { margin: 1.4rem 0; break-inside: avoid; }
figure .plot { background: var(--card); border-radius: 4px; padding: .6rem; }
figure svg { display: block; width: 100%; max-width: 44rem; height: auto; margin: 0 auto; }
figcaption { font-size: .82rem; line-height: 1.45; color: var(--soft); margin-top: .5rem; }
.code { font-size: .72rem; color: var(--soft); border: 1px solid var(--line); border-radius: 3px;
  padding: .05rem .35rem; white-space: nowrap; }
pre { font-size: .78rem; line-height: 1.4; overflow-x: auto; background: var(--note); padding: .8rem 1rem; }
summary { cursor: pointer; } .hash { overflow-wrap: anywhere; }
sup { line-height: 0; }
@media print {
  :root { --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --note: #f4f3ef; --mark: #0072b2; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } h2, table { break-after: avoid; } tr { break-inside:
avoid; } }
"""


def page(
    analysis: Analysis,
    report: dict[str, Any],
    runs: Sequence[dict[str, Any]],
    figures: dict[str, str],
    title: str,
    notes: Sequence[str],
) -> str:
    """The whole page. report: the content of report.json; runs: of next_run.json; figures: SVG text by name."""
    sections = [
        ("", _head(analysis, title)),
        ("What to run next", _next(analysis, runs)),
        ("The prediction, put to the test", _prediction(report.get("prediction"))),
        ("How the optimum grows with compute", _exponents(analysis, report) + _figure("optima", figures)),
        ("IsoFLOP minima (Approach 2)", _isoflop(report["approach2"], figures)),
        ("The fitted law (Approach 3)", _law(report["approach3"], report["laws"][0], figures)),
        ("The envelope of the training curves (Approach 1)", _envelope(report["approach1"], figures)),
        ("Warnings", _warnings(analysis)),
        ("What this does not tell you", _list(words.limits(analysis))),
        ("The data", _data(report["data"], notes)),
        ("How it was computed", _list(words.methods(analysis))),
    ]
    body = "\n".join((f"<h2>{heading}</h2>\n" if heading else "") + text for heading, text in sections if text)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def inline_svg(text: str, name: str) -> str:
    """An SVG document as an element of a page: no XML prologue, no metadata, and identifiers of its own."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", text)
    label = escape(words.CAPTIONS[name].split(".")[0], quote=True)
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{label}">', text, count=1
    )


def _figure(name: str, figures: dict[str, str]) -> str:
    if name not in figures:
        return ""
    caption = escape(words.CAPTIONS[name])
    drawing = inline_svg(figures[name], name)
    return f'<figure><div class="plot">{drawing}</div><figcaption>{caption}</figcaption></figure>\n'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], wordy: Sequence[int] = ()) -> str:
    """A table of cells that are HTML already; columns in `wordy` hold prose."""
    kind = ['class="words"' if i in wordy else "" for i in range(len(header))]
    head = "".join(f"<th {k}>{cell}</th>" for k, cell in zip(kind, header, strict=True))
    lines = ["".join(f"<td {k}>{cell}</td>" for k, cell in zip(kind, row, strict=True)) for row in rows]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines).replace("<td >", "<td>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'.replace(
        "<th >", "<th>"
    )


def flops(value: float) -> str:
    """5e11 -> 5 x 10^11 in HTML."""
    mantissa, exponent = f"{value:.2e}".split("e")
    ten = f"10<sup>{int(exponent)}</sup>"
    return ten if float(mantissa) == 1 else f"{float(mantissa):g}&thinsp;&times;&thinsp;{ten}"


def est(value: dict[str, Any], say: Any = "{:.3f}".format) -> str:
    """An EST in HTML: the value, and its interval behind it."""
    if value["value"] is None:
        return "&ndash;"
    if value["ci"] is None:
        return f'{say(value["value"])} <span class="ci">(no interval)</span>'
    low, high = (say(x) for x in value["ci"])
    return f'{say(value["value"])} <span class="ci">[{low}, {high}]</span>'


def _list(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>\n" for sentence in sentences) + "</ul>\n"


def _head(analysis: Analysis, title: str) -> str:
    return f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(words.lead(analysis))}</p>\n'


def _next(analysis: Analysis, runs: Sequence[dict[str, Any]]) -> str:
    if not runs:
        return "<p>The law has no optimum within reach of the sizes tried, so that nothing can be recommended.</p>"
    first = runs[0]
    answer = (
        f"At {flops(first['target_flops'])} FLOPs: <strong>{si(first['N']['value'])} parameters on "
        f"{si(first['D']['value'])} tokens</strong>, {first['tokens_per_parameter']:.3g} tokens per parameter. "
        f"Expected loss {est(first['loss'])} nats per token."
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
        f"<details><summary>The configuration for {flops(run['target_flops'])} FLOPs</summary>"
        f"<pre>{escape(json.dumps(run['run'], indent=2))}</pre></details>\n"
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


def _isoflop(found: dict[str, Any], figures: dict[str, str]) -> str:
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
    return _figure("isoflop", figures) + table(header, rows) + method


def _law(found: dict[str, Any], law: dict[str, Any], figures: dict[str, str]) -> str:
    parameters = found["parameters"]
    rows = [[f"<i>{escape(name)}</i>", est(value, words.parameter)] for name, value in parameters.items()]
    certificate = [[escape(name), escape(text)] for name, text in words.certificate(found, law)]
    return (
        f"<p>{escape(words.law(found))}</p>\n"
        + table(["Parameter", "Estimate and 90&nbsp;% interval"], rows)
        + _figure("surface", figures)
        + _figure("residuals", figures)
        + f"<p>{escape(words.CERTIFICATE)}</p>\n"
        + table(["Certificate of the fit", ""], certificate)
    )


def _envelope(found: dict[str, Any], figures: dict[str, str]) -> str:
    said = f"Skipped: {found['skipped']}." if "skipped" in found else found["caution"]
    return f"<p>{escape(said)}</p>\n" + _figure("envelope", figures) + _figure("curves", figures)


def _warnings(analysis: Analysis) -> str:
    if not analysis.warnings:
        return "<p>None.</p>"
    lines = "".join(
        f'<li><span class="code">{escape(warning["code"])}</span> {escape(warning["message"])}</li>\n'
        for warning in analysis.warnings
    )
    return f"<ul>{lines}</ul>\n"


def _data(data: dict[str, Any], notes: Sequence[str]) -> str:
    facts = [f"{data['used']} of {data['rows']} rows were used."]
    facts += [f"{name}: {meaning}." for name, meaning in data["conventions"].items()]
    facts += [note.rstrip(".") + "." for note in notes]
    dropped = ""
    if data["dropped"]:
        rows = [[str(drop["row"]), escape(drop["reason"])] for drop in data["dropped"]]
        dropped = (
            f"<details><summary>{len(rows)} rows were left out, and why</summary>"
            f"{table(['Row (from 0)', 'Reason'], rows, wordy=[1])}</details>\n"
        )
    return _list(facts) + dropped + f'<p class="hash">SHA-256 of the table: {escape(data["sha256"])}</p>\n'
