"""The figures of a tuning sweep and the page that holds them."""

import io
from collections.abc import Sequence
from html import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scaling.analysis.rates import LOCAL, Optimum
from scaling.analysis.reporting import html
from scaling.analysis.reporting.style import GREY, INK, MARKERS, RC, figure, log_axis, pad, pad_log, ramp, si, style
from scaling.analysis.tuning import HEADER, Tuning, methods, table_rows
from scaling.rules import LEVEL, LearningRateRule

TITLE = "Learning-rate tuning"
RED = "#B00020"
CAPTIONS = {
    "rates": (
        "Loss against peak learning rate. One colour a size, one marker a batch. Thick curves are the local parabolas "
        f"that locate the optima (stars, with their {LEVEL:.0%} intervals); thin lines only join the runs. A red cross "
        "marks a lowest point that is not an optimum; red ticks along the top, rates at which a run failed."
    ),
    "rule": (
        f"Optimal peak learning rate against size. Dots are the optima with their {LEVEL:.0%} intervals, lines the "
        f"fitted rule, one a batch if it depends on the batch, and the band its {LEVEL:.0%} interval. Red crosses are "
        "lowest points that are not optima; the rule does not know them."
    ),
}


def tuning_page(tuning: Tuning) -> str:
    """tuning.html: one file that opens anywhere, figures inside."""
    rule = tuning.rule
    lead = f"Recipe {rule.base}: {rule.optima} optima of {rule.sizes} sizes."
    head = (
        f'<h1>{TITLE}</h1>\n<p class="lead">{escape(lead)}</p>\n'
        f'<div class="answer"><strong>{escape(rule.formula())}</strong></div>\n'
        "<p>N is parameters, B the batch in tokens: ln peak_lr = a + b ln N + c ln B.</p>\n"
    )
    coefficients = [[f"<i>{key}</i>", html.est(est)] for key, est in rule.coefficients().items()]
    optima = [[escape(cell) for cell in row] for row in table_rows(tuning.optima.groups)]
    parts = [
        ("", head + html.table(["Coefficient", f"Estimate and {LEVEL:.0%} interval"], coefficients)),
        ("The rule", _drawn(rule_figure(tuning), "rule")),
        ("The optima", _drawn(rates_figure(tuning), "rates") + html.table(HEADER, optima, wordy=[len(HEADER) - 1])),
        ("What to know", html.bullets([*rule.notes, *methods(tuning)])),
        ("The data", f'<p class="hash">SHA-256 of the tables: {escape(rule.source)}</p>\n'),
    ]
    return html.document(TITLE, html.sections(parts))


def rates_figure(tuning: Tuning) -> Figure:
    """Loss against peak rate, a bowl a group, with the local parabola and its optimum."""
    groups = tuning.optima.groups
    colours, markers = _keys(groups)
    with style():
        fig, (axes,) = figure(6.4, 4.4)
        for group in groups:
            rates, colour = group.rates, colours[group.rates.N]
            axes.plot(rates.lr_K, rates.loss_K, "-", color=colour, lw=0.6, alpha=0.45)
            axes.plot(rates.lr_K, rates.loss_K, markers[rates.B], color=colour, ms=4.5, mec="white", mew=0.4, ls="")
            _bowl(axes, group, colour)
        _losses(axes, groups)
        top = axes.get_xaxis_transform()
        for group in groups:
            failed_J = group.rates.failed_J
            axes.plot(failed_J, np.ones(len(failed_J)), "|", color=RED, ms=9, transform=top, clip_on=False)
        axes.set_xlim(*pad_log(np.concatenate([[*group.rates.lr_K, *group.rates.failed_J] for group in groups])))
        log_axis(axes, "x", "Peak learning rate")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_ylabel("Loss (nats per token)")
        handles = [Line2D([], [], color=colour, lw=1.5, label=f"$N$ {si(N)}") for N, colour in colours.items()]
        fig.legend(handles=[*handles, *_batches({}, markers)], loc="outside right upper")
    return fig


def _bowl(axes: Axes, group: Optimum, colour: str) -> None:
    rates = group.rates
    if group.status != "ok":
        if len(rates.lr_K):
            lowest = rates.loss_K.argmin()
            axes.plot(rates.lr_K[lowest], rates.loss_K[lowest], "x", ms=8, mew=1.6, color=RED, zorder=6)
        return
    used_K = rates.lr_K[group.used_K]
    lr_G = np.geomspace(used_K.min(), max(used_K.max(), group.lr), 100)
    loss_G = np.polynomial.polynomial.polyval(np.log(lr_G / group.lr_0), group.parabola_3)
    axes.plot(lr_G, loss_G, color=colour, lw=1.6)
    if group.ci:
        axes.plot(group.ci, [group.loss, group.loss], color=INK, lw=1.0, zorder=4)
    axes.plot(group.lr, group.loss, "*", ms=11, color=colour, mec=INK, mew=0.6, zorder=5)


def _losses(axes: Axes, groups: Sequence[Optimum]) -> None:
    """Linear loss axis, up to where the highest bowl's own rates end: a rate that all but diverged may not squash it.

    A bowl ends at 10 % above its lowest loss.
    """
    lowest = [group.rates.loss_K.min() for group in groups if len(group.rates.loss_K)]
    shown = np.concatenate([group.rates.loss_K for group in groups])
    axes.set_ylim(*pad([min(lowest), shown[shown <= (1 + LOCAL) * max(lowest)].max()]))


def rule_figure(tuning: Tuning) -> Figure:
    """Optimal peak rate against N, with the rule and its band."""
    groups, rule = tuning.optima.groups, tuning.rule
    _, markers = _keys(groups)
    batches = list(markers)
    colours = dict(zip(batches, ramp(len(batches)), strict=True))
    N_G = np.geomspace(*pad_log([group.rates.N for group in groups], 0.08), 61)
    with style():
        fig, (axes,) = figure(6.4, 4.0)
        for B in batches if rule.c else [1.0]:
            _line(axes, rule, N_G, B, colours[B] if rule.c else GREY)
        shown = [line.get_ydata() for line in axes.lines]
        for group in groups:
            rates = group.rates
            if group.status != "ok":
                if len(rates.lr_K):
                    axes.plot(rates.N, rates.lr_K[rates.loss_K.argmin()], "x", ms=7, mew=1.4, color=RED)
                continue
            marks = {"ms": 6, "color": colours[rates.B], "mec": "white", "mew": 0.6, "zorder": 5}
            axes.plot(rates.N, group.lr, markers[rates.B], **marks)
            if group.ci:
                axes.plot([rates.N] * 2, group.ci, color=colours[rates.B], lw=1.0)
        axes.set_xlim(N_G[0], N_G[-1])
        lowest = [group.rates.lr_K[group.rates.loss_K.argmin()] for group in groups if len(group.rates.lr_K)]
        # Not around the intervals, of which one of no information would squash the rest.
        axes.set_ylim(*pad_log(np.concatenate([*shown, lowest, [group.lr for group in tuning.optima.ok]]), 0.05))
        log_axis(axes, "x", "Parameters $N$")
        log_axis(axes, "y", "Optimal peak learning rate")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if handles := _batches(colours, markers):
            fig.legend(handles=handles, loc="outside right upper")
    return fig


def _line(axes: Axes, rule: LearningRateRule, N_G: np.ndarray, B: float, colour: str) -> None:
    axes.plot(N_G, [rule.peak_lr(N, B) for N in N_G], color=colour, lw=1.4)
    if rule.covariance is not None:
        low_G, high_G = np.transpose([rule.interval(N, B) for N in N_G])
        axes.fill_between(N_G, low_G, high_G, color=colour, alpha=0.16, lw=0)


def _keys(groups: Sequence[Optimum]) -> tuple[dict[float, str], dict[float | None, str]]:
    """A colour for each size, and a marker for each batch."""
    sizes = sorted({group.rates.N for group in groups})
    batches = sorted({group.rates.B for group in groups}, key=lambda B: B or 0.0)
    markers = {B: MARKERS[k % len(MARKERS)] for k, B in enumerate(batches)}
    return dict(zip(sizes, ramp(len(sizes)), strict=True)), markers


def _batches(colours: dict[float | None, str], markers: dict[float | None, str]) -> list[Line2D]:
    """Legend entries of the batches, where there are several."""
    marks = {"ls": "", "ms": 5}
    handles = [
        Line2D([], [], marker=mark, color=colours.get(B, INK), label=f"batch {si(B)}", **marks)
        for B, mark in markers.items()
        if B is not None
    ]
    return handles if len(handles) > 1 else []


def _drawn(drawing: Figure, name: str) -> str:
    text = io.StringIO()
    with matplotlib.rc_context({**RC, "svg.hashsalt": name}):
        drawing.savefig(text, format="svg", metadata={"Date": None})
    return html.figure(text.getvalue(), name, CAPTIONS[name])
