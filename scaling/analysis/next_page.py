"""The sections of a page on what to do: the answer, the next runs, and what became of a prediction."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from scaling.analysis import check_words, words
from scaling.analysis.analyze import Analysis
from scaling.analysis.answer import GRADES, NOTHING, RULE, Answer
from scaling.analysis.html import est, flops, folded, prose, table
from scaling.analysis.style import si
from scaling.analysis.verdicts import times

SHOWN = 8  # rows of a table that is not folded


def answer(found: Answer) -> str:
    """The three sentences, with the grade of the second in colour and in words."""
    grade = GRADES[found.grade]
    rest = found.trust.removeprefix(grade)
    return (
        f'<div class="answer {found.grade}"><p><strong>{escape(found.train)}</strong></p>\n'
        f'<p><span class="grade">{grade}</span>{escape(rest)}</p>\n<p>{escape(found.next)}</p></div>\n'
        + folded("How the grade is given", prose([RULE]))
    )


def next_runs(analysis: Analysis, runs: Sequence[dict[str, Any]]) -> str:
    """The run at each target, its configuration where there is one, and what the recommendation rests on."""
    if not runs:
        return prose([NOTHING])
    header = [
        "Target <i>C</i> (FLOPs)",
        "<i>N</i>",
        "<i>D</i>",
        "<i>D</i>/<i>N</i>",
        f"Loss ({analysis.table.unit})",
        "Target over largest <i>C</i>",
    ]
    rows = [
        [
            flops(run["target_flops"]),
            est(run["N"], si),
            est(run["D"], si),
            f"{run['tokens_per_parameter']:.3g}",
            est(run["loss"]),
            times(run["extrapolation_factor"]),
        ]
        for run in runs
    ]
    configs = "".join(
        folded(
            f"The configuration for {flops(run['target_flops'])} FLOPs",
            f"<pre>{escape(json.dumps(run['run'], indent=2))}</pre>",
        )
        for run in runs
        if run.get("run") is not None
    )
    return table(header, rows) + prose([words.next_run(analysis)]) + configs + _cells(analysis.next_cells)


def _cells(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    rows = [[flops(cell["C"]), si(cell["N"]), si(cell["D"]), f"{cell['D'] / cell['N']:.3g}"] for cell in found["cells"]]
    listed = table(["<i>C</i> (FLOPs)", "<i>N</i>", "<i>D</i>", "<i>D</i>/<i>N</i>"], rows) if rows else ""
    if len(rows) > SHOWN:
        listed = folded(f"The {len(rows)} cells, the best first", listed)
    return "<h3>Cells that would narrow this answer most</h3>\n" + prose([check_words.cells(found)]) + listed


def limited(found: Sequence[dict[str, Any]] | None) -> str:
    """The optimum at each target when there are only so many unique tokens."""
    if not found:
        return ""
    header = ["Target <i>C</i> (FLOPs)", "<i>N</i>", "<i>D</i>", "Epochs", "Loss", "Limit binds"]
    rows = [
        [
            flops(entry["C"]),
            est(entry["N"], si),
            est(entry["D"], si),
            est(entry["epochs"], "{:.2f}".format),
            est(entry["loss"]),
            "yes" if entry["binds"] else "no",
        ]
        for entry in found
    ]
    first = found[0]
    return prose([f"With {si(first['unique_tokens'])} unique tokens. Repeated ones: {first['basis']}."]) + table(
        header, rows
    )


def served(found: Sequence[dict[str, Any]] | None) -> str:
    """The cheapest run at each target's loss, training and serving together."""
    if not found:
        return ""
    header = ["Target <i>C</i> (FLOPs)", "<i>N</i>", "<i>D</i>", "Loss", "FLOPs in all", "Saved"]
    rows = [
        [
            flops(entry["C"]),
            est(entry["N"], si),
            est(entry["D"], si),
            est(entry["loss"]),
            "&ndash;" if entry["total_flops"]["value"] is None else flops(entry["total_flops"]["value"]),
            est(entry["saved"], "{:.1%}".format),
        ]
        for entry in found
    ]
    return prose([words.served(found[0]["inference_tokens"])]) + table(header, rows)


def prediction(record: dict[str, Any] | None) -> str:
    """A prediction that was made earlier, beside the measurement."""
    if record is None:
        return ""
    measured = record["measured"]
    shown = "not measured yet" if measured is None else f"{measured:.4f}"
    verdict = {None: "&ndash;", True: "inside the interval", False: "outside the interval"}[record["inside"]]
    row = [
        escape(str(record["run"])),
        flops(record["C"]),
        si(record["N"]),
        si(record["D"]),
        est(record["predicted"], "{:.4f}".format),
        shown,
        verdict,
    ]
    header = ["Run", "<i>C</i> (FLOPs)", "<i>N</i>", "<i>D</i>", "Predicted loss", "Measured loss", "Verdict"]
    return prose([words.prediction(record)]) + table(header, [row])
