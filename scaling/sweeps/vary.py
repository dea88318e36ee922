"""Sweeps over any field: variants as plain values, and three ways to combine them.

    product(over("lr_factor", (0.5, 1, 2)), over("seed", (0, 1)))          every rate with every seed
    zipped(over("batch_size", (8, 16)), over("optimizer.peak_lr", (1e-3, 1.4e-3)))      each batch with its rate
    chain(over("model.activation", ("gelu", "swiglu")), over("model.qk_norm", (True,)))     one change at a time

A variant is a tuple of (field, value); a sweep over fields is a tuple of variants. What a field may be, and what it
does, is said in `scaling.sweeps.variants`.
"""

import itertools
from collections.abc import Iterable
from typing import Any

from scaling.errors import InputError

Variant = tuple[tuple[str, Any], ...]


def over(field: str, values: Iterable[Any]) -> tuple[Variant, ...]:
    """One field at each of several values."""
    return tuple(((field, value),) for value in values)


def product(*sweeps: tuple[Variant, ...]) -> tuple[Variant, ...]:
    """Every variant of the first with every variant of the second, and so on; the last changes fastest."""
    return tuple(_joined(parts) for parts in itertools.product(*sweeps))


def zipped(*sweeps: tuple[Variant, ...]) -> tuple[Variant, ...]:
    """The first variants of all together, then the second ones. Raises InputError if they are not equally many."""
    lengths = [len(sweep) for sweep in sweeps]
    if len(set(lengths)) > 1:
        raise InputError(f"zipped sweeps have {', '.join(map(str, lengths))} variants", do="they must be equally many")
    return tuple(_joined(parts) for parts in zip(*sweeps, strict=True))


def chain(*sweeps: tuple[Variant, ...]) -> tuple[Variant, ...]:
    """The variants of the first, then those of the second, and so on."""
    return tuple(itertools.chain(*sweeps))


def label(variant: Variant) -> str:
    """A variant in words, without its seed: "batch_size=16 lr_factor=0.5"; empty for the config as it is."""
    return " ".join(f"{field.removeprefix('optimizer.')}={_said(value)}" for field, value in variant if field != "seed")


def _said(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _joined(parts: Iterable[Variant]) -> Variant:
    variant = tuple(itertools.chain(*parts))
    fields = [field for field, _ in variant]
    if len(set(fields)) < len(fields):
        twice = next(field for field in fields if fields.count(field) > 1)
        raise InputError(f"a variant sets {twice} twice", do="combine sweeps over different fields")
    return variant
