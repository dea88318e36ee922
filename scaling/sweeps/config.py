"""What a config file says, as checked values, and as the ConfigDict whose fields are flags.

The files themselves are in experiments/configs; each returns `config_dict` of a spec, so that every field, given or at
its default, can be set by a flag.
"""

import dataclasses
import typing
from typing import Any, Literal

from ml_collections import ConfigDict
from ml_collections import config_dict as collections

from scaling.data.token_store import TokenStore, prepare_store
from scaling.files import Path
from scaling.runs import Placement
from scaling.specs import from_dict, require, settle


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which text, how it is cut into tokens and windows, and how often it may be repeated."""

    source: str
    tokenizer: str
    sequence_length: int
    eval_windows: int
    validation_fraction: float = 0.05
    max_epochs: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        settle(self, "config.data")
        require(self.max_epochs > 0, f"config.data.max_epochs={self.max_epochs} is not positive")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What all models of a sweep share; their dimensions come from their size."""

    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    positions: Literal["rotary", "learned"] = "rotary"
    activation: Literal["gelu", "swiglu"] = "gelu"
    tied_embeddings: bool = False
    qk_norm: bool = False
    output_init: Literal["depth_scaled", "zero"] = "depth_scaled"

    def __post_init__(self) -> None:
        settle(self, "config.model")


@dataclasses.dataclass(frozen=True)
class GridConfig:
    """Budgets x sizes. Sizes lie evenly in log N from N*/below to N* x above, around the prior optimum
    N* = prior_size (C / prior_flops)^prior_exponent."""

    budgets: tuple[float, ...]  # FLOPs, C
    sizes: int  # a budget
    prior_flops: float
    prior_size: float
    prior_exponent: float = 0.5
    below: float = 3.0
    above: float = 8.0

    def __post_init__(self) -> None:
        settle(self, "config.grid")
        require(len(self.budgets) > 0, "config.grid.budgets is empty")
        require(len(set(self.budgets)) == len(self.budgets), "config.grid.budgets has one twice")
        for name in ("prior_flops", "prior_size", "below", "above"):
            require(getattr(self, name) > 0, f"config.grid.{name}={getattr(self, name)} is not positive")
        require(min(self.budgets) > 0, f"config.grid.budgets has {min(self.budgets)}, not positive")
        require(self.below > 1 and self.above > 1, "config.grid.below and above are factors over 1")
        require(self.sizes >= 4, f"config.grid.sizes={self.sizes}", "an isoFLOP curve needs at least 4")


PLAIN, ONE_DEVICE = ModelConfig(), Placement()


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """A whole experiment: data, family, recipe, grid, and how far beyond the grid its law is put to the test."""

    data: DataConfig
    grid: GridConfig
    recipe: str
    model: ModelConfig = PLAIN
    seed: int = 0  # added to those below
    seeds: tuple[int, ...] = (0,)  # of initialisation and data order: replicates
    precision: Literal["fp32", "bf16"] = "fp32"
    eval_points: int = 10
    prediction: float = 0.0  # budget of the test, in largest budgets; 0: no test
    placement: Placement = ONE_DEVICE

    def __post_init__(self) -> None:
        settle(self, "config")
        require(len(self.seeds) > 0, "config.seeds is empty")
        require(
            self.prediction == 0 or self.prediction > 1,
            f"config.prediction={self.prediction}",
            "a factor over 1 on the largest budget, or 0 for no prediction",
        )

    @property
    def all_seeds(self) -> tuple[int, ...]:
        return tuple(self.seed + seed for seed in self.seeds)


@dataclasses.dataclass(frozen=True)
class OneConfig:
    """A single run: of the shape that a size has, trained as a recipe says, to a budget."""

    data: DataConfig
    recipe: str
    size: float  # parameters
    flops: float
    model: ModelConfig = PLAIN
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    eval_points: int = 10
    placement: Placement = ONE_DEVICE

    def __post_init__(self) -> None:
        settle(self, "config")
        require(self.size > 0 and self.flops > 0, f"config.size={self.size} or flops={self.flops} is not positive")


def prepare_data(data: DataConfig, stores_dir: Path) -> TokenStore:
    """The token store of a config's data, built if it is not there yet. Raises as `prepare_store`."""
    return prepare_store(data.source, data.tokenizer, data.validation_fraction, stores_dir)


def config_dict(spec: Any) -> ConfigDict:
    """A spec with all its fields, for `get_config`. A field that may be None takes a value of its type from a flag."""
    hints = typing.get_type_hints(type(spec))
    values = {}
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if dataclasses.is_dataclass(value):
            value = config_dict(value)
        elif value is None:
            kind = next(hint for hint in typing.get_args(hints[field.name]) if hint is not type(None))
            value = collections.placeholder(kind)
        values[field.name] = value
    return ConfigDict(values)


def one_config(values: dict[str, Any]) -> OneConfig:
    """Reads the config of one run. Raises InputError as `sweep_config`."""
    return from_dict(OneConfig, values, "config")


def sweep_config(values: dict[str, Any]) -> SweepConfig:
    """Reads the config of a sweep. Raises InputError naming an unknown, missing or impossible field."""
    return from_dict(SweepConfig, values, "config")
