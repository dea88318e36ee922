"""Learning-rate tuning: optima and rules of sweeps whose truth is known, and the runs of a published study."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from scaling.analysis.rates import find_optima
from scaling.analysis.rule_fit import fit_rule
from scaling.analysis.tuning import rates_report, table_rows, tune, tuning_dict
from scaling.errors import InputError
from scaling.rules import read_rule

ROOT = pathlib.Path(__file__).parents[2]
SIZES, BATCHES = (1e5, 3e5, 1e6, 3e6), (1e4,)
A, B, C = 3.0, -0.5, 0.3  # of the true rule
CURVATURE = 0.03


def true_lr(N: float, batch: float) -> float:
    return math.exp(A) * N**B * batch**C


def sweep(sizes=SIZES, batches=BATCHES, rates=7, noise=0.0, scatter=0.0, skew=0.0, seeds=1, seed=0) -> pd.DataFrame:
    """Rates a factor of 2 apart on one grid, around the optimum of each size and batch; scatter is of the sizes."""
    rng = np.random.default_rng(seed)
    rows = []
    for N in sizes:
        shift = scatter * rng.standard_normal()
        for batch in batches:
            optimum = math.log(true_lr(N, batch)) + shift
            first = round(optimum / math.log(2)) - rates // 2
            for k in range(first, first + rates):
                u = k * math.log(2) - optimum
                loss = 2 + 5 * N**-0.1 + CURVATURE * u**2 + skew * u**3
                row = {"N": N, "D": 20 * N, "batch_tokens": batch, "peak_lr": 2.0**k, "status": "done"}
                rows += [{**row, "seed": s, "loss": loss + noise * rng.standard_normal()} for s in range(seeds)]
    return pd.DataFrame(rows)


def statuses(frame: pd.DataFrame) -> list[str]:
    return [group.status for group in find_optima(frame).groups]


def failed(frame: pd.DataFrame, rows: pd.Series) -> pd.DataFrame:
    frame = frame.copy()
    frame.loc[rows, ["status", "loss"]] = ["failed", np.nan]
    return frame


# One size.


def test_the_optimum_of_a_parabola_is_exact():
    """Rates, loss there, and the cost of a factor of 2, from 7 rates of which the window takes 5."""
    for group in find_optima(sweep()).groups:
        assert group.status == "ok"
        assert math.isclose(group.lr, true_lr(group.rates.N, 1e4), rel_tol=1e-6)
        assert math.isclose(group.loss, 2 + 5 * group.rates.N**-0.1, rel_tol=1e-9)
        assert math.isclose(group.penalty, CURVATURE * math.log(2) ** 2, rel_tol=1e-6)
        assert group.used_K.sum() == 5


def test_rates_far_above_in_loss_are_not_in_the_parabola():
    """A rate that all but diverged is finite, and would drag the parabola's minimum away."""
    frame = sweep(sizes=(1e5, 1e6), rates=5)
    frame.loc[frame.groupby("N")["peak_lr"].idxmax(), "loss"] = 9.0
    for group in find_optima(frame).groups:
        assert group.used_K.tolist() == [True, True, True, True, False]
        assert math.isclose(group.lr, true_lr(group.rates.N, 1e4), rel_tol=1e-6)


def test_a_skewed_bowl_puts_the_minimum_where_the_docstring_says():
    """Both neighbours of the optimum on the grid equally far: sizes at which the truth is itself a rate."""
    N = (math.exp(A) * 1e4**C / 2.0**-2) ** 2  # whose optimum is 1/4
    (group,) = find_optima(sweep(sizes=(N,), skew=0.004)).groups
    assert math.isclose(math.log(group.lr / 0.25), -1.7 * 0.004 / CURVATURE * math.log(2) ** 2, rel_tol=1e-6)


def test_the_interval_is_where_the_slope_is_zero_within_its_error():
    """Fieller's interval against a search over all rates."""
    found = find_optima(sweep(sizes=(1e5,), noise=0.004, seeds=2))
    (group,) = found.groups
    u_K = np.log(group.rates.lr_K / group.lr_0)[group.used_K]
    X = np.repeat(np.vander(u_K, 3, increasing=True), 2, axis=0)
    cov = found.noise**2 * np.linalg.inv(X.T @ X)
    u_G = np.linspace(-3, 3, 600_001)
    slope = np.stack([0 * u_G, 1 + 0 * u_G, 2 * u_G])
    t_G = np.abs(slope.T @ group.parabola_3) / np.sqrt(np.einsum("pg,pq,qg->g", slope, cov, slope))
    inside = u_G[t_G <= stats.t.ppf(0.95, found.df)]
    np.testing.assert_allclose(np.log(np.array(group.ci) / group.lr_0), [inside[0], inside[-1]], atol=2e-5)


def test_noise_too_large_for_the_curvature_leaves_no_interval():
    found = find_optima(sweep(noise=0.2, seed=3))
    assert [group.ci for group in found.ok] == [None] * len(found.ok)
    assert len(found.ok) > 0


def test_the_noise_is_that_of_one_run():
    """Its square is chi-squared about the truth: 4 sizes x (5 rates x 4 seeds - 3) = 68 degrees of freedom."""
    found = find_optima(sweep(noise=0.002, seeds=4))
    assert found.df == 68
    low, high = np.sqrt(stats.chi2.ppf([0.001, 0.999], 68) / 68)
    assert low < found.noise / 0.002 < high


def test_seeds_are_averaged():
    frame = sweep(noise=0.003, seeds=3)
    mean = frame.groupby(["N", "D", "batch_tokens", "peak_lr"], as_index=False)["loss"].mean()
    for one, other in zip(find_optima(frame).groups, find_optima(mean).groups, strict=True):
        assert math.isclose(one.lr, other.lr, rel_tol=1e-9)


@pytest.mark.parametrize(("keep", "needs"), [(slice(4, None), "rates below "), (slice(None, 3), "rates above ")])
def test_an_optimum_at_the_end_of_its_rates_is_an_edge(keep, needs):
    frame = sweep(sizes=(1e5,)).iloc[keep]
    (group,) = find_optima(frame).groups
    end = frame["peak_lr"].iloc[0 if needs == "rates below " else -1]
    assert (group.status, group.do) == ("edge", f"{needs}{end:.3g}")
    assert math.isnan(group.lr)


def test_a_failed_rate_brackets_from_above():
    """Rates up to just below the optimum, and the next one failed: the others locate it."""
    frame = sweep(sizes=(1e5,))
    up_to = frame[frame["peak_lr"] <= true_lr(1e5, 1e4)]
    assert statuses(up_to) == ["edge"]
    above = frame[~frame.index.isin(up_to.index)].head(1).assign(status="failed", loss=np.nan)
    (group,) = find_optima(pd.concat([up_to, above])).groups
    assert group.status == "ok"
    assert math.isclose(group.lr, true_lr(1e5, 1e4), rel_tol=1e-6)


def test_a_failed_rate_below_the_parabolas_minimum_brackets_no_optimum():
    """All that is known then is that the optimum lies between the last rate and the failed one."""
    frame = sweep(sizes=(1e5,))
    low = frame.head(3)
    wall = low.tail(1).assign(peak_lr=low["peak_lr"].max() * 1.2, status="failed", loss=np.nan)
    (group,) = find_optima(pd.concat([low, wall])).groups
    assert group.status == "edge"
    assert "where runs failed" in group.do


def test_failures_at_low_rates_bracket_nothing():
    frame = sweep(sizes=(1e5,)).head(4)
    assert statuses(failed(frame, frame["peak_lr"] == frame["peak_lr"].min())) == ["edge"]


def test_a_rate_at_which_one_seed_failed_is_a_failed_rate():
    frame = sweep(sizes=(1e5,), seeds=2)
    frame = failed(frame, (frame["peak_lr"] == frame["peak_lr"].max()) & (frame["seed"] == 1))
    (group,) = find_optima(frame).groups
    assert group.rates.failed_J.tolist() == [frame["peak_lr"].max()]
    assert frame["peak_lr"].max() not in group.rates.lr_K


def test_few_rates_and_flat_bowls_have_no_optimum():
    frame = sweep(sizes=(1e5,), rates=3)
    assert statuses(frame) == ["ok"]
    assert statuses(frame.head(2)) == ["too_few"]
    assert statuses(failed(frame, frame.index == 2)) == ["too_few"]
    wavy = sweep(sizes=(1e5,), rates=5).assign(loss=[2.9, 3.1, 2.89, 3.1, 2.9])
    assert statuses(wavy) == ["not_convex"]


def test_batches_and_durations_are_groups_of_their_own():
    """D differs by whole steps within a group, and by more between."""
    frame = sweep(sizes=(1e5,), batches=(1e4, 4e4))
    frame["D"] *= np.where(np.arange(len(frame)) % 2, 1.01, 1.0)
    longer = frame.assign(D=4 * frame["D"])
    groups = find_optima(pd.concat([frame, longer])).groups
    assert [(group.rates.B, len(group.rates.lr_K)) for group in groups] == [(1e4, 7), (1e4, 7), (4e4, 7), (4e4, 7)]
    assert [round(group.rates.D / 2e6) for group in groups] == [1, 4, 1, 4]


# The rule.


def test_the_rule_is_recovered():
    rule = fit_rule(find_optima(sweep(batches=(1e4, 2e4, 8e4))), "small", "")
    np.testing.assert_allclose([rule.a, rule.b, rule.c], [A, B, C], rtol=1e-6)
    assert (rule.N_range, rule.B_range, rule.D_range) == ((1e5, 3e6), (1e4, 8e4), (2e6, 6e7))
    assert (rule.sizes, rule.optima, rule.notes) == (4, 12, ())
    assert math.isclose(rule.penalty, CURVATURE * math.log(2) ** 2, rel_tol=1e-6)


def test_without_known_errors_it_is_the_ordinary_least_squares_line():
    """Three rates a size leave no noise to know; the independent path is numpy's line and its covariance."""
    optima = find_optima(sweep(rates=3, scatter=0.1))
    assert optima.df == 0
    rule = fit_rule(optima, "small", "")
    x, y = np.log([(group.rates.N, group.lr) for group in optima.ok]).T
    (b, a), cov = np.polyfit(x, y, 1, cov=True)
    np.testing.assert_allclose([rule.a, rule.b], [a, b], rtol=1e-9)
    np.testing.assert_allclose(np.array(rule.covariance)[:2, :2], cov[::-1, ::-1], rtol=1e-9)
    assert math.isclose(rule.t, stats.t.ppf(0.95, 2))


def test_with_batches_the_line_at_any_batch_is_that_of_least_squares():
    """In a balanced sweep the two steps give the coefficients of one regression on ln N and ln B."""
    optima = find_optima(sweep(batches=(1e4, 4e4), rates=3, scatter=0.1))
    rule = fit_rule(optima, "small", "")
    log_N, log_B, y = np.log([(group.rates.N, group.rates.B, group.lr) for group in optima.ok]).T
    X = np.stack([np.ones(len(y)), log_N, log_B], axis=1)
    np.testing.assert_allclose([rule.a, rule.b, rule.c], np.linalg.lstsq(X, y, rcond=None)[0], rtol=1e-9)


def coverage(sweeps: int, **options: object) -> tuple[float, float, float]:
    """Shares of sweeps whose intervals hold the true exponent of N, and the true rate in the middle; and of optima."""
    b, middle, optima = [], [], []
    for seed in range(sweeps):
        found = find_optima(sweep(seed=seed, **options))
        rule = fit_rule(found, "small", "")
        low, high = rule.coefficients()["b"]["ci"]
        b.append(low <= B <= high)
        low, high = rule.interval(5e5, 1e4)
        middle.append(low <= true_lr(5e5, 1e4) <= high)
        optima += [group.ci[0] <= true_lr(group.rates.N, group.rates.B) <= group.ci[1] for group in found.ok]
    return float(np.mean(b)), float(np.mean(middle)), float(np.mean(optima))


def test_intervals_hold_the_truth_nine_times_in_ten():
    """200 sweeps of four sizes, one seed: a share of .9 has a standard error of .021; the bound is three of them."""
    b, middle, optima = coverage(200, noise=0.003)
    assert abs(b - 0.9) < 0.064
    assert abs(middle - 0.9) < 0.064
    assert abs(optima - 0.9) < 0.032


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"noise": 0.003, "sizes": (1e5, 3e5, 1e6)},
        {"noise": 0.003, "scatter": 0.2},
        {"noise": 0.003, "scatter": 0.1, "batches": (1e4, 2e4, 4e4)},
    ],
)
def test_intervals_of_the_rule_hold_with_three_sizes_and_with_sizes_that_scatter(options):
    b, middle, _ = coverage(400, **options)
    assert b > 0.9 - 0.045
    assert middle > 0.9 - 0.045


def test_two_sizes_have_a_rule_without_an_interval():
    rule = fit_rule(find_optima(sweep(sizes=(1e5, 1e6), noise=0.001)), "small", "")
    assert rule.covariance is None
    assert any(note.startswith("No interval: two sizes") for note in rule.notes)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda f: f, "one batch size"),
        (lambda f: f.drop(columns="batch_tokens"), "no column batch_tokens"),
        (lambda f: f.assign(batch_tokens=f["N"] / 10), "no size has two batches"),
    ],
)
def test_a_batch_that_was_not_varied_has_no_exponent(change, why):
    rule = fit_rule(find_optima(change(sweep())), "small", "")
    assert rule.c == 0
    assert rule.coefficients()["c"]["ci"] is None
    assert why in rule.notes[0]


def test_sizes_without_a_bracketed_optimum_are_left_out_and_named():
    frame = sweep()
    frame = frame[(frame["N"] != 3e6) | (frame["peak_lr"] <= true_lr(3e6, 1e4))]
    rule = fit_rule(find_optima(frame), "small", "")
    assert rule.N_range == (1e5, 1e6)
    assert math.isclose(rule.b, B, rel_tol=1e-6)
    assert rule.notes[-1].startswith("Left out, edge: N 3M, batch 10k, D 60M; it needs rates above ")


def test_no_rule_says_which_way_each_size_must_go():
    frame = sweep(sizes=(1e5, 1e6))
    low = frame[frame["peak_lr"] < frame["N"].map(lambda N: true_lr(N, 1e4))]
    with pytest.raises(InputError, match=r"no size has its optimum.*N 100k.*rates above.*; N 1M.*rates above"):
        fit_rule(find_optima(low), "small", "")
    with pytest.raises(InputError, match="only one size, N 1M, has its optimum bracketed"):
        fit_rule(find_optima(pd.concat([low[low["N"] == 1e5], frame[frame["N"] == 1e6]])), "small", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="peak_lr"), "no column peak_lr"),
        (lambda f: f.assign(peak_lr=[0.0, *f["peak_lr"][1:]]), "peak_lr=0.0 in row 0 is not positive"),
        (lambda f: f.assign(loss=[*f["loss"][:-1], np.nan]), "loss is missing in row 27"),
        (lambda f: f.assign(status="running"), "none of 28 runs is done"),
    ],
)
def test_bad_tables_are_refused_with_the_place(change, message):
    with pytest.raises(InputError, match=message):
        find_optima(change(sweep()))


def test_unfinished_runs_are_left_out_and_counted():
    frame = sweep()
    frame.loc[frame.groupby("N")["peak_lr"].idxmin(), ["status", "loss"]] = ["running", np.nan]
    found = find_optima(frame)
    assert (found.unfinished, found.failed, len(found.ok)) == (4, 0, 4)


def test_rates_of_a_published_study_fall_with_size(published):
    """(Mis)fitting: 72 groups of two or three rates; where bracketed, the optimum is that of the parabola through
    three points, and its power of N is clearly below zero: a rate for all sizes would be untuned for most."""
    frame = published("misfitting_last262")
    frame = frame[frame["model"] != "misfitting_17m"]  # where two rates stand for each loss
    found = find_optima(frame)
    counted = pd.Series([group.status for group in found.groups]).value_counts()
    assert counted.to_dict() == {"edge": 40, "ok": 29, "too_few": 3}
    for group in found.ok:
        x = np.log(group.rates.lr_K)
        c2, c1, _ = np.polyfit(x, group.rates.loss_K, 2)
        assert math.isclose(math.log(group.lr), -c1 / (2 * c2), rel_tol=1e-6)
    rule = fit_rule(found, "small", "")
    assert rule.sizes == 8
    low, high = rule.coefficients()["b"]["ci"]
    assert -0.7 < low < rule.b < high < -0.4
    assert "does not know D" in " ".join(rule.notes)


# What is said of it.


def test_tuning_json_holds_what_was_used():
    tuning = tune(failed(sweep(noise=0.002), sweep().index == 6), "small", "ab")
    found = json.loads(json.dumps(tuning_dict(tuning), allow_nan=False))
    first = found["groups"][0]
    assert (first["N"], first["batch_tokens"], first["status"], len(first["failed"])) == (1e5, 1e4, "ok", 1)
    assert [rate["used"] for rate in first["rates"]].count(True) == 5
    assert first["peak_lr"]["ci"][0] < first["peak_lr"]["value"] < first["peak_lr"]["ci"][1]
    assert found["rule"]["coefficients"]["b"]["ci"] is not None
    assert table_rows(tuning.optima.groups)[0][3] == "6 + 1 failed"


@pytest.fixture(scope="module")
def rule():
    return fit_rule(find_optima(sweep(noise=0.002, batches=(1e4, 4e4))), "small", "ab")


def test_a_study_that_follows_its_rule_is_tuned(rule):
    sizes = np.array([1e5, 1e6, 3e6])
    rates = [rule.peak_lr(N, 2e4) for N in sizes]
    frame = pd.DataFrame({"run": list("abc"), "N": sizes, "D": 20 * sizes, "batch_tokens": 2e4, "peak_lr": rates})
    report = rates_report(frame, rule, "rule:r.json")
    assert report["tuned"] is True
    assert report["rule"]["base"] == "small"
    assert set(report["rows"][0]) == {"run", "N", "batch_tokens", "peak_lr", "rule_lr", "ratio"}
    assert [row["ratio"] for row in report["rows"]] == pytest.approx([1, 1, 1])
    said = " ".join(report["said"])
    assert "3 of 3 cells have the rule's rate" in said
    assert "extrapolated" not in said
    assert "Durations" not in said
    json.dumps(report, allow_nan=False)


def test_distance_from_the_rule_and_beyond_its_range_is_said(rule):
    N = np.array([1e6, 30e6])
    frame = pd.DataFrame({"run": ["in", "out"], "N": N, "D": 20 * N, "batch_tokens": 1e4})
    frame["peak_lr"] = [2 * rule.peak_lr(1e6, 1e4), rule.peak_lr(30e6, 1e4)]
    report = rates_report(frame, rule, "rule:r.json")
    assert report["rows"][0]["ratio"] == pytest.approx(2)
    said = " ".join(report["said"])
    assert "1 of 2 cells have the rule's rate" in said
    assert f"The farthest, in, is a factor of 2 away, which costs {rule.penalty:.2g} nats per token" in said
    assert "Beyond the sizes or batches that were tuned: 1 of 2 cells, by up to a factor of 10." in said
    assert "Durations reach a factor of 10 beyond" in said


def test_an_untuned_study_is_told_what_that_does():
    frame = pd.DataFrame({"N": ["1e5", ""], "peak_lr": ["0.01", "0.02"]})
    report = rates_report(frame, None, "small")
    assert (report["tuned"], report["rule"]) == (False, None)
    said = " ".join(report["said"])
    assert "recipe small and were not tuned for each size" in said
    assert "arXiv 2406.19146" in said
    wanted = {"run": "0", "N": 1e5, "batch_tokens": None, "peak_lr": 0.01, "rule_lr": None, "ratio": None}
    assert report["rows"] == [wanted]


def test_a_table_without_batches_cannot_be_held_against_a_rule_of_batches(rule):
    frame = pd.DataFrame({"N": [1e5], "peak_lr": [0.01]})
    assert rates_report(frame, rule, "rule:r.json")["rows"][0]["ratio"] is None
    one_batch = dataclasses.replace(rule, c=0.0, B_range=None)
    assert rates_report(frame, one_batch, "rule:r.json")["rows"][0]["ratio"] > 0


# The command.


def tool(*flags: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tools.tune", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_sweep_in_rule_out(tmp_path):
    frame = sweep(noise=0.002, batches=(1e4, 4e4))
    frame = frame[(frame["N"] != 3e6) | (frame["peak_lr"] < 0.2)]
    frame = failed(frame, (frame["N"] == 1e5) & (frame["peak_lr"] == frame["peak_lr"].max()))
    frame.to_csv(tmp_path / "results.csv", index=False)
    (tmp_path / "sweep.json").write_text('{"config": {"recipe": "wsd"}}')
    out = tmp_path / "out"
    done = tool(f"--runs={tmp_path}/results.csv", f"--out={out}")
    assert done.returncode == 0, done.stderr
    rule = read_rule(out / "rule.json")
    assert (rule.base, rule.sizes) == ("wsd", 3)
    assert rule.formula() in done.stdout
    assert "edge: needs rates above" in done.stdout
    assert f"--config.recipe=rule:{out}/rule.json" in done.stdout
    page = (out / "tuning.html").read_text()
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org/", "")
    assert json.loads((out / "tuning.json").read_text())["rule"]["formula"] == rule.formula()


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        (slice(None), [], "--base is missing"),
        (slice(None), ["--base=smal"], "unknown recipe 'smal' (did you mean small?)"),
        (slice(None, 3), ["--base=small"], "N 100k, batch 10k, D 2M needs rates above 0.5"),
    ],
)
def test_what_gives_no_rule_is_one_line_and_exit_2(tmp_path, rows, flags, message):
    sweep().iloc[rows].to_csv(tmp_path / "results.csv", index=False)
    refused = tool(f"--runs={tmp_path}/results.csv", f"--out={tmp_path}/out", *flags)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
