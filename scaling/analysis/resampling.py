"""The bootstrap of a fitted law: which units are resampled, the weights, and the law refitted under each of them.

Rows of one trunk, else of one run, share their noise: the checkpoints of ten runs are ten observations and not a
hundred, and resampled one by one they give intervals that hold half of the time at a nominal 90 %. The unit is
therefore the cluster of rows that the table's columns name, and every row of a cluster has the same weight.

The weights are Dirichlet's: the Bayesian bootstrap of Rubin (1981), or the weighted likelihood bootstrap of Newton &
Raftery (1994), of clusters; here with shape (K - 1) / K, so that mean, variance and covariances of the weights are
those of K draws with replacement. Counts of such draws drop 37 % of the clusters: of a designed grid that takes whole
sizes or budgets away, some resamples cannot determine the law at all, and the spread of the others is that of thinner
designs than the one that was run. Positive weights keep the design. In `benchmarks.coverage` their intervals are a
tenth to a fifth narrower than those of counts, and hold what they promise.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse, stats

from scaling.analysis.fitting import Fit, refit
from scaling.analysis.intervals import LEVEL, interval, widening
from scaling.analysis.laws import inputs_of
from scaling.analysis.noise import noise
from scaling.analysis.table import Table
from scaling.errors import InputError, nearest

Unit = Literal["auto", "points", "runs", "trunks", "seeds", "noise"]
UNITS = ("auto", "points", "runs", "trunks", "seeds", "noise")
RESAMPLES = 1000
FEW = 10  # clusters, below which no weighting of them spreads as much as the law does


@dataclasses.dataclass(frozen=True, eq=False)
class Bootstrap:
    """B refits of a law. theta_BxP: its coordinates in each; gradient_B: relative gradient that each refit ended with.

    unit: what was resampled. clusters: how many independent units there were; one less is the degrees of freedom.
    spread: how much further the law spreads than the draws do, 1 from FEW clusters on, see `_spread`.
    """

    fit: Fit
    theta_BxP: np.ndarray
    gradient_B: np.ndarray
    unit: str
    clusters: int
    spread: float = 1.0

    def of(self, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The draws values_B of a function of theta_BxP."""
        return np.asarray(function(self.theta_BxP))

    def interval(self, function: Callable[[np.ndarray], np.ndarray], *, positive: bool = False) -> dict[str, Any]:
        """EST of a function of theta_BxP: its value at the fit, and the interval of reports."""
        value = float(np.asarray(function(self.fit.theta_P[None]))[0])
        return self.est(value, self.of(function), positive=positive)

    def est(self, value: float, draws_B: np.ndarray, *, positive: bool = False) -> dict[str, Any]:
        """EST of a value and its draws, one of each resample, by `intervals.interval`.

        positive: on the log scale, as befits N*, D*, a loss, a factor.
        """
        return interval(value, draws_B, clusters=self.clusters, positive=positive, spread=self.spread)


def bootstrap(
    fitted: Fit,
    table: Table,
    *,
    unit: Unit = "auto",
    resamples: int = RESAMPLES,
    seed: int | np.random.Generator = 0,
    sd: float | None = None,
) -> Bootstrap:
    """Refits a law to the table's runs, resampled `resamples` times.

    unit: "trunks" (else a row's run, else the row), "runs" (else the row), "points" (rows, whatever they share), "auto"
    (trunks where the table names any, else runs, else points). "seeds": the design stays, and within each setting its
    seeds are resampled, so that it must have two at least. "noise": the losses are drawn anew about the fitted law with
    normal noise of log loss; its standard deviation is `sd`, or where that is None what the table's replicates scatter
    by. "seeds" and "noise" leave out what the law misses by, the others do not. seed: of the weights, or a generator.
    Raises InputError where the table does not have what the unit needs.
    """
    rng = np.random.default_rng(seed)
    inputs = inputs_of(table, fitted.law)
    name = _named(table, unit)
    if sd is not None and name != "noise":
        raise InputError(f"sd={sd} is of unit='noise', and the unit is {name!r}")
    loss_BxR, spread = None, 1.0
    if name == "noise":
        sd, clusters = _noise(fitted, table, sd)
        law_R = table.loss_R * np.exp(-fitted.residual_R)
        loss_BxR = law_R * np.exp(sd * rng.standard_normal((resamples, len(law_R))))
        weight_BxR = np.ones((resamples, len(law_R)))
    elif name == "seeds":
        weight_BxR, clusters = _seed_weights(table, resamples, rng)
    else:
        unit_R = cluster_of(table, name)
        weight_BxR, clusters = dirichlet_weights(unit_R, resamples, rng), int(unit_R.max()) + 1
    if resamples == 0:
        return Bootstrap(fitted, np.empty((0, len(fitted.theta_P))), np.empty(0), name, clusters)
    refits = refit(fitted, inputs, table.loss_R, weight_BxR, seed=int(rng.integers(2**31)), loss_BxR=loss_BxR)
    if name not in ("seeds", "noise") and 1 < clusters < FEW:
        spread = _spread(refits.theta_BxP, jackknife(fitted, table, unit=name))
    return Bootstrap(fitted, refits.theta_BxP, refits.gradient_B, name, clusters, spread)


def jackknife(fitted: Fit, table: Table, *, unit: Unit = "auto") -> Bootstrap:
    """The law without each of the K clusters in turn: theta_KxP, for `intervals.studentised`."""
    name = _named(table, unit)
    if name in ("seeds", "noise"):
        raise InputError(f"a jackknife leaves out clusters, which unit={name!r} does not have", do="use unit='auto'")
    unit_R = cluster_of(table, name)
    K = int(unit_R.max()) + 1
    left_out = refit(fitted, inputs_of(table, fitted.law), table.loss_R, (1.0 - np.eye(K))[:, unit_R], seed=0)
    return Bootstrap(fitted, left_out.theta_BxP, left_out.gradient_B, name, K)


def cluster_of(table: Table, unit: Unit) -> np.ndarray:
    """A number per row, from zero, shared by the rows that are resampled together."""
    name = _named(table, unit)
    if name == "trunks":
        return np.unique(table.cluster_R, return_inverse=True)[1]
    if name == "points":
        return np.arange(len(table.N_R))
    run_R = table.labels["run"]
    alone_R = np.array([f"row {row}" for row in table.row_R])
    return pd.factorize(np.where(run_R == "", alone_R, np.char.add("run ", run_R)))[0]


def dirichlet_weights(cluster_R: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """weight_BxR of rows, shared by the rows of a cluster: K Dirichlet((K - 1) / K, ...), with the mean 1, variance
    (K - 1) / K and covariances -1 / K of the counts of K draws with replacement. One cluster has the weight 1."""
    K = int(cluster_R.max()) + 1
    if K == 1:
        return np.ones((resamples, len(cluster_R)))
    return (K * rng.dirichlet(np.full(K, (K - 1) / K), size=resamples))[:, cluster_R]


def _spread(theta_BxP: np.ndarray, left_out: Bootstrap) -> float:
    """The jackknife's standard error over that of the widened draws: the median over the law's coordinates, at least 1.

    Of four sizes, N has three parameters to determine: the draws then show a third of the spread, since every weighting
    goes on fitting the heaviest sizes. A cluster that is left out shows its whole leverage (CV3 of MacKinnon, Nielsen &
    Webb 2023).
    """
    K, theta_P = left_out.clusters, left_out.fit.theta_P
    jackknife_P = np.sqrt((K - 1) / K * ((left_out.theta_BxP - theta_P) ** 2).sum(0))
    low_P, high_P = np.quantile(theta_BxP, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    widened_P = widening(K) * (high_P - low_P) / 2
    moves_P = widened_P > 0  # a parameter that stays at its bound tells nothing
    t = stats.t.ppf((1 + LEVEL) / 2, K - 1)
    return max(1.0, float(np.median(t * jackknife_P[moves_P] / widened_P[moves_P]))) if moves_P.any() else 1.0


def _named(table: Table, unit: str) -> str:
    """The unit by name, "auto" resolved; refuses a unit that the table has no column for."""
    if unit not in UNITS:
        raise InputError(f"unit={unit!r} is not one of {', '.join(UNITS)}", do=nearest(unit, UNITS))
    has = {f"{name}s": bool((label_R != "").any()) for name, label_R in table.labels.items()}
    if unit == "auto":
        return next((name for name in ("trunks", "runs") if has[name]), "points")
    if unit in has and not has[unit]:
        raise InputError(f"unit={unit!r} needs a column {unit[:-1]}", do="add it, or use unit='auto'")
    return unit


def _noise(fitted: Fit, table: Table, sd: float | None) -> tuple[float, int]:
    """The standard deviation of log loss of one run, and its degrees of freedom plus one."""
    if table.correlated:
        what = "unit='noise' draws each row's noise anew, but some rows share their trunk or run"
        raise InputError(what, do="use unit='auto', which resamples them together")
    if sd is not None:
        if not (np.isfinite(sd) and sd > 0):
            raise InputError(f"sd={sd} is not a positive standard deviation of log loss")
        return sd, len(table.N_R)
    measured = noise(table, fitted)
    if isinstance(measured, str):
        raise InputError(f"unit='noise' without sd: {measured}", do="give sd, or use unit='auto'")
    return measured.sd_log_loss["value"], measured.dof + 1


def _seed_weights(table: Table, resamples: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """weight_BxR that resample the seeds of each setting, and the degrees of freedom plus one.

    Settings that are checkpoints of the same trajectories form one group, whose trajectories are resampled. Of m of
    them m - 1 are drawn and count m / (m - 1), which makes the variance of a mean unbiased however few they are (Rao &
    Wu 1988).
    """
    group_R, member_R = _groups(table)
    members_G = np.array([len(np.unique(member_R[group_R == g])) for g in range(group_R.max() + 1)])
    if (members_G < 2).any():
        row = table.row_R[np.flatnonzero(group_R == np.argmin(members_G))[0]]
        what = f"unit='seeds' needs two seeds of every setting, and that of row {row} (counting from 0) has one"
        raise InputError(what, do="use unit='auto', or unit='noise' with the scatter of the settings that have more")
    weight_BxR = np.empty((resamples, len(group_R)))
    for g, m in enumerate(members_G):
        rows = np.flatnonzero(group_R == g)
        count_BxM = rng.multinomial(m - 1, np.full(m, 1.0 / m), size=resamples)
        weight_BxR[:, rows] = count_BxM[:, np.unique(member_R[rows], return_inverse=True)[1]] * (m / (m - 1))
    return weight_BxR, int((members_G - 1).sum()) + 1


def _groups(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Of each row: the number of its group of settings that share trajectories, and that of its trajectory."""
    setting_R = np.unique(table.seeds.setting_R, return_inverse=True)[1]
    pairs_2xR = np.stack([table.cluster_R, table.seeds.seed_R])
    trajectory_R = np.unique(pairs_2xR, axis=1, return_inverse=True)[1].ravel()
    S, T = setting_R.max() + 1, trajectory_R.max() + 1
    edges = (np.ones(len(setting_R)), (setting_R, S + trajectory_R))
    _, part_N = sparse.csgraph.connected_components(sparse.coo_matrix(edges, (S + T, S + T)), directed=False)
    return np.unique(part_N[setting_R], return_inverse=True)[1], trajectory_R
