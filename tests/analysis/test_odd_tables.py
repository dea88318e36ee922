"""Tables that say little, or nothing: an analysis says so, in a refusal or in its warnings, without a stray exception.

No warning of NumPy may escape either: each would be an overflow or a division that nobody had thought of.
"""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from scaling.analysis import newton
from scaling.analysis.analyze import Analysis, analyze
from scaling.analysis.fitting import ABSOLUTE_LOG, HUBER_LOG, fit, problem_of
from scaling.analysis.laws import CHINCHILLA, LAWS, Inputs
from scaling.analysis.pinning import SHARES
from scaling.analysis.profiles import profile, profiles
from scaling.analysis.reporting.answer import answer
from scaling.analysis.reporting.checks import checks
from scaling.analysis.table import table_from_frame
from scaling.analysis.verdicts import law_exponent, point_exponents
from scaling.errors import InputError

pytestmark = pytest.mark.filterwarnings("error")


def analysed(frame: pd.DataFrame, **settings) -> Analysis:
    """The whole analysis, and what a report draws from it."""
    found = analyze(table_from_frame(frame), resamples=100, **settings)
    assert checks(found)
    assert answer(found).trust
    return found


def all_but_one_size(frame: pd.DataFrame) -> pd.DataFrame:
    """Two sizes a budget, one of which stands there six times, printed with other digits."""
    last = frame["run"].str.endswith("-6")
    digits = 1 + 1e-10 * frame["run"].str[-1].astype(int)
    N = frame["N"].where(last, frame.groupby("C")["N"].transform("median") * digits)
    return frame.assign(N=N, D=frame["C"] / (6 * N))


def at_random(frame: pd.DataFrame, seed: int = 3) -> pd.DataFrame:
    """Losses that do not depend on N and D."""
    return frame.assign(loss=np.random.default_rng(seed).uniform(1, 5, len(frame)))


def codes(analysis: Analysis) -> set[str]:
    return {warning["code"] for warning in analysis.warnings}


ODD = {
    "eight runs": (lambda f: f[f["C"] < 1e12].iloc[[0, 2, 4, 6, 7, 9, 11, 13]], "too_few_points", dict),
    "one budget": (lambda f: f[f["C"] < 3e11], "weakly_identified", dict),
    "one cluster": (lambda f: f.assign(trunk="a"), "correlated_rows", str),
    "two clusters": (lambda f: f.assign(trunk=["a", "b"] * 14), "correlated_rows", dict),
    "each row twice": (lambda f: pd.concat([f, f], ignore_index=True), "duplicate_rows", dict),
    "one loss": (lambda f: f.assign(loss=3.0), "parameter_at_bound", str),
    "loss that rises": (lambda f: f.assign(loss=6 - f["loss"]), "parameter_at_bound", str),
    "losses at random": (at_random, "weakly_identified", str),
    "one loss of 1e30": (lambda f: f.assign(loss=f["loss"].where(f["N"] != f["N"].max(), 1e30)), "extrapolation", dict),
    "one size with other digits": (all_but_one_size, "too_few_points", dict),
    "N in other units": (lambda f: f.assign(N=1e200 * f["N"]), "extrapolation", dict),
    "empty columns": (lambda f: f.assign(unique_tokens=np.nan, width=np.nan, N_all=np.nan), "extrapolation", dict),
}


@pytest.mark.parametrize(("change", "code", "cells"), ODD.values(), ids=ODD)
def test_an_odd_table_is_analysed_with_a_warning(sweep, change, code, cells):
    found = analysed(change(sweep(noise=0.003)))
    assert code in codes(found)
    assert isinstance(found.next_cells, cells)  # the cells, or a sentence that says why there are none


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.assign(N=1e5, C=6e5 * f["D"]), "1 different N"),
        (lambda f: f.assign(D=1e7, C=6e7 * f["N"]), "1 different D"),
        (lambda f: pd.concat([f.iloc[[0, 8, 16]]] * 8), r"runs at 3 points \(N, D\), however many runs, cannot"),
    ],
)
def test_a_table_that_determines_no_law_is_refused(sweep, change, said):
    with pytest.raises(InputError, match=said):
        analysed(change(sweep()))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"unique_tokens": 0}, "unique_tokens=0 is not"),
        ({"inference_tokens": -1.0}, "inference_tokens=-1.0 is not"),
        ({"target_flops": [np.nan]}, "target_flops=nan is not"),
        ({"law": LAWS["compute"], "unique_tokens": 1e9}, "the compute law has no optimal N and D"),
    ],
)
def test_a_setting_without_a_meaning_is_refused(sweep, settings, said):
    with pytest.raises(InputError, match=said):
        analysed(sweep(), **settings)


def test_columns_that_cannot_be_written_are_read(sweep):
    table = table_from_frame(sweep(noise=0.003))
    for values in (table.N_R, table.D_R, table.C_R, table.loss_R, table.cluster_R, table.budget_R):
        values.setflags(write=False)
    assert isinstance(analyze(table, resamples=100).next_cells, dict)


def test_exponents_of_zero_have_no_share():
    assert np.isnan(law_exponent(CHINCHILLA, {"alpha": 0.0, "beta": 0.0}))
    assert law_exponent(CHINCHILLA, {"alpha": 0.1, "beta": 0.3}) == pytest.approx(0.75)


def test_an_exponent_that_does_not_exist_is_none(sweep):
    """Of budgets with their optima inside, and of losses that are all equal."""
    for frame, exists in ((sweep(), True), (sweep().assign(loss=3.0), False)):
        table = table_from_frame(frame)
        fitted = fit(CHINCHILLA, Inputs(table.N_R, table.D_R), table.loss_R)
        assert (point_exponents(table, fitted)["approach2"] is not None) is exists


def test_least_absolute_deviations_hold_what_a_profile_holds(sweep):
    """Where the objective is all but flat, the step of the others used to carry what is held along."""
    frame = at_random(sweep(), seed=1)
    inputs, loss_R = Inputs(frame["N"].to_numpy(), frame["D"].to_numpy()), frame["loss"].to_numpy()
    found = profile(fit(CHINCHILLA, inputs, loss_R, ABSOLUTE_LOG), "a")
    assert found.grid_G[[0, -1]] == pytest.approx(SHARES)  # the runs say nothing, so that all shares are tried
    assert found.objective_G.min() > -1e-6  # of a threshold: the fit is the lowest


def test_a_profile_alone_is_the_one_among_all(sweep):
    """Also of a parameter at its bound, which takes its threshold from the others."""
    frame = sweep(noise=0.003).assign(loss=lambda f: 6 - f["loss"])
    fitted = fit(CHINCHILLA, Inputs(frame["N"].to_numpy(), frame["D"].to_numpy()), frame["loss"].to_numpy())
    assert "beta" in fitted.certificate["at_bound"]
    together = {found.name: found.threshold for found in profiles(fitted)}
    assert profile(fitted, "beta").threshold == together["beta"]


def test_least_absolute_deviations_of_as_many_points_as_parameters(sweep):
    """Equal rows are taken together, which leaves fewer rows than a profile has coordinates."""
    five = pd.concat([sweep().iloc[[0, 3, 8, 16, 25]]] * 3)
    fitted = fit(CHINCHILLA, Inputs(five["N"].to_numpy(), five["D"].to_numpy()), five["loss"].to_numpy(), ABSOLUTE_LOG)
    assert np.abs(fitted.residual_R).max() < 1e-8  # a law through all points
    assert profile(fitted, "alpha").value == pytest.approx(fitted.parameters["alpha"])


def test_a_start_without_second_derivatives_is_left_by_reweighted_squares(sweep):
    """They overflow far from the minimum of some laws."""
    frame, calls = sweep(noise=0.003), []

    def evaluate(*given):
        at = CHINCHILLA.evaluate(*given)
        calls.append(1)
        return at._replace(curvature=lambda c_BxR: at.curvature(c_BxR) * np.nan) if len(calls) == 1 else at

    inputs, loss_R = Inputs(frame["N"].to_numpy(), frame["D"].to_numpy()), frame["loss"].to_numpy()
    fitted = fit(CHINCHILLA, inputs, loss_R)
    law = dataclasses.replace(CHINCHILLA, evaluate=evaluate)
    problem = problem_of(law, inputs, loss_R, fitted.centre, HUBER_LOG)
    end = newton.polish(problem, np.ones((1, len(loss_R))), fitted.theta_P[None] + 0.01)
    assert end.value_B[0] == pytest.approx(fitted.value, rel=1e-9)  # quadratic at the minimum: gradients of 1e-12
