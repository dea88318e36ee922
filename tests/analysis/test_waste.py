"""The compute that a wrong size wastes: its definition, the Llama 3 case, and intervals that may hold zero."""

import dataclasses

import numpy as np
import pytest

from scaling.analysis import decisions, frontier, waste
from scaling.analysis.analyze import Analysis, analyze
from scaling.analysis.fitting import Fit
from scaling.analysis.frontier import six_nd
from scaling.analysis.laws import CHINCHILLA
from scaling.analysis.table import table_from_frame

# The law that vpnls fits to the Llama 3 isoFLOP points (all 133 rows, raw loss, least squares).
LLAMA = np.array([np.log(0.6046695143), np.log(59.14106585), np.log(155.1141558), 0.3100060864, 0.3136430672])
SIX_ND = six_nd(4e7, 2e10)
C = 3.8e25


def fit_of(theta_P: np.ndarray) -> Fit:
    unknown = dict.fromkeys(field.name for field in dataclasses.fields(Fit))
    return Fit(**{**unknown, "law": CHINCHILLA, "theta_P": theta_P, "centre": np.zeros(2)})


def loss_of(theta_P: np.ndarray, N: float, D: float) -> float:
    E, A, B = np.exp(theta_P[:3])
    return E + A / N ** theta_P[3] + B / D ** theta_P[4]


@pytest.fixture(scope="module")
def analysis(sweep) -> Analysis:
    return analyze(table_from_frame(sweep(noise=0.003)), target_flops=(1e13,), resamples=200)


def test_the_published_waste_of_llama_3():
    """Czech et al. 2026: Approach 2's 16.1T tokens at 3.8e25 FLOPs where the law's optimum is 10.2T waste 6.3 %."""
    best = frontier.optima(CHINCHILLA, LLAMA[None], np.zeros(2), SIX_ND, np.array([C]))
    assert round(best.D_BxG[0, 0] / 1e12, 1) == 10.2
    found = waste.waste(fit_of(LLAMA), SIX_ND, C, C / (6 * 16.1e12))
    assert round(100 * found["value"], 1) == 6.3
    assert found["ci"] is None


@pytest.mark.parametrize("times", [0.01, 0.5, 2.0, 30.0])
def test_the_rest_of_the_budget_buys_the_same_loss(times):
    """The definition: the compute-optimal run of (1 - waste) C has the loss of the wrong run of C. Newton stops at
    1e-10 of ln C; the loss moves by less."""
    N = times * frontier.optima(CHINCHILLA, LLAMA[None], np.zeros(2), SIX_ND, np.array([C])).N_BxG[0, 0]
    share = waste.waste(fit_of(LLAMA), SIX_ND, C, N)["value"]
    best = frontier.optima(CHINCHILLA, LLAMA[None], np.zeros(2), SIX_ND, np.array([(1 - share) * C]))
    assert 0 < share < 1
    assert best.loss_BxG[0, 0] == pytest.approx(loss_of(LLAMA, N, C / (6 * N)), rel=1e-10)


def test_the_optimum_wastes_nothing_and_distance_from_it_more_and_more():
    best = frontier.optima(CHINCHILLA, LLAMA[None], np.zeros(2), SIX_ND, np.array([C])).N_BxG[0, 0]
    theta_BxP = np.tile(LLAMA, (9, 1))
    signed = waste.signed_waste(
        CHINCHILLA, theta_BxP, np.zeros(2), SIX_ND, C, best * np.array([0.1, 0.3, 0.6, 0.9, 1, 1.1, 2, 4, 10])
    )
    assert (np.diff(signed) > 0).all()
    assert signed[4] == pytest.approx(0.0, abs=1e-10)
    assert (signed[:4] < 0).all()
    assert (signed[5:] > 0).all()


def test_draws_of_the_law_alone_give_the_waste_of_a_size_that_was_chosen():
    """A draw that does not exist is left out; draws equal to the fit give the value itself as their interval."""
    theta_BxP = np.tile(LLAMA, (20, 1))
    theta_BxP[3] = np.nan
    found = waste.waste(fit_of(LLAMA), SIX_ND, C, 4e11, theta_BxP)
    assert found["ci"] == pytest.approx([found["value"]] * 2, rel=1e-9)


def test_an_interval_of_both_signs_starts_at_zero():
    """Percentiles of the sizes alone would exclude zero, the truth where the allocation is right up to noise."""
    draws_B = np.random.default_rng(0).normal(0.0, 0.1, 1000)
    low, high = waste.size_of(0.01, draws_B)["ci"]
    assert low == 0.0
    assert high == pytest.approx(0.1645, abs=0.02)  # two standard errors of a 95 % quantile of 1,000 draws
    assert np.quantile(np.abs(draws_B), 0.05) > 0


def test_an_interval_of_one_sign_is_that_of_the_size():
    draws_B = np.linspace(-0.3, -0.1, 1001)
    found = waste.size_of(-0.2, draws_B)
    assert found["value"] == 0.2
    assert found["ci"] == pytest.approx([0.11, 0.29])
    assert waste.size_of(float("nan"), draws_B * np.nan) == {"value": None, "ci": None, "level": 0.9}


def test_both_approaches_are_judged_by_each_other(analysis):
    """Half-width and sign apart, the two entries are about one distance between two optima: nearly the same share."""
    entries = decisions.waste(analysis)
    assert [(entry["follow"], entry["if_right"]) for entry in entries] == [
        ("approach2", "approach3"),
        ("approach3", "approach2"),
    ]
    followed = analysis.isoflop.N_power.at(1e13)[0, 0]
    assert entries[0]["N"] == followed
    assert entries[1]["N"] == analysis.optima[0]["N"]["value"]
    alone = waste.waste(analysis.fit, analysis.cost, 1e13, followed)
    assert entries[0]["share"]["value"] == pytest.approx(alone["value"], rel=1e-6)
    assert entries[1]["share"]["value"] == pytest.approx(entries[0]["share"]["value"], rel=0.05)
    for entry in entries:
        low, high = entry["share"]["ci"]
        assert low == 0.0 <= entry["share"]["value"] <= high < 0.05


def test_without_approach_2_there_is_nothing_to_compare(analysis):
    assert decisions.waste(dataclasses.replace(analysis, isoflop="no budgets")) == []
