"""The best peak learning rate of each size: the minimum of a local parabola in ln rate, if the rates bracket it.

Around its minimum the loss is a shallow bowl in the logarithm of the rate, and a wall above: beyond some rate the
training diverges. So the parabola is local: through the lowest loss, its two neighbours, and the nearest others whose
loss is within 10 % of the lowest, five in all. A rate at which a run failed is not in the fit: it says only that the
optimum lies below it. Runs of one rate (seeds) are averaged and weigh by their number.

Noise is one number for the whole sweep, the residuals of all runs about the parabolas of their groups: scatter between
seeds and misfit of the parabola together, so that there is one with a single seed too. (A bootstrap over seeds would
need several at every rate, and would not see misfit.) The interval of an optimum is that of a ratio, -c1 / 2 c2
(Fieller 1954): the rates at which the parabola's slope is zero within Student's t of its error. It has no end where
the curvature itself is not told from zero. It knows noise, not skew: five rates a factor h apart in a bowl c u^2 + s
u^3 put the minimum 1.7 s (ln h)^2 / c too low, a rate whose loss is hardly higher.
"""

import dataclasses
import math
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from scaling.analysis.columns import positive, text
from scaling.analysis.reporting.style import si
from scaling.analysis.table import GAP
from scaling.errors import InputError
from scaling.rules import LEVEL

LEAST, MOST = 3, 5  # rates of a parabola
LOCAL = 0.1  # relative loss above the lowest, within which a rate is near
REQUIRED = ("N", "D", "peak_lr", "loss")
TUNED = ("lr_factor=", "peak_lr=", "batch_size=")  # what a variant may say that a tuning sweep is about
Status = Literal["ok", "edge", "too_few", "not_convex"]


@dataclasses.dataclass(frozen=True, eq=False)
class Rates:
    """One size, batch and duration: K rates by rising lr_K, with the mean loss_K of count_K runs each.

    B is None where the table does not say the batch. scatter_K: sum of squares of the runs' losses about their mean.
    failed_J: rates at which a run failed; those are not among the K.
    """

    N: float
    B: float | None
    D: float
    lr_K: np.ndarray
    loss_K: np.ndarray
    count_K: np.ndarray
    scatter_K: np.ndarray
    failed_J: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Optimum:
    """The optimum of one group of rates; numbers are NaN unless status is ok.

    edge: says in `do` which rates would bracket it. penalty: rise of the loss, in nats, a factor of 2 from the optimum.
    se: standard error of ln lr; ci: 90 % interval of lr, None where there is none. parabola_3: loss = c0 + c1 u + c2
    u^2 in u = ln(lr / lr_0), through the rates in used_K.
    """

    rates: Rates
    status: Status
    do: str = ""
    lr: float = math.nan
    loss: float = math.nan
    penalty: float = math.nan
    se: float = math.nan
    ci: tuple[float, float] | None = None
    lr_0: float = math.nan
    parabola_3: np.ndarray | None = None
    used_K: np.ndarray | None = None

    @property
    def name(self) -> str:
        """The group in words: its size, batch and duration."""
        batch = "" if self.rates.B is None else f", batch {si(self.rates.B)}"
        return f"N {si(self.rates.N)}{batch}, D {si(self.rates.D)}"


@dataclasses.dataclass(frozen=True, eq=False)
class Optima:
    """All groups by rising N, B and D. noise: standard deviation of one run's loss about the parabolas, from `df`
    residuals beyond the coefficients (NaN where df is 0). failed, unfinished: rows."""

    groups: tuple[Optimum, ...]
    noise: float
    df: int
    failed: int
    unfinished: int

    @property
    def ok(self) -> tuple[Optimum, ...]:
        return tuple(group for group in self.groups if group.status == "ok")

    @property
    def open(self) -> tuple[Optimum, ...]:
        """Those without an optimum."""
        return tuple(group for group in self.groups if group.status != "ok")


def find_optima(frame: pd.DataFrame, where: str = "table") -> Optima:
    """The optima of a tuning sweep: a table of runs with columns N, D, peak_lr, loss.

    Understood where present: batch_tokens, status (done, failed; others are unfinished and left out). Raises
    InputError for a missing column or a number that is not positive, by its row.
    """
    missing = [name for name in REQUIRED if name not in frame.columns]
    if missing:
        raise InputError(f"no column {', '.join(missing)}", where, "a tuning sweep has N, D, peak_lr, loss")
    frame = frame.reset_index(drop=True).assign(row=np.arange(len(frame)))
    if "run" in frame.columns:  # a run that two variants share stands in the table twice
        frame = frame[~frame["run"].duplicated() | frame["run"].isna()]
    _refuse_mixed(frame, where)
    status = text(frame, "status").replace("", "done")
    taken = frame[status.isin(["done", "failed"])]
    done = (status == "done")[taken.index].to_numpy()
    if not done.any():
        raise InputError(f"none of {len(frame)} runs is done", where)
    loss_R = np.full(len(taken), np.nan)
    loss_R[done] = positive(taken[done], "loss", where)
    runs = pd.DataFrame({name: positive(taken, name, where) for name in ("N", "D", "peak_lr")})
    runs["B"] = positive(taken, "batch_tokens", where) if "batch_tokens" in taken.columns else np.nan
    runs["loss"] = loss_R  # NaN: failed
    runs["duration"] = runs.groupby(["N", "B"], dropna=False)["D"].transform(_durations)
    groups = tuple(_optimum(_rates(part)) for _, part in runs.groupby(["N", "B", "duration"], dropna=False))
    noise, df = _noise(groups)
    groups = tuple(_with_error(group, noise, df) for group in groups)
    return Optima(groups, noise, df, failed=int((~done).sum()), unfinished=len(frame) - len(taken))


def _refuse_mixed(frame: pd.DataFrame, where: str) -> None:
    """Raises InputError for runs that differ in more than size, duration, batch and rate: their optima may differ."""
    kept = text(frame, "variant").str.split().map(lambda words: " ".join(w for w in words if not w.startswith(TUNED)))
    others = sorted(set(kept))
    if len(others) > 1:
        said = ", ".join(repr(other) for other in others)
        raise InputError(f"the runs are of {len(others)} variants: {said}", where, "give those of one")


def _durations(D: pd.Series) -> np.ndarray:
    """Numbers the durations of one size and batch: D are whole steps, so that nearly equal ones are the same."""
    order = np.argsort(D.to_numpy(), kind="stable")
    step = np.diff(np.log(D.to_numpy()[order]), prepend=np.log(D.min())) > np.log1p(GAP)
    numbers = np.empty(len(D))
    numbers[order] = np.cumsum(step)
    return numbers


def _rates(part: pd.DataFrame) -> Rates:
    """A rate at which any seed failed counts as failed: the mean over those that survived would flatter it."""
    failed_J = np.unique(part.loc[part["loss"].isna(), "peak_lr"])
    done = part[~part["peak_lr"].isin(failed_J)].groupby("peak_lr")["loss"]
    return Rates(
        N=float(part["N"].iloc[0]),
        B=None if part["B"].isna().any() else float(part["B"].iloc[0]),
        D=float(part["D"].median()),
        lr_K=done.mean().index.to_numpy(),
        loss_K=done.mean().to_numpy(),
        count_K=done.count().to_numpy(),
        scatter_K=done.apply(lambda loss: ((loss - loss.mean()) ** 2).sum()).to_numpy(np.float64),
        failed_J=failed_J,
    )


def _optimum(rates: Rates) -> Optimum:
    lr_K, loss_K, K = rates.lr_K, rates.loss_K, len(rates.lr_K)
    if K < LEAST:
        return Optimum(rates, "too_few", f"{LEAST - K} more rates that do not fail")
    lowest = int(loss_K.argmin())
    ceiling = min(rates.failed_J[rates.failed_J > lr_K[-1]], default=math.inf)
    if lowest == 0:
        return Optimum(rates, "edge", f"rates below {lr_K[0]:.3g}")
    if lowest == K - 1 and ceiling == math.inf:
        return Optimum(rates, "edge", f"rates above {lr_K[-1]:.3g}")

    used_K = _near(np.log(lr_K), loss_K, lowest)
    u_K = np.log(lr_K / lr_K[lowest])
    parabola_3 = np.polynomial.polynomial.polyfit(u_K[used_K], loss_K[used_K], 2, w=np.sqrt(rates.count_K[used_K]))
    c0, c1, c2 = parabola_3
    if c2 <= 1e-9 * loss_K[lowest]:
        return Optimum(rates, "not_convex", f"more seeds, or rates between {lr_K[0]:.3g} and {lr_K[-1]:.3g}")
    u = -c1 / (2 * c2)
    lr = float(lr_K[lowest] * np.exp(u))
    if not lr_K[used_K][0] < lr < max(lr_K[used_K][-1], ceiling if lowest == K - 1 else 0.0):
        return Optimum(rates, "edge", _beyond(rates, lr, ceiling))
    return Optimum(
        rates,
        "ok",
        lr=lr,
        loss=float(c0 + c1 * u / 2),
        penalty=float(c2 * math.log(2) ** 2),
        lr_0=float(lr_K[lowest]),
        parabola_3=parabola_3,
        used_K=used_K,
    )


def _near(x_K: np.ndarray, loss_K: np.ndarray, lowest: int) -> np.ndarray:
    """Mask of the rates that the parabola goes through: the lowest loss, its neighbours, then by distance in x."""
    order = sorted(range(len(x_K)), key=lambda k: (abs(k - lowest) > 1, abs(x_K[k] - x_K[lowest])))
    near = [k for k in order[LEAST:] if loss_K[k] <= (1 + LOCAL) * loss_K[lowest]]
    return np.isin(np.arange(len(x_K)), [*order[:LEAST], *near][:MOST])


def _beyond(rates: Rates, lr: float, ceiling: float) -> str:
    """Which rates would bracket a minimum that the parabola puts outside of those it went through."""
    if lr <= rates.lr_K[0]:
        return f"rates below {rates.lr_K[0]:.3g}"
    if ceiling < math.inf:
        return f"rates between {rates.lr_K[-1]:.3g} and {ceiling:.3g}, where runs failed"
    return f"more rates near {lr:.3g}"


def _noise(groups: tuple[Optimum, ...]) -> tuple[float, int]:
    """Standard deviation of one run about the parabolas, pooled over the groups, and its degrees of freedom."""
    squares, df = 0.0, 0
    for group in groups:
        if group.status == "ok":
            rates, used_K = group.rates, group.used_K
            off_K = rates.loss_K - np.polynomial.polynomial.polyval(np.log(rates.lr_K / group.lr_0), group.parabola_3)
            squares += float((rates.scatter_K + rates.count_K * off_K**2)[used_K].sum())
            df += int(rates.count_K[used_K].sum()) - 3
    return (math.sqrt(squares / df), df) if df else (math.nan, 0)


def _with_error(group: Optimum, noise: float, df: int) -> Optimum:
    """The same optimum with its standard error (delta method) and interval (Fieller)."""
    if group.status != "ok" or not df:
        return group
    _, c1, c2 = group.parabola_3
    X = np.vander(np.log(group.rates.lr_K / group.lr_0)[group.used_K], 3, increasing=True)
    cov = noise**2 * np.linalg.inv((X * group.rates.count_K[group.used_K, None]).T @ X)
    gradient = np.array([0.0, -1 / (2 * c2), c1 / (2 * c2**2)])
    tt = stats.t.ppf((1 + LEVEL) / 2, df) ** 2
    # Slope zero within its error: (c1 + 2 c2 u)^2 <= t^2 var(c1 + 2 c2 u), a quadratic in u.
    A, half_B, C = 4 * (c2**2 - tt * cov[2, 2]), 2 * (c1 * c2 - tt * cov[1, 2]), c1**2 - tt * cov[1, 1]
    root = math.sqrt(max(0.0, half_B**2 - A * C))
    ends = group.lr_0 * np.exp([(-half_B - root) / A, (-half_B + root) / A]) if A > 0 else None
    ci = None if ends is None else (float(ends[0]), float(ends[1]))
    return dataclasses.replace(group, se=float(math.sqrt(gradient @ cov @ gradient)), ci=ci)
