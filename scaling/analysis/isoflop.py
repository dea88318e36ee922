"""Approach 2: the loss-minimising size of each compute budget, and power laws through them (Hoffmann et al. 2022, 3.2).

At one budget the loss is a valley in ln N. It is not a parabola: a quadratic through a wide range of sizes puts the
minimum of the Chinchilla law 3 % off over +-8x, and off-centre ranges, or ranges that drift with the budget, bias the
optimum by tens of per cent and the exponent with it (Czech et al. 2026; `bias` has the closed form, and each budget its
own). The minimum here is that of a two-exponential valley, whose exponents the budgets share, with smooth departures
where the losses ask for them (`minima`). Of seven methods it is the most accurate in 71 simulated designs, laws that
hold and one that does not: root mean squared error of ln N* .125, of the exponent .032, where local quadratics have
.144 and .036, Akima's spline .248 and .052, one parabola .163 and .043 (benchmarks/isoflop.py).

Runs of one size at one budget (seeds) are averaged first and count by their number. Each optimum has a standard
deviation, and the power laws weigh the optima by it; N* and D* have one each, since C need not be 6ND.
"""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np

from scaling.analysis.bias import vertex
from scaling.analysis.minima import ALPHA_H, BETA_H, Candidates, Curve, Minima, candidates, deviation, minima
from scaling.analysis.powers import Power, excess, power_law
from scaling.analysis.table import MIN_SIZES, Table

Status = Literal["ok", "edge", "too_few", "not_convex", "not_bracketed"]
SAME = 1e-6  # relative difference of N up to which two sizes are one, printed with other digits
METHOD = (
    "minimum of a two-exponential valley in ln N whose exponents all budgets share, plus a smooth departure from it "
    "(universal kriging, averaged over exponents and roughness by their restricted likelihood; the most accurate of "
    "seven methods in simulated sweeps); log-log least squares of the minima on C, weighted by their variances"
)


class Cells(NamedTuple):
    """One budget: S sizes by rising N, with the mean over the runs of each size."""

    C: float
    N_S: np.ndarray
    F_S: np.ndarray  # FLOPs per token, C / D
    loss_S: np.ndarray
    count_S: np.ndarray
    rows_S: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Budget:
    """One budget's optimum; NaN where the status is not ok.

    sd: standard deviation of ln N_opt. bias: what a parabola would add to ln N_opt, in closed form: its minimum less
    N_opt, were the losses of these very sizes on the fitted curve. used_S: which sizes the curve was fitted to; curve:
    None where there is none.
    """

    cells: Cells
    status: Status
    N_opt: float
    D_opt: float
    loss_opt: float
    sd: float
    bias: float
    used_S: np.ndarray
    curve: Curve | None

    @property
    def C(self) -> float:
        return self.cells.C

    @property
    def n(self) -> int:
        return int(self.cells.count_S.sum())

    def loss(self, N: np.ndarray | float) -> np.ndarray:
        """The fitted curve at sizes N_M; NaN beyond the sizes of the budget, and where no curve was fitted."""
        log_N_M = np.log(np.atleast_1d(np.asarray(N, np.float64)))
        if self.curve is None:
            return np.full(log_N_M.shape, np.nan)
        log_N_S = self.curve.log_N_S
        within_M = (log_N_M >= log_N_S[0] - 1e-9) & (log_N_M <= log_N_S[-1] + 1e-9)
        return np.where(within_M, self.curve.at(log_N_M.clip(log_N_S[0], log_N_S[-1]))[0], np.nan)


@dataclasses.dataclass(frozen=True, eq=False)
class IsoFLOP:
    """Approach 2: the budgets by rising C, and N*(C), D*(C) through the K whose status is ok.

    alpha, beta: exponents of the shared valley (geometric means of their posterior; weakly determined where sweeps are
    narrow). rough: probability that the valleys depart from it. noise: standard deviation of one run's loss about the
    curves, relative to the loss. scatter: that of ln N* about the power law beyond the deviations of the budgets.
    weight_K: of the budgets that are ok, in the power laws.
    """

    budgets: tuple[Budget, ...]
    N_power: Power
    D_power: Power
    alpha: float
    beta: float
    rough: float
    noise: float
    scatter: float
    weight_K: np.ndarray
    method: str = METHOD

    @property
    def usable(self) -> tuple[Budget, ...]:
        return tuple(budget for budget in self.budgets if budget.status == "ok")


def isoflop(table: Table) -> IsoFLOP | str:
    """Approach 2 on the table's budgets; a string says why it cannot be done."""
    numbers = [number for number in np.unique(table.budget_R) if number >= 0]
    if not numbers:
        return f"the table has no isoFLOP budgets: no group of rows of nearly one C holds {MIN_SIZES} sizes"
    budgets = [_without(cells_of(table, number)) for number in numbers]
    # Budgets whose lowest loss is at an end have seen one side of their valley: they say nothing of its shape.
    inner = [k for k, budget in enumerate(budgets) if budget.status == "ok"]
    alpha, beta, rough, noise = (float("nan"),) * 4
    if inner:
        cells = [budgets[k].cells for k in inner]
        seen = [candidates(np.log(each.N_S), each.count_S) for each in cells]
        found = minima(seen, [each.loss_S[None] for each in cells])
        alpha, beta, rough = shape(found.posterior.share_BxHxL[0])
        noise = float(found.posterior.noise_B[0])
        for at, k in enumerate(inner):
            budgets[k] = _budget(budgets[k], seen[at], found, at)
    ok = [budget for budget in budgets if budget.status == "ok"]
    C_K, N_K, D_K, variance_K = np.array([[b.C, b.N_opt, b.D_opt, b.sd**2] for b in ok]).reshape(-1, 4).T
    between = excess(C_K, N_K, variance_K)
    # The deviations are estimates too: with their mean added, no budget weighs more than twice what an average one
    # does.
    weight_K = 1.0 / (variance_K + max(between, variance_K.mean())) if ok else variance_K
    return IsoFLOP(
        budgets=tuple(budgets),
        N_power=power_law(C_K[None], N_K[None], weight_K),
        D_power=power_law(C_K[None], D_K[None], weight_K),
        alpha=alpha,
        beta=beta,
        rough=rough,
        noise=noise,
        scatter=float(np.sqrt(between)),
        weight_K=weight_K,
    )


def cells_of(table: Table, number: int) -> Cells:
    """The sizes of one budget."""
    rows = np.flatnonzero(table.budget_R == number)
    N_S = np.unique(table.N_R[rows])
    rows_S = tuple(rows[table.N_R[rows] == N] for N in N_S)
    return Cells(
        C=float(np.exp(np.log(table.C_R[rows]).mean())),
        N_S=N_S,
        F_S=np.array([np.exp(np.log(table.C_R[r] / table.D_R[r]).mean()) for r in rows_S]),
        loss_S=np.array([table.loss_R[r].mean() for r in rows_S]),
        count_S=np.array([len(r) for r in rows_S]),
        rows_S=rows_S,
    )


def tokens_at(cells: Cells, log_N_B: np.ndarray) -> np.ndarray:
    """D at sizes between those of the budget: C over the FLOPs per token, interpolated in log-log."""
    return cells.C / np.exp(np.interp(log_N_B, np.log(cells.N_S), np.log(cells.F_S)))


def interior(loss_BxS: np.ndarray) -> np.ndarray:
    """Whether the lowest of a budget's losses is at neither end, in each of B versions."""
    lowest_B = loss_BxS.argmin(1)
    return (lowest_B > 0) & (lowest_B < loss_BxS.shape[1] - 1)


def shape(share_HxL: np.ndarray) -> tuple[float, float, float]:
    """alpha, beta (geometric means over the candidates) and the probability of a departure."""
    share_H = share_HxL.sum(1)
    alpha, beta = (float(np.exp(share_H @ np.log(exponent_H))) for exponent_H in (ALPHA_H, BETA_H))
    return alpha, beta, float(share_HxL[:, 1:].sum())


def _without(cells: Cells) -> Budget:
    """A budget before its curve is fitted; ok here says that it can be."""
    nothing = float("nan")
    too_few = 1 + (np.diff(np.log(cells.N_S)) > SAME).sum() < MIN_SIZES
    status = "too_few" if too_few else "ok" if interior(cells.loss_S[None])[0] else "edge"
    return Budget(cells, status, nothing, nothing, nothing, nothing, nothing, np.zeros(len(cells.N_S), bool), None)


def _budget(budget: Budget, seen: Candidates, found: Minima, at: int) -> Budget:
    cells, curve = budget.cells, found.curves[at]
    fitted = dataclasses.replace(budget, used_S=np.ones(len(cells.N_S), bool), curve=curve)
    if curve.bend_B[0] <= 0:
        return dataclasses.replace(fitted, status="not_convex")
    if not found.inside_BxK[0, at]:
        return dataclasses.replace(fitted, status="not_bracketed")
    log_N = found.log_N_BxK[0, at]
    sd = deviation(seen, found.posterior, cells.loss_S, float(log_N))
    if not np.isfinite(sd):
        return dataclasses.replace(fitted, status="not_convex")
    return dataclasses.replace(
        fitted,
        N_opt=float(np.exp(log_N)),
        D_opt=float(tokens_at(cells, log_N[None])[0]),
        loss_opt=float(found.loss_BxK[0, at]),
        sd=sd,
        bias=vertex(np.log(cells.N_S) - log_N, fitted.loss(cells.N_S), weight_S=cells.count_S),
    )
