"""A small token store of generated text, and a run on it that takes a second."""

import pathlib

import pytest

from scaling.data.token_store import TokenStore, build_store
from scaling.runs import DataSpec, ModelShape, OptimizerSpec, Placement, Run, ScheduleSpec


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> TokenStore:
    text = tmp_path_factory.mktemp("text")
    for i in range(40):
        (text / f"{i:02}.txt").write_text(" ".join(f"{i} times {j} is {i * j}." for j in range(20)))
    return build_store(f"files:{text}/*.txt", "bytes", 0.3, tmp_path_factory.mktemp("stores") / "small")


@pytest.fixture(scope="session")
def stores(store) -> dict[str, TokenStore]:
    return {store.content_id: store}


@pytest.fixture(scope="session")
def run(store) -> Run:
    """eps is large so that an update is a smooth function of the gradient; see tests/parallel/test_mesh.py."""
    return Run(
        model=ModelShape(16, 2, 2, 32, vocab_size=264, tied_embeddings=True),
        data=DataSpec(store.content_id, sequence_length=16, eval_windows=10),
        batch_size=8,
        steps=20,
        optimizer=OptimizerSpec(peak_lr=0.01, eps=1e-3),
        schedule=ScheduleSpec("cosine", warmup_steps=2),
        eval_points=4,
    )


@pytest.fixture(scope="module")
def finished(run, stores, tmp_path_factory, quick_compilation) -> pathlib.Path:
    """The directory of the run, trained without interruption."""
    from scaling.training.loop import train

    directory = tmp_path_factory.mktemp("runs") / "whole"
    train(run, Placement(), stores, directory)
    return directory
