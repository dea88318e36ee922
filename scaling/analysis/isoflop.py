"""Approach 2: the loss-minimising size of each compute budget, and power laws through them (Hoffmann et al. 2022, 3.2).

At one budget the loss is a valley in log N. It is not a parabola: a quadratic through a wide range of sizes puts the
minimum of the Chinchilla law 3 % off over +-8x, and off-centre ranges, or ranges that drift with the budget, bias the
optimum by tens of per cent and the exponent with it (Czech et al. 2026). So the quadratic here is local (Cleveland
1979): sizes weigh by their distance in ln N from the centre, and the centre moves until it is the quadratic's own
minimum. The window is then symmetric about the optimum wherever the sizes were placed. Its half-width of 2 in ln N
reaches +-7.4x with weights above one half within +-3.4x: there the parabola of the Chinchilla law is 1 % off, less than
noise allows to see. Runs of one size at one budget (seeds) are averaged first and weigh by their number.
"""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np

from scaling.analysis.powers import Power, power_law
from scaling.analysis.table import MIN_SIZES, Table

HALF_WIDTH = 2.0  # of the window, in ln N
LEAST = 5  # sizes in the window, which widens to hold them: three determine a parabola, two average the noise
ROUNDS = 100
Status = Literal["ok", "edge", "too_few", "not_convex", "not_bracketed"]
METHOD = (
    f"minimum of a local quadratic in ln N, tricube weights of half-width {HALF_WIDTH:g} in ln N (wider where fewer "
    f"than {LEAST} sizes are near) centred on the minimum itself; log-log least squares of the minima on C"
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
    """One budget's optimum. parabola: loss = c0 + c1 u + c2 u^2 in u = ln(N / N_0); weight_S: of the sizes in it."""

    cells: Cells
    status: Status
    N_opt: float
    D_opt: float
    loss_opt: float
    N_0: float
    parabola: np.ndarray
    weight_S: np.ndarray

    @property
    def C(self) -> float:
        return self.cells.C

    @property
    def n(self) -> int:
        return int(self.cells.count_S.sum())


@dataclasses.dataclass(frozen=True, eq=False)
class IsoFLOP:
    """Approach 2: the budgets by rising C, and N*(C), D*(C) through those whose status is ok."""

    budgets: tuple[Budget, ...]
    N_power: Power
    D_power: Power


class Vertices(NamedTuple):
    """Minima of B versions of one budget. parabola_Bx3 is about centre_B, the ln N at which weight_BxS is centred."""

    log_N_B: np.ndarray
    loss_B: np.ndarray
    status_B: np.ndarray
    parabola_Bx3: np.ndarray
    centre_B: np.ndarray
    weight_BxS: np.ndarray


def isoflop(table: Table) -> IsoFLOP | str:
    """Approach 2 on the table's budgets; a string says why it cannot be done."""
    numbers = [number for number in np.unique(table.budget_R) if number >= 0]
    if not numbers:
        return f"the table has no isoFLOP budgets: no group of rows of nearly one C holds {MIN_SIZES} sizes"
    budgets = tuple(_budget(cells_of(table, number)) for number in numbers)
    ok = [budget for budget in budgets if budget.status == "ok"]
    C = np.array([[budget.C for budget in ok]])
    N_power = power_law(C, np.array([[budget.N_opt for budget in ok]]))
    D_power = power_law(C, np.array([[budget.D_opt for budget in ok]]))
    return IsoFLOP(budgets, N_power, D_power)


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


def vertices(cells: Cells, loss_BxS: np.ndarray, half_width: float = HALF_WIDTH) -> Vertices:
    """The minimum of B versions of a budget's losses; an infinite half-width is one quadratic through all sizes."""
    x_S = np.log(cells.N_S)
    lowest_B = loss_BxS.argmin(1)
    centre_B = x_S[lowest_B]
    moving_B = np.ones(len(loss_BxS), bool)
    for _ in range(ROUNDS):
        weight_BxS = cells.count_S * tricube(x_S - centre_B[:, None], half_width)
        parabola_Bx3 = _parabolas(x_S - centre_B[:, None], loss_BxS, weight_BxS)
        _, c1_B, c2_B = parabola_Bx3.T
        convex_B = c2_B > 1e-9 * loss_BxS.mean(1)
        shift_B = np.where(convex_B, -c1_B / np.where(convex_B, 2 * c2_B, 1.0), 0.0)
        inside_B = (centre_B + shift_B > x_S[0]) & (centre_B + shift_B < x_S[-1])
        moving_B = convex_B & inside_B & (np.abs(shift_B) > 1e-9) & np.isfinite(half_width)
        if not moving_B.any():
            break
        centre_B = centre_B + np.where(moving_B, shift_B, 0.0)
    at_edge_B = (lowest_B == 0) | (lowest_B == len(x_S) - 1)
    status_B = np.select([at_edge_B, ~convex_B, ~inside_B], ["edge", "not_convex", "not_bracketed"], "ok")
    loss_B = parabola_Bx3[:, 0] + 0.5 * c1_B * shift_B
    return Vertices(centre_B + shift_B, loss_B, status_B, parabola_Bx3, centre_B, weight_BxS)


def tricube(u_BxS: np.ndarray, half_width: float) -> np.ndarray:
    """Weights by distance from the centre: 1 there, 0 beyond the half-width; wider where fewer than LEAST sizes are
    in."""
    distance_BxS = np.abs(u_BxS)
    far_BxS = np.sort(distance_BxS, axis=1)
    # The next size beyond the LEAST nearest weighs nothing; where there is none, all weigh something.
    enough_B = far_BxS[:, LEAST] if far_BxS.shape[1] > LEAST else 1.5 * far_BxS[:, -1]
    reach_Bx1 = np.maximum(half_width, enough_B)[:, None]
    return (1 - np.minimum(distance_BxS / reach_Bx1, 1) ** 3) ** 3


def _parabolas(u_BxS: np.ndarray, loss_BxS: np.ndarray, weight_BxS: np.ndarray) -> np.ndarray:
    """Weighted least squares of loss on 1, u, u^2 in each of B rows."""
    design_BxSx3 = u_BxS[:, :, None] ** np.arange(3)
    weighted_Bx3xS = (design_BxSx3 * weight_BxS[:, :, None]).transpose(0, 2, 1)
    return np.linalg.solve(weighted_Bx3xS @ design_BxSx3, weighted_Bx3xS @ loss_BxS[:, :, None])[:, :, 0]


def tokens_at(cells: Cells, log_N_B: np.ndarray) -> np.ndarray:
    """D at sizes between those of the budget: C over the FLOPs per token, interpolated in log-log."""
    return cells.C / np.exp(np.interp(log_N_B, np.log(cells.N_S), np.log(cells.F_S)))


def _budget(cells: Cells) -> Budget:
    if len(cells.N_S) < MIN_SIZES:
        nothing = float("nan")
        empty = np.full(3, np.nan)
        return Budget(cells, "too_few", nothing, nothing, nothing, nothing, empty, np.zeros(len(cells.N_S)))
    found = vertices(cells, cells.loss_S[None])
    ok = found.status_B[0] == "ok"
    return Budget(
        cells=cells,
        status=str(found.status_B[0]),
        N_opt=float(np.exp(found.log_N_B[0])) if ok else float("nan"),
        D_opt=float(tokens_at(cells, found.log_N_B)[0]) if ok else float("nan"),
        loss_opt=float(found.loss_B[0]) if ok else float("nan"),
        N_0=float(np.exp(found.centre_B[0])),
        parabola=found.parabola_Bx3[0],
        weight_S=found.weight_BxS[0],
    )
