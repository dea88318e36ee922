"""Approach 3: fits a law to runs, the global minimum over many starts, with a certificate that it is one."""

import dataclasses
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from scaling.analysis import absolute, newton
from scaling.analysis.laws import COLUMN, Inputs, Law, inputs_of, law_named
from scaling.analysis.newton import Minimum, Problem
from scaling.analysis.table import Table, table_from_frame
from scaling.errors import InputError, nearest

Kind = Literal["huber_log", "squares_log", "absolute_log", "huber_raw", "squares_raw", "absolute_raw"]
STARTS = 24
SAME = 1e-7  # relative difference of objectives below which two starts ended in the same minimum
AGAIN = 3  # times that an end in a flat valley is taken up again, where newton.MAX_STEPS did not do
NEAR_STEPS = 30  # of a refit from the fit: a resample that needs more is in a flat valley, and takes the long way


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is summed over runs: rho(r), with r = log law - log loss ("_log") or law - loss in its own unit ("_raw").

    huber: r^2 / 2 for |r| <= delta, delta (|r| - delta / 2) beyond (Hoffmann et al. 2022, eq. 3: log, delta = 1e-3);
    squares: r^2 / 2; absolute: |r|, least absolute deviations. delta is used by huber alone.
    """

    kind: Kind = "huber_log"
    delta: float = 1e-3

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"no objective {self.kind!r}", do=nearest(self.kind, get_args(Kind)))
        if not self.delta > 0:
            raise InputError(f"delta={self.delta} of Huber's loss must be positive", do="1e-3 is Hoffmann et al.'s")

    @property
    def absolute(self) -> bool:
        """Whether it is least absolute deviations."""
        return self.kind.startswith("absolute")

    @property
    def raw(self) -> bool:
        """Whether residuals are of loss, not of log loss."""
        return self.kind.endswith("_raw")


HUBER_LOG = Objective()
SQUARES_LOG = Objective("squares_log")
ABSOLUTE_LOG = Objective("absolute_log")


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law. theta_P centred coordinates; parameters natural ones; residual_R = log loss - log law, of the rows
    of inputs and loss_R; value the objective there.

    certificate: gradient_norm (largest, relative to the sum of the absolute contributions of the runs), starts,
    share_reaching_best, basins (different minima among the starts' ends), unfinished (starts that ended at no minimum),
    condition_number (of the curvature with unit diagonal), at_bound (parameters at a bound), rows, objective, steps,
    unit_free (theta gives the same losses in other units of N, D and C, which so cannot change an exponent).
    """

    law: Law
    objective: Objective
    centre: np.ndarray
    theta_P: np.ndarray
    parameters: dict[str, float]
    value: float
    residual_R: np.ndarray
    certificate: dict[str, Any]
    inputs: Inputs
    loss_R: np.ndarray

    def predict(self, inputs: Inputs) -> np.ndarray:
        """The law's loss_M at M points, in the unit of the runs' loss. Raises InputError where an input is missing."""
        absent = [COLUMN[field] for field in self.law.needs if getattr(inputs, f"{field}_R") is None]
        if absent:
            raise InputError(f"the {self.law.name} law needs {', '.join(absent)}", do=f"it is {self.law.equation}")
        return np.exp(self.law.log_loss(self.theta_P[None], _floats(inputs), self.centre))[0]

    def loss(self, N: np.ndarray | float, D: np.ndarray | float) -> np.ndarray:
        """The law's loss, in the unit of the runs', at N parameters and D tokens (broadcast).

        Raises InputError for a law of other inputs than these; `predict` takes them.
        """
        other = [COLUMN[field] for field in self.law.needs if field not in ("N", "D")]
        if other:
            what = f"the {self.law.name} law is not a function of N and D alone: it needs {', '.join(other)}"
            raise InputError(what, do="use predict(Inputs(...))")
        N, D = np.broadcast_arrays(np.asarray(N, np.float64), np.asarray(D, np.float64))
        return law_loss(self.law, self.theta_P[None], self.centre, N.ravel(), D.ravel())[0].reshape(N.shape)


def fit_law(
    table: Table | pd.DataFrame, law: str | Law = "chinchilla", objective: Objective = HUBER_LOG, seed: int = 0
) -> Fit:
    """Fits a scaling law to a table of finished runs: the global minimum over 24 starts, with a certificate.

    table: a Table, or a frame with columns N (parameters), D (tokens), loss (nats per token, or any unit: E, A and B
    are in the unit of the loss) and what else the law needs (C in FLOPs, unique_tokens, width, depth, n_experts). One
    row a run; int columns are converted to float64. law: a name of LAWS, or a Law. objective: Huber's loss of log loss
    with delta 1e-3 by default (Hoffmann et al. 2022, section 3.3). seed: of the starts.

    Returns a Fit: parameters by the names of the law's equation, predict, loss, residual_R and certificate. Raises
    InputError for an unknown law, a column or value that is missing or not positive (by name and row), and fewer
    runs than the law can be determined from.
    """
    law = law_named(law) if isinstance(law, str) else law
    table = table_from_frame(table, needs=_columns(law)) if isinstance(table, pd.DataFrame) else table
    return fit(law, inputs_of(table, law), table.loss_R, objective, seed)


def fit(
    law: Law,
    inputs: Inputs,
    loss_R: np.ndarray,
    objective: Objective = HUBER_LOG,
    seed: int = 0,
    weight_R: np.ndarray | None = None,
    starts: int = STARTS,
) -> Fit:
    """The global minimum over mixture starts. Raises InputError where the runs cannot determine the law.

    inputs, loss_R: float64 copies are taken. weight_R: of each run's contribution to the objective, one by default;
    runs of weight zero do not count.
    """
    inputs, loss_R = _floats(inputs), _positive("loss", loss_R, len(loss_R))
    for field in law.needs:
        if getattr(inputs, f"{field}_R") is not None:  # law.check names those that are
            _positive(COLUMN[field], getattr(inputs, f"{field}_R"), len(loss_R))
    weight_R = np.ones(len(loss_R)) if weight_R is None else np.array(weight_R, np.float64)
    if not (np.isfinite(weight_R) & (weight_R >= 0)).all():
        raise InputError("weights must be finite, and not negative", do="leave runs out by a weight of zero")
    used_R = weight_R > 0
    law.check(inputs.rows(used_R))
    if used_R.sum() <= len(law.parameters):
        what = f"{used_R.sum()} runs cannot determine the {len(law.parameters)} parameters of {law.equation}"
        raise InputError(what, do="add runs")
    problem = problem_of(law, inputs, loss_R, law.centre(inputs), objective)
    start_SxP = law.starts(starts, inputs, loss_R, problem.centre, np.random.default_rng(seed))
    weight_SxR = np.tile(weight_R, (starts, 1))
    end = _solver(objective).descend(problem, weight_SxR, start_SxP)
    best = int(np.argmin(end.value_B))
    if not end.converged_B[best]:
        end = _go_on(problem, weight_SxR, end, objective)
        best = int(np.argmin(end.value_B))
    theta_P = end.theta_BxP[best]
    return Fit(
        law=law,
        objective=objective,
        centre=problem.centre,
        theta_P=theta_P,
        parameters={name: float(value[0]) for name, value in law.natural(theta_P[None], problem.centre).items()},
        value=float(end.value_B[best]),
        residual_R=np.log(loss_R) - law.log_loss(theta_P[None], inputs, problem.centre)[0],
        certificate={
            **_certificate(law, end, best, loss_R),
            "rows": int(used_R.sum()),
            "unit_free": _unit_free(law, theta_P, inputs),
        },
        inputs=inputs,
        loss_R=loss_R,
    )


def refit(
    fitted: Fit,
    inputs: Inputs,
    loss_R: np.ndarray,
    weight_BxR: np.ndarray,
    seed: int,
    *,
    loss_BxR: np.ndarray | None = None,
) -> Minimum:
    """The fit under B weightings of the runs (bootstrap resamples): from the fit, and from one mixture start each.

    loss_BxR: losses of each problem, where they differ (noise added to them). The second start guards against a
    resample whose global minimum is another one than the data's; the better is kept. Ends that are not stationary are
    minimised from there again, up to AGAIN times; those that still are not have converged_B false.
    """
    B = len(weight_BxR)
    solver = _solver(fitted.objective)
    problem = problem_of(fitted.law, _floats(inputs), np.array(loss_R, np.float64), fitted.centre, fitted.objective)
    problem = problem._replace(loss_BxR=loss_BxR)
    near = solver.polish(problem, weight_BxR, np.tile(fitted.theta_P, (B, 1)), NEAR_STEPS)
    start_BxP = fitted.law.starts(B, problem.inputs, problem.loss_R, fitted.centre, np.random.default_rng(seed))
    far = solver.descend(problem, weight_BxR, start_BxP)
    return _go_on(problem, weight_BxR, far.where(far.value_B < near.value_B, near), fitted.objective)


def _go_on(problem: Problem, weight_BxR: np.ndarray, end: Minimum, objective: Objective) -> Minimum:
    """The same ends, but for those that are not stationary: they are taken up again, up to AGAIN times."""
    for _ in range(AGAIN):
        left = np.flatnonzero(~end.converged_B)
        if not len(left):
            break
        again = _solver(objective).descend(problem.take(left), weight_BxR[left], end.theta_BxP[left])
        better = again.value_B <= end.value_B[left]
        for old, new in zip(end, again, strict=True):
            old[left[better]] = new[better]
    return end


def problem_of(law: Law, inputs: Inputs, loss_R: np.ndarray, centre: np.ndarray, objective: Objective) -> Problem:
    """The minimisation that an objective asks for; least absolute deviations set the zones of theirs themselves."""
    delta = objective.delta if objective.kind.startswith("huber") else np.inf
    return Problem(law, inputs, loss_R, centre, delta, objective.raw)


def law_loss(
    law: Law, theta_BxP: np.ndarray, centre: np.ndarray, N: np.ndarray | float, D: np.ndarray | float
) -> np.ndarray:
    """loss_BxM of B parameter vectors at points N_M, D_M, or at points of their own, N_BxM, D_BxM."""
    return np.exp(law.log_loss(theta_BxP, Inputs(np.asarray(N, np.float64), np.asarray(D, np.float64)), centre))


def _solver(objective: Objective) -> ModuleType:
    """The module that minimises the objective: its descend starts anywhere, its polish near the minimum."""
    return absolute if objective.absolute else newton


def _columns(law: Law) -> tuple[str, ...]:
    return tuple(field for field in ("N", "D") if field in law.needs)


def _floats(inputs: Inputs) -> Inputs:
    return Inputs(*(None if values is None else np.array(values, np.float64) for values in inputs))


def _positive(name: str, values_R: np.ndarray, rows: int) -> np.ndarray:
    """A float64 copy of R positive numbers. Raises InputError naming the row of one that is not."""
    values_R = np.array(values_R, np.float64)
    if values_R.shape != (rows,):
        raise InputError(f"{name} has shape {values_R.shape}, and loss {rows} rows", do="give one value a run")
    bad = np.flatnonzero(~(np.isfinite(values_R) & (values_R > 0)))
    if len(bad):
        what = f"{name} is {values_R[bad[0]]} in row {bad[0]} (counting from 0), not a positive number"
        raise InputError(what, do="leave the row out, or correct it")
    return values_R


def _certificate(law: Law, end: Minimum, best: int, loss_R: np.ndarray) -> dict[str, Any]:
    lower_P, upper_P = law.bounds(loss_R)
    theta_P, value = end.theta_BxP[best], end.value_B[best]
    reached_S = end.value_B <= value * (1 + SAME)
    minima = np.sort(end.value_B[end.converged_B | reached_S])
    bound_P = (theta_P <= lower_P) | (theta_P >= upper_P)
    return {
        "gradient_norm": float(end.gradient_B[best]),
        "starts": len(reached_S),
        "share_reaching_best": float(reached_S.mean()),
        "basins": 1 + int((np.diff(minima) > SAME * minima[:-1]).sum()),
        "unfinished": int((~end.converged_B & ~reached_S).sum()),
        "condition_number": float(end.condition_B[best]),
        "at_bound": [name for name, bound in zip(law.parameters, bound_P, strict=True) if bound],
        "objective": float(value),
        "steps": int(end.steps_B[best]),
    }


def _unit_free(law: Law, theta_P: np.ndarray, inputs: Inputs) -> bool:
    """Whether theta gives the same losses in other units of the inputs, so that these cannot change an exponent."""
    units = {"N_R": 1e-6, "D_R": 1e-9, "U_R": 1e-9, "C_R": 1e-18}
    given = {name: unit * getattr(inputs, name) for name, unit in units.items() if getattr(inputs, name) is not None}
    both = [law.log_loss(theta_P[None], x, law.centre(x)) for x in (inputs, inputs._replace(**given))]
    return bool(np.abs(both[0] - both[1]).max() <= 1e-9)
