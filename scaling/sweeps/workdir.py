"""A sweep's directory: sweep.json says what belongs in it, and refuses what does not."""

import dataclasses
import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

from scaling.data.batches import Stores
from scaling.data.token_store import open_store
from scaling.errors import InputError
from scaling.files import read_json, write_json
from scaling.recipes import recipe_rule
from scaling.rules import LearningRateRule
from scaling.runs import run_from_dict, run_to_dict
from scaling.specs import from_dict, to_dict
from scaling.sweeps.cells import Cell, Dropped, all_stores
from scaling.sweeps.config import SweepConfig, sweep_config
from scaling.sweeps.texts import Texts
from scaling.sweeps.variants import varied_config

SCHEMA = 2
# What may change when a sweep is started again in its directory: these add cells, or change none.
GROWS = (
    "grid.budgets",
    "seeds",
    "points",
    "vary",
    "durations.sizes",
    "durations.tokens",
    "durations.tokens_per_parameter",
)
FREE = ("grid.sizes", "grid.below", "grid.above", "durations.max_flops", "prediction", "data.max_epochs", "placement")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What sweep.json holds. stores: paths by content id. rules: the learning-rate rules of recipes, as they were."""

    config: SweepConfig
    stores: dict[str, str]
    cells: tuple[Cell, ...]
    dropped: tuple[Dropped, ...]
    rules: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def grid(self) -> tuple[Cell, ...]:
        """The cells that are fitted: all but that which tests the law."""
        return tuple(cell for cell in self.cells if cell.role == "grid")


def write_sweep(
    workdir: pathlib.Path, config: SweepConfig, texts: Texts, cells: Sequence[Cell], dropped: Sequence[Dropped]
) -> Sweep:
    """Makes `workdir` the directory of this sweep, or adds to the sweep that it holds.

    Cells that it has and this grid has not stay: they are results. It may hold `runs` and nothing else: cells that
    experiments.train has trained there before, on several hosts say, are taken as they are. Raises InputError, before
    anything is written, if it holds another sweep, saying in what they differ.
    """
    known: tuple[Cell, ...] = ()
    stores = {name: str(store.path) for name, store in all_stores(texts).items()}
    if (workdir / "sweep.json").exists():
        held = read_sweep(workdir)
        _check_same(held, config, stores, workdir)
        known, stores = held.cells, {**held.stores, **stores}
    elif workdir.exists() and any(path.name != "runs" for path in workdir.iterdir()):
        raise InputError("is not empty, and holds no sweep", where=str(workdir), do="give another --workdir")
    keys = {cell.key for cell in known}
    added = tuple(cell for cell in cells if cell.key not in keys)
    sweep = Sweep(config, stores, (*known, *added), tuple(dropped), rules_of(config))
    save_sweep(workdir, sweep)
    return sweep


def save_sweep(workdir: pathlib.Path, sweep: Sweep) -> None:
    """Writes sweep.json."""
    values = {
        "schema": SCHEMA,
        "config": dataclasses.asdict(sweep.config),
        "stores": sweep.stores,
        "rules": sweep.rules,
        "budgets": sorted({cell.budget for cell in sweep.grid if cell.budget is not None}),
        "cells": [
            {
                "run": cell.id,
                **{name: getattr(cell, name) for name in ("budget", "role", "variant", "refined")},
            }
            for cell in sweep.cells
        ],
        "runs": {cell.id: run_to_dict(cell.run) for cell in sweep.cells},
        "dropped": [dataclasses.asdict(cell) for cell in sweep.dropped],
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }
    write_json(workdir / "sweep.json", values)


def read_sweep(workdir: pathlib.Path) -> Sweep:
    """Reads sweep.json. Raises InputError if there is none, or if it is not of this version."""
    path = workdir / "sweep.json"
    if not path.exists():
        raise InputError("holds no sweep", where=str(workdir), do="experiments.sweep --workdir= starts one")
    values = read_json(path)
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise InputError(f"not a sweep of schema {SCHEMA}, which this version reads", where=str(path))
    runs = {name: run_from_dict(run, f"{path}: runs.{name}") for name, run in values["runs"].items()}
    return Sweep(
        config=sweep_config(values["config"]),
        stores=values["stores"],
        cells=tuple(Cell(**{**cell, "run": runs[cell["run"]]}) for cell in values["cells"]),
        dropped=tuple(Dropped(**cell) for cell in values["dropped"]),
        rules=values["rules"],
    )


def rules_of(config: SweepConfig) -> dict[str, dict[str, Any]]:
    """The rules that the recipes of a config and its variants follow, by recipe. Raises InputError as `read_rule`."""
    recipes = dict.fromkeys(varied_config(config, variant).recipe for variant in config.variants)
    found = {recipe: recipe_rule(recipe) for recipe in recipes}
    return {recipe: to_dict(rule) for recipe, rule in found.items() if rule is not None}


def rule_of(sweep: Sweep, recipe: str) -> LearningRateRule | None:
    """The rule of a recipe as the sweep's runs followed it, None for a recipe without one."""
    return from_dict(LearningRateRule, sweep.rules[recipe], recipe) if recipe in sweep.rules else None


def run_directory(workdir: pathlib.Path, run: str) -> pathlib.Path:
    """Where a run's files are."""
    return workdir / "runs" / run


def open_stores(sweep: Sweep) -> Stores:
    """The token stores of a sweep, opened where sweep.json says. Raises InputError if one is not there any more."""
    return {name: open_store(path) for name, path in sweep.stores.items()}


def _check_same(held: Sweep, config: SweepConfig, stores: dict[str, str], workdir: pathlib.Path) -> None:
    old, new = _flat(dataclasses.asdict(held.config)), _flat(dataclasses.asdict(config))
    differences = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        grows = key in GROWS and set(before or ()) <= set(after or ())
        # What a grid or durations say where there were none, adds cells too.
        group = key.partition(".")[0]
        begins = group in ("grid", "durations") and old.get(group, "") is None
        if before == after or key.startswith(FREE) or grows or begins:
            continue
        differences.append(f"{key} {json.dumps(before)} -> {json.dumps(after)}")
    rules = rules_of(config)
    differences += [f"content of {recipe}" for recipe in held.rules if rules.get(recipe) != held.rules[recipe]]
    if not differences and not held.stores.keys() <= stores.keys():
        differences = [f"content of the text {', '.join(held.stores)} -> {', '.join(stores)}"]
    if differences:
        raise InputError(
            f"holds another sweep: {'; '.join(differences)}",
            where=str(workdir),
            do="give another --workdir; to the same one, budgets, sizes and seeds may be added",
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result.update(_flat(value, f"{prefix}{key}."))
        else:
            result[prefix + key] = value
    return result
