"""What a law is to the fitter: log loss with derivatives, starts, bounds, natural parameters.

A law is a value of type `Law`; the fitter and the bootstrap know nothing else of it. Laws are evaluated for B parameter
vectors at once on R runs, in coordinates centred on the data: with ln N and ln D measured from their means, the terms
and the exponents are nearly uncorrelated, and the many local minima reported for this problem do not exist.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from scaling.errors import InputError

COLUMN = {
    "N": "N",
    "D": "D",
    "C": "C",
    "U": "unique_tokens",
    "width": "width",
    "depth": "depth",
    "experts": "n_experts",
}


class Inputs(NamedTuple):
    """What a law is a function of, R runs: parameters, tokens, FLOPs, unique tokens, width, depth, number of experts.

    A law names those that it needs in Law.needs, without the suffix; the others may be None.
    """

    N_R: np.ndarray | None = None
    D_R: np.ndarray | None = None
    C_R: np.ndarray | None = None
    U_R: np.ndarray | None = None
    width_R: np.ndarray | None = None
    depth_R: np.ndarray | None = None
    experts_R: np.ndarray | None = None

    def rows(self, index: np.ndarray) -> "Inputs":
        """The runs that an index or a mask picks."""
        return Inputs(*(None if values is None else values[index] for values in self))


class Evaluation(NamedTuple):
    """log loss f_BxR, its gradient J_BxPxR, and curvature(c_BxR) = sum over r of c * (second derivatives of
    f)_BxPxP."""

    f_BxR: np.ndarray
    J_BxPxR: np.ndarray
    curvature: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Coordinate:
    """A natural parameter that is one coordinate of theta: its place, and whether theta holds its logarithm."""

    index: int
    logarithmic: bool

    @property
    def encode(self) -> Callable[[float], float]:
        """From the natural value to the coordinate."""
        return np.log if self.logarithmic else float


@dataclasses.dataclass(frozen=True)
class Law:
    """One law. Vectors theta hold its P centred coordinates; natural parameters are what a paper prints.

    parameters[p] is the natural name of theta's coordinate p. needs: fields of Inputs, without suffix. centre(inputs):
    the constants of the centring, one a needed field. log_loss(theta_BxP, inputs, centre): f_BxR, where inputs may also
    differ by parameter vector (N_BxR). evaluate(theta_BxP, inputs, centre): the same with derivatives. starts(count,
    inputs, loss_R, centre, rng): theta_SxP. bounds(loss_R): of theta. natural(theta_BxP, centre): name -> values_B.
    check(inputs): raises InputError where the runs cannot determine the law. coordinates: the natural parameters that
    are one coordinate each. fix(held, centre): {coordinate: value} of natural parameters that are held.
    """

    name: str
    equation: str
    parameters: tuple[str, ...]
    needs: tuple[str, ...]
    centre: Callable[[Inputs], np.ndarray]
    log_loss: Callable[[np.ndarray, Inputs, np.ndarray], np.ndarray]
    evaluate: Callable[[np.ndarray, Inputs, np.ndarray], Evaluation]
    starts: Callable[[int, Inputs, np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
    bounds: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    natural: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]
    check: Callable[[Inputs], None]
    coordinates: Mapping[str, Coordinate]
    fix: Callable[[Mapping[str, float], np.ndarray], dict[int, float]]

    @property
    def allocates(self) -> bool:
        """Whether it has an optimal N and D for a budget: a law of these two, and of unique tokens at most."""
        return {"N", "D"} <= set(self.needs) <= {"N", "D", "U"}


def inputs_of(table: Any, law: Law) -> Inputs:
    """What the law needs of a Table's rows. Raises InputError naming a column or row that is missing.

    Unique tokens are at most D: more than a run reads does not count.
    """
    columns = {"N": table.N_R, "D": table.D_R, "C": table.C_R, **table.extra}
    found = {}
    for field in law.needs:
        name = COLUMN[field]
        if name not in columns:
            raise InputError(f"no column {name}, which the {law.name} law needs", do=f"it is {law.equation}")
        values_R = columns[name]
        bad = np.flatnonzero(~(np.isfinite(values_R) & (values_R > 0)))
        if len(bad):
            what = f"{name} is missing or not positive in row {table.row_R[bad[0]]} (counting from 0)"
            raise InputError(what, do=f"the {law.name} law needs it: give it, or leave the row out")
        found[f"{field}_R"] = np.minimum(values_R, table.D_R) if field == "U" else values_R
    return Inputs(**found)


def hold(law: Law, held: Mapping[str, float]) -> Law:
    """The law with some natural parameters held at given values; its theta has the other coordinates only.

    A factor such as A can be held together with its exponent. Natural parameters of its fits include those held.
    Raises InputError for a name that the law does not have, and where nothing is left to fit.
    """
    unknown = [name for name in held if name not in law.parameters]
    if unknown:
        do = f"it has {', '.join(law.parameters)}"
        raise InputError(f"the {law.name} law has no parameter {', '.join(unknown)}", do=do)
    free_F = np.array([p for p, name in enumerate(law.parameters) if name not in held], int)
    if not len(free_F):
        raise InputError(f"all parameters of the {law.name} law are held: nothing is left to fit")

    def whole(theta_BxF: np.ndarray, centre: np.ndarray) -> np.ndarray:
        theta_BxP = np.empty((len(theta_BxF), len(law.parameters)))
        theta_BxP[:, free_F] = theta_BxF
        for index, value in law.fix(held, centre).items():
            theta_BxP[:, index] = value
        return theta_BxP

    def evaluate(theta_BxF: np.ndarray, inputs: Inputs, centre: np.ndarray) -> Evaluation:
        at = law.evaluate(whole(theta_BxF, centre), inputs, centre)
        both = np.ix_(free_F, free_F)
        return Evaluation(at.f_BxR, at.J_BxPxR[:, free_F], lambda c_BxR: at.curvature(c_BxR)[:, *both])

    def bounds(loss_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lower_P, upper_P = law.bounds(loss_R)
        return lower_P[free_F], upper_P[free_F]

    place = {int(p): f for f, p in enumerate(free_F)}
    return dataclasses.replace(
        law,
        parameters=tuple(law.parameters[p] for p in free_F),
        log_loss=lambda theta_BxF, inputs, centre: law.log_loss(whole(theta_BxF, centre), inputs, centre),
        evaluate=evaluate,
        starts=lambda count, *rest: law.starts(count, *rest)[:, free_F],
        bounds=bounds,
        natural=lambda theta_BxF, centre: law.natural(whole(theta_BxF, centre), centre),
        coordinates={
            name: dataclasses.replace(coordinate, index=place[coordinate.index])
            for name, coordinate in law.coordinates.items()
            if coordinate.index in place
        },
        fix=lambda more, centre: {
            place[index]: value for index, value in law.fix({**held, **more}, centre).items() if index in place
        },
    )
