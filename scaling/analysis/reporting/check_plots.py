"""The figures of how far to trust a fit: profile curves, errors on what was held out, what moves the answer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from scaling.analysis.reporting.check_words import REPORTED, variant
from scaling.analysis.reporting.style import (
    BLUE,
    FAINT,
    GREY,
    INK,
    MARKERS,
    VERMILION,
    WIDTH,
    figure,
    log_axis,
    plain,
    ramp,
    symbol,
)

if TYPE_CHECKING:
    from scaling.analysis.identifiability import Verdict
    from scaling.analysis.profiles import Profile

TOP = 2.5  # of the threshold: what lies above is as good as excluded
WIDE = 20.0  # grids over a larger factor are drawn on a log axis
ROW = 0.19  # inches of a line of text


def profile_figure(profiles: Sequence["Profile"], verdicts: Sequence["Verdict"]) -> Figure:
    """The objective along each parameter with all others fitted anew, in units of the threshold of its interval."""
    weak = {verdict.name for verdict in verdicts if verdict.status != "identified"}
    columns = 2 if len(profiles) in (2, 4) else min(3, len(profiles))
    rows = -(-len(profiles) // columns)
    fig, panels = figure(WIDTH, 0.5 + 1.55 * rows, columns, rows, sharey=True)
    for axes, profile in zip(panels, profiles, strict=False):
        _profile(axes, profile, profile.name in weak)
    for axes in panels[len(profiles) :]:
        axes.set_axis_off()
    panels[0].set_ylim(0, TOP)
    fig.supylabel("Rise of the objective (1 = end of interval)", fontsize=9)
    marks = [Line2D([], [], color=BLUE, label="identified")]
    if weak:
        marks.append(Line2D([], [], color=VERMILION, ls="--", label="not identified"))
    marks.append(Line2D([], [], color=INK, marker="|", ls="", ms=9, label="estimate"))
    fig.legend(handles=marks, loc="outside upper center", ncols=3)
    return fig


def _profile(axes: Axes, profile: "Profile", weak: bool) -> None:
    colour, line = (VERMILION, "--") if weak else (BLUE, "-")
    known = np.isfinite(profile.grid_G) & np.isfinite(profile.objective_G)
    grid, rise = profile.grid_G[known], profile.objective_G[known]
    shown = grid[rise <= TOP] if (rise <= TOP).sum() > 1 else grid
    axes.axhline(1.0, color=GREY, lw=0.7, ls=":")
    low, high = (end if end is not None else edge for end, edge in zip(profile.interval, shown[[0, -1]], strict=True))
    axes.axvspan(low, high, color=colour, alpha=0.10, lw=0)
    axes.plot(grid, rise, line, color=colour, lw=1.5)
    axes.plot(grid, rise, ".", color=colour, ms=3.5)
    if profile.value is not None and np.isfinite(profile.value):
        axes.axvline(profile.value, 0, 0.12, color=INK, lw=1.4)
    axes.set_xlim(shown[0], shown[-1])
    if shown[0] > 0 and shown[-1] / shown[0] > WIDE:
        log_axis(axes, "x", symbol(profile.name), labels=4)
    else:
        axes.set_xlabel(symbol(profile.name))
        axes.xaxis.set_major_locator(MaxNLocator(3, prune="both"))


def held_out_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Error of each law on budgets that it was not fitted to, a mark for each way of fitting it."""
    rows = [row for row in rows if row["held_out_rmse"] is not None and np.isfinite(row["held_out_rmse"])]
    laws = list(dict.fromkeys(row["law"] for row in rows))[::-1]
    variants = list(dict.fromkeys(map(variant, rows)))
    colours = dict(zip(variants, ramp(len(variants)), strict=True))
    fig, (axes,) = figure(WIDTH, 1.3 + 0.26 * len(laws))
    axes.hlines(range(len(laws)), 0, 1, color=FAINT, lw=0.8, zorder=1, transform=axes.get_yaxis_transform())
    for row in rows:
        k, colour = variants.index(variant(row)), colours[variant(row)]
        at = (100 * row["held_out_rmse"], laws.index(row["law"]))
        face = colour if row["weight"] else "white"
        axes.plot(*at, MARKERS[k % len(MARKERS)], ms=5.5, color=face, mec=colour, mew=1.1, zorder=3)
        if row["chosen"]:
            axes.plot(*at, "o", ms=12, color="none", mec=INK, mew=1.0, zorder=4)
    axes.set_yticks(range(len(laws)), laws)
    axes.set_ylim(-0.6, len(laws) - 0.4)
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("RMSE of log loss on held-out budgets (%)")
    marks = [
        Line2D([], [], ls="", marker=MARKERS[k % len(MARKERS)], ms=5.5, color=colours[name], label=name)
        for k, name in enumerate(variants)
    ]
    marks.append(Line2D([], [], ls="", marker="o", ms=10, color="none", mec=INK, label="chosen"))
    fig.legend(handles=marks, loc="outside upper center", ncols=3)
    return fig


def sensitivity_figure(rows: Sequence[dict[str, Any]], reported: dict[str, Any]) -> Figure:
    """The exponent of N* under every other choice, by kind of choice, beside the reported one and its interval."""
    rows = [row for row in rows if row["a"] is not None and row["what"] != REPORTED][::-1]
    kinds = list(dict.fromkeys(row["what"] for row in rows[::-1]))
    rows.sort(key=lambda row: -kinds.index(row["what"]))  # the first kind on top
    colours = dict(zip(kinds, ramp(len(kinds)), strict=True))
    fig, (axes,) = figure(WIDTH, 0.9 + ROW * len(rows))
    if reported["ci"]:
        axes.axvspan(*reported["ci"], color=BLUE, alpha=0.10, lw=0, zorder=0)
    axes.axvline(reported["value"], color=BLUE, lw=1.0, zorder=1)
    for k, row in enumerate(rows):
        marker = MARKERS[kinds.index(row["what"]) % len(MARKERS)]
        axes.plot(row["a"], k, marker, ms=5.5, color=colours[row["what"]], mec="white", mew=0.5, zorder=3)
    axes.set_yticks(range(len(rows)), [plain(f"{row['what']}: {row['setting']}") for row in rows], fontsize=7.5)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=FAINT, lw=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel("Exponent $a$ of $N^* \\propto C^a$")
    return fig
