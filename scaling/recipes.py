"""Recipes: how a shape is trained. Each is one small function with its source.

    recipe(shape, tokens, budget, sequence_length) -> Settings

The batch is a function of the budget alone, so that it is one along an isoFLOP curve: a batch that changes with size
inside a curve would mix its effect with that of size.

`small_wsd` and `haegele` know neither D nor the budget, but for where the decay begins: the cells of a size can be
forked from one (--config.sweep.schedule=forked, scaling.sweeps.forks).

The rates of these recipes are rules of thumb. `rule:PATH` is a recipe whose rates were tuned: the rule that tools.tune
has fitted to a tuning sweep, over the recipe that the sweep followed.
"""

import dataclasses
import math
from collections.abc import Callable

from scaling.errors import InputError, nearest
from scaling.models.counts import parameters
from scaling.rules import LearningRateRule, read_rule
from scaling.runs import ModelShape, OptimizerSpec, ScheduleSpec


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a recipe decides about a run, beside its shape and data."""

    batch_size: int
    steps: int
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    z_loss: float = 0.0


Recipe = Callable[[ModelShape, float, float, int], Settings]


def small(shape: ModelShape, tokens: float, budget: float, sequence_length: int) -> Settings:
    """For models of 1e4 to 1e6 parameters on bytes: 512 tokens a step, peak rate .012 (32/D)^.8, cosine to a tenth.

    Found by trial at 5e11 FLOPs on the standard library's text, where it gives a clear U over sizes; steps of 1-2k
    tokens gave none. The rate is not tuned per size.
    """
    batch_size = max(1, 512 // sequence_length)
    steps = round(tokens / (batch_size * sequence_length))
    optimizer = OptimizerSpec(peak_lr=0.012 * (32 / shape.d_model) ** 0.8, b2=0.98)
    return Settings(batch_size, steps, optimizer, ScheduleSpec("cosine", warmup_steps=round(0.08 * steps)))


def small_wsd(shape: ModelShape, tokens: float, budget: float, sequence_length: int) -> Settings:
    """As `small`, at half its rate, which stays after 50 steps of warm-up and falls to a tenth over the last fifth.

    By trial at 2e11 FLOPs, losses of 26k and 56k parameters are 1.739 and 1.708, those of `small` 1.738 and 1.719, and
    at the whole rate 1.739 and 1.715.
    """
    like = small(shape, tokens, budget, sequence_length)
    optimizer = dataclasses.replace(like.optimizer, peak_lr=like.optimizer.peak_lr / 2)
    schedule = ScheduleSpec("wsd", warmup_steps=50, decay_steps=max(1, round(0.2 * like.steps)))
    return dataclasses.replace(like, optimizer=optimizer, schedule=schedule)


def chinchilla(shape: ModelShape, tokens: float, budget: float, sequence_length: int) -> Settings:
    """Hoffmann et al. 2022: AdamW, and a cosine over the run's own tokens to a tenth (their Figure A1 is why).

    Peak rate 2e-4 at 70M to 1.25e-4 at 16B, the two ends that they state, log-linear between and level outside. They
    state no batch for each run: it is `deepseek_batch` here. Warm-up is 1 % of the steps. N is taken as C / 6D.
    """
    batch_size = deepseek_batch(budget, sequence_length)
    steps = round(tokens / (batch_size * sequence_length))
    position = math.log(budget / (6 * tokens) / 70e6) / math.log(16e9 / 70e6)
    peak_lr = 2e-4 * (1.25e-4 / 2e-4) ** min(1.0, max(0.0, position))
    return Settings(batch_size, steps, OptimizerSpec(peak_lr), ScheduleSpec("cosine", max(1, round(0.01 * steps))))


def wsd(shape: ModelShape, tokens: float, budget: float, sequence_length: int) -> Settings:
    """Warm-up, stable, decay (Hu et al. 2024): the last fifth falls linearly to a tenth (Haegele et al. 2024, fig. 5).

    Rate and batch of DeepSeek-AI 2024, eq. 1: peak rate 0.3118 C^-0.1250. They count C without embeddings.
    """
    batch_size = deepseek_batch(budget, sequence_length)
    steps = round(tokens / (batch_size * sequence_length))
    decay_steps = max(1, round(0.2 * steps))
    schedule = ScheduleSpec("wsd", max(1, round(0.01 * steps)), decay_steps)
    return Settings(batch_size, steps, OptimizerSpec(0.3118 * budget**-0.125), schedule)


def haegele(shape: ModelShape, tokens: float, budget: float, sequence_length: int) -> Settings:
    """Haegele et al. 2024, as their code has it (github.com/epfml/schedules-and-scaling): about 100k tokens a step at
    every size and length, warm-up over 300 steps, and a last fifth that falls linearly to nothing.

    Their 200 sequences of 512 tokens are taken to the nearest power of two. Peak rate 1e-3 at their width of 768; at
    others in inverse proportion, which is not theirs, but the rule for hidden matrices of Yang et al. 2022.
    """
    batch_size = 2 ** max(0, round(math.log2(200 * 512 / sequence_length)))
    steps = round(tokens / (batch_size * sequence_length))
    schedule = ScheduleSpec("wsd", 300, max(1, round(0.2 * steps)), final_fraction=0.0)
    return Settings(batch_size, steps, OptimizerSpec(1e-3 * 768 / shape.d_model), schedule)


def deepseek_batch(budget: float, sequence_length: int) -> int:
    """Sequences a step: 0.2920 C^0.3271 tokens (DeepSeek-AI 2024, eq. 1), to the nearest power of two of sequences."""
    sequences = 0.2920 * budget**0.3271 / sequence_length
    return 2 ** max(0, round(math.log2(sequences)))


RECIPES: dict[str, Recipe] = {
    "small": small,
    "small_wsd": small_wsd,
    "chinchilla": chinchilla,
    "wsd": wsd,
    "haegele": haegele,
}
RULE = "rule:"


def get_recipe(name: str) -> Recipe:
    """The recipe of a name: one of RECIPES, or `rule:PATH`, the base recipe of the learning-rate rule in that file with
    its peak rate replaced by the rule's, at the N and the batch of each run.

    Raises InputError for an unknown name, and as `read_rule` does.
    """
    rule, base = recipe_rule(name), RECIPES[base_recipe(name)]
    return base if rule is None else _tuned(base, rule)


def base_recipe(name: str) -> str:
    """The one of RECIPES that a recipe is, or follows in all but the rate. Raises InputError as `get_recipe`."""
    rule = recipe_rule(name)
    base, where = (name, "config.recipe") if rule is None else (rule.base, name)
    if base not in RECIPES:
        raise InputError(f"unknown recipe {base!r}", where, nearest(base, RECIPES))
    return base


def recipe_rule(name: str) -> LearningRateRule | None:
    """The rule that a recipe's rates follow, None for a recipe that has none. Raises InputError as `read_rule`."""
    return read_rule(name.removeprefix(RULE)) if name.startswith(RULE) else None


def with_batch(settings: Settings, batch_size: int, sequence_length: int) -> Settings:
    """The same tokens in batches of another size: steps change, and warm-up and decay with them, in proportion.

    All are rounded to whole steps; a warm-up or decay that was there keeps at least one.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} is not positive")
    tokens = settings.steps * settings.batch_size * sequence_length
    steps = max(1, round(tokens / (batch_size * sequence_length)))
    warmup, decay = (
        max(1, round(count * steps / settings.steps)) if count else 0
        for count in (settings.schedule.warmup_steps, settings.schedule.decay_steps)
    )
    schedule = dataclasses.replace(settings.schedule, warmup_steps=warmup, decay_steps=decay)
    return dataclasses.replace(settings, batch_size=batch_size, steps=steps, schedule=schedule)


def _tuned(base: Recipe, rule: LearningRateRule) -> Recipe:
    def recipe(shape: ModelShape, tokens: float, budget: float, sequence_length: int) -> Settings:
        settings = base(shape, tokens, budget, sequence_length)
        peak_lr = rule.peak_lr(parameters(shape).N, settings.batch_size * sequence_length)
        return dataclasses.replace(settings, optimizer=dataclasses.replace(settings.optimizer, peak_lr=peak_lr))

    return recipe
