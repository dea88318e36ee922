"""Sweeps to test with: configs, stores of any size that hold no text, and a small real one."""

import collections
import copy
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from scaling.data.token_store import Split, TokenStore, build_store
from scaling.sweeps.config import SweepConfig, sweep_config
from scaling.sweeps.texts import Text, Texts

# A study of bytes on one machine, one of four cells a budget, and one in outline at the scale of Hoffmann et al. 2022.
BYTES = {"source": "words", "tokenizer": "bytes", "sequence_length": 64, "eval_windows": 32}
CONFIGS = {
    "study": {
        "data": {**BYTES, "max_epochs": 2.0},
        "model": {"tied_embeddings": True, "output_init": "zero"},
        "recipe": "small",
        "grid": {"budgets": (1e11, 2.5e11, 6e11, 1.5e12), "sizes": 6, "prior_flops": 5e11, "prior_size": 45e3},
        "prediction": 2.0,
    },
    "small": {
        "data": BYTES,
        "model": {"tied_embeddings": True},
        "recipe": "small",
        "grid": {
            "budgets": (2e10, 5e10),
            "sizes": 4,
            "prior_flops": 2e10,
            "prior_size": 17e3,
            "prior_exponent": 0.0,
            "below": 1.6,
            "above": 2.6,
        },
        "prediction": 2.0,
        "eval_points": 3,
    },
    "large": {
        "data": {"source": "web", "tokenizer": "pieces", "sequence_length": 2048, "eval_windows": 100},
        "recipe": "chinchilla",
        "grid": {"budgets": (1e19, 4e19), "sizes": 5, "prior_flops": 1e20, "prior_size": 1.2e9, "above": 3.0},
    },
}


def config_dict(name: str, **changes: Any) -> dict[str, Any]:
    """A named config as plain values, with fields changed by their dotted names (a double underscore for the dot)."""
    values = copy.deepcopy(CONFIGS[name])
    for key, value in changes.items():
        *groups, field = key.split("__")
        target = values
        for group in groups:
            target = target.setdefault(group, {})
        target[field] = value
    return values


def hollow_store(tokens: float = 1e7, vocab_size: int = 256, content_id: str = "cafe") -> TokenStore:
    """A store that says how much it holds and holds nothing: a grid needs no more."""
    split = Split(int(tokens), documents=1, bytes=int(tokens))
    splits = {"train": split, "validation": split}
    return TokenStore(pathlib.Path("/stores/s"), content_id, "some:text", "bytes", vocab_size, 0, {}, splits)


@pytest.fixture(scope="session")
def values() -> Callable[..., dict[str, Any]]:
    return config_dict


@pytest.fixture(scope="session")
def make_config() -> Callable[..., SweepConfig]:
    return lambda name, **changes: sweep_config(config_dict(name, **changes))


def same_text(store: TokenStore) -> Texts:
    """One text, whatever the config asks for."""
    text = Text(store)
    return collections.defaultdict(lambda: text, {None: text})


@pytest.fixture(scope="session")
def make_store() -> Callable[..., TokenStore]:
    return hollow_store


@pytest.fixture(scope="session")
def make_texts() -> Callable[..., Texts]:
    return lambda *sizes, **names: same_text(hollow_store(*sizes, **names))


@pytest.fixture(scope="session")
def text_store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """About 20,000 tokens of words in random order, half of them for validation."""
    directory = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for i in range(100):
        words = rng.integers(0, 100, 70)
        (directory / f"{i:03}.txt").write_text(f"{i} " + " ".join(map(str, words)))
    return build_store(f"files:{directory}/*.txt", "bytes", 0.5, tmp_path_factory.mktemp("stores") / "text")


@pytest.fixture
def snapshot() -> Callable[[pathlib.Path], dict[str, tuple[int, bytes]]]:
    """All files under a directory: name -> (time of the last change, content)."""

    def take(directory: pathlib.Path) -> dict[str, tuple[int, bytes]]:
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        return {str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    return take
