"""What a config file says, as checked values, and as the ConfigDict whose fields are flags.

The files themselves are in experiments/configs; each returns `config_dict` of a spec, so that every field, given or at
its default, can be set by a flag.
"""

import dataclasses
import math
import typing
from typing import Any, Literal

from ml_collections import ConfigDict
from ml_collections import config_dict as collections

from scaling.runs import Placement
from scaling.specs import from_dict, require, settle
from scaling.sweeps.vary import Variant


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which text, how it is cut into tokens and windows, and how often it may be repeated."""

    source: str  # its held-out documents give the loss; trained on, unless there is a mixture
    tokenizer: str  # of all texts; one that is trained here is trained on `source`
    sequence_length: int
    eval_windows: int
    validation_fraction: float = 0.05
    max_epochs: float = 1.0
    seed: int = 0
    mixture: tuple[str, ...] = ()  # trained on instead: "WEIGHT SOURCE" each
    validation: tuple[str, ...] = ()  # evaluated on besides: "NAME=SOURCE" each

    def __post_init__(self) -> None:
        settle(self, "config.data")
        require(self.max_epochs > 0, f"config.data.max_epochs={self.max_epochs} is not positive")
        self.components(), self.eval_sources()

    def components(self) -> list[tuple[float, str]]:
        """The mixture as (weight, source). Raises InputError for a part that is not "WEIGHT SOURCE"."""
        found = []
        for part in self.mixture:
            weight, _, source = part.strip().partition(" ")
            try:
                found.append((float(weight), source.strip()))
            except ValueError:
                source = ""
            require(
                bool(source),
                f"config.data.mixture has {part!r}",
                "each is a weight and a source: '0.8 tfds:c4/en:3.1.0'",
            )
        require(all(weight >= 0 for weight, _ in found), f"config.data.mixture has a negative weight: {self.mixture}")
        bases = [source.partition("|")[0].strip() for _, source in found]
        twice = next((base for base in bases if bases.count(base) > 1), None)
        require(twice is None, f"config.data.mixture has {twice} twice", "its text would count twice as unique")
        require(
            not found or 0 < sum(weight for weight, _ in found) < math.inf,
            "config.data.mixture: the weights sum to nothing",
            "give at least one source a weight over 0",
        )
        return found

    def eval_sources(self) -> list[tuple[str, str]]:
        """The further evaluation sets as (name, source). Raises InputError for one that is not "NAME=SOURCE"."""
        found = []
        for part in self.validation:
            name, equals, source = part.partition("=")
            require(
                bool(equals and source),
                f"config.data.validation has {part!r}",
                "each is NAME=SOURCE: 'code=files:*.py'",
            )
            found.append((name.strip(), source.strip()))
        return found


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What all models of a sweep share; their dimensions come from their size.

    A family sets the fields below as its published models have them; those given beside it, other than at their
    default, override it. Sizes come from the formula of scaling.models.ladder, or are the family's published ones.
    """

    family: Literal["plain", "gpt2", "llama", "mixtral", "chinchilla"] = "plain"
    sizes: Literal["formula", "presets"] = "formula"
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    positions: Literal["rotary", "learned"] = "rotary"
    activation: Literal["gelu", "swiglu"] = "gelu"
    tied_embeddings: bool = False
    qk_norm: bool = False
    output_init: Literal["depth_scaled", "zero"] = "depth_scaled"
    n_experts: int = 0  # a size counts all of them, active or not
    experts_per_token: int = 1
    capacity_factor: float | None = None
    balance_loss: float = 0.01
    router_z_loss: float = 0.001

    def __post_init__(self) -> None:
        settle(self, "config.model")
        require(
            self.family != "plain" or self.sizes == "formula",
            "config.model.sizes='presets' of no family",
            "give config.model.family",
        )


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


@dataclasses.dataclass(frozen=True)
class DurationsConfig:
    """Sizes x durations (N x D): each size is trained from scratch for several lengths, given in tokens a parameter or
    in tokens."""

    sizes: tuple[float, ...] = ()  # parameters; none: all published sizes of the family
    tokens_per_parameter: tuple[float, ...] = ()
    tokens: tuple[float, ...] = ()
    max_flops: float | None = None  # what would take more is dropped, and listed

    def __post_init__(self) -> None:
        settle(self, "config.durations")
        for name in ("sizes", "tokens_per_parameter", "tokens"):
            values = getattr(self, name)
            require(
                all(value > 0 for value in values), f"config.durations.{name}={values} has one that is not positive"
            )
        require(
            bool(self.tokens_per_parameter) != bool(self.tokens),
            "config.durations",
            "give tokens_per_parameter or tokens, one of them",
        )


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """In which order the cells of one size are trained: each from scratch, or with warm-up, stable, decay the longest
    of them for all, up to where each decays (scaling.sweeps.forks). Results are the same to the bit."""

    schedule: Literal["scratch", "forked"] = "scratch"

    def __post_init__(self) -> None:
        settle(self, "config.sweep")


PLAIN, ONE_DEVICE, FROM_SCRATCH = ModelConfig(), Placement(), ScheduleConfig()


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """A whole experiment: data, family, recipe, which cells, and how far beyond them its law is put to the test.

    Cells are those of `grid` (isoFLOP budgets x sizes), of `durations` (N x D) and of `points`, together, each under
    every variant and every seed.
    """

    data: DataConfig
    recipe: str
    grid: GridConfig | None = None
    durations: DurationsConfig | None = None
    points: tuple[tuple[float, float], ...] = ()  # (N, D) each: parameters and tokens
    vary: tuple[tuple[tuple[str, Any], ...], ...] = ()  # variants, made by scaling.sweeps.vary; none: the one as it is
    model: ModelConfig = PLAIN
    seed: int = 0  # added to those below
    seeds: tuple[int, ...] = (0,)  # of initialisation and data order: replicates
    precision: Literal["fp32", "bf16"] = "fp32"
    eval_points: int = 10
    prediction: float = 0.0  # budget of the test, in largest budgets; 0: no test
    placement: Placement = ONE_DEVICE
    sweep: ScheduleConfig = FROM_SCRATCH

    def __post_init__(self) -> None:
        settle(self, "config")
        require(
            self.grid is not None or self.durations is not None or bool(self.points),
            "config has no cells",
            "give grid, durations or points",
        )
        require(
            self.durations is None or bool(self.durations.sizes) or self.model.sizes == "presets",
            "config.durations has no sizes",
            "give them, or config.model.sizes=presets for all of a family",
        )
        require(
            all(len(point) == 2 and min(point) > 0 for point in self.points), "config.points are pairs (N, D) over 0"
        )
        require(len(self.seeds) > 0, "config.seeds is empty")
        twice = [variant for k, variant in enumerate(self.vary) if variant in self.vary[:k]]
        require(not twice, f"config.vary has a variant twice: {twice[:1]}")
        require(
            self.prediction == 0 or self.prediction > 1,
            f"config.prediction={self.prediction}",
            "a factor over 1 on the largest budget, or 0 for no prediction",
        )

    @property
    def all_seeds(self) -> tuple[int, ...]:
        return tuple(self.seed + seed for seed in self.seeds)

    @property
    def variants(self) -> tuple[Variant, ...]:
        return self.vary or ((),)


@dataclasses.dataclass(frozen=True)
class OneConfig:
    """A single run: of the shape that a size has, trained as a recipe says, to a budget."""

    data: DataConfig
    recipe: str
    size: float  # parameters
    flops: float
    start: str = ""  # directory of tools.import_hf or tools.export: its parameters and shape, instead of new ones
    model: ModelConfig = PLAIN
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    eval_points: int = 10
    placement: Placement = ONE_DEVICE

    def __post_init__(self) -> None:
        settle(self, "config")
        require(self.size > 0 and self.flops > 0, f"config.size={self.size} or flops={self.flops} is not positive")


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
            value = None if dataclasses.is_dataclass(kind) else collections.placeholder(kind)
        values[field.name] = value
    return ConfigDict(values)


def one_config(values: dict[str, Any]) -> OneConfig:
    """Reads the config of one run. Raises InputError as `sweep_config`."""
    return from_dict(OneConfig, values, "config")


def sweep_config(values: dict[str, Any], where: str = "config") -> SweepConfig:
    """Reads the config of a sweep. Raises InputError naming an unknown, missing or impossible field."""
    return from_dict(SweepConfig, values, where)
