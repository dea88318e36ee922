"""Specs: frozen dataclasses of plain values that check themselves, and their form as nested dictionaries."""

import contextlib
import dataclasses
import math
import operator
import reprlib
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

from scaling.errors import InputError, nearest

T = TypeVar("T")
LARGEST = 2**63 - 1  # of an integer: no size here needs more, and arrays hold no more

LONG = 200  # characters, and more than a name has

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = LONG
_short.maxtuple = _short.maxlist = _short.maxdict = 20


def require(condition: bool, what: str, do: str = "", where: str = "") -> None:
    """Raises InputError unless the condition holds."""
    if not condition:
        raise InputError(what, where, do)


def shown(value: Any) -> str:
    """A value for a message: its repr, shortened where it is long or deep."""
    return _short.repr(value)


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Gives the refusals inside that name no place this one: the file, say, from which the values come."""
    try:
        yield
    except InputError as error:
        if error.where or error.what.startswith(where):
            raise
        raise InputError(error.what, where, error.do) from None


def settle(spec: Any, where: str) -> None:
    """Checks each field against its type hint, and gives numbers one form (an int in a float field becomes a float)."""
    hints = typing.get_type_hints(type(spec))
    for field in dataclasses.fields(spec):
        value = _settled(getattr(spec, field.name), hints[field.name], f"{where}.{field.name}")
        object.__setattr__(spec, field.name, value)


def _settled(value: Any, hint: Any, name: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(h for h in typing.get_args(hint) if h is not types.NoneType)
    if hint is Any:
        return tuple(_settled(item, Any, name) for item in value) if isinstance(value, tuple | list) else value
    if typing.get_origin(hint) is tuple:
        require(isinstance(value, tuple | list), f"{name}={shown(value)} is not a tuple")
        hints = typing.get_args(hint)
        if hints[-1] is Ellipsis:
            hints = (hints[0],) * len(value)
        require(len(value) == len(hints), f"{name}={shown(value)} has not {len(hints)} items")
        return tuple(_settled(item, each, name) for item, each in zip(value, hints, strict=True))
    if typing.get_origin(hint) is dict:
        require(isinstance(value, dict), f"{name}={shown(value)} is no mapping")
        of_key, of_item = typing.get_args(hint)
        return {_settled(key, of_key, name): _settled(item, of_item, f"{name}.{key}") for key, item in value.items()}
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if any(type(value) is type(choice) and value == choice for choice in choices):  # True is no 1
            return value
        raise InputError(f"{name}={shown(value)} is unknown", do=nearest(str(value)[:LONG], map(str, choices)))
    if isinstance(value, bool) and hint is not bool:
        raise InputError(f"{name}={shown(value)} is not of type {hint.__name__}")
    try:
        if hint is int:
            number = operator.index(value)
            require(abs(number) <= LARGEST, f"{name}={shown(value)} is beyond 64 bits")
            return number
        if hint is float and not isinstance(value, str):
            number = float(value) + 0.0  # -0.0, which equals 0.0 and is written otherwise, becomes it
            require(math.isfinite(number), f"{name}={number} is not finite")
            return number
    except OverflowError:
        raise InputError(f"{name}={shown(value)} is not finite") from None
    except TypeError:
        pass
    if not isinstance(value, hint):
        raise InputError(f"{name}={shown(value)} is not of type {hint.__name__}")
    return value


def to_dict(value: Any) -> dict[str, Any]:
    """A spec as plain values, nested, without the fields that are at their default."""
    result = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if item != field.default:
            result[field.name] = _plain(item)
    return result


def _plain(item: Any) -> Any:
    if dataclasses.is_dataclass(item):
        return to_dict(item)
    return [_plain(part) for part in item] if isinstance(item, tuple) else item


def from_dict(cls: type[T], values: Any, where: str = "") -> T:
    """The inverse of `to_dict`.

    where: of the values, a file or a field. Raises InputError with it, for an unknown key (naming the nearest valid
    one), a missing one, and a value that the spec refuses.
    """
    if not isinstance(values, dict):
        raise InputError(f"expected a mapping for {cls.__name__}, got {shown(values)}", where)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise InputError(f"unknown key {shown(key)}", where, nearest(str(key)[:LONG], fields))
    needed = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    missing = [name for name in fields if name in needed and name not in values]
    require(not missing, f"missing {', '.join(missing)}", f"{cls.__name__} needs them", where)
    nested = {}
    for name, value in values.items():
        nested[name] = _read(hints[name], value, f"{where}.{name}".lstrip("."))
    with located(where):
        return cls(**nested)


def _read(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType) and value is not None:
        hint = next(h for h in typing.get_args(hint) if h is not types.NoneType)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where)
    item = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None
    if dataclasses.is_dataclass(item) and isinstance(value, tuple | list):
        return tuple(_read(item, part, where) for part in value)
    return value
