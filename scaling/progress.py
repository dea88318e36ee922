"""One progress line, with the time left."""

import sys

from tqdm import tqdm

SCREEN_SECONDS, LOG_SECONDS = 0.5, 15.0  # between two updates: a log gets fewer lines than a screen


def progress_bar(total: float, unit: str, what: str) -> tqdm:
    """A line on standard error that shows `what`, how much of `total` units is done, the rate, and the time left."""
    seconds = SCREEN_SECONDS if sys.stderr.isatty() else LOG_SECONDS
    return tqdm(
        total=total,
        unit=unit,
        desc=what,
        unit_scale=True,
        smoothing=0.02,
        mininterval=seconds,
        maxinterval=seconds,
        delay=seconds,  # what is refused at once is refused without a line of progress before it
    )
