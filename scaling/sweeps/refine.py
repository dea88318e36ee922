"""A second pass around the optimum that the first found: half-way sizes, nothing of the first is done again."""

import dataclasses
from typing import Literal

from scaling.models.counts import parameters
from scaling.sweeps.cells import Cell, common
from scaling.sweeps.grid import isoflop_cells, ladder_ratio, possible
from scaling.sweeps.texts import Texts
from scaling.sweeps.workdir import Sweep

BRACKETED, OPEN = range(-2, 3), range(-3, 4)  # half steps of the ladder around the centre


@dataclasses.dataclass(frozen=True)
class Found:
    """What a first pass found at a budget: its optimum, or the size of the lowest loss where there was none."""

    budget: float
    N: float
    status: Literal["bracketed", "open"]


def second_pass(sweep: Sweep, texts: Texts, found: list[Found]) -> list[Cell]:
    """The cells to add: sizes half a step of the ladder apart, one step to either side of each optimum.

    Where a budget has no optimum, one and a half steps around its lowest loss, which reaches beyond the edge of the
    grid if it lies there. Shapes that the budget has are not asked for again. Only the config as it is, no variants.
    """
    config = sweep.config
    half, shared = ladder_ratio(config) ** 0.5, common(config, texts, ())
    cells = []
    for at in found:
        steps = BRACKETED if at.status == "bracketed" else OPEN
        taken = [cell.run.model for cell in sweep.grid if cell.budget == at.budget]
        shapes, _ = possible(shared, at.budget, [at.N * half**k for k in steps], taken)
        cells += isoflop_cells(shared, at.budget, sorted(shapes, key=lambda shape: parameters(shape).N))
    return [dataclasses.replace(cell, refined=True) for cell in cells]
