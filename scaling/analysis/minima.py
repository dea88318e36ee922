"""Where the loss of an isoFLOP budget is lowest: a two-exponential valley and smooth departures from it, by kriging.

The losses of a budget's sizes are taken as

    loss / mean loss = valley(ln N; alpha, beta) + departure(ln N) + noise

with the valley of the module of that name, three free coefficients a budget, and exponents that all budgets share; a
departure that is a Gaussian process (Matern 5/2, length LENGTH in ln N) of `rough` times the variance of the noise; and
independent noise of unknown variance, divided by the number of runs of a size. The best linear prediction of such
losses is universal kriging (Matheron 1969; Cressie 1993, 3.4). Nobody knows the exponents or the roughness, so that
the curve is the mean over a grid of both, each candidate weighing by its restricted likelihood (Patterson & Thompson
1971) over all budgets times a prior. Where a power law holds, the departure gets no weight, the exponents are those of
all budgets together, and the answer is exact on wide and off-centre grids. Where it does not (architectures that differ
by more than their size, learning rates that are wrong at one end), the departure takes over, and the curve all but
goes through the points, as Akima's spline does (Porian et al. 2024), but no closer than the scatter allows.

On the five main sweeps of Porian et al. the probability of a departure is one, and the exponents of N*(C) are within
.004 of the published ones; on Llama 3 it is .01, and the answer that of the valleys. LENGTH, SMOOTH and the weights of
the power law were settled with those five exponents and the benchmark in view, so neither is a blind test; lengths from
1 to 3 move the five by at most .006. Everything is linear in the losses
for a given candidate, hence the same few products serve thousands of versions of the losses.
"""

from typing import NamedTuple

import numpy as np

from scaling.analysis.valley import basis

LENGTH = 2.0  # of the departures, in ln N: within a factor of e^2 = 7 in size they go together
ROUGH_L = np.array([0.0, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5])  # variance of the departures in units of the noise's
SMOOTH = 0.97  # prior probability of no departure: small sweeps cannot tell one from noise; others share the rest
EXPONENT, SPREAD = 0.4, 0.5  # prior of alpha and of beta: log-normal, of this median and deviation of the logarithm
STEPS = np.linspace(-1.2, 1.2, 7)  # of ln alpha and ln beta about the median: exponents from 0.12 to 1.33
NOISE, NOISE_DF = 1e-5, 1.0  # prior of the relative noise, worth this many degrees of freedom: rounding of the losses
POINTS = 241  # of the grid in ln N on which the lowest point is looked for
BATCH = 256  # versions of the losses at once: their products stay small

ALPHA_H, BETA_H = (EXPONENT * np.exp(steps.ravel()) for steps in np.meshgrid(STEPS, STEPS, indexing="ij"))


class Candidates(NamedTuple):
    """One budget seen by H shapes x L roughnesses. For losses y_S: coefficients = valley @ y, V^-1 residual = rest @ y.

    spread: covariance of the coefficients, in units of the noise's variance. log_evidence: the part of the restricted
    log-likelihood that does not depend on y.
    """

    log_N_S: np.ndarray
    middle: float
    valley_HxLx3xS: np.ndarray
    spread_HxLx3x3: np.ndarray
    rest_HxLxSxS: np.ndarray
    log_evidence_HxL: np.ndarray


class Curve(NamedTuple):
    """Fitted curves of B versions of one budget: basis times valley_BxHx3, plus covariances times departure_BxS."""

    log_N_S: np.ndarray
    middle: float
    valley_BxHx3: np.ndarray
    departure_BxS: np.ndarray

    @property
    def bend_B(self) -> np.ndarray:
        """Curvature in ln N of the valley alone, at the middle of the sizes: negative for a hill."""
        return self.valley_BxHx3[:, :, 2].sum(1)

    def at(self, log_N_M: np.ndarray) -> np.ndarray:
        """loss_BxM."""
        basis_HxMx3 = basis(log_N_M - self.middle, ALPHA_H, BETA_H)
        smooth_BxM = np.einsum("hmp,bhp->bm", basis_HxMx3, self.valley_BxHx3, optimize=True)
        return smooth_BxM + self.departure_BxS @ covariance(self.log_N_S, log_N_M)


class Posterior(NamedTuple):
    """Probabilities of the candidates for B versions of the losses of all budgets together.

    square_BxHxL: weighted sum of squared relative residuals, which over a chi-squared of df degrees of freedom is the
    variance of the noise.
    """

    share_BxHxL: np.ndarray
    square_BxHxL: np.ndarray
    df: float

    @property
    def noise_B(self) -> np.ndarray:
        """Standard deviation of one run's loss, relative to the loss."""
        return np.sqrt((self.share_BxHxL * self.square_BxHxL).sum((1, 2)) / self.df)


class Minima(NamedTuple):
    """Lowest points of K budgets in B versions: ln N, loss, and whether they are between the sizes."""

    log_N_BxK: np.ndarray
    loss_BxK: np.ndarray
    inside_BxK: np.ndarray
    curves: tuple[Curve, ...]
    posterior: Posterior


def covariance(x_S: np.ndarray, x_M: np.ndarray) -> np.ndarray:
    """Matern 5/2 correlations of the departures at sizes x_S and x_M in ln N: SxM."""
    r_SxM = np.sqrt(5.0) / LENGTH * np.abs(x_S[:, None] - x_M[None, :])
    return (1 + r_SxM + r_SxM**2 / 3) * np.exp(-r_SxM)


def candidates(log_N_S: np.ndarray, count_S: np.ndarray) -> Candidates:
    """What every candidate makes of a budget with these sizes, count_S runs of each (generalised least squares)."""
    middle = 0.5 * float(log_N_S[0] + log_N_S[-1])
    X_Hx1xSx3 = basis(log_N_S - middle, ALPHA_H, BETA_H)[:, None]
    V_LxSxS = np.diag(1.0 / count_S) + ROUGH_L[:, None, None] * covariance(log_N_S, log_N_S)
    W_LxSxS = np.linalg.inv(V_LxSxS)
    XtW_HxLx3xS = X_Hx1xSx3.transpose(0, 1, 3, 2) @ W_LxSxS
    A_HxLx3x3 = XtW_HxLx3xS @ X_Hx1xSx3
    spread_HxLx3x3 = np.linalg.inv(A_HxLx3x3)
    valley_HxLx3xS = spread_HxLx3x3 @ XtW_HxLx3xS
    rest_HxLxSxS = W_LxSxS - XtW_HxLx3xS.transpose(0, 1, 3, 2) @ valley_HxLx3xS
    log_evidence_HxL = -0.5 * (np.linalg.slogdet(V_LxSxS)[1] + np.linalg.slogdet(A_HxLx3x3)[1])
    return Candidates(log_N_S, middle, valley_HxLx3xS, spread_HxLx3x3, rest_HxLxSxS, log_evidence_HxL)


def minima(budgets: list[Candidates], losses: list[np.ndarray]) -> Minima:
    """The lowest points of K budgets in B versions of their losses, a BxS array a budget."""
    found = posterior(budgets, losses)
    curves = tuple(_curve(one, loss_BxS, found.share_BxHxL) for one, loss_BxS in zip(budgets, losses, strict=True))
    points = [lowest(grid_G, curve.at(grid_G)) for curve in curves for grid_G in [grid(curve.log_N_S)]]
    log_N_BxK, loss_BxK, inside_BxK = (np.stack(values, axis=1) for values in zip(*points, strict=True))
    return Minima(log_N_BxK, loss_BxK, inside_BxK, curves, found)


def posterior(budgets: list[Candidates], losses: list[np.ndarray]) -> Posterior:
    """How probable every candidate is, all budgets together.

    Flat priors of the valleys' coefficients and an inverse-gamma prior of the noise's variance, which is integrated
    out (Patterson & Thompson 1971; O'Hagan 1994, 9.4).
    """
    square_BxHxL = np.full((len(losses[0]), *budgets[0].log_evidence_HxL.shape), NOISE_DF * NOISE**2)
    df = NOISE_DF
    for one, loss_BxS in zip(budgets, losses, strict=True):
        y_BxS = loss_BxS / loss_BxS.mean(1, keepdims=True)
        for cut in _batches(y_BxS):
            square_BxHxL[cut] += np.einsum("bs,bhls->bhl", y_BxS[cut], _rest(one, y_BxS[cut])).clip(0)
        df += len(one.log_N_S) - 3
    prior_H = -0.5 * (np.log(ALPHA_H / EXPONENT) ** 2 + np.log(BETA_H / EXPONENT) ** 2) / SPREAD**2
    prior_L = np.log(np.where(ROUGH_L == 0, SMOOTH, (1 - SMOOTH) / (len(ROUGH_L) - 1)))
    log_evidence_HxL = sum(one.log_evidence_HxL for one in budgets) + prior_H[:, None] + prior_L
    log_share_BxHxL = log_evidence_HxL - 0.5 * df * np.log(square_BxHxL)
    share_BxHxL = np.exp(log_share_BxHxL - log_share_BxHxL.max((1, 2), keepdims=True))
    share_BxHxL /= share_BxHxL.sum((1, 2), keepdims=True)
    return Posterior(share_BxHxL, square_BxHxL, df)


def _batches(values_BxS: np.ndarray) -> list[slice]:
    return [slice(i, i + BATCH) for i in range(0, len(values_BxS), BATCH)]


def _rest(one: Candidates, y_BxS: np.ndarray) -> np.ndarray:
    """rest @ y of every candidate: BxHxLxS."""
    H, L, S, _ = one.rest_HxLxSxS.shape
    return (y_BxS @ one.rest_HxLxSxS.reshape(H * L * S, S).T).reshape(-1, H, L, S)


def _curve(one: Candidates, loss_BxS: np.ndarray, share_BxHxL: np.ndarray) -> Curve:
    """The mean of the candidates' curves, in units of the loss."""
    H, L, _, S = one.valley_HxLx3xS.shape
    valley_BxHx3, departure_BxS = np.empty((len(loss_BxS), H, 3)), np.empty(loss_BxS.shape)
    for cut in _batches(loss_BxS):
        coefficients_BxHxLx3 = (loss_BxS[cut] @ one.valley_HxLx3xS.reshape(H * L * 3, S).T).reshape(-1, H, L, 3)
        valley_BxHx3[cut] = np.einsum("bhl,bhlp->bhp", share_BxHxL[cut], coefficients_BxHxLx3)
        departure_BxS[cut] = np.einsum("bhl,bhls->bs", share_BxHxL[cut] * ROUGH_L, _rest(one, loss_BxS[cut]))
    return Curve(one.log_N_S, one.middle, valley_BxHx3, departure_BxS)


def grid(log_N_S: np.ndarray) -> np.ndarray:
    """The points in ln N among which the lowest is looked for."""
    return np.linspace(log_N_S[0], log_N_S[-1], POINTS)


def lowest(grid_G: np.ndarray, loss_BxG: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ln N and loss at the lowest point of curves on an even grid, and whether that is inside the grid.

    Between the points of the grid, it is the vertex of the parabola through the lowest of them and its neighbours.
    """
    rows, at_B = np.arange(len(loss_BxG)), loss_BxG.argmin(1)
    inside_B = (at_B > 0) & (at_B < len(grid_G) - 1)
    middle_B = at_B.clip(1, len(grid_G) - 2)
    before_B, here_B, after_B = (loss_BxG[rows, middle_B + step] for step in (-1, 0, 1))
    bend_B = before_B - 2 * here_B + after_B
    shift_B = np.where(inside_B, 0.5 * (before_B - after_B) / np.where(inside_B, bend_B, 1.0), 0.0)
    loss_B = np.where(inside_B, here_B - 0.25 * (before_B - after_B) * shift_B, loss_BxG[rows, at_B])
    return grid_G[at_B] + shift_B * (grid_G[1] - grid_G[0]), loss_B, inside_B


def deviation(one: Candidates, found: Posterior, loss_S: np.ndarray, log_N: float) -> float:
    """Standard deviation of ln N at a curve's minimum log_N: that of the slope there, over the valley's curvature.

    The slope varies within each candidate by the error of kriging (Cressie 1993, eq. 3.4.5), noise and departures
    between the sizes alike, and between the candidates. Infinite where the valley does not curve upwards.
    """
    step = 0.05
    x_3 = log_N + step * np.array([-1.0, 0.0, 1.0])
    basis_Hx3x3, near_Sx3 = basis(x_3 - one.middle, ALPHA_H, BETA_H), covariance(one.log_N_S, x_3)
    share_HxL = found.share_BxHxL[0]
    valley_HxLx3 = np.einsum("hmp,hlps,s->hlm", basis_Hx3x3, one.valley_HxLx3xS, loss_S, optimize=True)
    departure_HxLx3 = np.einsum("l,sm,hlst,t->hlm", ROUGH_L, near_Sx3, one.rest_HxLxSxS, loss_S, optimize=True)
    slope_HxL = (valley_HxLx3 + departure_HxLx3) @ [-0.5, 0.0, 0.5] / step
    bend = float((share_HxL * (valley_HxLx3 @ [1.0, -2.0, 1.0])).sum()) / step**2
    lean_Hx1x3 = ((basis_Hx3x3[:, 2] - basis_Hx3x3[:, 0]) / (2 * step))[:, None]
    lean_LxS = ROUGH_L[:, None] * (near_Sx3[:, 2] - near_Sx3[:, 0]) / (2 * step)
    own_L = ROUGH_L * 2 * (1 - covariance(x_3[:1], x_3[2:])[0, 0]) / (2 * step) ** 2
    variance_HxL = (
        own_L
        - np.einsum("ls,hlst,lt->hl", lean_LxS, one.rest_HxLxSxS, lean_LxS, optimize=True)
        + np.einsum("hlp,hlpq,hlq->hl", lean_Hx1x3, one.spread_HxLx3x3, lean_Hx1x3, optimize=True)
        - 2 * np.einsum("hlp,hlps,ls->hl", lean_Hx1x3, one.valley_HxLx3xS, lean_LxS, optimize=True)
    )
    noise_HxL = found.square_BxHxL[0] / found.df * loss_S.mean() ** 2
    within = float((share_HxL * noise_HxL * variance_HxL.clip(0)).sum())
    between = float((share_HxL * (slope_HxL - (share_HxL * slope_HxL).sum()) ** 2).sum())
    return float(np.sqrt(within + between)) / bend if bend > 0 else float("inf")


def smoother(one: Candidates, share_HxL: np.ndarray) -> np.ndarray:
    """The SxS matrix that takes losses to the mean of the candidates' curves at the sizes."""
    basis_HxSx3 = basis(one.log_N_S - one.middle, ALPHA_H, BETA_H)
    valley_SxS = np.einsum("hl,hsp,hlpt->st", share_HxL, basis_HxSx3, one.valley_HxLx3xS, optimize=True)
    departure_SxS = np.einsum("hl,hlst->st", share_HxL * ROUGH_L, one.rest_HxLxSxS)
    return valley_SxS + covariance(one.log_N_S, one.log_N_S) @ departure_SxS
