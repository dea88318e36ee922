"""The figures of training curves: against compute with the envelope under them, and against tokens."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scaling.analysis.analyze import Analysis
from scaling.analysis.curves import Curves
from scaling.analysis.reporting.style import INK, WIDTH, figure, log_axis, pad, pad_log, ramp, si


def envelope_figure(analysis: Analysis) -> Figure:
    """The training curves against compute, and the envelope under them: where it is bracketed and where it is not."""
    fig, (axes,) = figure(WIDTH, 3.5)
    found = analysis.envelope
    _curves(axes, analysis.curves, "C")
    C_G = np.exp(found.race.log_C_G)
    axes.plot(C_G, found.loss_G, color=INK, lw=1.3, ls=(0, (1, 1)), label="lowest loss so far", zorder=4)
    used_G = np.where(found.inner_G, found.loss_G, np.nan)
    axes.plot(C_G, used_G, ".-", ms=3, color=INK, lw=2.6, label="envelope that Approach 1 uses", zorder=5)
    axes.legend(loc="upper right")
    log_axis(axes, "x", "Training compute $C$ (FLOPs)", tens=True)
    return fig


def curves_figure(analysis: Analysis) -> Figure:
    """Held-out loss against tokens trained on, a line a run."""
    fig, (axes,) = figure(WIDTH, 3.5)
    _curves(axes, analysis.curves, "D")
    log_axis(axes, "x", "Training tokens $D$")
    return fig


def _curves(axes: Axes, curves: Curves, against: str) -> None:
    sizes = np.unique(curves.N_P)
    colours = dict(zip(sizes, ramp(len(sizes)), strict=True))
    x_P = getattr(curves, f"{against}_P")
    for run in range(len(curves.names)):
        points = curves.of(run)
        colour = colours[curves.N_P[points[-1]]]
        axes.plot(x_P[points], curves.loss_P[points], color=colour, lw=1.0, alpha=0.85)
        axes.plot(x_P[points[-1]], curves.loss_P[points[-1]], "o", color=colour, ms=3.5, mec="white", mew=0.4)
    shown = sizes if len(sizes) <= 10 else sizes[np.linspace(0, len(sizes) - 1, 8).round().astype(int)]
    handles = [Line2D([], [], color=colours[N], lw=1.5, label=si(N)) for N in shown[::-1]]
    axes.figure.legend(handles=handles, title="Parameters $N$", loc="outside right upper")
    last = [curves.of(run)[-1] for run in range(len(curves.names))]
    # What happened before any run was useful would take most of the height.
    top = min(curves.loss_P.max(), 2 * curves.loss_P[last].max() - curves.loss_P.min())
    axes.set_xlim(*pad_log(x_P[curves.loss_P <= top]))
    axes.set_ylim(*pad([curves.loss_P.min(), top]))
    axes.set_ylabel(f"Loss ({curves.unit})")
