"""How figures look: one type size, colours that colour-blind readers and grey printers tell apart, readable log
axes."""

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from scaling.files import Path, atomic_path

WIDTH = 5.5  # inches: the text of a paper in one column, and type that a phone still shows
INK, GREY, FAINT = "#1a1a1a", "#6b6b6b", "#d9d9d9"
# Okabe & Ito 2008: eight colours that colour-blind readers tell apart; these differ in lightness as well.
BLUE, VERMILION, GREEN, ORANGE, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7"
APPROACH = {"approach1": GREEN, "approach2": VERMILION, "approach3": BLUE}
APPROACH_NAME = {
    "approach1": "Approach 1: envelope of curves",
    "approach2": "Approach 2: isoFLOP minima",
    "approach3": "Approach 3: fitted law",
}
GREEK = ("alpha", "beta", "gamma", "delta", "eta", "omega", "zeta")
MARKERS = ("o", "s", "^", "D", "v", "p", "<")
RC = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.5,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.7,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "legend.title_fontsize": 8.5,
    "lines.linewidth": 1.5,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",  # the page looks the same wherever it is opened
    "mathtext.fontset": "dejavusans",
}


@contextmanager
def style() -> Iterator[None]:
    """The style of all figures, for drawing and for saving."""
    with matplotlib.rc_context(RC):
        yield


def figure(
    width: float, height: float, columns: int = 1, rows: int = 1, **shared: bool | str
) -> tuple[Figure, list[Axes]]:
    """A figure of inches, with axes side by side and then below. shared: sharex, sharey of Figure.subplots."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False, **shared).ravel())


def save(figure: Figure, folder: Path, name: str) -> None:
    """Writes NAME.svg and NAME.png; the same figure gives the same bytes."""
    for suffix, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 200})):
        with atomic_path(f"{folder}/{name}.{suffix}") as path, matplotlib.rc_context({**RC, "svg.hashsalt": name}):
            figure.savefig(path, format=suffix, **options)


def ramp(count: int) -> list[str]:
    """Colours for an ordered quantity, dark to light, without the pale end that vanishes on paper."""
    return [to_hex(matplotlib.colormaps["viridis"](x)) for x in np.linspace(0.0, 0.82, max(count, 1))]


def ramp_map() -> ListedColormap:
    """The same colours as a map."""
    return ListedColormap(ramp(256))


def si(value: float, digits: int = 3) -> str:
    """12300000 -> 12.3M: the way sizes and token counts are said."""
    if not (value and math.isfinite(value)):
        return f"{value:g}"
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if float(f"{value:.{digits}g}") >= limit:
            return f"{float(f'{value / limit:.{digits}g}'):g}{suffix}" if value < 1e15 else f"{value:.{digits}g}"
    return f"{float(f'{value:.{digits}g}'):g}"


def plain(text: str) -> str:
    """A text of the user's for a figure: shown as it is, where $ would begin mathematics and an SVG file can hold no
    control characters."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text).replace("$", r"\$")


def symbol(name: str) -> str:
    """alpha_N -> its Greek letter with a subscript, R_D -> R with one, as mathematical text."""
    first, _, rest = name.partition("_")
    letter = rf"\{first}" if first in GREEK else first
    return f"${letter}_{{{symbol(rest)[1:-1]}}}$" if rest else f"${letter}$"


def power_of_ten(value: float, digits: int = 3) -> str:
    """5e11 -> 5 x 10^11 as mathematical text."""
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = f"{float(mantissa):g}"
    ten = f"10^{{{int(exponent)}}}"
    return f"${ten}$" if mantissa == "1" else rf"${mantissa}\times{ten}$"


def log_axis(axes: Axes, which: str, label: str, *, tens: bool = False, labels: int | None = None) -> None:
    """Makes an axis logarithmic with at most `labels` round ticks and minor ones between (seven; five where they are
    said as powers of ten, which takes more room: tens)."""
    labels = labels or (5 if tens else 7)
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis: Axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    axis.set_major_locator(FixedLocator(log_ticks(low, high, labels)))
    axis.set_minor_locator(LogLocator(subs=range(2, 10)) if high / low < 1e6 else NullLocator())
    axis.set_tick_params(which="minor", length=2, width=0.5)
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value) if tens else si(value)))
    (axes.set_xlabel if which == "x" else axes.set_ylabel)(label)


STEPS = (
    tuple(k / 10 for k in range(10, 100)),
    tuple(k / 5 for k in range(5, 50)),
    (1, 1.5, 2, 3, 4, 5, 6, 8),
    (1, 2, 3, 5, 7),
    (1, 2, 5),
    (1, 3),
    (1,),
)


def log_ticks(low: float, high: float, labels: int) -> list[float]:
    """Round values between low and high, at most `labels` of them, and none so close that their labels would touch."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    closest = 0.8 / labels * math.log(high / low)
    for steps in STEPS:
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) <= labels and all(math.log(b / a) >= closest for a, b in itertools.pairwise(ticks)):
            return ticks
    every = math.ceil(len(ticks) / labels)
    return [tick for tick in ticks if round(math.log10(tick)) % every == 0]


def pad_log(values: Sequence[float] | np.ndarray, share: float = 0.05) -> tuple[float, float]:
    """Limits of a log axis around values, with a margin."""
    low, high = np.log(np.min(values)), np.log(np.max(values))
    margin = share * max(high - low, 0.2)
    return float(np.exp(low - margin)), float(np.exp(high + margin))


def pad(values: Sequence[float] | np.ndarray, share: float = 0.05) -> tuple[float, float]:
    """Limits of a linear axis around values, with a margin."""
    low, high = float(np.min(values)), float(np.max(values))
    margin = share * max(high - low, 1e-3)
    return low - margin, high + margin
