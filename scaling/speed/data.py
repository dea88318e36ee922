"""Whether data ever holds a step up: batches from token stores beside what steps consume, and text to tokens.

The trainer asks for the batch of a step in the process that dispatches it (scaling.data.batches), so what counts is one
thread: how many tokens a second it hands over, against how many the step takes in. Two steps are the yardsticks. On
this machine: that of the laptop study's smallest model, whose batches of 512 tokens are the smallest and come fastest;
it is measured in turn with the batches. On accelerators: that of 20M parameters on a host of eight H100s at 35 % of
their peak, which is a goal for models three times as large: an estimate. Its batches are read from a store of several
files, too large for the processor's caches.

Tokenising is measured as tools.tokenize does it, from files to a finished store, by one process and by one a core. Its
yardstick is a number: 5e5 tokens a second of one core.
"""

import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from scaling.data.batches import batch
from scaling.data.jobs import available_cores
from scaling.data.sources import open_source
from scaling.data.storage import token_reader
from scaling.data.token_store import Split, TokenStore, build_store
from scaling.data.tokenizers import resolve_tokenizer
from scaling.models.counts import flops_per_token
from scaling.models.ladder import shape_for
from scaling.parallel.topology import parse_topology
from scaling.runs import DataSpec, Run
from scaling.speed.rows import Row, Samples, alternate, row_of
from scaling.speed.shapes import random_run
from scaling.speed.step import our_step

SMALLEST = 11.4e3  # parameters of the smallest cell of experiments/configs/laptop.py
HOST, MFU = "h100:8", 0.35
SECONDS = 0.5  # of batches that make one sample
SHARDS, SHARD_TOKENS = 4, 1 << 24  # 128 MiB in all
COPIES = 3  # of the interpreter's library, which differ: 26 MB, so that starting processes counts for little
A_CORE = 5e5  # tokens a second, required
BPE = "bpe:8192"


def measure(repeats: int, peer: bool, say: Callable[[str], None]) -> list[Row]:
    """Rows in tokens a second. All yardsticks are here, so `peer` changes nothing."""
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        say("data: batches")
        store = _large_store(directory)
        rows = [_laptop(store, repeats), _host(store, repeats)]
        text = _text(directory)
        say(f"data: {BPE}")
        rows += _tokenised(text, BPE, directory, repeats)
        say("data: bytes")  # by one core: starting a second process takes longer than all of this text
        return [*rows, *_tokenised(text, "bytes", directory, repeats)[:1]]


def batch_rate(store: TokenStore, run: Run) -> Callable[[], float]:
    """A function that makes a run's batches, one after the other, and returns tokens a second."""
    spec = DataSpec(store.content_id, run.data.sequence_length, eval_windows=2)
    stores, taken = {store.content_id: store}, 0

    def rate() -> float:
        nonlocal taken
        first, start = taken, time.perf_counter()
        while (seconds := time.perf_counter() - start) < SECONDS:
            batch(stores, spec, run.batch_size, taken)
            taken += 1
        return (taken - first) * run.batch_tokens / seconds

    return rate


def host_rate(run: Run) -> float:
    """Tokens a second of a run on HOST, estimated."""
    topology = parse_topology(HOST)
    peak = topology.chips * topology.chip.peak_flops
    return MFU * peak / flops_per_token(run.model, run.data.sequence_length)


def build_rate(text: str, tokenizer: str, directory: pathlib.Path, processes: int) -> Callable[[], float]:
    """A function that builds a store of a source and returns tokens a second, by the clock."""

    def rate() -> float:
        with _scratch(directory) as out:
            start = time.perf_counter()
            store = build_store(text, tokenizer, 0.05, out / "store", processes)
            return sum(split.tokens for split in store.splits.values()) / (time.perf_counter() - start)

    return rate


def _laptop(store: TokenStore, repeats: int) -> Row:
    run = random_run(shape_for(SMALLEST, 256, tied_embeddings=True, output_init="zero"), 8, 64, "fp32")
    milliseconds = our_step(run)
    samples = alternate(batch_rate(store, run), lambda: 1e3 * run.batch_tokens / milliseconds(), repeats)
    what = f"batches of {run.batch_size} x {run.data.sequence_length}, one thread; 50 times the step is required"
    return row_of("data batches, laptop", "tokens/s", samples, what, f"the step of d {run.model.d_model} here")


def _host(store: TokenStore, repeats: int) -> Row:
    run = random_run(shape_for(20e6, 50257, tied_embeddings=True), 512, 1024, "bf16")
    consumed = host_rate(run)
    samples = alternate(batch_rate(store, run), lambda: consumed, repeats)
    what = f"batches of {run.batch_size} x {run.data.sequence_length}, one thread; 50 times the step is required"
    return row_of(
        "data batches, 8 H100 (est)", "tokens/s", samples, what, f"20M on {HOST} at {MFU:.0%} MFU, an estimate"
    )


def _tokenised(text: str, tokenizer: str, directory: pathlib.Path, repeats: int) -> list[Row]:
    """One core against the number that is required, and all cores against one."""
    spec = resolve_tokenizer(tokenizer, open_source(text), directory)
    cores, kind = available_cores(), tokenizer.partition(":")[0]
    one = build_rate(text, spec, directory, 1)
    several = build_rate(text, spec, directory, cores) if cores > 1 else None
    samples: Samples = alternate(one, several, repeats)
    words = f"{COPIES} copies of the standard library's text to a store, {tokenizer}"
    required = tuple((rate, A_CORE) for rate, _ in samples)
    rows = [row_of(f"data {kind}, one core", "tokens/s", required, f"{words}, one process", "what is required")]
    if several is not None:
        turned = tuple((rate, alone) for alone, rate in samples)
        rows.append(row_of(f"data {kind}, all cores", "tokens/s", turned, f"{words}, {cores} processes", "one process"))
    return rows


def _large_store(directory: pathlib.Path) -> TokenStore:
    """A store of random tokens, only for reading."""
    rng, dtype = np.random.default_rng(0), np.dtype("<u2")
    names = [f"{k}.tokens" for k in range(SHARDS)]
    for name in names:
        rng.integers(256, size=SHARD_TOKENS, dtype=dtype).tofile(directory / name)
    tokens = SHARDS * SHARD_TOKENS
    read = token_reader(directory, names, tokens, SHARD_TOKENS, dtype)
    splits = {"train": Split(tokens, 1, tokens, read=read)}
    return TokenStore(directory, "large", "random", "bytes", 256, 0, {}, splits)


def _text(directory: pathlib.Path) -> str:
    """A source: COPIES of the standard library, each with a first line of its own: a store keeps no text twice."""
    documents = [text for _, text in open_source("stdlib").documents if text]
    for copy in range(COPIES):
        for k, text in enumerate(documents):
            (directory / f"{copy}-{k:05}.txt").write_bytes(b"%d\n" % copy + text)
    return f"files:{directory}/*.txt"


@contextmanager
def _scratch(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    path = pathlib.Path(tempfile.mkdtemp(dir=directory))
    try:
        yield path
    finally:
        shutil.rmtree(path)
