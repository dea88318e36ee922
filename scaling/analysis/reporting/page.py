"""report.html: one file that opens anywhere, with every figure inside it and nothing fetched, scripted or hidden.

The answer and what may be wrong with it come first, then what was fitted and how far to trust it, then all that it
takes to do it again.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

from scaling.analysis.analyze import Analysis
from scaling.analysis.reporting import captions, check_page, check_words, fit_page, next_page, remedies, words
from scaling.analysis.reporting.answer import answer
from scaling.analysis.reporting.html import bullets, contents, document, figure, folded, prose, sections, table


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
    drawn = _drawn(analysis, figures)

    def show(*names: str) -> str:
        return "".join(drawn.get(name, "") for name in names)

    parts = [
        ("The answer in three sentences", next_page.answer(answer(analysis))),
        ("Warnings, and what to do about them", _warnings(analysis)),
        ("What to run next", next_page.next_runs(analysis, runs) if analysis.optima else ""),
        ("With limited data", next_page.limited(report["data_limited"], analysis.table.unit)),
        ("When the model will be served", next_page.served(report["inference"], analysis.table.unit)),
        ("The prediction, put to the test", next_page.prediction(report.get("prediction"), analysis.table.unit)),
        (
            "How the optimum grows with compute",
            fit_page.exponents(analysis, report) + show("optima") + fit_page.waste(report["waste"]),
        ),
        ("IsoFLOP minima (Approach 2)", fit_page.isoflop(report["approach2"], show("isoflop"))),
        ("The fitted law (Approach 3)", fit_page.law(analysis, report, show("surface", "residuals"))),
        (
            "What the runs determine",
            check_page.identifiability(report["identifiability"], analysis.fit.law, show("profiles")),
        ),
        ("Which law predicts best", check_page.selection(report["selection"], _fitted(analysis), show("held_out"))),
        (
            "How the answer moves",
            check_page.sensitivity(report["sensitivity"], analysis.local_slope, show("sensitivity")),
        ),
        ("The noise floor", fit_page.noise(analysis, report["noise"])),
        (
            "The envelope of the training curves (Approach 1)",
            fit_page.envelope(report["approach1"], show("envelope", "curves")),
        ),
        ("Learning rates", fit_page.rates(report["learning_rates"])),
        ("What this does not tell you", bullets(words.limits(analysis))),
        ("The data", _data(report["data"], notes)),
        ("How it was computed", bullets(words.methods(analysis)) + _settings(report)),
        ("Reporting checklist", _checklist(report["checklist"])),
    ]
    head = f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(words.lead(analysis))}</p>\n'
    # The contents stand behind the answer: who reads no further has read that.
    return document(title, head + sections(parts[:1]) + contents(parts[1:]) + sections(parts[1:]))


def _fitted(analysis: Analysis) -> str:
    """The fit of the answer: "chinchilla law (Huber)"."""
    how = check_words.variant({"objective": analysis.fit.objective.kind, "weighting": "equal"})
    return f"{analysis.fit.law.name} law ({how})"


def _drawn(analysis: Analysis, figures: dict[str, str]) -> dict[str, str]:
    """Each figure with its caption, numbered in the order of the page."""
    order = [name for name in captions.CAPTIONS if name in figures]
    return {
        name: figure(figures[name], name, captions.caption(name, analysis), number)
        for number, name in enumerate(order, start=1)
    }


def _warnings(analysis: Analysis) -> str:
    if not analysis.warnings:
        return prose(["None."])
    parts = []
    for group, found in remedies.grouped(analysis.warnings):
        lines = "".join(
            f'<li><span class="code">{escape(warning["code"])}</span> {escape(warning["message"])} '
            f'<span class="do">{escape(do)}</span></li>\n'
            for warning, do in found
        )
        kind = ' class="grave"' if group == remedies.WRONG else ""
        parts.append(f"<h3{kind}>{group}</h3>\n<ul>{lines}</ul>\n")
    return "".join(parts)


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
            "1 row was left out, and why"
            if len(data["dropped"]) == 1
            else f"{len(data['dropped'])} rows left out, and why",
            table(["Rows (from 0)", "Reason"], rows, wordy=[0, 1]),
        )
    return bullets(facts) + dropped + f'<p class="hash">SHA-256 of the table: {escape(data["sha256"])}</p>\n'


def _ranges(rows: Sequence[int]) -> str:
    """Rising numbers of rows: 0-6, 28."""
    starts = [row for k, row in enumerate(rows) if k == 0 or rows[k - 1] != row - 1]
    ends = [row for k, row in enumerate(rows) if k == len(rows) - 1 or rows[k + 1] != row + 1]
    spans = zip(starts, ends, strict=True)
    return ", ".join(f"{start}" if start == end else f"{start}&ndash;{end}" for start, end in spans)


def _settings(report: dict[str, Any]) -> str:
    rows = [
        [escape(name.replace("_", " ")), escape(words.setting(value))]
        for part in ("settings", "versions")
        for name, value in report[part].items()
    ]
    return "<h3>Settings and versions</h3>\n" + table(["Setting", "Value"], rows, wordy=[1])


def _checklist(items: Sequence[dict[str, str]]) -> str:
    text = prose([words.CHECKLIST])
    for part in dict.fromkeys(entry["part"] for entry in items):
        rows = [[escape(entry["item"]), escape(entry["value"])] for entry in items if entry["part"] == part]
        text += f"<h3>{escape(part)}</h3>\n" + table(["Item", "Value"], rows, wordy=[0, 1])
    return text
