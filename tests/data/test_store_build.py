"""What a build gives for many parts, processes and shards, and what is left of one that is stopped."""

import errno
import functools
import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from scaling.data import sources, store_build, token_store, tokenizers
from scaling.data.jobs import run_jobs
from scaling.data.parts import Part, Source
from scaling.data.token_store import build_store, open_store, read_ends, read_tokens, read_windows, store_tokenizer
from scaling.errors import InputError, RunFailedError, StoppedError

BPE = "bpe:300"


def read_part(texts):
    for i, text in enumerate(texts):
        yield f"{text!r}[{i}]", text


@pytest.fixture
def source_of(monkeypatch):
    """Makes a source of given parts, lists of documents each, which any process can read."""

    def make(*parts):
        found = tuple(Part(str(p), functools.partial(read_part, texts)) for p, texts in enumerate(parts))
        monkeypatch.setitem(sources.SOURCES, "given", lambda _: Source(found, "as given"))
        return "given"

    return make


@pytest.fixture(scope="session")
def parts():
    """Documents in eleven parts, with copies within and across them, empty ones and filtered ones."""
    texts = [f"Text {i} é " * (i % 7 + 1) for i in range(400)]
    rng = np.random.default_rng(0)
    order = rng.permutation([*range(400), *rng.integers(0, 400, 100)])
    documents = [texts[i].encode() for i in order] + [b"", None, None]
    return [documents[p::11] for p in range(11)]


def naive(parts, fraction=0.3):
    """Both splits as the documented rules have them, in plain Python: lists of documents."""
    seen, splits = set(), {"train": [], "validation": []}
    for text in (text for part in parts for text in part):
        if text and text not in seen:
            seen.add(text)
            share = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64
            splits["validation" if share < fraction else "train"].append(text)
    return splits


@pytest.mark.parametrize("tokenizer", ["bytes", BPE])
def test_a_store_is_what_its_rules_say(tmp_path, source_of, parts, tokenizer, monkeypatch):
    monkeypatch.setattr(store_build, "SHARD_TOKENS", 500)
    monkeypatch.setattr(store_build, "DIGESTS_AT_ONCE", 50)
    store = build_store(source_of(*parts), tokenizer, 0.3, tmp_path / "store", processes=1)
    own = store_tokenizer(store)
    for split, texts in naive(parts).items():
        ids_T = np.concatenate([[*own.encode(text), own.end_token] for text in texts])
        assert np.array_equal(read_tokens(store, split), ids_T)
        assert store.splits[split].documents == len(texts) == len(read_ends(store, split))
        assert store.splits[split].bytes == sum(map(len, texts))
        assert len(store.splits[split].sha256) == -(-len(ids_T) // 500) > 1
        assert [own.decode(piece[:-1]) for piece in np.split(ids_T, read_ends(store, split))[:-1]] == texts
    assert store.left_out == {"empty": 1, "duplicate": 100, "filtered": 2}
    assert open_store(store.path, verify=True) == store


@pytest.mark.parametrize("tokenizer", ["bytes", BPE])
def test_processes_and_parts_do_not_change_a_store(tmp_path, source_of, parts, tokenizer, monkeypatch):
    monkeypatch.setattr(store_build, "TOKENS_A_PROCESS", 100)
    one, two = (build_store(source_of(*parts), tokenizer, 0.3, tmp_path / f"{n}", n) for n in (1, 2))
    assert one.content_id == two.content_id
    whole = build_store(source_of([text for part in parts for text in part]), tokenizer, 0.3, tmp_path / "whole")
    assert whole.content_id == one.content_id
    names = sorted(path.name for path in one.path.iterdir())
    assert names == sorted(path.name for path in two.path.iterdir())
    assert all((one.path / n).read_bytes() == (two.path / n).read_bytes() for n in names if n != "store.json")


@pytest.mark.parametrize("shard", [7, 64, 1 << 27])
def test_windows_are_the_same_however_the_tokens_are_cut(tmp_path, source_of, parts, monkeypatch, shard):
    monkeypatch.setattr(store_build, "SHARD_TOKENS", shard)
    store = build_store(source_of(parts[0][:15]), "bytes", 0.3, tmp_path / "store")
    ids_T = np.concatenate([np.fromfile(path, "<u2") for path in sorted(store.path.glob("train-*"))])
    assert np.array_equal(read_tokens(store, "train"), ids_T)
    L = 16
    window_W = np.random.default_rng(0).permutation((len(ids_T) - 1) // L)
    tokens_WxM = read_windows(store, "train", L, window_W)
    assert tokens_WxM.dtype == np.int32
    assert np.array_equal(tokens_WxM, [ids_T[i * L : i * L + L + 1] for i in window_W])
    assert np.array_equal(read_tokens(store, "train", 3, 30), ids_T[3:30])
    ends_M = read_ends(store, "train")
    assert np.array_equal(read_ends(store, "train", 3, 70), ends_M[(ends_M > 3) & (ends_M <= 70)])


def wide(_):
    """A tokenizer of four-byte ids: each byte, far up in a large vocabulary."""
    return tokenizers.Tokenizer(
        "bytes", 1 << 20, 0, lambda text: np.frombuffer(text, np.uint8).astype(np.uint32) + 100_000, bytes
    )


def test_large_vocabularies_take_four_bytes(tmp_path, source_of, parts, monkeypatch):
    monkeypatch.setitem(tokenizers.TOKENIZERS, "wide", wide)
    monkeypatch.setattr(store_build, "_cached_tokenizer", tokenizers.get_tokenizer)
    store = build_store(source_of(*parts), "wide", 0.3, tmp_path / "store", processes=1)
    expected = [id for text in naive(parts)["train"] for id in [*(byte + 100_000 for byte in text), 0]]
    assert read_tokens(store, "train").tolist() == expected
    assert (store.path / "train-00000.tokens").stat().st_size == 4 * len(expected)


@pytest.mark.parametrize(
    ("encode", "fault"),
    [
        (lambda text: np.array([1, 300]), r"document b'two'\[0\]: token 300 is beyond the vocabulary of 256"),
        (lambda text: np.array([1, 255]), r"document b'two'\[0\]: the end token 255 stands within it"),
    ],
)
def test_tokens_that_a_store_cannot_hold_are_refused(tmp_path, source_of, monkeypatch, encode, fault):
    def odd(_):
        return tokenizers.Tokenizer("odd", 256, 255, lambda t: encode(t) if t == b"two" else np.array([1]), bytes)

    monkeypatch.setitem(tokenizers.TOKENIZERS, "odd", odd)
    monkeypatch.setattr(store_build, "_cached_tokenizer", tokenizers.get_tokenizer)
    with pytest.raises(InputError, match=fault):
        build_store(source_of([b"one"], [b"two"]), "odd", 0.3, tmp_path / "store", processes=1)
    assert not list(tmp_path.iterdir())


def test_a_fault_in_another_process_names_its_document_and_leaves_nothing(tmp_path, source_of, parts):
    source = source_of(*parts, [b"caf\xe9"])
    with pytest.raises(InputError, match=r"^given: document b'caf.*'\[0\] is not UTF-8: .*position 3.*leave it out\)$"):
        build_store(source, "bytes", 0.3, tmp_path / "store", processes=2)
    assert not list(tmp_path.iterdir())


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_an_error_and_no_wait():
    with pytest.raises(RunFailedError, match="worker process was killed"):
        run_jobs(die, [(), ()], 2, "job", "die")


def test_a_full_disk_keeps_what_is_done(tmp_path, source_of, parts, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    source = source_of(*parts)
    with monkeypatch.context() as patch:
        patch.setattr(store_build, "write_file", full)
        with pytest.raises(InputError, match=r"no space left.*make room, and the same command goes on"):
            build_store(source, "bytes", 0.3, tmp_path / "store", processes=1)
    (kept,) = tmp_path.iterdir()
    assert len(list(kept.glob("part-*.npz"))) == len(parts)
    build_store(source, "bytes", 0.3, tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_ctrl_c_says_that_the_same_command_goes_on(tmp_path, source_of, monkeypatch):
    def interrupted():
        yield "one", b"one"
        raise KeyboardInterrupt

    monkeypatch.setitem(sources.SOURCES, "slow", lambda _: Source((Part("0", interrupted),), "x"))
    with pytest.raises(StoppedError, match="the same command goes on"):
        build_store("slow", "bytes", 0.3, tmp_path / "store")


SLOW = """
import functools, os, pathlib, time
from scaling import command
from scaling.data import sources
from scaling.data.parts import Part, Source
from scaling.data.token_store import build_store

directory, processes = pathlib.Path(os.environ["DIRECTORY"]), int(os.environ["PROCESSES"])

def read(p):
    with open(directory / "reads", "a") as f:
        f.write(f"{p}\\n")
    for i in range(50):
        yield f"{p}[{i}]", b"part %d text %d" % (p, i)
    while p >= 4 and not (directory / "go").exists():  # four parts are done, and those after them wait
        time.sleep(0.01)

def main(_):
    store = build_store("slow", "bytes", 0.3, directory / "store", processes)
    print(store.content_id)

sources.SOURCES["slow"] = lambda _: Source(tuple(Part(str(p), functools.partial(read, p)) for p in range(8)), "")
if __name__ == "__main__":
    command.launch(main)
"""


def start(script, processes):
    given = {"DIRECTORY": str(script.parent), "PROCESSES": str(processes)}
    environment = {**os.environ, **given, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def reads(directory):
    return sorted(map(int, (directory / "reads").read_text().split()))


@pytest.mark.parametrize(("signal_", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 75)])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_build_that_is_stopped_goes_on(tmp_path, signal_, code, processes):
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    process = start(script, processes)
    under_way = 4 + processes
    wait_for(lambda: (tmp_path / "reads").exists() and len(reads(tmp_path)) == under_way)
    wait_for(lambda: len(list(tmp_path.glob(".store.*/part-*.npz"))) == 4)
    process.send_signal(signal_)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    if code == 75:
        assert errors.splitlines()[-1] == "stopped: what is tokenised is kept; the same command goes on"
        assert "Traceback" not in errors
    assert not (tmp_path / "store").exists()

    (tmp_path / "go").touch()
    process = start(script, processes)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert reads(tmp_path) == sorted([*range(8), *range(4, under_way)])  # the four parts that were done: once
    store = open_store(tmp_path / "store", verify=True)
    assert output.split() == [store.content_id]
    assert not list(tmp_path.glob(".store*"))
    texts = [[b"part %d text %d" % (p, i) for i in range(50)] for p in range(8)]
    assert {name: split.documents for name, split in store.splits.items()} == {
        name: len(held) for name, held in naive(texts).items()
    }


def test_workers_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    process = start(script, 2)
    wait_for(lambda: (tmp_path / "reads").exists() and len(reads(tmp_path)) == 6)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    process.kill()
    process.communicate(timeout=60)  # the workers hold its output open: it ends when they have ended
    wait_for(lambda: not any(pathlib.Path(f"/proc/{child}").exists() for child in children), 10)


def test_a_changed_source_does_not_take_up_the_old_build(tmp_path, source_of, parts, monkeypatch):
    source = source_of(*parts)
    with monkeypatch.context() as patch:
        patch.setattr(token_store, "build", stop_after_parts)
        with pytest.raises(StoppedError):
            build_store(source, "bytes", 0.3, tmp_path / "store", processes=1)
    changed = [[b"new", *parts[0]], *parts[1:]]
    found = tuple(Part(str(p), functools.partial(read_part, texts)) for p, texts in enumerate(changed))
    monkeypatch.setitem(sources.SOURCES, "given", lambda _: Source(found, "changed"))
    store = build_store("given", "bytes", 0.3, tmp_path / "store", processes=1)
    assert store.splits["train"].documents + store.splits["validation"].documents == 401


def stop_after_parts(work, source, tokenizer):
    store_build._tokenise(source.parts[0], tokenizer, work.where, work.directory / "part-000000.npz")
    raise KeyboardInterrupt


def test_a_store_with_another_tokenizer_in_it_is_refused(tmp_path, source_of, parts):
    store = build_store(source_of(*parts), BPE, 0.3, tmp_path / "a", processes=1)
    path = store.path / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(InputError, match=r"tokenizer\.json: the tokenizer does not match its store"):
        store_tokenizer(store)
    with pytest.raises(InputError, match="does not match its store"):
        open_store(store.path, verify=True)
    path.unlink()
    with pytest.raises(InputError, match="has lost its tokenizer"):
        store_tokenizer(store)
