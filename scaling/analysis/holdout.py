"""Candidates fitted to the smallest k budgets of a table, for several k, and their errors on all of its rows.

Forecasting from a rolling origin (Tashman 2000): each fit forecasts the budgets next to those that it was fitted to,
which is what a scaling law is for. Leaving rows out at random would test interpolation instead.
"""

import dataclasses
import itertools
from typing import NamedTuple

import numpy as np

from scaling.analysis.fitting import HUBER_LOG
from scaling.analysis.laws import COLUMN, LAWS, Inputs, Law, hold, inputs_of
from scaling.analysis.newton import WIDER, Problem, Steps, approach, local, minimise
from scaling.analysis.table import Table
from scaling.errors import InputError

HORIZON = 2  # budgets forecast from each origin
STARTS = 5  # of each fit; the best after least squares goes on
STEPS = Steps(tolerance=1e-8, most=100)  # Newton's, of the objective and of a wider one before it: enough to forecast
SQUARES = 1e3  # a Huber zone that no residual of log loss leaves, so that both objectives are one batch
OBJECTIVES = {"huber_log": HUBER_LOG.delta, "squares_log": SQUARES}  # the zone of each
WEIGHTINGS = {"equal": 0.0, "compute": 1.0}  # the power of C that a row counts with
EQUAL = {"equal": 0.0}
FLOORLESS = dataclasses.replace(
    hold(LAWS["coupled"], {"E": 0.0}), name="floorless", equation="L = (A / N^(alpha / k) + B / D^(beta / k))^k"
)
STACKED = (LAWS["chinchilla"], LAWS["tied"], LAWS["coupled"], FLOORLESS, LAWS["kaplan"])  # functions of N and D
OTHERS = (LAWS["data_constrained"], LAWS["width_depth"], LAWS["moe"])  # scored where the table has their columns


class Candidate(NamedTuple):
    """A law, an objective ("huber_log" or "squares_log") and a weighting of the rows ("equal", or "compute": by C)."""

    law: Law
    objective: str
    weighting: str

    @property
    def stacked(self) -> bool:
        """Whether it is a function of N and D alone, and so may be chosen or be part of a stack."""
        return set(self.law.needs) == {"N", "D"}


class Trials(NamedTuple):
    """J candidates fitted to the smallest k budgets, for the K numbers k of `origins`; the last is all of them.

    theta_J: of the fit to all rows, in coordinates of centre_J. error_JxKxR: log loss less log law, on all rows.
    budget_R: of each row, from zero; -1 for none.
    """

    candidates: tuple[Candidate, ...]
    origins: range
    theta_J: tuple[np.ndarray, ...]
    centre_J: tuple[np.ndarray, ...]
    error_JxKxR: np.ndarray
    budget_R: np.ndarray

    def errors(self, origin: int, end: int) -> np.ndarray:
        """error_JxM of the fits to budgets below `origin`, on the rows of the next HORIZON budgets below `end`."""
        next_R = (self.budget_R >= origin) & (self.budget_R < min(origin + HORIZON, end))
        return self.error_JxKxR[:, self.origins.index(origin), next_R]

    def folds(self, end: int) -> list[np.ndarray]:
        """The errors from every origin of a table of the budgets below `end` alone."""
        return [self.errors(origin, end) for origin in range(first_origin(end), end)]

    def part(self, members_J: np.ndarray) -> "Trials":
        """Some of the candidates."""
        pick = [tuple(values[j] for j in members_J) for values in (self.candidates, self.theta_J, self.centre_J)]
        return Trials(pick[0], self.origins, pick[1], pick[2], self.error_JxKxR[members_J], self.budget_R)


def first_origin(budgets: int) -> int:
    """The fewest budgets that laws are fitted to: half of those there are, and two at least."""
    return max(2, budgets // 2)


def trials(table: Table, origins: range, seed: int) -> tuple[Trials, list[dict[str, str]]]:
    """Fits every candidate from every origin; and {"law", "reason"} of the laws that some origin cannot determine."""
    train_KxR = np.stack([_below(table, origin) for origin in origins])
    candidates, theta_J, centre_J, error_J, left_out = [], [], [], [], []
    for law in _laws(table):
        try:
            inputs = inputs_of(table, law)
            _check(law, inputs, train_KxR)
        except InputError as error:
            left_out.append({"law": law.name, "reason": str(error)})
            continue
        objectives, weightings = (OBJECTIVES, WEIGHTINGS) if law in STACKED else ({"huber_log": HUBER_LOG.delta}, EQUAL)
        candidates += [Candidate(law, *way) for way in itertools.product(objectives, weightings)]
        centre = law.centre(inputs)
        count_WxR = (table.C_R / table.C_R.max()) ** np.array(list(weightings.values()))[:, None]
        weight_WxKxR = count_WxR[:, None] * train_KxR
        theta_OxWxKxP = fits(law, inputs, centre, table.loss_R, weight_WxKxR, list(objectives.values()), seed)
        for theta_KxP in theta_OxWxKxP.reshape(-1, *theta_OxWxKxP.shape[2:]):
            theta_J.append(theta_KxP[-1])
            centre_J.append(centre)
            error_J.append(np.log(table.loss_R) - law.log_loss(theta_KxP, inputs, centre))
    error_JxKxR = np.array(error_J).reshape(-1, *train_KxR.shape)
    found = Trials(tuple(candidates), origins, tuple(theta_J), tuple(centre_J), error_JxKxR, table.budget_R)
    return found, left_out


def fits(
    law: Law,
    inputs: Inputs,
    centre: np.ndarray,
    loss_R: np.ndarray,
    weight_WxKxR: np.ndarray,
    delta_O: list[float],
    seed: int,
) -> np.ndarray:
    """theta_OxWxKxP of a law fitted with O objectives under W x K weightings of the rows, zero where held out.

    All objectives go on from the best of STARTS approaches by least squares. For a forecast that will do; the fit that
    is reported has its certificate from `fitting.fit`.
    """
    W, K, R = weight_WxKxR.shape
    B, S, both = W * K, STARTS, len(delta_O)
    weight_BxR = weight_WxKxR.reshape(B, R) / weight_WxKxR.reshape(B, R).mean(1, keepdims=True)
    start_SxP = law.starts(S, inputs, loss_R, centre, np.random.default_rng(seed))
    squares = Problem(law, inputs, loss_R, centre, SQUARES)
    many_SBxR = np.tile(weight_BxR, (S, 1))
    near_SBxP = approach(squares, many_SBxR, np.repeat(start_SxP, B, axis=0))
    value_SxB = local(squares, many_SBxR, near_SBxP, second=False).value_B.reshape(S, B)
    near_BxP = near_SBxP.reshape(S, B, -1)[value_SxB.argmin(0), np.arange(B)]

    delta_OBx1, both_OBxR = np.repeat(delta_O, B)[:, None], np.tile(weight_BxR, (both, 1))
    wide = minimise(squares._replace(delta=WIDER * delta_OBx1), both_OBxR, np.tile(near_BxP, (both, 1)), STEPS)
    ends = minimise(squares._replace(delta=delta_OBx1), both_OBxR, wide.theta_BxP, STEPS)
    return ends.theta_BxP.reshape(both, W, K, -1)


def _laws(table: Table) -> tuple[Law, ...]:
    known = {"N", "D", "C", *table.extra}
    return (*STACKED, *(law for law in OTHERS if {COLUMN[field] for field in law.needs} <= known))


def _check(law: Law, inputs: Inputs, train_KxR: np.ndarray) -> None:
    """Raises InputError where the rows of some origin cannot determine the law."""
    for train_R in train_KxR:
        law.check(inputs.rows(train_R))


def _below(table: Table, origin: int) -> np.ndarray:
    """Rows of the budgets below `origin`, with those of no budget that cost no more than they."""
    below_R = (table.budget_R >= 0) & (table.budget_R < origin)
    return below_R | ((table.budget_R < 0) & (table.C_R <= table.C_R[below_R].max()))
