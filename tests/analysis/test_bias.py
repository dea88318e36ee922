"""The closed-form bias of polynomial isoFLOP fits: against numeric fits, and against the published table."""

import numpy as np
import pytest

from scaling.analysis import bias
from scaling.analysis.valley import phi

CHINCHILLA, ASYMMETRIC = (0.34, 0.28), (0.465, 0.155)
BUDGETS = np.array([1e17, 1e18, 1e19, 1e20, 1e21])
WIDTHS = (2, 4, 8, 16)
SHIFTS = {"centred": np.zeros(5), "off 3x": -np.full(5, np.log(3)), "drift to 3x": -np.linspace(0, np.log(3), 5)}
# Czech et al. 2026: D* at 1e24 inferred from five noise-free budgets of 15 sizes, in per cent, to the printed digits.
# "Off 3x" and "drift to 3x" are about D, whose grid lies 3x too high: in ln N it is 3x too low.
TABLE = [
    (CHINCHILLA, "centred", 2, ("-0.327", "-1.301", "-2.903", "-5.100")),
    (ASYMMETRIC, "centred", 2, ("-1.675", "-6.498", "-13.910", "-23.116")),
    (ASYMMETRIC, "off 3x", 2, ("19.22", "14.41", "6.96", "-2.42")),
    (ASYMMETRIC, "drift to 3x", 2, ("34.57", "30.04", "22.97", "14.00")),
    (ASYMMETRIC, "centred", 3, ("0.00", "0.07", "0.33", "1.03")),
    (ASYMMETRIC, "drift to 3x", 3, ("-7.13", "-1.49", "8.50", "23.76")),
    (ASYMMETRIC, "drift to 3x", 4, ("0.65", "-0.18", "-1.41", "-2.73")),
]


def extrapolated(exponents: tuple[float, float], place: str, width: float, degree: int) -> bias.Miss:
    grid_S = np.linspace(-np.log(width), np.log(width), 15)
    return bias.extrapolated(*exponents, BUDGETS, [shift + grid_S for shift in SHIFTS[place]], 1e24, degree)


@pytest.mark.parametrize(("exponents", "place", "degree", "printed"), TABLE)
def test_the_published_table_to_its_printed_digits(exponents, place, degree, printed):
    for width, per_cent in zip(WIDTHS, printed, strict=True):
        half_a_digit = 0.5 * 10.0 ** -len(per_cent.split(".")[1])
        found = 100 * extrapolated(exponents, place, width, degree).tokens
        # A little over half a digit: -2.425 and 34.575 are printed as -2.42 and 34.57.
        assert found == pytest.approx(float(per_cent), abs=1.2 * half_a_digit)


def test_drift_biases_the_exponent_and_a_fixed_place_does_not():
    for width, a_error in ((2, -0.0209), (16, -0.0259)):
        # They give the error of the exponent of N*; that of D* is its negative under 6ND.
        found = extrapolated(ASYMMETRIC, "drift to 3x", width, 2).exponent
        assert -found == pytest.approx(a_error, abs=5e-5)
    for place in ("centred", "off 3x"):
        assert extrapolated(ASYMMETRIC, place, 8, 2).exponent == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_the_closed_form_is_a_numeric_polynomial_fit_of_the_losses(truth, seed):
    """Any grid, any weights, any law: NumPy's polyfit to the law's own losses at one C, and the minimum of that."""
    rng = np.random.default_rng(seed)
    alpha, beta = rng.uniform(0.15, 0.8, 2)
    law, C = truth._replace(alpha=alpha, beta=beta), 10.0 ** rng.uniform(15, 22)
    u_S = np.sort(rng.uniform(-2.5, 2.0, 9))
    weight_S = rng.integers(1, 4, 9).astype(float)
    N_S = law.N_opt(C) * np.exp(u_S)
    c2, c1, _ = np.polyfit(u_S, law.loss(N_S, C / (6 * N_S)), 2, w=np.sqrt(weight_S))
    shift = bias.parabola_shift(u_S, alpha, beta, weight_S)
    # The issue asks for 1e-6; what remains is the rounding of losses that differ by as little as 1e-4 of themselves.
    assert shift == pytest.approx(-c1 / (2 * c2), abs=1e-7)


def test_the_formula_for_symmetric_grids_is_the_general_one():
    for exponents in (CHINCHILLA, ASYMMETRIC, (0.2, 0.9)):
        for width in WIDTHS:
            w_S = np.linspace(-np.log(width), np.log(width), 15)
            general = bias.parabola_shift(w_S, *exponents)
            assert bias.symmetric_shift(w_S, *exponents) == pytest.approx(general, rel=1e-9)


def test_a_symmetric_valley_on_a_symmetric_grid_has_no_bias():
    assert bias.parabola_shift(np.linspace(-2, 2, 9), 0.4, 0.4) == pytest.approx(0, abs=1e-12)


def test_a_cubic_that_rises_all_the_way_has_no_shift():
    """Sizes from 7 to 150 times the optimum: the valley is convex there, and so a parabola still has a minimum."""
    u_S = np.linspace(2, 5, 9)
    assert np.isnan(bias.polynomial_shift(u_S, 0.34, 0.28, 3))
    assert bias.polynomial_shift(u_S, 0.34, 0.28, 2) > 0.5


def test_the_valley_is_the_law_at_fixed_compute(truth):
    """L(N, C / 6N) - L* is phi times the curvature at the optimum, alpha beta (alpha + beta) times its constant."""
    C, u = 1e20, np.linspace(-3, 3, 13)
    N_opt = truth.N_opt(C)
    above = truth.loss(N_opt * np.exp(u), C / (6 * N_opt * np.exp(u))) - truth.loss(N_opt, C / (6 * N_opt))
    curvature = (
        truth.alpha**2 * truth.A / N_opt**truth.alpha + truth.beta**2 * truth.B / (C / (6 * N_opt)) ** truth.beta
    )
    np.testing.assert_allclose(curvature * phi(u, truth.alpha, truth.beta), above, rtol=1e-9, atol=1e-12)
    # Curvature one and skew beta - alpha at the minimum, by differences.
    step = 1e-3
    around = phi(np.array([-2, -1, 0, 1, 2]) * step, 0.34, 0.28)
    assert (around[1] - 2 * around[2] + around[3]) / step**2 == pytest.approx(1, abs=1e-6)
    assert (around[4] - 2 * around[3] + 2 * around[1] - around[0]) / (2 * step**3) == pytest.approx(-0.06, abs=1e-4)
