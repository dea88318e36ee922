"""Text, tokenised once: a directory of flat token files that every run on it shares.

    store.json          what is in it, with counts and checksums
    train.tokens        uint16, little-endian: the documents one after the other, an end token after each
    train.ends          int64, little-endian: where each document ends, its end token included
    validation.tokens   the same of the held-out documents
    validation.ends

A document is held out by a hash of its own content: a text is on the same side in every store of one validation
fraction. Of exact duplicates the first is kept: a second copy would count as fresh text in `unique_tokens` and weigh
twice in the validation loss. They are counted in store.json, as are empty documents.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from scaling.data.sources import open_source
from scaling.data.tokenizers import Tokenizer, get_tokenizer
from scaling.errors import InputError
from scaling.files import Path, read_json, write_json

SCHEMA = 1
SPLITS = ("train", "validation")
TOKEN_TYPE = np.dtype("<u2")
END_TYPE = np.dtype("<i8")
_NAMES = ("content_id", "source", "tokenizer", "vocab_size", "end_token", "left_out")
_REBUILD = "remove the store and build it again"


@dataclasses.dataclass(frozen=True)
class Split:
    """One side of a store. ids_T and ends_M are memory-mapped and read-only."""

    tokens: int  # end tokens included
    documents: int
    bytes: int  # of text: end tokens are not counted
    sha256: str  # of the token file, then the ends file
    ids_T: np.ndarray = dataclasses.field(repr=False, compare=False)
    ends_M: np.ndarray = dataclasses.field(repr=False, compare=False)

    @property
    def bytes_per_token(self) -> float:
        """Turns nats per token into bits per byte: loss / ln 2 / bytes_per_token."""
        return self.bytes / self.tokens


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """An open store. `content_id` names its content: tokenizer, tokens and document ends; no path, no date."""

    path: pathlib.Path
    content_id: str
    source: str
    tokenizer: str
    vocab_size: int
    end_token: int
    left_out: dict[str, int]  # documents, by reason: empty, duplicate
    splits: dict[str, Split]


def prepare_store(source: str, tokenizer: str, validation_fraction: float, stores_dir: Path) -> TokenStore:
    """The store of a source as it is now, under `stores_dir`; built if it is not there yet. Raises as `build_store`."""
    opened = open_source(source)
    parts = [SCHEMA, source, opened.fingerprint, tokenizer, validation_fraction]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    path = pathlib.Path(stores_dir) / f"{source.split(':')[0]}-{tokenizer}-{key}"
    if not path.exists():
        _build(source, opened.documents, tokenizer, validation_fraction, path)
    return open_store(path)


def build_store(source: str, tokenizer: str, validation_fraction: float, path: Path) -> TokenStore:
    """Tokenises a source into a new store at `path`, which appears only when it is complete.

    validation_fraction: of the documents, in expectation. One 16-byte digest a document is held in memory meanwhile.
    A build that is killed leaves a hidden directory `.NAME.*` beside `path`, which nothing reads.
    Raises InputError if `path` exists, for an unknown source or tokenizer, for text that is not UTF-8, and for text of
    which one split would be empty.
    """
    if os.path.lexists(path):
        raise InputError("exists already", str(path), "a store is never overwritten: give another path, or remove it")
    _build(source, open_source(source).documents, tokenizer, validation_fraction, pathlib.Path(path))
    return open_store(path)


def open_store(path: Path, verify: bool = False) -> TokenStore:
    """Opens a store and checks the sizes of its files; with `verify`, reads them all and checks every checksum.

    Raises InputError if there is no store, or if its files are not what its store.json says.
    """
    path = pathlib.Path(path)
    if not (path / "store.json").is_file():
        raise InputError("not a token store: it has no store.json", str(path), "tools.tokenize --out= builds one")
    values = read_json(path / "store.json")
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise InputError(f"not of schema {SCHEMA}, which this version reads", str(path / "store.json"), _REBUILD)
    try:
        splits = {name: _open_split(path, name, values["splits"][name]) for name in SPLITS}
        store = TokenStore(path=path, splits=splits, **{name: values[name] for name in _NAMES})
        content_id = _content_id(values)
    except (KeyError, TypeError) as error:
        raise InputError(f"incomplete or altered: {error}", str(path / "store.json"), _REBUILD) from None
    if verify:
        for name, split in splits.items():
            if _checksum(path, name) != split.sha256:
                raise InputError(f"the {name} split does not match its checksum", str(path), _REBUILD)
        if content_id != store.content_id:
            raise InputError("the content id does not match the content", str(path), _REBUILD)
    return store


def _build(
    source: str,
    documents: Iterator[tuple[str, bytes]],
    tokenizer_name: str,
    validation_fraction: float,
    path: pathlib.Path,
) -> None:
    if not 0 < validation_fraction < 1:
        raise InputError(f"validation_fraction={validation_fraction} is outside (0, 1)")
    tokenizer = get_tokenizer(tokenizer_name)
    with _atomic_directory(path) as directory:
        counts = _write_tokens(documents, source, tokenizer, validation_fraction, directory)
        for name in SPLITS:
            if not counts[name, "documents"]:
                raise InputError(
                    f"no document of {counts['train', 'documents'] + counts['validation', 'documents']} fell to the "
                    f"{name} split",
                    source,
                    "documents are never cut: give more or smaller ones, or another validation_fraction",
                )
        values = {
            "schema": SCHEMA,
            "source": source,
            "validation_fraction": validation_fraction,
            "tokenizer": tokenizer.name,
            "vocab_size": tokenizer.vocab_size,
            "end_token": tokenizer.end_token,
            "dtype": "uint16",
            "left_out": {"empty": counts["empty"], "duplicate": counts["duplicate"]},
            "splits": {
                name: {
                    **{key: counts[name, key] for key in ("tokens", "documents", "bytes")},
                    "sha256": _checksum(directory, name),
                }
                for name in SPLITS
            },
        }
        write_json(directory / "store.json", {**values, "content_id": _content_id(values)})


def _write_tokens(
    documents: Iterator[tuple[str, bytes]],
    source: str,
    tokenizer: Tokenizer,
    validation_fraction: float,
    directory: pathlib.Path,
) -> Counter:
    """Writes the token and ends files. Returns tokens, documents and bytes by split, and the documents left out."""
    counts: Counter = Counter()
    seen = set()
    with contextlib.ExitStack() as stack:
        files = {
            (split, kind): stack.enter_context(open(directory / f"{split}.{kind}", "wb"))
            for split in SPLITS
            for kind in ("tokens", "ends")
        }
        for name, text in documents:
            digest = hashlib.sha256(text).digest()[:16]
            if not text or digest in seen:
                counts["duplicate" if text else "empty"] += 1
                continue
            seen.add(digest)
            try:
                ids_T = tokenizer.encode(text)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"document {name} is not UTF-8: {error}", source, "convert it or leave it out"
                ) from None
            split = "validation" if int.from_bytes(digest[:8], "big") < validation_fraction * 2**64 else "train"
            files[split, "tokens"].write(np.append(ids_T, tokenizer.end_token).astype(TOKEN_TYPE).tobytes())
            counts[split, "tokens"] += len(ids_T) + 1
            files[split, "ends"].write(np.array(counts[split, "tokens"], END_TYPE).tobytes())
            counts[split, "documents"] += 1
            counts[split, "bytes"] += len(text)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    return counts


@contextlib.contextmanager
def _atomic_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary directory beside `path`, which takes the name at the end, or goes away on an error.

    If another process has put the same store there meanwhile, it stays and ours goes away.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", str(path)) from None
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes 0700, which would lock out the other users of a shared disk
        _sync_directory(temporary)
        try:
            os.rename(temporary, path)
        except OSError:
            if not path.exists():
                raise
            if read_json(path / "store.json") != read_json(temporary / "store.json"):
                raise InputError("another store was put there meanwhile", str(path), "give another path") from None
            shutil.rmtree(temporary)
        _sync_directory(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _sync_directory(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_split(path: pathlib.Path, name: str, values: dict[str, Any]) -> Split:
    return Split(
        **values,
        ids_T=_map(path / f"{name}.tokens", TOKEN_TYPE, values["tokens"]),
        ends_M=_map(path / f"{name}.ends", END_TYPE, values["documents"]),
    )


def _map(path: pathlib.Path, dtype: np.dtype, length: int) -> np.ndarray:
    expected = length * dtype.itemsize
    size = path.stat().st_size if path.is_file() else 0
    if size != expected:
        raise InputError(f"{size} bytes instead of {expected}", str(path), _REBUILD)
    return np.asarray(np.memmap(path, dtype, "r"))  # the plain view: each slice of a memmap costs microseconds more


def _checksum(path: pathlib.Path, split: str) -> str:
    digest = hashlib.sha256()
    for kind in ("tokens", "ends"):
        with open(path / f"{split}.{kind}", "rb") as f:
            while block := f.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def _content_id(values: dict[str, Any]) -> str:
    """64 bits over what training can see: the tokenizer, and each split's tokens and ends through their checksum."""
    identity = {key: values[key] for key in ("tokenizer", "vocab_size", "end_token", "dtype")}
    identity["splits"] = {name: [values["splits"][name][key] for key in ("tokens", "sha256")] for name in SPLITS}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
