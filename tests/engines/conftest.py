"""Sweeps for engines to run: cells of a tiny model that train for some seconds: there is time to disturb them."""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from scaling.data.token_store import TokenStore, build_store
from scaling.runs import DataSpec, ModelShape, OptimizerSpec, Run, ScheduleSpec
from scaling.sweeps.cells import Cell
from scaling.sweeps.config import sweep_config
from scaling.sweeps.tasks import Task, Way, make_task
from scaling.sweeps.texts import Text
from scaling.sweeps.workdir import Sweep, write_sweep

TINY = ModelShape(d_model=16, n_layers=2, n_heads=1, d_ff=32, vocab_size=256)

MakeSweep = Callable[..., Sweep]


@pytest.fixture(scope="session")
def engine_store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Some thousand tokens of words in random order."""
    directory = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for i in range(100):
        words = rng.integers(0, 100, 70)
        (directory / f"{i:03}.txt").write_text(f"{i} " + " ".join(map(str, words)))
    return build_store(f"files:{directory}/*.txt", "bytes", 0.5, tmp_path_factory.mktemp("stores") / "text")


@pytest.fixture(scope="session")
def make_sweep(engine_store: TokenStore) -> MakeSweep:
    """Writes a sweep of so many cells, which differ in their seeds, to a directory."""

    def make(workdir: pathlib.Path, cells: int, steps: int, devices: int = 1) -> Sweep:
        data = DataSpec(engine_store.content_id, sequence_length=32, eval_windows=8)
        optimizer, schedule = OptimizerSpec(1e-2), ScheduleSpec("cosine", 20)
        run = Run(TINY, data, batch_size=4, steps=steps, optimizer=optimizer, schedule=schedule, eval_points=4)
        config = sweep_config(
            {
                "data": {"source": engine_store.source, "tokenizer": "bytes", "sequence_length": 32, "eval_windows": 8},
                "recipe": "small",
                "grid": {"budgets": (1e9,), "sizes": 4, "prior_flops": 1e9, "prior_size": 1e4},
                "placement": {"data": devices},
            }
        )
        text = Text(engine_store)
        texts = collections.defaultdict(lambda: text, {None: text})
        made = [Cell(dataclasses.replace(run, seed=seed), 1e9) for seed in range(cells)]
        return write_sweep(workdir, config, texts, made, ())

    return make


@pytest.fixture(scope="session")
def tasks_of() -> Callable[[pathlib.Path, Sweep, Way], list[Task]]:
    """The cells of a sweep as an engine takes them."""
    return lambda workdir, sweep, way: [make_task(workdir, cell, sweep.config.placement, way) for cell in sweep.cells]


@pytest.fixture
def host_lost() -> Callable[[str, int, int], None]:
    """Tells benchmarks.robustness, which runs these tests with ROBUSTNESS_ROWS set to a file, that a host was lost: the
    engine, how many results went with it, and how many cells were recorded twice."""

    def tell(engine: str, results_lost: int, recorded_twice: int) -> None:
        if path := os.environ.get("ROBUSTNESS_ROWS"):
            row = {
                "what": "host lost",
                "engine": engine,
                "results_lost": results_lost,
                "recorded_twice": recorded_twice,
            }
            with open(path, "a", encoding="utf-8") as f:
                f.write(json.dumps({"what": "host lost", **row}) + "\n")

    return tell
