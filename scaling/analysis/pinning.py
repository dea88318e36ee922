"""A law with one quantity held, as another law: many values of many quantities in one batch of minimisations.

The minimiser knows a law and a batch of B starts. `pinned` gives it a law of one more coordinate, the number of the
quantity that this row of the batch holds. The derivative along what is held is zero, so that no step leaves the value,
and the rest of the row is minimised as usual. Profiles of all parameters of a law are then a few dozen batched
minimisations, not a few hundred fits.

A quantity is a parameter that is one coordinate of the law, or the exponent of N*(C): N* grows as C^a with
a = beta / (alpha + beta) for exponents alpha of N and beta of D (Hoffmann et al. 2022, eq. 4), so that a is held where
alpha = beta (1 - a) / a, which is linear in beta.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from scaling.analysis.laws import Evaluation, Inputs, Law
from scaling.errors import InputError, nearest

EXPONENT = "a"  # of N*(C)
PAIRS = (("alpha", "beta"), ("alpha_N", "alpha_D"))  # exponents of N and of D, in laws of N and D alone
SHARES = (0.01, 0.99)  # a is searched between


class Quantity(NamedTuple):
    """What can be held: coordinate `index` of theta, or the exponent a = theta[data] / (theta[index] + theta[data]).

    x is the number searched over: ln of the quantity where `log`, else itself. data: None for a coordinate.
    """

    name: str
    index: int
    data: int | None
    log: bool

    def x(self, theta_BxP: np.ndarray) -> np.ndarray:
        """x_B at points theta_BxP of the law; both exponents at zero share as one half."""
        x_B = theta_BxP[:, self.index]
        if self.data is None:
            return x_B
        total_B = x_B + theta_BxP[:, self.data]
        return np.where(total_B > 0, theta_BxP[:, self.data] / np.where(total_B > 0, total_B, 1.0), 0.5)

    def slope(self, theta_P: np.ndarray) -> np.ndarray:
        """dx / dtheta_P at a point of the law."""
        slope_P = np.zeros(len(theta_P))
        if self.data is None:
            slope_P[self.index] = 1.0
        else:
            size, data = theta_P[[self.index, self.data]]
            total = max(size + data, np.finfo(np.float64).tiny)
            slope_P[[self.index, self.data]] = -data / total / total, size / total / total
        return slope_P

    def limits(self, law: Law, loss_R: np.ndarray) -> tuple[float, float]:
        """The range of x that is searched: the law's bounds."""
        if self.data is not None:
            return SHARES
        lower_P, upper_P = law.bounds(loss_R)
        return float(lower_P[self.index]), float(upper_P[self.index])

    def natural(self, x: np.ndarray | float) -> np.ndarray:
        """The quantity as a paper prints it."""
        return np.exp(x) if self.log else np.asarray(x, np.float64)


def quantities(law: Law) -> tuple[Quantity, ...]:
    """Everything of a law that can be held: its parameters that are one coordinate each, and the exponent of N*(C)."""
    found = [
        Quantity(name, coordinate.index, None, coordinate.logarithmic) for name, coordinate in law.coordinates.items()
    ]
    for size, data in PAIRS:
        if set(law.needs) == {"N", "D"} and {size, data} <= law.coordinates.keys():
            found.append(Quantity(EXPONENT, law.coordinates[size].index, law.coordinates[data].index, log=False))
    return tuple(found)


def quantity_named(law: Law, name: str) -> Quantity:
    """The quantity of that name. Raises InputError with the nearest name where the law has none."""
    known = {quantity.name: quantity for quantity in quantities(law)}
    if name not in known:
        raise InputError(f"the {law.name} law has no parameter {name!r} to profile", do=nearest(name, known))
    return known[name]


def pinned(law: Law, held: tuple[Quantity, ...]) -> Law:
    """The law with theta = (the law's coordinates, with x in the place of what is held; the number of what is held)."""
    index_Q = np.array([quantity.index for quantity in held])
    data_Q = np.array([-1 if quantity.data is None else quantity.data for quantity in held])

    def own(theta_BxQ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The law's own coordinates theta_BxP, and their derivatives in ours, slope_BxPxQ."""
        B, P = len(theta_BxQ), theta_BxQ.shape[1] - 1
        number_B, row_B = np.rint(theta_BxQ[:, -1]).astype(np.int64), np.arange(B)
        theta_BxP, slope_BxPxQ = theta_BxQ[:, :-1].copy(), np.zeros((B, P, P + 1))
        slope_BxPxQ[:, np.arange(P), np.arange(P)] = 1.0
        slope_BxPxQ[row_B, index_Q[number_B], index_Q[number_B]] = 0.0
        row, index, data = (values[data_Q[number_B] >= 0] for values in (row_B, index_Q[number_B], data_Q[number_B]))
        a = theta_BxQ[row, index]
        theta_BxP[row, index] = theta_BxQ[row, data] * (1 - a) / a
        slope_BxPxQ[row, index, data] = (1 - a) / a
        return theta_BxP, slope_BxPxQ

    def evaluate(theta_BxQ: np.ndarray, inputs: Inputs, centre: np.ndarray) -> Evaluation:
        theta_BxP, slope_BxPxQ = own(theta_BxQ)
        at, turned_BxQxP = law.evaluate(theta_BxP, inputs, centre), slope_BxPxQ.transpose(0, 2, 1)

        def curvature(c_BxR: np.ndarray) -> np.ndarray:
            # The law's coordinates are linear in those that move: no second derivatives of theirs.
            return turned_BxQxP @ at.curvature(c_BxR) @ slope_BxPxQ

        return Evaluation(at.f_BxR, turned_BxQxP @ at.J_BxPxR, curvature)

    def bounds(loss_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lower_P, upper_P = law.bounds(loss_R)
        return np.append(lower_P, 0.0), np.append(upper_P, float(len(held)))

    return dataclasses.replace(
        law,
        parameters=(*law.parameters, "number of what is held"),
        log_loss=lambda theta_BxQ, inputs, centre: law.log_loss(own(theta_BxQ)[0], inputs, centre),
        evaluate=evaluate,
        bounds=bounds,
    )
