"""The figures of a report: each a function from an analysis to a matplotlib Figure. Saving is separate (style.save)."""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scaling.analysis import frontier
from scaling.analysis.analyze import Analysis
from scaling.analysis.intervals import LEVEL, widening
from scaling.analysis.isoflop import Budget
from scaling.analysis.reporting.check_plots import held_out_figure, profile_figure, sensitivity_figure
from scaling.analysis.reporting.curve_plots import curves_figure, envelope_figure
from scaling.analysis.reporting.style import (
    APPROACH,
    APPROACH_NAME,
    FAINT,
    GREY,
    INK,
    MARKERS,
    ORANGE,
    VERMILION,
    WIDTH,
    figure,
    log_axis,
    pad,
    pad_log,
    power_of_ten,
    ramp,
    ramp_map,
    si,
    style,
)

SIZE = "Parameters $N$"
COMPUTE = "Training compute $C$ (FLOPs)"
BAND_DRAWS = (
    400  # of the law's bootstrap draws, for the bands: the edges of a 90 % band are then good to a line's width
)


def figures(analysis: Analysis) -> dict[str, Figure]:
    """All figures that the analysis has data for, by name."""
    optimal = _has_optimum(analysis)
    makers: dict[str, tuple[bool, Callable[[Analysis], Figure]]] = {
        "isoflop": (not isinstance(analysis.isoflop, str), isoflop_figure),
        "optima": (optimal, optima_figure),
        "surface": (optimal, surface_figure),
        "residuals": (True, residual_figure),
        "profiles": (bool(analysis.profiles), _profiles),
        "held_out": (not isinstance(analysis.selection, str | None), _held_out),
        "sensitivity": (bool(analysis.sensitivity), _sensitivity),
        "envelope": (not isinstance(analysis.envelope, str), envelope_figure),
        "curves": (analysis.curves is not None, curves_figure),
    }
    with style():
        return {name: make(analysis) for name, (possible, make) in makers.items() if possible}


def _has_optimum(analysis: Analysis) -> bool:
    """Whether the law has an optimum somewhere in the compute of the runs."""
    if analysis.cost is None:
        return False
    fit, C_G = analysis.fit, np.geomspace(analysis.table.C_R.min(), analysis.table.C_R.max(), 41)
    return bool(np.isfinite(frontier.optima(fit.law, fit.theta_P[None], fit.centre, analysis.cost, C_G).N_BxG).any())


def _profiles(analysis: Analysis) -> Figure:
    return profile_figure(analysis.profiles, analysis.verdicts)


def _held_out(analysis: Analysis) -> Figure:
    return held_out_figure(analysis.selection.rows())


def _sensitivity(analysis: Analysis) -> Figure:
    return sensitivity_figure(analysis.sensitivity, analysis.local_slope)


def isoflop_figure(analysis: Analysis) -> Figure:
    """Loss against N, a valley a budget, with the fitted curve and its minimum; edges are marked as not optimal."""
    fig, (axes,) = figure(WIDTH, 3.7)
    budgets = analysis.isoflop.budgets
    handles = []
    for k, (budget, colour) in enumerate(zip(budgets, ramp(len(budgets)), strict=True)):
        cells, marker = budget.cells, MARKERS[k % len(MARKERS)]
        axes.plot(cells.N_S, cells.loss_S, "-", color=colour, lw=0.6, alpha=0.45)
        axes.plot(cells.N_S, cells.loss_S, marker, color=colour, ms=4.5, mec="white", mew=0.4)
        _valley(axes, budget, colour)
        label = power_of_ten(budget.C) + ("" if budget.status == "ok" else f"  ({budget.status.replace('_', ' ')})")
        handles.append(Line2D([], [], color=colour, marker=marker, ms=4.5, mec="white", mew=0.4, label=label))
    _losses(axes, np.concatenate([budget.cells.loss_S for budget in budgets]))
    _line_of_optima(axes, analysis)
    axes.set_xlim(*pad_log(np.concatenate([budget.cells.N_S for budget in budgets])))
    log_axis(axes, "x", SIZE)
    axes.set_ylabel(f"Loss ({analysis.table.unit})")
    handles = handles[::-1] if budgets[0].cells.loss_S.min() < budgets[-1].cells.loss_S.min() else handles
    legend = axes.legend(handles=handles, title="Compute $C$ (FLOPs)", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.add_artist(legend)
    marks = []
    if any(budget.status == "ok" for budget in budgets):
        marks.append(Line2D([], [], ls="", marker="*", ms=10, color=INK, mec="white", mew=0.6, label="fitted minimum"))
    if any(budget.status != "ok" for budget in budgets):
        marks.append(Line2D([], [], ls="", marker="x", ms=7, mew=1.4, color=VERMILION, label="lowest, not an optimum"))
    axes.legend(handles=marks, loc="lower left", bbox_to_anchor=(1.0, 0.0))
    return fig


def _valley(axes: Axes, budget: Budget, colour: str) -> None:
    if budget.status == "ok":
        N_M = np.geomspace(budget.cells.N_S[0], budget.cells.N_S[-1], 200)
        axes.plot(N_M, budget.loss(N_M), color=colour, lw=1.6)
        axes.plot(budget.N_opt, budget.loss_opt, "*", ms=11, color=colour, mec=INK, mew=0.6, zorder=5)
        return
    lowest = budget.cells.loss_S.argmin()
    axes.plot(budget.cells.N_S[lowest], budget.cells.loss_S[lowest], "x", ms=8, mew=1.6, color=VERMILION, zorder=6)


def _line_of_optima(axes: Axes, analysis: Analysis) -> None:
    ok = [budget for budget in analysis.isoflop.budgets if budget.status == "ok"]
    if len(ok) > 1:
        axes.plot([b.N_opt for b in ok], [b.loss_opt for b in ok], ":", color=GREY, lw=1.0, zorder=1)


def _losses(axes: Axes, loss: np.ndarray) -> None:
    """Linear loss axis; a few runs far above the others may not squash the valleys, so the axis ends below them."""
    low, high = loss.min(), min(loss.max(), np.median(loss) + 6 * (np.median(loss) - loss.min()))
    axes.set_ylim(*pad([low, high]))


def optima_figure(analysis: Analysis) -> Figure:
    """N*(C) and D*(C) of the approaches with their bands, one above the other; measured minima as points."""
    fig, panels = figure(WIDTH, 5.6, rows=2, sharex=True)
    table = analysis.table
    ends = [table.C_R.min(), table.C_R.max(), *analysis.target_flops]
    C_G = np.geomspace(*pad_log(ends, 0.02), 41)
    fit = analysis.fit
    law = frontier.optima(fit.law, fit.theta_P[None], fit.centre, analysis.cost, C_G)
    drawn = frontier.optima(fit.law, analysis.theta_BxP[:BAND_DRAWS], fit.centre, analysis.cost, C_G)
    labels = ("Optimal parameters $N^*$", "Optimal training tokens $D^*$")
    for axes, label, quantity in zip(panels, labels, ("N", "D"), strict=True):
        centre_G, draws_BxG = getattr(law, f"{quantity}_BxG")[0], getattr(drawn, f"{quantity}_BxG")
        if len(draws_BxG):  # widened as the intervals of the report are
            draws_BxG = centre_G * (draws_BxG / centre_G) ** (
                analysis.bootstrap.spread * widening(analysis.bootstrap.clusters)
            )
        _band(axes, C_G, centre_G, draws_BxG, "approach3", "-")
        for name, result, draws, line in (
            ("approach2", analysis.isoflop, analysis.isoflop_draws, "--"),
            ("approach1", analysis.envelope, analysis.envelope_draws, "-."),
        ):
            if draws is not None:
                power, powers = getattr(result, f"{quantity}_power"), getattr(draws, f"{quantity}_power")
                _band(axes, C_G, power.at(C_G)[0], powers.at(C_G), name, line)
        if not isinstance(analysis.isoflop, str):
            ok = [budget for budget in analysis.isoflop.budgets if budget.status == "ok"]
            points = [getattr(budget, f"{quantity}_opt") for budget in ok]
            axes.plot([b.C for b in ok], points, "o", ms=5, color=APPROACH["approach2"], mec="white", mew=0.6, zorder=5)
        axes.set_xlim(C_G[0], C_G[-1])
        # The limits come from lines and points: a band of no information may not squash them.
        lines = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) > 0]
        axes.set_ylim(*pad_log([y for line in lines for y in line if np.isfinite(y) and y > 0], 0.12))
        axes.axvspan(table.C_R.max(), C_G[-1], color=FAINT, alpha=0.35, lw=0, zorder=0)
        log_axis(axes, "x", "", tens=True)
        log_axis(axes, "y", label)
    panels[-1].set_xlabel(COMPUTE)
    handles, names = (found[::-1] for found in panels[0].get_legend_handles_labels())  # Approach 1 first
    fig.legend(handles, names, loc="outside upper center", ncols=2 if len(handles) > 2 else 3, columnspacing=1.6)
    return fig


def _band(axes: Axes, C_G: np.ndarray, centre_G: np.ndarray, draws_BxG: np.ndarray, name: str, line: str) -> None:
    # As in estimate(): an interval of fewer than half the resamples is none.
    known = len(draws_BxG) and np.isfinite(draws_BxG).mean(0).min() > 0.5
    label = APPROACH_NAME[name] + ("" if known else " (no interval)")
    axes.plot(C_G, centre_G, line, color=APPROACH[name], label=label, zorder=3)
    if known:
        low_G, high_G = np.nanquantile(draws_BxG, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        axes.fill_between(C_G, low_G, high_G, color=APPROACH[name], alpha=0.16, lw=0)


def surface_figure(analysis: Analysis) -> Figure:
    """Contours of the fitted loss over compute and size, with the efficient frontier and the runs."""
    fig, (axes,) = figure(WIDTH, 4.0)
    table, fit, cost = analysis.table, analysis.fit, analysis.cost
    C_G = np.geomspace(*pad_log([table.C_R.min(), table.C_R.max(), *analysis.target_flops], 0.04), 81)
    best = frontier.optima(fit.law, fit.theta_P[None], fit.centre, cost, C_G)
    known = np.isfinite(best.N_BxG[0])
    N_M = np.geomspace(*pad_log(np.concatenate([table.N_R, best.N_BxG[0][known]]), 0.04), 121)
    D_MxG = C_G / cost.flops(np.log(N_M))[:, None]
    N_MxG = np.broadcast_to(N_M[:, None], D_MxG.shape)
    loss_MxG = fit.predict(frontier.inputs_at(fit.law, N_MxG.ravel(), D_MxG.ravel())).reshape(D_MxG.shape)
    low, high = best.loss_BxG[0][known].min(), np.quantile(table.loss_R, 0.98)
    # Even steps of reducible loss in log: contours as dense where the surface is flat as where it is steep.
    E = fit.parameters.get("E", 0.0)  # a law without a floor goes to zero
    floor = max(low - E, 1e-9)
    digits = 2 if high - low > 0.5 else 3
    levels = np.unique(np.round(E + np.geomspace(floor, max(high - E, 1.5 * floor), 14), digits))
    axes.set(xscale="log", yscale="log", xlim=(C_G[0], C_G[-1]), ylim=(N_M[0], N_M[-1]))
    contours = axes.contour(C_G, N_M, loss_MxG, levels=levels, cmap=ramp_map(), linewidths=0.9)
    axes.clabel(contours, levels[1::2], fmt=f"%.{digits}f", fontsize=7, inline_spacing=3)
    axes.plot(C_G, best.N_BxG[0], color=APPROACH["approach3"], lw=2.0, label="efficient frontier of the law")
    axes.plot(table.C_R, table.N_R, "o", ms=3.6, color=INK, mec="white", mew=0.4, ls="", label="runs")
    aims = [optimum for optimum in analysis.optima if optimum["N"]["value"] is not None]
    if aims:
        at = [[optimum["C"] for optimum in aims], [optimum["N"]["value"] for optimum in aims]]
        axes.plot(*at, "*", ms=12, color=ORANGE, mec=INK, mew=0.6, ls="", label="optimum at the target", zorder=6)
    log_axis(axes, "x", COMPUTE, tens=True)
    log_axis(axes, "y", SIZE)
    fig.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


def residual_figure(analysis: Analysis) -> Figure:
    """How far every run lies from the law, in per cent, against compute: structure here is misfit, not noise."""
    fig, (axes,) = figure(WIDTH, 2.7)
    table = analysis.table
    percent = 100 * np.expm1(analysis.fit.residual_R)
    shade = np.log(table.N_R)
    dots = axes.scatter(table.C_R, percent, c=shade, cmap=ramp_map(), s=20, lw=0.3, edgecolors=INK, zorder=3)
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set_xlim(*pad_log(table.C_R))
    log_axis(axes, "x", COMPUTE, tens=True)
    axes.set_ylabel("Measured / fitted loss $-$ 1 (%)")
    bar = fig.colorbar(dots, ax=axes, label=SIZE, pad=0.02)
    ticks = np.geomspace(table.N_R.min(), table.N_R.max(), 4)
    bar.set_ticks(np.log(ticks), labels=[si(tick, 2) for tick in ticks])
    bar.outline.set_visible(False)
    return fig
