"""The sections of a page on what to do: the answer, the next runs, and what became of a prediction."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from scaling.analysis.analyze import Analysis
from scaling.analysis.reporting import check_words, words
from scaling.analysis.reporting.answer import GRADES, NOTHING, RULE, TERMS, Answer, per_parameter
from scaling.analysis.reporting.html import est, flops, folded, prose, table
from scaling.analysis.reporting.style import si
from scaling.analysis.verdicts import times

SHOWN = 8  # rows of a table that is not folded


def answer(found: Answer) -> str:
    """The three sentences, with the grade of the second in colour and in words."""
    grade = GRADES[found.grade]
    rest = found.trust.removeprefix(grade)
    return (
        f'<div class="answer {found.grade}"><p><strong>{escape(found.train)}</strong></p>\n'
        f'<p><span class="grade">{grade}</span>{escape(rest)}</p>\n<p>{escape(found.next)}</p></div>\n'
        + folded("What the words mean, and how the grade is given", prose([TERMS]) + prose([RULE]))
    )


def next_runs(analysis: Analysis, runs: Sequence[dict[str, Any]]) -> str:
    """The run at each target, its configuration where there is one, and what the recommendation rests on."""
    if not runs:
        return prose([NOTHING])
    header = [
        "<i>C</i> (FLOPs)",
        "<i>N</i>",
        "<i>D</i>",
        "<i>D</i>/<i>N</i>",
        f"Loss ({analysis.table.unit})",
        "Loss by several laws",
        "<i>C</i> over largest",
    ]
    several = len({run["purpose"] for run in runs}) > 1
    header = ["Run for", *header] if several else header
    rows = [
        [
            *([escape(run["purpose"])] if several else []),
            flops(run["target_flops"]),
            est(run["N"], si),
            est(run["D"], si),
            est(per_parameter(run["N"], run["D"]), "{:.3g}".format),
            est(run["loss"]),
            "&ndash;" if run["loss_stacked"] is None else est(run["loss_stacked"]),
            times(run["extrapolation_factor"]),
        ]
        for run in runs
    ]
    configs = "".join(
        folded(
            f"The configuration for {run['purpose']}, {flops(run['target_flops'])} FLOPs: {configuration(run['run'])}",
            f"<pre>{escape(json.dumps(run['run'], indent=2))}</pre>",
        )
        for run in runs
        if run.get("run") is not None
    )
    cells = _cells(analysis.next_cells, analysis.optima[0]["C"])
    return table(header, rows) + configs + prose([words.next_run(analysis)]) + cells


def configuration(run: dict[str, Any]) -> str:
    """A configuration in a line: "d_model 48, n_layers 3, 6,873 steps of 8 times 64 tokens, peak_lr 0.00868".

    What it does not hold is left out.
    """
    shape = run.get("model", run)
    said = [f"{name} {shape[name]:,}" for name in ("d_model", "n_layers") if name in shape]
    length = run.get("data", {}).get("sequence_length")
    if "steps" in run and "batch_size" in run and length:
        said.append(f"{run['steps']:,} steps of {run['batch_size']:,} times {length:,} tokens")
    peak = run.get("optimizer", {}).get("peak_lr")
    return ", ".join([*said, f"peak_lr {peak:.3g}"] if peak else said)


def _cells(found: dict[str, Any] | str, C: float) -> str:
    if isinstance(found, str):
        return prose([f"No further cells are proposed: {found}."])
    rows = [[flops(cell["C"]), si(cell["N"]), si(cell["D"]), f"{cell['D'] / cell['N']:.3g}"] for cell in found["cells"]]
    listed = table(["<i>C</i> (FLOPs)", "<i>N</i>", "<i>D</i>", "<i>D</i>/<i>N</i>"], rows) if rows else ""
    if len(rows) > SHOWN:
        listed = folded(f"The {len(rows)} cells, the best first", listed)
    return "<h3>Cells that would narrow this answer most</h3>\n" + prose([check_words.cells(found, C)]) + listed


def limited(found: Sequence[dict[str, Any]] | None, unit: str) -> str:
    """The optimum at each target when there are only so many unique tokens. unit: of the loss."""
    if not found:
        return ""
    header = ["Target <i>C</i> (FLOPs)", "<i>N</i>", "<i>D</i>", "Epochs", f"Loss ({unit})", "Limit binds"]
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
    said = [f"With {si(first['unique_tokens'])} unique tokens.", f"Repeated tokens count {first['basis']}."]
    return prose(said) + table(header, rows)


def served(found: Sequence[dict[str, Any]] | None, unit: str) -> str:
    """The cheapest run at each target's loss, training and serving together. unit: of the loss."""
    if not found:
        return ""
    header = ["Target <i>C</i> (FLOPs)", "<i>N</i>", "<i>D</i>", f"Loss ({unit})", "FLOPs in all", "Saved"]
    rows = [
        [
            flops(entry["C"]),
            est(entry["N"], si),
            est(entry["D"], si),
            est(entry["loss"]),
            est(entry["total_flops"], flops),
            est(entry["saved"], "{:.1%}".format),
        ]
        for entry in found
    ]
    return prose([words.served(found[0]["inference_tokens"])]) + table(header, rows)


def prediction(record: dict[str, Any] | None, unit: str) -> str:
    """A prediction that was made earlier, beside the measurement. unit: of the losses."""
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
    losses = [f"Predicted loss ({unit})", "Measured loss"]
    header = ["Run", "<i>C</i> (FLOPs)", "<i>N</i>", "<i>D</i>", *losses, "Verdict"]
    return prose([words.prediction(record, unit)]) + table(header, [row], wordy=[0, 6])
