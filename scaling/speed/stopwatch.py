"""How long a step takes: the mean of several, dispatched one behind the other as training does, and waited for once."""

import time
from collections.abc import Callable

SECONDS = 1.0  # of steps that make one sample
WARM_UP = 2  # steps: the first may compile, the second may still grow buffers


def stopwatch(step: Callable[[], None], wait: Callable[[], None]) -> Callable[[], float]:
    """A function that takes steps and returns the milliseconds of one, warmed up. wait: for all steps so far to end."""
    for _ in range(WARM_UP):
        step()
    wait()

    def milliseconds(steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        return 1e3 * (time.perf_counter() - started) / steps

    steps = max(1, round(1e3 * SECONDS / milliseconds(1)))
    return lambda: milliseconds(steps)
