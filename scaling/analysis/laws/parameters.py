"""Laws from their formulas: named parameters of four kinds, and what follows from their kinds.

A law that is a sum of power terms, each with logarithm linear in theta, is made by `terms`; any other by `define`, from
a formula of log loss that is differentiated by jets.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from scaling.analysis.laws import jets
from scaling.analysis.laws.law import COLUMN, Coordinate, Evaluation, Inputs, Law
from scaling.errors import InputError

MAX_EXPONENT = 20.0
NEGLIGIBLE = 1e-9  # of the smallest loss: a term below it is at its bound
MIN_VALUES = 3  # different values of an input that its exponent needs: through two passes any power
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A named parameter of a law, and its coordinate in theta.

    kind "level": a term of the loss at the centre of the data, coordinate ln; its natural value is the factor A of A /
    N^alpha, where pivots = (("alpha", "N"),) names the exponents and inputs that it stands with (none for E).
    "exponent": itself, from 0 to MAX_EXPONENT. "positive": ln, from low to high. "real": itself, from low to high.
    start: the range that starts are drawn from (level: none, they share the loss out among themselves).
    """

    name: str
    kind: Literal["level", "exponent", "positive", "real"]
    pivots: tuple[tuple[str, str], ...] = ()
    low: float = 0.0
    high: float = MAX_EXPONENT
    start: tuple[float, float] = (0.05, 1.5)

    @property
    def logarithmic(self) -> bool:
        """Whether the coordinate is the logarithm of the natural value."""
        return self.kind in ("level", "positive")


class Logs(NamedTuple):
    """Logarithms of the needed inputs, or their centres; None where a law does not need one."""

    N: Any = None
    D: Any = None
    C: Any = None
    U: Any = None
    width: Any = None
    depth: Any = None
    experts: Any = None


Formula = Callable[[Mapping[str, jets.Number], Logs, Logs], jets.Number]
Terms = Callable[[Logs], Sequence[tuple[tuple[int, ...], np.ndarray]]]


def level(name: str, **pivots: str) -> Parameter:
    """level("A", alpha="N"): the factor A of the term A / N^alpha; level("E"): a constant term."""
    return Parameter(name, "level", tuple(pivots.items()))


def exponent(name: str) -> Parameter:
    """An exponent, positive where the loss falls."""
    return Parameter(name, "exponent")


def positive(name: str, low: float, high: float, start: tuple[float, float]) -> Parameter:
    """A positive parameter between low and high."""
    return Parameter(name, "positive", low=low, high=high, start=start)


def real(name: str, low: float, high: float, start: tuple[float, float]) -> Parameter:
    """A parameter between low and high."""
    return Parameter(name, "real", low=low, high=high, start=start)


def define(
    name: str,
    equation: str,
    parameters: Sequence[Parameter],
    needs: Sequence[str],
    formula: Formula,
    *,
    varied: Sequence[str] | None = None,
    natural: Callable[[dict[str, np.ndarray], Logs], dict[str, np.ndarray]] | None = None,
) -> Law:
    """A law of your own: formula(p, log, centre) gives log loss.

    p[name]: coordinates (see Parameter), as jets or as arrays Bx1. log.N: ln N of the runs, centre.N its mean; likewise
    of every field in needs. Use the functions of `laws.jets` (exp, log, expm1, logaddexp, minimum) and + - * /. varied:
    inputs that must take at least MIN_VALUES values (default: needs). natural(values, centre) may change
    natural values; a parameter that it changes cannot be held.
    """
    parameters, needs = tuple(parameters), tuple(needs)
    names = tuple(parameter.name for parameter in parameters)

    def log_loss(theta_BxP: np.ndarray, inputs: Inputs, centre: np.ndarray) -> np.ndarray:
        p = dict(zip(names, theta_BxP.T[:, :, None], strict=True))
        return formula(p, _logs(inputs, needs), Logs(**dict(zip(needs, centre, strict=True))))

    def evaluate(theta_BxP: np.ndarray, inputs: Inputs, centre: np.ndarray) -> Evaluation:
        p = dict(zip(names, jets.variables(theta_BxP), strict=True))
        f = formula(p, _logs(inputs, needs), Logs(**dict(zip(needs, centre, strict=True))))
        if not isinstance(f, jets.Jet):
            what = f"the formula of the {name} law gives a {type(f).__name__} that does not follow from p"
            raise InputError(what, do="compute with the entries of p, by the functions of scaling.analysis.laws.jets")
        return Evaluation(f.value, f.first, lambda c_BxR: np.einsum("br,bpqr->bpq", c_BxR, f.second))

    return _law(name, equation, parameters, needs, log_loss, evaluate, varied or needs, natural)


def terms(
    name: str, equation: str, parameters: Sequence[Parameter], needs: Sequence[str], of: Terms, *, varied: Sequence[str]
) -> Law:
    """A law that is a sum of terms exp(sum over k of theta[index_k] x_kR): of(x) lists (index, x_KxR) of each.

    x: Logs of the needed inputs, centred. Its derivatives are written out, and so several times faster than jets.
    """
    parameters, needs = tuple(parameters), tuple(needs)

    def listed(inputs: Inputs, centre: np.ndarray) -> Sequence[tuple[tuple[int, ...], np.ndarray]]:
        logs = _logs(inputs, needs)
        return of(Logs(**{field: getattr(logs, field) - c for field, c in zip(needs, centre, strict=True)}))

    def exponents(theta_BxP: np.ndarray, inputs: Inputs, centre: np.ndarray) -> list[np.ndarray]:
        return [
            sum(theta_BxP[:, p, None] * x for p, x in zip(index, x_K, strict=True))
            for index, x_K in listed(inputs, centre)
        ]

    def log_loss(theta_BxP: np.ndarray, inputs: Inputs, centre: np.ndarray) -> np.ndarray:
        parts = exponents(theta_BxP, inputs, centre)
        total = parts[0]
        for part in parts[1:]:
            total = np.logaddexp(total, part)
        return total

    def evaluate(theta_BxP: np.ndarray, inputs: Inputs, centre: np.ndarray) -> Evaluation:
        parts = listed(inputs, centre)
        z_TxBxR = np.stack(np.broadcast_arrays(*exponents(theta_BxP, inputs, centre)))
        top_BxR = z_TxBxR.max(0)
        share_TxBxR = np.exp(z_TxBxR - top_BxR)
        total_BxR = share_TxBxR.sum(0)
        share_TxBxR /= total_BxR
        J_BxPxR = np.zeros((len(theta_BxP), len(parameters), z_TxBxR.shape[2]))
        for share_BxR, (index, x_K) in zip(share_TxBxR, parts, strict=True):
            for p, x in zip(index, x_K, strict=True):
                J_BxPxR[:, p] += share_BxR * x

        def curvature(c_BxR: np.ndarray) -> np.ndarray:
            # f = log sum exp z_t with z linear in theta: f'' = sum_t p_t z_t' z_t'^T - J J^T
            H_BxPxP = -np.matmul(J_BxPxR * c_BxR[:, None, :], J_BxPxR.transpose(0, 2, 1))
            for share_BxR, (index, x_K) in zip(share_TxBxR, parts, strict=True):
                x_KxR = np.broadcast_arrays(*x_K, c_BxR[0])[:-1]
                pairs = [(i, j) for i in range(len(index)) for j in range(i, len(index))]
                moment_BxM = (c_BxR * share_BxR) @ np.stack([x_KxR[i] * x_KxR[j] for i, j in pairs], axis=1)
                for (i, j), moment_B in zip(pairs, moment_BxM.T, strict=True):
                    H_BxPxP[:, index[i], index[j]] += moment_B
                    if i != j:
                        H_BxPxP[:, index[j], index[i]] += moment_B
            return H_BxPxP

        return Evaluation(top_BxR + np.log(total_BxR), J_BxPxR, curvature)

    return _law(name, equation, parameters, needs, log_loss, evaluate, varied, None)


def _logs(inputs: Inputs, needs: Sequence[str]) -> Logs:
    return Logs(**{field: np.log(getattr(inputs, f"{field}_R")) for field in needs})


def _law(
    name: str,
    equation: str,
    parameters: tuple[Parameter, ...],
    needs: tuple[str, ...],
    log_loss: Callable[..., np.ndarray],
    evaluate: Callable[..., Evaluation],
    varied: Sequence[str],
    change: Callable[[dict[str, np.ndarray], Logs], dict[str, np.ndarray]] | None,
) -> Law:
    """A law with all that follows from the kinds of its parameters."""
    place = {parameter.name: p for p, parameter in enumerate(parameters)}
    for field in (*needs, *varied, *(field for parameter in parameters for _, field in parameter.pivots)):
        if field not in COLUMN or field not in needs:
            what = f"the {name} law: {field} is not among its needs ({', '.join(needs)})"
            raise InputError(what, do=f"inputs are {', '.join(COLUMN)}" if field not in COLUMN else f"add {field}")
    for parameter in parameters:
        for power, _ in parameter.pivots:
            if power not in place:
                raise InputError(f"the {name} law: {parameter.name} stands with {power}, which is not a parameter")

    def centre(inputs: Inputs) -> np.ndarray:
        return np.array([np.log(getattr(inputs, f"{field}_R")).mean() for field in needs])

    def bounds(loss_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # A term is at most the largest loss; below NEGLIGIBLE of the smallest it cannot be told from absent.
        ends = {"level": (loss_R.min() * NEGLIGIBLE, loss_R.max())}
        low_high = [ends.get(parameter.kind, (parameter.low, parameter.high)) for parameter in parameters]
        coded = [
            np.log(pair) if parameter.logarithmic else np.array(pair)
            for parameter, pair in zip(parameters, low_high, strict=True)
        ]
        return np.array([low for low, _ in coded]), np.array([high for _, high in coded])

    def starts(
        count: int, inputs: Inputs, loss_R: np.ndarray, centre: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        # A mixture: the terms share out the typical loss, so that none is dead (gradient zero) at any start.
        levels = [p for p, parameter in enumerate(parameters) if parameter.kind == "level"]
        others = [p for p, parameter in enumerate(parameters) if parameter.kind != "level"]
        theta_SxP = np.empty((count, len(parameters)))
        if levels:
            share_SxT = rng.dirichlet(np.ones(len(levels)), size=count).clip(1e-3)
            theta_SxP[:, levels] = np.log(loss_R).mean() + np.log(share_SxT)
        uniform_SxO = rng.uniform(size=(count, len(others)))
        for p, uniform_S in zip(others, uniform_SxO.T, strict=True):
            (low, high), kind = parameters[p].start, parameters[p].kind
            even = kind == "real"
            value_S = low + uniform_S * (high - low) if even else low * (high / low) ** uniform_S
            theta_SxP[:, p] = np.log(value_S) if kind == "positive" else value_S
        return theta_SxP

    def natural(theta_BxP: np.ndarray, centre: np.ndarray) -> dict[str, np.ndarray]:
        at = dict(zip(needs, centre, strict=True))
        values = {}
        for p, parameter in enumerate(parameters):
            coded_B = theta_BxP[:, p]
            for power, field in parameter.pivots:
                coded_B = coded_B + theta_BxP[:, place[power]] * at[field]
            with np.errstate(over="ignore"):  # a factor may be beyond floats where its exponent is not determined
                values[parameter.name] = np.exp(coded_B) if parameter.logarithmic else coded_B
        return change(values, Logs(**at)) if change else values

    def check(inputs: Inputs) -> None:
        absent = [COLUMN[field] for field in needs if getattr(inputs, f"{field}_R") is None]
        if absent:
            raise InputError(f"the {name} law needs {', '.join(absent)}", do=f"it is {equation}")
        needed_RxF = np.stack([getattr(inputs, f"{field}_R") for field in needs], axis=1)
        P = len(parameters)
        sought = f"the {NUMBERS[P] if P < len(NUMBERS) else P} parameters of {equation}"
        if len(needed_RxF) <= P:
            raise InputError(f"{len(needed_RxF)} runs cannot determine {sought}", do="add runs")
        for field in varied:
            found = len(np.unique(getattr(inputs, f"{field}_R")))
            if found < MIN_VALUES:
                column = COLUMN[field]
                raise InputError(
                    f"the runs have {found} different {column}: the exponent of {column} is not determined",
                    do=f"add runs with other {column}; three are the least",
                )
        points = len(np.unique(needed_RxF, axis=0))
        if points < P:
            where = ", ".join(COLUMN[field] for field in needs)
            what = f"runs at {points} points ({where}), however many runs, cannot determine {sought}"
            raise InputError(what, do="add runs at other points")

    def fix(held: Mapping[str, float], centre: np.ndarray) -> dict[int, float]:
        at = dict(zip(needs, centre, strict=True))
        fixed = {}
        for held_name, value in held.items():
            parameter = parameters[place[held_name]]
            powers = [power for power, _ in parameter.pivots]
            if (change and held_name not in coordinates) or not set(powers) <= held.keys():
                do = f"hold {', '.join(powers)} with it" if powers else "it is not one coordinate of this law"
                raise InputError(f"{held_name} of the {name} law cannot be held alone", do=do)
            coded = float(np.log(max(value, np.finfo(np.float64).tiny))) if parameter.logarithmic else float(value)
            fixed[place[held_name]] = coded - sum(held[power] * at[field] for power, field in parameter.pivots)
        return fixed

    moved = _moved(change, parameters, needs)
    coordinates = {
        parameter.name: Coordinate(p, parameter.logarithmic)
        for p, parameter in enumerate(parameters)
        if not parameter.pivots and parameter.name not in moved
    }
    return Law(
        name=name,
        equation=equation,
        parameters=tuple(place),
        needs=needs,
        centre=centre,
        log_loss=log_loss,
        evaluate=evaluate,
        starts=starts,
        bounds=bounds,
        natural=natural,
        check=check,
        coordinates=coordinates,
        fix=fix,
    )


def _moved(change: Callable[..., dict[str, np.ndarray]] | None, parameters: Sequence[Parameter], needs: Any) -> set:
    """Parameters whose natural value is not that of their coordinate alone."""
    if change is None:
        return set()
    given = {parameter.name: np.array([0.3 + 0.1 * p]) for p, parameter in enumerate(parameters)}
    changed = change(dict(given), Logs(**dict.fromkeys(needs, 1.7)))
    return {name for name, value in given.items() if not np.array_equal(changed[name], value)}
