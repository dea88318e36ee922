"""The Python API: one function beside the module it stands for, what is refused, and the guide's worked example."""

import inspect
import pathlib
import re

import numpy as np
import pandas as pd
import pytest

from scaling.analysis import api, isoflop, table
from scaling.analysis.fitting import ABSOLUTE_LOG, SQUARES_LOG, fit
from scaling.analysis.laws import CHINCHILLA, LAWS, Inputs
from scaling.analysis.reporting import remedies
from scaling.errors import InputError

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "analysis.md"


def good(sweep) -> pd.DataFrame:
    return sweep(noise=0.005)


def test_a_path_a_frame_and_a_table_are_the_same_runs(sweep, tmp_path):
    frame = good(sweep)
    frame.to_csv(tmp_path / "runs.csv", index=False)
    half = len(frame) // 2
    frame[:half].to_csv(tmp_path / "a.csv", index=False)
    frame[half:].to_csv(tmp_path / "b.csv", index=False)
    path = tmp_path / "runs.csv"
    values = [
        api.fit_law(runs).value
        for runs in (path, str(path), [tmp_path / "a.csv", tmp_path / "b.csv"], frame, api.read_runs(frame))
    ]
    assert values == [values[0]] * 5
    inputs = Inputs(frame["N"].to_numpy(), frame["D"].to_numpy())
    assert values[0] == fit(CHINCHILLA, inputs, frame["loss"].to_numpy()).value


def test_every_function_says_units_or_shapes_errors_and_source():
    """The docstrings are the reference: each names the error, and a paper unless it fits nothing."""
    functions = {name: getattr(api, name) for name in api.__all__ if inspect.isfunction(getattr(api, name))}
    assert functions.keys() == {
        "bootstrap", "compare", "envelope", "fit_law", "isoflop", "optimum", "read_runs", "report"
    }  # fmt: skip
    for name, function in functions.items():
        assert "InputError" in function.__doc__, name
        assert name in ("read_runs", "report") or re.search(r"\b(19|20)\d\d\b", function.__doc__), name
        for argument in inspect.signature(function).parameters.values():
            assert argument.annotation is not inspect.Parameter.empty, (name, argument)


# Integers, read-only arrays, units


def test_integer_columns_never_overflow():
    """6ND of 70e9 parameters and 15e12 tokens is 6.3e24, which no int64 holds."""
    frame = pd.DataFrame({"N": [70_000_000_000, 8_000_000_000], "D": [15_000_000_000_000] * 2, "loss": [2, 3]})
    assert frame.dtypes.eq(np.int64).all()
    runs = api.read_runs(frame)
    np.testing.assert_array_equal(runs.C_R, [6.3e24, 7.2e23])
    assert runs.loss_R.dtype == np.float64


def test_integers_and_floats_have_one_fit(sweep):
    frame = good(sweep).astype({"N": np.int64, "D": np.int64})
    ints, floats = api.fit_law(frame), api.fit_law(frame.astype({"N": float, "D": float}))
    assert ints.parameters == floats.parameters


def test_read_only_arrays_are_fine_and_inputs_stay_as_they_were(sweep):
    frame = good(sweep)
    columns = {name: frame[name].to_numpy(copy=True) for name in ("N", "D", "C", "loss")}
    for values in columns.values():
        values.flags.writeable = False
    locked = pd.DataFrame(columns, copy=False)
    before = locked.copy()
    law = api.fit_law(locked)
    assert law.value == api.fit_law(frame).value
    drawn = api.bootstrap(law, locked, resamples=50)
    api.optimum(drawn, 1e13, runs=locked)
    assert api.isoflop(locked).N_power.exponent_B[0] == api.isoflop(frame).N_power.exponent_B[0]
    pd.testing.assert_frame_equal(locked, before)


# What is refused, by row and column


@pytest.mark.parametrize("name", ["N", "D", "C", "loss"])
@pytest.mark.parametrize(
    ("bad", "said"), [(None, "is missing in row 3"), (0.0, "=0.0 in row 3 is not"), (-1.0, "=-1.0 in row 3 is not")]
)
def test_a_missing_or_non_positive_number_is_refused(sweep, name, bad, said):
    frame = good(sweep)
    frame.loc[3, name] = bad
    with pytest.raises(InputError, match=rf"{name}{'' if said.startswith('=') else ' '}{said}"):
        api.fit_law(frame)
    # With a status that says why, the row is left out, and told.
    stopped = frame.assign(status=["done"] * 3 + ["failed"] + ["done"] * (len(frame) - 4), reason="it diverged")
    runs = api.read_runs(stopped)
    assert len(runs.N_R) == len(frame) - 1
    assert runs.dropped == ({"row": 3, "reason": "status failed: it diverged"},)


@pytest.mark.parametrize("call", [api.fit_law, api.isoflop, lambda runs: api.report(runs, "nowhere")])
def test_every_call_refuses_a_table_without_its_columns(sweep, call):
    with pytest.raises(InputError, match="no column D"):
        call(good(sweep).drop(columns="D"))


def test_fewer_runs_than_parameters_are_refused(sweep):
    five = good(sweep).iloc[[0, 3, 8, 16, 25]]
    with pytest.raises(InputError, match=r"5 runs cannot determine the five parameters of L = E \+ A"):
        api.fit_law(five)
    with pytest.raises(InputError, match="cannot determine"):
        api.report(five, "nowhere")
    assert len(api.fit_law(five, "tied").residual_R) == 5  # four parameters


def test_one_budget_is_no_isoflop_sweep(sweep):
    frame = good(sweep)
    one = frame[frame["C"] == frame["C"].max()]
    with pytest.raises(InputError, match=r"one isoFLOP budget, C = 2\.5e\+12 .*add runs at another C"):
        api.isoflop(one)
    assert len(isoflop.isoflop(api.read_runs(one)).budgets) == 1  # the module itself gives its minimum
    with pytest.raises(InputError, match="no isoFLOP budgets"):
        api.isoflop(frame.iloc[[0, 8, 16]])
    larger = frame[(frame["N"] >= frame.groupby("C")["N"].transform("median")) | (frame["C"] == frame["C"].max())]
    with pytest.raises(InputError, match=r"1 of 4 isoFLOP budgets have a minimum .*: edge"):
        api.isoflop(larger)


def test_two_budgets_are_enough(sweep, truth):
    frame = sweep()
    found = api.isoflop(frame[frame["C"] >= 1.2e12])
    # Without noise the shared valley is the law's: the exponent of two minima is good to 1 %.
    assert found.N_power.exponent_B[0] == pytest.approx(truth.exponent, rel=0.01)


def test_an_unknown_law_unit_or_objective_names_the_nearest(sweep):
    frame = good(sweep)
    with pytest.raises(InputError, match="did you mean chinchilla"):
        api.fit_law(frame, "chinchila")
    with pytest.raises(InputError, match="no column unique_tokens, which the data_constrained law needs"):
        api.fit_law(frame, "data_constrained")
    with pytest.raises(InputError, match="did you mean trunks"):
        api.bootstrap(api.fit_law(frame), frame, unit="trunk")
    with pytest.raises(InputError, match="needs a column trunk"):
        api.bootstrap(api.fit_law(frame), frame, unit="trunks")
    with pytest.raises(InputError, match="did you mean huber_log"):
        api.Objective("huberlog")


def test_an_objective_by_its_kind_is_the_objective(sweep):
    frame = good(sweep)
    assert api.fit_law(frame, objective="absolute_log").value == api.fit_law(frame, objective=ABSOLUTE_LOG).value


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda frame: api.read_runs(None), "runs=None is no table"),
        (lambda frame: api.read_runs(pd.concat([frame, frame[["N"]]], axis=1)), "two columns are named 'N'"),
        (lambda frame: api.read_runs(frame, exclude="C < 2"), "--exclude='C < 2': no reason is given"),
        (lambda frame: api.fit_law(frame, 3), "law=3 is no law"),
        (lambda frame: api.fit_law(frame, seed=-1), "seed=-1 is not a whole number"),
        (lambda frame: api.bootstrap(api.fit_law(frame), frame, resamples=1e2), "resamples=100.0 is not a whole"),
        (lambda frame: api.optimum(api.fit_law(frame), "1e13"), "C='1e13' is not a positive number of FLOPs"),
        (lambda frame: api.compare(frame, frame, names=("one",)), "two different names are needed"),
        (lambda frame: api.compare(frame, frame, names="ab"), "names='ab': two different names are needed"),
        (lambda frame: api.report(frame, "nowhere", target_flops="much"), "target_flops='much' is not a positive"),
    ],
)
def test_what_an_argument_cannot_be_is_one_sentence(sweep, call, said):
    with pytest.raises(InputError, match=re.escape(said)):
        call(good(sweep))


def test_an_exclusion_alone_is_a_list_of_one(sweep):
    frame = good(sweep)
    smallest = f"C <= {frame['C'].min() * 1.01} because short"
    alone, listed = api.read_runs(frame, exclude=smallest), api.read_runs(frame, exclude=[smallest])
    assert alone.dropped == listed.dropped
    assert len(alone.N_R) < len(frame)


def test_noise_of_a_known_deviation_is_drawn(sweep):
    """Twice the noise, twice the spread of alpha: linear to 10 % at these sizes, and the draws are the same."""
    frame = good(sweep)
    law = api.fit_law(frame, objective="squares_log")
    spread = [
        api.bootstrap(law, frame, unit="noise", sd=sd, resamples=50).of(lambda theta: theta[:, 3]).std()
        for sd in (0.001, 0.002)
    ]
    assert spread[1] == pytest.approx(2 * spread[0], rel=0.1)
    with pytest.raises(InputError, match="unit='noise' without sd"):
        api.bootstrap(law, frame, unit="noise")


def test_a_bootstrap_of_other_runs_is_refused(sweep):
    frame = good(sweep)
    law = api.fit_law(frame)
    for other in (frame.iloc[1:], frame.assign(loss=frame["loss"] * 1.001)):
        with pytest.raises(InputError, match="not the runs that the law was fitted to"):
            api.bootstrap(law, other)


# Optima


def test_the_optimum_is_the_closed_form_and_its_interval_holds_it(sweep, truth):
    frame = good(sweep)
    law = api.fit_law(sweep())
    for runs in (None, frame):  # the table's C is 6ND
        best = api.optimum(law, 1e13, runs)
        # 1e-5: the noise-free fit is good to 1e-6 of the exponents, over a factor of 100 beyond the middle of C.
        assert best["N"]["value"] == pytest.approx(truth.N_opt(1e13), rel=1e-5)
        assert 6 * best["N"]["value"] * best["D"]["value"] == pytest.approx(1e13, rel=1e-9)
        assert best["loss"]["value"] == pytest.approx(truth.loss(best["N"]["value"], best["D"]["value"]), rel=1e-7)
        assert best["N"]["ci"] is None
    noisy = api.fit_law(frame)
    drawn = api.bootstrap(noisy, frame, resamples=200)
    with_draws = api.optimum(drawn, 1e13)
    for name in ("N", "D", "loss"):
        low, high = with_draws[name]["ci"]
        assert low < with_draws[name]["value"] < high
        assert with_draws[name]["value"] == api.optimum(noisy, 1e13)[name]["value"]


def test_the_optimum_with_few_unique_tokens_is_larger_and_worse(sweep):
    law = api.fit_law(sweep())
    plain, limited = api.optimum(law, 1e13), api.optimum(law, 1e13, unique_tokens=1e6)
    assert limited["D"]["value"] == pytest.approx(4e6)  # four epochs are the most that this law can count as new
    assert limited["N"]["value"] > plain["N"]["value"]
    assert limited["loss"]["value"] > plain["loss"]["value"]


def test_what_has_no_optimum_is_refused(sweep):
    frame = good(sweep)
    law = api.fit_law(frame)
    for C in (0.0, -1e20, float("nan"), float("inf")):
        with pytest.raises(InputError, match="not a positive number of FLOPs"):
            api.optimum(law, C)
    with pytest.raises(InputError, match="compute law is not one of N and D"):
        api.optimum(api.fit_law(frame, LAWS["compute"]), 1e13)
    routed = frame.assign(n_experts=np.resize([1, 2, 4, 8, 16], len(frame)))
    with pytest.raises(InputError, match="moe law is not one of N and D"):
        api.optimum(api.fit_law(routed, "moe"), 1e13, runs=routed.drop(columns="D"))
    with pytest.raises(InputError, match=r"unique_tokens=0\.0 is not"):
        api.optimum(law, 1e13, unique_tokens=0.0)


# The other functions


def test_the_envelope_from_a_frame_and_from_files(training_curves, sweep, tmp_path):
    curves = training_curves()
    found = api.envelope(curves)
    curves.to_csv(tmp_path / "curves.csv", index=False)
    assert api.envelope(tmp_path / "curves.csv").N_power.exponent_B[0] == found.N_power.exponent_B[0]
    sweep().to_csv(tmp_path / "runs.csv", index=False)
    curves.drop(columns=["N", "C"]).to_csv(tmp_path / "bare.csv", index=False)
    bare = curves.drop(columns=["N", "C"])
    for given, runs in (
        (tmp_path / "bare.csv", tmp_path / "runs.csv"),
        (bare, sweep()),
        (bare, [tmp_path / "runs.csv"]),
        (bare, api.read_runs(sweep())),
    ):
        joined = api.envelope(given, runs=runs)
        assert joined.N_power.exponent_B[0] == pytest.approx(found.N_power.exponent_B[0], rel=1e-9)
    with pytest.raises(InputError, match="the curves do not tell N, D and C of each point"):
        api.envelope(bare)
    few = curves[curves["N"].isin(sorted(set(curves["N"]))[:2])]
    with pytest.raises(InputError, match="2 sizes; 3 are the least"):
        api.envelope(few)


def test_a_sweep_compared_with_itself_needs_the_same_compute(sweep):
    frame = good(sweep)
    found = api.compare(frame, frame, law="tied", names=("one", "two"), resamples=100)
    assert found.multiplier["value"] == pytest.approx(1.0, abs=1e-12)
    assert "two needs 1" in found.sentence()


def test_a_report_from_runs_and_from_an_analysis(sweep, tmp_path):
    asked = {"target_flops": [1e13], "resamples": 100, "thorough": False, "law": "tied"}
    analysis = api.report(good(sweep), tmp_path / "first", **asked)
    assert analysis.fit.law.name == "tied"
    api.report(analysis, tmp_path / "again", title="Again")
    for folder in ("first", "again"):
        assert (tmp_path / folder / "report.html").stat().st_size > 10_000
    assert "Again" in (tmp_path / "again" / "report.html").read_text()
    same = [(tmp_path / folder / "report.json").read_text() for folder in ("first", "again")]
    assert same[0] == same[1]
    with pytest.raises(InputError, match="an Analysis has its own resamples"):
        api.report(analysis, tmp_path / "third", resamples=10)


def test_a_report_reads_curves_and_takes_one_target(sweep, training_curves, tmp_path):
    training_curves().drop(columns=["N", "C"]).to_csv(tmp_path / "curves.csv", index=False)
    asked = {"target_flops": 1e13, "objective": "squares_log", "resamples": 100, "thorough": False}
    analysis = api.report(good(sweep), tmp_path / "out", curves=tmp_path / "curves.csv", **asked)
    assert analysis.target_flops == (1e13,)
    assert analysis.fit.objective == SQUARES_LOG
    found = api.envelope(tmp_path / "curves.csv", runs=good(sweep)).N_power.exponent_B[0]
    assert analysis.envelope.N_power.exponent_B[0] == found


# The guide


def test_the_guide_runs_as_written(tmp_path, monkeypatch, capsys):
    """Its code blocks, one after another, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 6
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), namespace)
    said = capsys.readouterr().out
    assert "L = E + A / N^alpha + B / D^beta" in said
    assert "For the same loss after needs 0." in said
    assert "loss is missing in row 1 (counting from 0)" in said
    # The truth of the example: exponent .37 / (.35 + .37); four deviations of its own interval's half width / 1.64.
    low, high = namespace["a"]["ci"]
    assert abs(namespace["a"]["value"] - 0.37 / 0.72) < 4 * (high - low) / 3.29
    assert (tmp_path / "report" / "report.html").exists()


def test_the_guide_explains_every_warning_and_every_law():
    text = GUIDE.read_text(encoding="utf-8")
    table_of_warnings = set(re.findall(r"^\| `([a-z_]+)` \|", text.split("## Warnings")[1], re.MULTILINE))
    source = "".join(path.read_text(encoding="utf-8") for path in pathlib.Path(table.__file__).parent.glob("*.py"))
    raised = set(re.findall(r'\bwarning\(\s*"([a-z_]+)"', source)) | {"optimum_at_edge", "not_bracketed"}
    assert table_of_warnings == raised == remedies.REMEDIES.keys()
    for name in LAWS:
        assert f"`{name}`" in text, name
    assert 150 <= len(text.splitlines()) <= 250
