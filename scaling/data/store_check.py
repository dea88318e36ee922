"""Whether the token stores of a run are still what they were when their checksums were last compared.

A run reads its stores for weeks, as memory maps: a byte that is changed on the disk is in the next batch, and nothing
says so. Reading all of a store again before each save would take longer than many runs. So each file is stamped, with
what its system knows of it at no cost: name, size, and the times of its last modification and last change of any kind,
which no tool sets back (in object storage: its generation). While the stamps are those of the last comparison, nobody
has written to the files; once they are not, every checksum is compared again, and a difference ends the run. Checked
before each save, no checkpoint is made of a changed text.

What no stamp shows: bits that a disk loses by itself, and a file system that keeps neither time.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable

from scaling.data import storage
from scaling.data.store_build import shard_name, tokenizer_file
from scaling.data.token_store import TokenStore, open_store
from scaling.errors import InputError, RunFailedError
from scaling.files import read_json, write_json

Stamp = list[str | int]  # of a file: its name, and what changes when it is written to


def check(store: TokenStore, verified: pathlib.Path) -> None:
    """Compares a store with its checksums, unless its files are as they were when that was last done.

    verified: a JSON file of what was compared, which may serve many runs, stores and hosts; read and written here. It
    is only ever a saving: without it, or if two processes write it at once, more is compared. Takes microseconds a file
    when nothing has changed, and else reads all of the store. Raises RunFailedError of kind "store_changed", and
    StorageError if object storage cannot be read.
    """
    seals = _seals(verified)
    try:
        seal = _seal(store, stamp(store))
        if seal in seals:
            return
        found = open_store(store.path, verify=True)
        if _seal(store, stamp(store)) != seal:
            raise InputError("it is being written to", str(store.path))
    except storage.StorageError:
        raise
    except InputError as error:
        raise _changed(store, str(error)) from None
    except FileNotFoundError as error:
        raise _changed(store, f"{error.filename}: no such file") from None
    if found.content_id != store.content_id:
        raise _changed(store, f"{store.path}: another store is there, of content id {found.content_id}")
    remember([seal], verified)


def verify(store: TokenStore) -> str:
    """Compares a store with its checksums, and returns what `remember` keeps of it. Raises as `open_store`."""
    seal = _seal(store, stamp(store))
    open_store(store.path, verify=True)
    return seal


def remember(seals: Iterable[str], verified: pathlib.Path) -> None:
    """Adds to the JSON file of what was compared."""
    write_json(verified, sorted({*_seals(verified), *seals}))


def stamp(store: TokenStore) -> list[Stamp]:
    """What the file system or object storage says of each file of a store, without reading it.

    Raises FileNotFoundError, or InputError in object storage, for a file that is gone.
    """
    names = ["store.json"]
    names += [shard_name(name, shard) for name, split in store.splits.items() for shard in range(len(split.sha256))]
    if (own := tokenizer_file(store.tokenizer)) is not None:
        names.append(own)
    if storage.is_remote(store.path):
        return [[name, generation] for name, generation in zip(names, _generations(store.path, names), strict=True)]
    stats = [os.stat(store.path / name) for name in names]
    return [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in zip(names, stats, strict=True)]


def _generations(root: str, names: list[str]) -> list[str]:
    """The generations of objects, all asked for at once, by reading nothing of each."""
    store = storage._connect(root)
    try:
        found = [future.result() for future in [store.read(name, byte_range=slice(0, 0)) for name in names]]
    except Exception as error:
        raise storage._refusal(root, error) from None
    for name, read in zip(names, found, strict=True):
        if read.state == "missing":
            raise InputError("no such file", f"{root}/{name}")
    return [read.stamp.generation.hex() for read in found]


def _seal(store: TokenStore, stamps: list[Stamp]) -> str:
    """One line for a store in one state: whose it is, and a digest of the stamps."""
    return f"{store.content_id} {hashlib.sha256(json.dumps(stamps).encode()).hexdigest()}"


def _seals(verified: pathlib.Path) -> set[str]:
    """What was compared before. Raises InputError for a file that this module has not written."""
    if not verified.exists():
        return set()
    seals = read_json(verified)
    if not isinstance(seals, list) or not all(isinstance(seal, str) for seal in seals):
        raise InputError("not a list of verified stores", str(verified), "remove the file")
    return set(seals)


def _changed(store: TokenStore, fault: str) -> RunFailedError:
    return RunFailedError(
        f"token store {store.content_id} changed while it was in use: {fault} "
        "(bring back the store as it was, from a copy or by building it again, and start again)",
        kind="store_changed",
    )
