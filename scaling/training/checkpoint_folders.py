"""The folders of checkpoints: what they are called, the page in each that says what it holds, and why one is not read.

All of it is for one process; scaling.training.checkpoints makes several agree.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
from typing import Any

import google_crc32c
import jax

from scaling.files import parse_json
from scaling.specs import require

PAGE = pathlib.Path("progress", "metadata")  # where orbax's handler of JSON writes
UNFINISHED = ".orbax-checkpoint-tmp"  # what orbax adds to the name of a folder that is not whole yet
FIELDS = {
    "run": str,
    "step": int,
    "attempt": int,
    "save": int,  # counts from 1, over all attempts
    "writer": str,  # the version of orbax
    "arrays": dict,  # name -> type and shape
    "fingerprints": dict,  # name -> scaling.training.fingerprints
    "progress": dict,
}
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # of a system that would have read a file

Mark = tuple[int, int]  # step and attempt, which name a checkpoint
Page = dict[str, Any]  # of FIELDS


def name_of(mark: Mark) -> str:
    """What the folder of a checkpoint is called."""
    return f"{mark[0]}-{mark[1]}"


def marks_in(directory: pathlib.Path) -> list[Mark]:
    """The whole checkpoints of a directory, oldest first. Of one step, that of a later attempt is newer."""
    return sorted(mark for name in _names_in(directory) if (mark := _mark(name)) is not None)


def leftovers_in(directory: pathlib.Path, before: int) -> list[pathlib.Path]:
    """What saves and removals that were cut short have left there, of attempts before a number."""
    found = {name: _mark(name.removesuffix(UNFINISHED)) for name in _names_in(directory) if name.endswith(UNFINISHED)}
    return [directory / name for name, mark in found.items() if mark is not None and mark[1] < before]


def _names_in(directory: pathlib.Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _mark(name: str) -> Mark | None:
    found = re.fullmatch(r"(0|[1-9][0-9]{0,17})-(0|[1-9][0-9]{0,17})", name)
    return None if found is None else (int(found[1]), int(found[2]))


def remove(folder: pathlib.Path) -> None:
    """Removes a folder, first its name: a kill in the middle must not leave half a checkpoint that looks whole."""
    # The owner of another attempt, paused and awake again, may be at the same folder.
    with contextlib.suppress(FileNotFoundError):
        if not folder.name.endswith(UNFINISHED):
            folder = folder.rename(f"{folder}{UNFINISHED}")
        shutil.rmtree(folder)


def rename_damaged(folder: pathlib.Path) -> None:
    """Gives a folder a name, damaged-STEP-ATTEMPT or one that goes on, under which it is not looked at again."""
    names = _names_in(folder.parent)
    name, copies = f"damaged-{folder.name}", 1
    while name in names:
        copies += 1
        name = f"damaged-{folder.name}-{copies}"
    with contextlib.suppress(FileNotFoundError):  # the folder itself may be what is missing
        folder.rename(folder.parent / name)


def sealed(page: Page) -> dict[str, Any]:
    """A page as it is saved: with the CRC-32C of its canonical JSON."""
    page = json.loads(json.dumps(page, allow_nan=False))
    return {"crc32c": _crc32c(page), "page": page}


def _crc32c(page: Any) -> int:
    return google_crc32c.value(json.dumps(page, sort_keys=True, separators=(",", ":")).encode())


def read_page(folder: pathlib.Path) -> Page | str:
    """The page of a checkpoint, or what is wrong with it.

    Raises OSError if the system refuses to read it, and InputError if it is whole but not as this version writes it.
    """
    try:
        read = parse_json((folder / PAGE).read_bytes(), str(folder / PAGE))
        page = read["page"]
        if read["crc32c"] != _crc32c(page):
            return f"the checksum of {PAGE} does not match"
    except Exception as error:
        refused = refusal(error, folder)
        if refused is not None:
            raise refused from error
        return f"{PAGE} cannot be read: {line_of(error)}"
    require(
        isinstance(page, dict)
        and page.keys() == FIELDS.keys()
        and all(isinstance(page[name], kind) for name, kind in FIELDS.items()),
        "is not a checkpoint as this version writes it",
        "go on with the version that wrote it, or move the folder away",
        str(folder),
    )
    if name_of((page["step"], page["attempt"])) != folder.name:
        return f"what it holds is {name_of((page['step'], page['attempt']))}"
    return page


def refusal(error: BaseException, folder: pathlib.Path) -> BaseException | None:
    """What to raise instead if a checkpoint could not be read because the system refused; None if it is damaged."""
    if isinstance(error, MemoryError | jax.errors.JaxRuntimeError):
        return error
    found = os_error(error, folder)
    if found is not None and not isinstance(found, ABSENT):
        return found
    try:  # orbax takes a folder that it may not enter for an empty one
        for where, _, files in os.walk(folder, onerror=_raise):
            for name in files:
                open(os.path.join(where, name), "rb").close()
    except ABSENT:
        return None
    except OSError as unreadable:
        return unreadable
    return None


def os_error(error: BaseException | None, folder: pathlib.Path) -> OSError | None:
    """The error of the system from which an exception comes. TensorStore gives its number in the text alone."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        if code := re.search(r"os_error_code='(\d+)'", str(error)):
            return OSError(int(code[1]), os.strerror(int(code[1])), str(folder))
        error = error.__cause__ or error.__context__
    return None


def _raise(error: OSError) -> None:
    raise error


def line_of(error: BaseException) -> str:
    """An exception in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
