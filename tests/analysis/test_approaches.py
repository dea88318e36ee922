"""Approaches 1 and 2, the frontier, and the bootstrap: known truths, statuses, calibration."""

import numpy as np
import pandas as pd
import pytest

from scaling.analysis import isoflop, uncertainty
from scaling.analysis.curves import curves_from_frame
from scaling.analysis.envelope import envelope, touches
from scaling.analysis.fitting import fit
from scaling.analysis.frontier import local_slope, optima, token_cost
from scaling.analysis.isoflop_draws import isoflop_draws
from scaling.analysis.laws import CHINCHILLA, Inputs
from scaling.analysis.table import table_from_frame

CHINCHILLA_SURFACE = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}


def fitted(table):
    return fit(CHINCHILLA, Inputs(table.N_R, table.D_R), table.loss_R)


def test_no_budgets_is_said():
    frame = pd.DataFrame({"N": [1e6, 2e6, 3e6], "D": [1e9, 2e9, 3e9], "loss": [3.0, 2.9, 2.8]})
    assert "no isoFLOP budgets" in isoflop.isoflop(table_from_frame(frame))


def test_envelope_of_dense_curves_gives_the_exponent(truth):
    """Dense noise-free curves of a law that holds on the way: the envelope is the frontier."""
    rows = []
    sizes = np.geomspace(3e3, 3e6, 61)
    for k, N in enumerate(sizes):
        D = np.geomspace(1e5, 1e8, 200)
        loss = truth.loss(N, D)
        point = {"run": k, "step": 0, "N": N, "D": D, "C": 6 * N * D, "loss": loss, "split": "validation"}
        rows.append(pd.DataFrame(point))
    curves = curves_from_frame(pd.concat(rows))
    found = envelope(curves)
    # Sizes are 12 % apart and the envelope takes the nearest: +-6 % over a factor of 1e3 in N is 0.01 in the exponent.
    assert found.N_power.exponent_B[0] == pytest.approx(truth.exponent, abs=0.01)
    assert found.N_power.exponent_B[0] + found.D_power.exponent_B[0] == pytest.approx(1.0, abs=1e-9)
    for point in touches(found, curves.names):
        assert sizes[0] < point["N"] < sizes[-1]


def test_envelope_leaves_out_what_came_too_late(training_curves):
    curves = curves_from_frame(training_curves())
    found = envelope(curves)
    used = np.flatnonzero(found.inner_G)
    assert (np.diff(found.loss_G[used]) < 0).all()
    assert envelope(None) == "no training curves were given"
    assert "2 sizes" in envelope(curves_from_frame(training_curves()[lambda f: f["N"] < sorted(set(f["N"]))[2]]))


def test_frontier_equals_the_closed_form_under_6nd(sweep, truth):
    table = table_from_frame(sweep())
    law = fitted(table)
    C_G = np.array([1e11, 1e13, 1e15])
    found = optima(CHINCHILLA, law.theta_P[None], law.centre, token_cost(table), C_G)
    np.testing.assert_allclose(found.N_BxG[0], truth.N_opt(C_G), rtol=1e-5)
    np.testing.assert_allclose(found.N_BxG[0] * found.D_BxG[0] * 6, C_G, rtol=1e-12)
    np.testing.assert_allclose(found.loss_BxG[0], truth.loss(found.N_BxG[0], found.D_BxG[0]), rtol=1e-9)
    slope = local_slope(CHINCHILLA, law.theta_P[None], law.centre, token_cost(table), 1e12)
    assert slope[0] == pytest.approx(truth.exponent, abs=1e-5)


def test_frontier_under_the_tables_own_compute(sweep, truth):
    """With F = 6N (N / 1e5)^0.2, minimising over D = C / F has N* ~ C^(beta / (alpha + 1.2 beta))."""
    frame = sweep()
    frame["C"] = 6 * frame["N"] * (frame["N"] / 1e5) ** 0.2 * frame["D"]
    table = table_from_frame(frame)
    law, cost = fitted(table), token_cost(table)
    assert cost.error < 1e-9
    slope = local_slope(CHINCHILLA, law.theta_P[None], law.centre, cost, 1e12)
    assert slope[0] == pytest.approx(truth.beta / (truth.alpha + 1.2 * truth.beta), abs=1e-5)


def test_counts_of_clusters_are_those_of_their_rows():
    weight_BxR = uncertainty.cluster_weights(np.array([0, 0, 1, 2, 2, 2]), 100, np.random.default_rng(0))
    np.testing.assert_array_equal(weight_BxR[:, 0], weight_BxR[:, 1])
    np.testing.assert_array_equal(weight_BxR[:, 3:], weight_BxR[:, [3, 3, 3]])
    assert (weight_BxR[:, [0, 2, 3]].sum(1) == 3).all()


def test_isoflop_interval_covers(sweep, truth):
    """100 simulated sweeps: the 90 % interval of the exponent holds the truth in 82 to 98 (binomial, 2.7 s.d.)."""
    hits = 0
    for seed in range(100):
        table = table_from_frame(sweep(noise=0.003, seed=seed))
        found = isoflop.isoflop(table)
        draws = isoflop_draws(found, table, 200, np.random.default_rng(seed))
        low, high = uncertainty.estimate(0.0, draws.N_power.exponent_B)["ci"]
        hits += low <= truth.exponent <= high
    assert 82 <= hits <= 98


def test_an_interval_of_few_draws_is_none():
    assert uncertainty.estimate(1.0, np.array([1.0, np.nan, np.nan]))["ci"] is None
    assert uncertainty.estimate(1.0)["ci"] is None
    assert uncertainty.estimate(float("nan"), np.ones(10))["value"] is None
    assert uncertainty.estimate(1.0, np.linspace(0, 1, 101)) == {
        "value": 1.0,
        "ci": [pytest.approx(0.05), pytest.approx(0.95)],
        "level": 0.9,
    }
