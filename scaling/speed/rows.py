"""The rows of a benchmark: what was measured beside what, in which unit, and how many times as good ours is. No JAX.

A ratio is made of two things that ran in turn on one machine, and is the median over the turns of the ratio of each: a
machine that slows down for a while slows both, and leaves the ratio as it is. So ratios of different days compare, and
absolute values, which are in the file too, compare only on a machine that nobody else uses.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Any

from scaling.errors import nearest
from scaling.specs import LONG, from_dict, require, settle, shown

LESS_IS_BETTER = ("ms", "s", "GiB")
MORE_IS_BETTER = ("tokens/s", "share")
_FAR = 1e-6  # a ratio in a file may be rounded, and no more

Samples = tuple[tuple[float, float | None], ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. samples: (ours, peer) of each turn, of which `ours` and `peer` are the medians.

    what: was measured, and by which options. peer_is: the same of the peer; where there is no natural one, it is the
    yardstick in its place.
    """

    name: str
    unit: str
    ours: float
    peer: float | None
    what: str
    peer_is: str = ""
    samples: Samples = ()

    def __post_init__(self) -> None:
        settle(self, "row")
        require(self.name.isprintable() and 0 < len(self.name) <= LONG, f"{shown(self.name)} cannot name a row")
        units = (*LESS_IS_BETTER, *MORE_IS_BETTER)
        require(self.unit in units, f"unit={shown(self.unit)} is unknown", nearest(self.unit[:40], units))
        for pair in ((self.ours, self.peer), *self.samples):
            require(all(x is None or x > 0 for x in pair), f"{shown(self.name)}: {shown(pair)} is not positive")
            same = (pair[1] is None) == (self.peer is None)
            require(same, f"{shown(self.name)}: a peer in some samples, and not in all")
        require(self.ratio is None or 0 < self.ratio < math.inf, f"{shown(self.name)}: a ratio of {self.ratio}")

    @property
    def ratio(self) -> float | None:
        """How many times as good as the peer, larger is better: the median over the turns. None without a peer."""
        if self.peer is None:
            return None
        better = self._better
        return statistics.median([better(*pair) for pair in self.samples or ((self.ours, self.peer),)])

    @property
    def spread(self) -> tuple[float, float] | None:
        """The least and the greatest ratio of a turn; None without a peer, or without turns."""
        ratios = [self._better(*pair) for pair in self.samples] if self.peer is not None else []
        return (min(ratios), max(ratios)) if ratios else None

    def _better(self, ours: float, peer: float) -> float:
        return peer / ours if self.unit in LESS_IS_BETTER else ours / peer


def alternate(ours: Callable[[], float], peer: Callable[[], float] | None, repeats: int) -> Samples:
    """Calls both in turn, each once before to warm up, and returns what they measured. Who goes first alternates."""
    for measure in (ours, peer):
        if measure is not None:
            measure()
    samples = []
    for turn in range(repeats):
        if peer is None:
            samples.append((ours(), None))
        elif turn % 2:
            theirs = peer()
            samples.append((ours(), theirs))
        else:
            samples.append((ours(), peer()))
    return tuple(samples)


def row_of(name: str, unit: str, samples: Samples, what: str, peer_is: str = "") -> Row:
    """The row of what `alternate` measured, with the medians of its samples."""
    ours, peers = [pair[0] for pair in samples], [pair[1] for pair in samples]
    peer = None if None in peers else statistics.median(peers)
    return Row(name, unit, statistics.median(ours), peer, what, peer_is, samples)


def row_to_dict(row: Row) -> dict[str, Any]:
    """A row as it stands in a file, with its ratio, which the reader of the file need not compute."""
    values = dataclasses.asdict(row)
    return {**values, "samples": [list(pair) for pair in row.samples], "ratio": row.ratio}


def row_from_dict(values: Any, where: str = "") -> Row:
    """The inverse. Raises InputError as `from_dict` does, and for a ratio that does not follow from the samples."""
    require(isinstance(values, dict), f"expected the mapping of a row, got {shown(values)}", where=where)
    values = dict(values)
    said = values.pop("ratio", None)
    row = from_dict(Row, values, where)
    number = isinstance(said, float | int) and not isinstance(said, bool)
    follows = said is None if row.ratio is None else number and math.isclose(said, row.ratio, rel_tol=_FAR)
    require(follows, f"{shown(row.name)}: ratio={shown(said)}, and its samples give {row.ratio}", where=where)
    return row
