"""The noise floor: how much runs that differ in their seed only differ in loss, and whether the law misses by more.

Replicates give a pooled standard deviation of log loss that no law enters, and its chi-square interval. With m seeds of
a setting there are m - 1 degrees of freedom. Checkpoints or forks of one run share their noise, so that the degrees of
freedom count trajectories and not rows: with settings and trajectories as the two sides of a graph, they are the
trajectories less the connected components, at most the sum of m - 1.

The F test of lack of fit (Draper & Smith 1998, 2.1) divides the residuals of a least-squares fit of the law into the
scatter of replicates about their own mean and the distance of these means from the law.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse, stats

from scaling.analysis.fitting import SQUARES_LOG, Fit, fit
from scaling.analysis.intervals import LEVEL
from scaling.analysis.table import Table

MIN_DOF = 4  # of a budget that gets a noise floor of its own: below, the interval spans more than a factor of three


@dataclasses.dataclass(frozen=True)
class Noise:
    """The noise floor of a table.

    replicates: runs in `settings` settings that were run with several seeds. sd_log_loss, sd_loss: EST of the standard
    deviation of one run, of log loss and in the unit of the loss. budgets: the same for each budget, where there are
    enough. residual_rms: of log loss about the law of the report, sqrt(sum of squares / (rows - parameters)). misfit:
    the F test of lack of fit, or why there is none. agree, differ: columns, as in replicates.Seeds.
    """

    replicates: int
    settings: int
    dof: int
    sd_log_loss: dict[str, Any]
    sd_loss: dict[str, Any]
    unit: str
    budgets: tuple[dict[str, Any], ...]
    residual_rms: float | None
    misfit: dict[str, Any]
    agree: tuple[str, ...]
    differ: tuple[str, ...]


class _Units(NamedTuple):
    """U independent losses: the mean over rows of one setting and one seed. first_U: one row of each."""

    setting_U: np.ndarray
    trajectory_U: np.ndarray
    loss_U: np.ndarray
    first_U: np.ndarray

    def where(self, mask_U: np.ndarray) -> "_Units":
        return _Units(*(values[mask_U] for values in self))


def noise(table: Table, fitted: Fit) -> Noise | str:
    """The noise floor; a string says why it is not known."""
    if table.seeds is None:
        return "the table has no column seed"
    units = _units(table)
    several = np.bincount(units.setting_U) > 1
    repeated = units.where(several[units.setting_U])
    if not len(repeated.loss_U):
        return "no two runs differ in their seed only"
    dof = degrees(repeated.setting_U, repeated.trajectory_U)
    if dof == 0:
        return "the runs with several seeds share one trunk or run"
    if not _squares(np.log(repeated.loss_U), repeated.setting_U):
        return "runs that differ in their seed only have the same loss to the last digit: the seed changed nothing"
    left = len(table.N_R) - _free(fitted)
    return Noise(
        replicates=len(repeated.loss_U),
        settings=int(several.sum()),
        dof=dof,
        sd_log_loss=_spread(np.log(repeated.loss_U), repeated, dof),
        sd_loss=_spread(repeated.loss_U, repeated, dof),
        unit=table.unit,
        budgets=_budgets(table, repeated),
        residual_rms=float(np.sqrt((fitted.residual_R**2).sum() / left)) if left > 0 else None,
        misfit=_lack_of_fit(fitted, units),
        agree=table.seeds.agree,
        differ=table.seeds.differ,
    )


def degrees(setting_U: np.ndarray, trajectory_U: np.ndarray) -> int:
    """Degrees of freedom of the spread within settings: trajectories less connected components."""
    settings, setting_U = np.unique(setting_U, return_inverse=True)
    trajectories, trajectory_U = np.unique(trajectory_U, return_inverse=True)
    nodes = len(settings) + len(trajectories)
    edges = (np.ones(len(setting_U)), (setting_U, len(settings) + trajectory_U))
    components, _ = sparse.csgraph.connected_components(sparse.coo_matrix(edges, (nodes, nodes)), directed=False)
    return len(trajectories) - components


def interval(sd: float, dof: int) -> dict[str, Any]:
    """EST of a standard deviation, with its chi-square interval."""
    low, high = (sd * np.sqrt(dof / stats.chi2.ppf(p, dof)) for p in ((1 + LEVEL) / 2, (1 - LEVEL) / 2))
    return {"value": float(sd), "ci": [float(low), float(high)], "level": LEVEL}


def _units(table: Table) -> _Units:
    """Same seed, same setting: one run, however often its row is in the table. An unknown seed repeats nothing."""
    alone_R = table.seeds.seed_R < 0
    row_R = np.arange(len(alone_R))
    setting_R = np.where(alone_R, table.seeds.setting_R.max() + 1 + row_R, table.seeds.setting_R)
    _, first_U, unit_R = np.unique(
        np.stack([setting_R, table.seeds.seed_R]), axis=1, return_index=True, return_inverse=True
    )
    unit_R = unit_R.ravel()
    log_loss_U = np.bincount(unit_R, np.log(table.loss_R)) / np.bincount(unit_R)
    # Rows of one run name but several seeds are several trajectories.
    trajectory_R = np.unique(np.stack([table.cluster_R, table.seeds.seed_R]), axis=1, return_inverse=True)[1].ravel()
    setting_U = np.unique(setting_R[first_U], return_inverse=True)[1]
    return _Units(setting_U, trajectory_R[first_U], np.exp(log_loss_U), first_U)


def _squares(values_U: np.ndarray, setting_U: np.ndarray) -> float:
    """Sum of squares about the means of the settings."""
    _, setting_U = np.unique(setting_U, return_inverse=True)
    mean_S = np.bincount(setting_U, values_U) / np.bincount(setting_U)
    return float(((values_U - mean_S[setting_U]) ** 2).sum())


def _spread(values_U: np.ndarray, units: _Units, dof: int) -> dict[str, Any]:
    """Pooled standard deviation: unbiased in its square by rows, as certain as its trajectories."""
    rows = len(values_U) - len(np.unique(units.setting_U))
    return interval(np.sqrt(_squares(values_U, units.setting_U) / rows), dof)


def _budgets(table: Table, repeated: _Units) -> tuple[dict[str, Any], ...]:
    found = []
    budget_U = table.budget_R[repeated.first_U]
    for budget in np.unique(budget_U[budget_U >= 0]):
        units = repeated.where(budget_U == budget)
        several = np.bincount(units.setting_U) > 1
        units = units.where(several[units.setting_U])
        dof = degrees(units.setting_U, units.trajectory_U)
        if dof >= MIN_DOF:
            C = float(np.exp(np.log(table.C_R[table.budget_R == budget]).mean()))
            found.append({"C": C, "dof": dof, "sd_log_loss": _spread(np.log(units.loss_U), units, dof)})
    return tuple(found) if len(found) > 1 else ()


def _free(fitted: Fit) -> int:
    """Parameters that the fit was free to choose."""
    return len(fitted.theta_P) - len(fitted.certificate["at_bound"])


def _lack_of_fit(fitted: Fit, units: _Units) -> dict[str, Any]:
    """The F test, on a least-squares fit: the law of the report, by its objective, need not be nearest in squares."""
    if len(np.unique(units.trajectory_U)) < len(units.trajectory_U):
        return {"skipped": "rows share trunks or runs, so that their distances from the law are not independent"}
    _, setting_U = np.unique(units.setting_U, return_inverse=True)
    count_S = np.bincount(setting_U)
    law, P = fitted.law, len(fitted.law.parameters)
    if len(count_S) <= P:
        return {"skipped": f"{len(count_S)} settings leave nothing to test a law of {P} parameters by"}
    squares = fit(law, fitted.inputs.rows(units.first_U), units.loss_U, SQUARES_LOG)
    noise_dof, misfit_dof = len(units.loss_U) - len(count_S), len(count_S) - _free(squares)
    noise_squares = _squares(np.log(units.loss_U), setting_U)
    of_noise = noise_squares / noise_dof
    of_misfit = float(((squares.residual_R**2).sum() - noise_squares) / misfit_dof)
    # Runs a setting, as the variance of its mean counts them (Searle, Casella & McCulloch 1992, 3.6).
    runs = (count_S.sum() - (count_S**2).sum() / count_S.sum()) / (len(count_S) - 1)
    return {
        "F": of_misfit / of_noise,
        "dof": [misfit_dof, noise_dof],
        "p": float(stats.f.sf(of_misfit / of_noise, misfit_dof, noise_dof)),
        "sd_log_loss": float(np.sqrt(max(0.0, of_misfit - of_noise) / runs)),
        "critical_F": float(stats.f.ppf(0.95, misfit_dof, noise_dof)),
    }
