"""The analysis as a whole and what it writes: formats key by key, warnings, predictions, the page."""

import html.parser
import json
import re
import types

import numpy as np
import pandas as pd
import pytest

from scaling.analysis import decisions, report
from scaling.analysis.analyze import analyze
from scaling.analysis.curves import curves_from_frame
from scaling.analysis.fitting import fit
from scaling.analysis.laws import CHINCHILLA, inputs_of
from scaling.analysis.reporting import captions, page, plots
from scaling.analysis.resampling import bootstrap
from scaling.analysis.table import table_from_frame
from scaling.errors import InputError

FIGURES = (
    "isoflop",
    "optima",
    "surface",
    "residuals",
    "profiles",
    "held_out",
    "sensitivity",
    "envelope",
    "curves",
)
RESAMPLES = 200


@pytest.fixture(scope="module")
def analysis(sweep, training_curves):
    table = table_from_frame(sweep(noise=0.004))
    return analyze(table, curves_from_frame(training_curves()), [5e12, 1e14], RESAMPLES, seed=3)


@pytest.fixture(scope="module")
def written(analysis, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    runs = [{**run, "run": {"model": {"d_model": 64}}} for run in decisions.next_runs(analysis)]
    prediction = {
        "target_flops": 5e12,
        "N": 1e5,
        "D": 8e6,
        "C": 5e12,
        "predicted": {"value": 1.5, "ci": [1.45, 1.55], "level": 0.9},
        "measured": 1.6,
        "loss_stderr": 0.004,
        "run": "abc <b>",
        "blind": True,
    }
    report.write_report(
        analysis, folder, next_runs=runs, prediction=prediction, title="A & B", notes=["3 cells repeat their data"]
    )
    return folder


def no_constants(text: str):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def is_est(value) -> bool:
    return set(value) == {"value", "ci", "level"} and value["level"] == 0.9


def codes(analysis) -> list[str]:
    return [warning["code"] for warning in analysis.warnings]


def test_report_json_has_the_design_s_format(written):
    found = no_constants((written / "report.json").read_text())
    assert {"data", "approach1", "approach2", "approach3", "laws", "optima", "warnings"} <= set(found)
    assert {"rows", "used", "dropped", "sha256", "columns", "conventions"} <= set(found["data"])
    assert set(found["data"]["conventions"]) == {"N", "C", "loss"}
    assert len(found["data"]["sha256"]) == 64
    assert {"N_exponent", "D_exponent", "points"} <= set(found["approach1"])
    assert {"N_exponent", "D_exponent", "method", "budgets"} == set(found["approach2"])
    for budget in found["approach2"]["budgets"]:
        keys = {"C", "N_opt", "D_opt", "loss_opt", "status", "n", "parabola_bias", "N_interval", "D_interval"}
        assert set(budget) == keys
        for name in ("N", "D"):
            low, high = budget[f"{name}_interval"]
            assert low < budget[f"{name}_opt"] < high
    three = found["approach3"]
    assert {"law", "objective", "parameters", "N_exponent", "D_exponent", "certificate"} <= set(three)
    assert three["law"] == "chinchilla"
    assert set(three["objective"]) == {"kind", "delta", "value"}
    assert (three["objective"]["kind"], three["objective"]["delta"]) == ("huber_log", 1e-3)
    assert set(three["parameters"]) == {"E", "A", "B", "alpha", "beta"}
    assert all(is_est(est) for est in three["parameters"].values())
    alpha, beta = (three["parameters"][name]["value"] for name in ("alpha", "beta"))
    assert three["N_exponent"]["value"] == pytest.approx(beta / (alpha + beta))
    for name in ("approach1", "approach2", "approach3"):
        assert is_est(found[name]["N_exponent"])
        assert is_est(found[name]["D_exponent"])
    assert {"law", "objective", "parameters", "weakly_identified", "held_out_rmse"} == set(found["laws"][0])
    assert found["laws"][0]["held_out_rmse"] > 0
    for optimum in found["optima"]:
        assert set(optimum) == {"C", "N", "D", "loss"}
        assert all(is_est(optimum[name]) for name in ("N", "D", "loss"))
    for warning in found["warnings"]:
        assert {"code", "message"} <= set(warning)
    assert found["prediction"]["inside"] is False
    assert found["bootstrap"]["resamples"] == RESAMPLES


def test_next_run_json_carries_the_given_runs(written):
    runs = no_constants((written / "next_run.json").read_text())
    assert [run["target_flops"] for run in runs] == [5e12, 1e14]
    keys = {
        "purpose", "target_flops", "N", "D", "tokens_per_parameter", "loss", "loss_stacked", "extrapolation_factor",
        "run",
    }  # fmt: skip
    for run in runs:
        assert set(run) == keys
        assert run["tokens_per_parameter"] == pytest.approx(run["D"]["value"] / run["N"]["value"])
    assert runs[1]["extrapolation_factor"] == pytest.approx(40.0)


def test_every_figure_is_written_twice(written):
    for name in FIGURES:
        assert (written / f"{name}.svg").read_text().lstrip().startswith("<?xml")
        assert (written / f"{name}.png").read_bytes().startswith(b"\x89PNG")


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced, and collects what a browser would fetch or run."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.fetched, self.tags, self.ids = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "data", "srcset") and not value.startswith(
                ("#", "data:")
            ):
                self.fetched.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in ("meta", "br"):
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_whole_and_opens_offline(written):
    text = (written / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.fetched == []
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert page.tags.count("svg") == len(FIGURES)
    assert len(page.ids) == len(set(page.ids))  # figures inlined together must not share clip paths


def test_page_says_what_it_must(written, analysis):
    text = re.sub(r"<svg.*?</svg>", "", (written / "report.html").read_text(encoding="utf-8"), flags=re.DOTALL)
    for said in (
        "A &amp; B",
        "abc &lt;b&gt;",
        "outside the interval",
        "predicted before the run was trained",
        "3 cells repeat their data.",
        "What this does not tell you",
        "A factor of 12.5 in compute is short",
        "The answer in three sentences",
        "Reporting checklist",
        f"{analysis.fit.value:.9g}",
        analysis.table.sha256,
        "&quot;d_model&quot;: 64",
    ):
        assert said in text
    for warning in analysis.warnings:
        assert warning["code"] in text


def test_same_seed_same_report(analysis, sweep, training_curves):
    table, curves = table_from_frame(sweep(noise=0.004)), curves_from_frame(training_curves())
    again = analyze(table, curves, [5e12, 1e14], RESAMPLES, seed=3)
    assert json.dumps(report.report_dict(again)) == json.dumps(report.report_dict(analysis))
    other = analyze(table, curves, [5e12, 1e14], RESAMPLES, seed=4)
    assert other.fit.value == again.fit.value
    assert other.local_slope["value"] == again.local_slope["value"]
    assert other.local_slope["ci"] != again.local_slope["ci"]


def test_intervals_hold_the_truth_here(analysis, truth):
    found = report.report_dict(analysis)
    for name in ("approach1", "approach2", "approach3"):
        low, high = found[name]["N_exponent"]["ci"]
        assert low <= truth.exponent <= high
    for name, est in found["approach3"]["parameters"].items():
        assert est["ci"][0] <= getattr(truth, name) <= est["ci"][1]
    for optimum in found["optima"]:
        assert optimum["N"]["ci"][0] <= truth.N_opt(optimum["C"]) <= optimum["N"]["ci"][1]


def test_noise_free_runs_are_predicted_exactly(sweep, truth):
    analysis = analyze(table_from_frame(sweep()), resamples=100, thorough=False)
    est = decisions.predict_loss(analysis, 2e5, 2e7)
    assert est["value"] == pytest.approx(truth.loss(2e5, 2e7), rel=1e-9)
    np.testing.assert_allclose(est["ci"], est["value"], rtol=1e-6)
    assert analysis.held_out_rmse < 1e-8
    assert "approaches_disagree" not in codes(analysis)
    with pytest.raises(InputError, match="both must be positive"):
        decisions.predict_loss(analysis, 0, 1e9)


def test_predicted_losses_cover(sweep, truth):
    """New runs at twice the largest budget: 60 simulated sweeps, 90 % interval, 3 binomial s.d. below is 78 %."""
    hits = 0
    for seed in range(60):
        table = table_from_frame(sweep(noise=0.005, seed=seed))
        fitted = fit(CHINCHILLA, inputs_of(table, CHINCHILLA), table.loss_R)
        drawn = bootstrap(fitted, table, resamples=100, seed=seed)
        # what a prediction is made from
        analysis = types.SimpleNamespace(fit=fitted, bootstrap=drawn, theta_BxP=drawn.theta_BxP, seed=seed)
        N = truth.N_opt(5e12)
        new = truth.loss(N, 5e12 / (6 * N)) * np.exp(0.005 * np.random.default_rng([seed, 9]).standard_normal())
        low, high = decisions.predict_loss(analysis, N, 5e12 / (6 * N))["ci"]
        hits += low <= new <= high
    assert hits >= 47


def test_default_target_is_twice_the_largest_budget(sweep):
    analysis = analyze(table_from_frame(sweep()), resamples=100, thorough=False)
    assert analysis.target_flops == (5e12,)
    assert isinstance(analysis.envelope, str)
    assert report.report_dict(analysis)["approach1"] == {"skipped": "no training curves were given"}
    with pytest.raises(InputError, match="target_flops=-1"):
        analyze(table_from_frame(sweep()), target_flops=[-1])


def test_warnings_fire_where_they_should(sweep, truth):
    frame = sweep(noise=0.003)
    clean = codes(analyze(table_from_frame(frame), target_flops=[1e12], resamples=100, thorough=False))
    assert clean == []

    beyond = analyze(table_from_frame(frame), target_flops=[1e15], resamples=100, thorough=False)
    assert codes(beyond) == ["extrapolation"]
    assert "C is 400 times the largest" in beyond.warnings[0]["message"]

    top = frame["C"] == 2.5e12
    edged = frame[~(top & (frame["N"] < 1.5 * truth.N_opt(2.5e12)))]
    assert "optimum_at_edge" in codes(
        analyze(table_from_frame(edged), target_flops=[1e12], resamples=100, thorough=False)
    )

    few = frame[~top | (frame["N"] > 3 * truth.N_opt(2.5e12))].assign(budget=lambda f: f["C"])
    assert "too_few_points" in codes(analyze(table_from_frame(few), target_flops=[1e12], resamples=100, thorough=False))

    shared = frame.assign(trunk=[f"trunk {k % 7}" for k in range(len(frame))])
    assert "correlated_rows" in codes(
        analyze(table_from_frame(shared), target_flops=[1e12], resamples=100, thorough=False)
    )

    one = analyze(table_from_frame(frame.assign(run="only")), target_flops=[1e12], resamples=100, thorough=False)
    assert codes(one) == ["correlated_rows"]
    assert one.optima[0]["N"]["ci"] is None

    narrow = sweep(noise=0.05, seed=2)
    assert "weakly_identified" in codes(
        analyze(table_from_frame(narrow), target_flops=[1e12], resamples=100, thorough=False)
    )

    negative = frame.assign(loss=truth._replace(E=-0.1).loss(frame["N"], frame["D"]))
    assert "parameter_at_bound" in codes(
        analyze(table_from_frame(negative), target_flops=[1e12], resamples=100, thorough=False)
    )


def test_disagreement_is_flagged_where_the_law_does_not_hold(published):
    """Porian et al. 2024, second setting: the minima say 0.71, the law 0.56 with a misfit of 6 %."""
    frame = published("porian_main")
    frame = frame[frame["config"] == "rw|base|long|kaplan|standard|val"]
    assert "approaches_disagree" in codes(analyze(table_from_frame(frame), resamples=200, thorough=False))


def test_outliers_are_reported_both_ways(sweep, published):
    frame = published("isoflop_llama_3_raw_loss")
    kept = report.report_dict(analyze(table_from_frame(frame), resamples=100, thorough=False))
    dropped = report.report_dict(analyze(table_from_frame(frame, drop_outliers=True), resamples=100, thorough=False))
    assert kept["data"]["outliers"] == "kept"
    for name in ("approach2", "approach3"):
        assert kept["without_outliers"]["N_exponent"][name] == pytest.approx(dropped[name]["N_exponent"]["value"])
        assert dropped["with_outliers"]["N_exponent"][name] == pytest.approx(kept[name]["N_exponent"]["value"])


def test_order_and_units_of_the_table_do_not_matter(sweep):
    frame = sweep(noise=0.01)
    one = analyze(table_from_frame(frame), target_flops=[1e12], resamples=100, thorough=False)
    shuffled = analyze(
        table_from_frame(frame.sample(frac=1, random_state=1)), target_flops=[1e12], resamples=100, thorough=False
    )
    scaled = frame.assign(N=frame["N"] / 1e3, D=frame["D"] / 1e6, C=frame["C"] / 1e9)
    small = analyze(table_from_frame(scaled), target_flops=[1e3], resamples=100, thorough=False)
    for other, unit in ((shuffled, 1.0), (small, 1e3)):
        N, D, loss = (other.optima[0][name]["value"] for name in ("N", "D", "loss"))
        assert N * unit == pytest.approx(one.optima[0]["N"]["value"], rel=1e-5)  # the search in log N stops at 1e-7
        assert loss == pytest.approx(one.optima[0]["loss"]["value"], rel=1e-9)
        assert other.isoflop.N_power.exponent_B[0] == pytest.approx(one.isoflop.N_power.exponent_B[0], abs=1e-9)
        assert D > 0


def test_exclusions_and_the_noise_floor_are_told(sweep, tmp_path):
    frame = pd.concat([sweep(noise=0.004, seed=k).assign(seed=k) for k in (0, 1)], ignore_index=True)
    frame["run"] += "-" + frame["seed"].astype(str)
    said = ["C < 3e11 because <too> short", "N > 1e12 because nobody could train it"]
    analysis = analyze(table_from_frame(frame, exclude=said), target_flops=[1e12], resamples=100, thorough=False)
    report.write_report(analysis, tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Excluded by C &lt; 3e11, 14 rows, because &lt;too&gt; short." in text
    assert "Excluded by N &gt; 1e12, 0 rows" in text
    assert ">0&ndash;6, 28&ndash;34</td>" in text  # the rows that were left out
    assert codes(analysis) == ["nothing_excluded"]
    found = no_constants((tmp_path / "report.json").read_text())
    assert len(found["data"]["dropped"]) == found["data"]["excluded"][0]["rows"] == 14
    assert is_est(found["noise"]["sd_log_loss"])
    assert is_est(found["noise"]["sd_loss"])
    assert found["noise"]["dof"] == 21
    assert "42 runs repeat 21 settings with other seeds (21 degrees of freedom)" in text
    assert "No misfit beyond this noise is detected: F(16, 21)" in text
    assert "noise floor: 0." in report.summary(analysis)


def test_without_replicates_the_noise_is_not_measured(written, analysis):
    text = (written / "report.html").read_text(encoding="utf-8")
    assert "Not measured: the table has no column seed." in text
    assert no_constants((written / "report.json").read_text())["noise"] == {"skipped": "the table has no column seed"}
    assert "noise floor: not measured" in report.summary(analysis)


def test_learning_rates_are_told_in_the_caller_s_words(analysis, written):
    assert "Whether the learning rates were tuned is not known" in (written / "report.html").read_text()
    rows = [
        {"run": "a<b", "N": 1e6, "batch_tokens": 4096, "peak_lr": 1e-3, "rule_lr": 2e-3, "ratio": 0.5},
        {"run": "c", "N": 2e6, "batch_tokens": None, "peak_lr": 1e-3, "rule_lr": None, "ratio": None},
    ]
    rates = {"tuned": True, "rule": {"a": 1.0}, "said": ["The rates follow a rule.", "One cell is far."], "rows": rows}
    found = report.report_dict(analysis, rates=rates)
    text = page.page(analysis, found, [], {}, "title", [])
    assert "The rates follow a rule. One cell is far." in text
    assert "a&lt;b" in text
    assert Page(text).open == []
    assert found["learning_rates"] == rates


def test_the_unit_of_the_loss_is_that_of_the_table(sweep, training_curves):
    table = table_from_frame(sweep(noise=0.004), loss_unit="bpb")
    analysis = analyze(table, curves_from_frame(training_curves()), resamples=100, thorough=False)
    text = page.page(analysis, report.report_dict(analysis), decisions.next_runs(analysis), {}, "title", [])
    assert "] bits per byte (90% intervals)." in text
    assert "Loss (bits per byte)</th>" in text
    assert "nats per token" not in text.replace("split validation, nats per token", "")  # the curves' own
    assert "Contours are in bits per byte" in captions.caption("surface", analysis)
    assert "bits per byte" in report.summary(analysis)
    assert plots.isoflop_figure(analysis).axes[0].get_ylabel() == "Loss (bits per byte)"
    assert plots.curves_figure(analysis).axes[0].get_ylabel() == "Loss (nats per token)"


def test_an_unmeasured_prediction_is_no_verdict(analysis, tmp_path):
    record = {"target_flops": 5e12, "N": 1e5, "D": 8e6, "C": 5e12, "run": "x", "blind": False, "loss_stderr": None}
    predicted = {"value": 1.5, "ci": [1.4, 1.6], "level": 0.9}
    waiting = report.report_dict(analysis, {**record, "predicted": predicted, "measured": None})
    assert waiting["prediction"]["inside"] is None
    inside = report.report_dict(analysis, {**record, "predicted": predicted, "measured": 1.45})
    assert inside["prediction"]["inside"] is True
    report.write_report(analysis, tmp_path, prediction={**record, "predicted": predicted, "measured": None})
    assert "has not been measured yet" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_file_cannot_be_the_folder(analysis, tmp_path):
    path = tmp_path / "taken"
    path.write_text("")
    with pytest.raises(InputError, match="cannot be a folder"):
        report.write_report(analysis, path)


def test_a_table_of_pandas_is_left_alone(sweep):
    frame = sweep()
    before = frame.copy()
    table_from_frame(frame)
    pd.testing.assert_frame_equal(frame, before)
