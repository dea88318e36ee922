"""Second-order derivatives by forward propagation: a law is written once, as a formula, and the fitter has its Hessian.

A `Jet` is a function of P parameters at B points and R runs, with its first and second derivatives there (Griewank &
Walther 2008, chapter 13). The functions of this module take jets and plain arrays alike, so that the same formula also
gives the value alone.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Jet:
    """value_BxR (or Bx1), first_BxPxR, second_BxPxPxR; second is None where it is zero."""

    value: np.ndarray
    first: np.ndarray
    second: np.ndarray | None

    __array_ufunc__ = None  # so that array * jet comes here

    def __add__(self, other: "Number") -> "Jet":
        if not isinstance(other, Jet):
            return Jet(self.value + other, self.first, self.second)
        return Jet(self.value + other.value, self.first + other.first, _plus(self.second, other.second))

    def __mul__(self, other: "Number") -> "Jet":
        if not isinstance(other, Jet):
            scale = np.asarray(other, np.float64)
            second = None if self.second is None else self.second * _over(scale, 2)
            return Jet(self.value * scale, self.first * _over(scale, 1), second)
        first = self.first * other.value[:, None] + other.first * self.value[:, None]
        cross = _outer(self.first, other.first)
        second = cross + cross.swapaxes(1, 2)
        for one, two in ((self, other), (other, self)):
            second = _plus(second, None if one.second is None else one.second * two.value[:, None, None])
        return Jet(self.value * other.value, first, second)

    def __neg__(self) -> "Jet":
        return self * -1.0

    def __sub__(self, other: "Number") -> "Jet":
        return self + (-other)

    def __rsub__(self, other: "Number") -> "Jet":
        return -self + other

    def __truediv__(self, other: "Number") -> "Jet":
        return self * (reciprocal(other) if isinstance(other, Jet) else 1.0 / np.asarray(other, np.float64))

    def __rtruediv__(self, other: "Number") -> "Jet":
        return reciprocal(self) * other

    __radd__ = __add__
    __rmul__ = __mul__


Number = Jet | np.ndarray | float


def variables(theta_BxP: np.ndarray) -> list[Jet]:
    """The parameters themselves as jets, each Bx1."""
    B, P = theta_BxP.shape
    return [Jet(theta_BxP[:, p, None], np.broadcast_to(np.eye(P)[p][None, :, None], (B, P, 1)), None) for p in range(P)]


def exp(x: Number) -> Number:
    """e^x."""
    if not isinstance(x, Jet):
        return np.exp(x)
    value = np.exp(x.value)
    return _chain(x, value, value, value)


def log(x: Number) -> Number:
    """Natural logarithm."""
    if not isinstance(x, Jet):
        return np.log(x)
    return _chain(x, np.log(x.value), 1.0 / x.value, -1.0 / x.value**2)


def expm1(x: Number) -> Number:
    """e^x - 1, exact near zero."""
    if not isinstance(x, Jet):
        return np.expm1(x)
    slope = np.exp(x.value)
    return _chain(x, np.expm1(x.value), slope, slope)


def reciprocal(x: Number) -> Number:
    """1 / x."""
    if not isinstance(x, Jet):
        return 1.0 / x
    value = 1.0 / x.value
    return _chain(x, value, -(value**2), 2 * value**3)


def logaddexp(x: Number, y: Number) -> Number:
    """ln(e^x + e^y), without overflow."""
    if not isinstance(x, Jet) and not isinstance(y, Jet):
        return np.logaddexp(x, y)
    gap = y - x
    value = np.logaddexp(0.0, gap.value)
    share = np.exp(gap.value - value)
    return x + _chain(gap, value, share, share * (1 - share))


def minimum(x: Number, y: Number) -> Number:
    """The smaller of the two, with its own derivatives."""
    if not isinstance(x, Jet) and not isinstance(y, Jet):
        return np.minimum(x, y)
    gap = y - x
    below = (gap.value < 0).astype(np.float64)
    return x + gap * below


def _chain(x: Jet, value: np.ndarray, slope: np.ndarray, bend: np.ndarray) -> Jet:
    """f(x) from f, f', f'' at x (the chain rule to second order)."""
    second = _outer(x.first, x.first) * bend[:, None, None]
    return Jet(
        value,
        x.first * slope[:, None],
        _plus(second, None if x.second is None else x.second * slope[:, None, None]),
    )


def _outer(one_BxPxR: np.ndarray, two_BxPxR: np.ndarray) -> np.ndarray:
    return one_BxPxR[:, :, None] * two_BxPxR[:, None, :]


def _plus(one: np.ndarray | None, two: np.ndarray | None) -> np.ndarray | None:
    if one is None or two is None:
        return one if two is None else two
    return one + two


def _over(scale: np.ndarray, axes: int) -> np.ndarray:
    """An array over (B,) R, to multiply what has parameter axes in between."""
    return scale if scale.ndim < 2 else scale.reshape(scale.shape[0], *[1] * axes, *scale.shape[1:])
