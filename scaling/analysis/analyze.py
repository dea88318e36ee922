"""The whole analysis: a table of runs in, the three approaches with their uncertainty and every warning out."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scaling.analysis import decisions, design, envelope, fitting, frontier, isoflop, noise, uncertainty, verdicts
from scaling.analysis.curves import Curves
from scaling.analysis.disagreement import Disagreement, disagreement
from scaling.analysis.identifiability import Verdict, judged
from scaling.analysis.isoflop_draws import isoflop_draws
from scaling.analysis.laws import CHINCHILLA, Law, inputs_of
from scaling.analysis.newton import STATIONARY
from scaling.analysis.profiles import Profile, profiles
from scaling.analysis.resampling import RESAMPLES, Bootstrap, Unit, bootstrap
from scaling.analysis.selection import Selection, select
from scaling.analysis.sensitivity import sensitivity
from scaling.analysis.table import Table
from scaling.errors import InputError

NOT_ASKED = "it was not asked for"


FARTHEST = 1e12  # from the largest run to a target, a factor: beyond, it is a slip of the pen


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
    """Everything that was estimated. What could not be done is a string that says why, or empty.

    bootstrap: Approach 3, the fitted law with its draws; isoflop: Approach 2; envelope: Approach 1; their *_draws
    likewise. cost: FLOPs per token against size, None where the law is not one of N and D: such a law has parameters,
    but no optimum. local_slope: EST of d ln N* / d ln C under the table's own C, at the geometric middle of its C.
    disagreement: the test of Approach 2 against the law. noise: what replicates scatter by. profiles, verdicts: of the
    law's parameters. selection: laws by held-out budgets. sensitivity: how the answer moves with the choices made.
    next_cells: NextCells.to_dict(). waste, data_limited, inference: lists of `decisions`, at every target.
    """

    table: Table
    curves: Curves | None
    target_flops: tuple[float, ...]
    resamples: int
    seed: int
    bootstrap: Bootstrap
    cost: frontier.TokenCost | None
    isoflop: isoflop.IsoFLOP | str
    isoflop_draws: uncertainty.Draws | None
    envelope: envelope.Envelope | str
    envelope_draws: uncertainty.Draws | None
    local_slope: dict[str, Any]
    disagreement: Disagreement | None
    held_out_rmse: float | None
    noise: noise.Noise | str
    profiles: tuple[Profile, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    selection: Selection | str = NOT_ASKED
    sensitivity: tuple[dict[str, Any], ...] = ()
    next_cells: dict[str, Any] | str = NOT_ASKED
    optima: tuple[dict[str, Any], ...] = ()
    waste: tuple[dict[str, Any], ...] = ()
    data_limited: tuple[dict[str, Any], ...] = ()
    inference: tuple[dict[str, Any], ...] = ()
    warnings: tuple[dict[str, Any], ...] = ()

    @property
    def fit(self) -> fitting.Fit:
        """The law as fitted to the runs."""
        return self.bootstrap.fit

    @property
    def theta_BxP(self) -> np.ndarray:
        """The law's coordinates in each resample."""
        return self.bootstrap.theta_BxP

    @property
    def unconverged(self) -> int:
        """How many refits are not stationary."""
        return int((self.bootstrap.gradient_B > STATIONARY).sum())

    def est(self, function: Callable[[np.ndarray], np.ndarray], positive: bool = False) -> dict[str, Any]:
        """EST of what follows from the law: function(theta_BxP) -> values_B. positive: interval on the log scale."""
        return self.bootstrap.interval(function, positive=positive)


def analyze(
    table: Table,
    curves: Curves | None = None,
    target_flops: Sequence[float] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
    *,
    law: Law = CHINCHILLA,
    objective: fitting.Objective = fitting.HUBER_LOG,
    unit: Unit = "auto",
    unique_tokens: float | None = None,
    inference_tokens: float | None = None,
    thorough: bool = True,
) -> Analysis:
    """Fits the three approaches and bootstraps them.

    target_flops: budgets to find the optimum of; none: twice the largest C of the table. law, objective: of Approach 3.
    unit: what is resampled, see `resampling.bootstrap`. unique_tokens, inference_tokens: also find the optimum with so
    many different tokens, and for serving so many. thorough: also compare laws by held-out budgets, find how the answer
    depends on the choices made, and which cells to train next. Raises InputError where the runs cannot determine the
    law.
    """
    limits = {"unique_tokens": unique_tokens, "inference_tokens": inference_tokens}
    limits = {name: value for name, value in limits.items() if value is not None}
    for name, value in (*(("target_flops", C) for C in target_flops), *limits.items()):
        if not (np.isfinite(value) and value > 0):
            raise InputError(f"{name}={value} is not a positive number")
    if resamples < 0:
        raise InputError(f"resamples={resamples} is negative", do="0 gives no intervals; 1000 are usual")
    if limits and not law.allocates:
        raise InputError(f"the {law.name} law has no optimal N and D", do="use a law of N and D, chinchilla say")
    largest = float(table.C_R.max())
    for C in target_flops:
        if not 1 / FARTHEST < C / largest < FARTHEST:
            raise InputError(f"target_flops={C:g}, where the largest run has {largest:.3g}", do="give FLOPs of a run")
    targets = tuple(float(C) for C in target_flops) or (2.0 * float(table.C_R.max()),)
    # Each part draws from its own stream, so that one approach more or less does not change the others.
    streams = [np.random.default_rng([seed, 0, part]) for part in range(4)]
    if len(np.unique(table.cluster_R)) == 1:
        resamples = 0  # one observation has no spread, and so no interval; a warning says so

    fit = fitting.fit(law, inputs_of(table, law), table.loss_R, objective)
    drawn = bootstrap(fit, table, unit=unit, resamples=resamples, seed=streams[0])
    valleys = isoflop.isoflop(table)
    valley_draws = None
    if not isinstance(valleys, str) and np.isfinite(valleys.N_power.exponent_B[0]):
        valley_draws = isoflop_draws(valleys, table, resamples, streams[1])
    lower = envelope.envelope(curves)
    lower_draws = None
    if not isinstance(lower, str):
        lower_draws = uncertainty.envelope_draws(lower, curves, resamples, streams[2])
    profiled = profiles(fit, bootstrap=drawn if resamples else None)

    analysis = Analysis(
        table=table,
        curves=curves,
        target_flops=targets,
        resamples=resamples,
        seed=seed,
        bootstrap=drawn,
        cost=frontier.token_cost(table) if law.allocates else None,
        isoflop=valleys,
        isoflop_draws=valley_draws,
        envelope=lower,
        envelope_draws=lower_draws,
        local_slope=uncertainty.estimate(np.nan),
        disagreement=None if valley_draws is None else disagreement(fit, valleys, table, streams[3]),
        held_out_rmse=held_out_rmse(table, law, objective),
        noise=noise.noise(table, fit),
        profiles=profiled,
        verdicts=judged(fit, profiled),
    )
    if law.allocates:
        analysis = _with_decisions(analysis, unique_tokens, inference_tokens, thorough)
    return dataclasses.replace(analysis, warnings=(*table.warnings, *verdicts.warnings(analysis)))


def _with_decisions(
    analysis: Analysis, unique_tokens: float | None, inference_tokens: float | None, thorough: bool
) -> Analysis:
    """The analysis with what a law of N and D also gives."""
    analysis = dataclasses.replace(analysis, local_slope=_local_slope(analysis))
    analysis = dataclasses.replace(
        analysis,
        optima=tuple(decisions.optima(analysis)),
        waste=tuple(decisions.waste(analysis)),
        data_limited=tuple(decisions.data_limited(analysis, unique_tokens) if unique_tokens else ()),
        inference=tuple(decisions.inference(analysis, inference_tokens) if inference_tokens else ()),
    )
    if not thorough:
        return analysis
    return dataclasses.replace(
        analysis,
        selection=select(analysis.table, analysis.seed),
        sensitivity=_sensitivity(analysis),
        next_cells=_next_cells(analysis),
    )


def _sensitivity(analysis: Analysis) -> tuple[dict[str, Any], ...]:
    """Empty where the table does not determine Hoffmann et al.'s law, which most rows vary."""
    table, fit = analysis.table, analysis.fit
    usual = (fit.law, fit.objective) == (CHINCHILLA, fitting.HUBER_LOG)
    try:
        CHINCHILLA.check(inputs_of(table, CHINCHILLA))
    except InputError:
        return ()
    return sensitivity(table, analysis.target_flops[0], reported=None if usual else fit)


def _local_slope(analysis: Analysis) -> dict[str, Any]:
    fit, table = analysis.fit, analysis.table
    middle = float(np.sqrt(table.C_R.min() * table.C_R.max()))
    return analysis.est(lambda theta_BxP: frontier.local_slope(fit.law, theta_BxP, fit.centre, analysis.cost, middle))


def _next_cells(analysis: Analysis) -> dict[str, Any] | str:
    """The cells to train next for the first target, or why none are proposed."""
    if not len(analysis.theta_BxP):
        return "without resamples it is not known what more runs would narrow"
    try:
        found = design.next_cells(analysis.fit, analysis.table, analysis.target_flops[0], analysis.theta_BxP)
    except InputError as refused:
        return str(refused)
    return found.to_dict()


def held_out_rmse(
    table: Table, law: Law = CHINCHILLA, objective: fitting.Objective = fitting.HUBER_LOG
) -> float | None:
    """RMSE of log loss on the largest budget, by the law fitted to the others; None where the others are too few."""
    top = table.budget_R.max()
    rest = (table.budget_R < top) & (table.budget_R >= 0)
    if len(np.unique(table.budget_R[rest])) < 2:
        return None
    inputs = inputs_of(table, law)
    try:
        law.check(inputs.rows(rest))
    except InputError:
        return None  # the report then says null: the smaller budgets alone do not determine the law
    fitted = fitting.fit(law, inputs.rows(rest), table.loss_R[rest], objective)
    test = table.budget_R == top
    error = np.log(table.loss_R[test]) - np.log(fitted.predict(inputs.rows(test)))
    return float(np.sqrt((error**2).mean()))
