"""What else a sweep comes to: a rule of learning rates, laws side by side, a second pass. Over simulated runs."""

import collections
import functools
import json
import math
import pathlib

import numpy as np
import pandas as pd
import pytest

from scaling import conclusions, study
from scaling.analysis.analyze import analyze
from scaling.analysis.rates import find_optima
from scaling.analysis.report import report_dict
from scaling.analysis.table import table_from_frame
from scaling.data.token_store import Split, TokenStore
from scaling.errors import InputError
from scaling.files import read_json, write_json
from scaling.models.counts import counts
from scaling.rules import read_rule
from scaling.runs import run_id, run_to_dict
from scaling.study import run_study
from scaling.sweeps.config import sweep_config
from scaling.sweeps.tasks import Way
from scaling.sweeps.texts import Text
from scaling.sweeps.vary import over, product
from scaling.sweeps.workdir import read_sweep, run_directory

BASE = {
    "data": {"source": "s", "tokenizer": "bytes", "sequence_length": 64, "eval_windows": 32},
    "model": {"tied_embeddings": True, "output_init": "zero"},
    "recipe": "small",
}
GRID = {"budgets": (2e11, 5e11, 1.25e12), "sizes": 6, "prior_flops": 5e11, "prior_size": 6e4}


def texts(source="some:text"):
    split = Split(10**9, documents=1, bytes=10**9)
    store = TokenStore(pathlib.Path("/s"), "cafe", source, "bytes", 256, 0, {}, {"train": split, "validation": split})
    return collections.defaultdict(lambda: Text(store), {None: Text(store)})


def law(run):
    """L = 1 + 55 / N^.4 + 128 / D^.36, and what a rate off 2 N^-.5 costs: .02 for a factor of e, squared."""
    N = counts(run.model, 64, run.tokens)["N"]
    off = math.log(run.optimizer.peak_lr * math.sqrt(N) / 2)
    swiglu = 0.98 if run.model.activation == "swiglu" else 1.0
    return swiglu * (1 + 55 / N**0.4 + 128 / run.tokens**0.36) + 0.02 * off**2


def simulated(workdir, sweep, cells, way, loss=law):
    for cell in cells:
        directory, run = run_directory(workdir, cell.id), cell.run
        if (directory / "result.json").exists():
            continue
        value = loss(run)
        result = {"run": run_id(run), "loss": value, "loss_stderr": 0.01, "unique_tokens": run.tokens, "epochs": 0.1}
        write_json(directory / "run.json", run_to_dict(run))
        write_json(directory / "result.json", {**result, "losses": {"validation": {"loss": value}}, "timing": {}})
        line = {"step": run.steps, "tokens": run.tokens, "eval": {"validation": {"loss": value, "stderr": 0.01}}}
        (directory / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return []


def numbers_only(analysis, out_dir, *, next_runs, prediction, rates, notes, title):
    """In the place of write_report: its figures take seconds, and have tests of their own."""
    write_json(out_dir / "report.json", {**report_dict(analysis, prediction, rates), "notes": list(notes)})
    write_json(out_dir / "next_run.json", next_runs)


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setattr(study, "execute", simulated)
    monkeypatch.setattr(conclusions, "execute", simulated)
    monkeypatch.setattr(conclusions.report, "write_report", numbers_only)
    monkeypatch.setattr(conclusions, "analyze", functools.partial(analyze, resamples=100))

    def start(refine=False, source="some:text", **changes):
        done = run_study(
            sweep_config({**BASE, **changes}), texts(source), tmp_path / "s", Way(), refine, lambda line: None
        )
        return done, tmp_path / "s"

    return start


DURATIONS = {"sizes": (2e4, 5e4, 1.2e5, 3e5), "tokens_per_parameter": (15.0,)}


def test_a_sweep_over_rates_comes_to_their_rule(run):
    """The simulated optimum is 2 N^-.5 exactly, and the parabola in ln lr is exact: only rounding is left."""
    done, workdir = run(durations=DURATIONS, vary=over("lr_factor", (0.1, 0.3, 1.0, 3.0, 9.0)))
    rule = read_rule(workdir / "report" / "rule.json")
    assert rule.base == "small"
    for N in (2e4, 1e5, 3e5):
        assert rule.peak_lr(N, 512) == pytest.approx(2 / math.sqrt(N), rel=1e-6)
    assert done.report == workdir / "report" / "tuning.html"
    assert "--config.recipe=rule:" in done.said[0]
    assert not done.analyses


def test_the_rule_is_followed_and_the_report_says_so(run, tmp_path):
    run(durations=DURATIONS, vary=over("lr_factor", (0.1, 0.3, 1.0, 3.0, 9.0)))
    (tmp_path / "s").rename(tmp_path / "tuned")
    rule = tmp_path / "tuned" / "report" / "rule.json"
    _, workdir = run(grid=GRID, recipe=f"rule:{rule}")
    for cell in read_sweep(workdir).cells:
        N = counts(cell.run.model, 64, 1)["N"]
        assert cell.run.optimizer.peak_lr == pytest.approx(2 / math.sqrt(N), rel=1e-6)
    rates = read_json(workdir / "report" / "report.json")["learning_rates"]
    assert rates["tuned"]
    assert all(row["ratio"] == pytest.approx(1) for row in rates["rows"])


def test_a_rule_that_was_edited_is_another_sweep(run, tmp_path):
    run(durations=DURATIONS, vary=over("lr_factor", (0.1, 0.3, 1.0, 3.0, 9.0)))
    (tmp_path / "s").rename(tmp_path / "tuned")
    path = tmp_path / "tuned" / "report" / "rule.json"
    run(grid=GRID, recipe=f"rule:{path}")
    rule = read_json(path)
    write_json(path, {**rule, "a": rule["a"] + 0.5})
    with pytest.raises(InputError, match="holds another sweep: content of rule:"):
        run(grid=GRID, recipe=f"rule:{path}")


def test_rates_beside_another_field_come_to_laws_not_to_a_rule(run):
    """Depths would otherwise be taken for sizes."""
    done, _ = run(grid=GRID, vary=product(over("model.n_layers", (3, 6)), over("lr_factor", (0.5, 1.0, 2.0))))
    assert len(done.analyses) == 6


def test_one_factor_is_no_sweep_over_rates(run):
    done, _ = run(grid=GRID, vary=over("lr_factor", (0.5,)))
    assert len(done.analyses) == 1


def test_a_table_of_several_variants_is_no_tuning_sweep(run):
    _, workdir = run(grid=GRID, vary=product(over("model.n_layers", (3, 6)), over("lr_factor", (0.5, 1.0, 2.0))))
    with pytest.raises(InputError, match=r"the runs are of 2 variants: 'model.n_layers=3', 'model.n_layers=6'"):
        find_optima(pd.read_csv(workdir / "results.csv", dtype=str))
    warnings = table_from_frame(pd.read_csv(workdir / "results.csv")).warnings
    assert [warning["code"] for warning in warnings if warning["code"] == "mixed_variants"] == ["mixed_variants"]


def test_variants_of_the_text_are_not_compared_by_their_losses(run):
    done, workdir = run(grid=GRID, vary=over("data.sequence_length", (64, 32)))
    assert len(done.analyses) == 2
    assert sum("their losses are not compared" in line for line in done.said) == 1
    assert "compute_multiplier" not in pd.read_csv(workdir / "report" / "variants.csv")


def test_variants_may_be_added_to_a_sweep(run):
    """Its first cells keep their place, as the config without a variant."""
    run(grid=GRID)
    done, workdir = run(grid=GRID, vary=over("model.activation", ("gelu", "swiglu")))
    assert set(done.analyses) == {"", "model.activation=gelu", "model.activation=swiglu"}
    sweep = read_sweep(workdir)
    assert len({cell.id for cell in sweep.grid}) == 36
    results = done.results[done.results["role"] == "grid"]
    plain, gelu = (results[results["variant"] == name] for name in ("", "model.activation=gelu"))
    assert list(plain["run"]) == list(gelu["run"])


def test_rates_that_do_not_bracket_their_optimum_are_refused_with_what_is_missing(run):
    with pytest.raises(InputError, match=r"no size has its optimum bracketed.*needs"):
        run(durations=DURATIONS, vary=over("lr_factor", (0.001, 0.002, 0.004, 0.008)))


def test_variants_get_a_law_each_and_are_compared(run):
    done, workdir = run(grid=GRID, vary=product(over("model.activation", ("gelu", "swiglu"))))
    assert set(done.analyses) == {"model.activation=gelu", "model.activation=swiglu"}
    table = pd.read_csv(workdir / "report" / "variants.csv").set_index("variant")
    better = table.loc["model.activation=swiglu", "lowest_loss"] / table.loc["model.activation=gelu", "lowest_loss"]
    assert better == pytest.approx(0.98, abs=0.005)
    row = table.loc["model.activation=swiglu"]
    for name in ("compute_multiplier", "N_exponent_approach3", "loss_at_target"):
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"], name
    assert row["compute_multiplier_high"] < 1
    assert any("model.activation=swiglu is the more efficient" in line for line in done.said)
    for number, name in enumerate(done.analyses):
        report = read_json(workdir / "report" / f"variant{number}" / "report.json")
        assert report["data"]["used"] == 18, name
        next_run = read_json(workdir / "report" / f"variant{number}" / "next_run.json")[0]["run"]
        assert next_run["model"].get("activation", "gelu") == name.split("=")[1]


def test_a_variant_too_small_for_a_law_says_so_and_the_others_stand(run):
    points = ((2e4, 3e5), (5e4, 3e5))
    done, workdir = run(points=points, vary=over("model.activation", ("gelu", "swiglu")))
    assert not done.analyses
    assert sum("no law: " in line for line in done.said) == 2
    assert (workdir / "report" / "variants.csv").exists()


def test_a_second_pass_adds_sizes_around_the_optima_and_no_run_is_done_twice(run):
    run(grid=GRID)
    before = {cell.id for cell in read_sweep(run(grid=GRID)[1]).cells}
    done, workdir = run(refine=True, grid=GRID)
    sweep = read_sweep(workdir)
    added = [cell for cell in sweep.grid if cell.id not in before]
    assert added
    assert all(cell.refined for cell in added)
    assert not any(cell.refined for cell in sweep.grid if cell.id in before)
    optima = {
        budget["C"]: budget["N_opt"] for budget in read_json(workdir / "report" / "report.json")["approach2"]["budgets"]
    }
    for cell in added:
        near = min(optima, key=lambda C, budget=cell.budget: abs(C - budget))
        # One step of the ladder to either side: (3 x 8)^(1/5) = 1.9, and the shape may miss its size by 1.31.
        assert abs(math.log(counts(cell.run.model, 64, 1)["N"] / optima[near])) < math.log(1.9 * 1.31)
    notes = read_json(workdir / "report" / "report.json")["notes"]
    assert any(note.startswith(f"{len(added)} of the runs were added by a second pass") for note in notes)
    assert len(done.results) == len(sweep.cells)


@pytest.mark.parametrize(("filters", "told"), [("", True), (" | min_bytes:2", False)])
def test_the_best_loss_of_a_synthetic_text_is_told_where_it_is_known(run, filters, told):
    _, workdir = run(grid=GRID, source=f"synthetic:tokens=1e6,vocab=16{filters}")
    notes = read_json(workdir / "report" / "report.json")["notes"]
    assert any("no model's expected loss is below" in note for note in notes) == told


def test_a_second_pass_needs_budgets(run):
    with pytest.raises(InputError, match="--refine looks for the optima of isoFLOP budgets"):
        run(refine=True, durations=DURATIONS)


def test_durations_come_to_a_law(run):
    """Approach 2 has no budgets; Approach 3 finds the law, whose rates are off by their own rule."""
    sizes = {"sizes": (2e4, 5e4, 1.2e5, 3e5), "tokens": (3e5, 6e5, 1.2e6, 2.4e6)}
    _, workdir = run(durations=sizes)
    report = read_json(workdir / "report" / "report.json")
    assert report["data"]["used"] == 16
    assert "skipped" in report["approach2"]
    assert np.isfinite(report["approach3"]["N_exponent"]["value"])
    assert "skipped" in report["approach1"]  # there is one evaluation a run here, and no curve
