"""Every objective reaches its own minimum, as independent methods see it; and what `fit_law` promises."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares, linprog

from scaling.analysis.fitting import ABSOLUTE_LOG, SQUARES_LOG, Fit, Objective, fit, fit_law, refit
from scaling.analysis.laws import CHINCHILLA, LAWS, Inputs
from scaling.errors import InputError

KINDS = ("huber_log", "squares_log", "absolute_log", "huber_raw", "squares_raw", "absolute_raw")


def columns(frame: pd.DataFrame) -> tuple[Inputs, np.ndarray]:
    return Inputs(frame["N"].to_numpy(float), frame["D"].to_numpy(float)), frame["loss"].to_numpy(float)


def residual_and_jacobian(fitted: Fit, theta_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at = fitted.law.evaluate(theta_P[None], fitted.inputs, fitted.centre)
    if fitted.objective.raw:
        return np.exp(at.f_BxR[0]) - fitted.loss_R, np.exp(at.f_BxR[0])[:, None] * at.J_BxPxR[0].T
    return at.f_BxR[0] - np.log(fitted.loss_R), at.J_BxPxR[0].T


@pytest.fixture
def epoch240(published) -> tuple[Inputs, np.ndarray]:
    frame = published("chinchilla_epoch245")
    return columns(frame[~frame["excluded_by_epoch"]])


# kind, objective, E, A, B, alpha, beta of Epoch's 240 points. Least absolute deviations is what Epoch published (it
# calls it Huber's loss, with a scale that makes it that). The values are halved where ours is r^2 / 2.
EPOCH = [
    ("absolute_log", 1.12949465362, 1.81686413, 482.006055, 2085.436245, 0.34781307, 0.36585416),
    ("huber_raw", 240 * 1.206767998e-5, 1.82008, 455.097, 2405.22, 0.344303, 0.372967),
    ("squares_raw", 0.0832038077 / 2, 1.882814, 567.805, 7581.85, 0.357615, 0.427621),
    ("squares_log", None, 1.864550, 593.322, 4875.64, 0.360253, 0.405883),
]


@pytest.mark.parametrize(("kind", "value", "E", "A", "B", "alpha", "beta"), EPOCH)
def test_published_optima_of_epochs_points(epoch240, kind, value, E, A, B, alpha, beta):
    fitted = fit(CHINCHILLA, *epoch240, Objective(kind))
    if value is not None:
        assert fitted.value == pytest.approx(value, rel=1e-9)  # printed to ten digits
    for name, expected in {"E": E, "A": A, "B": B, "alpha": alpha, "beta": beta}.items():
        assert fitted.parameters[name] == pytest.approx(expected, rel=2e-6), name  # printed to six
    assert fitted.certificate["share_reaching_best"] == 1.0
    assert fitted.certificate["gradient_norm"] < 1e-11


def test_least_absolute_deviations_meets_its_target(epoch240):
    assert fit(CHINCHILLA, *epoch240, ABSOLUTE_LOG).value <= 1.129494654


@pytest.mark.parametrize("kind", ["absolute_log", "absolute_raw"])
def test_no_linear_programme_improves_least_absolute_deviations(sweep, kind):
    """At a minimum, the best step of the linearised problem within a box gains nothing; near it, it gains."""
    fitted = fit(CHINCHILLA, *columns(sweep(noise=0.02, seed=4)), Objective(kind))

    def best_linear(theta_P: np.ndarray, box: float) -> float:
        r, J = residual_and_jacobian(fitted, theta_P)
        R, P = J.shape
        # minimise sum u with -u <= r + J step <= u
        cost = np.concatenate([np.zeros(P), np.ones(R)])
        A = np.block([[J, -np.eye(R)], [-J, -np.eye(R)]])
        limits = [(-box, box)] * P + [(0, None)] * R
        return linprog(cost, A_ub=A, b_ub=np.concatenate([-r, r]), bounds=limits, method="highs").fun

    assert best_linear(fitted.theta_P, 1e-2) == pytest.approx(fitted.value, rel=1e-7)  # the tolerance of HiGHS
    aside = fitted.theta_P + 1e-3 * np.array([1, -1, 1, 1, -1])
    assert best_linear(aside, 1e-2) < np.abs(residual_and_jacobian(fitted, aside)[0]).sum() * (1 - 1e-3)


@pytest.mark.parametrize("kind", ["absolute_log", "absolute_raw"])
def test_least_absolute_deviations_is_the_limit_of_hubers_loss(sweep, kind):
    data = columns(sweep(noise=0.02, seed=5))
    exact = fit(CHINCHILLA, *data, Objective(kind))
    narrow = fit(CHINCHILLA, *data, Objective(kind.replace("absolute", "huber"), delta=1e-7))
    # Huber's loss over delta is below the absolute value by half of delta at most, for each of 28 runs.
    assert narrow.value / 1e-7 <= exact.value <= narrow.value / 1e-7 + 28 * 0.5e-7
    assert exact.parameters["alpha"] == pytest.approx(narrow.parameters["alpha"], abs=1e-5)


def test_equal_rows_are_a_row_with_their_weight(sweep):
    """Two residuals of one point are zero together, where multipliers of the two are not determined."""
    frame = sweep(noise=0.02, seed=4)
    twice = fit(CHINCHILLA, *columns(pd.concat([frame, frame.head(9)])), ABSOLUTE_LOG)
    weight_R = np.where(np.arange(len(frame)) < 9, 2.0, 1.0)
    weighted = fit(CHINCHILLA, *columns(frame), ABSOLUTE_LOG, weight_R=weight_R)
    assert twice.value == pytest.approx(weighted.value, rel=1e-12)
    assert twice.certificate["gradient_norm"] < 1e-11
    assert twice.parameters["beta"] == pytest.approx(weighted.parameters["beta"], rel=1e-9)


@pytest.mark.parametrize("kind", ["squares_log", "squares_raw", "huber_raw"])
def test_scipy_agrees(sweep, kind):
    """scipy's trust-region solver with the analytic Jacobian, from nearby."""
    fitted = fit(CHINCHILLA, *columns(sweep(noise=0.02, seed=6)), Objective(kind))
    other = least_squares(
        lambda theta: residual_and_jacobian(fitted, theta)[0],
        fitted.theta_P + 1e-2,
        jac=lambda theta: residual_and_jacobian(fitted, theta)[1],
        loss="huber" if kind.startswith("huber") else "linear",
        f_scale=1e-3,
        x_scale="jac",
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
    )
    assert fitted.value <= other.cost * (1 + 1e-12)
    assert fitted.value == pytest.approx(other.cost, rel=1e-7)  # scipy stops where its step is no longer certain


@pytest.mark.parametrize("kind", KINDS)
def test_units_do_not_change_the_exponents(sweep, kind):
    inputs, loss_R = columns(sweep(noise=0.02, seed=2))
    one = fit(CHINCHILLA, inputs, loss_R, Objective(kind)).parameters
    other = fit(CHINCHILLA, Inputs(inputs.N_R / 1e6, inputs.D_R / 1e9), loss_R, Objective(kind)).parameters
    bits = fit(CHINCHILLA, inputs, loss_R / np.log(2), Objective(kind, delta=1e-3 / np.log(2))).parameters
    for name in ("alpha", "beta"):
        assert other[name] == pytest.approx(one[name], abs=1e-9)
        if kind != "huber_log":  # its delta is of log loss, which has no unit
            assert bits[name] == pytest.approx(one[name], abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_repetitions(sweep, kind):
    inputs, loss_R = columns(sweep(noise=0.02, seed=1))
    weight_R = np.random.default_rng(1).integers(0, 3, len(loss_R))
    rows = np.repeat(np.arange(len(loss_R)), weight_R)
    fitted = fit(CHINCHILLA, inputs, loss_R, Objective(kind))
    weighted = fit(CHINCHILLA, inputs, loss_R, Objective(kind), weight_R=weight_R)
    alone = fit(CHINCHILLA, inputs.rows(rows), loss_R[rows], Objective(kind))
    again = refit(fitted, inputs, loss_R, weight_R[None].astype(float), seed=0)
    for value in (weighted.value, again.value_B[0]):
        assert value == pytest.approx(alone.value, rel=1e-9)
    # The centre of the coordinates differs between the two: natural parameters do not.
    for name in ("E", "alpha", "beta"):
        assert weighted.parameters[name] == pytest.approx(alone.parameters[name], abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_refits_take_losses_of_their_own(sweep, kind):
    inputs, loss_R = columns(sweep(noise=0.02, seed=1))
    loss_BxR = loss_R * np.exp(0.01 * np.random.default_rng(3).standard_normal((4, len(loss_R))))
    fitted = fit(CHINCHILLA, inputs, loss_R, Objective(kind))
    draws = refit(fitted, inputs, loss_R, np.ones((4, len(loss_R))), seed=0, loss_BxR=loss_BxR)
    for value, alpha, own_R in zip(draws.value_B, draws.theta_BxP[:, 3], loss_BxR, strict=True):
        alone = fit(CHINCHILLA, inputs, own_R, Objective(kind))
        assert value == pytest.approx(alone.value, rel=1e-9)
        assert alpha == pytest.approx(alone.parameters["alpha"], abs=1e-7)


@pytest.mark.parametrize("kind", ["huber_log", "absolute_raw"])
def test_no_resamples_are_no_refits(sweep, kind):
    inputs, loss_R = columns(sweep(noise=0.02))
    draws = refit(fit(CHINCHILLA, inputs, loss_R, Objective(kind)), inputs, loss_R, np.empty((0, 28)), seed=0)
    assert [len(values) for values in draws] == [0] * 5


def test_a_frame_of_integers_is_fitted_by_name(sweep):
    frame = sweep(noise=0.01).assign(N=lambda f: f["N"].round().astype(np.int64), C=lambda f: f["C"].astype(np.int64))
    fitted = fit_law(frame, "coupled", SQUARES_LOG)
    assert (fitted.law.name, fitted.objective, fitted.certificate["rows"]) == ("coupled", SQUARES_LOG, 28)
    np.testing.assert_allclose(np.log(fitted.loss_R / fitted.predict(fitted.inputs)), fitted.residual_R, atol=1e-14)
    np.testing.assert_allclose(fitted.loss(frame["N"], frame["D"]), fitted.predict(fitted.inputs), rtol=1e-14)
    assert fit_law(frame).value == fit(CHINCHILLA, *columns(frame)).value


def test_arrays_that_cannot_be_written_are_read(sweep):
    inputs, loss_R = columns(sweep(noise=0.01))
    locked = [values.copy() for values in (inputs.N_R, inputs.D_R, loss_R)]
    for values in locked:
        values.setflags(write=False)
    fitted = fit(CHINCHILLA, Inputs(*locked[:2]), locked[2])
    assert fitted.value == fit(CHINCHILLA, inputs, loss_R).value
    assert not np.shares_memory(fitted.loss_R, locked[2])  # later changes of the caller's arrays do not reach the fit


def test_a_law_of_compute_needs_no_tokens(sweep):
    frame = sweep()[["N", "C", "loss"]]
    fitted = fit_law(frame.groupby("C", as_index=False).min().pipe(lambda f: pd.concat([f] * 2)), "compute")
    assert fitted.predict(Inputs(C_R=np.array([1e12]))).shape == (1,)
    with pytest.raises(InputError, match=r"needs C \(use predict"):
        fitted.loss(1e6, 1e9)
    with pytest.raises(InputError, match="needs C"):
        fitted.predict(Inputs(N_R=np.array([1e6])))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: fit_law(f, "chinchila"), "did you mean chinchilla"),
        (lambda f: fit_law(f, "width_depth"), "no column width"),
        (lambda f: fit_law(f.drop(columns="D")), "D"),
        (lambda f: Objective("huber"), "no objective 'huber'"),
        (lambda f: Objective("huber_log", delta=0.0), "must be positive"),
        (lambda f: fit(CHINCHILLA, columns(f)[0], np.where(np.arange(28) == 3, np.nan, 1.0)), "loss is nan in row 3"),
        (lambda f: fit(CHINCHILLA, *columns(f.assign(D=np.arange(28)))), "D is 0.0 in row 0"),
        (lambda f: fit(CHINCHILLA, columns(f.head(20))[0], np.ones(28)), r"N has shape \(20,\), and loss 28 rows"),
        (lambda f: fit(CHINCHILLA, *columns(f), weight_R=-np.ones(28)), "not negative"),
        (lambda f: fit(CHINCHILLA, *columns(f), weight_R=np.arange(28) < 5), "5 runs cannot determine"),
        (lambda f: fit(LAWS["overtraining"], *columns(f.head(4))), "4 runs cannot determine the four"),
    ],
)
def test_what_cannot_be_fitted_is_refused(sweep, call, message):
    with pytest.raises(InputError, match=message):
        call(sweep())


def test_five_runs_for_four_parameters_are_accepted(sweep):
    five = sweep(noise=0.01).iloc[[0, 8, 13, 20, 25]]
    assert fit(LAWS["overtraining"], *columns(five)).certificate["rows"] == 5


def test_the_certificate_sees_a_law_that_depends_on_units(sweep):
    """A centre of one's own choice, as in tools that normalise by 1e6 and 1e9, is none."""
    data = columns(sweep(noise=0.01))
    assert fit(CHINCHILLA, *data).certificate["unit_free"]
    bound = dataclasses.replace(CHINCHILLA, centre=lambda inputs: np.log([1e6, 1e9]))
    assert not fit(bound, *data).certificate["unit_free"]


def test_a_fit_keeps_what_it_was_fitted_to(sweep):
    inputs, loss_R = columns(sweep(noise=0.01))
    fitted = fit(CHINCHILLA, inputs, loss_R)
    assert dataclasses.is_dataclass(fitted)
    np.testing.assert_array_equal(fitted.inputs.N_R, inputs.N_R)
    np.testing.assert_array_equal(fitted.loss_R, loss_R)
