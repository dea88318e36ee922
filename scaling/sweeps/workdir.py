"""A sweep's directory: sweep.json says what belongs in it, and refuses what does not.

Several launchers may share it. What more than one of them writes is changed by `update`, which starts again from what
another has written in between; what belongs to one run is written by its owner (scaling.training.claims).
"""

import dataclasses
import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Callable, Sequence
from typing import Any

from scaling.data.batches import Stores
from scaling.data.storage import Root, is_remote
from scaling.data.token_store import open_store
from scaling.errors import InputError, RunFailedError
from scaling.files import check_name, make_directory, read_json
from scaling.recipes import recipe_rule
from scaling.rules import LearningRateRule
from scaling.runs import Run, run_from_dict, run_id, run_to_dict
from scaling.specs import from_dict, require, shown, to_dict
from scaling.sweeps.cells import Cell, Dropped, all_stores
from scaling.sweeps.config import SweepConfig, sweep_config
from scaling.sweeps.texts import Texts
from scaling.sweeps.variants import varied_config
from scaling.training.failures import failure_of

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
FREE = (
    "grid.sizes",
    "grid.below",
    "grid.above",
    "durations.max_flops",
    "prediction",
    "data.max_epochs",
    "placement",
    "sweep.",
)
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
    stores = {name: _from_anywhere(store.path) for name, store in all_stores(texts).items()}
    # Before sweep.json is looked for: another launcher that has just begun writes it before anything else.
    names = {path.name for path in workdir.iterdir()} if workdir.exists() else set()

    def joined(held: Sweep | None) -> Sweep:
        if held is not None:
            _check_same(held, config, stores, workdir)
        elif any(name != "runs" and "sweep.json" not in name for name in names):
            raise InputError("is not empty, and holds no sweep", where=str(workdir), do="give another --workdir")
        known = held or Sweep(config, {}, (), ())
        return Sweep(config, {**known.stores, **stores}, _union(known.cells, cells), tuple(dropped), rules_of(config))

    return _update_sweep(workdir, joined)


def add_cells(workdir: pathlib.Path, sweep: Sweep, cells: Sequence[Cell], dropped: Sequence[Dropped] = ()) -> Sweep:
    """Adds cells to a sweep, and to its sweep.json, beside those that other launchers have added there since."""

    def joined(held: Sweep | None) -> Sweep:
        known = held or sweep
        more = tuple(cell for cell in dropped if cell not in known.dropped)
        return dataclasses.replace(known, cells=_union(known.cells, cells), dropped=(*known.dropped, *more))

    now = _update_sweep(workdir, joined)
    return dataclasses.replace(sweep, cells=now.cells, dropped=now.dropped)


def save_sweep(workdir: pathlib.Path, sweep: Sweep) -> None:
    """Writes sweep.json, whatever it held."""
    _update_sweep(workdir, lambda held: sweep)


def update(path: pathlib.Path, change: Callable[[str | None], str]) -> None:
    """Writes a text file of which several processes may write versions, atomically.

    change: makes the new content from the present one (None: there is no file). It is called again if another process
    has written meanwhile, so that the last version written is of the latest state. Nothing is written where the new
    content is the present one.
    """
    import tensorstore  # here: tools.status does without

    make_directory(path.parent)
    store = tensorstore.KvStore.open({"driver": "file", "path": f"{path.parent.absolute()}/"}).result()
    while True:
        read = store.read(path.name).result()
        before = read.value.decode() if read.state == "value" else None
        after = change(before)
        # Conditional: of two writers that have read the same version, one finds that it has changed.
        if after == before or _written(store, path, after, read.stamp.generation):
            return


def _written(store: Any, path: pathlib.Path, text: str, generation: bytes) -> bool:
    """Writes a file if it is still of a generation, and returns whether it was."""
    try:
        return bool(store.write(path.name, text.encode(), if_equal=generation).result().generation)
    except ValueError as error:  # as TensorStore tells of permissions and of a disk that is full
        failure = failure_of(error)
        if failure.kind == "bug":
            raise
        raise RunFailedError(f"{path} could not be written: {failure.reason}", failure.kind) from error


def _update_sweep(workdir: pathlib.Path, change: Callable[[Sweep | None], Sweep]) -> Sweep:
    made: list[Sweep] = []

    def changed(text: str | None) -> str:
        made.append(change(None if text is None else read_sweep(workdir)))
        return json.dumps(_values(made[-1]), indent=2, allow_nan=False) + "\n"

    update(workdir / "sweep.json", changed)
    return made[-1]


def _union(known: Sequence[Cell], cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The known cells in their order, and after them those that are new."""
    keys = {cell.key for cell in known}
    return (*known, *(cell for cell in cells if cell.key not in keys))


def _from_anywhere(path: Root) -> str:
    """The path of a store as another process finds it, whose current directory may be another."""
    return path if is_remote(path) else str(path.absolute())


def _values(sweep: Sweep) -> dict[str, Any]:
    """What sweep.json holds of a sweep."""
    return {
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


def read_sweep(workdir: pathlib.Path) -> Sweep:
    """Reads sweep.json. Raises InputError if there is none, or if it is not of this version."""
    path = workdir / "sweep.json"
    if not path.exists():
        raise InputError("holds no sweep", where=str(workdir), do="experiments.sweep --workdir= starts one")
    values, where = read_json(path), str(path)
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise InputError(f"not a sweep of schema {SCHEMA}, which this version reads", where)
    for name, kind in (("runs", dict), ("stores", dict), ("rules", dict), ("cells", list), ("dropped", list)):
        require(isinstance(values.get(name), kind), f"{name} is no {kind.__name__}", where=where)
    require(all(isinstance(root, str) for root in values["stores"].values()), "stores holds what is no path", "", where)
    for name, rule in values["rules"].items():
        from_dict(LearningRateRule, rule, f"{where}: rules.{shown(name)}")
    runs = {name: run_from_dict(run, f"{where}: runs.{shown(name)}") for name, run in values["runs"].items()}
    for name, run in runs.items():
        require(run_id(run) == name, f"runs.{shown(name)} is the run {run_id(run)}", where=where)
    return Sweep(
        config=sweep_config(values.get("config"), f"{where}: config"),
        stores=values["stores"],
        cells=tuple(_cell(cell, runs, where) for cell in values["cells"]),
        dropped=tuple(from_dict(Dropped, cell, f"{where}: dropped") for cell in values["dropped"]),
        rules=values["rules"],
    )


def _cell(values: Any, runs: dict[str, Run], where: str) -> Cell:
    """A cell as sweep.json has it: its run by name."""
    name = values.get("run") if isinstance(values, dict) else None
    require(isinstance(name, str) and name in runs, f"cells has {shown(values)}, whose run is not there", where=where)
    return from_dict(Cell, {**values, "run": runs[name]}, f"{where}: cells")


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
    return workdir / "runs" / check_name(run, f"a run of {workdir}")


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
