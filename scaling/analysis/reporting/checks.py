"""What report.json says of how far to trust a fit: strict JSON values only, null where nothing was done."""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from scaling.analysis.identifiability import flat_directions

if TYPE_CHECKING:
    from scaling.analysis.analyze import Analysis


def checks(analysis: "Analysis") -> dict[str, Any]:
    """Keys "identifiability", "selection", "sensitivity", "next_cells", "waste", "data_limited", "inference"."""
    cells = analysis.next_cells
    return {
        "identifiability": _identifiability(analysis),
        "selection": _selection(analysis.selection),
        "sensitivity": plain(analysis.sensitivity),
        "next_cells": {"skipped": cells} if isinstance(cells, str) else plain(cells),
        "waste": plain(analysis.waste),
        "data_limited": plain(analysis.data_limited),
        "inference": plain(analysis.inference),
    }


def plain(value: Any) -> Any:
    """The same as JSON holds it: lists for tuples and arrays, numbers of Python's own, null for what is not finite."""
    if isinstance(value, np.ndarray | tuple | list):
        return [plain(entry) for entry in value]
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value


def _identifiability(analysis: "Analysis") -> dict[str, Any] | None:
    """{"verdicts": [{"name", "value", "interval", "status", "why"}], "profiles": [...], "flat_directions": [...]}."""
    if not analysis.verdicts:
        return None
    return {
        "verdicts": plain(analysis.verdicts),
        "profiles": plain(analysis.profiles),
        "flat_directions": plain(flat_directions(analysis.fit)),
    }


def _selection(found: Any) -> dict[str, Any] | None:
    """{"rows": of Selection.rows(), whose parameters stand under "laws", "held_out", "nested_rmse",
    "nested_choice_rmse", "fits", "left_out"}, or {"skipped": why}."""
    if found is None:
        return None
    if isinstance(found, str):
        return {"skipped": found}
    names = ("held_out", "nested_rmse", "nested_choice_rmse", "fits", "left_out")
    rows = [{name: value for name, value in row.items() if name != "parameters"} for row in found.rows()]
    return {"rows": plain(rows), **{name: plain(getattr(found, name)) for name in names}}
