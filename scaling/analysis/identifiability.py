"""Which parameters the runs fix, and which they do not: verdicts on the profiles of a fit.

A fit always returns numbers. Published ones that their own data do not fix: R_D* = 15.4 of a data-constrained law whose
objective is flat from 13 to 300; an exponent of 4.5 from sizes that differ by a fifth; four parameters through five
points; E = 0. The rules, in this order:

- at_bound: the fit ended at the bound of the law for this parameter.
- weakly_identified, where one of these holds:
  1. fewer than MIN_DOF runs more than parameters, and this holds for all of them;
  2. an input spans less than a factor MIN_SPAN: over so short a range every power law is nearly a straight line, and
     its exponent, the limit E and the exponent of N*(C) are what the form of the law makes of it, whatever the noise;
  3. the profile finds a lower objective than the fit;
  4. the profile's interval is open: the objective does not rise enough before the law's bound;
  5. the interval is wide: its ends differ by more than a factor SPAN (E and other positive parameters), by more than
     the estimate itself (exponents), or by so much that N* for FARTHER times the compute spans more than a factor
     FAR_SPAN (the exponent of N*(C)).
- identified otherwise.

Flat directions say which parameters can move together without cost: directions of little curvature of the objective in
coordinates of unit curvature (Transtrum, Machta & Sethna 2011 call them sloppy).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from scaling.analysis.fitting import Fit
from scaling.analysis.intervals import LEVEL
from scaling.analysis.pinning import EXPONENT, quantities
from scaling.analysis.profiles import Profile, profiles
from scaling.analysis.resampling import Bootstrap
from scaling.analysis.sandwich import sandwich
from scaling.analysis.table import warning

MIN_DOF = 3  # runs less parameters
MIN_SPAN = 2.0  # of an input
SPAN = 2.0  # of the interval of a positive parameter
FARTHER = 100.0  # times the compute, to judge the exponent of N*(C) by
FAR_SPAN = 3.0  # of N* there
LOWER = -0.05  # of a threshold: a profile below it has a better minimum than the fit, and one that matters
FLAT = 1e-3  # curvature of a flat direction, relative to the largest
SMALL = 0.01  # relative weight of a parameter that does not count as part of a direction
LIMITED = ("N", "D", "C")  # E is the loss when these are without limit
EXPONENTS = {  # of the library's laws: of which inputs
    "alpha": ("N",),
    "beta": ("D",),
    "alpha_N": ("N",),
    "alpha_D": ("D",),
    "gamma": ("C",),
    "omega": ("width",),
    "zeta": ("depth",),
    EXPONENT: ("N", "D"),
}

Status = Literal["identified", "weakly_identified", "at_bound"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the runs say of one parameter. interval: the profile's, None for an end that they do not bound."""

    name: str
    value: float
    interval: tuple[float | None, float | None]
    status: Status
    why: str


def verdicts(fitted: Fit, bootstrap: Bootstrap | None = None, level: float = LEVEL) -> tuple[Verdict, ...]:
    """A verdict on each parameter that is one coordinate, on the exponent "a" of N*(C), and on all at bounds.

    bootstrap: of this fit; without it, rows of different sizes count as independent. level: of the intervals.
    """
    return judged(fitted, profiles(fitted, level, bootstrap))


def judged(fitted: Fit, profiled: Sequence[Profile]) -> tuple[Verdict, ...]:
    """The verdicts on profiles at hand."""
    names = {profile.name for profile in profiled}
    factors = [name for name in fitted.certificate["at_bound"] if name not in names]
    return (
        *(_verdict(fitted, profile) for profile in profiled),
        *(Verdict(name, fitted.parameters[name], (None, None), "at_bound", _edge(fitted, name)) for name in factors),
    )


def warnings(found: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Warnings of the report for all that is not identified; parameters with one reason share a warning."""
    reasons: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in found:
        if verdict.status != "identified":
            reasons.setdefault((verdict.status, verdict.why), []).append(verdict)
    said = []
    for (status, why), group in reasons.items():
        names = [verdict.name for verdict in group]
        facts = {verdict.name: {"value": verdict.value, "interval": list(verdict.interval)} for verdict in group}
        if status == "at_bound":
            said.append(warning("parameter_at_bound", f"{_listed(names)} ended at a bound: {why}.", parameters=facts))
        else:
            message = f"The runs hardly determine {_listed(names)}: {why}."
            said.append(warning("weakly_identified", message, parameters=facts))
    return said


def flat_directions(fitted: Fit) -> list[dict[str, Any]]:
    """Directions in which the parameters can move together with less than FLAT of the largest curvature.

    Each is {"direction": {natural name: weight}, "curvature_ratio": x}, the flattest first. A weight is the relative
    change of that parameter; the largest is one and comes first, and those below SMALL are left out.
    """
    spread = sandwich(fitted)
    diagonal_F = np.diag(spread.A_FxF)
    if not len(diagonal_F) or diagonal_F.min() <= 0:
        still = [name for name, free in zip(fitted.law.parameters, spread.free_P, strict=True) if free]
        flat = [name for name, curvature in zip(still, diagonal_F, strict=True) if curvature <= 0]
        return [{"direction": {name: 1.0}, "curvature_ratio": 0.0} for name in flat]
    unit_F = 1 / np.sqrt(diagonal_F)
    curvature_F, way_FxF = np.linalg.eigh(spread.A_FxF * unit_F[:, None] * unit_F)
    found = []
    for curvature, way_F in zip(curvature_F, way_FxF.T, strict=True):
        ratio = max(float(curvature / curvature_F[-1]), 0.0)
        if ratio < FLAT:
            step_P = np.zeros(len(fitted.theta_P))
            step_P[spread.free_P] = way_F * unit_F
            found.append({"direction": _natural(fitted, step_P), "curvature_ratio": ratio})
    return found


def _natural(fitted: Fit, step_P: np.ndarray) -> dict[str, float]:
    """The relative change of each natural parameter along a small step of theta, scaled so that the largest is one."""
    small_P = 1e-6 * step_P / np.abs(step_P).max()
    ends = fitted.law.natural(np.array([fitted.theta_P - small_P, fitted.theta_P + small_P]), fitted.centre)
    change = {}
    for name, (before, after) in ends.items():
        size = max(abs(before), abs(after))
        change[name] = float((after - before) / size) if 0 < size < math.inf else 0.0
    largest = max(change.values(), key=abs)
    ordered = sorted(change, key=lambda name: -abs(change[name]))
    return {name: change[name] / largest for name in ordered if abs(change[name]) > SMALL * abs(largest)}


# The rules


def _verdict(fitted: Fit, profile: Profile) -> Verdict:
    if _ended_at_bound(fitted, profile):
        why = _at_bound(profile)
        return Verdict(profile.name, profile.value, profile.interval, "at_bound", why)
    for rule in (_few_runs, _short_range, _lower_minimum, _open, _wide):
        why = rule(fitted, profile)
        if why:
            return Verdict(profile.name, profile.value, profile.interval, "weakly_identified", why)
    low, high = profile.interval
    why = f"its {profile.level:.0%} interval goes from {low:.3g} to {high:.3g}"
    return Verdict(profile.name, profile.value, profile.interval, "identified", why)


def _ended_at_bound(fitted: Fit, profile: Profile) -> bool:
    if _is_slope(fitted, profile):
        return profile.value in (0.0, 1.0)  # the other exponent ended at zero
    return profile.name in fitted.certificate["at_bound"]


def _at_bound(profile: Profile) -> str:
    low, high = profile.interval
    if low is None and high is None:
        return "any value fits as well"
    if profile.name == "E" and low is None:
        return f"no irreducible loss fits best, and any up to {high:.3g} as well"
    return f"all values {f'up to {high:.3g}' if low is None else f'from {low:.3g} on'} fit as well"


def _edge(fitted: Fit, name: str) -> str:
    """What the bound of a factor such as A means, which has no profile of its own."""
    lower_P, _ = fitted.law.bounds(fitted.loss_R)
    index = fitted.law.parameters.index(name)
    return "the best fit has no such term" if fitted.theta_P[index] <= lower_P[index] else "no larger term is possible"


def _few_runs(fitted: Fit, profile: Profile) -> str:
    runs, parameters = len(fitted.loss_R), len(fitted.theta_P)
    if runs - parameters >= MIN_DOF:
        return ""
    return f"{runs} runs for {parameters} parameters leave hardly anything to tell a good fit from a wrong law"


def _short_range(fitted: Fit, profile: Profile) -> str:
    needed = LIMITED if profile.name == "E" else EXPONENTS.get(profile.name, ())
    if profile.name == "alpha" and "beta" not in fitted.parameters:
        needed = ()  # the tied law's, of both inputs
    spans = {name: _span(fitted, name) for name in needed if name in fitted.law.needs}
    short = [f"{name} spans a factor of {span:.3g} only" for name, span in spans.items() if span < MIN_SPAN]
    return f"{' and '.join(short)}, and over so short a range every power law is nearly straight" if short else ""


def _is_slope(fitted: Fit, profile: Profile) -> bool:
    """Whether it is the exponent of N*(C), and not a parameter that a law calls a."""
    return profile.name == EXPONENT and EXPONENT not in fitted.parameters


def _span(fitted: Fit, name: str) -> float:
    values_R = getattr(fitted.inputs, f"{name}_R")
    return float(values_R.max() / values_R.min())


def _lower_minimum(fitted: Fit, profile: Profile) -> str:
    if profile.objective_G.min() >= LOWER:
        return ""
    better = profile.grid_G[np.argmin(profile.objective_G)]
    return f"its profile has a lower minimum than the fit, at {better:.3g}"


def _open(fitted: Fit, profile: Profile) -> str:
    low, high = profile.interval
    if low is not None and high is not None:
        return ""
    if low is None and high is None:
        return f"all values from {profile.grid_G[0]:.3g} to {profile.grid_G[-1]:.3g} fit as well as {profile.value:.3g}"
    side = f"below {high:.3g}" if low is None else f"above {low:.3g}"
    return f"all values {side} fit as well as {profile.value:.3g} (at {profile.level:.0%})"


def _wide(fitted: Fit, profile: Profile) -> str:
    low, high = profile.interval
    said = f"its {profile.level:.0%} interval goes from {low:.3g} to {high:.3g}"
    if _is_slope(fitted, profile):
        factor = FARTHER ** (high - low)
        return f"{said}, a factor of {factor:.3g} in N* at {FARTHER:.3g} times the compute" if factor > FAR_SPAN else ""
    log = next(quantity.log for quantity in quantities(fitted.law) if quantity.name == profile.name)
    if log:
        return f"{said}, a factor of {high / low:.3g}" if high > SPAN * low else ""
    return f"{said}, wider than the estimate {profile.value:.3g}" if high - low > abs(profile.value) else ""


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
