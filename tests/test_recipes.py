import dataclasses
import math

import pytest

from scaling.errors import InputError
from scaling.models.counts import parameters
from scaling.models.ladder import chinchilla_shape
from scaling.recipes import RECIPES, base_recipe, deepseek_batch, get_recipe, recipe_rule, with_batch
from scaling.rules import LearningRateRule, write_rule
from scaling.runs import ModelShape, OptimizerSpec

TINY = ModelShape(32, 2, 2, 128, 257)
RULE = LearningRateRule(
    base="small",
    a=1.0,
    b=-0.5,
    c=0.25,
    N_range=(1e4, 1e6),
    B_range=(256.0, 1024.0),
    D_range=(2e5, 2e7),
    sizes=2,
    optima=4,
    residual_sd=None,
    covariance=None,
    t=None,
    penalty=0.02,
    source="0" * 64,
)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("tokens", "budget", "length"), [(1e6, 2e11, 64), (1.4e9, 6e17, 2048), (1.5e12, 6e23, 2048)])
def test_a_recipe_trains_on_the_tokens_it_was_given(name, tokens, budget, length):
    """To half a step, which is all that whole steps allow; and its values stand the checks of the specs."""
    settings = get_recipe(name)(TINY, tokens, budget, length)
    assert abs(settings.steps - tokens / (settings.batch_size * length)) <= 0.5
    assert settings.schedule.kind == ("cosine" if name in ("small", "chinchilla") else "wsd")
    assert settings.schedule.final_fraction == (0.0 if name == "haegele" else 0.1)
    taken = settings.schedule.warmup_steps + settings.schedule.decay_steps
    assert taken <= settings.steps or (name, settings.steps) == ("haegele", 8)  # which Run refuses: 300 warm up


@pytest.mark.parametrize("name", RECIPES)
def test_the_batch_is_a_function_of_the_budget_alone(name):
    """Else its effect would mix with that of size along an isoFLOP curve."""
    recipe = get_recipe(name)
    pairs = [(TINY, 1e10), (chinchilla_shape("74M"), 1e9), (chinchilla_shape("552M"), 1e8)]
    assert len({recipe(shape, tokens, 1e18, 512).batch_size for shape, tokens in pairs}) == 1


def test_small_is_what_the_trial_found():
    settings = get_recipe("small")(TINY, 512 * 1000, 2e11, 64)
    assert (settings.batch_size, settings.steps) == (8, 1000)
    optimizer = settings.optimizer
    assert (optimizer.peak_lr, optimizer.b1, optimizer.b2, optimizer.weight_decay) == (0.012, 0.9, 0.98, 0.1)
    assert settings.schedule.warmup_steps == 80
    wider = get_recipe("small")(ModelShape(128, 4, 4, 512, 257), 512 * 1000, 2e11, 64)
    assert math.isclose(wider.optimizer.peak_lr, 0.012 * 4**-0.8)


def test_small_trains_at_least_a_sequence_a_step():
    assert get_recipe("small")(TINY, 1e6, 2e11, 1024).batch_size == 1


@pytest.mark.parametrize(("size", "rate"), [(70e6, 2e-4), (16e9, 1.25e-4), (1e6, 2e-4), (1e12, 1.25e-4)])
def test_chinchilla_rates_are_the_published_ends(size, rate):
    settings = get_recipe("chinchilla")(TINY, 20 * size, 6 * size * 20 * size, 2048)
    assert math.isclose(settings.optimizer.peak_lr, rate)


def test_chinchilla_rates_are_log_linear_between():
    rates = [
        get_recipe("chinchilla")(TINY, 20 * size, 120 * size**2, 2048).optimizer.peak_lr
        for size in (70e6, math.sqrt(70e6 * 16e9), 16e9)
    ]
    assert math.isclose(rates[1], math.sqrt(rates[0] * rates[2]))


def test_wsd_is_the_published_rate_and_a_fifth_of_decay():
    """DeepSeek-AI 2024, eq. 1: 0.3118 C^-0.1250, where the power of 1e16 is a hundredth."""
    settings = get_recipe("wsd")(TINY, 1e9, 1e16, 2048)
    assert math.isclose(settings.optimizer.peak_lr, 3.118e-3)
    assert abs(settings.schedule.decay_steps - 0.2 * settings.steps) <= 0.5


@pytest.mark.parametrize("name", ["small_wsd", "haegele"])
def test_what_can_be_forked_knows_nothing_of_tokens_and_budget_before_it_decays(name):
    """But for where it begins to."""
    settings = [get_recipe(name)(TINY, tokens, budget, 512) for tokens in (1e8, 5e9) for budget in (1e12, 1e20)]
    fixed = [dataclasses.replace(s, steps=0, schedule=dataclasses.replace(s.schedule, decay_steps=1)) for s in settings]
    assert fixed == [fixed[0]] * 4
    assert [round(0.2 * s.steps) for s in settings] == [s.schedule.decay_steps for s in settings]


def test_small_wsd_is_small_at_half_the_rate():
    settings, small = (get_recipe(name)(TINY, 512 * 1000, 2e11, 64) for name in ("small_wsd", "small"))
    assert (settings.batch_size, settings.steps) == (small.batch_size, small.steps)
    assert settings.optimizer == dataclasses.replace(small.optimizer, peak_lr=0.006)
    assert (settings.schedule.warmup_steps, settings.schedule.decay_steps) == (50, 200)


def test_haegele_is_what_their_code_has():
    """AdamW at (.9, .95), decay .1 and clipping at 1; 1e-3 at a width of 768."""
    settings = get_recipe("haegele")(ModelShape(768, 12, 12, 3072, 50304), 1e10, 1e19, 512)
    assert settings.batch_size == 256  # the power of two that is nearest to their 200
    assert settings.optimizer == OptimizerSpec(1e-3, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0)
    assert settings.schedule.warmup_steps == 300
    assert math.isclose(get_recipe("haegele")(TINY, 1e9, 1e19, 512).optimizer.peak_lr, 1e-3 * 24)


@pytest.mark.parametrize(("budget", "length"), [(1e17, 4096), (1e20, 4096), (3e23, 2048), (1e10, 64)])
def test_deepseek_batch_is_the_nearest_power_of_two(budget, length):
    batch = deepseek_batch(budget, length)
    assert batch & (batch - 1) == 0
    wanted = 0.2920 * budget**0.3271
    assert batch == 1 or 2**-0.5 <= batch * length / wanted <= 2**0.5


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(InputError, match=r"unknown recipe 'chinchila' \(did you mean chinchilla\?\)"):
        get_recipe("chinchila")


@pytest.mark.parametrize("base", RECIPES)
def test_a_rule_replaces_the_rate_of_its_base_and_nothing_else(tmp_path, base):
    path = tmp_path / "rule.json"
    write_rule(dataclasses.replace(RULE, base=base), path)
    asked = (TINY, 1e6, 2e11, 64)
    plain, tuned = get_recipe(base)(*asked), get_recipe(f"rule:{path}")(*asked)
    wanted = math.exp(1.0) * parameters(TINY).N ** -0.5 * (plain.batch_size * 64) ** 0.25
    assert math.isclose(tuned.optimizer.peak_lr, wanted)
    assert dataclasses.replace(tuned.optimizer, peak_lr=plain.optimizer.peak_lr) == plain.optimizer
    assert dataclasses.replace(tuned, optimizer=plain.optimizer) == plain


def test_the_rule_of_a_recipe(tmp_path):
    write_rule(RULE, tmp_path / "rule.json")
    assert recipe_rule(f"rule:{tmp_path}/rule.json") == RULE
    assert recipe_rule("small") is None
    assert base_recipe(f"rule:{tmp_path}/rule.json") == base_recipe("small") == "small"


def test_a_rule_that_cannot_be_followed_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"absent\.json: no such file"):
        get_recipe(f"rule:{tmp_path}/absent.json")
    write_rule(dataclasses.replace(RULE, base="smal"), tmp_path / "rule.json")
    with pytest.raises(InputError, match=r"rule\.json: unknown recipe 'smal' \(did you mean small\?\)"):
        get_recipe(f"rule:{tmp_path}/rule.json")


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("factor", [0.25, 0.5, 1, 2, 8])
def test_another_batch_sees_the_same_tokens_on_the_same_schedule(name, factor):
    before = get_recipe(name)(TINY, 1e9, 1e18, 64)
    after = with_batch(before, int(before.batch_size * factor), 64)
    assert after.batch_size == before.batch_size * factor
    assert abs(after.steps * after.batch_size - before.steps * before.batch_size) <= after.batch_size / 2
    for part in ("warmup_steps", "decay_steps"):
        was, became = getattr(before.schedule, part), getattr(after.schedule, part)
        assert (was == 0) == (became == 0)
        assert abs(became - was / factor) <= 1
    assert after.optimizer == before.optimizer


def test_a_short_warm_up_stays_one():
    settings = get_recipe("chinchilla")(TINY, 64 * 100, 1e9, 64)
    assert with_batch(settings, 16 * settings.batch_size, 64).schedule.warmup_steps == 1
    with pytest.raises(InputError, match="batch_size=0 is not positive"):
        with_batch(settings, 0, 64)
