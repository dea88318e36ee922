"""Simulated isoFLOP sweeps with a known law, and the published data where they are."""

import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

DATA = pathlib.Path(os.environ.get("SCALING_PUBLISHED_DATA", pathlib.Path(__file__).parents[2] / "../shared/data"))
BUDGETS = (2e11, 5e11, 1.25e12, 2.5e12)


class Truth(NamedTuple):
    """L = E + A / N^alpha + B / D^beta, and the optimum under C = 6ND in closed form (Hoffmann et al. 2022, eq. 4)."""

    E: float = 1.0
    A: float = 29.0
    B: float = 128.0
    alpha: float = 0.4
    beta: float = 0.36

    def loss(self, N: np.ndarray | float, D: np.ndarray | float) -> np.ndarray | float:
        return self.E + self.A / N**self.alpha + self.B / D**self.beta

    @property
    def exponent(self) -> float:
        return self.beta / (self.alpha + self.beta)

    def N_opt(self, C: np.ndarray | float) -> np.ndarray | float:
        G = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return G * (C / 6) ** self.exponent


TRUTH = Truth()


def isoflop_frame(truth: Truth = TRUTH, noise: float = 0.0, seed: int = 0, sizes: int = 7) -> pd.DataFrame:
    """Four budgets of sizes from N*/3 to 8 N*, as a small sweep has them; noise is of log loss."""
    rng = np.random.default_rng(seed)
    rows = [
        {"run": f"{C:.0e}-{k}", "N": N, "D": C / (6 * N), "C": C, "loss": truth.loss(N, C / (6 * N))}
        for C in BUDGETS
        for k, N in enumerate(truth.N_opt(C) * np.geomspace(1 / 3, 8, sizes))
    ]
    frame = pd.DataFrame(rows)
    frame["loss"] *= np.exp(noise * rng.standard_normal(len(frame)))
    return frame


def curves_frame(truth: Truth = TRUTH) -> pd.DataFrame:
    """Ten noise-free held-out losses on the way of each run, and a training loss that must not be used."""
    rows = []
    for run in isoflop_frame(truth).itertuples():
        for share in np.linspace(0.1, 1.0, 10):
            point = {"run": run.run, "step": int(100 * share), "N": run.N, "D": run.D * share, "C": run.C * share}
            rows.append({**point, "loss": truth.loss(run.N, run.D * share), "split": "validation"})
            rows.append({**point, "loss": 0.1, "split": "train"})
    return pd.DataFrame(rows)


@pytest.fixture(scope="session")
def truth() -> Truth:
    return TRUTH


@pytest.fixture(scope="session")
def sweep() -> Callable[..., pd.DataFrame]:
    return isoflop_frame


@pytest.fixture(scope="session")
def training_curves() -> Callable[..., pd.DataFrame]:
    return curves_frame


@pytest.fixture(scope="session")
def published() -> Callable[[str], pd.DataFrame]:
    def read(name: str) -> pd.DataFrame:
        path = DATA / f"{name}.csv"
        if not path.exists():
            pytest.skip(f"no published data at {path}: set SCALING_PUBLISHED_DATA to the folder that holds them")
        return pd.read_csv(path)

    return read
