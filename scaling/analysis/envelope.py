"""Approach 1: the lower envelope of the training curves (Hoffmann et al. 2022, 3.1).

At every compute C the run with the lowest held-out loss is compute-optimal among those there are; its N and D at that C
give N*(C) and D*(C). Two kinds of points are left out: where the winner is the smallest or the largest size still in
the race, so that only the end of the sizes shows, and where some run had reached a lower loss with less compute, which
happens after the annealed ends of runs.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from scaling.analysis.curves import Curves
from scaling.analysis.powers import Power, power_law

GRID = 400  # values of C, evenly in log C
MIN_RUNS = 3  # sizes that touch the envelope between the edges; fewer give no slope
CAUTION = (
    "The learning rate of an intermediate point has not been annealed unless the schedule ends there: losses on the "
    "way of a cosine run lie above those of a run planned to end there, which favours the ends of runs."
)


class Race(NamedTuple):
    """All runs on a grid of compute: loss_KxG (infinite where a run has no curve), log C_G, and per run N_K, F_K."""

    log_C_G: np.ndarray
    loss_KxG: np.ndarray
    N_K: np.ndarray
    F_K: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Envelope:
    """Approach 1. winner_G: the best run at each C; inner_G: where it touches the envelope, bracketed; loss_G: of
    that."""

    race: Race
    winner_G: np.ndarray
    inner_G: np.ndarray
    loss_G: np.ndarray
    N_power: Power
    D_power: Power


def envelope(curves: Curves | None) -> Envelope | str:
    """Approach 1 on the training curves; a string says why it cannot be done."""
    if curves is None:
        return "no training curves were given"
    race = race_of(curves)
    if len(np.unique(race.N_K)) < MIN_RUNS:
        return f"the curves are of {len(np.unique(race.N_K))} sizes; {MIN_RUNS} are the least"
    everyone = np.ones((1, len(race.N_K)), bool)
    winner_BxG, inner_BxG = winners(race, everyone)
    touching = sizes_touched(race, winner_BxG[0], inner_BxG[0])
    if touching < MIN_RUNS:
        return (
            f"the envelope touches the curves of {touching} sizes between the smallest and the largest; "
            f"{MIN_RUNS} are the least for a slope"
        )
    N_power, D_power = powers(race, winner_BxG, inner_BxG)
    loss_G = np.minimum.accumulate(race.loss_KxG[winner_BxG[0], np.arange(GRID)])
    return Envelope(race, winner_BxG[0], inner_BxG[0], loss_G, N_power, D_power)


def race_of(curves: Curves) -> Race:
    """Puts the curves on one grid of compute, log-log between their points and nowhere beyond them."""
    runs = range(len(curves.names))
    log_C_G = np.linspace(np.log(curves.C_P.min()), np.log(curves.C_P.max()), GRID)
    loss_KxG = np.full((len(runs), GRID), np.inf)
    for run in runs:
        points = curves.of(run)
        log_C, log_loss = np.log(curves.C_P[points]), np.log(curves.loss_P[points])
        # A run's last point must count although the grid does not hit it: half a grid step of slack at both ends.
        slack = 0.5 * (log_C_G[1] - log_C_G[0])
        covered_G = (log_C_G >= log_C[0] - slack) & (log_C_G <= log_C[-1] + slack)
        loss_KxG[run, covered_G] = np.exp(np.interp(log_C_G[covered_G], log_C, log_loss))
    last = [curves.of(run)[-1] for run in runs]
    return Race(log_C_G, loss_KxG, curves.N_P[last], curves.C_P[last] / curves.D_P[last])


def winners(race: Race, present_BxK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best run at each C among those present, winner_BxG; and inner_BxG, whether its loss is the lowest so far and
    smaller and larger sizes were in the race."""
    B, G = len(present_BxK), len(race.log_C_G)
    winner_BxG, inner_BxG = np.zeros((B, G), np.int64), np.zeros((B, G), bool)
    running_KxG = np.isfinite(race.loss_KxG)
    for b, present_K in enumerate(present_BxK):
        loss_KxG = np.where(present_K[:, None], race.loss_KxG, np.inf)
        winner_G = loss_KxG.argmin(0)
        racing_KxG = running_KxG & present_K[:, None]
        smallest_G = np.where(racing_KxG, race.N_K[:, None], np.inf).min(0)
        largest_G = np.where(racing_KxG, race.N_K[:, None], -np.inf).max(0)
        N_G = race.N_K[winner_G]
        loss_G = loss_KxG.min(0)
        lowest_G = loss_G == np.minimum.accumulate(loss_G)
        winner_BxG[b], inner_BxG[b] = winner_G, lowest_G & (N_G > smallest_G) & (N_G < largest_G)
    return winner_BxG, inner_BxG


def sizes_touched(race: Race, winner_G: np.ndarray, inner_G: np.ndarray) -> int:
    """How many sizes hold a bracketed part of the envelope."""
    return len(np.unique(race.N_K[winner_G[inner_G]]))


def powers(race: Race, winner_BxG: np.ndarray, inner_BxG: np.ndarray) -> tuple[Power, Power]:
    """N*(C) and D*(C) through the inner points of B envelopes; NaN where they touch fewer than MIN_RUNS sizes."""
    for b, (winner_G, inner_G) in enumerate(zip(winner_BxG, inner_BxG, strict=True)):
        if sizes_touched(race, winner_G, inner_G) < MIN_RUNS:
            inner_BxG[b] = False
    C_G = np.exp(race.log_C_G)
    N_BxG = np.where(inner_BxG, race.N_K[winner_BxG], np.nan)
    D_BxG = np.where(inner_BxG, C_G / race.F_K[winner_BxG], np.nan)
    return power_law(C_G[None], N_BxG), power_law(C_G[None], D_BxG)


def touches(found: Envelope, names: tuple[str, ...]) -> list[dict[str, float | str]]:
    """One point for each stretch along which one run touches the envelope: its middle in log C."""
    used_G = np.flatnonzero(found.inner_G)
    edges = np.flatnonzero((np.diff(found.winner_G[used_G]) != 0) | (np.diff(used_G) > 1)) + 1
    points = []
    for part in np.split(used_G, edges):
        middle = part[len(part) // 2]
        run = int(found.winner_G[middle])
        C = float(np.exp(found.race.log_C_G[middle]))
        points.append(
            {
                "run": names[run],
                "C": C,
                "N": float(found.race.N_K[run]),
                "D": C / float(found.race.F_K[run]),
                "loss": float(found.loss_G[middle]),
            }
        )
    return points
