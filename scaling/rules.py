"""The rule of a tuning sweep: the peak learning rate as a power law of size and batch, with its range and its doubt.

    ln peak_lr = a + b ln N + c ln B

N is parameters, B the batch in tokens. The form is that of Kaplan et al. 2020 (Appendix D.6), who have no B, with the
batch as DeepSeek-AI 2024 and Li et al. 2025 fit it: powers of scale, straight in logarithms.
"""

import dataclasses
import math
from typing import Any

from scaling.errors import InputError
from scaling.files import Path, read_json, write_json
from scaling.specs import from_dict, require, settle, to_dict

SCHEMA = 1
LEVEL = 0.9
FARTHEST = 100.0  # of ln peak_lr from 0, and of each coefficient: exp ends at 700


@dataclasses.dataclass(frozen=True)
class LearningRateRule:
    """ln peak_lr = a + b ln N + c ln B, and what it rests on.

    N_range, B_range, D_range: the sizes, batches and durations of the optima that it was fitted to; B_range is None
    where the table did not say the batch. covariance: of (a, b, c), scaled so that value +- t times its root is a 90 %
    interval; it and t are None where the optima leave nothing to judge it by. residual_sd: of ln peak_lr about
    the rule. penalty: the loss, in nats, that a rate off its optimum by a factor of 2 costs, the median over the
    optima. notes: what was not identified, and what the fit left out.
    """

    base: str  # recipe that says everything but the rate
    a: float
    b: float
    c: float
    N_range: tuple[float, float]
    B_range: tuple[float, float] | None
    D_range: tuple[float, float]
    sizes: int  # that were fitted,
    optima: int  # by so many optima
    residual_sd: float | None
    covariance: tuple[tuple[float, ...], ...] | None
    t: float | None
    penalty: float
    source: str  # SHA-256 of the tables
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        settle(self, "rule")
        for name in ("N_range", "B_range", "D_range"):
            ends = getattr(self, name)
            require(ends is None or 0 < ends[0] <= ends[1], f"rule.{name}={ends} is not a range of positive numbers")
        require(max(map(abs, (self.a, self.b, self.c))) <= FARTHEST, f"rule of {self.a}, {self.b}, {self.c} is none")
        require(self.c == 0 or self.B_range is not None, f"rule.c={self.c} without a range of batches")
        require((self.covariance is None) == (self.t is None), "rule: covariance and t come together")
        shape = [len(row) for row in self.covariance or ()]
        require(shape in ([], [3, 3, 3]), f"rule.covariance has rows of {shape}, not three of three")

    def peak_lr(self, N: float, B: float) -> float:
        """The peak rate of N parameters and a batch of B tokens. Raises InputError where they are not positive."""
        log_lr = _dot((self.a, self.b, self.c), self._position(N, B))
        if abs(log_lr) > FARTHEST:
            raise InputError(f"the rule {self.formula()} gives no rate at N={N:.4g}, B={B:.4g}")
        return math.exp(log_lr)

    def interval(self, N: float, B: float) -> tuple[float, float] | None:
        """The 90 % interval of `peak_lr`, None where the rule has none. It supposes that the form goes on."""
        if self.covariance is None or self.t is None:
            return None
        x = self._position(N, B)
        half = min(FARTHEST, self.t * math.sqrt(max(0.0, _dot(x, tuple(_dot(row, x) for row in self.covariance)))))
        return self.peak_lr(N, B) * math.exp(-half), self.peak_lr(N, B) * math.exp(half)

    def extrapolation(self, N: float, B: float) -> float:
        """How far (N, B) lies beyond what was fitted: the larger of the two factors, 1 inside both ranges."""
        self._position(N, B)
        return max(_beyond(N, self.N_range), _beyond(B, self.B_range) if self.B_range else 1.0)

    def coefficients(self) -> dict[str, dict[str, Any]]:
        """a, b and c as estimates of a report: {"value", "ci", "level"}; no interval where it is not identified."""
        found = {}
        for k, name in enumerate("abc"):
            value, variance = getattr(self, name), self.covariance[k][k] if self.covariance else 0.0
            half = self.t * math.sqrt(variance) if self.t is not None and variance > 0 else None
            ci = None if half is None else [value - half, value + half]
            found[name] = {"value": value, "ci": ci, "level": LEVEL}
        return found

    def formula(self) -> str:
        """The rule in words: peak_lr = 3.2 N^-0.51 B^0.3."""
        text = f"peak_lr = {math.exp(self.a):.4g} N^{self.b:.3f}"
        return text + (f" B^{self.c:.3f}" if self.c else "")

    def _position(self, N: float, B: float) -> tuple[float, float, float]:
        require(math.isfinite(N) and N > 0, f"N={N} is not a positive number of parameters")
        known = math.isfinite(B) and B > 0
        require(known or self.c == 0, f"B={B} is not a positive number of tokens", "this rule depends on the batch")
        return 1.0, math.log(N), math.log(B) if self.c else 0.0


def write_rule(rule: LearningRateRule, path: Path) -> None:
    """Writes a rule as readable JSON, atomically."""
    write_json(path, {"schema": SCHEMA, **to_dict(rule)})


def read_rule(path: Path) -> LearningRateRule:
    """Reads what `write_rule` wrote. Raises InputError where it is missing, no rule, or of another schema."""
    values = read_json(path)
    require(isinstance(values, dict), "not a learning-rate rule", "python -m tools.tune writes them", str(path))
    values = dict(values)
    schema = values.pop("schema", None)
    require(schema == SCHEMA, f"schema {schema!r} of a rule; this version reads {SCHEMA}", where=str(path))
    try:
        return from_dict(LearningRateRule, values)
    except InputError as error:
        raise InputError(f"not a learning-rate rule: {error}", where=str(path)) from None


def _dot(x: tuple[float, ...], y: tuple[float, ...]) -> float:
    return sum(p * q for p, q in zip(x, y, strict=True))


def _beyond(value: float, ends: tuple[float, float]) -> float:
    return max(1.0, ends[0] / value, value / ends[1]) if value > 0 else math.nan
