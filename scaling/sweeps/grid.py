"""From a config to the runs of a sweep: a pure function of the config and the token store."""

import dataclasses
import math

from scaling.data.batches import check_eval_windows, epochs
from scaling.data.token_store import TokenStore
from scaling.errors import InputError
from scaling.models.counts import flops_per_token, parameters
from scaling.models.ladder import shape_for
from scaling.recipes import get_recipe
from scaling.runs import DataSpec, ModelShape, Run, run_id
from scaling.sweeps.config import OneConfig, SweepConfig

MIN_STEPS = 100
MIN_SIZES = 4
MAX_FLOPS_ERROR = 0.005


@dataclasses.dataclass(frozen=True)
class Cell:
    """A run and its place in a sweep. role: grid, or prediction: outside of it, to test the law."""

    run: Run
    budget: float
    role: str = "grid"

    @property
    def id(self) -> str:
        return run_id(self.run)

    @property
    def flops(self) -> float:
        """C of the run, which meets the budget to whole steps."""
        return flops_per_token(self.run.model, self.run.data.sequence_length) * self.run.tokens


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A cell that the grid asked for and that cannot be."""

    budget: float
    size: float
    reason: str


def make_grid(config: SweepConfig, store: TokenStore) -> tuple[tuple[Cell, ...], tuple[Dropped, ...]]:
    """All cells of a sweep, and those that were dropped, with reasons.

    The sizes of all budgets are rungs of one ladder, even in log N: budgets share shapes, and so compilations.
    Raises InputError for a budget with fewer than four sizes, or with sizes on one side of the prior optimum only,
    for a cell that repeats its data more often than config.data.max_epochs, and for too little text to evaluate on.
    """
    cells, dropped = [], []
    for budget in sorted(config.grid.budgets):
        sizes = _sizes(config, budget)
        shapes: list[ModelShape] = []
        for size in sizes:
            fault = _fault(config, store, budget, size, shapes)
            if fault:
                dropped.append(Dropped(budget, size, fault))
            else:
                shapes.append(_shape(config, store, size))
        _check_budget(budget, prior_optimum(config, budget), sizes, shapes, dropped)
        for shape in shapes:
            cells += [Cell(make_run(config, store, shape, budget, seed), budget) for seed in config.all_seeds]
    check_eval_windows(store, cells[0].run.data)
    longest = max(cells, key=lambda cell: cell.run.tokens)  # whose number of epochs, once allowed, allows all others
    check_epochs(config, store, longest.run, longest.budget)
    return tuple(cells), tuple(dropped)


def prior_optimum(config: SweepConfig, budget: float) -> float:
    """N* that the config expects at a budget."""
    grid = config.grid
    return grid.prior_size * (budget / grid.prior_flops) ** grid.prior_exponent


def make_run(
    config: SweepConfig | OneConfig, store: TokenStore, shape: ModelShape, budget: float, seed: int = 0
) -> Run:
    """The run of a shape whose own FLOPs, C = D x F, meet the budget, to whole steps."""
    length = config.data.sequence_length
    tokens = budget / flops_per_token(shape, length)
    settings = get_recipe(config.recipe)(shape, tokens, budget, length)
    return Run(
        model=shape,
        data=DataSpec(store.content_id, length, config.data.eval_windows, seed=config.data.seed + seed),
        **{field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)},
        precision=config.precision,
        eval_points=config.eval_points,
        seed=seed,
    )


def one_run(config: OneConfig, store: TokenStore) -> Run:
    """The run of a config of one run. Raises InputError as `make_grid` does for its cells."""
    return _single_run(config, store, config.flops, config.size, config.seed)


def recommended_run(config: SweepConfig, store: TokenStore, budget: float, size: float) -> Run:
    """The run to train at a budget, given an optimal size. Raises InputError as `make_grid` does for its cells."""
    return _single_run(config, store, budget, size, config.all_seeds[0])


def _single_run(config: SweepConfig | OneConfig, store: TokenStore, budget: float, size: float, seed: int) -> Run:
    fault = _fault(config, store, budget, size, [])
    if fault:
        raise InputError(f"no run of {size:.3g} parameters at {budget:.3g} FLOPs: {fault}")
    run = make_run(config, store, _shape(config, store, size), budget, seed)
    check_epochs(config, store, run, budget)
    return run


def check_epochs(config: SweepConfig | OneConfig, store: TokenStore, run: Run, budget: float) -> None:
    """Refuses a run that repeats its text more often than allowed."""
    needed = epochs(store, run.data, run.tokens)
    if needed > config.data.max_epochs:
        raise InputError(
            f"the cell of {parameters(run.model).N:,} parameters at {budget:.3g} FLOPs asks for {run.tokens:,} tokens, "
            f"the store holds {store.splits['train'].tokens:,}: {needed:.2f} epochs",
            where=config.data.source,
            do=f"allow repetition with --config.data.max_epochs={math.ceil(needed * 10) / 10}, or give more text",
        )


def _sizes(config: SweepConfig, budget: float) -> list[float]:
    grid = config.grid
    ratio = (grid.below * grid.above) ** (1 / (grid.sizes - 1))
    lowest = prior_optimum(config, budget) / grid.below
    rung = round(math.log(lowest / grid.prior_size) / math.log(ratio))
    return [grid.prior_size * ratio ** (rung + k) for k in range(grid.sizes)]


def _shape(config: SweepConfig | OneConfig, store: TokenStore, size: float) -> ModelShape:
    options = dataclasses.asdict(config.model)
    learned = {"n_positions": config.data.sequence_length} if config.model.positions == "learned" else {}
    return shape_for(size, store.vocab_size, **options, **learned)


def _fault(
    config: SweepConfig | OneConfig, store: TokenStore, budget: float, size: float, taken: list[ModelShape]
) -> str | None:
    """Why there is no cell of this size, or None."""
    try:
        shape = _shape(config, store, size)
    except InputError as error:
        return str(error)
    if shape in taken:
        return f"same shape as the size before: {shape.d_model} wide, {shape.n_layers} layers"
    length = config.data.sequence_length
    tokens = budget / flops_per_token(shape, length)
    settings = get_recipe(config.recipe)(shape, tokens, budget, length) if tokens >= length else None
    if settings is None or settings.steps < MIN_STEPS:
        steps = settings.steps if settings else 0
        return f"{steps} steps, below {MIN_STEPS}: {tokens:,.0f} tokens at this recipe's batch"
    error = settings.steps * settings.batch_size * length / tokens - 1
    return f"whole steps miss the budget by {error:.2%}" if abs(error) >= MAX_FLOPS_ERROR else None


def _check_budget(
    budget: float, optimum: float, sizes: list[float], shapes: list[ModelShape], dropped: list[Dropped]
) -> None:
    counts = [parameters(shape).N for shape in shapes]
    reasons = "; ".join(f"{d.size:.3g}: {d.reason}" for d in dropped if d.budget == budget)
    because = f" (dropped: {reasons})" if reasons else ""
    do = "move prior_size, widen below and above, or change the budget"
    if len(counts) < MIN_SIZES:
        raise InputError(
            f"budget {budget:.3g} FLOPs keeps {len(counts)} of {len(sizes)} sizes, and needs {MIN_SIZES}{because}",
            where="config.grid",
            do=do,
        )
    if not min(counts) < optimum < max(counts):
        raise InputError(
            f"budget {budget:.3g} FLOPs keeps sizes {min(counts):,} to {max(counts):,}, on one side of the prior "
            f"optimum {optimum:,.0f}{because}",
            where="config.grid",
            do=do,
        )
