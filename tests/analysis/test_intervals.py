"""Intervals against the classical ones that they must equal, and by what they hold in repeated experiments."""

import numpy as np
import pytest
from scipy import stats

from scaling.analysis.intervals import Forecast, expanded, interval, percentile, prediction, studentised, widening
from scaling.analysis.resampling import dirichlet_weights
from scaling.errors import InputError

SAMPLE = np.array([2.1, 3.4, 1.7, 2.9, 2.2, 4.0, 3.1, 2.6])


def t_interval(x, level=0.9):
    return list(stats.t.interval(level, len(x) - 1, x.mean(), stats.sem(x)))


def test_percentile_is_the_quantiles_of_the_draws():
    assert percentile(0.3, np.linspace(0, 1, 101)) == {"value": 0.3, "ci": pytest.approx([0.05, 0.95]), "level": 0.9}
    assert percentile(0.3, np.linspace(0, 1, 101), level=0.5)["ci"] == pytest.approx([0.25, 0.75])


def test_draws_that_do_not_exist():
    half = np.array([0.0, 1.0, np.nan, np.nan])
    assert percentile(1.0, half)["ci"] == pytest.approx([0.05, 0.95])  # of the two that exist
    assert percentile(1.0, np.append(half, np.nan))["ci"] is None
    assert percentile(1.0)["ci"] is None
    assert percentile(1.0, np.empty(0))["ci"] is None
    assert percentile(float("nan"), np.ones(10))["value"] is None
    assert interval(1.0, np.ones(10), clusters=1) == {"value": 1.0, "ci": None, "level": 0.9}


@pytest.mark.parametrize(("kind", "clusters"), [(interval, 2), (interval, 4), (interval, 20), (expanded, 8)])
def test_the_interval_of_a_mean_is_students(kind, clusters):
    """Normal draws with the bootstrap's variance of a mean, (K - 1) / K^2 s^2: the interval is +- t s / sqrt(K)."""
    draws_B = 5.0 + np.sqrt(clusters - 1) / clusters * stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    half = stats.t.ppf(0.95, clusters - 1) / np.sqrt(clusters)
    # 200,000 spaced draws have their 5 % quantile to 1e-5 of the spread, and the 1.6 % one of eight to 1e-4.
    assert kind(5.0, draws_B, clusters=clusters)["ci"] == pytest.approx([5 - half, 5 + half], abs=1e-4)


def test_the_default_keeps_the_asymmetry_of_the_draws_and_their_value():
    draws_B = np.concatenate([np.linspace(-1, 0, 501)[:-1], np.linspace(0, 3, 501)])
    w = widening(6)
    assert interval(0.0, draws_B, clusters=6)["ci"] == pytest.approx([-0.9 * w, 2.7 * w], rel=1e-2)
    # An estimate beyond its draws, as bias can make it, is an end of its interval.
    low, high = interval(5.0, draws_B, clusters=6)["ci"]
    assert high == 5.0
    assert low == pytest.approx(5.0 - 5.9 * w, rel=1e-2)


def test_widening_vanishes_for_many_clusters():
    factors = [widening(clusters) for clusters in (2, 5, 10, 100, 1_000_000)]
    assert (np.diff(factors) < 0).all()
    assert factors[-1] == pytest.approx(1.0, abs=1e-5)


def test_positive_quantities_are_widened_as_logs():
    log_B = np.random.default_rng(0).normal(3.0, 1.0, 20_001)
    of_log = interval(3.0, log_B, clusters=4)["ci"]
    found = interval(np.exp(3.0), np.exp(log_B), clusters=4, positive=True)
    # A quantile between two draws is interpolated on either scale; neighbours are 1e-4 apart at most.
    assert np.log(found["ci"]) == pytest.approx(of_log, abs=5e-4)
    assert interval(np.exp(3.0), np.exp(log_B), clusters=4)["ci"][0] < 0  # what `positive` is for
    with_zero = interval(1.0, np.array([0.0] * 50 + [1.0] * 50 + [2.0] * 50), clusters=4, positive=True)
    assert with_zero["ci"] == [0.0, pytest.approx(2 ** widening(4))]
    with pytest.raises(InputError, match="no positive quantity"):
        interval(1.0, np.linspace(-1, 3, 50), clusters=4, positive=True)


def test_the_jackknife_interval_of_a_mean_is_students():
    left_out_K = np.array([np.delete(SAMPLE, k).mean() for k in range(len(SAMPLE))])
    found = studentised(SAMPLE.mean(), left_out_K)
    assert found["ci"] == pytest.approx(t_interval(SAMPLE), rel=1e-12)
    geometric = studentised(np.exp(SAMPLE.mean()), np.exp(left_out_K), positive=True)
    assert np.log(geometric["ci"]) == pytest.approx(found["ci"], rel=1e-12)


def test_a_jackknife_with_a_hole_has_no_interval():
    assert studentised(1.0, np.array([1.0, np.nan, 1.2]))["ci"] is None
    assert studentised(1.0, np.array([1.0]))["ci"] is None
    assert studentised(float("nan"), np.ones(3)) == {"value": None, "ci": None, "level": 0.9}
    assert studentised(1.0, np.array([1.0, -0.1, 1.2]), positive=True)["ci"] is None


@pytest.mark.parametrize("clusters", [2, 4, 8])
def test_the_default_covers_where_percentiles_do_not(clusters):
    """The mean of K normal numbers, 500 experiments of 400 draws of weights."""
    held = {interval: 0, percentile: 0}
    rng = np.random.default_rng(0)
    for _ in range(500):
        x_K = rng.standard_normal(clusters)
        mean_B = dirichlet_weights(np.arange(clusters), 400, rng) @ x_K / clusters
        for kind, more in ((interval, {"clusters": clusters}), (percentile, {})):
            low, high = kind(x_K.mean(), mean_B, **more)["ci"]
            held[kind] += low <= 0 <= high
    # The binomial standard error is 0.013; the weights are bounded, so that two clusters lose three per cent.
    assert 0.84 <= held[interval] / 500 <= 0.94
    assert held[percentile] / 500 < 0.84


def test_a_prediction_joins_law_and_scatter():
    rng = np.random.default_rng(0)
    residual_R = 0.02 * stats.norm.ppf((np.arange(400) + 0.5) / 400)
    law_B = 2.0 * np.exp(0.03 * rng.standard_normal(2000))
    many = 1_000_000  # clusters, so that nothing is widened
    found = prediction([Forecast(2.0, law_B, residual_R, 0)], rng, clusters=many)
    # Log-normal with the two variances added; the ends of 40,000 draws are good to 0.0005, of 2,000 laws to 0.0015.
    half = stats.norm.ppf(0.95) * np.hypot(0.02, 0.03)
    assert found["value"] == pytest.approx(2.0)
    assert np.log(np.array(found["ci"]) / 2) == pytest.approx([-half, half], abs=4e-3)
    only_law = prediction([Forecast(2.0, law_B, np.zeros(5), 0)], rng, clusters=4)
    widened = interval(2.0, law_B, clusters=4, positive=True)["ci"]
    assert only_law["ci"] == pytest.approx(widened, rel=1e-3)  # every draw 20 times: interpolation differs
    # Of 40 runs with 30 parameters, a quarter of the degrees of freedom are left: twice the scatter.
    inflated = prediction([Forecast(2.0, np.full(2000, 2.0), residual_R[::10], 30)], rng, clusters=many)
    assert np.log(inflated["ci"][1] / 2) == pytest.approx(2 * stats.norm.ppf(0.95) * 0.02, rel=0.1)


def test_a_prediction_spans_the_laws_that_have_weight():
    def between(*weights):
        laws = [
            Forecast(loss, np.full(500, loss), np.zeros(4), 1, w)
            for loss, w in zip((2.0, 3.0, 9.0), weights, strict=False)
        ]
        return prediction(laws, np.random.default_rng(0), clusters=4)

    assert between(3.0, 2.0, 0.0)["ci"] == [2.0, 3.0]
    assert between(3.0, 2.0, 0.0)["value"] == pytest.approx(2.0**0.6 * 3.0**0.4)
    assert between(1.0)["ci"] == [2.0, 2.0]
    for bad in ((1.0, -0.5, 0.5), (0.0,), ()):
        with pytest.raises(InputError, match="weights of laws"):
            between(*bad)
    none = [Forecast(2.0, np.empty(0), np.zeros(4), 1)]
    assert prediction(none, np.random.default_rng(0), clusters=4) == {"value": 2.0, "ci": None, "level": 0.9}
