"""The figure of a comparison of two sweeps, and the page that holds it."""

import io
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scaling.analysis.compare import Comparison, spoken
from scaling.analysis.intervals import LEVEL
from scaling.analysis.reporting import html
from scaling.analysis.reporting.style import FAINT, GREY, INK, RC, figure, log_axis, pad, pad_log, plain, style
from scaling.analysis.sides import Side, minima

TITLE = "Two sweeps compared"
COLOURS = {"a": "#0072B2", "b": "#D55E00"}  # Okabe & Ito 2008: blue, vermilion
MARKERS = {"a": "o", "b": "s"}
LINES = {"a": "-", "b": "--"}
CAPTION = (
    "Left: lowest loss against compute. Lines are the compute-optimal frontiers of the fitted laws with their "
    f"{LEVEL:.0%} bands, large marks the isoFLOP minima, small ones the runs. Right: the compute that {{b}} needs over "
    f"the compute that {{a}} needs for the same loss, with its {LEVEL:.0%} band; diamonds are the same between isoFLOP "
    "minima, without a law. Dotted, on grey: beyond the runs of one of the two."
)


def comparison_figure(found: Comparison) -> Figure:
    """Both frontiers, and the multiplier against the loss."""
    with style():
        fig, (left, right) = figure(7.4, 3.7, columns=2)
        _frontiers(left, found)
        _multiplier(right, found)
        handles = [
            Line2D([], [], color=COLOURS[key], ls=LINES[key], marker=MARKERS[key], ms=5, mec="white", label=name)
            for key, name in (("a", plain(found.a.name)), ("b", plain(found.b.name)))
        ]
        fig.legend(handles=handles, loc="outside upper center", ncols=2)
    return fig


def comparison_page(found: Comparison) -> str:
    """compare.html: one file that opens anywhere, the figure inside."""
    a, b = found.a.name, found.b.name
    head = (
        f"<h1>{TITLE}: {escape(a)} and {escape(b)}</h1>\n"
        f'<div class="answer"><strong>{escape(found.sentence())}</strong></div>\n'
    )
    header = [
        "Loss",
        f"FLOPs of {escape(a)}",
        f"FLOPs of {escape(b)}",
        f"Multiplier and {LEVEL:.0%} interval",
        "By minima",
        "",
    ]
    rows = [_row(level) for level in found.levels]
    caption = CAPTION.format(a=a, b=b)
    parts = [
        ("", head + html.figure(_svg(comparison_figure(found)), "compare", caption)),
        ("The multiplier by loss", html.table(header, rows, wordy=[5])),
        ("The laws", html.table(["", escape(a), escape(b)], _laws(found))),
        ("What to know", html.bullets(notes(found))),
        ("The data", "".join(_hash(side) for side in (found.a, found.b))),
    ]
    return html.document(f"{TITLE}: {a} and {b}", html.sections(parts))


def notes(found: Comparison) -> list[str]:
    """What the comparison rests on and does not tell."""
    said = [
        found.method(),
        "The intervals hold the noise of the runs and their scatter about the laws. They do not hold what all runs of "
        "a sweep share, and suppose that the laws have the right form.",
    ]
    if found.a.table.unit != "bits per byte":
        said.append(
            "Losses per token can be compared only between sweeps with one tokenizer. The tables do not tell; with "
            "different tokenizers, give both losses in bits per byte."
        )
    said.append("Both losses must be of the same held-out text: nothing here can check it.")
    if found.check is not None:
        check = found.check
        said.append(
            f"A check without a law, by interpolation between isoFLOP minima at {check['levels']} of the losses above: "
            f"the multiplier is {check['minima']:.3g} where the laws say {spoken(check['law'])}, and from the highest "
            f"to the lowest of these losses it changes by a factor of {check['minima_growth']:.3g} where the laws say "
            f"{spoken(check['law_growth'])}."
        )
    for side in (found.a, found.b):
        said += [f"{side.name}: {_alone(warning)}" for warning in side.table.warnings]
    return said


def _alone(warning: dict[str, Any]) -> str:
    """A table's warning without what it says of another report."""
    return warning["message"].split(" The report shows")[0]


def _frontiers(axes: Axes, found: Comparison) -> None:
    shown = []
    for key, side in (("a", found.a), ("b", found.b)):
        C_R, colour = side.table.C_R, COLOURS[key]
        run_C = (C_R.min(), C_R.max())
        log_C_G = np.linspace(*np.log(pad_log(run_C, 0.0)), 61)
        axes.plot(C_R, side.table.loss_R, MARKERS[key], ms=2.4, color=colour, alpha=0.35, mew=0, zorder=2)
        C_G = np.exp(side.log_C_G)
        near = (C_G > run_C[0] / 4) & (C_G < run_C[1] * 4)  # a node more than is shown
        for end, beyond in ((run_C[0], 0.25), (run_C[1], 4.0)):
            further = np.log(np.geomspace(end, end * beyond, 11))
            axes.plot(np.exp(further), side.loss_at(further), ":", color=colour, lw=1.2, zorder=3)
        axes.plot(np.exp(log_C_G), side.loss_at(log_C_G), LINES[key], color=colour, lw=1.6, zorder=4)
        known_BxG = side.loss_BxG[np.isfinite(side.loss_BxG).all(1)][:, near]
        if len(known_BxG) > 1:
            low_G, high_G = np.quantile(known_BxG, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
            axes.fill_between(C_G[near], low_G, high_G, color=colour, alpha=0.16, lw=0)
        loss_K, C_K = minima(side.table)
        axes.plot(C_K, loss_K, MARKERS[key], ms=6, color=colour, mec="white", mew=0.7, zorder=5)
        shown.append((run_C, side.loss_at(np.log(run_C))))
    losses = np.concatenate([loss for _, loss in shown])
    axes.set_xlim(*pad_log(np.concatenate([C for C, _ in shown]), 0.06))
    axes.set_ylim(*pad([losses.min(), losses.max()], 0.12))  # runs far above the frontier may not squash it
    log_axis(axes, "x", "Training compute $C$ (FLOPs)", tens=True, labels=5)
    axes.set_ylabel(f"Loss ({found.a.table.unit})")


def _multiplier(axes: Axes, found: Comparison) -> None:
    loss_M = np.array([level["loss"] for level in found.levels])
    value_M = np.array([level["multiplier"]["value"] for level in found.levels])
    ends_Mx2 = np.array([level["multiplier"]["ci"] or [np.nan, np.nan] for level in found.levels])
    inside = np.flatnonzero([not level["extrapolated"] for level in found.levels])
    axes.fill_between(loss_M, *ends_Mx2.T, color=INK, alpha=0.14, lw=0)
    axes.plot(loss_M, value_M, ":", color=INK, lw=1.2)
    checked = [(level["loss"], level["minima"]) for level in found.levels if level["minima"] is not None]
    if checked:
        axes.plot(*np.transpose(checked), "D", ms=4, color="#009E73", mec="white", mew=0.5, zorder=5)
    axes.axhline(1.0, color=GREY, lw=0.8)
    axes.set_xlim(loss_M[0], loss_M[-1])  # compute rises to the right, as on the left
    if len(inside):
        axes.plot(loss_M[inside], value_M[inside], color=INK, lw=1.8)
        for start, end in ((0, inside[0]), (inside[-1], len(loss_M) - 1)):
            axes.axvspan(loss_M[start], loss_M[end], color=FAINT, alpha=0.35, lw=0, zorder=0)
    else:
        axes.set_facecolor("#f3f3f3")
    # The limits come from the values and from the bands within the runs: a band of no information may not squash them.
    bands = ends_Mx2[inside][np.isfinite(ends_Mx2[inside])]
    axes.set_ylim(*pad_log([1.0, *value_M, *bands, *(value for _, value in checked)], 0.08))
    log_axis(axes, "y", f"Compute of {plain(found.b.name)} over {plain(found.a.name)}, at equal loss")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(f"Loss ({found.a.table.unit})")


def _row(level: dict[str, Any]) -> list[str]:
    flag = "extrapolated" if level["extrapolated"] else ""
    by_minima = "&ndash;" if level["minima"] is None else f"{level['minima']:.3g}"
    times = html.est(level["multiplier"], "{:.3g}".format)
    return [f"{level['loss']:.3f}", html.flops(level["C_a"]), html.flops(level["C_b"]), times, by_minima, flag]


def _laws(found: Comparison) -> list[list[str]]:
    sides = (found.a, found.b)
    rows = [["Runs", *(str(len(side.table.N_R)) for side in sides)]]
    rows.append(["FLOPs", *(" to ".join(map(html.flops, (s.table.C_R.min(), s.table.C_R.max()))) for s in sides)])
    rows += [
        [f"<i>{name}</i>", *(f"{side.fit.parameters[name]:.4g}" for side in sides)] for name in found.a.fit.parameters
    ]
    return [*rows, ["Objective at the optimum", *(f"{side.fit.value:.6g}" for side in sides)]]


def _hash(side: Side) -> str:
    return f'<p class="hash">SHA-256 of {escape(side.name)}: {escape(side.table.sha256)}</p>\n'


def _svg(drawing: Figure) -> str:
    text = io.StringIO()
    with matplotlib.rc_context({**RC, "svg.hashsalt": "compare"}):
        drawing.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
