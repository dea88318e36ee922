"""Text, tokenised once: a directory of flat token files, on a local disk or in object storage, that runs share.

    store.json                what is in it, with counts and checksums
    train-00000.tokens ...    uint16, or uint32 for more than 65,536 tokens, little-endian: the documents one after the
                              other, an end token after each and nowhere else, cut every 2^27 tokens
    validation-00000.tokens   the same of the held-out documents
    tokenizer.json or .model  the tokenizer's own file, if it has one

A document is held out by a hash of its own content: a text is on the same side in every store of one validation
fraction. Of exact duplicates the first is kept: a second copy would count as fresh text in `unique_tokens` and weigh
twice in the validation loss. They are counted in store.json, as are empty documents and those that a filter left out.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable

import numpy as np

from scaling.data.build_directory import build_directory
from scaling.data.jobs import available_cores
from scaling.data.parts import Source
from scaling.data.sources import open_source
from scaling.data.storage import Root, as_root, exists, read_file, token_reader
from scaling.data.store_build import SCHEMA, SPLITS, Work, build, content_id, shard_name, tokenizer_file
from scaling.data.tokenizers import Tokenizer, get_tokenizer, stored_tokenizer, token_type
from scaling.errors import InputError
from scaling.files import Path, parse_json
from scaling.specs import from_dict, require, settle

_NAMES = ("content_id", "source", "tokenizer", "vocab_size", "end_token", "left_out", "core_seconds")
_REBUILD = "remove the store and build it again"


@dataclasses.dataclass(frozen=True)
class Split:
    """One side of a store. read: (starts_W, M) -> tokens_WxM int32, of an open store."""

    tokens: int  # end tokens included
    documents: int
    bytes: int  # of text: end tokens are not counted
    sha256: tuple[str, ...] = ()  # of each shard
    read: Callable[[np.ndarray, int], np.ndarray] | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def bytes_per_token(self) -> float:
        """Turns nats per token into bits per byte: loss / ln 2 / bytes_per_token."""
        return self.bytes / self.tokens


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """An open store. `content_id` names its content: tokenizer, tokens and document ends; no path, no date."""

    path: Root
    content_id: str
    source: str
    tokenizer: str
    vocab_size: int
    end_token: int
    left_out: dict[str, int]  # documents, by reason: empty, duplicate, filtered
    splits: dict[str, Split]
    core_seconds: float = dataclasses.field(default=0.0, compare=False)  # of CPU time that building it took


@dataclasses.dataclass(frozen=True)
class _SaidSplit:
    """A split as store.json has it."""

    tokens: int
    documents: int
    bytes: int
    sha256: tuple[str, ...]

    def __post_init__(self) -> None:
        settle(self, "splits")
        require(min(self.tokens, self.documents, self.bytes) >= 0, "splits has a negative count")


@dataclasses.dataclass(frozen=True)
class _SaidSplits:
    train: _SaidSplit
    validation: _SaidSplit


@dataclasses.dataclass(frozen=True)
class _Said:
    """The content of store.json but for its schema."""

    source: str
    validation_fraction: float
    tokenizer: str
    vocab_size: int
    end_token: int
    dtype: str
    shard_tokens: int
    left_out: dict[str, int]
    core_seconds: float
    splits: _SaidSplits
    content_id: str

    def __post_init__(self) -> None:
        settle(self, "store")
        require(0 <= self.end_token < self.vocab_size, f"end_token={self.end_token} of {self.vocab_size} tokens")
        require(self.shard_tokens >= 1, f"shard_tokens={self.shard_tokens} is not positive")


def prepare_store(source: str, tokenizer: str, validation_fraction: float, stores_dir: Path) -> TokenStore:
    """The store of a source as it is now, under `stores_dir`; built if it is not there yet. Raises as `build_store`."""
    opened = open_source(source)
    name = _tokenizer_name(tokenizer)
    key = _key(source, opened.fingerprint, name, validation_fraction)
    path = as_root(f"{as_root(stores_dir)}/{re.split('[:| ]', source)[0]}-{name.replace(':', '-')}-{key}")
    if not exists(path):
        _build(source, opened, tokenizer, validation_fraction, path, available_cores())
    return open_store(path)


def build_store(
    source: str, tokenizer: str, validation_fraction: float, path: Path, processes: int | None = None
) -> TokenStore:
    """Tokenises a source into a new store at `path`, a directory or a URL, which is complete or not a store.

    validation_fraction: of the documents, in expectation; 1 for a text that is only evaluated on. processes: None for
    one a core; the store is the same.
    A build that is stopped or killed leaves a hidden directory `.NAME.KEY` beside `path` (for a URL, under
    `default_stores()`), from which the same call goes on. What it needs of disk and memory: see store_build.
    Raises InputError if `path` exists, for an unknown source or tokenizer, for text that is not UTF-8, and for text of
    which one split would be empty; StoppedError on Ctrl-C; RunFailedError if a process was killed.
    """
    path = as_root(path)
    if exists(path):
        raise InputError("exists already", str(path), "a store is never overwritten: give another path, or remove it")
    if processes is not None and processes < 1:
        raise InputError(f"processes={processes} is below 1")
    _build(source, open_source(source), tokenizer, validation_fraction, path, processes or available_cores())
    return open_store(path)


def open_store(path: Path, verify: bool = False) -> TokenStore:
    """Opens a store and checks the sizes of its files; with `verify`, reads them all and checks every checksum.

    Raises InputError if there is no store, or if its files are not what its store.json says.
    """
    path = as_root(path)
    text = read_file(path, "store.json")
    if text is None:
        raise InputError("not a token store: it has no store.json", str(path), "tools.tokenize --out= builds one")
    where = f"{path}/store.json"
    values = parse_json(text, where)
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise InputError(f"not of schema {SCHEMA}, which this version reads", where, _REBUILD)
    try:
        said = from_dict(_Said, {name: value for name, value in values.items() if name != "schema"})
    except InputError as error:
        fault = f"{error.where}: {error.what}" if error.where else error.what
        raise InputError(f"incomplete or altered: {fault}", where, _REBUILD) from None
    dtype = token_type(said.vocab_size).newbyteorder("<")
    splits = {}
    for name in SPLITS:
        sizes: _SaidSplit = getattr(said.splits, name)
        names = [shard_name(name, shard) for shard in range(len(sizes.sha256))]
        read = token_reader(path, names, sizes.tokens, said.shard_tokens, dtype)
        splits[name] = Split(sizes.tokens, sizes.documents, sizes.bytes, sizes.sha256, read)
    store = TokenStore(path=path, splits=splits, **{name: getattr(said, name) for name in _NAMES})
    if verify:
        _verify(store)
        if content_id(values) != store.content_id:
            raise InputError("the content id does not match the content", str(path), _REBUILD)
    return store


def read_windows(store: TokenStore, split: str, length: int, window_W: np.ndarray) -> np.ndarray:
    """Windows of a split: tokens_WxM int32, M = length + 1; window i holds tokens i L to (i + 1) L inclusive."""
    return store.splits[split].read(window_W * length, length + 1)


def read_tokens(store: TokenStore, split: str, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Tokens `start` to `stop` of a split, None for its end: ids_T int32."""
    stop = store.splits[split].tokens if stop is None else stop
    return store.splits[split].read(np.array([start]), stop - start)[0]


def read_ends(store: TokenStore, split: str, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Where the documents that end among tokens `start` to `stop` end, their end token included: ends_M int64."""
    return start + 1 + np.flatnonzero(read_tokens(store, split, start, stop) == store.end_token)


def store_tokenizer(store: TokenStore) -> Tokenizer:
    """The tokenizer that a store was made with, from the store's own copy.

    Raises InputError if the copy is missing, or is not the tokenizer that made the store.
    """
    name = tokenizer_file(store.tokenizer)
    file = None if name is None else read_file(store.path, name)
    where = f"{store.path}/{name}"
    if name is not None and file is None:
        raise InputError("the store has lost its tokenizer", where, _REBUILD)
    try:
        tokenizer = stored_tokenizer(store.tokenizer, file, store.end_token)
    except InputError as error:
        raise InputError(f"the tokenizer does not match its store: {error.what}", where, _REBUILD) from None
    if (tokenizer.vocab_size, tokenizer.end_token) != (store.vocab_size, store.end_token):
        raise InputError("the tokenizer does not match its store: another vocabulary or end token", where, _REBUILD)
    return tokenizer


def _tokenizer_name(tokenizer: str) -> str:
    """What tells tokenizers apart: their name, or, for one that the source will train, what it is trained to be."""
    return tokenizer if tokenizer.startswith("bpe:") else get_tokenizer(tokenizer).name


def _key(*parts: str | float) -> str:
    return hashlib.sha256(json.dumps([SCHEMA, *parts]).encode()).hexdigest()[:12]


def _build(source: str, opened: Source, tokenizer: str, validation_fraction: float, path: Root, processes: int) -> None:
    if not 0 < validation_fraction <= 1:
        raise InputError(f"validation_fraction={validation_fraction} is outside (0, 1]")
    key = _key(source, opened.fingerprint, _tokenizer_name(tokenizer), validation_fraction, str(path))
    with build_directory(path, key) as found:
        if found is not None:
            directory, output = found
            build(Work(directory, output, source, validation_fraction, processes), opened, tokenizer)


def _verify(store: TokenStore) -> None:
    for name, split in store.splits.items():
        for shard, sha256 in enumerate(split.sha256):
            if hashlib.sha256(read_file(store.path, shard_name(name, shard)) or b"").hexdigest() != sha256:
                raise InputError(f"the {name} split does not match its checksum", str(store.path), _REBUILD)
    store_tokenizer(store)
