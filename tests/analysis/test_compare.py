"""Two sweeps compared: known multipliers, a sweep against itself, pairing, refusals, and the command."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from scaling.analysis import compare as compare_module
from scaling.analysis.compare import compare
from scaling.analysis.compare_plots import comparison_page
from scaling.analysis.laws import law_named
from scaling.analysis.pairing import common_weights, pairs
from scaling.analysis.sides import compute_at
from scaling.analysis.table import table_from_frame
from scaling.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
NOISE = 0.003  # of log loss: what seeds of a small sweep scatter by


def worse(frame: pd.DataFrame, truth, times: float) -> pd.DataFrame:
    """The same runs of a recipe that needs `times` as many tokens for the same loss. Under C = 6ND its frontier is that
    of the truth at C / times, whatever the exponents."""
    return frame.assign(
        loss=truth.loss(frame["N"], frame["D"] / times) * frame["loss"] / truth.loss(frame["N"], frame["D"])
    )


def test_a_sweep_against_itself_needs_exactly_as_much_compute(sweep):
    table = table_from_frame(sweep(noise=NOISE))
    found = compare(table, table, resamples=100)
    for est in (found.multiplier, found.growth, *(level["multiplier"] for level in found.levels)):
        assert est["value"] == 1
        assert est["ci"] == [1, 1]
    assert found.pairs.runs_a == found.pairs.runs_b == found.pairs.units == len(table.N_R)
    assert "cannot be told apart" in found.sentence()


@pytest.mark.parametrize("times", [0.4, 2.0, 5.0])
def test_a_known_multiplier_without_noise(sweep, truth, times):
    """In closed form it is the same at every loss. The tolerance is that of the fit of an exact law to 28 runs and of
    the search for the optimum (1e-7 in log N, of no effect on the loss)."""
    frame = sweep()
    found = compare(table_from_frame(frame), table_from_frame(worse(frame, truth, times)), resamples=0)
    assert [level["multiplier"]["value"] for level in found.levels] == pytest.approx(
        [times] * len(found.levels), rel=2e-5
    )
    assert found.multiplier == {"value": pytest.approx(times, rel=2e-5), "ci": None, "level": 0.9}
    for level in found.levels:
        assert truth.loss(truth.N_opt(level["C_a"]), level["C_a"] / 6 / truth.N_opt(level["C_a"])) == pytest.approx(
            level["loss"], rel=1e-7
        )


def test_levels_beyond_the_runs_of_either_are_flagged(sweep, truth):
    frame = sweep()
    found = compare(table_from_frame(frame), table_from_frame(worse(frame, truth, 2.0)), resamples=0)
    low, high = frame["C"].min(), frame["C"].max()
    assert [level["extrapolated"] for level in found.levels] == sorted(level["extrapolated"] for level in found.levels)
    for level in found.levels:
        assert level["extrapolated"] == (max(level["C_a"], level["C_b"]) > high * (1 + 1e-6))
        assert min(level["C_a"], level["C_b"]) >= low * (1 - 1e-6)
    assert found.common[-1]["C_b"] == pytest.approx(high, rel=0.01)  # as far as the grid of levels resolves it


def test_swapping_the_sweeps_inverts_the_multiplier(sweep, truth):
    a = table_from_frame(sweep(noise=NOISE, seed=1))
    b = table_from_frame(worse(sweep(noise=NOISE, seed=2), truth, 1.7))
    there, back = compare(a, b, resamples=0), compare(b, a, resamples=0)
    assert there.multiplier["value"] * back.multiplier["value"] == pytest.approx(1, rel=1e-12)
    assert there.growth["value"] * back.growth["value"] == pytest.approx(1, rel=1e-12)


def test_a_known_multiplier_is_recovered_with_noise_and_said(sweep, truth):
    a = table_from_frame(sweep(noise=NOISE, seed=1))
    b = table_from_frame(worse(sweep(noise=NOISE, seed=2), truth, 2.0))
    found = compare(a, b, names=("web", "books"), resamples=400)
    low, high = found.multiplier["ci"]
    assert 1 < low < 2 < high < 3
    assert found.sentence().startswith("For the same loss books needs ")
    assert "web is the more efficient" in found.sentence()


def test_noise_that_two_sweeps_share_cancels_only_where_runs_are_paired(sweep, truth):
    frame = sweep(noise=NOISE, seed=3)
    other = worse(frame, truth, 1.1)
    paired = compare(*(table_from_frame(f.assign(seed="0")) for f in (frame, other)), resamples=300)
    apart = compare(*(table_from_frame(f.assign(seed=s)) for f, s in ((frame, "0"), (other, "1"))), resamples=300)
    assert (paired.pairs.runs_a, apart.pairs.runs_a) == (28, 0)
    assert (paired.pairs.units, apart.pairs.units) == (28, 56)
    assert paired.multiplier["value"] == apart.multiplier["value"]
    widths = [np.log(found.multiplier["ci"][1] / found.multiplier["ci"][0]) for found in (paired, apart)]
    # All noise is shared. A little stays: at one loss, the two sweeps are at different compute, and so at other runs.
    assert widths[0] < 0.3 * widths[1]
    assert "28 of 28 runs" in paired.method()
    assert "resampled apart" in apart.method()


def test_clusters_are_never_torn_apart(sweep):
    frame = sweep().assign(trunk=[f"t{row % 7}" for row in range(28)])
    other = sweep()
    a, b = table_from_frame(frame), table_from_frame(other)
    found = pairs(a, b)
    assert found.units == 7
    assert (found.unit_a_R == found.unit_b_R).all()
    weight_a, weight_b = common_weights(found, 50, np.random.default_rng(0))
    assert (weight_a == weight_b).all()
    for trunk in range(7):
        assert (np.ptp(weight_a[:, trunk::7], axis=1) == 0).all()
    assert weight_a.sum(1) == pytest.approx(28)


def test_the_compute_for_a_loss_inverts_a_falling_frontier():
    log_C_G = np.linspace(10, 20, 33)
    loss_M = np.array([2.5, 2.2, 2.1])
    slope_B = np.array([0.15, 0.2])
    found_BxM = compute_at(log_C_G, 2 + 5 * np.exp(-slope_B[:, None] * log_C_G), loss_M)
    # h^4 / 384 of the fourth derivative (5e-5 of the reducible loss), over the slope.
    assert found_BxM[1] == pytest.approx(np.log(5 / (loss_M - 2)) / 0.2, abs=1e-5)
    assert np.isposinf(compute_at(log_C_G, 2 + 5 * np.exp(-0.15 * log_C_G)[None], np.array([2.2]))).all()
    assert np.isneginf(compute_at(log_C_G, 2 + 5 * np.exp(-0.15 * log_C_G)[None], np.array([3.2]))).all()


def test_an_interval_without_an_end_is_none():
    """A frontier that never reaches a loss in more than a twentieth of the resamples bounds nothing."""
    log_B = np.random.default_rng(0).normal(size=1000)
    few, many = (np.where(np.arange(1000) < count, np.inf, log_B) for count in (20, 80))
    assert compare_module._ratio(0.0, few, 1000)["ci"] == pytest.approx(np.exp([-1.6, 1.7]), rel=0.2)
    assert compare_module._ratio(0.0, many, 1000) == {"value": 1.0, "ci": None, "level": 0.9}


def test_sweeps_without_a_common_loss_are_not_summarised(sweep, truth):
    frame = sweep()
    found = compare(table_from_frame(frame), table_from_frame(worse(frame, truth, 15.0)), resamples=0)
    assert found.multiplier["value"] is None
    assert all(level["extrapolated"] for level in found.levels)
    assert "No loss is reached by both" in found.sentence()
    assert found.levels[0]["multiplier"]["value"] == pytest.approx(15, rel=1e-4)  # told, and flagged
    comparison_page(found)
    with pytest.raises(InputError, match="share no loss, even 10 times beyond"):
        compare(table_from_frame(frame), table_from_frame(frame.assign(loss=9 * frame["loss"])), resamples=0)


def test_what_cannot_be_compared_is_refused(sweep):
    frame = sweep()
    table = table_from_frame(frame)
    with pytest.raises(
        InputError, match=r"of X are in nats per token, those of Y in bits per byte \(give both in bits"
    ):
        compare(table, table_from_frame(frame, loss_unit="bpb"), names=("X", "Y"))
    with pytest.raises(InputError, match="Y: 5 runs"):
        compare(table, table_from_frame(frame[:5]), names=("X", "Y"))
    with pytest.raises(InputError, match="compare by a law of N and D"):
        compare(table, table, law=law_named("data_constrained"))


def test_bits_are_nats_to_the_comparison(sweep, truth):
    frame = sweep(noise=NOISE)
    nats = table_from_frame(worse(frame, truth, 2.0))
    bits = table_from_frame(worse(frame, truth, 2.0).assign(loss=lambda f: f["loss"] / np.log(2)), loss_unit="bits")
    a = table_from_frame(frame)
    assert compare(a, bits, resamples=0).multiplier["value"] == pytest.approx(
        compare(a, nats, resamples=0).multiplier["value"], rel=1e-6
    )


def test_a_law_of_the_wrong_form_is_doubted_by_the_minima(published):
    """Marin's sweeps: the separable law lets the advantage of DCLM grow by half over a decade, the minima do not."""
    tables = [
        table_from_frame(published(f"isoflop_marin_202603_{name}_llama_2"), drop_outliers=True)
        for name in ("dclm", "comma")
    ]
    found = compare(*tables, names=("dclm", "comma"), resamples=300)
    assert found.pairs.runs_a == 79
    assert found.check["law_growth"]["ci"][0] > found.check["minima_growth"]
    assert "Its growth over these losses is 1." in found.sentence()
    assert "their interval does not hold what the form of the law" in found.sentence()


@pytest.mark.slow
def test_the_interval_covers(sweep, truth):
    """100 pairs of sweeps with noise of their own; 81 to 97 are the 99.8 % limits of a binomial with 90 %."""
    covered = 0
    for replicate in range(100):
        a = table_from_frame(sweep(noise=NOISE, seed=2 * replicate))
        b = table_from_frame(worse(sweep(noise=NOISE, seed=2 * replicate + 1), truth, 1.5))
        low, high = compare(a, b, resamples=200, seed=replicate).multiplier["ci"]
        covered += low <= 1.5 <= high
    assert 81 <= covered <= 98


def run(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tools.compare", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_the_command_writes_what_it_says(sweep, truth, tmp_path):
    frame = sweep(noise=NOISE).rename(columns={"N": "params"})
    frame.to_csv(tmp_path / "a.csv", index=False)
    worse(sweep(noise=NOISE, seed=1), truth, 2.0).to_csv(tmp_path / "b.csv", index=False)
    out = tmp_path / "out"
    done = run(
        f"--a={tmp_path}/a.csv",
        f"--b={tmp_path}/b.csv",
        "--columns_a=N=params",
        "--names=web,<books>",
        f"--out={out}",
        "--resamples=100",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "compare.json").read_text())
    assert done.stdout.splitlines()[0] == report["sentence"]
    assert report["a"]["name"] == "web"
    assert {path.name for path in out.iterdir()} == {"compare.json", "compare.html", "compare.svg", "compare.png"}
    page = (out / "compare.html").read_text()
    assert "&lt;books&gt;" in page
    assert "<books>" not in page
    assert report["sentence"].split(" needs ")[1].split(" [")[0] in page


def test_the_command_refuses_two_tokenizers(sweep, tmp_path):
    sweep().assign(tokenizer="bpe:100").to_csv(tmp_path / "a.csv", index=False)
    sweep().assign(tokenizer="bytes").to_csv(tmp_path / "b.csv", index=False)
    done = run(f"--a={tmp_path}/a.csv", f"--b={tmp_path}/b.csv", f"--out={tmp_path}/out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the tokenizers differ (bpe:100; bytes)")
    assert "--loss_unit=bpb" in done.stderr
    assert not (tmp_path / "out").exists()
