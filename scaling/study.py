"""The whole loop: grid, training, and what the sweep comes to (scaling.conclusions)."""

import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from scaling.errors import InputError
from scaling.sweeps.cells import all_stores, check_epochs
from scaling.sweeps.config import SweepConfig
from scaling.sweeps.execution import execute
from scaling.sweeps.forks import groups, plan_words
from scaling.sweeps.grid import make_grid
from scaling.sweeps.tasks import Way
from scaling.sweeps.texts import Texts, remember_verified
from scaling.sweeps.workdir import write_sweep

if TYPE_CHECKING:
    from scaling.conclusions import Study


def run_study(
    config: SweepConfig,
    texts: Texts,
    workdir: pathlib.Path,
    way: Way,
    refine: bool = False,
    say: Callable[[str], None] = print,
    verified: Sequence[str] = (),
) -> "Study":
    """Runs what is not done yet of a sweep, analyses it, puts its law to the test, and reports.

    refine: after what the config asks for, adds a second pass around the optima that were found. verified: the stores
    that were just compared with their checksums, which the cells then need not be. say: told in a line
    what comes next, where it takes time.
    Raises InputError if the config, the stores and the directory do not fit, before anything is written, or if too few
    cells came through for a law; RunFailedError if none did; StoppedError if it was asked to stop.
    """
    if refine and (config.grid is None or config.vary):
        raise InputError("--refine looks for the optima of isoFLOP budgets", do="it needs config.grid, and no vary")
    cells, dropped = make_grid(config, texts)
    check_epochs(all_stores(texts), config.data.max_epochs, cells)
    for cell in cells:
        config.placement.check(cell.run)
    sweep = write_sweep(workdir, config, texts, cells, dropped)
    if verified:
        remember_verified(workdir, verified)
    sizes = ", ".join(f"{store.source} ({store.splits['train'].tokens:,})" for store in all_stores(texts).values())
    say(f"{len(sweep.grid)} cells, {len(dropped)} dropped; texts (training tokens): {sizes}")
    if found := groups(config, sweep.grid):
        say(plan_words(found))
    failed = tuple(execute(workdir, sweep, sweep.grid, way))
    # Here: pandas, scipy and matplotlib take a second, which no cell has to wait for.
    from scaling.conclusions import conclude

    return conclude(config, workdir, sweep, texts, failed, way, refine, say)
