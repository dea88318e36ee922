"""Do nominal 90 % intervals hold the truth 90 % of the time? Simulated sweeps of a known law, by design and by method.

    python -m benchmarks.coverage [--replicates=400] [--resamples=300] [--designs=4x5,5x7]

The truth is Epoch's law of the Chinchilla runs. Two quantities: a, the exponent of N*(C), and log10 N* at 100 times the
largest compute of the sweep. Designs:

    4x5, 5x7    four budgets of five sizes, five of seven: 1e18 to 1e21 FLOPs, sizes from N* / 4 to 4 N*; Gaussian noise
    5x7 t3      the same with noise of Student's t with three degrees of freedom
    5x7 hetero  the same, Gaussian, with a standard deviation that falls fourfold from the least budget to the greatest
    4, 6, 10, 20 runs   sizes from 3e7 to 3e9, ten checkpoints each, all at the same 2e8 to 2e11 tokens; two checkpoints
                of one run have noise with correlation 0.8

Noise of log loss has the standard deviation 0.005 throughout. Methods:

    rows        pairs bootstrap of rows (counts of 200 draws with replacement), percentiles: what is published
    percentile  Dirichlet weights of clusters, percentiles
    expanded    Dirichlet weights of clusters, percentiles further out for few clusters: `intervals.expanded`
    default     Dirichlet weights of clusters, percentiles widened for few clusters: `Bootstrap.interval`
    studentised cluster jackknife with t quantiles: `intervals.studentised`

Each entry: coverage of a / of log10 N*, and in brackets the median length of the interval of a. Measured with 400
replicates, in 18 minutes of one core, 14 of them the designs of ten runs and more (the standard error of a coverage of
0.9 is 0.015):

    design                  rows       percentile         expanded          default      studentised
    4x5         .965/.960 (.060) .932/.920 (.049) .953/.938 (.053) .955/.938 (.053) .932/.915 (.070)
    5x7         .968/.953 (.044) .932/.938 (.040) .945/.945 (.042) .943/.948 (.042) .890/.890 (.048)
    5x7 t3      .940/.935 (.031) .912/.912 (.028) .922/.925 (.030) .920/.920 (.030) .922/.915 (.030)
    5x7 hetero  .955/.965 (.048) .948/.938 (.043) .953/.955 (.045) .953/.953 (.045) .932/.940 (.055)
    20 runs     .463/.477 (.018) .860/.868 (.046) .885/.887 (.049) .892/.887 (.049) .868/.875 (.052)
    10 runs     .487/.497 (.022) .858/.880 (.059) .920/.920 (.071) .917/.907 (.070) .917/.922 (.082)
    6 runs      .490/.497 (.024) .770/.765 (.064) .875/.870 (.099) .912/.907 (.122) .948/.935 (.126)
    4 runs      .458/.465 (.021) .647/.620 (.044) .740/.735 (.064) .915/.922 (.188) .932/.922 (.205)

Rows of runs that share their noise hold half of the time. On grids, counts of rows give intervals a tenth to a fifth
longer than weights do; the jackknife's are longer still, since the objective has kinks. Of four runs the draws show a
third of the spread, and `Bootstrap.spread` finds the rest.
"""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from scaling.analysis.fitting import fit, refit
from scaling.analysis.intervals import expanded, percentile, studentised
from scaling.analysis.laws import CHINCHILLA, Inputs
from scaling.analysis.resampling import bootstrap, jackknife
from scaling.analysis.table import Table, table_from_frame
from scaling.analysis.uncertainty import cluster_weights

E, A, B, ALPHA, BETA = 1.817, 477.8, 2143.4, 0.3473, 0.3672
EXPONENT = BETA / (ALPHA + BETA)
G = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
NOISE = 0.005
SHARED = 0.8  # of the variance of a checkpoint's noise is its run's
FURTHER = 100.0
PAIRS = 200
METHODS = ("rows", "percentile", "expanded", "default", "studentised")


class Design(NamedTuple):
    """A simulated sweep: name, rows of (run, N, D), and noise(rng) of unit variance, for its rows."""

    name: str
    rows: pd.DataFrame
    noise: Callable[[np.random.Generator], np.ndarray]


def designs() -> dict[str, Design]:
    """The designs by name."""
    small, large = _grid(4, 5), _grid(5, 7)
    falling_R = np.geomspace(2.0, 0.5, 5).repeat(7)
    return {
        design.name: design
        for design in (
            Design("4x5", small, lambda rng: rng.standard_normal(20)),
            Design("5x7", large, lambda rng: rng.standard_normal(35)),
            Design("5x7 t3", large, lambda rng: rng.standard_t(3, 35) / np.sqrt(3.0)),
            Design("5x7 hetero", large, lambda rng: rng.standard_normal(35) * falling_R),
            Design("20 runs", _checkpoints(20), lambda rng: _shared(20, rng)),
            Design("10 runs", _checkpoints(10), lambda rng: _shared(10, rng)),
            Design("6 runs", _checkpoints(6), lambda rng: _shared(6, rng)),
            Design("4 runs", _checkpoints(4), lambda rng: _shared(4, rng)),
        )
    }


def simulate(design: Design, replicates: int, resamples: int) -> dict[str, np.ndarray]:
    """Of each method: whether the interval held, and its length, for a and for log10 N*; R replicates, (R, 2, 2)."""
    found = {method: np.empty((replicates, 2, 2)) for method in METHODS}
    for r in range(replicates):
        rng = np.random.default_rng([r, 4])
        table = _draw(design, rng)
        target = FURTHER * float(table.C_R.max())
        truth_2 = (EXPONENT, np.log10(G) + EXPONENT * np.log10(target / 6))
        for method, ends_2x2 in _intervals(table, target, resamples, rng).items():
            for q, (low, high) in enumerate(ends_2x2):
                found[method][r, q] = low <= truth_2[q] <= high, high - low
    return found


def _intervals(
    table: Table, target: float, resamples: int, rng: np.random.Generator
) -> dict[str, list[tuple[float, float]]]:
    """The interval of a and that of log10 N*, by each method."""
    inputs = Inputs(table.N_R, table.D_R)
    fitted = fit(CHINCHILLA, inputs, table.loss_R)

    def quantities(theta_BxP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """a and log10 N* of B parameter vectors (Hoffmann et al. 2022, eq. 4)."""
        p = CHINCHILLA.natural(theta_BxP, fitted.centre)
        a_B = p["beta"] / (p["alpha"] + p["beta"])
        log_G_B = np.log10(p["alpha"] * p["A"] / (p["beta"] * p["B"])) / (p["alpha"] + p["beta"])
        return a_B, log_G_B + a_B * np.log10(target / 6)

    clustered = bootstrap(fitted, table, resamples=resamples, seed=rng)
    count_BxR = cluster_weights(np.arange(len(table.N_R)), PAIRS, rng)
    rows = refit(fitted, inputs, table.loss_R, count_BxR, seed=0)
    left_out = jackknife(fitted, table)
    K = clustered.clusters
    ests = {method: [] for method in METHODS}
    for q in range(2):
        value = float(quantities(fitted.theta_P[None])[q][0])
        ests["rows"].append(percentile(value, quantities(rows.theta_BxP)[q]))
        ests["percentile"].append(percentile(value, quantities(clustered.theta_BxP)[q]))
        ests["expanded"].append(expanded(value, quantities(clustered.theta_BxP)[q], clusters=K))
        ests["default"].append(clustered.est(value, quantities(clustered.theta_BxP)[q]))
        ests["studentised"].append(studentised(value, quantities(left_out.theta_BxP)[q]))
    return {method: [tuple(est["ci"]) for est in pair] for method, pair in ests.items()}


def _draw(design: Design, rng: np.random.Generator) -> Table:
    N_R, D_R = design.rows["N"].to_numpy(), design.rows["D"].to_numpy()
    law_R = E + A / N_R**ALPHA + B / D_R**BETA
    return table_from_frame(design.rows.assign(loss=law_R * np.exp(NOISE * design.noise(rng)), C=6 * N_R * D_R))


def _grid(budgets: int, sizes: int) -> pd.DataFrame:
    C_R = np.geomspace(1e18, 1e21, budgets).repeat(sizes)
    N_R = G * (C_R / 6) ** EXPONENT * np.tile(np.geomspace(0.25, 4.0, sizes), budgets)
    return pd.DataFrame({"run": np.arange(len(N_R)), "N": N_R, "D": C_R / (6 * N_R)})


def _checkpoints(runs: int) -> pd.DataFrame:
    N_R = np.geomspace(3e7, 3e9, runs).repeat(10)
    D_R = np.tile(np.geomspace(2e8, 2e11, 10), runs)
    return pd.DataFrame({"run": np.arange(runs).repeat(10), "N": N_R, "D": D_R})


def _shared(runs: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of ten checkpoints of each run, any two of a run with correlation SHARED."""
    of_run_R = rng.standard_normal(runs).repeat(10)
    return np.sqrt(SHARED) * of_run_R + np.sqrt(1 - SHARED) * rng.standard_normal(10 * runs)


def main() -> None:
    """Prints one line a design, one column a method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=400)
    parser.add_argument("--resamples", type=int, default=300)
    parser.add_argument("--designs", default=",".join(designs()))
    given = parser.parse_args()
    print(f"{'design':12}" + "".join(f"{method:>20}" for method in METHODS) + "   CPU s")
    for name in given.designs.split(","):
        began = time.process_time()
        found = simulate(designs()[name], given.replicates, given.resamples)
        entries = [
            f"{held[:, 0, 0].mean():.3f}/{held[:, 1, 0].mean():.3f} ({np.median(held[:, 0, 1]):.3f})"
            for held in found.values()
        ]
        spent = time.process_time() - began
        print(f"{name:12}" + "".join(f"{entry:>20}" for entry in entries) + f"{spent:8.0f}", flush=True)


if __name__ == "__main__":
    main()
