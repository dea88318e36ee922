"""Laws: derivatives, published values, and the ways to hold and to define."""

import math

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.fitting import fit
from scaling.analysis.laws import LAWS, Inputs, define, exponent, hold, inputs_of, law_named, level
from scaling.analysis.laws.jets import exp, logaddexp, variables
from scaling.analysis.table import read_table, table_from_frame
from scaling.errors import InputError

ROWS = 30
RANGES = ((13, 20), (20, 26), (30, 45), (15, 22), (5, 9), (1, 4), (0, 5))  # ln of N, D, C, U, width, depth, experts


def inputs(seed: int = 0) -> Inputs:
    rng = np.random.default_rng(seed)
    drawn = Inputs(*(np.exp(rng.uniform(low, high, ROWS)) for low, high in RANGES))
    return drawn._replace(U_R=np.minimum(drawn.U_R, drawn.D_R))


def loss(seed: int = 0) -> np.ndarray:
    return 2 + np.random.default_rng(seed).uniform(size=ROWS)


def somewhere(law, count=3):
    """Points in the law's bounds, and its centre."""
    given, rng = inputs(), np.random.default_rng(1)
    centre = law.centre(given)
    return law.starts(count, given, loss(), centre, rng).clip(*law.bounds(loss())), given, centre


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_derivatives_are_those_of_the_value(law):
    theta_BxP, given, centre = somewhere(law)
    at = law.evaluate(theta_BxP, given, centre)
    np.testing.assert_allclose(at.f_BxR, law.log_loss(theta_BxP, given, centre), rtol=1e-12)
    c_BxR = np.random.default_rng(2).standard_normal(at.f_BxR.shape)
    H_BxPxP = at.curvature(c_BxR)
    np.testing.assert_allclose(H_BxPxP, H_BxPxP.transpose(0, 2, 1), rtol=1e-9, atol=1e-12)
    for p in range(theta_BxP.shape[1]):
        step_P = np.eye(theta_BxP.shape[1])[p] * 1e-6 * max(1.0, np.abs(theta_BxP[:, p]).max())
        up, down = (law.evaluate(theta_BxP + sign * step_P, given, centre) for sign in (1, -1))
        slope_BxR = (up.f_BxR - down.f_BxR) / (2 * step_P[p])
        bend_BxP = np.einsum("br,bpr->bp", c_BxR, up.J_BxPxR - down.J_BxPxR) / (2 * step_P[p])
        # Central differences at 1e-6 are good to about 1e-9 of the largest entry.
        np.testing.assert_allclose(at.J_BxPxR[:, p], slope_BxR, atol=1e-7 * max(1.0, np.abs(slope_BxR).max()))
        np.testing.assert_allclose(H_BxPxP[:, p], bend_BxP, atol=1e-7 * max(1.0, np.abs(H_BxPxP).max()))


def test_natural_values_are_those_of_the_equation():
    """Each law as its equation says, from natural parameters alone."""
    written = {
        "chinchilla": lambda p, x: p["E"] + p["A"] / x.N_R ** p["alpha"] + p["B"] / x.D_R ** p["beta"],
        "tied": lambda p, x: p["E"] + p["A"] / x.N_R ** p["alpha"] + p["B"] / x.D_R ** p["alpha"],
        "compute": lambda p, x: p["E"] + p["A"] / x.C_R ** p["gamma"],
        "kaplan": lambda p, x: (
            ((p["N_c"] / x.N_R) ** (p["alpha_N"] / p["alpha_D"]) + p["D_c"] / x.D_R) ** p["alpha_D"]
        ),
        "coupled": lambda p, x: (
            p["E"]
            + (p["A"] / x.N_R ** (p["alpha"] / p["k"]) + p["B"] / x.D_R ** (p["beta"] / p["k"])) ** p["k"]
        ),
        "overtraining": lambda p, x: (
            p["E"]
            + (p["a"] * (x.D_R / x.N_R) ** p["eta"] + p["b"] * (x.D_R / x.N_R) ** -p["eta"])
            / (6 * x.N_R * x.D_R) ** p["eta"]
        ),
        "width_depth": lambda p, x: (
            p["E"] + p["A"] / x.N_R ** p["alpha"] + p["B"] / x.D_R ** p["beta"]
            + p["W"] / x.width_R ** p["omega"] + p["Z"] / x.depth_R ** p["zeta"]
        ),
        "moe": moe,
        "data_constrained": data_constrained,
    }  # fmt: skip
    assert written.keys() == LAWS.keys()
    for name, law in LAWS.items():
        theta_BxP, given, centre = somewhere(law)
        p = {key: value_B[:, None] for key, value_B in law.natural(theta_BxP, centre).items()}
        mine = np.exp(law.log_loss(theta_BxP, given, centre))
        # Powers of numbers up to 1e26 lose a few digits of double precision.
        np.testing.assert_allclose(mine, written[name](p, given), rtol=1e-10, err_msg=name)


def moe(p, x):
    """Clark et al. 2022, eq. 5 and 6."""
    E = 1 / (1 / (x.experts_R - 1 + 1 / (1 / p["E_start"] - 1 / p["E_max"])) + 1 / p["E_max"])
    n, e = np.log10(x.N_R), np.log10(E)
    return 10 ** (p["a"] * n + p["b"] * e + p["c"] * n * e + p["d"])


def data_constrained(p, x):
    """Muennighoff et al. 2023, eq. 5 and 6, as in the README of datablations."""
    G = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    base = np.minimum((x.U_R * G) ** (p["beta"] / p["alpha"]) * G, x.N_R)
    N = base + base * p["R_N"] * (1 - np.exp(-(x.N_R / base - 1) / p["R_N"]))
    D = x.U_R + x.U_R * p["R_D"] * (1 - np.exp(-(x.D_R / x.U_R - 1) / p["R_D"]))
    return p["E"] + p["A"] / N ** p["alpha"] + p["B"] / D ** p["beta"]


@pytest.mark.parametrize(
    ("N", "D", "U", "expected"),
    [(6.34e9, 242e9, 25e9, 2.2256440889984477), (8.67e9, 178e9, 25e9, 2.2269634075087867)],
)
def test_published_values_of_the_data_constrained_law(N, D, U, expected):
    """The examples in the README of datablations, with its coefficients."""
    published = {
        "E": math.exp(0.6254804), "A": math.exp(6.255414), "B": math.exp(7.3049974), "alpha": 0.3526596,
        "beta": 0.3526596, "R_D": 15.387756, "R_N": 5.309743,
    }  # fmt: skip
    given = Inputs(np.array([N]), np.array([D]), U_R=np.array([U]))
    law = LAWS["data_constrained"]
    free = hold(law, {name: value for name, value in published.items() if name != "R_N"})
    theta = np.log([[published["R_N"]]])
    assert float(np.exp(free.log_loss(theta, given, law.centre(given)))[0, 0]) == pytest.approx(expected, rel=1e-13)


def test_the_over_training_law_is_the_tied_one_in_other_words(sweep):
    frame = sweep(noise=0.01)
    given = Inputs(frame["N"].to_numpy(), frame["D"].to_numpy())
    tied, over = (fit(LAWS[name], given, frame["loss"].to_numpy()) for name in ("tied", "overtraining"))
    assert over.value == pytest.approx(tied.value, rel=1e-10)
    p, q = tied.parameters, over.parameters
    assert q["eta"] == pytest.approx(p["alpha"] / 2, rel=1e-6)
    assert q["a"] == pytest.approx(p["A"] * 6 ** (p["alpha"] / 2), rel=1e-5)
    assert q["b"] == pytest.approx(p["B"] * 6 ** (p["alpha"] / 2), rel=1e-5)


def test_published_optima_of_other_laws(published):
    """Objectives at or below the best known: the four-term law of Gemstones, and seven data-constrained parameters."""
    for name, best in (("gemstones_hot_100bplus", 0.002642729088358), ("gemstones_lr_ablation_hot", 0.0010088809795)):
        frame = published(name)
        columns = {f"{field}_R": frame[field].to_numpy(float) for field in ("N", "D", "width", "depth")}
        assert fit(LAWS["width_depth"], Inputs(**columns), frame["loss"].to_numpy()).value <= best
    frame = published("datablations_fit182")
    given = inputs_of(table_from_frame(frame), LAWS["data_constrained"])
    assert fit(LAWS["data_constrained"], given, frame["loss"].to_numpy()).value <= 0.00656592526


def test_held_parameters_stay_and_the_others_fit(sweep, truth):
    frame = sweep()
    given = Inputs(frame["N"].to_numpy(), frame["D"].to_numpy())
    held = hold(LAWS["chinchilla"], {"alpha": truth.alpha, "A": truth.A})
    assert held.parameters == ("E", "B", "beta")
    fitted = fit(held, given, frame["loss"].to_numpy())
    for name, value in truth._asdict().items():
        assert fitted.parameters[name] == pytest.approx(value, rel=1e-7), name
    again = hold(held, {"beta": 0.5})
    assert again.parameters == ("E", "B")
    assert fit(again, given, frame["loss"].to_numpy()).parameters["beta"] == 0.5


@pytest.mark.parametrize(
    ("name", "held", "said"),
    [
        ("chinchilla", {"gamma": 1.0}, "no parameter gamma"),
        ("chinchilla", {"A": 400.0}, r"A of the chinchilla law cannot be held alone \(hold alpha with it\)"),
        ("compute", {"E": 1.0, "A": 1.0, "gamma": 0.1}, "nothing is left"),
        ("coupled", {"A": 400.0, "alpha": 0.3}, "cannot be held alone"),
    ],
)
def test_what_cannot_be_held_is_refused(name, held, said):
    with pytest.raises(InputError, match=said):
        somewhere_of_held(name, held)


def somewhere_of_held(name, held):
    law = hold(LAWS[name], held)
    theta_BxP, given, centre = somewhere(law)
    return law.log_loss(theta_BxP, given, centre)


def test_a_law_of_ones_own(sweep, truth):
    """Written from scratch with jets, it fits as the law of the library does."""
    mine = define(
        "mine",
        "L = E + A / N^alpha + B / D^beta",
        [level("E"), level("A", alpha="N"), level("B", beta="D"), exponent("alpha"), exponent("beta")],
        ["N", "D"],
        lambda p, log, centre: logaddexp(
            p["E"],
            logaddexp(p["A"] - p["alpha"] * (log.N - centre.N), p["B"] - p["beta"] * (log.D - centre.D)),
        ),
    )
    frame = sweep(noise=0.01)
    given = Inputs(frame["N"].to_numpy(), frame["D"].to_numpy())
    ours, library = (fit(law, given, frame["loss"].to_numpy()) for law in (mine, LAWS["chinchilla"]))
    assert ours.value == pytest.approx(library.value, rel=1e-12)
    assert ours.parameters == pytest.approx(library.parameters, rel=1e-7)


@pytest.mark.parametrize(
    ("needs", "parameters", "said"),
    [
        (["N", "Q"], [level("E")], "Q is not among its needs"),
        (["N"], [level("E"), level("A", alpha="D"), exponent("alpha")], r"D is not among its needs \(N\) \(add D\)"),
        (["N"], [level("E"), level("A", gamma="N")], "A stands with gamma, which is not a parameter"),
    ],
)
def test_a_law_that_does_not_fit_together_is_refused(needs, parameters, said):
    with pytest.raises(InputError, match=said):
        define("mine", "L = E", parameters, needs, lambda p, log, centre: p["E"])


def test_a_formula_without_its_parameters_is_refused(sweep):
    law = define("mine", "L = N", [level("E")], ["N"], lambda p, log, centre: log.N)
    with pytest.raises(InputError, match="ndarray that does not follow from p"):
        fit(law, Inputs(sweep()["N"].to_numpy()), sweep()["loss"].to_numpy())


def test_jets_multiply_and_divide():
    """A formula of all operations, against its derivatives by hand: y = x exp(x) / (1 + x)."""
    (x,) = variables(np.array([[0.3], [1.2]]))
    y = x * exp(x) / (1.0 + x)
    v = x.value[:, 0]
    slope = np.exp(v) * (v**2 + v + 1) / (1 + v) ** 2
    bend = np.exp(v) * (v**3 + 2 * v**2 + 3 * v) / (1 + v) ** 3
    np.testing.assert_allclose(y.value[:, 0], v * np.exp(v) / (1 + v), rtol=1e-14)
    np.testing.assert_allclose(y.first[:, 0, 0], slope, rtol=1e-13)
    np.testing.assert_allclose(y.second[:, 0, 0, 0], bend, rtol=1e-12)


def test_unknown_laws_are_refused():
    with pytest.raises(InputError, match="did you mean chinchilla"):
        law_named("chinchila")


def test_columns_that_a_law_needs(tmp_path):
    rows = {"N": [1e6, 2e6], "D": [1e9, 2e9], "loss": [3.0, 2.9], "unique_tokens": [1e8, None]}
    with pytest.raises(InputError, match="unique_tokens is missing or not positive in row 1"):
        inputs_of(table_from_frame(pd.DataFrame(rows)), LAWS["data_constrained"])
    with pytest.raises(InputError, match="no column width, which the width_depth law needs"):
        inputs_of(table_from_frame(pd.DataFrame(rows)), LAWS["width_depth"])
    path = tmp_path / "routing.csv"
    pd.DataFrame({"N": [1e6, 2e6], "experts": [1, 8], "loss": [3.0, 2.9]}).to_csv(path, index=False)
    with pytest.raises(InputError, match="no column D"):
        read_table(path)
    table = read_table(path, columns={"n_experts": "experts"}, needs=LAWS["moe"].needs)
    np.testing.assert_array_equal(inputs_of(table, LAWS["moe"]).experts_R, [1.0, 8.0])
