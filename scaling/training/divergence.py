"""Whether a run has diverged, judged against its own history of training losses.

Training at scale has spikes of the loss that go away by themselves, some after hundreds of steps: PaLM (Chowdhery et
al. 2022, section 5.1) had about twenty in a run. And a sweep of learning rates has cells that are merely bad: they
learn little, or stay where they are, and their losses are what the sweep is for. Wortsman et al. 2023
(arXiv:2309.14322) count a diverged run as if it were at its initial loss, and end none. So a run is ended only once it
has lost for good half of what it had, when going on would buy nothing but a worse number.

The level of a run is the median loss of its last w steps, w = a twentieth of the run, but from 10 to 100: however high
a spike is, it moves the level only once it fills half of that. (A mean would be moved by one step: of 50 nats, in ten
steps.) The first level is that of the first w steps, or the loss of the first step, which no update has spoilt, if that
is lower. What the run has learned is the first level less the lowest. It has diverged if its level is above the lowest
by more than half of what it has learned, and by at least 0.5 nats, below which noise and a learning rate that is too
high look alike, and has been so

    for a tenth of the run on end: a spike that is over by then is none, whatever it cost; or
    for w steps on end at the last one, after which nothing can recover: what is measured then is no trained model.

A false alarm loses a cell of a sweep; a late one costs a tenth of its compute. A loss that is not finite is not judged
here: it ends a run at once.

The history is a plain value of at most 100 losses and some numbers, and goes into each checkpoint. The loss of every
step goes through it in order, so a run that is stopped anywhere and restored is judged as one that was not.
"""

import dataclasses
import statistics
from typing import Any

LOST = 0.5  # of what was learned
NATS = 0.5


@dataclasses.dataclass(frozen=True)
class History:
    """What is remembered of the training losses of a run of `steps` steps, of which `done` are done. Nats a token."""

    steps: int
    done: int = 0
    last: tuple[float, ...] = ()  # losses, at most a window of them
    first: float | None = None  # level; None until there is one
    lowest: float | None = None  # level
    above: int = 0  # for how many steps the level has been too far above the lowest, up to now

    @property
    def window(self) -> int:
        """Steps whose median is the level."""
        return min(100, max(10, self.steps // 20))

    @property
    def patience(self) -> int:
        """Steps for which a level that is too high may still come down."""
        return max(10, self.steps // 10)

    @property
    def limit(self) -> float:
        """The level above which a run has lost too much."""
        return _limit(self.first, self.lowest)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> "History":
        """The inverse of `to_json`, to the bit."""
        return History(**{**values, "last": tuple(values["last"])})


def after(history: History, loss: float) -> History:
    """The history after one more step, with its loss: the mean over its batch, finite.

    It is called after each step of a run and of its forks, so it is spelled out: dataclasses.replace and
    statistics.median_low take three to thirty times as long.
    """
    last, first, lowest, above = (*history.last, loss)[-history.window :], history.first, history.lowest, history.above
    if len(last) == history.window:
        level = sorted(last)[(len(last) - 1) // 2]  # the lower median
        first = min(level, last[0]) if first is None else first
        lowest = level if lowest is None else min(lowest, level)
        above = above + 1 if level > _limit(first, lowest) else 0
    return History(history.steps, history.done + 1, last, first, lowest, above)


def _limit(first: float, lowest: float) -> float:
    return lowest + max(NATS, LOST * (first - lowest))


def divergence(history: History) -> str | None:
    """Why a run is ended as diverged, in words and numbers; None if it is not."""
    if history.above < (history.window if history.done == history.steps else history.patience):
        return None
    level, learned = statistics.median_low(history.last), max(0.0, history.first - history.lowest)
    return (
        f"diverged by step {history.done} of {history.steps}: its loss (median of {history.window} steps) is "
        f"{level:.4g} nats, {level - history.lowest:.3g} above its lowest {history.lowest:.4g}, when it had learned "
        f"{learned:.3g} from its first {history.first:.4g}, and has been above "
        f"{history.limit:.4g} for {history.above} steps"
    )
