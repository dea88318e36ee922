"""The sections of a page on how far to trust a fit: each a function from what was found to HTML, empty where nothing
was."""

from collections.abc import Sequence
from html import escape
from typing import Any

from scaling.analysis.laws import Law
from scaling.analysis.reporting import check_words
from scaling.analysis.reporting.html import folded, prose, table
from scaling.analysis.reporting.style import si

EXPONENT = " (exponent of <i>N</i>*)"  # a, which is none of most laws' own


def identifiability(found: dict[str, Any] | None, law: Law, drawn: str) -> str:
    """What the runs determine: a verdict a parameter, and the profile curves."""
    if found is None:
        return ""
    rows = [
        [
            f"<i>{escape(verdict['name'])}</i>" + (EXPONENT if verdict["name"] not in law.parameters else ""),
            escape(check_words.number(verdict["value"])) if verdict["status"] == "identified" else "&ndash;",
            escape(check_words.interval(*verdict["interval"])),
            escape(check_words.STATUS[verdict["status"]]),
            escape(verdict["why"]) if verdict["status"] != "identified" else "&ndash;",
        ]
        for verdict in found["verdicts"]
    ]
    header = ["Parameter", "Estimate", "90% profile interval", "Verdict", "Why"]
    doubtful = any(verdict["status"] != "identified" for verdict in found["verdicts"])
    flat = prose(check_words.flat(found["flat_directions"])) if doubtful else ""
    judged = {verdict["name"] for verdict in found["verdicts"]}
    rest = [name for name in law.parameters if name not in judged]
    said = [check_words.UNJUDGED.format(names=check_words.joined(rest))] if rest else []
    return prose([check_words.PROFILES]) + drawn + table(header, rows, wordy=[0, 3, 4]) + prose(said) + flat


def selection(found: dict[str, Any] | None, reported: str, drawn: str) -> str:
    """The laws and objectives that were tried, with their errors on what was held out. reported: the answer's fit."""
    if found is None:
        return ""
    if "skipped" in found:
        return prose([f"Not compared: {found['skipped'].rstrip('.')}."])
    rows = [
        [
            escape(row["law"]) + (" <strong>(chosen)</strong>" if row["chosen"] else ""),
            escape(check_words.variant(row)),
            "&ndash;" if row["held_out_rmse"] is None else f"{row['held_out_rmse']:.2%}",
            f"{row['weight']:.2f}" if row["weight"] else "&ndash;",
        ]
        for row in found["rows"]
    ]
    header = ["Law", "Objective and weights of rows", "Held-out RMSE of log loss", "Weight in the stack"]
    forms = {row["law"]: row["equation"] for row in found["rows"]}
    named = table(["Law", "Form"], [[escape(name), escape(form)] for name, form in forms.items()], wordy=[1])
    listed = folded(f"All {len(rows)} candidates, and the forms of the laws", table(header, rows, wordy=[1]) + named)
    return "".join(prose([sentence]) for sentence in check_words.selection(found, reported)) + drawn + listed


def sensitivity(rows: Sequence[dict[str, Any]] | None, reported: dict[str, Any], drawn: str) -> str:
    """How the answer moves with what could have been chosen otherwise."""
    if not rows:
        return ""
    lines = [
        [
            escape(row["what"]),
            escape(str(row["setting"])),
            "&ndash;" if row["a"] is None else f"{row['a']:.3f}",
            "&ndash;" if row["a"] is None else f"{row['a'] - reported['value']:+.3f}",
            "&ndash;" if row["N_at_target"] is None else si(row["N_at_target"]),
        ]
        for row in rows
    ]
    header = ["Choice", "Setting", "<i>a</i>", "Change", "<i>N</i>* at the target"]
    listed = folded(f"All {len(rows)} choices", table(header, lines, wordy=[0, 1]))
    return prose([check_words.sensitivity(rows, reported)]) + drawn + listed
