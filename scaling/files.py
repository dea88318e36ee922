"""Files that are written whole or not at all, and read as data that anyone may have written."""

import errno
import json
import math
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, ValuesView
from contextlib import contextmanager
from typing import Any

from scaling.errors import InputError

Path = str | os.PathLike[str]

DEPTH = 64  # levels of JSON: our own files have nine at most, and what walks them by recursion needs room
NAME_LENGTH = 128  # file systems allow 255 bytes, of which suffixes and temporary names take some
SHOWN, PATH_SHOWN = 80, 400  # characters of a refused value, and of a path
_NAME = re.compile(r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(?:\.|$))[A-Za-z0-9][A-Za-z0-9_.+-]*")
_NOT_READABLE = (errno.EISDIR, errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP)


@contextmanager
def atomic_path(path: Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`; on success it is synced and takes the name, on any error it is removed."""
    path = pathlib.Path(path)
    make_directory(path.parent)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    temporary = pathlib.Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        temporary.chmod(0o644)  # mkstemp makes 0600, which would lock out the other users of a shared disk
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_directory(path: Path) -> None:
    """Makes a directory and its parents, if they are not there.

    Raises InputError where none can be of that name; of a disk that is full or may not be written to, OSError.
    """
    try:
        pathlib.Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EROFS):
            raise
        raise InputError(f"cannot be a directory: {error.strerror}", where=str(path)) from None


def write_text(path: Path, text: str) -> None:
    """Writes a whole text file, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes readable JSON, atomically. NaN and infinity are refused: JSON has neither.

    Raises InputError for text that is not Unicode, as names of files may be: it could not be read again.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    try:
        _check_unicode(text, value)
    except UnicodeEncodeError as error:
        raise InputError(
            f"would hold text that is not Unicode: {error}", str(path), "rename the file it names"
        ) from None
    write_text(path, text)


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises InputError if there is none, or none that may be read.

    What else a disk refuses is raised as it is: it says nothing about the file, and another try may go better.
    """
    try:
        return pathlib.Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError("no such file", where=str(path)) from None
    except ValueError:  # a NUL byte, or characters that no file system can spell
        raise InputError(f"{str(path)[:SHOWN]!r} cannot name a file") from None
    except OSError as error:
        if error.errno not in _NOT_READABLE:
            raise
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)[:PATH_SHOWN]) from None


def read_json(path: Path) -> Any:
    """Reads JSON. Raises InputError if the file is missing, and as `parse_json` does."""
    return parse_json(read_bytes(path), str(path))


def parse_json(text: str | bytes, where: str) -> Any:
    """The value of a JSON text, which anyone may have written.

    Raises InputError for what is not UTF-8 or not JSON, and (RFC 8259, sections 6, 8.2 and 9, lets a reader) for NaN,
    infinity, numbers beyond floats, half a surrogate pair, a key twice in one object, and more than DEPTH levels. So
    what is read can be written again, hashed, and walked by recursion.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(text, object_pairs_hook=_mapping, parse_float=_finite, parse_constant=_finite)
        _check_unicode(text, value)
        level = [value]
        for _ in range(DEPTH):
            inside = (each.values() if isinstance(each, dict) else each for each in level)
            level = [item for items in inside if isinstance(items, list | ValuesView) for item in items]
        if level:
            raise RecursionError
    except ValueError as error:
        raise InputError(f"not JSON: {error}", where) from None
    except RecursionError:
        raise InputError(f"nested deeper than {DEPTH} levels", where) from None
    return value


def _check_unicode(text: str, value: Any) -> None:
    """Raises UnicodeEncodeError for half a surrogate pair, which JSON can spell and no other file can hold."""
    if re.search(r"\\u[dD]", text):
        json.dumps(value, ensure_ascii=False).encode()


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        known: set[str] = set()
        twice = next(key for key, _ in pairs if key in known or known.add(key))
        raise ValueError(f"the key {twice[:SHOWN]!r} twice in one object")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:SHOWN]} is not a finite number")
    return number


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """For what uses the fields of a file, or of a directory's files, inside: raises InputError, which names it, where
    they are not there, or not of their type."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise InputError(f"does not say what it should: {type(error).__name__}: {error}", where=str(path)) from error


def check_name(name: Any, where: str = "") -> str:
    """A name that came from a file or a flag, where it becomes one of a file or directory: it names something directly
    inside the directory that it is put to, on any file system.

    Raises InputError for anything but ASCII letters and digits, and _ - + . behind the first of them (no "..", no
    hidden file, no flag), for more than NAME_LENGTH, and for the names of devices on shares of Windows.
    """
    if isinstance(name, str) and len(name) <= NAME_LENGTH and _NAME.fullmatch(name):
        return name
    said = repr(name[:SHOWN]) if isinstance(name, str) else f"a value of type {type(name).__name__}"
    do = f"letters, digits, and inside also _ - + and .; at most {NAME_LENGTH} characters"
    raise InputError(f"{said} cannot name a file", where, do)
