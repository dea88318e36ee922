"""The next cells to train: those that narrow log N* at a target most for a given number of FLOPs.

With noise of one standard deviation in log loss, whatever it is, the variance of the compute-optimal size x = ln N* at
the target follows from the gradients of the law's log loss at the runs, and c = dx / dtheta. `c_optimal` chooses from
a grid of cells (N, C) those that lower it most, averaged over bootstrap draws of the law, since the optimal cells for a
wrong theta are not optimal. Of runs that share a cluster, each counts as its share of one run: their noise is shared.

What is predicted supposes that the law is right where the cells are. Cells at the ends of the window narrow the answer
most, and are where a law is most likely to be wrong: so they stay where the sweep has sizes already, unless told else.
`benchmarks.design` measures what comes of it.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from scaling.analysis import frontier, verdicts
from scaling.analysis.c_optimal import Information, choose
from scaling.analysis.fitting import Fit
from scaling.analysis.laws import Inputs, Law
from scaling.analysis.resampling import cluster_of
from scaling.analysis.table import GAP, Table
from scaling.errors import InputError

DRAWS = 64  # of the law, over which a design is averaged
LARGEST = 2.0  # times the largest C of the runs: the largest cell to propose
SIZES, BUDGETS = 13, 9  # of the grid of cells, in log N and in log C
USUAL = 7  # sizes of a usual budget, for a table without budgets
STEP = 1e-3  # of ln N, for differences of gradients along a budget
FLAT = 1e-8  # second derivative of log loss along a budget below which its optimum is nowhere


class Grid(NamedTuple):
    """M cells to choose from."""

    N_M: np.ndarray
    D_M: np.ndarray
    C_M: np.ndarray


@dataclasses.dataclass(frozen=True)
class NextCells:
    """Cells to train next, best first, for N* at target_flops. Everything here is an estimate, from the fitted law.

    cells: {"N", "D", "C", "budget", "share_of_variance", "gain_per_flop"}: the share of Var(log N*) as of today that
    the cell takes away after those before it, and that share per FLOP; budget: number of the table's budget that the
    cell belongs to, None for a new one. flops: of all cells. variance_ratio: Var(log N*) with them over that without.
    usual_ratio: the same for one more budget of the usual kind that costs as much. window: N over N*(C), from and to.
    """

    target_flops: float
    cells: tuple[dict[str, Any], ...]
    flops: float
    variance_ratio: float
    usual_ratio: float
    window: tuple[float, float]

    def sentence(self) -> str:
        """What is predicted, in words."""
        cost, target = verdicts.flops(self.flops), verdicts.flops(self.target_flops)
        return (
            f"{len(self.cells)} further cells of {cost} FLOPs in all are estimated to narrow the interval of log N* at "
            f"{target} FLOPs by {1 - self.variance_ratio**0.5:.0%}; one more budget of the usual kind for the same "
            f"FLOPs, by {1 - self.usual_ratio**0.5:.0%}. Both suppose that the law holds there."
        )

    def to_dict(self) -> dict[str, Any]:
        """For a report: strict JSON values only."""
        return {
            **dataclasses.asdict(self),
            "cells": list(self.cells),
            "window": list(self.window),
            "said": self.sentence(),
        }


def next_cells(
    fitted: Fit,
    table: Table,
    target_flops: float,
    theta_BxP: np.ndarray,
    *,
    cells: int | None = None,
    flops: float | None = None,
    window: tuple[float, float] | None = None,
) -> NextCells:
    """The cells that narrow log N* at target_flops most: at most `cells` of them, and at most `flops` FLOPs in all.

    theta_BxP: bootstrap draws of the fit. flops: none, what a budget of the usual number of sizes costs at LARGEST
    times the largest C. cells: none, twice the usual number of sizes: with more, little is gained. window: of
    N / N*(C), say (1/8, 8); none, that of the table's runs. Raises InputError where no cell is affordable, where the
    law has no optimum, or is not one of N and D.
    """
    law, cost = fitted.law, frontier.token_cost(table)
    sizes = _usual_sizes(table)
    cells = 2 * sizes if cells is None else cells
    if cells < 1:
        raise InputError(f"cells={cells} is no number of cells to propose")
    if more := sorted({*law.needs} - {"N", "D"}):
        raise InputError(
            f"the {law.name} law also depends on {', '.join(more)}", do="propose cells by a law of N and D"
        )
    flops = sizes * LARGEST * float(table.C_R.max()) if flops is None else float(flops)
    window = sweep_window(fitted, table, cost) if window is None else window
    draws_BxP, c_BxP = _sensitivity(fitted, cost, target_flops, theta_BxP)
    now = _information(law, draws_BxP, table, fitted.centre, c_BxP)

    grid = _grid(fitted, cost, _budgets(table), np.geomspace(*window, SIZES))
    J_BxMxP = _gradients(law, draws_BxP, grid.N_M, grid.D_M, fitted.centre)
    chosen = choose(now, J_BxMxP, grid.C_M, cells, flops)
    if not chosen:
        cheapest = f"the cheapest takes {grid.C_M.min():.3g}" if len(grid.C_M) else "no budget has an optimum"
        raise InputError(f"flops={flops:.3g} buys no cell: {cheapest}", do="allow more")
    left = [now.with_cells(J_BxMxP[:, chosen[:k]]).ratio(now) for k in range(len(chosen) + 1)]
    usual = usual_budget(fitted, table, cost, flops)
    usual_J = _gradients(law, draws_BxP, usual.N_M, usual.D_M, fitted.centre)
    return NextCells(
        target_flops=float(target_flops),
        cells=tuple(
            {
                "N": float(grid.N_M[m]),
                "D": float(grid.D_M[m]),
                "C": float(grid.C_M[m]),
                "budget": _budget_of(table, float(grid.C_M[m])),
                "share_of_variance": float(before - after),
                "gain_per_flop": float((before - after) / grid.C_M[m]),
            }
            for m, before, after in zip(chosen, left[:-1], left[1:], strict=True)
        ),
        flops=float(grid.C_M[chosen].sum()),
        variance_ratio=left[-1],
        usual_ratio=now.with_cells(usual_J).ratio(now),
        window=(float(window[0]), float(window[1])),
    )


def usual_budget(fitted: Fit, table: Table, cost: frontier.TokenCost, flops: float) -> Grid:
    """What a sweep would add without a design: one more budget for these FLOPs, with its number of sizes and window."""
    sizes = _usual_sizes(table)
    return _grid(fitted, cost, np.array([flops / sizes]), np.geomspace(*sweep_window(fitted, table, cost), sizes))


def _usual_sizes(table: Table) -> int:
    """The median number of sizes of the table's budgets."""
    number_K = np.unique(table.budget_R[table.budget_R >= 0])
    counts = [len(np.unique(table.N_R[table.budget_R == number])) for number in number_K]
    return int(np.median(counts)) if counts else USUAL


def sweep_window(fitted: Fit, table: Table, cost: frontier.TokenCost) -> tuple[float, float]:
    """How far the sizes of a table reach to either side of the optimum at their compute: the 5 and 95 % quantiles of
    N / N*(C), the ends of a usual budget. Runs at whose compute the law has no optimum within reach do not count."""
    best = frontier.optima(fitted.law, fitted.theta_P[None], fitted.centre, cost, table.C_R).N_BxG[0]
    known = np.isfinite(best)
    if not known.any():
        raise InputError("the fitted law has no optimum within reach of the runs", do="add sizes on the other side")
    low, high = np.quantile(np.log(table.N_R[known] / best[known]), [0.05, 0.95])
    return float(np.exp(low)), float(np.exp(high))


def _budgets(table: Table) -> np.ndarray:
    """Compute of the budgets to propose cells in: those of the table, and new ones between and up to LARGEST."""
    top = float(table.C_R.max())
    number_K = np.unique(table.budget_R[table.budget_R >= 0])
    if not len(number_K):
        return np.geomspace(table.C_R.min(), LARGEST * top, BUDGETS)
    known = [np.exp(np.log(table.C_R[table.budget_R == number]).mean()) for number in number_K]
    return np.array([*known, LARGEST**0.5 * top, LARGEST * top])


def _budget_of(table: Table, C: float) -> int | None:
    """The table's budget of that compute, numbered as in the report from 0 by rising C; None for a new one."""
    near = np.flatnonzero((table.budget_R >= 0) & (np.abs(np.log(table.C_R / C)) < GAP))
    return int(table.budget_R[near[0]]) if len(near) else None


def _grid(fitted: Fit, cost: frontier.TokenCost, C_G: np.ndarray, times_S: np.ndarray) -> Grid:
    best_G = frontier.optima(fitted.law, fitted.theta_P[None], fitted.centre, cost, C_G).N_BxG[0]
    C_G, best_G = C_G[np.isfinite(best_G)], best_G[np.isfinite(best_G)]
    N_GxS, C_GxS = best_G[:, None] * times_S, np.broadcast_to(C_G[:, None], (len(C_G), len(times_S)))
    return Grid(N_GxS.ravel(), cost.tokens(C_GxS, np.log(N_GxS)).ravel(), C_GxS.ravel())


def _gradients(law: Law, theta_BxP: np.ndarray, N_M: np.ndarray, D_M: np.ndarray, centre: np.ndarray) -> np.ndarray:
    return law.evaluate(theta_BxP, Inputs(N_R=N_M, D_R=D_M), centre).J_BxPxR.transpose(0, 2, 1)


def _information(law: Law, theta_BxP: np.ndarray, table: Table, centre: np.ndarray, c_BxP: np.ndarray) -> Information:
    cluster_R = cluster_of(table, "auto")
    share_R = 1.0 / np.bincount(cluster_R)[cluster_R]
    J_BxRxP = _gradients(law, theta_BxP, table.N_R, table.D_R, centre)
    return Information(np.matmul((J_BxRxP * share_R[:, None]).transpose(0, 2, 1), J_BxRxP), c_BxP)


def _sensitivity(
    fitted: Fit, cost: frontier.TokenCost, C: float, theta_BxP: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of the law that have an optimum at C, and there c = d ln N* / d theta, BxP.

    At the optimum the slope of f = log loss along the budget is zero in x = ln N, so that c = -f_x,theta / f_xx.
    """
    step = max(1, len(theta_BxP) // DRAWS)
    draws_BxP = np.concatenate([fitted.theta_P[None], theta_BxP[::step][:DRAWS]])
    x_B = np.log(frontier.optima(fitted.law, draws_BxP, fitted.centre, cost, np.array([float(C)])).N_BxG[:, 0])
    if not np.isfinite(x_B[0]):
        raise InputError(f"the fitted law has no optimum at {C:.3g} FLOPs", do="choose a target nearer to the runs")
    draws_BxP, x_B = draws_BxP[np.isfinite(x_B)], x_B[np.isfinite(x_B)]
    B = np.arange(len(x_B))
    x_3xB = x_B + STEP * np.array([[-1.0], [0.0], [1.0]])
    D_3xB = cost.tokens(C, x_3xB)
    # Each draw has points of its own, and a law is evaluated at the points of all: the diagonal is kept.
    at = fitted.law.evaluate(draws_BxP, Inputs(N_R=np.exp(x_3xB).ravel(), D_R=D_3xB.ravel()), fitted.centre)
    f_Bx3 = at.f_BxR.reshape(len(B), 3, len(B))[B, :, B]
    J_BxPx3 = at.J_BxPxR.reshape(len(B), -1, 3, len(B))[B, :, :, B]
    bend_B = (f_Bx3[:, 0] - 2 * f_Bx3[:, 1] + f_Bx3[:, 2]) / STEP**2
    mixed_BxP = (J_BxPx3[:, :, 2] - J_BxPx3[:, :, 0]) / (2 * STEP)
    curved_B = bend_B > FLAT
    if not curved_B.any():
        raise InputError(f"the law is flat along a budget of {C:.3g} FLOPs: no cell tells where its optimum is")
    return draws_BxP[curved_B], -mixed_BxP[curved_B] / bend_B[curved_B, None]
