"""Forked decays: of the cells of one size, the longest is trained whole, and the shorter ones fork from it.

A cell of C FLOPs on D tokens costs its size so much for each token. With warm-up, stable, decay the cells of a size
(under one variant and one seed) are the same run until the first of them decays, so that the longest, their trunk, can
train for all of them, and each of the others, a fork, has only its decay left (Hu et al. 2024, section 4.5; Haegele et
al. 2024, section 5). A forked cell is the same run with the same bits as one from scratch: scaling.training.forks.

What forking saves is exact arithmetic: the FLOPs of the steps that a fork does not take. What it was that was saved
is what results say of themselves (`saved_words`).

Cells of one size share their order of data and their initialisation, and of forks most steps: their noise is not
independent. So results.csv names the trunk of each, which the analysis resamples as one.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from scaling.models.counts import flops_per_token
from scaling.runs import Run
from scaling.specs import located
from scaling.sweeps.cells import Cell
from scaling.sweeps.config import SweepConfig
from scaling.training.schedules import check_fork, fork_step

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class Group:
    """Cells of one size, variant and seed: the longest, and those that fork from it, the earliest first."""

    trunk: Cell
    forks: tuple[Cell, ...]


def groups(config: SweepConfig, cells: Iterable[Cell]) -> list[Group]:
    """How the cells of a sweep hang together: each run once, with its last variant. None of a sweep from scratch.

    A cell that tests the law is a group of its own: it is known only when the trunks are done. A second pass may add
    cells to a size whose trunk is done; they are in its group, which tells the statistics, and train from scratch.
    Raises InputError, with the field and the two values, for cells of one size that differ in more than steps and
    decay, and for another schedule than wsd.
    """
    if config.sweep.schedule != "forked":
        return []
    sharing: dict[tuple[object, ...], list[Cell]] = {}
    for cell in {cell.id: cell for cell in cells}.values():
        own = cell.id if cell.role != "grid" else ""
        sharing.setdefault((cell.variant, cell.run.model, cell.run.seed, own), []).append(cell)
    with located("config.sweep.schedule=forked"):
        return [_group(alike) for alike in sharing.values()]


def _group(cells: Sequence[Cell]) -> Group:
    *forks, trunk = sorted(cells, key=lambda cell: (fork_step(cell.run), cell.run.steps))
    for fork in forks:
        check_fork(trunk.run, fork.run)
    return Group(trunk, tuple(forks))


def forks_of(config: SweepConfig, cells: Iterable[Cell], cell: Cell) -> tuple[Cell, ...]:
    """The cells that fork from one, none if it is no trunk."""
    alike = [near for near in cells if near.run.model == cell.run.model]
    return next((group.forks for group in groups(config, alike) if group.trunk.id == cell.id), ())


def trunks(found: Sequence[Group]) -> dict[str, str]:
    """The trunk of each run that has company, a trunk's own included: names of runs."""
    return {cell.id: group.trunk.id for group in found if group.forks for cell in (*group.forks, group.trunk)}


def trunk_steps(found: Sequence[Group]) -> dict[str, int]:
    """How many steps of each run its trunk takes for it, 0 of a trunk and of a run that is alone."""
    steps = {group.trunk.id: 0 for group in found}
    return steps | {fork.id: fork_step(fork.run) for group in found for fork in group.forks}


def flops_of(run: Run, steps: int) -> float:
    """C of so many steps of a run."""
    return flops_per_token(run.model, run.data.sequence_length) * run.batch_tokens * steps


def savings(found: Sequence[Group]) -> tuple[float, float]:
    """The FLOPs of the steps that forks do not take, and those of all runs from scratch."""
    steps = trunk_steps(found)
    cells = [cell for group in found for cell in (group.trunk, *group.forks)]
    return sum(flops_of(c.run, steps[c.id]) for c in cells), sum(flops_of(c.run, c.run.steps) for c in cells)


def plan_words(found: Sequence[Group]) -> str:
    """What forking saves of a sweep, in a line: "forked: 6 trunks, 18 decays; 3.1e+12 of 8e+12 FLOPs saved (39%)"."""
    decays = [len(group.forks) for group in found if group.forks]
    return f"forked: {len(decays)} trunks, {sum(decays)} decays; {_saved(*savings(found))}"


def saved_words(results: "pd.DataFrame") -> str:
    """What was saved of the runs that are done, by what each result says of its own steps."""
    done = results[results["status"] == "done"].drop_duplicates("run")
    forked = done[done["trunk_steps"] > 0]
    saved = (forked["C"] * forked["trunk_steps"] / forked["steps"]).sum()
    alone = ((done["trunk"] != "") & (done["trunk"] != done["run"]) & (done["trunk_steps"] == 0)).sum()
    from_scratch = f"; {alone} that share a trunk were trained from scratch" if alone else ""
    return f"forked decays: {len(forked)} of {len(done)} runs; {_saved(saved, done['C'].sum())}{from_scratch}"


def _saved(saved: float, total: float) -> str:
    return f"{saved:.3g} of {total:.3g} FLOPs saved ({saved / total:.0%})" if total else "nothing saved"
