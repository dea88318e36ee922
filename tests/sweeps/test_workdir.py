import json

import pytest

from scaling.errors import InputError
from scaling.sweeps.cells import Cell, common, recommended_run
from scaling.sweeps.grid import make_grid
from scaling.sweeps.workdir import read_sweep, save_sweep, write_sweep


@pytest.fixture
def start(tmp_path, make_config, make_texts):
    """Starts, or starts again, a sweep in one directory."""

    def begin(texts=None, **changes):
        config, texts = make_config("study", **changes), texts or make_texts()
        return write_sweep(tmp_path / "sweep", config, texts, *make_grid(config, texts))

    return begin


def test_round_trip(start, tmp_path, make_config, make_texts):
    config = make_config("study", placement__data=2, seeds=(0, 1), grid__sizes=9)
    cells, dropped = make_grid(config, make_texts())
    sweep = start(placement__data=2, seeds=(0, 1), grid__sizes=9)
    assert read_sweep(tmp_path / "sweep") == sweep
    assert (sweep.config, sweep.cells, sweep.dropped) == (config, cells, dropped)
    assert sweep.stores == {"cafe": "/stores/s"}


def test_dropped_cells_and_roles_survive(tmp_path, make_config, make_texts):
    config = make_config("small", grid__budgets=(2e10,), grid__sizes=20, grid__above=6)
    cells, dropped = make_grid(config, make_texts())
    assert dropped
    test = Cell(recommended_run(common(config, make_texts(), ()), 1e11, 3e4), 1e11, "prediction")
    sweep = write_sweep(tmp_path, config, make_texts(), (*cells, test), dropped)
    assert read_sweep(tmp_path) == sweep
    assert [cell.role for cell in sweep.cells] == ["grid"] * len(cells) + ["prediction"]


def test_sweep_json_says_what_the_design_says(start, tmp_path):
    sweep = start(grid__sizes=40)
    values = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert values["schema"] == 2
    assert values["config"]["grid"]["sizes"] == 40
    assert values["budgets"] == [1e11, 2.5e11, 6e11, 1.5e12]
    assert list(values["runs"]) == [cell.id for cell in sweep.cells]
    assert [cell["run"] for cell in values["cells"]] == list(values["runs"])
    assert len(values["dropped"]) == len(sweep.dropped) > 0
    assert all(drop["reason"] for drop in values["dropped"])
    assert {"python", "jax", "flax", "numpy"} <= values["versions"].keys()


def test_the_same_sweep_again_changes_nothing(start, tmp_path):
    first = start()
    content = (tmp_path / "sweep" / "sweep.json").read_bytes()
    assert start() == first
    assert (tmp_path / "sweep" / "sweep.json").read_bytes() == content


@pytest.mark.parametrize(
    "more",
    [
        {"grid__budgets": (1e11, 2.5e11, 6e11, 1.5e12, 3e12)},
        {"grid__budgets": (1e11, 1.5e11, 2.5e11, 6e11, 1.5e12)},
        {"seeds": (0, 1)},
        {"grid__sizes": 8},
        {"grid__above": 10.0},
        {"prediction": 4.0},
        {"data__max_epochs": 3.0},
    ],
)
def test_a_sweep_may_grow_and_keeps_its_cells(start, tmp_path, more):
    before = start()
    after = start(**more)
    assert set(before.cells) <= set(after.cells)
    assert len({cell.id for cell in after.cells}) == len(after.cells)
    assert read_sweep(tmp_path / "sweep") == after


def test_a_sweep_that_grew_starts_again_as_it_is(start):
    start()
    grown = start(seeds=(0, 1), grid__sizes=8)
    assert set(start(seeds=(0, 1), grid__sizes=8).cells) == set(grown.cells)


def test_starting_again_does_not_reorder_the_cells(start, tmp_path, make_texts):
    """Row numbers of results.csv, and with them data.dropped of the report, must mean the same each time."""
    sweep = start()
    test = Cell(recommended_run(common(sweep.config, make_texts(), ()), 3e12, 1e5), 3e12, "prediction")
    tested = type(sweep)(sweep.config, sweep.stores, (*sweep.cells, test), sweep.dropped)
    save_sweep(tmp_path / "sweep", tested)
    assert start().cells == tested.cells


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"grid__budgets": (1e11, 2.5e11, 6e11)}, "grid.budgets"),
        ({"seeds": (1,)}, r"seeds \[0\] -> \[1\]"),
        ({"recipe": "wsd"}, 'recipe "small" -> "wsd"'),
        ({"data__sequence_length": 32}, "data.sequence_length 64 -> 32"),
        ({"data__eval_windows": 64}, "data.eval_windows 32 -> 64"),
        ({"data__seed": 1}, "data.seed 0 -> 1"),
        ({"model__activation": "swiglu"}, 'model.activation "gelu" -> "swiglu"'),
        ({"precision": "bf16"}, 'precision "fp32" -> "bf16"'),
        ({"grid__prior_size": 50e3}, r"grid.prior_size 45000.0 -> 50000.0"),
    ],
)
def test_another_sweep_is_refused_saying_what_differs(start, tmp_path, snapshot, changes, difference):
    start()
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=f"holds another sweep: {difference}.*give another --workdir"):
        start(**changes)
    assert snapshot(tmp_path) == before


def test_all_differences_are_named_at_once(start):
    start()
    with pytest.raises(InputError, match=r"eval_points 10 -> 3; precision .*; recipe "):
        start(eval_points=3, precision="bf16", recipe="chinchilla")


def test_other_text_under_the_same_name_is_refused(start, tmp_path, snapshot, make_texts):
    start()
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="holds another sweep: content of the text cafe -> beef"):
        start(texts=make_texts(content_id="beef"))
    assert snapshot(tmp_path) == before


def test_cells_that_were_trained_before_are_taken(start, tmp_path):
    """By experiments.train --workdir=SWEEP/runs/RUN, on several hosts say."""
    (tmp_path / "sweep" / "runs" / "some-run").mkdir(parents=True)
    start()
    assert (tmp_path / "sweep" / "sweep.json").exists()
    assert (tmp_path / "sweep" / "runs" / "some-run").exists()


def test_a_directory_with_something_else_in_it_is_refused(start, tmp_path, snapshot):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "thesis.tex").write_text("x")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=r"sweep: is not empty, and holds no sweep \(give another --workdir\)"):
        start()
    assert snapshot(tmp_path) == before


def test_an_empty_directory_is_taken(start, tmp_path):
    (tmp_path / "sweep").mkdir()
    start()
    assert (tmp_path / "sweep" / "sweep.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not JSON"), ('{"schema": 9}', r"not a sweep of schema 2"), ("[]", "sweep.json")],
)
def test_a_sweep_json_of_another_kind_is_refused(tmp_path, content, message):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_sweep(tmp_path)


def test_no_sweep_says_how_to_start_one(tmp_path):
    with pytest.raises(InputError, match=r"holds no sweep .experiments\.sweep --workdir= starts one"):
        read_sweep(tmp_path)
