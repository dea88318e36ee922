"""What do the next cells of `scaling.analysis.design` achieve? Var(log N*) against adding a budget, at equal FLOPs.

    python -m benchmarks.design [--replicates=300] [--noise=0.004]

Each replicate simulates a sweep (four budgets of seven sizes from N*/3 to 8 N*), fits the law, asks for the next cells
with 64 bootstrap draws, trains them (draws their losses from the truth), refits, and finds N* at a target. The same is
done for one more budget of the usual kind: seven sizes over the same window, at twice the largest compute. The cells
may cost as much, and no more. Targets: twice the largest compute, and 100 times. Windows: the sweep's own, and N*/8 to
8 N*. Truths: the law that is fitted, and a coupled law that it is not, L = E + (A N^-x + B D^-y)^0.6.

Columns: standard deviation of ln N* of the sweep alone, with the cells, with the budget; Var(cells) / Var(budget), and
the same predicted by the design (mean of its own estimates); mean squared error (cells) / (budget), which counts bias.

Measured with --replicates=300 (189 s of CPU; a ratio is good to about a tenth of itself):

    truth       target    window | sd of ln N*: alone, cells, budget | ratio, predicted | MSE ratio
    separable       2x       own |              0.031  0.018   0.024 |  0.58       0.64 |      0.58
    separable       2x  1/8 to 8 |              0.031  0.016   0.024 |  0.46       0.52 |      0.46
    separable     100x       own |              0.074  0.047   0.059 |  0.63       0.60 |      0.63
    separable     100x  1/8 to 8 |              0.074  0.037   0.059 |  0.39       0.44 |      0.39
    coupled         2x       own |              0.040  0.024   0.030 |  0.61       0.63 |      1.10
    coupled         2x  1/8 to 8 |              0.040  0.027   0.030 |  0.77       0.49 |      0.05
    coupled       100x       own |              0.091  0.051   0.072 |  0.50       0.63 |      0.87
    coupled       100x  1/8 to 8 |              0.091  0.050   0.072 |  0.48       0.39 |      0.03

Where the law is right, the cells leave 0.6 of the variance that a budget leaves within the sweep's own window, and less
than half of it from N*/8 to 8 N*. Where the law is wrong, a smaller variance is not a smaller error: in its own window,
the design is no better than a budget (1.10, 0.87). The small errors of the last window there are the bias of this
truth, which sizes on either side of N* happen to balance, and promise nothing for another.
"""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from scaling.analysis import frontier
from scaling.analysis.design import NextCells, next_cells, usual_budget
from scaling.analysis.fitting import Fit, fit
from scaling.analysis.laws import CHINCHILLA, inputs_of
from scaling.analysis.resampling import bootstrap
from scaling.analysis.table import Table, table_from_frame

E, A, B, ALPHA, BETA, COUPLING = 1.0, 29.0, 128.0, 0.4, 0.36, 0.6
BUDGETS = (2e11, 5e11, 1.25e12, 2.5e12)
WINDOW = (1 / 3, 8.0)
SIZES = 7
DRAWS = 64
TARGETS = (2.0, 100.0)  # times the largest compute
WINDOWS = {"own": None, "1/8 to 8": (1 / 8, 8.0)}

Loss = Callable[[np.ndarray, np.ndarray], np.ndarray]


def separable(N: np.ndarray, D: np.ndarray) -> np.ndarray:
    """The law that is fitted."""
    return E + A / N**ALPHA + B / D**BETA


def coupled(N: np.ndarray, D: np.ndarray) -> np.ndarray:
    """A law of about the same range that the fitted one cannot be."""
    x, y = ALPHA / COUPLING, BETA / COUPLING
    return E + (A ** (1 / COUPLING) / N**x + B ** (1 / COUPLING) / D**y) ** COUPLING


class Row(NamedTuple):
    """One line of the result; standard deviations of ln N*."""

    truth: str
    target: float
    window: str
    alone: float
    cells: float
    budget: float
    ratio: float
    predicted: float
    squared_error: float


def size_at(loss: Loss, C: float) -> float:
    """ln N* of a truth under C = 6ND, by minimisation."""

    def along(x: float) -> float:
        return float(loss(np.exp(x), C / 6 / np.exp(x)))

    return minimize_scalar(along, bounds=(np.log(C) / 2 - 8, np.log(C) / 2 + 8), options={"xatol": 1e-10}).x


def simulate(loss: Loss, N: np.ndarray, D: np.ndarray, noise: float, rng: np.random.Generator) -> pd.DataFrame:
    """Runs with normal noise of log loss."""
    return pd.DataFrame(
        {"N": N, "D": D, "C": 6 * N * D, "loss": loss(N, D) * np.exp(noise * rng.standard_normal(len(N)))}
    )


def sweep(loss: Loss, noise: float, rng: np.random.Generator) -> pd.DataFrame:
    """The runs that there are already."""
    N = np.concatenate([np.exp(size_at(loss, C)) * np.geomspace(*WINDOW, SIZES) for C in BUDGETS])
    return simulate(loss, N, np.repeat(BUDGETS, SIZES) / 6 / N, noise, rng)


def fitted(frame: pd.DataFrame) -> tuple[Fit, Table]:
    """The fit of the report."""
    table = table_from_frame(frame)
    return fit(CHINCHILLA, inputs_of(table, CHINCHILLA), table.loss_R), table


def optimum(found: Fit, table: Table, C: float) -> float:
    """ln N* of a fit at C."""
    cost = frontier.token_cost(table)
    return float(np.log(frontier.optima(found.law, found.theta_P[None], found.centre, cost, np.array([C])).N_BxG[0, 0]))


def replicate(loss: Loss, noise: float, seed: int) -> np.ndarray:
    """One sweep: for each target and window, ln N* alone, with the cells, with the budget; and the predicted ratio."""
    rng = np.random.default_rng(seed)
    frame = sweep(loss, noise, rng)
    found, table = fitted(frame)
    draws = bootstrap(found, table, resamples=DRAWS, seed=rng)
    usual = usual_budget(found, table, frontier.token_cost(table), SIZES * 2 * max(BUDGETS))
    with_budget = fitted(pd.concat([frame, simulate(loss, usual.N_M, usual.D_M, noise, rng)]))
    values = []
    for times in TARGETS:
        for window in WINDOWS.values():
            C = times * max(BUDGETS)
            design: NextCells = next_cells(found, table, C, draws.theta_BxP, window=window)
            N, D = (np.array([cell[name] for cell in design.cells]) for name in ("N", "D"))
            with_cells = fitted(pd.concat([frame, simulate(loss, N, D, noise, rng)]))
            three = [optimum(*fit_and_table, C) for fit_and_table in ((found, table), with_cells, with_budget)]
            values.append([*three, design.variance_ratio / design.usual_ratio])
    return np.array(values).reshape(len(TARGETS), len(WINDOWS), 4)


def rows(name: str, loss: Loss, replicates: int, noise: float) -> list[Row]:
    """Many replicates under one truth."""
    values_RxTxWx4 = np.stack([replicate(loss, noise, seed) for seed in range(replicates)])
    found = []
    for t, times in enumerate(TARGETS):
        for w, window in enumerate(WINDOWS):
            known = values_RxTxWx4[:, t, w][np.isfinite(values_RxTxWx4[:, t, w]).all(1)]
            variance = known.var(0, ddof=1)
            error = ((known - size_at(loss, times * max(BUDGETS))) ** 2).mean(0)
            sd = np.sqrt(variance[:3])
            ratio, predicted = variance[1] / variance[2], known[:, 3].mean()
            found.append(Row(name, times, window, *sd, ratio, predicted, error[1] / error[2]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=300)
    parser.add_argument("--noise", type=float, default=0.004)
    arguments = parser.parse_args()
    began = time.process_time()
    print(
        f"{'truth':10} {'target':>7} {'window':>9} | sd of ln N*: alone, cells, budget | ratio, predicted | MSE ratio"
    )
    for name, loss in (("separable", separable), ("coupled", coupled)):
        for r in rows(name, loss, arguments.replicates, arguments.noise):
            print(
                f"{r.truth:10} {r.target:6g}x {r.window:>9} | {r.alone:18.3f} {r.cells:6.3f} {r.budget:7.3f} | "
                f"{r.ratio:5.2f} {r.predicted:10.2f} | {r.squared_error:9.2f}",
                flush=True,
            )
    print(
        f"{arguments.replicates} replicates each, noise {arguments.noise:g}, {time.process_time() - began:.0f} s of CPU"
    )


if __name__ == "__main__":
    main()
