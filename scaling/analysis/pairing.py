"""Common resampling of two sweeps: runs that agree in both have one weight, all others have weights of their own.

A run of one sweep and a run of the other agree where they have the same N, the same C and (where both tables tell) the
same seed. What made one of them lucky, or lies in the shape of that size, often touches the other too, and cancels from
the ratio of the two sweeps only if they are resampled together: the pairs of a paired test.
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse

from scaling.analysis.resampling import cluster_of, dirichlet_weights
from scaling.analysis.table import GAP, Table

SAME_N = 1e-3  # relative difference below which two sizes are one, printed with other digits


class Pairs(NamedTuple):
    """The resampling units of two tables: the number of its unit for each row of a and of b, of `units` in all.

    runs_a, runs_b: rows that agree with a row of the other table.
    """

    unit_a_R: np.ndarray
    unit_b_R: np.ndarray
    units: int
    runs_a: int
    runs_b: int


def pairs(a: Table, b: Table) -> Pairs:
    """Joins the clusters (trunk, else run, else row) of two tables where a row of one agrees with a row of the other.

    Units are the connected components of that graph, so that a cluster is never torn apart.
    """
    cluster_a_R, cluster_b_R = cluster_of(a, "auto"), cluster_of(b, "auto")
    K = int(cluster_a_R.max()) + 1
    same_N = np.abs(np.log(a.N_R[:, None] / b.N_R)) < SAME_N
    same_C = np.abs(np.log(a.C_R[:, None] / b.C_R)) < GAP
    row_a, row_b = np.nonzero(same_N & same_C & _same_seed(a.labels["seed"][:, None], b.labels["seed"]))
    edges = (np.ones(len(row_a)), (cluster_a_R[row_a], K + cluster_b_R[row_b]))
    graph = sparse.coo_matrix(edges, (K + int(cluster_b_R.max()) + 1,) * 2)
    count, unit_K = sparse.csgraph.connected_components(graph, directed=False)
    return Pairs(
        unit_a_R=unit_K[cluster_a_R],
        unit_b_R=unit_K[K + cluster_b_R],
        units=int(count),
        runs_a=len(np.unique(row_a)),
        runs_b=len(np.unique(row_b)),
    )


def common_weights(found: Pairs, resamples: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap weights of the rows of a and of b, weight_BxR each, by one draw of all units (`dirichlet_weights`).

    The proportions that Dirichlet weights give to one sweep's units are independent of those in the rest, so that
    sweeps without pairs are resampled independently.
    """
    weight_BxR = dirichlet_weights(np.concatenate([found.unit_a_R, found.unit_b_R]), resamples, rng)
    cut = len(found.unit_a_R)
    return weight_BxR[:, :cut], weight_BxR[:, cut:]


def _same_seed(a_Rx1: np.ndarray, b_R: np.ndarray) -> np.ndarray:
    """Whether two rows may have the same seed: a table that does not tell does not contradict."""
    return (a_Rx1 == b_R) | (a_Rx1 == "") | (b_R == "")
