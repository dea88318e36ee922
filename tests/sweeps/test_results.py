import dataclasses
import json
import math

import pandas as pd
import pytest

from scaling.models.counts import counts, parameters
from scaling.runs import run_to_dict
from scaling.sweeps import results as tables
from scaling.sweeps.cells import Cell, common, recommended_run
from scaling.sweeps.grid import make_grid
from scaling.sweeps.results import cell_status, collect, totals
from scaling.sweeps.status import status_rows, time_left
from scaling.sweeps.workdir import run_directory, write_sweep
from scaling.training.claims import Sightings
from scaling.training.failures import Failure

DONE, FAILED, RUNNING, STOPPED, MISSING = range(5)


def write_run(workdir, cell, losses, complete):
    """The files of a run as training writes them, with held-out losses after given shares of its steps."""
    directory = run_directory(workdir, cell.id)
    directory.mkdir(parents=True)
    (directory / "run.json").write_text(json.dumps(run_to_dict(cell.run)))
    lines = []
    for share, loss in losses.items():
        step = round(share * cell.run.steps)
        at = {"step": step, "tokens": step * cell.run.batch_tokens}
        lines.append({**at, "lr": 1e-3, "loss": 9.0, "grad_norm": 1.0})
        lines.append({**at, "eval": {"validation": {"loss": loss, "stderr": 0.1}}})
        timing = {"step": step, "seconds": {"compile": 1.0, "train": 30.0 * share}}
        with open(directory / "timing.jsonl", "a") as f:
            f.write(json.dumps(timing) + "\n")
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if complete:
        result = {
            "run": cell.id,
            "loss": list(losses.values())[-1],
            "loss_stderr": 0.1,
            "unique_tokens": cell.run.tokens,
            "epochs": 0.25,
            "timing": {"train_seconds": 30.0, "compile_seconds": 1.0, "mfu": None, "flops_per_second": 1e9},
        }
        (directory / "result.json").write_text(json.dumps(result))


@pytest.fixture
def sweep(tmp_path, make_config, make_texts):
    """A sweep of one cell in each state: done, failed, running (this process holds its claim), stopped, missing."""
    config, texts = make_config("small", grid__budgets=(5e10,)), make_texts()
    cells, dropped = make_grid(config, texts)
    test = Cell(recommended_run(common(config, texts, ()), 1e11, 3e4), 1e11, "prediction")
    sweep = write_sweep(tmp_path, config, texts, (*cells, test), dropped)
    write_run(tmp_path, sweep.cells[DONE], {0.1: 3.25, 1.0: 2.0 + 1 / 3}, complete=True)
    write_run(tmp_path, sweep.cells[FAILED], {0.1: 3.5}, complete=False)
    failure = Failure("not_finite", "step 7 of 9: loss nan, grad_norm 1.0", step=7).to_json()
    (run_directory(tmp_path, sweep.cells[FAILED].id) / "failure.json").write_text(json.dumps(failure))
    for state in (RUNNING, STOPPED):
        write_run(tmp_path, sweep.cells[state], {0.1: 3.0, 0.5: 2.5}, complete=False)
        held = Sightings(60.0).take(run_directory(tmp_path, sweep.cells[state].id))
        if state == STOPPED:
            held.release()
    return sweep


def test_a_row_a_cell_with_its_status_and_reason(sweep, tmp_path):
    results, _ = collect(tmp_path, sweep)
    assert results["run"].tolist() == [cell.id for cell in sweep.cells]
    assert results["status"].tolist() == ["done", "failed", "running", "missing", "missing"]
    assert results["reason"].tolist() == ["", "step 7 of 9: loss nan, grad_norm 1.0", "", "", ""]
    assert results["role"].tolist() == ["grid"] * 4 + ["prediction"]
    assert totals(results) == "1 done, 1 running, 1 failed, 2 missing"


def test_numbers_are_those_of_the_run_and_its_result(sweep, tmp_path):
    collect(tmp_path, sweep)
    results = pd.read_csv(tmp_path / "results.csv")
    for row, cell in zip(results.to_dict("records"), sweep.cells, strict=True):
        run = cell.run
        counted = counts(run.model, run.data.sequence_length, run.tokens)
        assert {name: row[name] for name in counted} == counted
        assert (row["D"], row["steps"], row["batch_tokens"]) == (run.tokens, run.steps, run.batch_tokens)
        assert (row["width"], row["depth"]) == (run.model.d_model, run.model.n_layers)
        assert (row["budget"], row["seed"], row["peak_lr"]) == (cell.budget, run.seed, run.optimizer.peak_lr)
    done, others = results.iloc[DONE], results.drop(index=DONE)
    assert (done["loss"], done["loss_stderr"], done["epochs"]) == (2.0 + 1 / 3, 0.1, 0.25)
    assert done["unique_tokens"] == sweep.cells[DONE].run.tokens
    assert (done["train_seconds"], done["flops_per_second"]) == (30.0, 1e9)
    assert others[["loss", "loss_stderr", "unique_tokens", "train_seconds"]].isna().all().all()


def test_curves_are_the_held_out_losses_of_every_run(sweep, tmp_path):
    collect(tmp_path, sweep)
    curves = pd.read_csv(tmp_path / "curves.csv")
    assert curves.columns.tolist() == ["run", "step", "N", "D", "C", "loss", "split"]
    assert set(curves["split"]) == {"validation"}
    cell = sweep.cells[DONE]
    points = curves[curves["run"] == cell.id].to_dict("records")
    assert [point["loss"] for point in points] == [3.25, 2.0 + 1 / 3]
    assert [point["step"] for point in points] == [round(0.1 * cell.run.steps), cell.run.steps]
    for point in points:
        counted = counts(cell.run.model, 64, point["step"] * cell.run.batch_tokens)
        assert (point["N"], point["D"], point["C"]) == (counted["N"], counted["D"], counted["C"])
    assert [(curves["run"] == cell.id).sum() for cell in sweep.cells] == [2, 1, 2, 2, 0]


def test_the_run_that_tests_the_law_is_in_the_results_and_not_in_the_curves(sweep, tmp_path):
    write_run(tmp_path, sweep.cells[-1], {1.0: 2.0}, complete=True)
    results, curves = collect(tmp_path, sweep)
    assert results[["status", "role"]].iloc[-1].tolist() == ["done", "prediction"]
    assert sweep.cells[-1].id not in set(curves["run"])


def test_a_line_that_is_still_being_written_is_not_read(sweep, tmp_path):
    path = run_directory(tmp_path, sweep.cells[RUNNING].id) / "metrics.jsonl"
    _, before = collect(tmp_path, sweep)
    with open(path, "a") as f:
        f.write('{"step": 99, "tokens": 9, "eval": {"validation": {"lo')
    _, after = collect(tmp_path, sweep)
    assert after.equals(before)


def test_without_any_run_the_tables_have_their_columns(tmp_path, make_config, make_texts):
    config, texts = make_config("small"), make_texts()
    sweep = write_sweep(tmp_path, config, texts, *make_grid(config, texts))
    results, curves = collect(tmp_path, sweep)
    assert set(results["status"]) == {"missing"}
    assert results["loss"].isna().all()
    assert pd.read_csv(tmp_path / "curves.csv").columns.tolist() == curves.columns.tolist()
    assert curves.empty


def test_a_result_stands_whatever_else_is_in_the_directory(sweep, tmp_path):
    """A failure that another try got over."""
    failure = Failure("killed", "x").to_json()
    (run_directory(tmp_path, sweep.cells[DONE].id) / "failure.json").write_text(json.dumps(failure))
    assert collect(tmp_path, sweep)[0]["status"][DONE] == "done"


@pytest.mark.parametrize("content", ['{"run": "d1', "[]", '{"run": "another", "loss": 1.0}', '{"loss": 1.0}', ""])
def test_what_is_no_result_of_the_run_is_never_read_as_one(sweep, tmp_path, content):
    """A file that is not whole, or of another run, copied there say: the cell has failed, and which file is told."""
    cell = sweep.cells[DONE]
    path = run_directory(tmp_path, cell.id) / "result.json"
    path.write_text(content)
    status, reason = cell_status(path.parent)
    assert status == "failed"
    assert str(path) in reason
    results, curves = collect(tmp_path, sweep)
    assert results[["status", "reason"]].iloc[DONE].tolist() == ["failed", reason]
    assert results[["loss", "train_seconds"]].iloc[DONE].isna().all()
    assert (curves["run"] == cell.id).sum() == 2  # what it measured on its way stands


def test_the_metrics_of_a_process_that_was_killed_when_it_had_recorded_its_result(sweep, tmp_path):
    """They are in the folder of its attempt, not yet moved up; a later one, which lost the run again, has others."""
    before = collect(tmp_path, sweep)[1]
    directory = run_directory(tmp_path, sweep.cells[DONE].id)
    result = json.loads((directory / "result.json").read_text())
    result["timing"]["attempt"] = 2
    (directory / "result.json").write_text(json.dumps(result))
    for attempt in (2, 3):
        (directory / "attempts" / str(attempt)).mkdir(parents=True)
    lines = (directory / "metrics.jsonl").read_text()
    (directory / "metrics.jsonl").rename(directory / "attempts" / "2" / "metrics.jsonl")
    (directory / "attempts" / "3" / "metrics.jsonl").write_text(lines[: len(lines) // 2])
    assert collect(tmp_path, sweep)[1].equals(before)


def test_a_table_is_not_replaced_by_an_older_one(sweep, tmp_path, monkeypatch):
    """A launcher that is slow finds that another has written meanwhile, and makes its table of what is there now."""
    collect(tmp_path, sweep)
    (tmp_path / "results.csv").write_text("of before\n")
    row, rows = tables._row, []

    def slow(*arguments):
        rows.append(row(*arguments))
        if len(rows) == len(sweep.cells):  # it has looked at all of them: now the missing cell ends
            write_run(tmp_path, sweep.cells[MISSING], {1.0: 2.25}, complete=True)
            (tmp_path / "results.csv").write_text("of the other launcher\n")
        return rows[-1]

    monkeypatch.setattr(tables, "_row", slow)
    table, _ = collect(tmp_path, sweep)
    assert len(rows) == 2 * len(sweep.cells)
    assert table["status"][MISSING] == "done"
    assert pd.read_csv(tmp_path / "results.csv")["loss"][MISSING] == 2.25


def test_status_says_how_far_each_cell_is(sweep, tmp_path):
    table = status_rows(tmp_path, sweep)
    assert table["status"].tolist() == ["done", "failed", "running", "missing", "missing"]
    # the share that is done, to whole steps
    for progress, expected, cell in zip(table["progress"], (1.0, 0.1, 0.5, 0.5, 0.0), sweep.cells, strict=True):
        assert abs(progress - expected) <= 0.5 / cell.run.steps
    assert table["loss"].tolist()[:4] == [2.0 + 1 / 3, 3.5, 2.5, 2.5]
    assert math.isnan(table["loss"][MISSING])
    assert table["N"].tolist() == [parameters(cell.run.model).N for cell in sweep.cells]


def test_the_time_left_follows_from_the_rate_so_far():
    row = {"run": "r", "N": 1e4, "reason": "", "seconds_left": 1.0, "first": 0.0}
    table = pd.DataFrame(
        [
            {**row, "C": 6e11, "status": "done", "progress": 1.0, "seconds": 600.0},
            {**row, "C": 6e11, "status": "running", "progress": 0.5, "seconds": 300.0},
            {**row, "C": 6e11, "status": "running", "progress": 0.5, "seconds": 300.0},
            {**row, "C": 12e11, "status": "missing", "progress": 0.0, "seconds": 0.0},
            {**row, "C": 9e11, "status": "failed", "progress": 0.0, "seconds": 0.0},
        ]
    )
    # 12e11 FLOPs took 1,200 s; 18e11 are left for two at a time
    assert time_left(table).startswith("about 15 min left (estimated")
    assert time_left(table[:1]) == "nothing left to run"
    assert time_left(table.drop(index=[1, 2])) == "nothing is running: experiments.sweep goes on"
    beginning = table[1:2].assign(progress=0.0, seconds=0.0)
    assert time_left(beginning) == "no estimate of the time left yet"


def test_a_run_with_experts_says_how_many(tmp_path, make_config, make_texts):
    """The law of mixtures asks for them (scaling.analysis.laws); dense sweeps have no such column."""
    config, texts = make_config("small", grid__budgets=(5e10,)), make_texts()
    cells, dropped = make_grid(config, texts)
    for experts in (0, 4):
        shapes = [dataclasses.replace(cell.run.model, n_experts=experts) for cell in cells]
        runs = [dataclasses.replace(cell.run, model=shape) for cell, shape in zip(cells, shapes, strict=True)]
        changed = [dataclasses.replace(cell, run=run) for cell, run in zip(cells, runs, strict=True)]
        sweep = write_sweep(tmp_path / str(experts), config, texts, changed, dropped)
        results, _ = collect(tmp_path / str(experts), sweep)
        assert ("n_experts" in results) == bool(experts)
        assert (results["N_active"] < results["N"]).all() == bool(experts)
        assert not experts or set(results["n_experts"]) == {4}
