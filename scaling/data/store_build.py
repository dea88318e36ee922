"""Building a token store on all cores, by steps whose files appear when they are whole: a killed build goes on.

1. Tokenise. Each part of the source becomes a file: its tokens, and the length and a digest of each document.
2. Choose. Digests of all parts are sorted: of exact duplicates, the first in the order of the source stays. A document
   is held out by its digest alone.
3. Assemble. Each shard gathers its tokens from the parts.

The division into parts and shards does not depend on the number of processes, so neither does the store. Disk: a build
takes twice its tokens (2 or 4 bytes each) until it is done, once for a store in object storage, beside it on the local
disk. Memory: a process holds the tokens of one part, or one shard (SHARD_TOKENS x 2 or 4 bytes) and one part; choosing
takes 1 byte a document and about 100 bytes x DIGESTS_AT_ONCE: 2 GB for the 3.6e8 documents of C4.
"""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from scaling.data.jobs import run_jobs
from scaling.data.parts import Part, Source
from scaling.data.storage import Root, write_file
from scaling.data.tokenizers import Tokenizer, get_tokenizer, resolve_tokenizer, token_type
from scaling.errors import InputError
from scaling.files import atomic_path, read_json, write_json
from scaling.progress import progress_bar

SCHEMA = 2
SPLITS = ("train", "validation")
DUPLICATE = len(SPLITS)  # the side of a document that is on neither
SHARD_TOKENS = 1 << 27  # of a file: 1.5e11 tokens are 1,118 files of 256 MiB
TOKENS_A_PROCESS = 1 << 26  # of shards: fewer are written before another process has started
DIGESTS_AT_ONCE = 1 << 24


@dataclasses.dataclass(frozen=True)
class Work:
    """A build under way. directory: for the files of its steps; output: where shards go."""

    directory: pathlib.Path
    output: Root
    where: str  # the source, for messages
    validation_fraction: float
    processes: int


def shard_name(split: str, shard: int) -> str:
    """The file of a shard in a store."""
    return f"{split}-{shard:05}.tokens"


def tokenizer_file(name: str) -> str | None:
    """The file in which a store keeps its tokenizer, by the tokenizer's name; None for bytes, which need none."""
    if name == "bytes":
        return None
    return "tokenizer.model" if name.startswith("sentencepiece-") else "tokenizer.json"


def content_id(values: dict[str, Any]) -> str:
    """64 bits over what training can see: the tokenizer, and each split's tokens through the checksums of its shards.

    They hold the document ends too: the end token stands after each document and nowhere else.
    """
    identity = {key: values[key] for key in ("tokenizer", "vocab_size", "end_token", "dtype", "shard_tokens")}
    identity["splits"] = {name: [values["splits"][name][key] for key in ("tokens", "sha256")] for name in SPLITS}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def build(work: Work, source: Source, tokenizer_spec: str) -> None:
    """Writes all files of a store, store.json last, going on from what `work.directory` holds.

    Raises InputError for text that is not UTF-8, tokens beyond the vocabulary, and text that leaves a split empty.
    """
    spec = resolve_tokenizer(tokenizer_spec, source, work.directory)
    tokenizer = get_tokenizer(spec)
    paths = [work.directory / f"part-{i:06}.npz" for i in range(len(source.parts))]
    jobs = [(part, spec, work.where, path) for part, path in zip(source.parts, paths, strict=True) if not path.exists()]
    run_jobs(_tokenise, jobs, work.processes, "part", "tokenise")
    sides, left_out = _choose(paths, work.validation_fraction)
    splits, seconds = _assemble(work, paths, sides, token_type(tokenizer.vocab_size))
    if tokenizer.file is not None:
        write_file(work.output, tokenizer_file(tokenizer.name), tokenizer.file)
    values = {
        "schema": SCHEMA,
        "source": work.where,
        "validation_fraction": work.validation_fraction,
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "end_token": tokenizer.end_token,
        "dtype": token_type(tokenizer.vocab_size).name,
        "shard_tokens": SHARD_TOKENS,
        "left_out": left_out,
        "core_seconds": round(seconds, 3),
        "splits": splits,
    }
    values["content_id"] = content_id(values)
    write_file(work.output, "store.json", (json.dumps(values, indent=2) + "\n").encode())


_cached_tokenizer = functools.lru_cache(maxsize=1)(get_tokenizer)


def _tokenise(part: Part, tokenizer_spec: str, where: str, path: pathlib.Path) -> None:
    """Writes the file of a part: ids_T with end tokens, and of each document its length in tokens and bytes and digest.

    A digest is the first 16 bytes of the text's SHA-256, as two big-endian halves.
    """
    start = time.process_time()
    tokenizer = _cached_tokenizer(tokenizer_spec)
    end_1 = np.array([tokenizer.end_token], token_type(tokenizer.vocab_size))
    ids, lengths, sizes, digests = [end_1[:0]], [], [], []
    empty = filtered = 0
    for name, text in part.read():
        if not text:
            empty, filtered = empty + (text is not None), filtered + (text is None)
            continue
        ids_T = _encode(tokenizer, name, text, where)
        ids += [ids_T, end_1]
        lengths.append(len(ids_T) + 1)
        sizes.append(len(text))
        digests.append(hashlib.sha256(text).digest()[:16])
    with atomic_path(path) as temporary, open(temporary, "wb") as f:
        np.savez(
            f,
            ids_T=np.concatenate(ids),
            length_M=np.array(lengths, np.int64),
            bytes_M=np.array(sizes, np.int64),
            digest_Mx2=np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2),
            left_out=[empty, filtered],
            seconds=time.process_time() - start,
        )


def _encode(tokenizer: Tokenizer, name: str, text: bytes, where: str) -> np.ndarray:
    try:
        ids_T = tokenizer.encode(text)
    except UnicodeDecodeError as error:
        raise InputError(f"document {name} is not UTF-8: {error}", where, "convert it or leave it out") from None
    except InputError as error:
        raise InputError(f"document {name}: {error.what}", where, error.do) from None
    if len(ids_T) and ids_T.max() >= tokenizer.vocab_size:
        fault = f"token {ids_T.max()} is beyond the vocabulary of {tokenizer.vocab_size}"
        raise InputError(f"document {name}: {fault}", tokenizer.name)
    if (ids_T == tokenizer.end_token).any():
        raise InputError(f"document {name}: the end token {tokenizer.end_token} stands within it", tokenizer.name)
    return ids_T


@dataclasses.dataclass(frozen=True)
class _Sides:
    """Of each part, the side of its documents, and tokens, documents and bytes by split."""

    side: list[pathlib.Path]
    counts_PxSx3: np.ndarray


def _choose(paths: Sequence[pathlib.Path], validation_fraction: float) -> tuple[_Sides, dict[str, int]]:
    """Writes the side of every document: train, validation, or duplicate."""
    size_P = [len(np.load(path, allow_pickle=False)["length_M"]) for path in paths]
    first_P = np.cumsum([0, *size_P])
    keep_M = first_copies(paths, first_P)
    last = math.ceil(validation_fraction * 2**64) - 1  # of the digests held out: those below the fraction, all for 1
    side_paths, counts, left_out = [], np.zeros((len(paths), len(SPLITS), 3), np.int64), np.zeros(2, np.int64)
    for p, path in enumerate(paths):
        part = np.load(path, allow_pickle=False)
        side_M = (part["digest_Mx2"][:, 0] <= np.uint64(last)).astype(np.uint8)
        side_M[~keep_M[first_P[p] : first_P[p + 1]]] = DUPLICATE
        for s in range(len(SPLITS)):
            inside_M = side_M == s
            counts[p, s] = part["length_M"][inside_M].sum(), inside_M.sum(), part["bytes_M"][inside_M].sum()
        left_out += part["left_out"]
        side_paths.append(path.with_suffix(".sides"))
        with atomic_path(side_paths[-1]) as temporary:
            temporary.write_bytes(side_M.tobytes())
    names = {"empty": int(left_out[0]), "duplicate": int((~keep_M).sum()), "filtered": int(left_out[1])}
    return _Sides(side_paths, counts), names


def first_copies(paths: Sequence[pathlib.Path], first_P: np.ndarray) -> np.ndarray:
    """Which documents have no equal before them, in the order of the source: keep_M.

    first_P: the number of documents before each part, and of all. Digests are compared by groups that have a remainder
    in common, of about DIGESTS_AT_ONCE each, so that memory stays bounded; every group reads all parts again.
    """
    keep_M = np.ones(first_P[-1], bool)
    groups = -(-len(keep_M) // DIGESTS_AT_ONCE)
    with progress_bar(groups * len(paths), "part", "find duplicates") as bar:
        for group in range(groups):
            rows, digests = [], []
            for first, path in zip(first_P[:-1], paths, strict=True):
                digest_Mx2 = np.load(path, allow_pickle=False)["digest_Mx2"]
                inside = np.flatnonzero(digest_Mx2[:, 0] % np.uint64(groups) == group)
                rows.append(first + inside)
                digests.append(digest_Mx2[inside])
                bar.update()
            row_G, digest_Gx2 = np.concatenate(rows), np.concatenate(digests)
            order_G = np.lexsort(digest_Gx2.T)  # stable: equal digests stay in the order of the source
            digest_Gx2 = digest_Gx2[order_G]
            again = (digest_Gx2[1:] == digest_Gx2[:-1]).all(axis=1)
            keep_M[row_G[order_G[1:][again]]] = False
    return keep_M


def _assemble(
    work: Work, paths: Sequence[pathlib.Path], sides: _Sides, dtype: np.dtype
) -> tuple[dict[str, dict[str, Any]], float]:
    """Writes all shards. Returns what store.json says of each split, and seconds of one core, parts included."""
    total_Sx3 = sides.counts_PxSx3.sum(axis=0)
    for s, split in enumerate(SPLITS):
        if not total_Sx3[s, 1] and not (split == "train" and work.validation_fraction == 1):
            raise InputError(
                f"no document of {total_Sx3[:, 1].sum()} fell to the {split} split",
                work.where,
                "documents are never cut: give more or smaller ones, or another validation_fraction",
            )
    jobs, records = [], {split: [] for split in SPLITS}
    for s, split in enumerate(SPLITS):
        first_P = np.cumsum([0, *sides.counts_PxSx3[:, s, 0]])
        for shard, start in enumerate(range(0, first_P[-1], SHARD_TOKENS)):
            stop = min(start + SHARD_TOKENS, int(first_P[-1]))
            inside_P = np.flatnonzero((first_P[:-1] < stop) & (first_P[1:] > start))
            pieces = [(paths[p], sides.side[p], int(first_P[p]) - start) for p in inside_P]
            name = shard_name(split, shard)
            records[split].append(work.directory / f"{name}.json")
            jobs.append((pieces, s, stop - start, dtype, work.output, name, records[split][-1]))
    processes = min(work.processes, 1 + int(total_Sx3[:, 0].sum()) // TOKENS_A_PROCESS)
    run_jobs(_write_shard, [job for job in jobs if not job[-1].exists()], processes, "shard", "assemble")
    splits, seconds = {}, sum(float(np.load(path, allow_pickle=False)["seconds"]) for path in paths)
    for s, split in enumerate(SPLITS):
        written = [read_json(path) for path in records[split]]
        tokens, documents, size = map(int, total_Sx3[s])
        checksums = [record["sha256"] for record in written]
        splits[split] = {"tokens": tokens, "documents": documents, "bytes": size, "sha256": checksums}
        seconds += sum(record["seconds"] for record in written)
    return splits, seconds


def _write_shard(
    pieces: list[tuple[pathlib.Path, pathlib.Path, int]],
    split: int,
    size: int,
    dtype: np.dtype,
    output: Root,
    name: str,
    record: pathlib.Path,
) -> None:
    """Writes a shard, then its record. pieces: files of a part, and where its first token is from the shard's first."""
    start = time.process_time()
    ids_T = np.empty(size, dtype.newbyteorder("<"))
    for path, side, first in pieces:
        part = np.load(path, allow_pickle=False)
        kept_T = part["ids_T"][np.repeat(np.fromfile(side, np.uint8) == split, part["length_M"])]
        low, high = max(first, 0), min(first + len(kept_T), size)
        ids_T[low:high] = kept_T[low - first : high - first]
    data = memoryview(ids_T).cast("B")
    write_file(output, name, data)
    write_json(record, {"sha256": hashlib.sha256(data).hexdigest(), "seconds": time.process_time() - start})
