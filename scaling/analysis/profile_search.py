"""How profiles are traced: outwards from the fit, back again, and finer where it matters; many in one batch.

Every point is a minimisation that starts from its neighbour's minimum, a few Newton steps away. On the way out a
profile may stay on a branch that ceases to be the lowest, so that all points are tried again from both neighbours until
nothing falls. Both sides of the profiles of all parameters are rows of one batch.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scaling.analysis import absolute, newton
from scaling.analysis.newton import Problem
from scaling.analysis.pinning import Quantity

LEFT, RIGHT = 0, -1  # the ends of a profile
PAST = 1.5  # thresholds to go on to, so that a figure shows the profile leave its interval
RISE = (0.15, 0.6)  # thresholds that one step should rise by; it doubles below and halves above
LARGEST = 0.1  # step, of the range searched
GAP = 0.35  # largest step of the root of the objective between points of a profile, in roots of the threshold
FINE = 0.1  # the same at the ends of the interval, where the root is then a straight line
FALL = 1e-3  # of a threshold: a profile that falls by less in a sweep has settled
MAX_STEPS = 40  # outwards, on each side
MAX_ROUNDS = 3  # outwards and back
MAX_SWEEPS = 3
MAX_TURNS = 8  # of filling in
POLISH_STEPS = 30  # of a point from its neighbour; one that stops above its minimum in a flat valley is swept again


class Search(NamedTuple):
    """What is profiled, together: the pinned problem, its Q quantities, their limits in x, and the fit's objective."""

    problem: Problem
    absolute: bool
    held: tuple[Quantity, ...]
    limit_Qx2: np.ndarray
    best: float


class Curve(NamedTuple):
    """G points of a profile in ascending x: the objective there, and the pinned law's coordinates."""

    x_G: np.ndarray
    value_G: np.ndarray
    theta_GxP: np.ndarray

    def rows(self, index: np.ndarray | slice) -> "Curve":
        """Some of the points."""
        return Curve(*(values[index] for values in self))

    def root(self, best: float) -> np.ndarray:
        """The root of the rise above the fit, signed by the side: a straight line where the objective is a parabola."""
        rise_G = np.maximum(self.value_G - best, 0.0)
        return np.sqrt(rise_G) * np.sign(np.arange(len(rise_G)) - int(np.argmin(rise_G)))


def start(search: Search, theta_P: np.ndarray) -> list[Curve]:
    """The fit, as profiles of one point each."""
    curves = []
    for q, quantity in enumerate(search.held):
        x = quantity.x(theta_P[None]).clip(*search.limit_Qx2[q])
        pinned_P = np.append(theta_P, q)
        pinned_P[quantity.index] = x[0]
        curves.append(Curve(x, np.array([search.best]), pinned_P[None]))
    return curves


def explore(
    search: Search, curves: list[Curve], step_Q: np.ndarray, threshold_Q: np.ndarray, reach_Qx2: np.ndarray
) -> list[Curve]:
    """The profiles on both sides until past PAST thresholds and past what is to be reached, or to their limits."""
    for _ in range(MAX_ROUNDS):
        wider = _walk(search, curves, step_Q, threshold_Q, reach_Qx2)
        if _points(wider) == _points(curves):
            break
        curves = _sweep(search, wider, threshold_Q)  # which may lower the ends again
    return curves


def fill(search: Search, curves: list[Curve], threshold_Q: np.ndarray) -> list[Curve]:
    """More points where a profile is coarse within its interval, and next to the interval's ends until they are fine.

    An end is closed in on by the line through its two points and by halving, in turns: where the profile of a logarithm
    is flat and then steep, the line alone is slow.
    """
    for turn in range(MAX_TURNS):
        number, x, begin = [], [], []
        for q, curve in enumerate(curves):
            root_G = curve.root(search.best) / np.sqrt(threshold_Q[q])
            for g, (left, right) in enumerate(itertools.pairwise(root_G)):
                crossed = (abs(left) <= 1) != (abs(right) <= 1)
                if abs(right - left) <= (FINE if crossed else GAP) or min(abs(left), abs(right)) > 1:
                    continue
                share = (np.sign(left + right) - left) / (right - left) if crossed and turn % 2 else 0.5
                number.append(q)
                x.append((1 - share) * curve.x_G[g] + share * curve.x_G[g + 1])
                begin.append((1 - share) * curve.theta_GxP[g] + share * curve.theta_GxP[g + 1])
        if not number:
            break
        added = _solve(search, number, np.array(x), np.array(begin))
        curves = [_merged(curve, added.rows(np.array(number) == q)) for q, curve in enumerate(curves)]
    return curves


def _walk(
    search: Search, curves: list[Curve], step_Q: np.ndarray, threshold_Q: np.ndarray, reach_Qx2: np.ndarray
) -> list[Curve]:
    """Each point starts from the last one, moved on along the line through the last two."""
    curves = list(curves)
    step = {(q, side): step_Q[q] for q in range(len(curves)) for side in (LEFT, RIGHT)}
    for _ in range(MAX_STEPS):
        going = [end for end in step if not _arrived(search, curves[end[0]], *end, threshold_Q, reach_Qx2)]
        if not going:
            break
        ahead = [_ahead(curves[q], side, step[q, side], search.limit_Qx2[q]) for q, side in going]
        x_M, start_MxP = (np.array(part) for part in zip(*ahead, strict=True))
        added = _solve(search, [q for q, _ in going], x_M, start_MxP)
        for m, (q, side) in enumerate(going):
            rise = abs(added.value_G[m] - curves[q].value_G[side]) / threshold_Q[q]
            beyond = added.value_G[m] - search.best > PAST * threshold_Q[q]
            factor = 2.0 if beyond or rise < RISE[0] else 0.5 if rise > RISE[1] else 1.0
            step[q, side] = min(factor * step[q, side], LARGEST * float(np.ptp(search.limit_Qx2[q])))
            curves[q] = _merged(curves[q], added.rows(slice(m, m + 1)))
    return curves


def _ahead(curve: Curve, side: int, step: float, limits: np.ndarray) -> tuple[float, np.ndarray]:
    """The next x beyond one end of a profile, and where its minimum should be."""
    last_x, last_P = curve.x_G[side], curve.theta_GxP[side]
    x = float(np.clip(last_x + (step if side == RIGHT else -step), *limits))
    if len(curve.x_G) == 1:
        return x, last_P
    before = 1 if side == LEFT else -2
    return x, last_P + (x - last_x) / (last_x - curve.x_G[before]) * (last_P - curve.theta_GxP[before])


def _arrived(search: Search, curve: Curve, q: int, side: int, threshold_Q: np.ndarray, reach_Qx2: np.ndarray) -> bool:
    way, x = (1 if side == RIGHT else -1), curve.x_G[side]
    if way * (search.limit_Qx2[q, side] - x) <= 0:
        return True
    return curve.value_G[side] - search.best > PAST * threshold_Q[q] and way * (x - reach_Qx2[q, side]) >= 0


def _sweep(search: Search, curves: list[Curve], threshold_Q: np.ndarray) -> list[Curve]:
    """Every point tried again from its two neighbours: a lower branch that was found further out is followed back."""
    for _ in range(MAX_SWEEPS):
        before = curves
        for step in (-1, 1):
            near = [np.clip(np.arange(len(curve.x_G)) + step, 0, len(curve.x_G) - 1) for curve in curves]
            start_MxP = np.concatenate([curve.theta_GxP[g] for curve, g in zip(curves, near, strict=True)])
            number_M = np.repeat(np.arange(len(curves)), [len(curve.x_G) for curve in curves])
            found = _solve(search, number_M, np.concatenate([curve.x_G for curve in curves]), start_MxP)
            curves = [_merged(curve, found.rows(number_M == q)) for q, curve in enumerate(curves)]
        fell_Q = [(old.value_G - new.value_G).max() for old, new in zip(before, curves, strict=True)]
        if np.all(fell_Q < FALL * threshold_Q):
            break
    return curves


def _solve(search: Search, number_M: Sequence[int] | np.ndarray, x_M: np.ndarray, start_MxP: np.ndarray) -> Curve:
    """The minima with quantity number_M held at x_M, from starts near them."""
    number_M, start_MxP = np.asarray(number_M), start_MxP.copy()
    start_MxP[np.arange(len(x_M)), [search.held[q].index for q in number_M]] = x_M
    start_MxP[:, -1] = number_M
    solver = absolute if search.absolute else newton
    end = solver.polish(search.problem, np.ones((len(x_M), len(search.problem.loss_R))), start_MxP, POLISH_STEPS)
    return Curve(x_M, end.value_B, end.theta_BxP)


def _merged(curve: Curve, added: Curve) -> Curve:
    """Both in ascending order; of two points at one x, the lower."""
    both = Curve(*(np.concatenate(pair) for pair in zip(curve, added, strict=True)))
    order = np.lexsort((both.value_G, both.x_G))
    first = np.append(True, np.diff(both.x_G[order]) > 0)
    return both.rows(order[first])


def _points(curves: list[Curve]) -> int:
    return sum(len(curve.x_G) for curve in curves)
