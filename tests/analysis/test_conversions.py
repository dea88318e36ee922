"""One frontier under several counts of N and C: closed forms, published exponents, and a fitted law's own columns."""

import numpy as np
import pytest

from scaling.analysis import conversions
from scaling.analysis.conversions import Surface
from scaling.analysis.fitting import fit
from scaling.analysis.laws import CHINCHILLA, Inputs
from scaling.errors import InputError

EPOCH = Surface(1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # Besiroglu et al. 2024
HOFFMANN = Surface(1.6934, 406.4, 410.7, 0.3392, 0.2849)


def test_counting_embeddings_and_leaving_them_out_are_inverse():
    """From one parameter to 1e14; the closed form of the cubic is good to rounding."""
    N_E = np.geomspace(1.0, 1e14, 57)
    np.testing.assert_allclose(conversions.without_embeddings(conversions.total(N_E)), N_E, rtol=1e-13)


@pytest.mark.parametrize("surface", [EPOCH, HOFFMANN])
def test_the_optimum_under_kaplans_compute_is_the_best_of_a_grid(surface):
    """Pearce & Song's formula for C_E against the loss itself, over sizes 1e-5 apart in ln N_E."""
    N_E = np.geomspace(1e4, 1e11, 8)
    C_E = conversions.compute_without_embeddings(surface, N_E)
    near_M = np.exp(np.arange(-2000, 2001) * 1e-5)
    for size, compute in zip(N_E, C_E, strict=True):
        loss_M = surface.loss(size * near_M, compute / (6 * size * near_M))
        assert abs(loss_M.argmin() - 2000) <= 2  # the loss is flat to rounding about its minimum


@pytest.mark.parametrize("surface", [EPOCH, HOFFMANN])
def test_the_slope_in_closed_form_is_that_of_the_optima(surface):
    """Central differences over a step of 1e-4 in ln N_E are good to 1e-8."""
    N_E = np.geomspace(1e2, 1e13, 23)
    steps = [conversions.compute_without_embeddings(surface, N_E * np.exp(h)) for h in (-1e-4, 1e-4)]
    slope = 2e-4 / (np.log(steps[1]) - np.log(steps[0]))
    np.testing.assert_allclose(conversions.slope_without_embeddings(surface, N_E), slope, rtol=1e-7)


def test_the_slope_has_kaplans_and_chinchillas_limits():
    """beta / (alpha / 3 + beta) where embeddings are all, beta / (alpha + beta) where they are nothing."""
    small, large = conversions.slope_without_embeddings(EPOCH, np.array([1e-12, 1e24]))
    assert small == pytest.approx(0.3658 / (0.3478 / 3 + 0.3658), abs=1e-6)
    assert large == pytest.approx(0.3658 / (0.3478 + 0.3658), abs=1e-6)


@pytest.mark.parametrize(
    ("surface", "without", "with_them", "far"), [(EPOCH, 0.7805, 0.5154, 0.5147), (HOFFMANN, 0.7388, 0.4577, 0.4586)]
)
def test_the_published_exponents_to_their_digits(surface, without, with_them, far):
    """What Pearce & Song's script prints, for sizes without embeddings, for all parameters, and for large models."""
    assert round(conversions.exponent_on_grid(surface, (12.95, 20.7), embeddings=False), 4) == without
    assert round(conversions.exponent_on_grid(surface, (14.0, 20.7), embeddings=True), 4) == with_them
    N_E = np.logspace(2, 11, 100)[90:]
    C_E = conversions.compute_without_embeddings(surface, N_E)
    assert round(np.polyfit(np.log(C_E), np.log(N_E), 1)[0], 4) == far


def test_the_published_exponent_is_partly_its_grid():
    """The line through exact optima over the same range has .7751, not .7805; it is a mean of the local slopes there,
    and so lies between them."""
    exact = conversions.exponent_over(EPOCH, (12.95, 20.7))
    assert round(exact, 4) == 0.7751
    N_E = np.geomspace(1e0, 1e12, 2001)
    log_C = np.log10(conversions.compute_without_embeddings(EPOCH, N_E))
    slope = conversions.slope_without_embeddings(EPOCH, N_E)[(log_C >= 12.95) & (log_C <= 20.7)]
    assert slope.min() < exact < slope.max()


def test_exponents_of_every_published_convention(published):
    """nanochat, the same runs under three counts: the log's exponents of N* and D*.

    The log prints its budgets to one digit, 1, 2, 5 and 10e18; it says that they are evenly spaced in the logarithm,
    1, 2.15, 4.64 and 10e18. Only with these do its optima have its exponents.
    """
    frame = published("nanochat_param_conventions")
    C_K = np.tile(np.logspace(18, 19, 4), 3)
    np.testing.assert_array_equal([float(f"{C:.0e}") for C in C_K], frame["C"])
    found = conversions.exponents(
        C_K, {"N": frame["N_opt"].to_numpy(), "D": frame["D_opt"].to_numpy()}, frame["convention"].to_numpy()
    )
    assert {name: {quantity: round(x, 2) for quantity, x in row.items()} for name, row in found.items()} == {
        "kaplan": {"N": 0.54, "D": 0.49},
        "all": {"N": 0.37, "D": 0.50},
        "transformer_only": {"N": 0.70, "D": 0.41},
    }


def test_every_convention_of_a_fitted_law_has_its_closed_form():
    """Noise-free runs of Epoch's law over one decade of size: the optimum's exponent in four pairs of counts.

    The law is in all parameters N. Under C = 6ND the exponent of N* is beta / (alpha + beta), and that of N_E* this
    over d ln N / d ln N_E; under C_E = 6 N_E D that of N_E* is g. Quadratics stand for N_E(N): the rows say how far
    these are off, below half a per cent, and the exponents, slopes of the curves, are good to two per cent.
    """
    grid = np.meshgrid(np.geomspace(3e7, 3e8, 9), np.geomspace(1e9, 3e10, 6))
    N_E, D = (values.ravel() for values in grid)
    N = conversions.total(N_E)
    law = fit(CHINCHILLA, Inputs(N_R=N, D_R=D), EPOCH.loss(N_E, D))
    assert law.parameters["alpha"] == pytest.approx(0.3478, abs=1e-6)
    rows = conversions.every_convention(
        law, D, {"all": N, "no embeddings": N_E}, {"6 N D": 6 * N * D, "6 N_E D": 6 * N_E * D}
    )
    found = {(row["N"], row["C"]): row for row in rows}
    at = found["no embeddings", "6 N D"]["N_at"]
    growth = (1 + conversions.GAMMA * at ** (-2 / 3) / 3) / (1 + conversions.GAMMA * at ** (-2 / 3))
    a = 0.3658 / (0.3478 + 0.3658)
    assert found["all", "6 N D"]["exponent"] == pytest.approx(a, abs=1e-6)
    assert found["no embeddings", "6 N D"]["exponent"] == pytest.approx(a / growth, rel=0.02)
    kaplan = found["no embeddings", "6 N_E D"]
    assert conversions.compute_without_embeddings(EPOCH, kaplan["N_at"]) == pytest.approx(kaplan["C_at"], rel=0.02)
    assert kaplan["exponent"] == pytest.approx(conversions.slope_without_embeddings(EPOCH, kaplan["N_at"]), rel=0.02)
    assert found["all", "6 N_E D"]["exponent"] < kaplan["exponent"]
    assert found["all", "6 N D"]["error"] < 1e-12 < kaplan["error"] < 0.005


def test_conventions_that_are_not_given_are_asked_for():
    with pytest.raises(InputError, match="no conventions given"):
        conversions.every_convention(None, np.ones(3), {}, {})
