"""What a run computes (Run) and how it is placed on hardware (Placement), as frozen values with one canonical JSON.

A run's identity is the hash of its canonical JSON, in which fields at their default do not appear: a new field with a
default does not rename old runs, and so a default must never change. `SCHEMA` says so if one ever has to.
"""

import dataclasses
import hashlib
import json
import math
from typing import Any, Literal

from scaling.specs import from_dict, require, settle, shown, to_dict

SCHEMA = 1
MAIN_SPLIT = "validation"  # the evaluation set of data.store, whose loss is the run's

# The axes of a mesh, the outermost first: what is sent most often goes between the nearest devices.
MESH_AXES = ("stage", "data", "fsdp", "expert", "context", "tensor")


_OF_EXPERTS = ("experts_per_token", "capacity_factor", "balance_loss", "router_z_loss")


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """A decoder-only transformer. Letters: D d_model, N n_layers, H n_heads, G n_kv_heads, K head_size, F d_ff, V."""

    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    vocab_size: int
    d_head: int | None = None  # None: d_model / n_heads
    n_kv_heads: int | None = None  # None: n_heads; fewer: grouped-query attention (Ainslie et al. 2023)
    n_positions: int | None = None  # rows of the table of learned positions
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    positions: Literal["rotary", "learned"] = "rotary"
    activation: Literal["gelu", "swiglu"] = "gelu"
    tied_embeddings: bool = False
    qk_norm: bool = False
    output_init: Literal["depth_scaled", "zero"] = "depth_scaled"  # of the two projections that write to the residual
    biases: bool = False  # of all projections of the blocks (GPT-2)
    rotary_base: float = 10_000.0
    norm_epsilon: float = 1e-6
    n_experts: int = 0  # 0: one feed-forward a block; else so many of width d_ff, among which a router chooses
    experts_per_token: int = 1  # 1: Switch (Fedus et al. 2022); more: the softmax over the chosen ones weighs them
    capacity_factor: float | None = None  # rows of an expert, in even shares of a sequence; None: dropless
    balance_loss: float = 0.01  # weight of the load-balancing loss (Fedus et al. 2022, eq. 4)
    router_z_loss: float = 0.001  # weight of the router's z-loss (Zoph et al. 2022, eq. 5)

    def __post_init__(self) -> None:
        settle(self, "model")
        self._check_experts()
        for name in ("rotary_base", "norm_epsilon"):
            require(getattr(self, name) > 0, f"model.{name}={getattr(self, name)} is not positive")
        for name in ("d_model", "n_layers", "n_heads", "d_ff", "vocab_size", "head_size", "kv_heads"):
            require(getattr(self, name) >= 1, f"model.{name}={getattr(self, name)} is not positive")
        if self.d_head is None:
            require(
                self.d_model % self.n_heads == 0,
                f"model.n_heads={self.n_heads} does not divide d_model={self.d_model}",
                "change one of them, or give d_head",
            )
        require(
            self.n_heads % self.kv_heads == 0,
            f"model.n_kv_heads={self.kv_heads} does not divide n_heads={self.n_heads}",
        )
        if self.positions == "rotary":
            require(self.head_size % 2 == 0, f"rotary positions need an even head size, not {self.head_size}")
        require(
            (self.positions == "learned") == (self.n_positions is not None),
            f"model.n_positions={self.n_positions} with positions={self.positions!r}",
            "learned positions need n_positions; rotary ones have none",
        )
        # What says the same has one form, and so one identity.
        if self.d_head is not None and self.d_head * self.n_heads == self.d_model:
            object.__setattr__(self, "d_head", None)
        if self.n_kv_heads == self.n_heads:
            object.__setattr__(self, "n_kv_heads", None)

    def _check_experts(self) -> None:
        E, k = self.n_experts, self.experts_per_token
        if E == 0:
            for field in dataclasses.fields(self):
                if field.name in _OF_EXPERTS:
                    given = getattr(self, field.name)
                    require(given == field.default, f"model.{field.name}={given} without experts", "give n_experts")
            return
        require(E >= 2, f"model.n_experts={E}", "0 for none, or at least 2")
        require(1 <= k <= E, f"model.experts_per_token={k} is outside 1 to n_experts={E}")
        factor = self.capacity_factor
        require(factor is None or factor > 0, f"model.capacity_factor={factor} is not positive")
        require(
            self.balance_loss >= 0 and self.router_z_loss >= 0, "model: a weight of the router's losses is negative"
        )
        require(not self.biases, "model.biases with experts", "the experts here have none")

    @property
    def head_size(self) -> int:
        return self.d_model // self.n_heads if self.d_head is None else self.d_head

    @property
    def kv_heads(self) -> int:
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads


@dataclasses.dataclass(frozen=True)
class Component:
    """A part of a mixture: a token store by its content id, and its share of the training windows."""

    store: str
    weight: float

    def __post_init__(self) -> None:
        settle(self, "data.mixture")
        require(0 <= self.weight < 1e300, f"data.mixture: weight={self.weight} is negative, or too large to sum")


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """A further text to evaluate on: the validation split of a token store, under a name of the user's."""

    name: str
    store: str

    def __post_init__(self) -> None:
        settle(self, "data.validation")
        require(
            self.name.isidentifier() and self.name != MAIN_SPLIT,
            f"data.validation: {self.name!r} cannot name an evaluation set",
            f"letters, digits and _, and not {MAIN_SPLIT!r}, which is that of data.store",
        )


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """Which tokens: token stores by their content ids, cut into windows; their order; which windows evaluate."""

    store: str  # whose validation split gives the loss; trained on, unless there is a mixture
    sequence_length: int
    eval_windows: int  # windows of each validation split, spread evenly over it
    seed: int = 0  # of the order of the training windows
    mixture: tuple[Component, ...] = ()  # trained on instead, by weight
    validation: tuple[EvalSet, ...] = ()  # evaluated on besides

    def __post_init__(self) -> None:
        settle(self, "data")
        object.__setattr__(self, "mixture", _normal_mixture(self.store, self.mixture))
        names = [held_out.name for held_out in self.validation]
        require(len(set(names)) == len(names), f"data.validation has a name twice: {', '.join(names)}")
        require(self.sequence_length >= 2, f"data.sequence_length={self.sequence_length} is below 2")
        require(self.eval_windows >= 2, f"data.eval_windows={self.eval_windows} is below 2: no standard error")
        require(self.seed >= 0, f"data.seed={self.seed} is negative")


def _normal_mixture(store: str, mixture: tuple[Component, ...]) -> tuple[Component, ...]:
    """The one form of a mixture: weights that sum to one, ordered by store, nothing without weight."""
    if not mixture:
        return ()
    total = math.fsum(part.weight for part in mixture)  # exactly rounded: in any order the same
    require(total > 0, "data.mixture: the weights sum to nothing", "give at least one component a weight over 0")
    stores = [part.store for part in mixture]
    require(len(set(stores)) == len(stores), f"data.mixture has a store twice: {', '.join(stores)}")
    parts = sorted((part for part in mixture if part.weight), key=lambda part: part.store)
    if abs(total - 1) > 1e-9:  # weights that sum to one but for rounding stay as they are, however often they are read
        parts = [Component(part.store, part.weight / total) for part in parts]
    return () if [part.store for part in parts] == [store] else tuple(parts)


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """AdamW (Loshchilov & Hutter 2019) with clipping of the global gradient norm."""

    peak_lr: float
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1  # times the learning rate; matrices only
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        settle(self, "optimizer")
        require(self.peak_lr > 0, f"optimizer.peak_lr={self.peak_lr} is not positive")
        for name in ("b1", "b2"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name}={getattr(self, name)} is outside [0, 1)")
        require(self.eps > 0, f"optimizer.eps={self.eps} is not positive")
        require(self.weight_decay >= 0, f"optimizer.weight_decay={self.weight_decay} is negative")
        require(self.clip_norm is None or self.clip_norm > 0, f"optimizer.clip_norm={self.clip_norm} is not positive")


@dataclasses.dataclass(frozen=True)
class ScheduleSpec:
    """Learning rate over steps: linear warm-up, then cosine, or stable and at the end a linear decay, to a fraction."""

    kind: Literal["cosine", "wsd"]
    warmup_steps: int
    decay_steps: int = 0  # of wsd; cosine decays from the warm-up to the end
    final_fraction: float = 0.1

    def __post_init__(self) -> None:
        settle(self, "schedule")
        require(self.warmup_steps >= 0, f"schedule.warmup_steps={self.warmup_steps} is negative")
        require(0 <= self.final_fraction <= 1, f"schedule.final_fraction={self.final_fraction} is outside [0, 1]")
        require(
            (self.kind == "wsd") == (self.decay_steps > 0),
            f"schedule.decay_steps={self.decay_steps} with kind={self.kind!r}",
            "wsd needs decay_steps; cosine has none",
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """All that fixes the result of one training, and nothing else."""

    model: ModelShape
    data: DataSpec
    batch_size: int  # sequences a step, over all devices
    steps: int
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    precision: Literal["fp32", "bf16"] = "fp32"  # of the computation; parameters and loss are fp32
    z_loss: float = 0.0  # weight of (log sum exp logits)^2 (PaLM, section 5)
    eval_points: int = 10  # held-out evaluations on the way, evenly spaced in log steps, the last one at the end
    seed: int = 0  # of the initialisation
    start: str | None = None  # content id of the parameters it starts from, instead of an initialisation

    def __post_init__(self) -> None:
        settle(self, "run")
        for name in ("batch_size", "steps", "eval_points"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} is not positive")
        require(self.seed >= 0 and self.z_loss >= 0, f"seed={self.seed} or z_loss={self.z_loss} is negative")
        taken = self.schedule.warmup_steps + self.schedule.decay_steps
        require(taken <= self.steps, f"warm-up and decay take {taken} steps of a run of {self.steps}")
        rows = self.model.n_positions
        require(
            rows is None or rows >= self.data.sequence_length,
            f"model.n_positions={rows} is below data.sequence_length={self.data.sequence_length}",
        )

    @property
    def batch_tokens(self) -> int:
        return self.batch_size * self.data.sequence_length

    @property
    def tokens(self) -> int:
        """D: tokens trained on, whole steps."""
        return self.steps * self.batch_tokens

    @property
    def stores(self) -> tuple[str, ...]:
        """The content ids of all token stores that the run reads, that of its loss first."""
        data = self.data
        others = [part.store for part in (*data.mixture, *data.validation)]
        return tuple(dict.fromkeys([data.store, *others]))


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where and how a run is computed. It never changes the result beyond rounding, and is no part of its identity."""

    data: int = 1  # mesh axes: replicas of the parameters,
    fsdp: int = 1  # shards of the training state,
    tensor: int = 1  # shards of heads, feed-forward and vocabulary, and of the sequence between them,
    context: int = 1  # shards of the sequence,
    expert: int = 1  # shards of the experts,
    stage: int = 1  # consecutive shares of the layers, a pipeline
    zero: Literal[1, 2, 3] = 3  # laid over fsdp: 1 optimizer state, 2 and gradients, 3 and parameters
    microbatch: int | None = None  # sequences at a time, over all devices; None: the whole batch
    remat: Literal["none", "dots", "named", "full", "offload"] = "none"
    scan_layers: bool = True
    loss_chunk: int | None = None  # positions of a sequence whose logits exist at a time; None: by the vocabulary
    kernels: Literal["auto", "plain"] = "auto"  # the backend's own where they fit, or the plain reference ones

    def __post_init__(self) -> None:
        settle(self, "placement")
        for name in (*MESH_AXES, "microbatch", "loss_chunk"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"placement.{name}={value} is not positive")

    @property
    def devices(self) -> int:
        return math.prod(getattr(self, axis) for axis in MESH_AXES)

    @property
    def batch_shards(self) -> int:
        """Into how many parts the sequences of a microbatch are dealt."""
        return self.data * self.fsdp * self.expert

    def check(self, run: Run) -> None:
        """Refuses a placement that cannot hold the run. Raises InputError with the two numbers that do not fit, and the
        nearest that would."""
        shape, length = run.model, run.data.sequence_length
        microbatch = self.microbatch or run.batch_size
        require(self.expert == 1 or shape.n_experts > 0, f"placement.expert={self.expert} of a model without experts")
        require(self.stage == 1 or self.scan_layers, "placement.stage needs scan_layers")
        shards = self.batch_shards
        require(
            microbatch % shards == 0,
            f"placement.{self._said('data', 'fsdp', 'expert')}={shards} does not divide "
            f"{'microbatch' if self.microbatch else 'batch_size'}={microbatch}",
            f"the nearest that it divides is {max(1, round(microbatch / shards)) * shards}",
        )
        for axes, of, number in (
            (("fsdp",), "d_model", shape.d_model),
            (("tensor",), "n_kv_heads", shape.kv_heads),
            (("tensor",), "d_ff", shape.d_ff),
            (("tensor", "stage"), "vocab_size", shape.vocab_size),
            (("tensor", "context"), "sequence_length", length),
            (("expert",), "n_experts", shape.n_experts),
            (("stage",), "n_layers", shape.n_layers),
        ):
            size = math.prod(getattr(self, axis) for axis in axes)
            self._divides(self._said(*axes), size, of, number)
        self._divides("microbatch", microbatch, "batch_size", run.batch_size)
        self._divides("loss_chunk", self.loss_chunk or 1, "sequence_length", length)
        if self.context > 1:  # each part of a sequence is two pieces of it: see scaling.models.attention
            self._divides("2 x context", 2 * self.context, "sequence_length", length)

    def _said(self, *axes: str) -> str:
        """The axes of these that are cut at all, for a message."""
        return " x ".join(axis for axis in axes if getattr(self, axis) > 1) or axes[0]

    def _divides(self, name: str, size: int, of: str, number: int) -> None:
        if number % size:
            do = f"the nearest that does is {nearest_divisor(number, size)}"
            require(False, f"placement.{name}={size} does not divide {of}={number}", do)


def nearest_divisor(number: int, size: int) -> int:
    """The divisor of `number` that is nearest to `size` in ratio, the smaller of two as near."""
    small = [d for d in range(1, min(math.isqrt(number), 10**6) + 1) if number % d == 0]  # all, of numbers below 1e12
    divisors = {*small, *(number // d for d in small)}
    return min(divisors, key=lambda d: (max(d / size, size / d), d))


def canonical_json(run: Run) -> str:
    """The one text of a run: sorted keys, no spaces, defaults omitted."""
    return json.dumps({"schema": SCHEMA, **to_dict(run)}, sort_keys=True, separators=(",", ":"), allow_nan=False)


def run_to_dict(run: Run) -> dict[str, Any]:
    """The content of run.json."""
    return {"schema": SCHEMA, **to_dict(run)}


def run_from_dict(values: dict[str, Any], where: str = "") -> Run:
    """Reads the content of run.json. Raises InputError on another schema, and as `from_dict` does."""
    require(isinstance(values, dict), f"expected the mapping of a run, got {type(values).__name__}", where=where)
    values = dict(values)
    schema = values.pop("schema", SCHEMA)
    require(schema == SCHEMA, f"schema {shown(schema)} of a run; this version reads {SCHEMA}", where=where)
    return from_dict(Run, values, where)


def run_id(run: Run) -> str:
    """The run's name on disk: width x depth and tokens for the reader, then 48 bits of its canonical JSON's SHA-256."""
    digest = hashlib.sha256(canonical_json(run).encode()).hexdigest()[:12]
    return f"d{run.model.d_model}x{run.model.n_layers}-{_short(run.tokens)}-{digest}"


def _short(number: float) -> str:
    number = float(f"{number:.3g}")  # rounded first: 999,936 is 1M, and not 1000k
    power = min(int(math.log10(number)) // 3, 4)
    return f"{number / 1000**power:.3g}{['', 'k', 'M', 'G', 'T'][power]}"
