"""The published studies done again from their own data: a function a study, with this project's fitters.

Each does what the study did: the same rows, law and objective, and the same resamples where it has a seed. It is given
read(name), which returns the table NAME.csv, and returns our numbers under the names that `golden` gives the study's.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from scaling.analysis import bias, conversions, golden, newton
from scaling.analysis.allocation import data_limited
from scaling.analysis.conversions import Surface
from scaling.analysis.fitting import ABSOLUTE_LOG, HUBER_LOG, SQUARES_LOG, Fit, Objective, fit, fit_law, problem_of
from scaling.analysis.frontier import optima, six_nd
from scaling.analysis.isoflop import isoflop
from scaling.analysis.laws import LAWS, Inputs, Law, hold, inputs_of
from scaling.analysis.powers import Power, power_law
from scaling.analysis.table import Table, table_from_frame
from scaling.analysis.waste import signed_waste
from scaling.errors import InputError

Read = Callable[[str], pd.DataFrame]
SQUARES_RAW = Objective("squares_raw")


# Besiroglu et al. 2024, and Hoffmann et al. 2022 on the same runs

EPOCH_SEED, EPOCH_RESAMPLES = 42, 4000


def besiroglu(read: Read) -> dict[str, float]:
    """The estimate is of least absolute deviations (a free scale shrinks Huber's zone), the bootstrap of Huber's."""
    frame = _epoch(read)
    absolute, robust = fit_law(frame, objective=ABSOLUTE_LOG), fit_law(frame)
    found = {f"{name}, absolute log residuals": value for name, value in absolute.parameters.items()}
    found |= {f"{name}, Huber's loss": value for name, value in robust.parameters.items()}
    found["exponent of N*, absolute log residuals"] = _exponent(absolute.parameters)
    found["sum of absolute log residuals there"] = absolute.value
    found["sum of Huber's loss there"] = robust.value
    for name, value_B in _epoch_draws(robust).items():
        found[f"standard error of {name}"] = float(value_B.std(ddof=1))
        for end, share in (("low", 0.025), ("high", 0.975)):
            found[f"95 % interval of {name}, {end}"] = float(np.quantile(value_B, share))
    return found


def hoffmann(read: Read) -> dict[str, float]:
    """The same form and objective on the runs read off their figure."""
    robust = fit_law(_epoch(read))
    return {
        **robust.parameters,
        "exponent of N*, Approach 3": _exponent(robust.parameters),
        "sum of Huber's loss there": robust.value,
        "sum of Huber's loss at rounded parameters": robust.value,
    }


def _epoch(read: Read) -> pd.DataFrame:
    """Their 240 rows: the five of highest loss left out."""
    frame = read("chinchilla_epoch245")
    return frame[~frame["excluded_by_epoch"].astype(bool)]


def epoch_weights(rows: int) -> np.ndarray:
    """weight_BxR of Epoch's 4,000 resamples, from the legacy generator: no other gives them."""
    legacy = np.random.RandomState(EPOCH_SEED)
    picked = (legacy.choice(rows, size=rows, replace=True) for _ in range(EPOCH_RESAMPLES))
    return np.stack([np.bincount(index_R, minlength=rows) for index_R in picked]).astype(np.float64)


def _epoch_draws(fitted: Fit) -> dict[str, np.ndarray]:
    """Refits from the estimate alone under the resamples of their seed, as they did."""
    weight_BxR = epoch_weights(len(fitted.loss_R))
    problem = problem_of(fitted.law, fitted.inputs, fitted.loss_R, fitted.centre, fitted.objective)
    ends = newton.polish(problem, weight_BxR, np.tile(fitted.theta_P, (EPOCH_RESAMPLES, 1)))
    drawn = fitted.law.natural(ends.theta_BxP, fitted.centre)
    return {**drawn, "the exponent": _exponent(drawn)}


# Porian et al. 2024

PORIAN = {
    "Kaplan": ("summary_df", "rw|base|long|kaplan|kaplan|train"),
    "last layer": ("summary_df", "rw|base|long|kaplan|standard|val"),
    "warm-up": ("summary_df", "rw|base|short|kaplan|standard|val"),
    "cosine": ("summary_df", "rw|base|short|chinchilla|standard|val"),
    "tuned": ("summary_df", "rw|tuned|short|const|standard|val"),
    "Kaplan, tuned": ("summary_df_kaplan_tuned_hparams", "rw|tuned|long|const|kaplan|train"),
    "attention, Kaplan": ("summary_df_att", "rw|base|long|kaplan|attention|train"),
    "attention, warm-up": ("summary_df_att", "rw|base|short|kaplan|attention|train"),
    "attention, cosine": ("summary_df_att", "rw|base|short|chinchilla|attention|train"),
    "attention, tuned": ("summary_df_att", "rw|tuned|short|const|attention|train"),
}


def porian(read: Read) -> dict[str, float]:
    """Their weights are inverse variances of ln N*; optima without one have no part."""
    optima_frame, runs, found = read("porian_published_optima"), read("porian_main"), {}
    for name, (file, config) in PORIAN.items():
        rows = optima_frame[(optima_frame["file"] == file) & (optima_frame["config"] == config)]
        rows = rows[rows["n_star_std"] > 0]
        C_K, N_K, sd_K = (rows[column].to_numpy() for column in ("C", "N_opt", "n_star_std"))
        power = power_law(C_K[None], N_K[None], 1 / sd_K**2)
        found[f"exponent, weighted, from their optima: {name}"] = _slope(power)
        if file == "summary_df":
            valleys = isoflop(table_from_frame(runs[runs["config"] == config]))
            found[f"exponent, our minima of the runs: {name}"] = _slope(valleys.N_power)
    return found


# Czech et al. 2026: the bias of polynomials, and Llama 3

BIAS_C = np.array([1e17, 1e18, 1e19, 1e20, 1e21])
BIAS_SIZES, BIAS_TARGET = 15, 1e24
SURFACES = {"Chinchilla": (0.34, 0.28), "asymmetric": (0.465, 0.155)}
# The grid of D lies 3x too high, so that of N 3x too low.
PLACES = {
    "centred": np.zeros(5),
    "off by 3x": -np.full(5, np.log(3)),
    "drift to 3x": -np.linspace(0, np.log(3), 5),
}
DEGREES = {"parabola": 2, "cubic": 3, "quartic": 4}
LLAMA_C = 3.8e25  # FLOPs of Llama 3 405B


def czech(read: Read) -> dict[str, float]:
    """Noise-free sweeps in closed form."""
    del read
    found = {}
    for surface, exponents in SURFACES.items():
        for place, shift_K in PLACES.items():
            for polynomial, degree in DEGREES.items():
                for width in golden.WIDTHS:
                    grid_S = np.linspace(-np.log(width), np.log(width), BIAS_SIZES)
                    grids = [shift + grid_S for shift in shift_K]
                    miss = bias.extrapolated(*exponents, BIAS_C, grids, BIAS_TARGET, degree)
                    found[f"error of D* in %, {surface}, {place}, {polynomial}, +-{width}x"] = 100 * miss.tokens
                    if degree == 2:  # the exponents of N* and D* add up to one
                        found[f"error of a, {surface}, {place}, +-{width}x"] = -miss.exponent
    return found


def llama(read: Read) -> dict[str, float]:
    """Meta's parabolas say more tokens than the law that fits the same points; what that costs if the law is right."""
    table = table_from_frame(read("isoflop_llama_3_raw_loss"))
    law = fit_law(table, objective=SQUARES_RAW)
    cost = six_nd(table.N_R.min(), table.N_R.max())
    theta_1xP, C_1 = law.theta_P[None], np.array([LLAMA_C])
    parabolas = parabola_power(table)
    N = float(parabolas.at(LLAMA_C)[0, 0])
    best = optima(law.law, theta_1xP, law.centre, cost, C_1)
    wasted = signed_waste(law.law, theta_1xP, law.centre, cost, LLAMA_C, np.array([N]))
    return {
        **{f"{name}, squares of loss": value for name, value in law.parameters.items()},
        "exponent of N*, squares of loss": _exponent(law.parameters),
        "D* at 3.8e25 FLOPs in 1e12 tokens, squares of loss": float(best.D_BxG[0, 0]) / 1e12,
        "exponent of D*, parabolas": 1 - _slope(parabolas),
        "D* at 3.8e25 FLOPs in 1e12 tokens, parabolas": LLAMA_C / (6 * N) / 1e12,
        "compute wasted by the parabolas' D* in %": 100 * abs(float(wasted[0])),
    }


def parabola_power(table: Table) -> Power:
    """N*(C) by a parabola of loss in ln N through all sizes of each budget: what `isoflop` does better."""
    numbers = [number for number in np.unique(table.budget_R) if number >= 0]
    C_K, N_K = np.empty(len(numbers)), np.empty(len(numbers))
    for k, number in enumerate(numbers):
        rows = table.budget_R == number
        _, slope, bend = np.polynomial.polynomial.polyfit(np.log(table.N_R[rows]), table.loss_R[rows], 2)
        C_K[k], N_K[k] = np.exp(np.log(table.C_R[rows]).mean()), np.exp(-slope / (2 * bend))
    return power_law(C_K[None], N_K[None])


# Pearce & Song 2024


def pearce(read: Read) -> dict[str, float]:
    """One frontier, counted with and without embeddings, over the range of compute of Kaplan et al."""
    del read
    found = {}
    surfaces = {
        "Epoch's": Surface(1.8172, 482.01, 2085.43, 0.3478, 0.3658),
        "Chinchilla's": Surface(1.6934, 406.4, 410.7, 0.3392, 0.2849),
    }
    for name, surface in surfaces.items():
        local = conversions.exponent_on_grid(surface, (12.95, 20.7), embeddings=False)
        found[f"exponent of N_E* on C_E, {name} coefficients"] = local
        total = conversions.exponent_on_grid(surface, (14.0, 20.7), embeddings=True)
        found[f"exponent of N* on C, {name} coefficients"] = total
        N_E_K = np.logspace(2, 11, 100)[90:]
        C_E_K = conversions.compute_without_embeddings(surface, N_E_K)
        found[f"exponent of N_E* on C_E, large models, {name}"] = _slope(power_law(C_E_K[None], N_E_K[None]))
    return found


# Gemstones

GEMSTONES = {
    "hot": "gemstones_hot",
    "hot 100b+": "gemstones_hot_100bplus",
    "lr ablation": "gemstones_lr_ablation_hot",
    "120b+": "gemstones_hot_120bplus_only",
    "width 512": "gemstones_hot_100bplus_512x",
}


def gemstones(read: Read) -> dict[str, float]:
    """Two terms (N, D), and four (width and depth besides)."""
    found = {}
    for name, file in GEMSTONES.items():
        two = fit_law(read(file))
        found |= {f"two terms, {name}: {key}": value for key, value in two.parameters.items()}
        found[f"two terms, {name}: objective"] = two.value
    for name in ("hot 100b+", "lr ablation"):
        found[f"four terms, {name}: objective"] = fit_law(read(GEMSTONES[name]), "width_depth").value
    return found


# Muennighoff et al. 2023

REPEATED = {
    "E": float(np.exp(0.6254804)),
    "A": float(np.exp(6.255414)),
    "B": float(np.exp(7.3049974)),
    "alpha": 0.3526596,
    "beta": 0.3526596,
    "R_D": 15.387756,
    "R_N": 5.309743,
}
UNIQUE, REPEATED_C = 25e9, 1e22
EXAMPLES = {"6.34e9 parameters, 242e9 tokens": (6.34e9, 242e9), "8.67e9 parameters, 178e9 tokens": (8.67e9, 178e9)}


def muennighoff(read: Read) -> dict[str, float]:
    """They fitted R_D* and R_N* with the other five parameters held."""
    law = LAWS["data_constrained"]
    table = table_from_frame(read("datablations_fit182"))
    inputs = inputs_of(table, law)
    others = {name: value for name, value in REPEATED.items() if name not in ("R_D", "R_N")}
    found = fit(hold(law, others), inputs, table.loss_R)
    theirs = at_parameters(law, REPEATED, inputs, table.loss_R)
    best = data_limited(theirs, six_nd(1e8, 1e11), np.array([REPEATED_C]), UNIQUE)
    unique_1 = np.array([UNIQUE])
    return {
        **{
            f"loss of {name}, 25e9 unique": float(theirs.predict(Inputs(np.array([N]), np.array([D]), U_R=unique_1))[0])
            for name, (N, D) in EXAMPLES.items()
        },
        "objective at the published R_D*, R_N*": theirs.value,
        "least objective over R_D*, R_N*": found.value,
        "R_D*": found.parameters["R_D"],
        "R_N*": found.parameters["R_N"],
        "least loss for 1e22 FLOPs, 25e9 unique tokens": float(best.loss_BxG[0, 0]),
        "parameters for 1e22 FLOPs, in 1e9": float(best.N_BxG[0, 0]) / 1e9,
        "tokens for 1e22 FLOPs, in 1e11": float(best.D_BxG[0, 0]) / 1e11,
    }


# Gadre et al. 2024

FIVE = ((11, 20), (79, 20), (154, 20), (412, 20), (11, 320))  # millions of parameters, tokens a parameter


def gadre(read: Read) -> dict[str, float]:
    """L = E + (alpha + beta 6^(b/2) M^b) N^b with b < 0 is the tied law: A = alpha, B = beta 6^(b/2), exponent -b.

    Squares of loss over five small runs, four parameters; larger runs are predicted.
    """
    frame = read("mlfoundations_overtraining104")
    frame = frame[frame["train_dataset"] == "rpj"]
    setting = list(zip((frame["N"] / 1e6).round().astype(int), frame["token_mult"].astype(int), strict=True))
    law = fit_law(frame[[pair in FIVE for pair in setting]], "tied", SQUARES_RAW)

    def error(millions: int, multiplier: int) -> float:
        (run,) = frame[[pair == (millions, multiplier) for pair in setting]].itertuples()
        return 100 * abs(float(law.loss(run.N, run.D)) / run.loss - 1)

    p = law.parameters
    return {
        "alpha, five runs": p["A"],
        "beta, five runs": p["B"] * 6 ** (p["alpha"] / 2),
        "exponent, five runs": -p["alpha"],
        "E, five runs": p["E"],
        "error of the loss of 1.4e9 parameters, M = 640, in %": error(1440, 640),
        "error of the loss of 6.9e9 parameters, M = 20, in %": error(6889, 20),
    }


# Clark et al. 2022


def clark(read: Read) -> dict[str, float]:
    """Squares of log10 loss over the dense runs and those of one router, as picked by their notebook."""
    frame = read("moe_routing_final223").rename(columns={"num_experts": "n_experts"})
    picked = frame[(frame["routing_frequency"] == 0.5) & (frame["k"] == 1) & (frame["seed"] == 42)]
    found = {}
    for router in ("S-Base", "RL-R", "Hash"):
        law = fit_law(picked[picked["router_type"].isin(["Dense", router])], "moe", SQUARES_LOG)
        found |= {f"{router}: {name}": value for name, value in law.parameters.items()}
    return found


# nanochat

COUNTS = {"matrices and head": "kaplan", "all parameters": "all", "transformer only": "transformer_only"}
NANOCHAT_C = np.logspace(18, 19, 4)  # the log prints 1, 2, 5 and 10e18, and says that they are evenly spaced


def nanochat(read: Read) -> dict[str, float]:
    """The same runs under three counts of parameters."""
    frame, found = read("nanochat_param_conventions"), {}
    for name, convention in COUNTS.items():
        rows = frame[frame["convention"] == convention]
        for quantity in ("N", "D"):
            power = power_law(NANOCHAT_C[None], rows[f"{quantity}_opt"].to_numpy(np.float64)[None])
            found[f"exponent of {quantity}*, {name}"] = _slope(power)
    return found


# What they share


def at_parameters(
    law: Law, parameters: Mapping[str, float], inputs: Inputs, loss_R: np.ndarray, objective: Objective = HUBER_LOG
) -> Fit:
    """A law with a floor E at given natural parameters, as if it had been fitted: predictions, residuals, objective.

    Its certificate is empty. Raises InputError for a law without E, and an objective of raw loss.
    """
    if objective.raw or "E" not in law.coordinates:
        what = f"the {law.name} law under {objective.kind} cannot be put at given parameters"
        raise InputError(what, do="that takes a law with a floor E, and an objective of log loss")
    rest = hold(law, {name: value for name, value in parameters.items() if name != "E"})
    centre = rest.centre(inputs)
    theta_P = np.array([rest.coordinates["E"].encode(parameters["E"])])
    residual_R = np.log(loss_R) - rest.log_loss(theta_P[None], inputs, centre)[0]
    delta = objective.delta if objective.kind == "huber_log" else np.inf
    rho_R = np.abs(residual_R) if objective.absolute else newton.huber(residual_R, delta)[0]
    return Fit(rest, objective, centre, theta_P, dict(parameters), float(rho_R.sum()), residual_R, {}, inputs, loss_R)


def _exponent(parameters: Mapping[str, float]) -> float:
    """beta / (alpha + beta), of N*(C)."""
    return parameters["beta"] / (parameters["alpha"] + parameters["beta"])


def _slope(power: Power) -> float:
    return float(power.exponent_B[0])


OURS: Mapping[str, Callable[[Read], dict[str, float]]] = {
    golden.BESIROGLU.name: besiroglu,
    golden.HOFFMANN.name: hoffmann,
    golden.PORIAN.name: porian,
    golden.CZECH.name: czech,
    golden.LLAMA.name: llama,
    golden.PEARCE.name: pearce,
    golden.GEMSTONES.name: gemstones,
    golden.MUENNIGHOFF.name: muennighoff,
    golden.GADRE.name: gadre,
    golden.CLARK.name: clark,
    golden.NANOCHAT.name: nanochat,
}
