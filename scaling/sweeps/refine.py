"""A second pass around the optimum that the first found: half-way sizes, nothing of the first is done again."""

import dataclasses
from typing import Literal

from scaling.data.batches import epochs
from scaling.models.counts import parameters
from scaling.sweeps.cells import Cell, Dropped, all_stores, common
from scaling.sweeps.grid import SAME_SHAPE, isoflop_cells, ladder_ratio, possible
from scaling.sweeps.texts import Texts
from scaling.sweeps.workdir import Sweep

BRACKETED, OPEN = range(-2, 3), range(-3, 4)  # half steps of the ladder around the centre


@dataclasses.dataclass(frozen=True)
class Found:
    """What a first pass found at a budget: its optimum, or the size of the lowest loss where there was none."""

    budget: float
    N: float
    status: Literal["bracketed", "open"]


def second_pass(sweep: Sweep, texts: Texts, found: list[Found]) -> tuple[list[Cell], list[Dropped]]:
    """The cells to add, and those that cannot be: half a step of the ladder apart, a step to either side of an optimum.

    Where a budget has no optimum, one and a half steps around its lowest loss, which reaches beyond the edge of the
    grid if it lies there. Shapes that the first pass had are not asked for again. Of the config as it is, no variants.
    """
    config = sweep.config
    half, shared = ladder_ratio(config) ** 0.5, common(config, texts, ())
    stores, most = all_stores(texts), config.data.max_epochs
    cells: list[Cell] = []
    dropped: list[Dropped] = []
    for at in found:
        steps = BRACKETED if at.status == "bracketed" else OPEN
        taken = {cell.run.model for cell in sweep.grid if cell.budget == at.budget and not cell.refined}
        shapes, left_out = possible(shared, at.budget, [at.N * half**k for k in steps], tuple(taken))
        dropped += [cell for cell in left_out if not cell.reason.startswith(SAME_SHAPE)]
        asked = isoflop_cells(shared, at.budget, sorted(shapes, key=lambda shape: parameters(shape).N))
        for cell in asked:
            needed = epochs(stores, cell.run.data, cell.run.tokens)
            if needed > most:
                why = f"{needed:.2f} epochs, above config.data.max_epochs={most:g}"
                dropped.append(Dropped(at.budget, parameters(cell.run.model).N, why))
            else:
                cells.append(dataclasses.replace(cell, refined=True))
    return cells, dropped
