"""Does the interval of wasted compute hold the truth? Simulated sweeps of a known law, followed to 100 times their C.

    python -m benchmarks.waste_coverage [--replicates=150] [--resamples=200]

Four budgets of seven sizes from N* / 3 to 8 N*, noise of log loss 0.005, seeds 0, 1, 2 ...; at 100 times the largest
budget, what following Approach 2's size or the fitted law's wastes under the true law, against `decisions.waste`. The
interval as a report has it, where the size followed is a choice ("chosen"), and with draws of the size as well, made
apart ("drawn"). Columns: mean of what is wasted in truth, share of sweeps whose nominal 90 % interval holds it, and the
interval's median upper end. About 30 s of CPU.

Result:

                       truth    held    high
    follow    size
    approach2 chosen  0.0055  0.9800  0.0257
              drawn   0.0055  0.9933  0.0441
    approach3 chosen  0.0027  0.9667  0.0241
              drawn   0.0027  1.0000  0.0447

Intervals that start at zero hold more than their share: they reach as far as the worse of two sides.
"""

import argparse

import numpy as np
import pandas as pd

from scaling.analysis import decisions, frontier
from scaling.analysis.analyze import Analysis, analyze
from scaling.analysis.frontier import six_nd
from scaling.analysis.laws import CHINCHILLA
from scaling.analysis.table import table_from_frame
from scaling.analysis.waste import signed_waste, size_of

E, A, B, ALPHA, BETA = 1.0, 29.0, 128.0, 0.4, 0.36
TRUTH_1xP = np.array([[np.log(E), np.log(A), np.log(B), ALPHA, BETA]])
BUDGETS = np.array([2e11, 5e11, 1.25e12, 2.5e12])
TARGET = 100 * BUDGETS[-1]
NOISE = 0.005
SIX_ND = six_nd(1e3, 1e6)


def sweep(seed: int) -> pd.DataFrame:
    """One simulated sweep."""
    N_opt = frontier.optima(CHINCHILLA, TRUTH_1xP, np.zeros(2), SIX_ND, BUDGETS).N_BxG[0]
    N = (N_opt[:, None] * np.geomspace(1 / 3, 8, 7)).ravel()
    C = BUDGETS.repeat(7)
    D = C / (6 * N)
    noise = NOISE * np.random.default_rng(seed).standard_normal(len(N))
    return pd.DataFrame({"N": N, "D": D, "C": C, "loss": (E + A / N**ALPHA + B / D**BETA) * np.exp(noise)})


def drawn_apart(analysis: Analysis, if_right: str) -> dict:
    """The interval with draws of both approaches, as if their errors had nothing in common."""
    fit = analysis.fit
    law_B = frontier.optima(fit.law, analysis.theta_BxP, fit.centre, analysis.cost, np.array([TARGET])).N_BxG[:, 0]
    valley_B = analysis.isoflop_draws.N_power.at(TARGET)[:, 0]
    N_B = valley_B if if_right == "approach3" else law_B * law_B / valley_B
    return size_of(0.0, signed_waste(fit.law, analysis.theta_BxP, fit.centre, analysis.cost, TARGET, N_B))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--replicates", type=int, default=150)
    parser.add_argument("--resamples", type=int, default=200)
    options = parser.parse_args()
    rows = []
    for seed in range(options.replicates):
        analysis = analyze(table_from_frame(sweep(seed)), target_flops=[TARGET], resamples=options.resamples)
        for entry in decisions.waste(analysis):
            truth = abs(signed_waste(CHINCHILLA, TRUTH_1xP, np.zeros(2), SIX_ND, TARGET, np.array([entry["N"]]))[0])
            for size, est in (("chosen", entry["share"]), ("drawn", drawn_apart(analysis, entry["if_right"]))):
                low, high = est["ci"]
                rows.append(
                    {
                        "follow": entry["follow"],
                        "size": size,
                        "truth": truth,
                        "held": low <= truth <= high,
                        "high": high,
                    }
                )
    table = pd.DataFrame(rows).groupby(["follow", "size"])
    print(table.agg(truth=("truth", "mean"), held=("held", "mean"), high=("high", "median")).round(4).to_string())


if __name__ == "__main__":
    main()
