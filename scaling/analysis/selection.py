"""Which law, which objective, which rows: by how well each forecasts budgets that it has not seen.

A candidate is a law, an objective and a weighting of the rows. It is fitted to the smallest k budgets and forecasts the
next two, for every k from half of the budgets on (see `holdout`). A law that fits better inside the rows may forecast
worse: the separable law of Hoffmann et al. forecasts too high a loss for the next budget of most published isoFLOP
sets. The single law of least held-out error is the choice; the forecast is the stack of all (see `stacking`).

The error that is reported is nested: the top budgets are forecast by a stack, and by a choice, that were learned from
the smaller budgets alone. The fits to the smallest k budgets serve both, so that nesting costs no further fit.

A weighting by compute counts each row in proportion to its C: a law that is not exact then fits the large runs, next to
what is forecast, at the cost of the small. Two of the laws have no floor E and forecast too low where the others
forecast too high: a stack can only be as good as what it lies between.
"""

import dataclasses
from typing import Any

import numpy as np

from scaling.analysis import stacking
from scaling.analysis.holdout import HORIZON, Candidate, Trials, first_origin, trials
from scaling.analysis.intervals import percentile
from scaling.analysis.laws import Inputs
from scaling.analysis.table import Table
from scaling.errors import InputError

LEAST = 4  # budgets: two to fit to, one to learn from, one to test on
DRAWS = 4000


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """A candidate, its fit to all rows, its errors, and its part in the stack.

    parameters: natural ones; theta_P, in coordinates of `centre`. held_out_rmse: of log loss on the top budgets, fitted
    to the others. score: what the choice is by (`stacking.scores` over all origins, smaller is better); weight: in the
    stack. Both None for a law of other inputs than N and D.
    """

    candidate: Candidate
    parameters: dict[str, float]
    theta_P: np.ndarray
    centre: np.ndarray
    held_out_rmse: float
    score: float | None
    weight: float | None

    def loss(self, N: np.ndarray | float, D: np.ndarray | float) -> np.ndarray:
        """The law's loss, in the unit of the table's, at N parameters and D tokens (broadcast)."""
        N, D = np.broadcast_arrays(np.asarray(N, np.float64), np.asarray(D, np.float64))
        inputs = Inputs(N_R=N.ravel(), D_R=D.ravel())
        return np.exp(self.candidate.law.log_loss(self.theta_P[None], inputs, self.centre)).reshape(N.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """What held-out budgets say of every law, and the stack of laws that they ask for.

    scored: every candidate, the least held-out error first. choice: the one of least score. held_out: how many top
    budgets the reported errors are of. nested_rmse: RMSE of log loss there of the stack learned from the other budgets;
    nested_choice_rmse: of the candidate chosen from them. error_H: log errors on the held-out rows of each origin, of
    the stack learned from the other origins. reach: ln of the largest factor of compute that they are forecasts over.
    largest: C of the largest run; flops: C per N D of the rows (median). left_out: {"law", "reason"} of laws that
    some origin cannot determine. fits: how many minimisations it took, each the best of several approaches.
    """

    scored: tuple[Scored, ...]
    choice: Scored
    held_out: int
    nested_rmse: float
    nested_choice_rmse: float
    error_H: np.ndarray
    reach: float
    largest: float
    flops: float
    left_out: tuple[dict[str, str], ...]
    fits: int
    seed: int

    @property
    def stack(self) -> tuple[Scored, ...]:
        """The candidates that the forecast is made of, the largest weight first."""
        return tuple(sorted((one for one in self.scored if one.weight), key=lambda one: -one.weight))

    def rows(self) -> list[dict[str, Any]]:
        """The candidates for a report; parameters beyond floats (a factor whose exponent is undetermined) are None."""
        return [
            {
                "law": one.candidate.law.name,
                "equation": one.candidate.law.equation,
                "objective": one.candidate.objective,
                "weighting": one.candidate.weighting,
                "parameters": {name: x if np.isfinite(x) else None for name, x in one.parameters.items()},
                "held_out_rmse": one.held_out_rmse,
                "score": one.score,
                "weight": one.weight,
                "chosen": one is self.choice,
            }
            for one in self.scored
        ]


def select(table: Table, seed: int = 0) -> Selection | str:
    """Scores laws by the budgets that they were not fitted to, and stacks them; or says why that cannot be done.

    Needs four isoFLOP budgets. All errors are root mean squares of log loss: 0.01 is 1 %. seed: of the starts of fits.
    Where checkpoints of one run are in several budgets, the errors are those of going on with known runs.
    Sources: Tashman 2000 (rolling origins), Breiman 1996 and Yao et al. 2018 (stacking).
    """
    budgets = int(table.budget_R.max()) + 1
    if budgets < LEAST:
        return f"{budgets} isoFLOP budgets: to leave the largest out and learn from the rest takes {LEAST} at least"
    held_out = HORIZON if budgets > LEAST else 1
    seen = budgets - held_out
    tried, left_out = trials(table, range(first_origin(seen), budgets + 1), seed)
    stacked_S = np.flatnonzero([candidate.stacked for candidate in tried.candidates])
    if not len(stacked_S):
        return f"the smallest {tried.origins[0]} of the {budgets} budgets determine no law: {left_out[0]['reason']}"

    some = tried.part(stacked_S)
    folds = some.folds(budgets)
    weight_S, score_S = stacking.stack(folds), stacking.scores(folds)
    top_SxM = some.errors(seen, budgets)
    learned_S, chosen = stacking.stack(some.folds(seen)), stacking.scores(some.folds(seen)).argmin()

    scored = _scored(tried, seen, budgets, dict(zip(stacked_S, zip(score_S, weight_S, strict=True), strict=True)))
    return Selection(
        scored=tuple(sorted(scored, key=lambda one: one.held_out_rmse)),
        choice=scored[stacked_S[score_S.argmin()]],
        held_out=held_out,
        nested_rmse=float(stacking.rms(learned_S @ top_SxM)),
        nested_choice_rmse=float(stacking.rms(top_SxM[chosen])),
        error_H=stacking.unseen(folds),
        reach=_reach(table, budgets),
        largest=float(table.C_R.max()),
        flops=float(np.median(table.C_R / (table.N_R * table.D_R))),
        left_out=tuple(left_out),
        fits=tried.error_JxKxR.shape[0] * tried.error_JxKxR.shape[1],
        seed=seed,
    )


def predict(selection: Selection, N: float, D: float) -> dict[str, Any]:
    """EST of the measured loss, in the table's unit, of a new run of N parameters on D tokens, whichever law holds.

    The value is the stack's: the geometric mean of its laws. The draws are of a law, with the chance of its weight, and
    of an error of the stack on held-out rows, of either sign, since which way it errs next is not known. Those errors
    are of fits to fewer rows, and so carry the parameters' uncertainty, the misfit and the scatter of runs together.
    Beyond the compute they were forecast over, they are scaled in proportion to ln C, as errors of extrapolated laws
    grow (benchmarks.selection). Raises InputError where N or D is not positive.
    """
    if not (N > 0 and D > 0):
        raise InputError(f"N={N}, D={D}: both must be positive")
    rng = np.random.default_rng([selection.seed, 2])
    stack = selection.stack
    weight_S = np.array([one.weight for one in stack])
    log_loss_S = np.log([float(one.loss(N, D)) for one in stack])
    beyond = max(1.0, float(np.log(selection.flops * N * D / selection.largest)) / selection.reach)
    error_B = rng.choice(selection.error_H, DRAWS) * rng.choice([-1.0, 1.0], DRAWS) * beyond
    draws_B = np.exp(rng.choice(log_loss_S, DRAWS, p=weight_S) + error_B)
    return percentile(float(np.exp(weight_S @ log_loss_S)), draws_B)


def _scored(tried: Trials, seen: int, budgets: int, stacked: dict[int, tuple[float, float]]) -> list[Scored]:
    """Every candidate with its error on the top budgets; stacked: (score, weight) of those in the stack."""
    held_J = stacking.rms(tried.errors(seen, budgets))
    found = []
    for j, candidate in enumerate(tried.candidates):
        theta_P, centre = tried.theta_J[j], tried.centre_J[j]
        natural = candidate.law.natural(theta_P[None], centre)
        score, weight = (float(x) for x in stacked[j]) if j in stacked else (None, None)
        parameters = {name: float(natural[name][0]) for name in candidate.law.parameters}
        found.append(Scored(candidate, parameters, theta_P, centre, float(held_J[j]), score, weight))
    return found


def _reach(table: Table, budgets: int) -> float:
    """ln of the largest factor of compute between the last budget fitted to and the last one forecast from it."""
    log_C_K = np.array([np.log(table.C_R[table.budget_R == k]).mean() for k in range(budgets)])
    return max(
        float(log_C_K[min(origin + HORIZON, budgets) - 1] - log_C_K[origin - 1])
        for origin in range(first_origin(budgets), budgets)
    )
