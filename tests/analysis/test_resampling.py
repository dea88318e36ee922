"""The bootstrap of a law: units, weights, known variances, and the published standard errors of Epoch."""

import numpy as np
import pandas as pd
import pytest

from benchmarks import epoch_bootstrap
from scaling.analysis.fitting import Objective, fit
from scaling.analysis.intervals import interval, studentised
from scaling.analysis.laws import CHINCHILLA, inputs_of, law_named
from scaling.analysis.resampling import bootstrap, cluster_of, dirichlet_weights, jackknife
from scaling.analysis.table import table_from_frame
from scaling.errors import InputError

LEAST_SQUARES = Objective("squares_log", delta=1e3)


def fitted(table, objective=LEAST_SQUARES):
    return fit(CHINCHILLA, inputs_of(table, CHINCHILLA), table.loss_R, objective)


def exponent(theta_BxP):
    return theta_BxP[:, 4] / (theta_BxP[:, 3] + theta_BxP[:, 4])


@pytest.fixture(scope="module")
def table(sweep):
    return table_from_frame(sweep(noise=0.004))


@pytest.fixture(scope="module")
def seeds_frame(sweep):
    """Every cell of the sweep with two seeds."""
    parts = [sweep(noise=0.004, seed=s).assign(seed=s, run=lambda f, s=s: f["run"] + f"-{s}") for s in (0, 1)]
    return pd.concat(parts, ignore_index=True)


def test_weights_have_the_moments_of_draws_with_replacement():
    """Mean 1, variance (K - 1) / K, covariance -1 / K, exactly K in sum; 40,000 draws of K = 5."""
    weight_BxK = dirichlet_weights(np.arange(5), 40_000, np.random.default_rng(0))
    np.testing.assert_allclose(weight_BxK.sum(1), 5, rtol=1e-12)
    assert (weight_BxK >= 0).all()
    # The standard error of a mean is 0.0045 and that of a variance of these skew weights 0.012; 4 of each.
    np.testing.assert_allclose(weight_BxK.mean(0), 1, atol=0.018)
    np.testing.assert_allclose(np.cov(weight_BxK.T), np.eye(5) - 0.2, atol=0.05)
    np.testing.assert_array_equal(dirichlet_weights(np.zeros(3, int), 2, np.random.default_rng(0)), np.ones((2, 3)))


def test_rows_of_one_cluster_have_one_weight():
    weight_BxR = dirichlet_weights(np.array([0, 0, 1, 2, 2, 2]), 100, np.random.default_rng(0))
    np.testing.assert_array_equal(weight_BxR[:, 0], weight_BxR[:, 1])
    np.testing.assert_array_equal(weight_BxR[:, 3:], weight_BxR[:, [3, 3, 3]])
    np.testing.assert_allclose(weight_BxR[:, [0, 2, 3]].sum(1), 3, rtol=1e-12)


def test_units_come_from_the_columns(sweep):
    frame = sweep(noise=0.004).drop(columns="run")
    rows = len(frame)
    plain = table_from_frame(frame)
    runs = table_from_frame(frame.assign(run=np.arange(rows) // 4))
    trunks = table_from_frame(frame.assign(run=np.arange(rows) // 4, trunk=np.arange(rows) // 8))
    law = fitted(plain)
    for table, unit, clusters in ((plain, "points", rows), (runs, "runs", rows // 4), (trunks, "trunks", 4)):
        auto = bootstrap(law, table, resamples=3)
        assert (auto.unit, auto.clusters) == (unit, clusters)
        named = bootstrap(law, table, unit=unit, resamples=3)
        np.testing.assert_array_equal(named.theta_BxP, auto.theta_BxP)
        np.testing.assert_array_equal(cluster_of(table, "auto"), table.cluster_R)
    assert bootstrap(law, trunks, unit="runs", resamples=3).clusters == rows // 4
    assert bootstrap(law, trunks, unit="points", resamples=3).clusters == rows


def test_a_row_without_a_run_is_a_cluster_of_its_own(sweep):
    frame = sweep(noise=0.004)
    frame.loc[:3, "run"] = "one"
    frame.loc[4:, "run"] = ""
    table = table_from_frame(frame)
    assert bootstrap(fitted(table), table, resamples=2).clusters == len(frame) - 3


def test_it_is_reproducible_and_a_generator_serves(table):
    law = fitted(table)
    one, same, other = (bootstrap(law, table, resamples=20, seed=seed) for seed in (1, np.random.default_rng(1), 2))
    np.testing.assert_array_equal(one.theta_BxP, same.theta_BxP)
    assert not np.array_equal(one.theta_BxP, other.theta_BxP)
    assert one.gradient_B.max() < 1e-6
    assert bootstrap(law, table, resamples=0).theta_BxP.shape == (0, 5)


def test_a_resample_solves_the_weighted_problem(table):
    """Weights 0 and 1 are the law without those rows: the jackknife equals fits of the rows that are left."""
    law = fitted(table)
    left_out = jackknife(law, table)
    assert left_out.clusters == len(table.N_R)
    for k in (0, 13):
        rest = np.arange(len(table.N_R)) != k
        alone = fit(CHINCHILLA, inputs_of(table, CHINCHILLA).rows(rest), table.loss_R[rest], LEAST_SQUARES)
        theta = CHINCHILLA.natural(left_out.theta_BxP[[k]], law.centre)
        for name, value in alone.parameters.items():
            assert theta[name][0] == pytest.approx(value, rel=1e-6), name  # both stationary, condition about 1e3


def test_spread_is_that_of_the_sandwich(table):
    """Least squares: the bootstrap's covariance is V = H^-1 (J diag(r^2) J^T) H^-1 to first order (White 1980)."""
    law = fitted(table)
    draws = bootstrap(law, table, resamples=2000)
    at = CHINCHILLA.evaluate(law.theta_P[None], inputs_of(table, CHINCHILLA), law.centre)
    J_PxR, r_R = at.J_BxPxR[0], law.residual_R
    bread = np.linalg.inv(J_PxR @ J_PxR.T + at.curvature(-r_R[None])[0])
    slope_P = np.zeros(5)
    alpha, beta = law.theta_P[3:]
    slope_P[3:] = np.array([-beta, alpha]) / (alpha + beta) ** 2
    sandwich = np.sqrt(slope_P @ bread @ (J_PxR * r_R**2) @ J_PxR.T @ bread @ slope_P)
    # Second order in a sweep of 28 runs, and 2 % of Monte Carlo error.
    assert draws.of(exponent).std() == pytest.approx(sandwich, rel=0.2)
    est = draws.interval(exponent)
    assert est["value"] == pytest.approx(float(exponent(law.theta_P[None])[0]))
    assert est["ci"][0] < est["value"] < est["ci"][1]


def test_noise_unit_has_the_variance_of_least_squares(table):
    """Losses drawn about the law with known noise: the spread is sd sqrt(diag (J J^T)^-1) (linear theory)."""
    law = fitted(table)
    at = CHINCHILLA.evaluate(law.theta_P[None], inputs_of(table, CHINCHILLA), law.centre)
    sd = 1e-4  # so small that the law is linear within it
    draws = bootstrap(law, table, unit="noise", sd=sd, resamples=2000)
    expected_P = sd * np.sqrt(np.diag(np.linalg.inv(at.J_BxPxR[0] @ at.J_BxPxR[0].T)))
    # The standard error of a standard deviation from 2,000 draws is 1.6 %; three of those.
    np.testing.assert_allclose(draws.theta_BxP.std(0), expected_P, rtol=0.05)
    np.testing.assert_allclose(draws.theta_BxP.mean(0), law.theta_P, atol=4 * expected_P.max() / np.sqrt(2000))


def test_noise_unit_measures_the_scatter_of_replicates(seeds_frame):
    table = table_from_frame(seeds_frame)
    law = fitted(table)
    measured = bootstrap(law, table, unit="noise", resamples=400)
    assert measured.clusters == 28 + 1  # 28 settings of two seeds: as many degrees of freedom
    of_pairs = np.sqrt((np.log(table.loss_R[:28] / table.loss_R[28:]) ** 2).mean() / 2)
    given = bootstrap(law, table, unit="noise", sd=float(of_pairs), resamples=400)
    # The losses differ by rounding, which moves the minimum by its square root at most; the spread is 1e-2.
    np.testing.assert_allclose(measured.theta_BxP, given.theta_BxP, atol=1e-6)


def test_seeds_unit_has_the_unbiased_variance_of_two_seeds(sweep):
    """Of two seeds one is drawn and counts double: to first order the covariance is H^-1 (sum J_s J_s^T d_s^2) H^-1
    with d_s the difference of the two, an unbiased estimate of that of the fit to all."""
    parts = [sweep(noise=1e-4, seed=s).assign(seed=s, run=lambda f, s=s: f["run"] + f"-{s}") for s in (0, 1)]
    table = table_from_frame(pd.concat(parts, ignore_index=True))  # noise so small that the law is linear within it
    law = fitted(table)
    draws = bootstrap(law, table, unit="seeds", resamples=2000)
    assert draws.clusters == 28 + 1
    J_PxR = CHINCHILLA.evaluate(law.theta_P[None], law.inputs, law.centre).J_BxPxR[0]
    bread = np.linalg.inv(J_PxR @ J_PxR.T)
    d_S = law.residual_R[:28] - law.residual_R[28:]
    expected = bread @ (J_PxR[:, :28] * d_S**2) @ J_PxR[:, :28].T @ bread
    # The standard error of a standard deviation from 2,000 draws is 1.6 %; three of those.
    np.testing.assert_allclose(draws.theta_BxP.std(0), np.sqrt(np.diag(expected)), rtol=0.05)


def test_units_that_a_table_cannot_serve_are_refused(table, sweep, seeds_frame):
    law = fitted(table)
    cases = (
        ("seed", {}, "did you mean seeds"),
        ("trunks", {}, "needs a column trunk"),
        ("seeds", {}, "needs a column seed"),
        ("noise", {}, "the table has no column seed"),
        ("noise", {"sd": 0.0}, "sd=0.0 is not a positive"),
        ("runs", {"sd": 0.1}, "sd=0.1 is of unit='noise'"),
    )
    for unit, more, message in cases:
        with pytest.raises(InputError, match=message):
            bootstrap(law, table, unit=unit, resamples=2, **more)
    lonely = table_from_frame(seeds_frame.drop(index=30))
    with pytest.raises(InputError, match="two seeds of every setting, and that of row 2"):
        bootstrap(law, lonely, unit="seeds", resamples=2)
    together = table_from_frame(sweep(noise=0.004).assign(run=np.arange(28) // 4))
    with pytest.raises(InputError, match="share their trunk or run"):
        bootstrap(law, together, unit="noise", sd=0.01, resamples=2)
    with pytest.raises(InputError, match="a jackknife leaves out clusters"):
        jackknife(law, table, unit="noise")


def test_any_law_is_bootstrapped(table):
    """The kaplan law has other parameters and the same call."""
    law = law_named("kaplan")
    found = bootstrap(fit(law, inputs_of(table, law), table.loss_R), table, resamples=20)
    assert found.theta_BxP.shape == (20, len(law.parameters))
    assert np.isfinite(found.theta_BxP).all()


def test_few_clusters_spread_as_the_jackknife_says(sweep):
    """With counts, half of the resamples of two trunks are one trunk alone; with weights all keep the design."""
    frame = sweep(noise=0.004)
    by_size = (frame["N"].rank() - 1) // 7  # four trunks of seven rows, between which N varies most
    table = table_from_frame(frame.assign(trunk=by_size))
    law = fitted(table)
    draws = bootstrap(law, table, resamples=300)
    assert draws.clusters == 4
    assert draws.spread > 1.2
    value = float(exponent(law.theta_P[None])[0])
    found = draws.interval(exponent)
    assert found == interval(value, draws.of(exponent), clusters=4, spread=draws.spread)
    # One factor for all coordinates, their median: for any one of them within a factor of the jackknife's own.
    own = studentised(value, jackknife(law, table).of(exponent))
    assert 0.4 < np.ptp(found["ci"]) / np.ptp(own["ci"]) < 2.5

    two = bootstrap(law, table_from_frame(frame.assign(trunk=np.arange(28) % 2)), resamples=50)
    assert np.isfinite(two.theta_BxP).all()
    assert two.of(exponent).std() > 0
    assert bootstrap(law, table_from_frame(frame.assign(trunk=np.arange(28) % 10)), resamples=2).spread == 1.0
    one = bootstrap(law, table_from_frame(frame.assign(trunk="the only one")), resamples=20)
    assert one.interval(exponent)["ci"] is None  # one observation has no interval


def test_epochs_published_standard_errors_and_intervals(published):
    """Besiroglu et al. 2024 from their seed: 4,000 resamples of 240 runs."""
    found = epoch_bootstrap.reproduce(published("chinchilla_epoch245"))
    for name, (theirs, decimals) in epoch_bootstrap.PUBLISHED_ERRORS.items():
        # Their refits stop up to 1e-7 above the minimum, which moves a standard error by up to 3e-4 of itself.
        assert found.errors[name] == pytest.approx(theirs, rel=3e-4, abs=0.5 * 10.0**-decimals), name
    for name, (low, high, decimals) in epoch_bootstrap.PUBLISHED_INTERVALS.items():
        # Half a printed digit and the same 1e-5 of the value; their low end of A is one resample of 4,000 away.
        low_off = 0.9 if name == "A" else 0.5 * 10.0**-decimals + 1e-5 * low
        assert found.intervals[name][0] == pytest.approx(low, abs=low_off), name
        assert found.intervals[name][1] == pytest.approx(high, abs=0.5 * 10.0**-decimals + 1e-5 * high), name
    # The digits of an independent solver that searches from the estimate alone, as theirs does.
    ours = {"A": 124.494, "B": 1293.169, "E": 0.025657, "alpha": 0.015397, "beta": 0.020594}
    for name, value in ours.items():
        assert found.errors[name] == pytest.approx(value, rel=1e-5, abs=6e-7), name
    # One of the 4,000 has a lower minimum elsewhere, with an uncommonly large B.
    assert found.lower == 1
    assert found.exact_errors["B"] == pytest.approx(1312.1, abs=0.1)
