"""Draws of Approach 2: isoFLOP minima, and power laws through them, that the losses allow.

Each draw is one from the posterior of the kriging of the module `minima`: exponents and roughness by their
probability, the noise's variance by its chi-squared, then for every budget a curve, by Matheron's rule (Chiles &
Delfiner 1999, 7.3): a departure and noise are simulated, the simulated noisy losses are taken from the measured ones,
the same candidate is fitted to what is left, and the simulated departure is added back. So the draws carry the noise,
what the losses do not say about the curve between the sizes, and how few sizes have said it. Resampling the runs of a
budget instead would take the minimum or one side of the valley away (63 % of five to ten sizes are left); resampling
residuals covers less where few are left by the fit.

Where rows share a cluster (a trunk, else a run), noise is not independent: then each cluster's own residuals keep
together, multiplied by one random sign (wild bootstrap, Liu 1988) and widened as Student's t is for so few clusters.
Where the minima scatter about their power law by more than their deviations explain, as they do for sizes that differ
in shape, the excess is added to the draws.
"""

import numpy as np

from scaling.analysis.isoflop import Budget, IsoFLOP, tokens_at
from scaling.analysis.minima import (
    ALPHA_H,
    BETA_H,
    ROUGH_L,
    Candidates,
    candidates,
    covariance,
    grid,
    lowest,
    posterior,
    smoother,
)
from scaling.analysis.powers import power_law
from scaling.analysis.table import Table
from scaling.analysis.uncertainty import Draws
from scaling.analysis.valley import basis

LEFT = 0.2  # least share of the noise's variance, left by a fit in a residual, that may be made up for
JITTER = 1e-9  # added to unit variances: nearby points of a smooth process are collinear to rounding


def isoflop_draws(found: IsoFLOP, table: Table, resamples: int, rng: np.random.Generator) -> Draws:
    """N*(C) and D*(C) of so many draws; budgets without an optimum in a draw are left out of it."""
    usable = found.usable
    log_N_BxK = minima_draws(found, table, resamples, rng)
    log_N_BxK = log_N_BxK + found.scatter * rng.standard_normal(log_N_BxK.shape)
    D_BxK = np.stack([tokens_at(budget.cells, log_N_BxK[:, k]) for k, budget in enumerate(usable)], axis=1)
    C_1xK = np.array([[budget.C for budget in usable]])
    N_power = power_law(C_1xK, np.exp(log_N_BxK), found.weight_K)
    D_power = power_law(C_1xK, D_BxK, found.weight_K)
    return Draws(N_power, D_power, int(np.isnan(N_power.exponent_B).sum()))


def minima_draws(found: IsoFLOP, table: Table, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """log_N_BxK of the usable budgets; NaN where a drawn curve is lowest at an end of the sizes."""
    fitted = [budget for budget in found.budgets if budget.curve is not None]
    seen = [candidates(np.log(budget.cells.N_S), budget.cells.count_S) for budget in fitted]
    known = posterior(seen, [budget.cells.loss_S[None] for budget in fitted])
    share_HxL = known.share_BxHxL[0]
    pick_B = rng.choice(share_HxL.size, size=resamples, p=share_HxL.ravel())
    sd_B = np.sqrt(known.square_BxHxL[0].ravel()[pick_B] / rng.chisquare(known.df, resamples))
    sign_BxC = _signs(table, fitted, resamples, rng) if table.correlated else None
    columns = []
    for budget, one in zip(fitted, seen, strict=True):
        if budget.status != "ok":
            continue
        cells = budget.cells
        if sign_BxC is None:
            noise_BxS = sd_B[:, None] * rng.standard_normal((resamples, len(cells.N_S))) / np.sqrt(cells.count_S)
        else:
            rows = np.concatenate(cells.rows_S)
            noise_BxM = sign_BxC[:, table.cluster_R[rows]] * residuals(budget, smoother(one, share_HxL), table)
            noise_BxS = np.add.reduceat(noise_BxM, np.cumsum(cells.count_S) - cells.count_S, axis=1) / cells.count_S
        log_N_B, _, inside_B = lowest(*_curves(one, cells.loss_S, noise_BxS, sd_B, pick_B, rng))
        columns.append(np.where(inside_B, log_N_B, np.nan))
    return np.stack(columns, axis=1)


def _signs(table: Table, fitted: list[Budget], resamples: int, rng: np.random.Generator) -> np.ndarray:
    """A random sign of each cluster's residuals, times what Student's t adds to a normal for so few clusters.

    Three coefficients of a valley are taken from the noise of clusters that go through all budgets, not from each run.
    """
    clusters = np.unique(table.cluster_R[np.concatenate([rows for budget in fitted for rows in budget.cells.rows_S])])
    df = max(len(clusters) - 3, 1)
    size_Bx1 = np.sqrt(df / rng.chisquare(df, size=(resamples, 1)))
    return size_Bx1 * rng.choice([-1.0, 1.0], size=(resamples, int(table.cluster_R.max()) + 1))


def _curves(
    one: Candidates,
    loss_S: np.ndarray,
    noise_BxS: np.ndarray,
    sd_B: np.ndarray,
    pick_B: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """A grid in ln N and one relative loss_BxG on it of each draw, by Matheron's rule."""
    H_B, L_B = np.unravel_index(pick_B, one.log_evidence_HxL.shape)
    grid_G = grid(one.log_N_S)
    points_M = np.concatenate([one.log_N_S, grid_G])
    root_MxM = np.linalg.cholesky(covariance(points_M, points_M) + JITTER * np.eye(len(points_M)))
    path_BxM = np.zeros((len(sd_B), len(points_M)))
    rough_B = ROUGH_L[L_B] > 0
    size_B = sd_B * np.sqrt(ROUGH_L[L_B])
    path_BxM[rough_B] = size_B[rough_B, None] * (rng.standard_normal((int(rough_B.sum()), len(points_M))) @ root_MxM.T)
    S = len(loss_S)
    left_BxS = loss_S / loss_S.mean() - noise_BxS - path_BxM[:, :S]
    valley_Bx3 = np.einsum("bps,bs->bp", one.valley_HxLx3xS[H_B, L_B], left_BxS)
    departure_BxS = ROUGH_L[L_B, None] * np.einsum("bst,bt->bs", one.rest_HxLxSxS[H_B, L_B], left_BxS)
    loss_BxG = departure_BxS @ covariance(one.log_N_S, grid_G) + path_BxM[:, S:]
    basis_HxGx3 = basis(grid_G - one.middle, ALPHA_H, BETA_H)
    for h in np.unique(H_B):
        loss_BxG[H_B == h] += valley_Bx3[H_B == h] @ basis_HxGx3[h].T
    return grid_G, loss_BxG


def residuals(budget: Budget, smoother_SxS: np.ndarray, table: Table) -> np.ndarray:
    """Relative residuals of a budget's runs from its curve, each over the share of the noise's variance that is left.

    With the smoother M of the runs, residuals of unit noise have variance diag((I - M)(I - M)^T). Dividing by it rather
    than by its root is the jackknife's way (HC3 of MacKinnon & White 1985), and covers where clusters are few: of 90 %
    intervals from 9 trunks through 4 budgets with .4 % of noise each, 92 % hold the exponent, and 85 % with the root.
    """
    cells = budget.cells
    index = np.repeat(np.arange(len(cells.N_S)), cells.count_S)
    rest = np.eye(len(index)) - smoother_SxS[index][:, index] / cells.count_S[index]
    left = (rest**2).sum(1)
    loss = table.loss_R[np.concatenate(cells.rows_S)]
    # A run that the curve all but passes through tells nothing of the noise, and must not be blown up.
    return (loss - (smoother_SxS @ cells.loss_S)[index]) / cells.loss_S.mean() / np.maximum(left, LEFT)
