"""Two sweeps side by side: how much more compute one needs for the loss that the other reaches, the compute multiplier.

Let L_A(C) be the lowest loss of sweep A's fitted law at C FLOPs, over all sizes, with the sweep's own FLOPs per token
(`frontier`). The compute at which A reaches a loss is C_A(L), the inverse. The multiplier is C_B(L) / C_A(L): above
one, B needs more compute than A for the same loss (the efficiency gain of Hernandez & Brown 2020). A ratio of losses at
equal compute says less: near the irreducible loss, large savings of compute move it little.

Intervals come from resampling both sweeps together (`pairing`) and refitting both laws. A sweep compared with itself
has the multiplier 1 in every resample. Intervals do not know whether the law has the right form, and a wrong form bends
the multiplier's trend before anything else. So, where both sweeps have isoFLOP budgets, their minima give the
multiplier once more without a law, and the answer says where the two disagree.
"""

import dataclasses
from typing import Any

import numpy as np

from scaling.analysis import intervals
from scaling.analysis.fitting import HUBER_LOG, Fit, Objective, fit
from scaling.analysis.intervals import LEVEL
from scaling.analysis.laws import CHINCHILLA, Law, inputs_of
from scaling.analysis.pairing import Pairs, common_weights, pairs
from scaling.analysis.resampling import RESAMPLES
from scaling.analysis.sides import Side, compute_at, levels, minima_ratio, side_of
from scaling.analysis.table import Table
from scaling.errors import InputError

ENDLESS = 1e9  # stands for an infinite logarithm, where a resampled frontier never reaches a loss
BOUNDED = 1e3  # an end of an interval beyond it comes from such a resample


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """The compute multiplier of sweep b over sweep a: C_b / C_a at equal loss.

    multiplier: EST of its geometric mean over the losses that both sweeps reach within their runs; no value where there
    are none. growth: EST of the multiplier at the lowest of these losses over that at the highest. levels: {"loss",
    "C_a", "C_b", "multiplier": EST, "minima", "extrapolated"} by falling loss, where minima is the multiplier between
    isoFLOP minima, None beyond them. check: {"levels", "minima", "law": EST, "minima_growth", "law_growth": EST}, the
    same two numbers over the levels that have minima, without and with the laws; None where fewer than two have. pairs:
    which runs were resampled together. failed: resamples in which a frontier has no optimum within reach; they are not
    among the draws.
    """

    a: Side
    b: Side
    multiplier: dict[str, Any]
    growth: dict[str, Any]
    levels: tuple[dict[str, Any], ...]
    check: dict[str, Any] | None
    pairs: Pairs
    resamples: int
    failed: int
    seed: int

    @property
    def common(self) -> list[dict[str, Any]]:
        """The levels that both sweeps reach within their runs."""
        return [level for level in self.levels if not level["extrapolated"]]

    def sentence(self) -> str:
        """The answer in words."""
        a, b, common = self.a.name, self.b.name, self.common
        if not common:
            return (
                f"No loss is reached by both {a} and {b} within their runs: what compute {b} needs for the losses of "
                f"{a} is extrapolated, and not summarised here."
            )
        low, high = common[-1]["loss"], common[0]["loss"]
        said = (
            f"For the same loss {b} needs {spoken(self.multiplier)} times the compute of {a} (geometric mean over "
            f"{low:.3f} to {high:.3f} {self.a.table.unit}, which both reach within their runs)."
        )
        return " ".join([said, *self._verdict(self.multiplier["ci"]), *self._doubt()])

    def _verdict(self, interval: list[float] | None) -> list[str]:
        if interval is None:
            return ["There is no interval: too many resamples never reach some of these losses, or there are none."]
        if interval == [1.0, 1.0]:
            return ["The two sweeps cannot be told apart in any resample."]
        if interval[0] <= 1 <= interval[1]:
            return [f"The {LEVEL:.0%} interval holds 1: these runs do not tell which is the more efficient."]
        better = self.a.name if interval[0] > 1 else self.b.name
        said = f"{better} is the more efficient"
        trend = self.growth["ci"]
        if trend is None or trend[0] <= 1 <= trend[1]:
            return [f"{said}; whether its advantage changes with scale, these runs do not tell."]
        grows = (trend[0] > 1) == (interval[0] > 1)
        return [f"{said}, and by the laws its advantage {'grows' if grows else 'shrinks'} with scale."]

    def _doubt(self) -> list[str]:
        """Where the multiplier between isoFLOP minima lies outside the interval of the laws."""
        if self.check is None:
            return []
        said = []
        for what, found, law in (
            ("It", "minima", "law"),
            ("Its growth over these losses", "minima_growth", "law_growth"),
        ):
            interval = self.check[law]["ci"]
            if interval is not None and not interval[0] <= self.check[found] <= interval[1]:
                said.append(
                    f"{what} is {self.check[found]:.3g} between isoFLOP minima where the laws say "
                    f"{spoken(self.check[law])}: their interval does not hold what the form of the law, or the noise "
                    "of the minima, adds."
                )
        return said

    def method(self) -> str:
        """What the interval rests on."""
        a, b, found = self.a.name, self.b.name, self.pairs
        together = (
            f"{found.runs_a} of {len(self.a.table.N_R)} runs of {a} agree with runs of {b} in N, in C "
            "and, where both tell, in seed, and were resampled together with them"
            if found.runs_a
            else f"No run of {a} agrees with a run of {b} in N, C and seed: they were resampled apart"
        )
        return (
            f"{together}. {LEVEL:.0%} expanded percentile intervals of {self.resamples} resamples of {found.units} "
            f"units, seed {self.seed}; {self.failed} resamples gave no frontier."
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of compare.json: strict JSON values only, null where there is no number."""
        return {
            "sentence": self.sentence(),
            "method": self.method(),
            "loss_unit": self.a.table.unit,
            "a": _facts(self.a),
            "b": _facts(self.b),
            "multiplier": self.multiplier,
            "growth": self.growth,
            "levels": list(self.levels),
            "check": self.check,
            "paired": {"runs_a": self.pairs.runs_a, "runs_b": self.pairs.runs_b, "units": self.pairs.units},
            "bootstrap": {"resamples": self.resamples, "failed": self.failed, "seed": self.seed},
        }


def compare(
    table_a: Table,
    table_b: Table,
    *,
    names: tuple[str, str] = ("A", "B"),
    law: Law = CHINCHILLA,
    objective: Objective = HUBER_LOG,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """The compute multiplier of the second sweep over the first, with intervals by common resampling of their runs.

    law: of N and D, fitted to each sweep. Loss per token can be compared under one tokenizer and one held-out text
    only, which the tables do not tell and the caller answers for. Raises InputError where the losses have different
    units, or none in common, and where the runs of a sweep cannot determine the law.
    """
    if table_a.unit != table_b.unit:
        raise InputError(
            f"the losses of {names[0]} are in {table_a.unit}, those of {names[1]} in {table_b.unit}",
            do="give both in bits per byte, the unit that does not depend on the tokenizer",
        )
    if more := sorted({*law.needs} - {"N", "D"}):
        raise InputError(f"the {law.name} law also depends on {', '.join(more)}", do="compare by a law of N and D")
    fit_a, fit_b = (_fitted(*which, law, objective, seed) for which in ((names[0], table_a), (names[1], table_b)))
    found = pairs(table_a, table_b)
    weight_a, weight_b = common_weights(found, resamples, np.random.default_rng([seed, 0]))
    a = side_of(names[0], table_a, fit_a, weight_a, seed)
    b = side_of(names[1], table_b, fit_b, weight_b, seed)

    loss_M, extrapolated_M = levels(a, b)
    log_C_a_M, log_C_b_M = a.compute_at(loss_M), b.compute_at(loss_M)
    known_B = np.isfinite(a.loss_BxG).all(1) & np.isfinite(b.loss_BxG).all(1)
    drawn_a_BxM, drawn_b_BxM = (compute_at(side.log_C_G, side.loss_BxG[known_B], loss_M) for side in (a, b))
    log_M = log_C_b_M - log_C_a_M
    with np.errstate(invalid="ignore"):  # NaN where neither frontier reaches the loss
        log_BxM = drawn_b_BxM - drawn_a_BxM
    clusters = min(len(np.unique(found.unit_a_R)), len(np.unique(found.unit_b_R)))
    minima_M = np.where(extrapolated_M, np.nan, minima_ratio(a, b, loss_M))

    def summary(at: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
        """The multiplier's mean over some of the levels, and its growth from the first to the last of them."""
        if not len(at):
            return (intervals.percentile(float("nan")),) * 2
        with np.errstate(invalid="ignore"):
            mean_B, growth_B = log_BxM[:, at].mean(1), log_BxM[:, at[-1]] - log_BxM[:, at[0]]
        return _ratio(log_M[at].mean(), mean_B, clusters), _ratio(log_M[at[-1]] - log_M[at[0]], growth_B, clusters)

    multiplier, growth = summary(np.flatnonzero(~extrapolated_M))
    at = np.flatnonzero(np.isfinite(minima_M))
    law_mean, law_growth = summary(at)
    return Comparison(
        a=a,
        b=b,
        multiplier=multiplier,
        growth=growth,
        levels=tuple(
            {
                "loss": float(loss_M[m]),
                "C_a": float(np.exp(log_C_a_M[m])),
                "C_b": float(np.exp(log_C_b_M[m])),
                "multiplier": _ratio(log_M[m], log_BxM[:, m], clusters),
                "minima": float(np.exp(minima_M[m])) if np.isfinite(minima_M[m]) else None,
                "extrapolated": bool(extrapolated_M[m]),
            }
            for m in range(len(loss_M))
        ),
        check=None
        if len(at) < 2
        else {
            "levels": len(at),
            "minima": float(np.exp(minima_M[at].mean())),
            "law": law_mean,
            "minima_growth": float(np.exp(minima_M[at[-1]] - minima_M[at[0]])),
            "law_growth": law_growth,
        },
        pairs=found,
        resamples=resamples,
        failed=int((~known_B).sum()),
        seed=seed,
    )


def spoken(est: dict[str, Any]) -> str:
    """An EST of a multiplier in words."""
    if est["value"] is None:
        return "an unknown number of"
    interval = f" [{est['ci'][0]:.3g}, {est['ci'][1]:.3g}]" if est["ci"] else " (no interval)"
    return f"{est['value']:.3g}{interval}"


def _fitted(name: str, table: Table, law: Law, objective: Objective, seed: int) -> Fit:
    try:
        return fit(law, inputs_of(table, law), table.loss_R, objective, seed)
    except InputError as error:
        raise InputError(error.what, where=name, do=error.do) from None


def _ratio(log_value: float, log_B: np.ndarray, clusters: int) -> dict[str, Any]:
    """EST of a multiplier from its logarithm; without an interval where an end of it is infinite."""
    est = intervals.interval(log_value, log_B.clip(-ENDLESS, ENDLESS) if len(log_B) else None, clusters=clusters)
    bounded = est["ci"] is not None and max(map(abs, est["ci"])) < BOUNDED
    return {**est, "value": float(np.exp(log_value)), "ci": [float(np.exp(x)) for x in est["ci"]] if bounded else None}


def _facts(side: Side) -> dict[str, Any]:
    table, fitted = side.table, side.fit
    return {
        "name": side.name,
        "rows": len(table.N_R),
        "C": [float(table.C_R.min()), float(table.C_R.max())],
        "law": fitted.law.name,
        "objective": {**dataclasses.asdict(fitted.objective), "value": fitted.value},
        "parameters": fitted.parameters,
        "sha256": table.sha256,
        "outliers": table.outliers,
        "warnings": list(table.warnings),
    }
