"""Specs: frozen dataclasses of plain values that check themselves, and their form as nested dictionaries."""

import dataclasses
import math
import operator
import types
import typing
from typing import Any, Literal, TypeVar

from scaling.errors import InputError, nearest

T = TypeVar("T")


def require(condition: bool, what: str, do: str = "", where: str = "") -> None:
    """Raises InputError unless the condition holds."""
    if not condition:
        raise InputError(what, where, do)


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
        require(isinstance(value, tuple | list), f"{name}={value!r} is not a tuple")
        hints = typing.get_args(hint)
        if hints[-1] is Ellipsis:
            hints = (hints[0],) * len(value)
        require(len(value) == len(hints), f"{name}={value!r} has not {len(hints)} items")
        return tuple(_settled(item, each, name) for item, each in zip(value, hints, strict=True))
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        require(value in choices, f"{name}={value!r} is unknown", nearest(str(value), map(str, choices)))
        return value
    if isinstance(value, bool) and hint is not bool:
        raise InputError(f"{name}={value!r} is not of type {hint.__name__}")
    try:
        if hint is int:
            return operator.index(value)
        if hint is float and not isinstance(value, str):
            number = float(value) + 0.0  # -0.0, which equals 0.0 and is written otherwise, becomes it
            require(math.isfinite(number), f"{name}={number} is not finite")
            return number
    except TypeError:
        pass
    if not isinstance(value, hint):
        raise InputError(f"{name}={value!r} is not of type {hint.__name__}")
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
    """The inverse of `to_dict`. Raises InputError naming an unknown key (and the nearest valid one) or a missing."""
    if not isinstance(values, dict):
        raise InputError(f"expected a mapping for {cls.__name__}, got {values!r}", where)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in values:
        require(key in fields, f"unknown key {key!r}", nearest(key, fields), where)
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
    require(not missing, f"missing {', '.join(missing)}", f"{cls.__name__} needs them", where)
    nested = {}
    for name, value in values.items():
        nested[name] = _read(hints[name], value, f"{where}.{name}".lstrip("."))
    return cls(**nested)


def _read(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType) and value is not None:
        hint = next(h for h in typing.get_args(hint) if h is not types.NoneType)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    item = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None
    if dataclasses.is_dataclass(item) and isinstance(value, tuple | list):
        return tuple(_read(item, part, where) for part in value)
    return value
