"""The laws of the literature, each with its source."""

import math
from collections.abc import Mapping

import numpy as np

from scaling.analysis.laws.jets import Number, exp, expm1, log, logaddexp, minimum, reciprocal
from scaling.analysis.laws.law import Law
from scaling.analysis.laws.parameters import Logs, define, exponent, level, positive, real, terms
from scaling.errors import InputError, nearest

ONE = np.ones(1)
LN10 = math.log(10.0)

# Hoffmann et al. 2022, eq. 2.
CHINCHILLA = terms(
    "chinchilla",
    "L = E + A / N^alpha + B / D^beta",
    [level("E"), level("A", alpha="N"), level("B", beta="D"), exponent("alpha"), exponent("beta")],
    ["N", "D"],
    lambda x: [((0,), (ONE,)), ((1, 3), (ONE, -x.N)), ((2, 4), (ONE, -x.D))],
    varied=["N", "D"],
)

# The same with one exponent, which makes N* and D* grow alike (Muennighoff et al. 2023 fit it; Gadre et al. 2024).
TIED = terms(
    "tied",
    "L = E + A / N^alpha + B / D^alpha",
    [level("E"), level("A", alpha="N"), level("B", alpha="D"), exponent("alpha")],
    ["N", "D"],
    lambda x: [((0,), (ONE,)), ((1, 3), (ONE, -x.N)), ((2, 3), (ONE, -x.D))],
    varied=["N", "D"],
)

# The frontier alone: loss against compute (Hestness et al. 2017; Kaplan et al. 2020 without E).
COMPUTE = terms(
    "compute",
    "L = E + A / C^gamma",
    [level("E"), level("A", gamma="C"), exponent("gamma")],
    ["C"],
    lambda x: [((0,), (ONE,)), ((1, 2), (ONE, -x.C))],
    varied=["C"],
)

# Gemstones (McLeish et al. 2025), the law with width and depth beside size and tokens.
WIDTH_DEPTH = terms(
    "width_depth",
    "L = E + A / N^alpha + B / D^beta + W / width^omega + Z / depth^zeta",
    [
        level("E"), level("A", alpha="N"), level("B", beta="D"), level("W", omega="width"), level("Z", zeta="depth"),
        exponent("alpha"), exponent("beta"), exponent("omega"), exponent("zeta"),
    ],
    ["N", "D", "width", "depth"],
    lambda x: [
        ((0,), (ONE,)), ((1, 5), (ONE, -x.N)), ((2, 6), (ONE, -x.D)), ((3, 7), (ONE, -x.width)),
        ((4, 8), (ONE, -x.depth)),
    ],
    varied=["N", "D", "width", "depth"],
)  # fmt: skip


def _overtraining(p: Mapping[str, Number], at: Logs, centre: Logs) -> Number:
    compute = at.N + at.D - centre.N - centre.D  # of ln C = ln 6ND, from the centre
    ratio = at.D - at.N - centre.D + centre.N  # of ln M
    small = p["a"] + p["eta"] * (ratio - compute)
    large = p["b"] - p["eta"] * (ratio + compute)
    return logaddexp(p["E"], logaddexp(small, large))


def _overtraining_natural(values: dict[str, np.ndarray], centre: Logs) -> dict[str, np.ndarray]:
    # ln C and ln M at the centre; the terms there are a M^eta C^-eta and b M^-eta C^-eta.
    compute, ratio = math.log(6.0) + centre.N + centre.D, centre.D - centre.N
    values["a"] = values["a"] * np.exp(values["eta"] * (compute - ratio))
    values["b"] = values["b"] * np.exp(values["eta"] * (compute + ratio))
    return values


# Gadre et al. 2024, eq. 4, in C = 6ND and M = D / N: the tied law in the coordinates of over-training.
OVERTRAINING = define(
    "overtraining",
    "L = E + (a M^eta + b / M^eta) / C^eta, M = D / N, C = 6ND",
    [level("E"), level("a"), level("b"), exponent("eta")],
    ["N", "D"],
    _overtraining,
    natural=_overtraining_natural,
)


def _joined(size: Number, data: Number, k: Number) -> Number:
    """ln of (e^(size / k) + e^(data / k))^k: their sum for k = 1, and towards the larger of the two as k falls."""
    sharpness = reciprocal(k)
    return k * logaddexp(size * sharpness, data * sharpness)


def _kaplan(p: Mapping[str, Number], at: Logs, centre: Logs) -> Number:
    size = p["N_c"] - p["alpha_N"] * (at.N - centre.N)
    data = p["D_c"] - p["alpha_D"] * (at.D - centre.D)
    return _joined(size, data, p["alpha_D"])


def _kaplan_natural(values: dict[str, np.ndarray], centre: Logs) -> dict[str, np.ndarray]:
    with np.errstate(over="ignore"):
        values["N_c"] = np.exp(centre.N + np.log(values["N_c"]) / values["alpha_N"])
        values["D_c"] = np.exp(centre.D + np.log(values["D_c"]) / values["alpha_D"])
    return values


# Kaplan et al. 2020, eq. 1.5. Coordinates are ln of (N_c / N)^alpha_N and (D_c / D)^alpha_D at the centre.
KAPLAN = define(
    "kaplan",
    "L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D",
    [level("N_c"), level("D_c"), real("alpha_N", 1e-3, 20.0, (0.02, 0.5)), real("alpha_D", 1e-3, 20.0, (0.02, 0.5))],
    ["N", "D"],
    _kaplan,
    natural=_kaplan_natural,
)


def _coupled(p: Mapping[str, Number], at: Logs, centre: Logs) -> Number:
    size = p["A"] - p["alpha"] * (at.N - centre.N)
    data = p["B"] - p["beta"] * (at.D - centre.D)
    return logaddexp(p["E"], _joined(size, data, exp(p["k"])))


def _coupled_natural(values: dict[str, np.ndarray], centre: Logs) -> dict[str, np.ndarray]:
    with np.errstate(over="ignore"):
        values["A"] = np.exp((np.log(values["A"]) + values["alpha"] * centre.N) / values["k"])
        values["B"] = np.exp((np.log(values["B"]) + values["beta"] * centre.D) / values["k"])
    return values


# Size and data that substitute for each other less (k < 1) or more (k > 1) freely than in a sum. Kaplan's form with E.
COUPLED = define(
    "coupled",
    "L = E + (A / N^(alpha / k) + B / D^(beta / k))^k",
    [
        level("E"), level("A"), level("B"), exponent("alpha"), exponent("beta"),
        positive("k", 0.05, 20.0, (0.3, 2.0)),
    ],
    ["N", "D"],
    _coupled,
    natural=_coupled_natural,
)  # fmt: skip


def _data_constrained(p: Mapping[str, Number], at: Logs, centre: Logs) -> Number:
    alpha, beta = p["alpha"], p["beta"]
    n, u, repeats = at.N - centre.N, at.U - centre.D, at.D - at.U
    # The size that U tokens are compute-optimal for: eq. 4 of Hoffmann et al. 2022 solved for N at D = U.
    size = (log(alpha) - log(beta) + p["A"] - p["B"] + beta * u) * reciprocal(alpha)
    size = minimum(size, n)
    data_worth = u + _worth(np.expm1(repeats), p["R_D"])
    size_worth = size + _worth(expm1(n - size), p["R_N"])
    return logaddexp(p["E"], logaddexp(p["A"] - alpha * size_worth, p["B"] - beta * data_worth))


def _worth(repeats: Number, log_scale: Number) -> Number:
    """ln(1 + R* (1 - exp(-R / R*))) of R repetitions."""
    return log(1.0 - exp(log_scale) * expm1(-1.0 * (repeats * exp(-1.0 * log_scale))))


# Muennighoff et al. 2023, eq. 5 and 6: repeated tokens and excess parameters are worth less and less.
DATA_CONSTRAINED = define(
    "data_constrained",
    "L = E + A / N'^alpha + B / D'^beta, D' = U + U R_D (1 - exp(-(D/U - 1) / R_D)), and N' likewise",
    [
        level("E"), level("A", alpha="N"), level("B", beta="D"), real("alpha", 1e-3, 20.0, (0.05, 1.5)),
        real("beta", 1e-3, 20.0, (0.05, 1.5)), positive("R_D", 1e-2, 1e10, (1.0, 100.0)),
        positive("R_N", 1e-2, 1e10, (0.5, 100.0)),
    ],
    ["N", "D", "U"],
    _data_constrained,
    varied=["N", "D"],
)  # fmt: skip


def _moe(p: Mapping[str, Number], at: Logs, centre: Logs) -> Number:
    n = (at.N - centre.N) / LN10
    start, most = exp(-1.0 * p["E_start"]), exp(-1.0 * p["E_max"])
    effective = -1.0 * log(reciprocal(np.expm1(at.experts) + reciprocal(start - most)) + most) / LN10
    return LN10 * (p["d"] + p["a"] * n + p["b"] * effective + p["c"] * n * effective)


def _moe_natural(values: dict[str, np.ndarray], centre: Logs) -> dict[str, np.ndarray]:
    n = centre.N / LN10
    values["b"] = values["b"] - values["c"] * n
    values["d"] = values["d"] - values["a"] * n
    return values


# Clark et al. 2022, eq. 5 and 6 (N: parameters of the dense model, E: experts); the logarithms are decimal.
MOE = define(
    "moe",
    "log L = a log N + b log E' + c log N log E' + d, 1/E' = 1/(E - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max",
    [
        real("a", -5.0, 5.0, (-0.2, 0.0)), real("b", -5.0, 5.0, (-0.2, 0.0)), real("c", -5.0, 5.0, (-0.02, 0.02)),
        real("d", -20.0, 20.0, (0.2, 0.6)), positive("E_start", 1.0, 20.0, (1.0, 5.0)),
        positive("E_max", 25.0, 1e6, (50.0, 1000.0)),
    ],
    ["N", "experts"],
    _moe,
    natural=_moe_natural,
)  # fmt: skip

LAWS = {
    law.name: law
    for law in (CHINCHILLA, COUPLED, KAPLAN, TIED, COMPUTE, DATA_CONSTRAINED, OVERTRAINING, WIDTH_DEPTH, MOE)
}


def law_named(name: str) -> Law:
    """A law of the library. Raises InputError for an unknown name, with the nearest."""
    if name not in LAWS:
        raise InputError(f"no law {name!r}", do=nearest(name, LAWS))
    return LAWS[name]
