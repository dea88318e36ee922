"""Filters: plain functions that say of one document whether it stays.

A source names them after bars, and a document has to pass all: `files:text/**/*.txt | utf8 | min_bytes:200`. A filter
takes the document's bytes and, where it has a limit, one number. One of your own is named by its module, as in
`mypackage.rules:no_recipes`, or put into FILTERS by a program.
"""

import functools
import hashlib
import inspect
import math
import pkgutil
from collections.abc import Callable

from scaling.data.parts import Documents, Part, Source
from scaling.errors import InputError, nearest

Filter = Callable[[bytes], bool]


def utf8(text: bytes) -> bool:
    """Keeps valid UTF-8. Without it, a document in another encoding stops the build of a token store."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def ascii_only(text: bytes) -> bool:
    """Keeps documents without any character beyond ASCII."""
    return text.isascii()


def min_bytes(text: bytes, limit: float) -> bool:
    """Keeps documents of at least `limit` bytes."""
    return len(text) >= limit


def max_bytes(text: bytes, limit: float) -> bool:
    """Keeps documents of at most `limit` bytes."""
    return len(text) <= limit


def no_long_lines(text: bytes, limit: float) -> bool:
    """Keeps documents whose lines have at most `limit` bytes each: longer ones are data or minified code.

    Chen et al. 2021 (arXiv:2107.03374, section 3.1) leave out files with lines over 1000 characters.
    """
    return max(map(len, text.split(b"\n"))) <= limit


def mostly_text(text: bytes, share: float) -> bool:
    """Keeps documents in which at least this share of the words, cut at white space, has a letter; of any script.

    Rae et al. 2021 (arXiv:2112.11446, table A1) ask for 0.8. A document without words goes.
    """
    words = text.decode("utf-8", errors="replace").split()
    return bool(words) and sum(any(map(str.isalpha, word)) for word in words) >= share * len(words)


FILTERS: dict[str, Callable[..., bool]] = {
    "utf8": utf8,
    "ascii": ascii_only,
    "min_bytes": min_bytes,
    "max_bytes": max_bytes,
    "no_long_lines": no_long_lines,
    "mostly_text": mostly_text,
}
_OURS = tuple(FILTERS.values())


def filtered(source: Source, specs: list[str]) -> Source:
    """A source whose documents pass all filters: where one does not, its bytes are None. Raises as `get_filter`."""
    filters = tuple(get_filter(spec) for spec in specs)
    parts = tuple(Part(part.name, functools.partial(_read, part.read, filters)) for part in source.parts)
    identity = [source.fingerprint, *(_identity(spec, keep) for spec, keep in zip(specs, filters, strict=True))]
    return Source(parts, hashlib.sha256(repr(identity).encode()).hexdigest())


def get_filter(spec: str) -> Filter:
    """The filter of NAME, NAME:NUMBER, MODULE:FUNCTION or MODULE:FUNCTION:NUMBER (a module's name has a dot).

    Raises InputError for an unknown one, and for a number that is missing, superfluous or none.
    """
    name, _, argument = spec.partition(":")
    where = f"filter {spec!r}"
    if name in FILTERS:
        keep = FILTERS[name]
    elif "." in name:
        function, _, argument = argument.partition(":")
        keep = _imported(f"{name}:{function}", where)
    else:
        raise InputError(f"unknown filter {name!r}", do=nearest(name, FILTERS))
    if len(inspect.signature(keep).parameters) == 1:
        if argument:
            raise InputError("takes no number", where)
        return keep
    try:
        limit = float(argument)
    except ValueError:
        limit = math.nan
    if math.isnan(limit):
        raise InputError("needs a number", where, f"{name}:100, say")
    return functools.partial(_limited, keep, limit)


def _limited(keep: Callable[[bytes, float], bool], limit: float, text: bytes) -> bool:
    return keep(text, limit)


def _imported(name: str, where: str) -> Callable[..., bool]:
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(str(error), where, "MODULE:FUNCTION, of a module that Python finds") from None
    if not callable(found):
        raise InputError(f"{name} is not a function", where, "MODULE:FUNCTION")
    return found


def _identity(spec: str, keep: Filter) -> str:
    """What a filter adds to a fingerprint: its spec, and the text of the function where it is not one of ours.

    An edited function is another filter. What it calls is not looked at.
    """
    function = keep.args[0] if isinstance(keep, functools.partial) and keep.func is _limited else keep
    if function in _OURS:
        return spec
    try:
        return f"{spec} {inspect.getsource(function)}"
    except (OSError, TypeError):
        raise InputError(f"the text of {function!r} is not found", f"filter {spec!r}", "define it in a file") from None


def _read(read: Callable[[], Documents], filters: tuple[Filter, ...]) -> Documents:
    for name, text in read():
        yield name, text if text is not None and all(keep(text) for keep in filters) else None
