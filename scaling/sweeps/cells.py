"""One cell: from a config, a size and a budget or a number of tokens to a run, or the reason why there is none."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

from scaling.data.batches import Stores, epochs
from scaling.errors import InputError
from scaling.models.counts import flops_per_token, parameters
from scaling.models.families import FAMILIES
from scaling.models.ladder import shape_for
from scaling.recipes import Recipe, Settings, get_recipe
from scaling.runs import ModelShape, Run, run_id
from scaling.specs import settle
from scaling.sweeps.config import ModelConfig, OneConfig, SweepConfig
from scaling.sweeps.texts import Text, Texts
from scaling.sweeps.variants import varied_config, varied_settings, varied_shape
from scaling.sweeps.vary import Variant, label

MIN_STEPS = 100
MAX_FLOPS_ERROR = 0.005


@dataclasses.dataclass(frozen=True)
class Cell:
    """A run and its place in a sweep.

    budget: of the isoFLOP curve that it is on, None if it is on none. role: grid, or prediction: outside of the grid,
    to test the law. variant: what it changes of the config, in words. refined: added by a second pass.
    """

    run: Run
    budget: float | None
    role: str = "grid"
    variant: str = ""
    refined: bool = False

    def __post_init__(self) -> None:
        settle(self, "cell")

    @property
    def id(self) -> str:
        return run_id(self.run)

    @property
    def key(self) -> tuple[str, str]:
        """What tells the cells of a sweep apart: two variants may share a run, which is trained once."""
        return self.id, self.variant

    @property
    def flops(self) -> float:
        """C of the run, which meets the budget to whole steps."""
        return flops_per_token(self.run.model, self.run.data.sequence_length) * self.run.tokens


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A cell that was asked for, by its budget or by its tokens, and that cannot be."""

    budget: float | None
    size: float
    reason: str
    tokens: float | None = None
    variant: str = ""

    def __post_init__(self) -> None:
        settle(self, "dropped")

    def __str__(self) -> str:
        where = f"on {self.tokens:.3g} tokens" if self.budget is None else f"at {self.budget:.3g} FLOPs"
        return f"{self.size:,.0f} parameters {where}{f' ({self.variant})' if self.variant else ''}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Common:
    """What the cells of one variant have in common: the config with the variant's fields, and its text."""

    config: SweepConfig | OneConfig
    text: Text
    variant: Variant = ()

    @property
    def length(self) -> int:
        return self.config.data.sequence_length

    @functools.cached_property
    def recipe(self) -> Recipe:
        """Looked up once: that of a rule is a file."""
        return get_recipe(self.config.recipe)

    @functools.cached_property
    def preset_shapes(self) -> list[ModelShape]:
        """The family's published models with the text's vocabulary."""
        model, options = self.config.model, _options(self.config.model)
        return [
            dataclasses.replace(shape, vocab_size=self.text.main.vocab_size, **options)
            for shape in FAMILIES[model.family].presets.values()
        ]


def common(config: SweepConfig, texts: Texts, variant: Variant) -> Common:
    """The common part of a variant's cells."""
    varied = varied_config(config, variant)
    return Common(varied, texts[varied.data], variant)


def presets(shared: Common) -> list[float]:
    """The sizes of the family's published models with the text's vocabulary, rising."""
    return sorted(parameters(shape).N for shape in shared.preset_shapes)


def shape_of(shared: Common, size: float) -> ModelShape:
    """The shape of a size. Raises InputError where none is near."""
    model, V = shared.config.model, shared.text.main.vocab_size
    if model.sizes == "presets":
        if "model.n_layers" in dict(shared.variant):
            raise InputError("model.n_layers varies depth at a fixed size", do="it needs config.model.sizes=formula")
        near = min(shared.preset_shapes, key=lambda shape: abs(math.log(parameters(shape).N / size)))
        return varied_shape(near, shared.variant)
    options = _options(model)
    learned = {"n_positions": shared.length} if options.get("positions") == "learned" else {}
    layers = dict(shared.variant).get("model.n_layers")
    depth = {} if layers is None else {"n_layers": layers}
    return varied_shape(shape_for(size, V, **depth, **options, **learned), shared.variant)


def tokens_of(shared: Common, shape: ModelShape, budget: float) -> float:
    """D that a budget pays for."""
    return budget / flops_per_token(shape, shared.length)


def fault(shared: Common, shape: ModelShape, tokens: float, budget: float) -> str | None:
    """Why a shape cannot be trained on so many tokens, or None."""
    settings = _settings(shared, shape, tokens, budget) if tokens >= shared.length else None
    if settings is None or settings.steps < MIN_STEPS:
        steps = settings.steps if settings else 0
        return f"{steps} steps, below {MIN_STEPS}: {tokens:,.0f} tokens at this recipe's batch"
    error = settings.steps * settings.batch_size * shared.length / tokens - 1
    if abs(error) >= MAX_FLOPS_ERROR:
        return f"whole steps miss the budget by {error:.2%}"
    try:
        _run(shared, shape, tokens, budget, seed=0)
    except InputError as refusal:  # a warm-up longer than the run, say
        return str(refusal)
    return None


def cells_of(
    shared: Common, shape: ModelShape, tokens: float, budget: float, isoflop: bool, seeds: Sequence[int]
) -> list[Cell]:
    """The cells of a shape on so many tokens, one a seed. budget: what the recipe is told, C of the run."""
    runs = [_run(shared, shape, tokens, budget, seed) for seed in seeds]
    return [Cell(run, budget if isoflop else None, variant=label(shared.variant)) for run in runs]


def one_run(config: OneConfig, text: Text) -> Run:
    """The run of a config of one run. Raises InputError for what makes `make_grid` drop or refuse a cell."""
    return _single_run(Common(config, text), config.flops, config.size, config.seed)


def recommended_run(shared: Common, budget: float, size: float) -> Run:
    """The run of a sweep to train at a budget, given an optimal size. Raises as `one_run`."""
    return _single_run(shared, budget, size, shared.config.all_seeds[0])


def continued_run(config: OneConfig, text: Text, shape: ModelShape, start: str) -> Run:
    """The run of a config that starts from given parameters: their shape, and their content id. Raises as `one_run`."""
    shared = Common(config, text)
    run = _checked_run(shared, shape, config.flops, config.seed)
    return dataclasses.replace(run, start=start)


def all_stores(texts: Texts) -> Stores:
    """The token stores of all data sets of a sweep, by content id."""
    return {name: store for text in texts.values() for name, store in text.stores.items()}


def check_epochs(stores: Stores, max_epochs: float, cells: Sequence[Cell]) -> None:
    """Raises InputError if a cell repeats its text more often than `max_epochs`, naming the one that does most."""
    needed, cell = max(((epochs(stores, c.run.data, c.run.tokens), c) for c in cells), key=lambda pair: pair[0])
    if needed > max_epochs:
        store = stores[cell.run.data.store]
        held = f"the store holds {store.splits['train'].tokens:,}"
        raise InputError(
            f"the cell of {parameters(cell.run.model).N:,} parameters at {cell.flops:.3g} FLOPs asks for "
            f"{cell.run.tokens:,} tokens, {'of a mixture' if cell.run.data.mixture else held}: {needed:.2f} epochs",
            where=store.source,
            do=f"allow repetition with --config.data.max_epochs={math.ceil(needed * 10) / 10}, or give more text",
        )


def _single_run(shared: Common, budget: float, size: float, seed: int) -> Run:
    try:
        return _checked_run(shared, shape_of(shared, size), budget, seed)
    except InputError as error:
        raise InputError(f"no run of {size:.3g} parameters at {budget:.3g} FLOPs: {error}") from None


def _checked_run(shared: Common, shape: ModelShape, budget: float, seed: int) -> Run:
    tokens = tokens_of(shared, shape, budget)
    if why := fault(shared, shape, tokens, budget):
        raise InputError(why)
    run = _run(shared, shape, tokens, budget, seed)
    check_epochs(shared.text.stores, shared.config.data.max_epochs, [Cell(run, budget)])
    return run


def _run(shared: Common, shape: ModelShape, tokens: float, budget: float, seed: int) -> Run:
    config = shared.config
    seed = dict(shared.variant).get("seed", seed)
    settings = _settings(shared, shape, tokens, budget)
    return Run(
        model=shape,
        data=shared.text.spec(config.data, seed),
        **{field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)},
        precision=config.precision,
        eval_points=config.eval_points,
        seed=seed,
    )


def _settings(shared: Common, shape: ModelShape, tokens: float, budget: float) -> Settings:
    settings = shared.recipe(shape, tokens, budget, shared.length)
    return varied_settings(settings, shared.variant, shared.length)


def _options(model: ModelConfig) -> dict[str, Any]:
    """The fields of ModelShape that a config's family and its own fields set."""
    given = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name not in ("family", "sizes") and getattr(model, field.name) != field.default
    }
    return given if model.family == "plain" else {**FAMILIES[model.family].options, **given}
