"""The benchmark of the data: what its rows compare, and that what it times is what a training reads."""

import numpy as np
import pytest

from scaling.data.batches import batch
from scaling.data.token_store import read_tokens
from scaling.models.ladder import shape_for
from scaling.runs import DataSpec
from scaling.speed import data
from scaling.speed.shapes import random_run

TINY = random_run(shape_for(2e4, 256), 4, 16, "fp32")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(data, "SHARD_TOKENS", 1 << 12)
    monkeypatch.setattr(data, "SECONDS", 0.01)


def test_batches_come_from_a_store_of_several_files(small, tmp_path):
    store = data._large_store(tmp_path)
    assert store.splits["train"].tokens == data.SHARDS << 12
    tokens_BxM = batch({store.content_id: store}, DataSpec(store.content_id, 16, 2), 4, 0)
    ids_T = read_tokens(store, "train")
    windows = {ids_T[i : i + 17].tobytes() for i in range(0, len(ids_T) - 16, 16)}
    assert all(row.tobytes() in windows for row in tokens_BxM)
    assert 1e4 < data.batch_rate(store, TINY)() < 1e12  # anything that reads at all, and nothing that does not


def test_the_step_of_a_host_is_at_a_share_of_its_peak():
    """GPT-2 124M: 8.5e8 FLOPs a token with full attention over 1,024 positions, of 8 x 989e12 a second."""
    run = random_run(shape_for(124e6, 50257, tied_embeddings=True), 512, 1024, "bf16")
    assert data.host_rate(run) == pytest.approx(0.35 * 8 * 989e12 / 8.5e8, rel=0.05)


def test_the_rows_of_tokenising(small, tmp_path, monkeypatch):
    """All cores are compared with one, and one with the number that is required."""
    monkeypatch.setattr(data, "available_cores", lambda: 3)
    rates = {1: 4e5, 3: 1e6}
    monkeypatch.setattr(data, "build_rate", lambda text, spec, directory, processes: lambda: rates[processes])
    (tmp_path / "a.txt").write_text("text")
    one, several = data._tokenised(f"files:{tmp_path}/*.txt", "bytes", tmp_path, repeats=3)
    assert (one.name, one.ours, one.peer, one.ratio) == ("data bytes, one core", 4e5, 5e5, 0.8)
    assert (several.name, several.ours, several.peer, several.ratio) == ("data bytes, all cores", 1e6, 4e5, 2.5)
    monkeypatch.setattr(data, "available_cores", lambda: 1)
    (alone,) = data._tokenised(f"files:{tmp_path}/*.txt", "bytes", tmp_path, repeats=3)
    assert alone.ratio == 0.8


def test_what_is_built_is_timed_and_removed(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    rng = np.random.default_rng(0)
    for k in range(200):
        (text / f"{k}.txt").write_bytes(bytes(rng.integers(97, 123, 50, np.uint8)))
    out = tmp_path / "out"
    out.mkdir()
    assert data.build_rate(f"files:{text}/*.txt", "bytes", out, 1)() > 0
    assert not list(out.iterdir())


def test_copies_of_a_text_differ(tmp_path):
    """Or the store would keep one of them. (The library itself may have a text twice.)"""
    different = {text for _, text in data.open_source("stdlib").documents if text}
    copies = {text for _, text in data.open_source(data._text(tmp_path)).documents}
    assert len(copies) == data.COPIES * len(different) > 1000
