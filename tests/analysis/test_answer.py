"""The answer in three sentences, what to do about warnings, the reporting checklist, versions."""

import ast
import dataclasses
import hashlib
import importlib.metadata
import pathlib
import shutil
import types

import pytest

from scaling import analysis as package
from scaling.analysis import decisions, report
from scaling.analysis.analyze import analyze
from scaling.analysis.reporting import answer, remedies, versions
from scaling.analysis.reporting.checklist import NOT_TOLD, checklist
from scaling.analysis.reporting.style import si, symbol
from scaling.analysis.table import table_from_frame, warning
from scaling.analysis.verdicts import exponents, times

MODULES = pathlib.Path(package.__file__).parent


@pytest.fixture(scope="module")
def near(sweep):
    """Little noise and a target inside the runs: nothing to complain of."""
    return analyze(table_from_frame(sweep(noise=0.003)), target_flops=[1e12], resamples=100, thorough=False)


def told(analysis, **changed) -> answer.Answer:
    return answer.answer(dataclasses.replace(analysis, **changed))


def test_a_sweep_without_fault_is_well_supported(near):
    said = told(near, verdicts=())
    assert near.warnings == ()
    assert said.grade == "good"
    N, D = (near.optima[0][name]["value"] for name in ("N", "D"))
    assert said.train.startswith("With 1e12 FLOPs, train ")
    low, high = (
        near.optima[0]["D"]["ci"][0] / near.optima[0]["N"]["ci"][1],
        answer.per_parameter(near.optima[0]["N"], near.optima[0]["D"])["ci"][1],
    )
    assert f"({D / N:.3g} [{low:.3g}, {high:.3g}] tokens per parameter)" in said.train
    assert said.trust.startswith("Well supported: Approaches 2 and 3 agree within noise on the exponent of N* (")
    assert f"misses it by {near.held_out_rmse:.2%}" in said.trust
    assert "the target lies within the compute of the runs" in said.trust
    low, high = near.optima[0]["loss"]["ci"]
    assert f"{low:.3f} to {high:.3f} nats per token" in said.next


def test_the_grade_follows_its_rule(near):
    """Each condition of the rule alone takes the grade down."""
    first = near.optima[0]
    top = float(near.table.C_R.max())

    def changed(**values) -> tuple[dict, ...]:
        return ({**first, **values},)

    N = first["N"]["value"]
    wide = {"value": N, "ci": [N / 3, 3 * N], "level": 0.9}
    tight = {"value": N, "ci": [N / 1.9, 1.9 * N], "level": 0.9}
    weak = types.SimpleNamespace(name="a", status="weakly_identified")
    other = types.SimpleNamespace(name="E", status="weakly_identified")
    assert told(near, optima=changed(N=tight), verdicts=(other,)).grade == "good"
    assert told(near, optima=changed(N=wide), verdicts=()).grade == "fair"
    assert told(near, optima=changed(N={**wide, "ci": None}), verdicts=()).grade == "fair"
    assert told(near, optima=changed(C=9.9 * top), verdicts=()).grade == "good"
    assert told(near, optima=changed(C=10.1 * top), verdicts=()).grade == "fair"
    assert told(near, verdicts=(weak,)).grade == "fair"
    assert told(near, held_out_rmse=None, verdicts=()).grade == "fair"
    assert told(near, isoflop="no budgets", isoflop_draws=None, verdicts=()).grade == "fair"
    assert told(near, warnings=(warning("misfit", "It misses."),), verdicts=()).grade == "grave"
    assert told(near, warnings=(warning("outliers", "2 rows."),), verdicts=()).grade == "good"
    unknown = {"value": None, "ci": None, "level": 0.9}
    lost = told(near, optima=changed(N=unknown, D=unknown, loss=unknown), verdicts=())
    assert (lost.grade, lost.train) == ("grave", answer.NOTHING)


def test_a_short_range_of_compute_reaches_less_far(sweep):
    """Two budgets 2.5 times apart: four times beyond the larger is further than the runs themselves reach."""
    frame = sweep(noise=0.003)
    analysis = analyze(table_from_frame(frame[frame["C"] < 6e11]), target_flops=[2e12], resamples=100, thorough=False)
    assert told(analysis, held_out_rmse=0.01, verdicts=(), warnings=()).grade == "fair"
    nearer = ({**analysis.optima[0], "C": 1.2e12},)
    assert told(analysis, held_out_rmse=0.01, verdicts=(), warnings=(), optima=nearer).grade == "good"
    assert "too few budgets to hold one out" in told(analysis, verdicts=()).trust


def test_cells_are_next_where_they_are_cheaper_than_a_doubtful_run(near):
    first = near.optima[0]
    doubtful = ({**first, "N": {**first["N"], "ci": None}},)
    cells = {"cells": [], "flops": 0.9 * first["C"], "said": "3 further cells."}
    assert told(near, optima=doubtful, next_cells=cells).next.endswith("3 further cells.")
    assert told(near, next_cells=cells).next.startswith("Next: train that run")
    dear = {**cells, "flops": 1.1 * first["C"]}
    assert told(near, optima=doubtful, next_cells=dear).next.startswith("Next: train that run")


def test_a_law_without_an_optimum_has_an_answer_too(near):
    law = dataclasses.replace(near.fit.law, name="shapely")
    fit = dataclasses.replace(near.fit, law=law)
    said = told(near, bootstrap=dataclasses.replace(near.bootstrap, fit=fit), optima=())
    assert said.train.startswith("The shapely law is not one of N and D alone")
    assert said.grade == "grave"


def test_what_disagrees_is_named_with_its_numbers(near):
    apart = warning("approaches_disagree", "Far apart.", approaches=["approach2", "approach3"], gap=0.1)
    said = told(near, warnings=(apart,), verdicts=(types.SimpleNamespace(name="E", status="at_bound"),))
    assert said.trust.startswith("Not settled: Approaches 2 and 3 disagree on the exponent of N* (")
    second = exponents(near)["approach2"][0]
    assert f"({answer.spoken(second)} and {answer.spoken(near.local_slope)})" in said.trust
    size = answer.sizes(near)["2"]
    assert size["value"] == pytest.approx(near.isoflop.N_power.at(near.optima[0]["C"])[0, 0])
    assert size["ci"][0] < size["value"] < size["ci"][1]
    assert f"{answer.spoken(size, si)} parameters by Approach 2" in said.trust
    assert said.trust.endswith("the runs do not fix E.")
    ends = sorted((size["value"], near.optima[0]["N"]["value"]))
    assert said.next.endswith(f"plan for any size from {si(ends[0])} to {si(ends[1])} parameters.")
    assert report.summary(dataclasses.replace(near, warnings=(apart,))).endswith(said.next)


def test_an_approach_without_an_interval_checks_nothing(near):
    """Neither does it agree, nor does it disagree: only those that were compared are named."""
    silent = dataclasses.replace(near, isoflop_draws=None)
    said = told(silent, verdicts=())
    assert "only Approach 3 gives an exponent with an interval, so that nothing checks it" in said.trust
    assert said.grade == "fair"


def test_the_law_that_several_together_beat_is_in_doubt(near):
    better = types.SimpleNamespace(nested_rmse=0.4 * near.held_out_rmse, held_out=2)
    said = told(near, selection=better, verdicts=())
    assert said.grade == "fair"
    assert "so that this fit is in doubt" in said.trust
    alike = types.SimpleNamespace(nested_rmse=0.6 * near.held_out_rmse, held_out=1)
    assert told(near, selection=alike, verdicts=()).grade == "good"


def test_the_law_that_forecasts_best_is_named_where_approaches_disagree(near):
    apart = warning("approaches_disagree", "Far apart.", approaches=["approach2", "approach3"], gap=0.1)
    rows = (
        {"what": "weighting", "setting": "in proportion to C", "a": 0.61},
        {"what": "law", "setting": "tied", "a": 0.5},
    )

    def following(law: str, weighting: str) -> str:
        best = types.SimpleNamespace(law=types.SimpleNamespace(name=law), weighting=weighting)
        found = types.SimpleNamespace(nested_rmse=1.0, held_out=1, choice=types.SimpleNamespace(candidate=best))
        return told(near, warnings=(apart,), verdicts=(), selection=found, sensitivity=rows).next

    assert "tied forecasts best, and gives an exponent of 0.500" in following("tied", "equal")
    assert "in proportion to compute, and gives an exponent of 0.610" in following("chinchilla", "compute")
    assert "forecasts best" not in following("chinchilla", "equal")


def test_limits_that_were_given_are_in_the_answer(near):
    """Where tokens are too few, the run recommended is the one with few; a limit that does not bind changes nothing."""
    D = near.optima[0]["D"]["value"]
    few = dataclasses.replace(near, data_limited=tuple(decisions.data_limited(near, D / 20)))
    said = told(few, verdicts=())
    assert said.train.startswith(f"With 1e12 FLOPs and {si(D / 20)} unique tokens, train ")
    assert f"on {answer.spoken(few.data_limited[0]['D'], si)} tokens (4 [" in said.train
    enough = dataclasses.replace(near, data_limited=tuple(decisions.data_limited(near, 10 * D)))
    assert told(enough, verdicts=()) == told(near, verdicts=())
    served = dataclasses.replace(near, inference=tuple(decisions.inference(near, 1e9)))
    assert f"to serve 1B tokens as well, {answer.spoken(served.inference[0]['N'], si)} parameters" in told(served).train
    both = dataclasses.replace(few, inference=served.inference)
    assert "to serve" not in told(both).train  # those tokens are all new, and there are not so many


def test_what_to_do_depends_on_the_facts_of_a_warning():
    def do(code: str, **facts) -> tuple[str, str]:
        ((group, ((_, said),)),) = remedies.grouped([warning(code, ".", **facts)])
        return group, said

    assert do("extrapolation", C=1.0, factor=2.0)[1] == remedies.NEAR.do
    assert do("extrapolation", C=1.0, factor=20.0)[1].startswith("Train one run on the way")
    assert do("weakly_identified", approach=1, failed=9)[1] == remedies.NO_SLOPE[1]
    assert do("weakly_identified", parameters={"E": {}})[1].startswith("Do not quote it as a number")
    assert do("parameter_at_bound", parameters={"R_N": {}}) == (remedies.LIMIT, remedies.REPEATED.do)
    assert do("parameter_at_bound", parameters={"R_N": {}, "E": {}})[0] == remedies.WRONG


def test_every_warning_of_the_analysis_has_a_remedy():
    """Codes are read from the source: whoever adds one must say what to do about it."""
    codes = set()
    for path in MODULES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "warning":
                codes |= {code.value for code in node.args[:1] if isinstance(code, ast.Constant)}
    # Those that are passed by name, of the statuses of budgets.
    codes |= {"optimum_at_edge", "too_few_points", "not_bracketed"}
    assert len(codes) > 10
    assert codes <= set(remedies.REMEDIES)
    for remedy in remedies.REMEDIES.values():
        assert remedy.group in remedies.GROUPS
        assert remedy.do[0].isupper()
        assert remedy.do.endswith(".")


def test_warnings_are_shown_by_gravity_and_none_is_lost():
    found = [warning(code, f"{code}.") for code in ("outliers", "of a later version", "extrapolation", "misfit")]
    groups = remedies.grouped(found)
    assert [group for group, _ in groups] == list(remedies.GROUPS)
    assert [[entry["code"] for entry, _ in inside] for _, inside in groups] == [
        ["misfit"],
        ["of a later version", "extrapolation"],
        ["outliers"],
    ]
    assert remedies.gravest(found)[0]["code"] == "misfit"
    assert remedies.gravest(found[:3]) is None
    both = [warning("misfit", "."), warning("approaches_disagree", ".")]
    assert remedies.gravest(both)[0]["code"] == "approaches_disagree"


def test_the_checklist_says_what_the_table_tells_and_what_not(near, sweep):
    items = {entry["item"]: entry["value"] for entry in checklist(near)}
    assert {entry["part"] for entry in checklist(near)} == {
        "Hypothesis",
        "Training set-up",
        "Data collection",
        "Fitting",
    }
    assert items["Form of the law"] == near.fit.law.equation
    assert f"{near.fit.value:.9g}" in items["Objective"]
    assert items["SHA-256 of the table"] == near.table.sha256
    assert items["Tokenizer and vocabulary"] == NOT_TOLD
    assert items["Learning rate, and how it changes with size"] == NOT_TOLD
    assert items["Number of runs"] == "28 rows used, 28 independent of each other"
    assert "100 bootstrap resamples" in items["Intervals"]

    # "lr" is a part of peak_lr, and not of slr or of a run's name
    more = sweep(noise=0.003).assign(peak_lr=1e-3, slr=0, tokenizer="bpe", batch_tokens=2**16)
    analysis = analyze(table_from_frame(more, exclude=["C < 3e11 because too short"]), resamples=100, thorough=False)
    items = {entry["item"]: entry["value"] for entry in checklist(analysis, {"said": ["Tuned."], "rows": []})}
    assert items["Learning rate, and how it changes with size"] == "told by the column peak_lr"
    assert items["Tokenizer and vocabulary"] == "told by the column tokenizer"
    assert items["Batch size"] == "told by the column batch_tokens"
    assert items["Whether the learning rates were tuned"] == "Tuned."
    assert items["Rows left out, and why"].startswith("7 of 28 rows: excluded: too short")

    run = {"data": {"sequence_length": 64, "store": "abc"}, "schedule": {"kind": "cosine", "warmup_steps": 5}}
    items = {entry["item"]: entry["value"] for entry in checklist(near, None, run, ["Recipe: small"])}
    assert items["Context length"].startswith("sequence_length 64 (configuration of the next run")
    assert items["Schedule: warm-up and decay"].startswith("kind cosine, warmup_steps 5")
    assert items["Notes of the sweep"] == "Recipe: small."
    assert items["Tokenizer and vocabulary"] == NOT_TOLD


def test_the_digest_is_of_the_code_and_its_names(tmp_path, monkeypatch):
    found = versions.versions()
    assert found["numpy"] == importlib.metadata.version("numpy")
    assert set(found) == {"python", "numpy", "scipy", "pandas", "matplotlib", "scaling", "code_sha256"}
    whole = versions.code_digest()
    assert found["code_sha256"] == whole
    assert len(bytes.fromhex(whole)) == hashlib.sha256().digest_size

    copy = tmp_path / "analysis"
    shutil.copytree(MODULES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(versions, "__file__", str(copy / "reporting" / "versions.py"))
    assert versions.code_digest() == whole  # where the code lies does not count
    (copy / "note.txt").write_text("no code")
    assert versions.code_digest() == whole
    (copy / "laws" / "law.py").open("a").write("#")
    changed = versions.code_digest()
    assert changed != whole
    (copy / "laws" / "law.py").rename(copy / "laws" / "rule.py")
    assert versions.code_digest() not in (whole, changed)


def test_factors_and_names_read_well():
    assert [times(x) for x in (1.0, 2.5, 33.333, 999.4, 999.6, 1666.7, 123456.0)] == [
        "1",
        "2.5",
        "33.3",
        "999",
        "1,000",
        "1,670",
        "123,000",
    ]
    assert symbol("alpha") == r"$\alpha$"
    assert symbol("R_D") == "$R_{D}$"
    assert symbol("alpha_N") == r"$\alpha_{N}$"
    assert symbol("k") == "$k$"
