"""Where a token store is built: a hidden directory beside it, from which a build that was stopped goes on."""

import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import IO

from scaling.command import default_stores
from scaling.data.storage import Root, StorageError, exists, is_remote
from scaling.errors import InputError, StoppedError
from scaling.files import make_directory


@contextlib.contextmanager
def build_directory(path: Root, key: str) -> Iterator[tuple[pathlib.Path, Root] | None]:
    """Yields the directory `.NAME.KEY` of a build, and the root that it writes the store to, which becomes `path`.

    One process at a time has it: another waits, and gets None if `path` is there then. What is in the directory stays
    when the build is killed, interrupted, or refused by a disk or an object store; a fault of its input removes it.
    Raises InputError where it cannot be made or has no room, and StoppedError on Ctrl-C.
    """
    parent = pathlib.Path(default_stores()) if is_remote(path) else path.parent
    directory = parent / f".{pathlib.PurePosixPath(path).name}.{key}"
    output = path if is_remote(path) else directory / "store"
    with _locked(directory), _errors_told(directory):
        if exists(path):
            yield None
        else:
            for stray in directory.rglob(".*"):  # half a file of a build that was killed
                stray.unlink()
            yield directory, output
            if not is_remote(path):
                _sync(output)
                os.rename(output, path)
                _sync(path.parent)
        shutil.rmtree(directory)


@contextlib.contextmanager
def _errors_told(directory: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError("what is tokenised is kept; the same command goes on") from None
    except StorageError:  # a file that could not be read or written, which another try may well do
        raise
    except InputError:
        shutil.rmtree(directory)
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        fault = "no space left; what is tokenised is kept"
        raise InputError(fault, str(directory), "make room, and the same command goes on") from None


@contextlib.contextmanager
def _locked(directory: pathlib.Path) -> Iterator[None]:
    """Makes the directory and keeps it to one process at a time; the lock goes with the process that holds it."""
    while True:
        make_directory(directory)
        try:
            file = open(directory / "lock", "w")  # noqa: SIM115  (closed by the next statement)
        except FileNotFoundError:  # the process before has just finished
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting: another process builds the store in {directory}", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, directory / "lock"):
                yield
                return


def _is_at(file: IO[str], path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
