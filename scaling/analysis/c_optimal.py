"""c-optimal designs: which runs to add so that one function of the parameters is known best, at a limited cost.

With noise of one standard deviation, runs of gradients J_r give the information M = sum over r of J_r J_r^T, and a
quantity of gradient c the variance c^T M^-1 c (Pukelsheim 2006, ch. 2). Under B draws of the parameters, what counts is
the ratio of the variance after to that before, averaged over the draws (Chaloner & Larntz 1989): between 0 and 1 in
each of them, so that no draw outvotes the others, and free of the noise's size.

Runs are added by gain and exchanged one by one (Fedorov 1972), from two starts. That ends near the best set and not
always at it, which a test measures against all subsets.
"""

from typing import NamedTuple

import numpy as np

ROUNDS = 20  # of exchanges, each of which tries every candidate
RIDGE = 1e-10  # of the diagonal of the information: what the runs do not tell at all has a large variance, not none


class Information(NamedTuple):
    """What B draws of the law say of their parameters: M_BxPxP, and c_BxP, the gradient of ln N* at the target."""

    M_BxPxP: np.ndarray
    c_BxP: np.ndarray

    def with_cells(self, J_BxMxP: np.ndarray) -> "Information":
        """After runs of M more cells."""
        return self._replace(M_BxPxP=self.M_BxPxP + np.matmul(J_BxMxP.transpose(0, 2, 1), J_BxMxP))

    def variance(self) -> np.ndarray:
        """Of ln N* under each draw, in units of the noise."""
        return (self.c_BxP * np.linalg.solve(self._regular(), self.c_BxP[:, :, None])[:, :, 0]).sum(1)

    def variance_with(self, J_BxMxP: np.ndarray) -> np.ndarray:
        """The variance after one of M cells more, for each of them, BxM (Sherman & Morrison 1950)."""
        inverse_BxPxP = np.linalg.inv(self._regular())
        pull_BxP = np.matmul(inverse_BxPxP, self.c_BxP[:, :, None])[:, :, 0]
        along_BxM = np.matmul(J_BxMxP, pull_BxP[:, :, None])[:, :, 0]
        own_BxM = np.einsum("bmp,bpq,bmq->bm", J_BxMxP, inverse_BxPxP, J_BxMxP, optimize=True)
        return (self.c_BxP * pull_BxP).sum(1)[:, None] - along_BxM**2 / (1 + own_BxM)

    def ratio(self, before: "Information") -> float:
        """The variance over that before, averaged over the draws."""
        return float((self.variance() / before.variance()).mean())

    def _regular(self) -> np.ndarray:
        diagonal_BxP = np.einsum("bpp->bp", self.M_BxPxP)
        # The second part is for a parameter of a term that has died in a draw, of which no run tells anything.
        ridge_BxP = RIDGE * (diagonal_BxP + RIDGE * diagonal_BxP.max(1, keepdims=True))
        return self.M_BxPxP + ridge_BxP[:, :, None] * np.eye(diagonal_BxP.shape[1])


def choose(now: Information, J_BxMxP: np.ndarray, C_M: np.ndarray, cells: int, flops: float) -> list[int]:
    """The numbers of at most `cells` of M candidates, of at most `flops` FLOPs, that leave the least variance.

    From two starts, the best cells per FLOP and the best cells: exchanges of single cells end in local optima. Returned
    best gain per FLOP first. A cell is proposed once: a second seed of it tells of noise what another size would too.
    """
    limits = Limits(C_M, cells, flops)
    ends = [_improved(now, J_BxMxP, limits, _greedy(now, J_BxMxP, limits, [], price_M)) for price_M in (C_M, C_M**0)]
    best = min(ends, key=lambda chosen: now.with_cells(J_BxMxP[:, chosen]).ratio(now))
    only_best = np.where(np.isin(np.arange(len(C_M)), best), C_M, np.inf)
    return _greedy(now, J_BxMxP, limits._replace(C_M=only_best), [], C_M)


class Limits(NamedTuple):
    """What a choice among M candidates may cost: C_M FLOPs each, at most so many cells, so many FLOPs in all."""

    C_M: np.ndarray
    cells: int
    flops: float

    def possible(self, chosen: list[int]) -> np.ndarray:
        """Which candidates can be added."""
        possible_M = (self.flops - self.C_M[chosen].sum()) * (1 + 1e-9) >= self.C_M
        possible_M[chosen] = False
        return possible_M & (len(chosen) < self.cells)


def _greedy(now: Information, J_BxMxP: np.ndarray, limits: Limits, chosen: list[int], price_M: np.ndarray) -> list[int]:
    """Adds the cell of the largest gain over its price until none is possible."""
    base_B = now.variance()
    while (possible_M := limits.possible(chosen)).any():
        at = now.with_cells(J_BxMxP[:, chosen])
        gain_M = ((at.variance()[:, None] - at.variance_with(J_BxMxP)) / base_B[:, None]).mean(0) / price_M
        chosen = [*chosen, int(np.where(possible_M, gain_M, -np.inf).argmax())]
    return chosen


def _improved(now: Information, J_BxMxP: np.ndarray, limits: Limits, chosen: list[int]) -> list[int]:
    """Exchanges one cell after the other for a better one, and adds what can be added, until nothing changes."""
    for _ in range(ROUNDS):
        before = list(chosen)
        for k in range(len(chosen)):
            chosen[k] = _exchange(now, J_BxMxP, limits, chosen, k)
        chosen = _greedy(now, J_BxMxP, limits, chosen, limits.C_M**0)
        if chosen == before:
            break
    return chosen


def _exchange(now: Information, J_BxMxP: np.ndarray, limits: Limits, chosen: list[int], k: int) -> int:
    """The cell that leaves the least variance in the place of the k-th, given the others; the k-th itself on a tie."""
    others = chosen[:k] + chosen[k + 1 :]
    left_M = (now.with_cells(J_BxMxP[:, others]).variance_with(J_BxMxP) / now.variance()[:, None]).mean(0)
    best = int(np.where(limits.possible(others), left_M, np.inf).argmin())
    return best if left_M[best] < left_M[chosen[k]] * (1 - 1e-9) else chosen[k]
