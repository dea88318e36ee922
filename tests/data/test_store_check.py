"""A token store that changes under a run is found out before the next save, and one that does not costs nothing."""

import json
import os
import shutil
import time

import numpy as np
import pytest

from scaling.data import store_check
from scaling.data.store_build import shard_name
from scaling.data.store_check import check, stamp
from scaling.data.token_store import build_store, open_store, read_tokens
from scaling.errors import InputError, RunFailedError

SHARD = shard_name("train", 0)


@pytest.fixture
def mine(store, tmp_path):
    """A copy of the store that a test may spoil."""
    shutil.copytree(store.path, tmp_path / "store")
    return open_store(tmp_path / "store")


@pytest.fixture
def verified(tmp_path):
    return tmp_path / "verified.json"


@pytest.fixture
def comparisons(monkeypatch):
    """How often all checksums were compared."""
    found = []

    def counted(path, verify=False):
        found.append(verify)
        return open_store(path, verify=verify)

    monkeypatch.setattr(store_check, "open_store", counted)
    return found


def flip(path, at=100):
    """One bit, in place, where a memory map sees it at once."""
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 1]))


def refuses(store, verified, fault):
    with pytest.raises(RunFailedError, match=fault) as raised:
        check(store, verified)
    assert raised.value.kind == "store_changed"
    assert raised.value.exit_code == 2
    assert str(raised.value).startswith(f"token store {store.content_id} changed")


def test_checksums_are_compared_once(mine, verified, comparisons):
    for _ in range(3):
        check(mine, verified)
    assert comparisons == [True]
    check(open_store(mine.path), verified)  # another run of the same sweep
    assert comparisons == [True]


def test_a_byte_changed_before_the_run_is_found(mine, verified):
    flip(mine.path / SHARD)
    refuses(mine, verified, "the train split does not match its checksum.*bring back")
    assert not verified.exists()


def test_a_byte_changed_between_saves_is_found(mine, verified):
    """The map of the open store has it at once, so what is trained from then on must never be saved."""
    check(mine, verified)
    before = read_tokens(mine, "train")
    flip(mine.path / SHARD)
    assert (read_tokens(mine, "train") != before).sum() == 1
    refuses(mine, verified, "the train split does not match its checksum")
    refuses(mine, verified, "the train split does not match its checksum")  # not only the first time


def test_a_change_that_hides_is_found(mine, verified):
    """The time of its last modification can be set back; that of its last change of any kind cannot."""
    check(mine, verified)
    before = os.stat(mine.path / SHARD)
    flip(mine.path / SHARD)
    os.utime(mine.path / SHARD, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(mine.path / SHARD).st_mtime_ns == before.st_mtime_ns
    refuses(mine, verified, "does not match")


def test_files_touched_but_equal_are_compared_again_and_pass(mine, verified, comparisons):
    check(mine, verified)
    (mine.path / SHARD).touch()
    check(mine, verified)
    check(mine, verified)
    assert comparisons == [True, True]


def test_a_byte_put_right_again_passes(mine, verified):
    check(mine, verified)
    flip(mine.path / SHARD)
    refuses(mine, verified, "does not match")
    flip(mine.path / SHARD)
    check(mine, verified)


@pytest.mark.parametrize("name", [SHARD, shard_name("validation", 0), "store.json"])
def test_a_file_that_is_gone_is_named(mine, verified, name):
    check(mine, verified)
    os.remove(mine.path / name)
    refuses(mine, verified, f"{name}: no such file")


def test_a_file_cut_short_is_found(mine, verified):
    check(mine, verified)
    os.truncate(mine.path / SHARD, 50)
    refuses(mine, verified, "50 bytes instead of")


def test_another_store_in_its_place_is_found(mine, verified, source, tmp_path):
    """It is whole and sound, but not the one that the run names."""
    other = build_store(source, mine.tokenizer, 0.5, tmp_path / "other", processes=1)
    assert other.content_id != mine.content_id
    check(mine, verified)
    shutil.rmtree(mine.path)
    os.rename(other.path, mine.path)
    refuses(mine, verified, f"another store is there, of content id {other.content_id}")


def test_a_store_written_while_it_is_read_is_not_taken_for_verified(mine, verified, monkeypatch):
    def read_and_flip(path, verify=False):
        found = open_store(path, verify=verify)
        flip(mine.path / SHARD)
        return found

    monkeypatch.setattr(store_check, "open_store", read_and_flip)
    refuses(mine, verified, "is being written to")
    assert not verified.exists()


def test_stores_share_a_file(mine, store, verified, comparisons):
    """Also the same store at another place, a host's own copy say."""
    check(mine, verified)
    check(store, verified)
    check(mine, verified)
    assert comparisons == [True, True]
    assert len(json.loads(verified.read_text())) == 2


@pytest.mark.parametrize("text", ["{}", "[1]", "", "[["])
def test_a_file_of_something_else_is_refused(mine, verified, text):
    verified.write_text(text)
    with pytest.raises(InputError, match=r"verified\.json"):
        check(mine, verified)


def test_remote_stores_are_known_by_their_generations(mine, verified, comparisons):
    """Through TensorStore, as stores in object storage are."""
    remote = open_store(f"file://{mine.path}")
    assert remote.content_id == mine.content_id
    for _ in range(2):
        check(remote, verified)
    assert comparisons == [True]
    flip(mine.path / SHARD)
    refuses(remote, verified, "does not match")
    os.remove(mine.path / SHARD)
    refuses(remote, verified, f"{SHARD}: no such file")


def test_stamps_of_three_hundred_shards_take_milliseconds(mine):
    """They are taken before each save. About 1 ms here; 0.2 s leave room for a busy machine."""
    split = mine.splits["train"]
    for shard in range(1, 300):
        shutil.copy(mine.path / SHARD, mine.path / shard_name("train", shard))
    many = dict(mine.splits, train=type(split)(split.tokens, split.documents, split.bytes, split.sha256[:1] * 300))
    mine = type(mine)(**{**vars(mine), "splits": many})
    begun = time.perf_counter()
    stamps = stamp(mine)
    seconds = time.perf_counter() - begun
    assert len(stamps) >= 302
    assert np.unique([name for name, *_ in stamps]).size == len(stamps)
    assert seconds < 0.2


def test_every_file_of_a_store_is_stamped(source, tmp_path):
    """Its tokenizer's too: it says how text is turned into these tokens."""
    store = build_store(source, "bpe:300", 0.3, tmp_path / "store", processes=1)
    assert sorted(name for name, *_ in stamp(store)) == sorted(os.listdir(store.path))
    assert len(os.listdir(store.path)) == 4
