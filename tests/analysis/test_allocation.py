"""Optima beyond the plain frontier: exactness against closed forms and dense grids, limited data, served tokens."""

import dataclasses
import time

import numpy as np
import pytest

from scaling.analysis import allocation, decisions, frontier
from scaling.analysis.analyze import Analysis, analyze
from scaling.analysis.fitting import Fit
from scaling.analysis.frontier import six_nd
from scaling.analysis.laws import CHINCHILLA, LAWS, Inputs, Law
from scaling.analysis.table import table_from_frame
from scaling.errors import InputError

# Coefficients of Muennighoff et al. (2023) as their README gives them: E, A, B (logarithms), alpha, beta, R_D*, R_N*.
REPEATED = np.array([0.6254804, 6.255414, 7.3049974, 0.3526596, 0.3526596, np.log(15.387756), np.log(5.309743)])
EPOCH = np.array([np.log(1.8172), np.log(482.01), np.log(2085.43), 0.3478, 0.3658])  # Besiroglu et al. 2024
SIX_ND = six_nd(1e8, 1e11)
CURVED = frontier.TokenCost(np.array([np.log(6.0) + 0.1, -0.04, 0.01]), np.log(1e9), np.log(1e7), np.log(1e11), 0.0)


def fit_of(law: Law, theta_P: np.ndarray) -> Fit:
    """A fit that knows its law, and nothing of the runs behind it: coordinates about N = D = 1."""
    unknown = dict.fromkeys(field.name for field in dataclasses.fields(Fit))
    return Fit(**{**unknown, "law": law, "theta_P": theta_P, "centre": np.zeros(len(law.needs))})


def repeated_loss(N: np.ndarray, D: np.ndarray, U: float) -> np.ndarray:
    """Muennighoff et al. 2023, eq. 5 and 6, written out once more."""
    E, A, B = np.exp(REPEATED[:3])
    alpha, beta, R_D, R_N = *REPEATED[3:5], *np.exp(REPEATED[5:])
    G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    U_N = np.minimum(N, (U * G) ** (beta / alpha) * G)
    size = U_N + U_N * R_N * (1 - np.exp(-(N / U_N - 1) / R_N))
    data = U + U * R_D * (1 - np.exp(-(D / U - 1) / R_D))
    return E + A / size**alpha + B / data**beta


@pytest.fixture(scope="module")
def analysis(sweep) -> Analysis:
    return analyze(table_from_frame(sweep(noise=0.003)), target_flops=(1e13, 1e14), resamples=200)


def test_optima_of_many_laws_equal_the_closed_form():
    """Under C = 6ND; 1e-9 of ln N is ten times what the last Newton step allows, and far below any use."""
    theta_BxP = EPOCH * (1 + 0.02 * np.random.default_rng(0).standard_normal((50, 5)))
    C_G = np.geomspace(1e18, 1e24, 7)
    found = frontier.optima(CHINCHILLA, theta_BxP, np.zeros(2), SIX_ND, C_G)
    A, B, alpha, beta = (*np.exp(theta_BxP[:, 1:3]).T, *theta_BxP[:, 3:].T)
    G, a = (alpha * A / (beta * B)) ** (1 / (alpha + beta)), beta / (alpha + beta)
    np.testing.assert_allclose(np.log(found.N_BxG), np.log(G)[:, None] + a[:, None] * np.log(C_G / 6), atol=1e-9)
    np.testing.assert_allclose(6 * found.N_BxG * found.D_BxG, np.broadcast_to(C_G, (50, 7)), rtol=1e-12)


def test_budgets_of_their_own_give_what_shared_budgets_give():
    theta_BxP, C_G = np.stack([EPOCH, EPOCH * 1.01]), np.array([1e20, 1e22])
    shared = frontier.optima(CHINCHILLA, theta_BxP, np.zeros(2), SIX_ND, C_G)
    own = frontier.optima(CHINCHILLA, theta_BxP, np.zeros(2), SIX_ND, np.stack([C_G, C_G[::-1]]))
    np.testing.assert_array_equal(own.N_BxG, np.stack([shared.N_BxG[0], shared.N_BxG[1, ::-1]]))


@pytest.mark.parametrize("name", ["chinchilla", "coupled", "kaplan", "overtraining"])
def test_no_size_of_a_dense_grid_is_better(name):
    """Under a cost that is not 6ND, for laws without a closed form. The grid is 2e-5 apart in ln N: its best lies
    within one step of the optimum, and its loss is never lower by more than rounding."""
    law = LAWS[name]
    theta = {
        "chinchilla": EPOCH,
        "coupled": np.append(EPOCH, np.log(0.6)),
        "kaplan": np.array([0.076 * np.log(8.8e13), 0.095 * np.log(5.4e13), 0.076, 0.095]),
        "overtraining": np.array([0.5, 3.0, 3.5, 0.13]),
    }[name][None]
    found = frontier.optima(law, theta, np.zeros(2), CURVED, np.array([1e21]))
    x_M = np.log(found.N_BxG[0, 0]) + np.arange(-100_000, 100_001) * 2e-5
    loss_M = np.exp(law.log_loss(theta, Inputs(np.exp(x_M), 1e21 / CURVED.flops(x_M)), np.zeros(2)))[0]
    assert abs(loss_M.argmin() - 100_000) <= 1
    assert found.loss_BxG[0, 0] <= loss_M.min() * (1 + 1e-15)


def test_no_optimum_within_reach_is_nan_and_nothing_else():
    """With alpha at zero a larger model is no better: the smallest size of the search wins."""
    flat = EPOCH.copy()
    flat[3] = 0.0
    found = frontier.optima(CHINCHILLA, np.stack([flat, EPOCH]), np.zeros(2), SIX_ND, np.array([1e20]))
    assert np.isnan([values[0, 0] for values in found]).all()
    assert np.isfinite([values[1, 0] for values in found]).all()


def test_a_law_that_needs_more_than_size_and_tokens_is_refused():
    with pytest.raises(InputError, match="width_depth law is one of N, D, width, depth"):
        frontier.optima(LAWS["width_depth"], np.zeros((1, 9)), np.zeros(4), SIX_ND, np.array([1e20]))


def test_a_thousand_draws_at_forty_budgets_are_cheap():
    """A report calls this for its bands. Measured: 0.09 s of CPU; half a second leaves room for a slow machine."""
    theta_BxP = EPOCH * (1 + 0.01 * np.random.default_rng(0).standard_normal((1000, 5)))
    began = time.process_time()
    frontier.optima(CHINCHILLA, theta_BxP, np.zeros(2), SIX_ND, np.geomspace(1e18, 1e24, 41))
    assert time.process_time() - began < 0.5


def test_published_losses_of_the_data_constrained_law():
    """The two examples of the datablations README, to the last of their 17 digits but rounding."""
    fit = fit_of(LAWS["data_constrained"], REPEATED)
    inputs = Inputs(N_R=np.array([6.34e9, 8.67e9]), D_R=np.array([242e9, 178e9]), U_R=np.full(2, 25e9))
    found = np.exp(fit.law.log_loss(REPEATED[None], inputs, fit.centre))[0]
    np.testing.assert_allclose(found, [2.2256440889984477, 2.2269634075087867], rtol=1e-15)


def test_limited_data_beats_the_published_allocation():
    """optimal_allocation(1e22, 25e9) of datablations: 7.0224e9 parameters, by a grid search. On the same budget ours
    has a lower loss, and no size of a dense grid has a lower one still."""
    found = allocation.data_limited(fit_of(LAWS["data_constrained"], REPEATED), SIX_ND, np.array([1e22]), 25e9)
    N, D, loss = (values[0, 0] for values in (found.N_BxG, found.D_BxG, found.loss_BxG))
    assert loss < repeated_loss(7.0224e9, 1e22 / (6 * 7.0224e9), 25e9)
    assert 6 * N * D == pytest.approx(1e22, rel=1e-12)
    N_M = N * np.exp(np.arange(-100_000, 100_001) * 1e-5)
    loss_M = repeated_loss(N_M, 1e22 / (6 * N_M), 25e9)
    assert abs(loss_M.argmin() - 100_000) <= 3  # the loss is flat to rounding within sqrt(1e-16 / curvature) = 3e-8
    assert loss == pytest.approx(loss_M.min(), rel=1e-15)
    assert found.epochs_BxG[0, 0] == pytest.approx(D / 25e9)
    assert found.binds_BxG[0, 0]


@pytest.mark.parametrize("cost", [SIX_ND, CURVED])
@pytest.mark.parametrize("U", [1e9, 3e9, 1e10])
def test_limited_data_is_the_best_of_a_dense_grid(cost, U):
    """From a few epochs to dozens, with and without the cost of 6ND. The best size of the grid is two steps away at
    most, of 5e-5 in ln N; its loss is no lower, up to rounding."""
    found = allocation.data_limited(fit_of(LAWS["data_constrained"], REPEATED), cost, np.array([1e21]), U)
    x_M = np.linspace(np.log(1e6), np.log(1e21 / (6 * U)) - 0.5, 400_001)
    loss_M = repeated_loss(np.exp(x_M), 1e21 / cost.flops(x_M), U)
    assert found.loss_BxG[0, 0] <= loss_M.min() * (1 + 1e-14)
    assert np.log(found.N_BxG[0, 0]) == pytest.approx(x_M[loss_M.argmin()], abs=2 * (x_M[1] - x_M[0]))


def test_a_hopeless_budget_has_an_optimum_still():
    """After 10,000 epochs of U tokens nothing is gained any more; the optimum exists, and is finite."""
    found = allocation.data_limited(fit_of(LAWS["data_constrained"], REPEATED), SIX_ND, np.array([1e23]), 1e7)
    N, D, loss = found.N_BxG[0, 0], found.D_BxG[0, 0], found.loss_BxG[0, 0]
    assert 6 * N * D == pytest.approx(1e23, rel=1e-12)
    assert loss == pytest.approx(repeated_loss(1e15, 1e15, 1e7), rel=1e-12)  # what endless size and data give


def test_data_that_suffice_do_not_limit():
    """Where the compute-optimal run reads no token twice, it is the answer, with the same loss."""
    fit = fit_of(LAWS["data_constrained"], REPEATED)
    plain = frontier.optima(fit.law, REPEATED[None], fit.centre, SIX_ND, np.array([1e20, 1e21]))
    found = allocation.data_limited(fit, SIX_ND, np.array([1e20, 1e21]), 1e12)
    for name in ("N_BxG", "D_BxG", "loss_BxG"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))
    assert not found.binds_BxG.any()
    np.testing.assert_array_equal(found.epochs_BxG, 1.0)


def test_the_limit_sets_in_without_a_jump():
    """Just above and just below the tokens of the compute-optimal run, the optimum is nearly the same."""
    fit = fit_of(LAWS["data_constrained"], REPEATED)
    plain = frontier.optima(fit.law, REPEATED[None], fit.centre, SIX_ND, np.array([1e21]))
    D = plain.D_BxG[0, 0]
    found = allocation.data_limited(fit, SIX_ND, np.array([1e21]), D * (1 - 1e-6))
    assert found.binds_BxG[0, 0]
    np.testing.assert_allclose(found.N_BxG, plain.N_BxG, rtol=1e-5)
    np.testing.assert_allclose(found.loss_BxG, plain.loss_BxG, rtol=1e-9)


def test_a_law_without_repetition_is_capped_at_four_epochs():
    fit = fit_of(CHINCHILLA, EPOCH)
    found = allocation.data_limited(fit, CURVED, np.array([1e19, 1e23]), 1e10)
    plain = frontier.optima(CHINCHILLA, EPOCH[None], fit.centre, CURVED, np.array([1e19, 1e23]))
    assert found.binds_BxG.tolist() == [[False, True]]
    assert found.N_BxG[0, 0] == plain.N_BxG[0, 0]
    assert found.D_BxG[0, 1] == 4e10
    assert CURVED.flops(np.log(found.N_BxG[0, 1])) * 4e10 == pytest.approx(1e23, rel=1e-12)
    assert found.loss_BxG[0, 1] > plain.loss_BxG[0, 1]


def test_serving_is_cheapest_where_a_grid_says_so():
    """Sardana et al. 2024: minimise 6ND + 2NT at equal loss. Along the contour of loss D has a closed form in N."""
    fit, C, T = fit_of(CHINCHILLA, EPOCH), 1e22, 1e12
    found = allocation.for_inference(fit, SIX_ND, np.array([C]), T)
    plain = frontier.optima(CHINCHILLA, EPOCH[None], fit.centre, SIX_ND, np.array([C]))
    loss = plain.loss_BxG[0, 0]
    E, A, B, alpha, beta = (*np.exp(EPOCH[:3]), *EPOCH[3:])
    x_M = np.linspace(-2.0, 1.0, 300_001) + np.log(plain.N_BxG[0, 0])
    left_M = loss - E - A * np.exp(-alpha * x_M)
    x_M, left_M = x_M[left_M > 0], left_M[left_M > 0]
    D_M = (B / left_M) ** (1 / beta)
    total_M = 6 * np.exp(x_M) * D_M + 2 * np.exp(x_M) * T
    assert np.log(found.N_BxG[0, 0]) == pytest.approx(x_M[total_M.argmin()], abs=2e-5)
    assert found.C_BxG[0, 0] == pytest.approx(total_M.min(), rel=1e-8)
    assert found.loss_BxG[0, 0] == pytest.approx(loss, rel=1e-9)
    lifetime = 6 * plain.N_BxG[0, 0] * (plain.D_BxG[0, 0] + T / 3)
    assert found.share_saved_BxG[0, 0] == pytest.approx(1 - total_M.min() / lifetime, abs=1e-8)
    assert found.N_BxG[0, 0] < plain.N_BxG[0, 0]


def test_a_model_that_serves_nothing_is_the_compute_optimal_one():
    fit = fit_of(CHINCHILLA, EPOCH)
    plain = frontier.optima(CHINCHILLA, EPOCH[None], fit.centre, CURVED, np.array([1e20]))
    found = allocation.for_inference(fit, CURVED, np.array([1e20]), 0.0)
    np.testing.assert_allclose(found.N_BxG, plain.N_BxG, rtol=1e-9)
    np.testing.assert_allclose(found.C_BxG, 1e20, rtol=1e-9)
    assert found.share_saved_BxG[0, 0] == pytest.approx(0.0, abs=1e-9)


def test_more_served_tokens_mean_a_smaller_model():
    """Up to 1e6 times the training tokens, where nearly all of the budget is spent on serving."""
    fit = fit_of(CHINCHILLA, EPOCH)
    T = np.array([0.0, 1e9, 1e11, 1e13, 1e15, 1e16])
    N = [allocation.for_inference(fit, SIX_ND, np.array([1e20]), tokens).N_BxG[0, 0] for tokens in T]
    assert (np.diff(N) < 0).all()


def test_serving_reads_new_tokens_only():
    """A data-constrained law and Hoffmann's of the same five coefficients advise the same run."""
    repeating, plain = fit_of(LAWS["data_constrained"], REPEATED), fit_of(CHINCHILLA, REPEATED[:5])
    found, wanted = (allocation.for_inference(fit, SIX_ND, np.array([1e21]), 1e12) for fit in (repeating, plain))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_a_draw_that_does_not_exist_leaves_the_others_alone():
    theta_BxP = np.stack([REPEATED, REPEATED * np.nan, REPEATED * 1.01])
    fit, C_G = fit_of(LAWS["data_constrained"], REPEATED), np.array([1e22])
    for found in (
        frontier.optima(fit.law, theta_BxP, fit.centre, SIX_ND, C_G),
        allocation.data_limited(fit, SIX_ND, C_G, 25e9, theta_BxP),
        allocation.for_inference(fit, SIX_ND, C_G, 1e12, theta_BxP),
    ):
        assert np.isnan(found.N_BxG[1, 0])
        assert np.isfinite(found.N_BxG[[0, 2], 0]).all()


def test_a_loss_that_no_compute_reaches_has_no_cheapest_run():
    C, found = allocation.cheapest(CHINCHILLA, EPOCH[None], np.zeros(2), SIX_ND, np.array([[1.8]]), np.array([[1e20]]))
    assert np.isnan(C).all()
    assert np.isnan(found.N_BxG).all()


@pytest.mark.parametrize("U", [0.0, -1e9, float("nan"), float("inf")])
def test_impossible_unique_tokens_are_refused(U):
    with pytest.raises(InputError, match="unique_tokens"):
        allocation.data_limited(fit_of(CHINCHILLA, EPOCH), SIX_ND, np.array([1e20]), U)


def test_impossible_inference_tokens_are_refused():
    with pytest.raises(InputError, match="inference_tokens"):
        allocation.for_inference(fit_of(CHINCHILLA, EPOCH), SIX_ND, np.array([1e20]), -1.0)


def test_decisions_hold_their_values_and_say_what_they_suppose(analysis):
    """Two targets, of which the unique tokens limit the larger one alone."""
    small, large = decisions.data_limited(analysis, 1e7)
    assert (small["binds"], large["binds"]) == (False, True)
    assert large["D"]["value"] == 4e7
    assert "up to 4 epochs" in large["basis"]
    assert small["N"] == analysis.optima[0]["N"]
    assert large["loss"]["value"] > analysis.optima[1]["loss"]["value"]
    served = decisions.inference(analysis, 1e9)
    for entry, plain in zip(served, analysis.optima, strict=True):
        assert entry["N"]["value"] < plain["N"]["value"]
        assert entry["D"]["value"] > plain["D"]["value"]
        assert entry["loss"]["value"] == pytest.approx(plain["loss"]["value"], rel=1e-9)
        for name in ("N", "D", "total_flops", "saved"):
            low, high = entry[name]["ci"]
            assert low <= entry[name]["value"] <= high
    assert served[0]["saved"]["value"] > served[1]["saved"]["value"]  # the smaller run serves more per trained token


def test_a_data_constrained_prediction_counts_its_unique_tokens(analysis):
    """The same run on fewer unique tokens is worse; on as many as it reads, Hoffmann's law holds at the optimum."""
    fit = fit_of(LAWS["data_constrained"], REPEATED)
    fit = dataclasses.replace(fit, residual_R=np.zeros(8))
    drawn = dataclasses.replace(analysis.bootstrap, fit=fit, theta_BxP=REPEATED[None].repeat(4, axis=0))
    law = dataclasses.replace(analysis, bootstrap=drawn, cost=SIX_ND)
    losses = [decisions.predict_loss(law, 6.34e9, 242e9, U)["value"] for U in (25e9, 100e9, None)]
    assert losses[0] == pytest.approx(2.2256440889984477, rel=1e-15)
    assert losses[0] > losses[1] > losses[2]


def test_next_runs_are_those_for_limited_data_training_and_serving(sweep):
    """The recommended one first; that of serving is trained with its own compute."""
    table = table_from_frame(sweep(noise=0.003))
    asked = {"unique_tokens": 1e5, "inference_tokens": 1e9}
    found = analyze(table, target_flops=[5e12], resamples=100, thorough=False, **asked)
    limited, training, serving = decisions.next_runs(found)
    assert [run["purpose"] for run in (limited, training, serving)] == ["limited data", "training", "serving"]
    assert limited["N"]["value"] > training["N"]["value"] > serving["N"]["value"]
    assert limited["target_flops"] == training["target_flops"] == 5e12
    cost = found.cost.flops(np.log(serving["N"]["value"])) * serving["D"]["value"]
    assert serving["target_flops"] == pytest.approx(cost, rel=1e-12)
    assert serving["target_flops"] > 5e12
    plain = decisions.next_runs(analyze(table, target_flops=[5e12], resamples=100, thorough=False))
    assert [run["purpose"] for run in plain] == ["training"]
