"""Files of a token store, on a local disk or in object storage (gs://, s3:// and what else TensorStore's stores read).

A shard is a flat file of tokens, so that a window is a slice of a memory map, or one request for a range of bytes.
Measured for windows of 2,049 tokens, 2 cores: memory map 1 to 2 us a window, TensorStore on the same local file 20 us,
array_record with a record a window 30 us; over loopback HTTP 1 ms by TensorStore, 64 requests at a time. array_record
did not open gs:// and s3:// paths, and fixes the length of a window when a store is built. Hence memory maps for local
stores, and TensorStore, imported only then, for the others.

Credentials are found as TensorStore finds them. AWS_ENDPOINT_URL names the endpoint of another S3-compatible store.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from scaling.errors import InputError
from scaling.files import SHOWN, Path, atomic_path

_REBUILD = "remove the store and build it again"

Root = pathlib.Path | str  # a local directory, or the URL of a prefix in object storage


class StorageError(InputError):
    """A file or object could not be read or written as it should. What a build has done is kept: it may work later."""


def as_root(path: Path) -> Root:
    """A local path as pathlib has it; a URL as a string without a trailing slash.

    Raises InputError for a URL with credentials in it: it is written into files that others read.
    """
    if "://" not in str(path):
        return pathlib.Path(path)
    scheme, _, rest = str(path).rstrip("/").partition("://")
    bucket = rest.partition("/")[0].rpartition("@")[2]
    if "?" in rest or not rest.startswith(bucket):
        do = "leave them to the environment, or to the files in which TensorStore finds them"
        raise InputError("the URL holds a user, a key or a query", f"{scheme}://{bucket.partition('?')[0]}", do)
    return f"{scheme}://{rest}"


def is_remote(root: Root) -> bool:
    """Whether a root is in object storage."""
    return isinstance(root, str)


def exists(root: Root) -> bool:
    """Whether there is a file or directory of that name or, in object storage, a finished store."""
    return read_file(root, "store.json") is not None if is_remote(root) else os.path.lexists(root)


def read_file(root: Root, name: str) -> bytes | None:
    """The content of a file, or None if there is none of that name. Raises StorageError where that cannot be told."""
    if is_remote(root):
        return _read(root, [(name, None)])[0]
    try:
        return (root / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:  # a NUL byte, or characters that no file system can spell
        raise InputError(f"{str(root)[:SHOWN]!r} cannot name a directory") from None


def write_file(root: Root, name: str, data: bytes | memoryview) -> None:
    """Writes a file, which is whole or absent. Raises StorageError where it is refused."""
    if not is_remote(root):
        with atomic_path(root / name) as temporary:
            temporary.write_bytes(data)
        return
    try:
        _connect(root).write(name, bytes(data)).result()
    except Exception as error:
        raise _refusal(root, error) from None


def token_reader(
    root: Root, names: Sequence[str], tokens: int, shard_tokens: int, dtype: np.dtype
) -> Callable[[np.ndarray, int], np.ndarray]:
    """A function (starts_W, M) -> tokens_WxM int32 over shards of `shard_tokens` each, the last of the rest.

    Raises InputError if a shard is missing or of another size (for remote ones: is shorter).
    """
    if len(names) != -(-tokens // shard_tokens):
        raise InputError(f"{len(names)} shards for {tokens} tokens", str(root), _REBUILD)
    sizes = [min(shard_tokens, tokens - start) for start in range(0, tokens, shard_tokens)]
    if is_remote(root):
        last = [(size - 1) * dtype.itemsize for size in sizes]
        _read_ranges(root, [(name, at, at + dtype.itemsize) for name, at in zip(names, last, strict=True)])
        return functools.partial(_read_remote, root, names, shard_tokens, dtype)
    shards = [_map(root / name, dtype, size) for name, size in zip(names, sizes, strict=True)]
    return functools.partial(_read_local, shards, shard_tokens)


def _read_local(shards: list[np.ndarray], shard_tokens: int, starts_W: np.ndarray, M: int) -> np.ndarray:
    if len(shards) == 1:  # as one gather from overlapping rows: many short windows come five times as fast
        (ids_T,) = shards
        strides = (ids_T.itemsize, ids_T.itemsize)
        return np.ndarray((len(ids_T) - M + 1, M), ids_T.dtype, ids_T, strides=strides)[starts_W].astype(np.int32)
    tokens_WxM = np.empty((len(starts_W), M), np.int32)
    for row_M, start in zip(tokens_WxM, starts_W.tolist(), strict=True):
        shard, first = divmod(start, shard_tokens)
        if first + M <= shard_tokens:  # as a rule; going through its only piece takes twice as long
            row_M[:] = shards[shard][first : first + M]
            continue
        done = 0
        for shard, first, last in _pieces(start, M, shard_tokens):
            row_M[done : done + last - first] = shards[shard][first:last]
            done += last - first
    return tokens_WxM


def _read_remote(
    root: str, names: Sequence[str], shard_tokens: int, dtype: np.dtype, starts_W: np.ndarray, M: int
) -> np.ndarray:
    wanted = [piece for start in starts_W.tolist() for piece in _pieces(start, M, shard_tokens)]
    size = dtype.itemsize
    found = _read_ranges(root, [(names[shard], first * size, last * size) for shard, first, last in wanted])
    return np.frombuffer(b"".join(found), dtype).astype(np.int32).reshape(len(starts_W), M)


def _pieces(start: int, M: int, shard_tokens: int) -> Iterator[tuple[int, int, int]]:
    """Where M tokens from `start` on lie: (shard, first token of it, the token after the last)."""
    for shard in range(start // shard_tokens, -(-(start + M) // shard_tokens)):
        before = shard * shard_tokens
        yield shard, max(start - before, 0), min(start + M - before, shard_tokens)


def _map(path: pathlib.Path, dtype: np.dtype, length: int) -> np.ndarray:
    expected = length * dtype.itemsize
    size = path.stat().st_size if path.is_file() else 0
    if size != expected:
        raise InputError(f"{size} bytes instead of {expected}", str(path), _REBUILD)
    return np.asarray(np.memmap(path, dtype, "r"))  # the plain view: each slice of a memmap costs microseconds more


def _read_ranges(root: str, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
    """Bytes start to stop of remote files, (name, start, stop) each, all asked for at once."""
    found = _read(root, [(name, slice(start, stop)) for name, start, stop in ranges])
    for (name, _, _), data in zip(ranges, found, strict=True):
        if data is None:
            raise InputError("no such file", f"{root}/{name}", _REBUILD)
    return found


def _read(root: str, wanted: list[tuple[str, slice | None]]) -> list[bytes | None]:
    store = _connect(root)
    try:
        results = [future.result() for future in [store.read(name, byte_range=part) for name, part in wanted]]
    except Exception as error:
        raise _refusal(root, error) from None
    return [None if result.state == "missing" else result.value for result in results]


@functools.cache
def _connect(root: str) -> Any:
    import tensorstore  # here: local stores do without

    scheme, _, rest = root.partition("://")
    spec: str | dict[str, str] = f"{root}/"
    if scheme == "s3" and (endpoint := os.environ.get("AWS_ENDPOINT_URL")):
        bucket, _, path = rest.partition("/")
        region = os.environ.get("AWS_REGION", "us-east-1")
        spec = {"driver": "s3", "bucket": bucket, "path": f"{path}/", "endpoint": endpoint, "aws_region": region}
    try:
        return tensorstore.KvStore.open(spec).result()
    except Exception as error:
        raise _refusal(root, error) from None


def _refusal(root: str, error: Exception) -> StorageError:
    """What TensorStore says, which raises the plain errors of Python for all that a remote store can refuse."""
    return StorageError(f"object storage: {' '.join(str(error).split())[:300]}", root, "check the path and its access")
