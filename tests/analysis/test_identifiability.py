"""Verdicts: published numbers that their own data do not fix are flagged, and those that they do fix are not."""

import types

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.fitting import Objective, fit
from scaling.analysis.identifiability import flat_directions, judged, verdicts, warnings
from scaling.analysis.laws import CHINCHILLA, LAWS, Inputs, define, exponent, hold, level
from scaling.analysis.laws.jets import logaddexp
from scaling.analysis.profiles import profiles

WEAK = "weakly_identified"
# Muennighoff et al. 2023: everything but R_D* and R_N* as published (their notebook, cell 25).
REPEATS = {"alpha": 0.3526596, "beta": 0.3526596, "A": np.exp(6.255414), "B": np.exp(7.3049974), "E": np.exp(0.6254804)}


def columns(frame: pd.DataFrame) -> tuple[Inputs, np.ndarray]:
    return Inputs(frame["N"].to_numpy(float), frame["D"].to_numpy(float)), frame["loss"].to_numpy(float)


def status(fitted, bootstrap=None) -> dict[str, str]:
    return {verdict.name: verdict.status for verdict in verdicts(fitted, bootstrap)}


@pytest.fixture
def repeats(published):
    frame = published("datablations_fit182")
    inputs, loss_R = columns(frame)
    return inputs._replace(U_R=np.minimum(frame["unique_tokens"].to_numpy(float), inputs.D_R)), loss_R


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_epoch_is_identified(published, level):
    frame = published("chinchilla_epoch245")
    found = verdicts(fit(CHINCHILLA, *columns(frame[~frame["excluded_by_epoch"]])), level=level)
    assert {verdict.name: verdict.status for verdict in found} == dict.fromkeys(
        ("E", "alpha", "beta", "a"), "identified"
    )
    assert warnings(found) == []


def test_sizes_of_one_width_do_not_fix_an_exponent(published):
    """Gemstones, 512 wide: alpha = 4.5 from N of 95 to 114 million; D spans a factor of 35 and beta is fixed."""
    found = verdicts(fit(CHINCHILLA, *columns(published("gemstones_hot_100bplus_512x"))))
    assert {verdict.name: verdict.status for verdict in found} == {
        "E": WEAK, "alpha": WEAK, "beta": "identified", "a": WEAK
    }  # fmt: skip
    (said,) = warnings(found)
    assert said["code"] == WEAK
    assert said["message"].startswith("The runs hardly determine E, alpha and a: N spans a factor of 1.21 only")
    assert said["parameters"]["alpha"]["value"] == pytest.approx(4.503, abs=1e-3)


def test_the_published_repetition_constant_is_not_identified(repeats):
    fitted = fit(hold(LAWS["data_constrained"], REPEATS), *repeats)
    found = {verdict.name: verdict for verdict in verdicts(fitted)}
    assert found["R_D"].status == found["R_N"].status == WEAK
    assert found["R_D"].interval[0] < 15.387756
    assert found["R_D"].interval[1] is None
    assert "fit as well as 95.4" in found["R_D"].why


@pytest.mark.slow
def test_no_repetition_constant_is_identified_beside_the_rest_of_the_law(repeats):
    """All seven parameters fitted: R_D* = 25, and anything from 15 to 100 or more; R_N* without end."""
    found = {verdict.name: verdict for verdict in verdicts(fit(LAWS["data_constrained"], *repeats))}
    assert found["R_D"].status == WEAK
    assert found["R_N"].status == "at_bound"
    assert found["R_N"].interval[1] is None
    assert found["beta"].status == "identified"


def test_four_parameters_through_five_points_are_not_identified(published):
    """The design of Gadre et al. 2024: four sizes at 20 tokens a parameter, and the smallest over-trained."""
    frame = published("mlfoundations_overtraining104")
    frame = frame[frame["train_dataset"] == "c4_original"].sort_values("N")
    five = pd.concat([frame[frame["token_mult"] == 20].head(4), frame[frame["token_mult"] == 320].head(1)])
    found = verdicts(fit(LAWS["overtraining"], *columns(five)))
    assert {verdict.status for verdict in found} == {WEAK}
    (said,) = warnings(found)
    assert "E and eta: 5 runs for 4 parameters" in said["message"]


@pytest.mark.parametrize("kind", ["squares_raw", "squares_log", "huber_log"])
def test_no_irreducible_loss_is_flagged(published, kind):
    """A configuration of Porian et al. 2024 whose E is zero under least squares, and anything under Huber's loss."""
    frame = published("porian_main")
    frame = frame[frame["config"] == "rw|base|long|kaplan|kaplan|train"]
    found = verdicts(fit(CHINCHILLA, *columns(frame), Objective(kind)))
    verdict = next(verdict for verdict in found if verdict.name == "E")
    assert verdict.status == ("at_bound" if kind.startswith("squares") else WEAK)
    assert verdict.interval[0] is None
    assert 0.1 < verdict.interval[1] < frame["loss"].min()
    said = next(said for said in warnings(found) if "E" in said["parameters"])
    assert said["code"] == ("parameter_at_bound" if kind.startswith("squares") else WEAK)


def test_a_good_sweep_is_identified(sweep):
    assert set(status(fit(CHINCHILLA, *columns(sweep(noise=0.001)))).values()) == {"identified"}
    assert set(status(fit(CHINCHILLA, *columns(sweep()))).values()) == {"identified"}


def test_eight_noisy_runs_fix_neither_the_limit_nor_the_allocation(sweep):
    frame = sweep(noise=0.01, seed=1, sizes=4)
    found = status(fit(CHINCHILLA, *columns(frame[frame["C"] < 1e12])))
    assert found["E"] == found["a"] == WEAK


def test_an_exponent_that_the_data_do_not_have_is_at_its_bound(sweep):
    """A loss that rises with N, which no term of the law can do: alpha ends at zero, and so N* would be all of C."""
    frame = sweep()
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(len(frame)))
    frame["loss"] = (1 + 128 / frame["D"] ** 0.36) * (frame["N"] / frame["N"].mean()) ** 0.01 * noise
    found = verdicts(fit(CHINCHILLA, *columns(frame)))
    assert {verdict.name: verdict.status for verdict in found} == {
        "E": WEAK, "alpha": "at_bound", "beta": "identified", "a": "at_bound"
    }  # fmt: skip
    said = [said["message"] for said in warnings(found) if said["code"] == "parameter_at_bound"]
    assert any(message.startswith("alpha ended at a bound: all values up to") for message in said)


def test_a_factor_at_its_bound_has_a_verdict_without_a_profile(sweep):
    """A loss that rises with N, under a law that lets it fall only: A is zero, and as no coordinate has no profile."""
    inputs, _ = columns(sweep())
    rising_R = (1 + 128 / inputs.D_R**0.36) * (inputs.N_R / inputs.N_R.mean()) ** 0.01
    found = {verdict.name: verdict for verdict in verdicts(fit(hold(CHINCHILLA, {"alpha": 0.4}), inputs, rising_R))}
    assert found["A"].status == "at_bound"
    assert found["A"].why == "the best fit has no such term"
    assert found["A"].interval == (None, None)
    (said,) = [said["message"] for said in warnings(tuple(found.values())) if "A" in said["parameters"]]
    assert said == "A ended at a bound: the best fit has no such term."


def test_one_observation_identifies_nothing(sweep):
    fitted = fit(CHINCHILLA, *columns(sweep(noise=0.001)))
    one = types.SimpleNamespace(theta_BxP=np.tile(fitted.theta_P, (10, 1)), clusters=1)
    assert set(status(fitted, one).values()) == {WEAK}


def test_a_lower_minimum_than_the_fit_is_told(sweep):
    """A fit that is not the minimum: its profiles find a better one."""
    frame = sweep(noise=0.003)
    good = fit(CHINCHILLA, *columns(frame))
    far = hold(CHINCHILLA, {"E": 0.6})
    held = fit(far, *columns(frame))
    theta_P = np.insert(held.theta_P, 0, np.log(0.6))
    stuck = type(good)(
        **{**vars(good), "theta_P": theta_P, "value": held.value, "residual_R": held.residual_R},
    )
    found = judged(stuck, profiles(stuck))
    assert all("lower minimum than the fit" in verdict.why for verdict in found if verdict.name == "E")


def test_parameters_that_only_count_together_are_a_flat_direction(sweep):
    """L = E + F + A / N^alpha + B / D^beta: E and F trade one for one."""
    double = define(
        "double",
        "L = E + F + A / N^alpha + B / D^beta",
        [level("E"), level("F"), level("A", alpha="N"), level("B", beta="D"), exponent("alpha"), exponent("beta")],
        ["N", "D"],
        lambda p, log, centre: logaddexp(
            logaddexp(p["E"], p["F"]),
            logaddexp(p["A"] - p["alpha"] * (log.N - centre.N), p["B"] - p["beta"] * (log.D - centre.D)),
        ),
    )
    fitted = fit(double, *columns(sweep(noise=0.001)), Objective("squares_log"))
    first = flat_directions(fitted)[0]
    assert set(first["direction"]) == {"E", "F"}
    # A relative change of E by one is made up for by one of F by -E / F.
    E, F = fitted.parameters["E"], fitted.parameters["F"]
    ratio = first["direction"]["F"] / first["direction"]["E"]
    assert ratio == pytest.approx(-E / F, rel=1e-5)  # central differences with a step of 1e-6
    assert first["curvature_ratio"] < 1e-10
    assert status(fitted)["F"] == WEAK


def test_flat_directions_cost_as_little_as_they_say(sweep):
    """The objective along the flattest direction, by evaluating it, against the steepest of the same length."""
    fitted = fit(CHINCHILLA, *columns(sweep()), Objective("squares_log"))
    first = flat_directions(fitted)[0]
    J_PxR = CHINCHILLA.evaluate(fitted.theta_P[None], fitted.inputs, fitted.centre).J_BxPxR[0]
    unit_P = 1 / np.sqrt((J_PxR**2).sum(1))
    share, way = np.linalg.eigh((J_PxR * unit_P[:, None]) @ (J_PxR * unit_P[:, None]).T)

    def cost(v_P):
        theta_1xP = (fitted.theta_P + 1e-4 * unit_P * v_P)[None]
        return np.square(CHINCHILLA.log_loss(theta_1xP, fitted.inputs, fitted.centre) - np.log(fitted.loss_R)).sum()

    assert first["curvature_ratio"] == pytest.approx(share[0] / share[-1], rel=1e-6)
    # The third derivatives of the law over a step of 1e-4 weigh most where the second are least.
    assert cost(way[:, 0]) / cost(way[:, -1]) == pytest.approx(first["curvature_ratio"], rel=0.02)
    assert next(iter(first["direction"].values())) == 1.0
