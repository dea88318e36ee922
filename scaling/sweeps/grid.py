"""From a config to the cells of a sweep: a pure function of the config and its token stores.

isoFLOP budgets x sizes (Hoffmann et al. 2022, Approach 2), sizes x durations (Approaches 1 and 3) and explicit points,
each under every variant and every seed.
"""

import math
from collections.abc import Sequence

from scaling.data.batches import check_eval_windows
from scaling.errors import InputError
from scaling.models.counts import flops_per_token, parameters
from scaling.runs import ModelShape
from scaling.sweeps.cells import (
    MAX_FLOPS_ERROR,
    Cell,
    Common,
    Dropped,
    all_stores,
    cells_of,
    common,
    fault,
    presets,
    shape_of,
    tokens_of,
)
from scaling.sweeps.config import SweepConfig
from scaling.sweeps.forks import groups
from scaling.sweeps.texts import Texts
from scaling.sweeps.variants import check_variants
from scaling.sweeps.vary import label

MIN_SIZES = 4
SAME_SHAPE = "same shape as another size"


def make_grid(config: SweepConfig, texts: Texts) -> tuple[tuple[Cell, ...], tuple[Dropped, ...]]:
    """All cells of a sweep, and those that were dropped, with reasons.

    The sizes of all budgets are rungs of one ladder, even in log N: budgets share shapes, and so compilations.
    Raises InputError for a variant of an unknown field, for a budget with fewer than four sizes or with sizes on one
    side of the prior optimum only, if no cell is left, for too little text to evaluate on, and for cells that are to be
    forked and differ before they decay.
    """
    check_variants(config)
    cells: dict[tuple[str, str], Cell] = {}  # a budget and a duration, and two variants, may ask for the same run
    dropped: list[Dropped] = []
    for variant in config.variants:
        shared = common(config, texts, variant)
        for found, left_out in (_isoflop(shared), _durations(shared)):
            for cell in found:
                cells.setdefault(cell.key, cell)
            dropped += left_out
    if not cells:
        raise InputError(f"no cell is left of {len(dropped)}; the first to be dropped: {dropped[0]}", where="config")
    for spec in {cell.run.data for cell in cells.values()}:
        check_eval_windows(all_stores(texts), spec)
    groups(config, cells.values())
    return tuple(cells.values()), tuple(dropped)


def prior_optimum(config: SweepConfig, budget: float) -> float:
    """N* that the config expects at a budget."""
    grid = config.grid
    return grid.prior_size * (budget / grid.prior_flops) ** grid.prior_exponent


def ladder_ratio(config: SweepConfig) -> float:
    """The factor between two sizes of an isoFLOP grid."""
    return (config.grid.below * config.grid.above) ** (1 / (config.grid.sizes - 1))


def possible(
    shared: Common, budget: float, sizes: Sequence[float], taken: Sequence[ModelShape] = ()
) -> tuple[list[ModelShape], list[Dropped]]:
    """The shapes of sizes at a budget, and the sizes that cannot be or whose shape is taken, with reasons."""
    shapes: list[ModelShape] = []
    dropped = []
    for size in sizes:
        try:
            shape = shape_of(shared, size)
        except InputError as error:
            why = str(error)
        else:
            why = fault(shared, shape, tokens_of(shared, shape, budget), budget)
            if shape in (*taken, *shapes):
                why = f"{SAME_SHAPE}: {shape.d_model} wide, {shape.n_layers} layers"
            if not why:
                shapes.append(shape)
        if why:
            dropped.append(Dropped(budget, size, why, variant=label(shared.variant)))
    return shapes, dropped


def isoflop_cells(shared: Common, budget: float, shapes: Sequence[ModelShape]) -> list[Cell]:
    """The cells of shapes at a budget, under all seeds."""
    seeds = shared.config.all_seeds
    return [
        cell
        for shape in shapes
        for cell in cells_of(shared, shape, tokens_of(shared, shape, budget), budget, isoflop=True, seeds=seeds)
    ]


def _isoflop(shared: Common) -> tuple[list[Cell], list[Dropped]]:
    config = shared.config
    cells: list[Cell] = []
    dropped: list[Dropped] = []
    for budget in sorted(config.grid.budgets if config.grid else ()):
        sizes = _sizes(shared, budget)
        shapes, left_out = possible(shared, budget, sizes)
        _check_budget(budget, prior_optimum(config, budget), sizes, shapes, left_out)
        cells += isoflop_cells(shared, budget, shapes)
        dropped += left_out
    return cells, dropped


def _durations(shared: Common) -> tuple[list[Cell], list[Dropped]]:
    """Sizes x durations, and explicit points. They are on no isoFLOP curve; a recipe is told each cell's own C."""
    config = shared.config
    cells: list[Cell] = []
    dropped: list[Dropped] = []
    for size, tokens, most in _asked(shared):
        try:
            shape = shape_of(shared, size)
        except InputError as error:
            why = str(error)
        else:
            flops = tokens * flops_per_token(shape, shared.length)
            why = fault(shared, shape, tokens, flops)
            if most is not None and flops > most * (1 + MAX_FLOPS_ERROR):
                why = f"{flops:.3g} FLOPs, above config.durations.max_flops={most:.3g}"
            if not why:
                cells += cells_of(shared, shape, tokens, flops, isoflop=False, seeds=config.all_seeds)
        if why:
            dropped.append(Dropped(None, size, why, tokens, label(shared.variant)))
    return cells, dropped


def _asked(shared: Common) -> list[tuple[float, float, float | None]]:
    """(N, D, largest C) of all cells asked for by duration; tokens a parameter are of the shape that a size has."""
    durations, points = shared.config.durations, [(N, D, None) for N, D in shared.config.points]
    if durations is None:
        return points
    asked = []
    for size in durations.sizes or presets(shared):
        try:
            N = parameters(shape_of(shared, size)).N
        except InputError:
            N = size  # it is dropped for that, below
        tokens = durations.tokens or [ratio * N for ratio in durations.tokens_per_parameter]
        asked += [(size, D, durations.max_flops) for D in tokens]
    return asked + points


def _sizes(shared: Common, budget: float) -> list[float]:
    config = shared.config
    grid, ratio, optimum = config.grid, ladder_ratio(config), prior_optimum(config, budget)
    if config.model.sizes == "presets":
        within = [N for N in presets(shared) if optimum / grid.below <= N <= optimum * grid.above]
        if len(within) <= grid.sizes:
            return within
        # Those nearest to sizes that are even in log N; without repetition, as two may be near one.
        even = [within[0] * (within[-1] / within[0]) ** (k / (grid.sizes - 1)) for k in range(grid.sizes)]
        return sorted({min(within, key=lambda N, size=size: abs(math.log(N / size))) for size in even})
    rung = round(math.log(optimum / grid.below / grid.prior_size) / math.log(ratio))
    return [grid.prior_size * ratio ** (rung + k) for k in range(grid.sizes)]


def _check_budget(
    budget: float, optimum: float, sizes: list[float], shapes: list[ModelShape], dropped: list[Dropped]
) -> None:
    counts = [parameters(shape).N for shape in shapes]
    reasons = "; ".join(f"{d.size:.3g}: {d.reason}" for d in dropped)
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
