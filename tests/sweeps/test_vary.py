"""Sweeps over fields: the algebra of variants, and what each field does to the runs."""

import dataclasses
import itertools
import math

import pytest

from scaling.errors import InputError
from scaling.models.counts import flops_per_token, parameters
from scaling.recipes import get_recipe
from scaling.sweeps.grid import make_grid
from scaling.sweeps.variants import FIELDS
from scaling.sweeps.vary import chain, label, over, product, zipped

A, B = over("lr_factor", (0.5, 2.0)), over("seed", (0, 1, 2))


def test_product_is_every_one_with_every_other_the_last_fastest():
    expected = [(("lr_factor", x), ("seed", y)) for x, y in itertools.product((0.5, 2.0), (0, 1, 2))]
    assert product(A, B) == tuple(expected)
    assert product(A) == A
    assert product(A, ()) == ()


def test_zipped_takes_them_together_and_chain_one_after_the_other():
    assert zipped(A, over("batch_size", (8, 16))) == (
        (("lr_factor", 0.5), ("batch_size", 8)),
        (("lr_factor", 2.0), ("batch_size", 16)),
    )
    assert chain(A, B) == A + B
    with pytest.raises(InputError, match="zipped sweeps have 2, 3 variants"):
        zipped(A, B)


def test_a_field_is_set_once():
    with pytest.raises(InputError, match="sets seed twice"):
        product(A, B, B)


def test_products_and_zips_are_associative():
    C = over("batch_size", (8, 16))
    assert product(product(A, B), C) == product(A, product(B, C)) == product(A, B, C)
    assert zipped(zipped(A, C), over("seed", (3, 4))) == zipped(A, C, over("seed", (3, 4)))


def test_a_label_names_what_differs_but_for_the_seed():
    assert label(product(A, B)[1]) == "lr_factor=0.5"
    assert label((("optimizer.peak_lr", 0.001), ("model.qk_norm", True))) == "peak_lr=0.001 model.qk_norm=True"
    assert label(()) == ""


@pytest.fixture
def cells_under(make_config, make_texts):
    """The cells of a budget of the small study, under a sweep over fields."""

    def cells(*variants, **changes):
        config = make_config("study", grid__budgets=(6e11,), vary=tuple(variants), **changes)
        return make_grid(config, make_texts())[0]

    return cells


def without(run, *fields):
    """A run with some fields of it, or of its parts, made equal to anything."""
    values = dataclasses.asdict(run)
    for field in fields:
        *groups, last = field.split(".")
        target = values
        for group in groups:
            target = target[group]
        target[last] = None
    return values


SIMPLE = [
    ("optimizer.b2", 0.9),
    ("optimizer.weight_decay", 0.0),
    ("schedule.final_fraction", 0.0),
    ("z_loss", 1e-4),
    ("precision", "bf16"),
    ("eval_points", 3),
]


@pytest.mark.parametrize(("field", "value"), SIMPLE, ids=[field for field, _ in SIMPLE])
def test_a_field_of_the_run_changes_itself_and_nothing_else(cells_under, field, value):
    for plain, varied in zip(cells_under(), cells_under(((field, value),)), strict=True):
        section, _, name = field.rpartition(".")
        assert getattr(getattr(varied.run, section) if section else varied.run, name) == value
        assert without(varied.run, field) == without(plain.run, field)
        assert varied.variant == label(((field, value),))
        assert plain.variant == ""


def test_the_rate_can_be_set_or_scaled(cells_under):
    plain, scaled = cells_under(), cells_under((("lr_factor", 2.0),))
    fixed = cells_under((("optimizer.peak_lr", 3e-3), ("lr_factor", 2.0)))
    for cell, twice, given in zip(plain, scaled, fixed, strict=True):
        assert twice.run.optimizer.peak_lr == 2 * cell.run.optimizer.peak_lr
        assert given.run.optimizer.peak_lr == 6e-3


@pytest.mark.parametrize("recipe", ["small", "wsd"])
def test_another_batch_keeps_the_tokens_and_the_shape_of_the_schedule(cells_under, recipe):
    for plain, varied in zip(
        cells_under(recipe=recipe), cells_under((("batch_size", 16),), recipe=recipe), strict=True
    ):
        assert varied.run.batch_size == 16
        assert varied.run.tokens == pytest.approx(plain.run.tokens, rel=0.005)
        for part in ("warmup_steps", "decay_steps"):
            before, after = (getattr(cell.run.schedule, part) / cell.run.steps for cell in (plain, varied))
            assert after == pytest.approx(before, abs=1 / varied.run.steps)


def test_seeds_are_of_initialisation_and_data_order(cells_under):
    for plain, varied in zip(cells_under(), cells_under((("seed", 7),)), strict=True):
        assert (varied.run.seed, varied.run.data.seed) == (7, plain.run.data.seed + 7)
        assert without(varied.run, "seed", "data.seed") == without(plain.run, "seed", "data.seed")
        assert varied.variant == ""


@pytest.mark.parametrize("layers", [2, 4, 12])
def test_depth_changes_at_the_same_size_and_budget(cells_under, layers):
    for plain, varied in zip(cells_under(), cells_under((("model.n_layers", layers),)), strict=True):
        assert varied.run.model.n_layers == layers
        # Widths are about 10 % apart, and N goes as their square: the nearest is within a third at these sizes.
        assert parameters(varied.run.model).N == pytest.approx(parameters(plain.run.model).N, rel=0.35)
        assert varied.flops == pytest.approx(6e11, rel=0.005)


def test_a_field_of_the_family_is_known_when_the_size_is_met(cells_under):
    for varied in cells_under((("model.activation", "swiglu"),)):
        assert varied.run.model.activation == "swiglu"
        assert varied.flops == pytest.approx(6e11, rel=0.005)


@pytest.mark.parametrize("experts", [4, 16])
def test_experts_are_part_of_a_size(cells_under, experts):
    """At the same budget a model of a size is narrower, and sees more tokens: only one of its experts is computed."""
    sparse = cells_under((("model.n_experts", experts), ("model.capacity_factor", 1.25)))
    sizes = [parameters(cell.run.model).N for cell in cells_under()]
    assert sparse
    for varied in sparse:
        model = varied.run.model
        assert (model.n_experts, model.experts_per_token, model.capacity_factor) == (experts, 1, 1.25)
        near = min(sizes, key=lambda size: abs(math.log(size / parameters(model).N)))
        # Widths are about 10 % apart, and N goes as their square, at these sizes also by whole layers.
        assert parameters(model).N == pytest.approx(near, rel=0.35)
        assert varied.flops == pytest.approx(6e11, rel=0.005)


def test_settings_of_experts_without_any_are_refused(cells_under):
    with pytest.raises(InputError, match=r"model.experts_per_token=2 without experts \(give n_experts\)"):
        cells_under((("model.experts_per_token", 2),))


def test_a_field_of_the_shape_changes_it_before_the_budget_is_met(cells_under):
    for plain, varied in zip(cells_under(), cells_under((("model.d_ff", 40),)), strict=True):
        assert varied.run.model == dataclasses.replace(plain.run.model, d_ff=40)
        F = flops_per_token(varied.run.model, 64)
        assert F * varied.run.tokens == pytest.approx(6e11, rel=0.005)


def test_recipes_can_be_compared(cells_under):
    plain, wsd = cells_under((("recipe", "small"),)), cells_under((("recipe", "wsd"),))
    assert {cell.run.schedule.kind for cell in plain} == {"cosine"}
    for cell in wsd:
        assert cell.run.optimizer == get_recipe("wsd")(cell.run.model, cell.run.tokens, 6e11, 64).optimizer


def test_data_sets_can_be_compared(make_config, make_store):
    from scaling.sweeps.texts import Text, data_configs

    config = make_config("study", grid__budgets=(6e11,), vary=over("data.source", ("words", "code")))
    words, code = data_configs(config)
    assert (words.source, code.source) == ("words", "code")
    texts = {words: Text(make_store(content_id="cafe")), code: Text(make_store(content_id="beef"))}
    cells, _ = make_grid(config, texts)
    assert [cell.run.data.store for cell in cells] == ["cafe"] * 6 + ["beef"] * 6
    assert {cell.variant for cell in cells} == {"data.source=words", "data.source=code"}


def test_all_variants_of_all_seeds(cells_under):
    cells = cells_under(*product(A, over("z_loss", (0.0, 1e-4))), seeds=(0, 1))
    assert len(cells) == 6 * 4 * 2
    assert len({cell.id for cell in cells}) == 48
    assert len({cell.variant for cell in cells}) == 4


def test_a_run_that_two_variants_share_is_a_cell_of_each(cells_under):
    """Each variant has its whole curve, though the run is trained once."""
    cells = cells_under((), (("lr_factor", 1.0),), (("lr_factor", 2.0),))
    assert len(cells) == 18
    assert len({cell.id for cell in cells}) == 12
    assert len({cell.key for cell in cells}) == 18


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", "a", "seed='a' is not a whole number of at least 0"),
        ("batch_size", 0, "batch_size=0 is not a whole number of at least 1"),
        ("model.n_layers", 2.5, "model.n_layers=2.5 is not a whole number"),
        ("lr_factor", "x", "lr_factor='x' is not a positive number"),
        ("lr_factor", -1.0, "lr_factor=-1.0 is not a positive number"),
        ("recipe", "smal", "unknown recipe 'smal'"),
    ],
)
def test_a_value_that_no_variant_can_have_is_refused(cells_under, field, value, message):
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        cells_under(((field, value),))


def test_one_impossible_cell_is_dropped_and_the_others_stand(make_config, make_texts):
    points, warmup = ((2e4, 1e5), (2e4, 1e6)), (("schedule.warmup_steps", 500),)
    cells, dropped = make_grid(
        make_config("study", grid=None, prediction=0.0, points=points, vary=(warmup,)), make_texts()
    )
    assert len(cells) == 1
    assert "warm-up and decay take 500 steps of a run of 195" in str(dropped[0])


@pytest.mark.parametrize(
    ("field", "nearest"),
    [
        ("optimiser.peak_lr", "optimizer.peak_lr"),
        ("learning_rate", "valid: "),
        ("model.layers", "model.n_layers"),
        ("data.max_epochs", "valid: |did you mean"),
        ("steps", "valid: |did you mean"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest(cells_under, field, nearest):
    with pytest.raises(InputError, match=rf"config\.vary: unknown field '{field}' .*({nearest})"):
        cells_under(((field, 1),))


def test_a_value_that_no_field_takes_is_refused(cells_under):
    with pytest.raises(InputError, match=r"optimizer\.b1=2\.0 is outside"):
        cells_under((("optimizer.b1", 2.0),))


def test_every_field_of_a_run_can_be_swept():
    """Those that are not are named for what decides them: size and budget for a shape and steps, the text for V."""
    from scaling.runs import ModelShape, OptimizerSpec, Run, ScheduleSpec

    names = {
        *(f"optimizer.{field.name}" for field in dataclasses.fields(OptimizerSpec)),
        *(f"schedule.{field.name}" for field in dataclasses.fields(ScheduleSpec)),
        *(f"model.{field.name}" for field in dataclasses.fields(ModelShape)),
        *(field.name for field in dataclasses.fields(Run)),
    }
    decided = {"model.d_model", "model.vocab_size", "model.n_positions", "steps", "start"}
    sections = {"model", "optimizer", "schedule", "data"}
    assert names - FIELDS == decided | sections
