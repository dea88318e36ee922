"""Sizes x durations, explicit points, presets of families, and the second pass of a sweep."""

import dataclasses
import itertools
import math

import pytest

from scaling.errors import InputError
from scaling.models.counts import flops_per_token, parameters
from scaling.sweeps.cells import check_epochs
from scaling.sweeps.grid import ladder_ratio, make_grid
from scaling.sweeps.refine import Found, second_pass
from scaling.sweeps.workdir import write_sweep

SIZES = (2e4, 5e4, 1e5)


@pytest.fixture
def grid_of(make_config, make_texts):
    """The cells and dropped cells of a config without isoFLOP budgets."""

    def make(tokens=1e9, vocab=256, **changes):
        return make_grid(
            make_config("study", **{"grid": None, "prediction": 0.0, **changes}), make_texts(tokens, vocab)
        )

    return make


def durations(**values):
    return {"sizes": SIZES, "tokens": (2e5, 4e5, 8e5), **values}


def test_each_size_at_each_duration(grid_of):
    cells, dropped = grid_of(durations=durations())
    assert not dropped
    assert [round(cell.run.tokens / 1e5) for cell in cells] == [2, 4, 8] * 3
    sizes = [parameters(cell.run.model).N for cell in cells]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3
    for cell in cells:
        assert cell.budget is None
        # A step is 512 tokens: the nearest number of them is within half a step.
        assert abs(cell.run.tokens - round(cell.run.tokens, -5)) <= 256


def test_tokens_a_parameter_are_of_the_real_size(grid_of):
    cells, _ = grid_of(durations={"sizes": SIZES, "tokens_per_parameter": (10.0, 20.0)})
    for cell, ratio in zip(cells, [10, 20] * 3, strict=True):
        assert cell.run.tokens == pytest.approx(ratio * parameters(cell.run.model).N, abs=256)


def test_what_takes_more_than_the_largest_budget_is_dropped_and_listed(grid_of):
    every, _ = grid_of(durations=durations())
    most = sorted(cell.flops for cell in every)[5]
    cells, dropped = grid_of(durations=durations(max_flops=most))
    assert [cell.id for cell in cells] == [cell.id for cell in every if cell.flops <= most * 1.005]
    assert len(cells) + len(dropped) == 9
    assert all(f"above config.durations.max_flops={most:.3g}" in cell.reason for cell in dropped)
    assert str(dropped[0]).startswith(f"{dropped[0].size:,.0f} parameters on {dropped[0].tokens:.3g} tokens: ")


def test_a_duration_of_too_few_steps_is_dropped(grid_of):
    cells, dropped = grid_of(durations=durations(tokens=(2e4, 4e5)))
    assert len(cells) == len(dropped) == 3
    assert all("39 steps, below 100" in cell.reason for cell in dropped)


def test_points_are_taken_as_they_are(grid_of):
    cells, _ = grid_of(points=((2e4, 3e5), (1e5, 2e5)))
    assert [round(cell.run.tokens, -4) for cell in cells] == [300_000, 200_000]
    same, _ = grid_of(durations={"sizes": (2e4,), "tokens": (3e5,)}, points=((1e5, 2e5),))
    assert [cell.id for cell in same] == [cell.id for cell in cells]


def test_a_grid_and_durations_make_one_sweep(make_config, make_texts):
    both = make_config("small", durations=durations(), points=((3e4, 2e5),))
    only = make_config("small")
    cells, _ = make_grid(both, make_texts())
    isoflop, _ = make_grid(only, make_texts())
    assert cells[: len(isoflop)] == isoflop
    assert [cell.budget for cell in cells[len(isoflop) :]] == [None] * 10


def test_a_run_that_is_asked_for_twice_is_one_cell(make_config, make_texts):
    (first, *_), _ = make_grid(make_config("small"), make_texts())
    N, D = parameters(first.run.model).N, first.run.tokens
    cells, _ = make_grid(make_config("small", points=((float(N), float(D)),)), make_texts())
    assert [cell.id for cell in cells].count(first.id) == 1
    assert cells[0] == first  # it keeps its budget


def test_nothing_asked_for_is_refused(grid_of):
    with pytest.raises(InputError, match=r"config has no cells \(give grid, durations or points\)"):
        grid_of()
    with pytest.raises(InputError, match="no cell is left of 3; the first to be dropped: 20,000 parameters"):
        grid_of(durations=durations(tokens=(1e4,)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sizes": SIZES}, "give tokens_per_parameter or tokens, one of them"),
        ({"sizes": SIZES, "tokens": (1e5,), "tokens_per_parameter": (1.0,)}, "one of them"),
        ({"tokens": (1e5,)}, "config.durations has no sizes"),
        ({"sizes": (0.0,), "tokens": (1e5,)}, r"config\.durations\.sizes=\(0\.0,\) has one that is not positive"),
    ],
)
def test_durations_that_say_too_little_or_too_much(grid_of, values, message):
    with pytest.raises(InputError, match=message):
        grid_of(durations=values)


def test_the_published_sizes_of_a_family(make_config, make_texts):
    """Table A9's 50 sizes, four durations each: C = 6ND within the 2048-token attention's share."""
    config = make_config(
        "large",
        grid=None,
        prediction=0.0,
        model={"family": "chinchilla", "sizes": "presets"},
        durations={"tokens_per_parameter": (5.0, 20.0)},
    )
    cells, dropped = make_grid(config, make_texts(1e15, 32_000))
    assert (len(cells), len(dropped)) == (100, 0)
    widths = [cell.run.model.d_model for cell in cells]
    assert (min(widths), max(widths)) == (512, 5120)


def test_a_budget_takes_published_sizes_around_its_prior(make_config, make_texts):
    grid = {"budgets": (1e20,), "sizes": 6, "prior_flops": 1e20, "prior_size": 1e9, "below": 4.0, "above": 4.0}
    config = make_config("large", grid=grid, prediction=0.0, model={"family": "chinchilla", "sizes": "presets"})
    cells, _ = make_grid(config, make_texts(1e15, 32_000))
    sizes = [parameters(cell.run.model).N for cell in cells]
    assert len(sizes) == 6
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.3e9
    assert sizes[-1] > 3e9
    ratios = [math.log(b / a) for a, b in itertools.pairwise(sizes)]
    assert max(ratios) < 2 * min(ratios)  # even in log N, as far as published sizes are


def test_presets_need_a_family(make_config):
    with pytest.raises(InputError, match=r"config\.model\.sizes='presets' of no family"):
        make_config("study", model={"sizes": "presets"})


def test_a_family_sets_what_its_models_have(grid_of):
    cells, _ = grid_of(model={"family": "llama"}, durations={"sizes": (1e5,), "tokens": (2e5,)})
    shape = cells[0].run.model
    assert (shape.norm, shape.positions, shape.activation) == ("rmsnorm", "rotary", "swiglu")
    cells, _ = grid_of(model={"family": "gpt2"}, durations={"sizes": (1e5,), "tokens": (2e5,)})
    shape = cells[0].run.model
    assert (shape.norm, shape.positions, shape.n_positions, shape.biases) == ("layernorm", "learned", 64, True)


@pytest.fixture
def first_pass(tmp_path, make_config, make_texts):
    config, texts = make_config("study", grid__budgets=(2e11, 6e11)), make_texts(1e9)
    return write_sweep(tmp_path / "s", config, texts, *make_grid(config, texts)), texts


def sizes_at(cells, budget):
    return [parameters(cell.run.model).N for cell in cells if cell.budget == budget]


def test_the_second_pass_lies_around_the_optimum_and_repeats_nothing(first_pass):
    sweep, texts = first_pass
    added, dropped = second_pass(sweep, texts, [Found(6e11, 7e4, "bracketed")])
    assert not dropped
    ratio = ladder_ratio(sweep.config)
    assert added
    assert {cell.budget for cell in added} == {6e11}
    assert not {cell.id for cell in added} & {cell.id for cell in sweep.cells}
    for N in sizes_at(added, 6e11):
        assert 7e4 / ratio / 1.31 < N < 7e4 * ratio * 1.31  # the smallest sizes are met within a factor of 1.31
    for cell in added:
        assert cell.flops == pytest.approx(6e11, rel=0.005)
        assert cell.role == "grid"


def test_where_there_was_no_optimum_the_second_pass_reaches_beyond_the_edge(first_pass):
    sweep, texts = first_pass
    largest = max(sizes_at(sweep.cells, 2e11))
    added = sizes_at(second_pass(sweep, texts, [Found(2e11, largest, "open")])[0], 2e11)
    assert max(added) > 1.3 * largest


def test_a_second_pass_asked_for_again_is_the_same(first_pass):
    """It looks at the shapes of the first pass alone, so that a sweep that was stopped in it goes on."""
    sweep, texts = first_pass
    once, _ = second_pass(sweep, texts, [Found(6e11, 7e4, "bracketed")])
    grown = dataclasses.replace(sweep, cells=(*sweep.cells, *once))
    assert second_pass(grown, texts, [Found(6e11, 7e4, "bracketed")])[0] == once


def test_a_cell_of_the_second_pass_that_repeats_too_much_is_dropped(first_pass, make_texts):
    sweep, _ = first_pass
    few = dataclasses.replace(
        sweep, config=dataclasses.replace(sweep.config, data=dataclasses.replace(sweep.config.data, max_epochs=0.25))
    )
    texts = make_texts(4e6)
    cells, dropped = second_pass(few, texts, [Found(6e11, 7e4, "bracketed")])
    assert cells
    assert dropped
    assert all("epochs, above config.data.max_epochs=0.25" in cell.reason for cell in dropped)


def test_epochs_of_the_worst_cell_are_named(grid_of, make_texts):
    cells, _ = grid_of(durations=durations())
    texts = make_texts(4e5)
    stores = texts[None].stores
    with pytest.raises(InputError, match=r"asks for 799,744 tokens, the store holds 400,000: 2\.00 epochs"):
        check_epochs(stores, 1.0, cells)
    check_epochs(stores, 2.1, cells)


def test_flops_are_counted_as_in_the_budget(grid_of):
    for cell in grid_of(durations=durations())[0]:
        assert cell.flops == flops_per_token(cell.run.model, 64) * cell.run.tokens
