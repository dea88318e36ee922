"""The noise floor: a known noise is found, interval and test hold what they say, and clusters are counted once."""

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from scaling.analysis.analyze import analyze
from scaling.analysis.fitting import fit
from scaling.analysis.laws import CHINCHILLA, Inputs
from scaling.analysis.noise import degrees, interval, noise
from scaling.analysis.table import table_from_frame

SIGMA = 0.004
SEEDS = 3


def measured(frame, **options):
    table = table_from_frame(frame, **options)
    return noise(table, fit(CHINCHILLA, Inputs(table.N_R, table.D_R), table.loss_R))


def replicated(sweep, seed, misfit=0.0, seeds=SEEDS):
    """Every cell with several seeds; misfit: a wave in log N that no law of this form follows."""
    cells = sweep()
    frame = pd.concat([cells.assign(seed=k, run=cells["run"] + f"-{k}") for k in range(seeds)], ignore_index=True)
    wave = misfit * np.sin(4 * np.log(frame["N"]))
    noise = SIGMA * np.random.default_rng(seed).standard_normal(len(frame))
    return frame.assign(loss=frame["loss"] * np.exp(noise + wave))


def test_the_pooled_deviation_is_that_of_an_analysis_of_variance(sweep):
    frame = replicated(sweep, 0)
    frame = frame[~((frame["seed"] == 2) & (frame["C"] > 1e12))]  # two seeds of the larger budgets
    found = measured(frame)
    groups = [np.log(part["loss"]) for _, part in frame.groupby("N")]
    squares, dof = sum(((part - part.mean()) ** 2).sum() for part in groups), sum(len(part) - 1 for part in groups)
    assert (found.replicates, found.settings, found.dof) == (len(frame), 28, dof)
    assert found.sd_log_loss["value"] == pytest.approx(np.sqrt(squares / dof), rel=1e-12)
    assert found.sd_log_loss["ci"] == pytest.approx(
        [np.sqrt(squares / stats.chi2.ppf(p, dof)) for p in (0.95, 0.05)], rel=1e-12
    )
    assert found.sd_loss["value"] == pytest.approx(found.sd_log_loss["value"] * frame["loss"].mean(), rel=0.1)
    assert [budget["dof"] for budget in found.budgets] == [14, 14, 7, 7]
    pooled = sum(budget["dof"] * budget["sd_log_loss"]["value"] ** 2 for budget in found.budgets) / dof
    assert np.sqrt(pooled) == pytest.approx(found.sd_log_loss["value"], rel=1e-12)


def test_the_interval_holds_the_noise_nine_times_in_ten():
    z_BxK = np.random.default_rng(0).standard_normal((4000, 28))
    found = [interval(sd, 28)["ci"] for sd in np.sqrt((z_BxK**2).mean(1))]
    held = np.mean([low <= 1 <= high for low, high in found])
    assert held == pytest.approx(0.9, abs=3 * (0.9 * 0.1 / 4000) ** 0.5)


def test_the_test_is_calibrated(sweep):
    """Of 60 sweeps whose law is right: p is uniform, and the pooled variance unbiased, both within 3 s.d."""
    tables = [table_from_frame(replicated(sweep, seed, seeds=2)) for seed in range(60)]
    law = fit(CHINCHILLA, Inputs(tables[0].N_R, tables[0].D_R), tables[0].loss_R)  # no part of what is tested here
    found = [noise(table, law) for table in tables]
    assert np.mean([noise.misfit["p"] for noise in found]) == pytest.approx(0.5, abs=3 * (1 / 12 / 60) ** 0.5)
    variance = np.mean([noise.sd_log_loss["value"] ** 2 for noise in found])
    assert variance == pytest.approx(SIGMA**2, rel=3 * (2 / (60 * 28)) ** 0.5)


def test_misfit_beyond_the_noise_is_found_and_measured(sweep):
    found = measured(replicated(sweep, 1, misfit=0.02))
    assert found.misfit["p"] < 1e-6
    assert found.misfit["dof"] == [28 - 5, 56]
    assert found.misfit["sd_log_loss"] == pytest.approx(0.02 / np.sqrt(2), rel=0.25)  # the law takes up some of it
    assert found.residual_rms > 2 * found.sd_log_loss["value"]


def test_misfit_is_warned_of(sweep):
    tables = [table_from_frame(replicated(sweep, 1, misfit)) for misfit in (0.0, 0.02)]
    codes = [[warning["code"] for warning in analyze(table, resamples=100).warnings] for table in tables]
    assert ["misfit" in found for found in codes] == [False, True]


def test_the_test_is_the_textbook_s(sweep):
    """Sums of squares of the residuals of a least-squares fit and of the settings' means, taken apart by hand."""
    frame = replicated(sweep, 2)
    found = measured(frame)
    x, y, log_loss = np.log(frame["N"] / 1e5), np.log(frame["D"] / 1e6), np.log(frame["loss"])

    def residual(theta):
        e, a, b, alpha, beta = theta
        return np.log(np.exp(e) + np.exp(a - alpha * x) + np.exp(b - beta * y)) - log_loss

    squares = optimize.least_squares(residual, [0, -1.5, -1, 0.4, 0.4], xtol=1e-14, ftol=1e-14)
    pure = ((log_loss - log_loss.groupby(frame["N"]).transform("mean")) ** 2).sum()
    F = ((2 * squares.cost - pure) / 23) / (pure / 56)
    assert found.misfit["F"] == pytest.approx(F, rel=1e-6)
    assert found.misfit["p"] == pytest.approx(stats.f.sf(F, 23, 56), rel=1e-5)


def test_checkpoints_of_one_run_are_counted_once(sweep):
    """Two seeds of a size, each with its checkpoints at four durations: one degree of freedom a size, not four."""
    cells = sweep().assign(size=np.tile(range(7), 4))
    cells["N"] = cells.groupby("size")["N"].transform("first")
    seeds = [cells.assign(seed=k, run=[f"{size}-{k}" for size in cells["size"]]) for k in (0, 1)]
    frame = pd.concat(seeds, ignore_index=True).drop(columns="size")
    frame["loss"] *= np.exp(SIGMA * np.random.default_rng(0).standard_normal(len(frame)))
    found = measured(frame)
    assert (found.settings, found.dof) == (28, 7)
    assert found.sd_log_loss["ci"] == interval(found.sd_log_loss["value"], 7)["ci"]
    assert "not independent" in found.misfit["skipped"]


@pytest.mark.parametrize(
    ("setting", "trajectory", "dof"),
    [
        ([0, 0, 0, 1, 1], [0, 1, 2, 3, 4], 3),  # three seeds and two
        ([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1], 1),  # two runs of three checkpoints
        ([0, 0, 1, 1], [0, 1, 1, 2], 2),  # a chain
        ([0, 0], [5, 5], 0),
    ],
)
def test_degrees_of_freedom(setting, trajectory, dof):
    assert degrees(np.array(setting), np.array(trajectory)) == dof


def test_settings_are_all_that_is_set(sweep):
    frame = replicated(sweep, 3)
    assert measured(frame.assign(peak_lr=frame["seed"] * 1e-3)) == "no two runs differ in their seed only"
    assert measured(frame.assign(width=64, budget=frame["C"])).agree == ("N", "D", "C", "budget", "width")
    named = measured(frame.assign(warm=frame["seed"] > 0, place="here", train_seconds=frame["seed"]))
    assert named.differ == ("warm",)
    assert measured(frame.assign(peak_lr=["1e-3", "0.001", "0.0010"] * 28)).dof == 56


def test_the_same_seed_twice_is_no_replicate(sweep):
    frame = replicated(sweep, 4)
    twice = pd.concat([frame, frame[frame["seed"] == 0].assign(run="again")], ignore_index=True)
    assert measured(twice).sd_log_loss == measured(frame).sd_log_loss
    assert measured(frame[frame["seed"] == 0]) == "no two runs differ in their seed only"
    unknown = frame.assign(seed=frame["seed"].astype(object).where(frame["seed"] == 0, ""))
    assert measured(unknown) == "no two runs differ in their seed only"


def test_one_name_of_several_seeds_is_several_runs(sweep):
    frame = replicated(sweep, 5)
    one_name = frame.assign(run=frame["run"].str[:-2])
    assert measured(one_name).sd_log_loss == measured(frame).sd_log_loss
    assert "skipped" not in measured(one_name).misfit


def test_what_cannot_be_measured_says_why(sweep):
    assert measured(sweep()) == "the table has no column seed"
    same = pd.concat([sweep().assign(seed=k, run=f"{k}") for k in (0, 1)], ignore_index=True)
    assert "the seed changed nothing" in measured(same.assign(run=""))


def test_bits_per_byte_have_the_same_relative_noise(sweep):
    frame = replicated(sweep, 6)
    nats, bytes_ = measured(frame), measured(frame.assign(loss=frame["loss"] / 4), loss_unit="bpb")
    assert bytes_.unit == "bits per byte"
    assert bytes_.sd_log_loss["value"] == pytest.approx(nats.sd_log_loss["value"], rel=1e-12)
    assert bytes_.sd_loss["value"] == pytest.approx(nats.sd_loss["value"] / 4, rel=1e-12)
