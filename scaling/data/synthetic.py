"""Text whose entropy is known: a first-order Markov chain over printable ASCII.

From each character, the r-th likeliest successor has a probability that falls as r^-exponent (Zipf's law), and which
character that is, a seeded permutation says. Documents are independent, of `length` characters, and start from the
chain's stationary distribution. So the tokenizer `bytes` sees exactly this process, an end token after each document,
and `best_loss` is what no model's expected loss falls below.
"""

import dataclasses
import functools
import math

import numpy as np

from scaling.data.parts import Documents, Part, Source
from scaling.errors import InputError
from scaling.specs import from_dict, require, settle

ONE = 1 << 32  # probabilities are multiples of 1 / ONE: what is drawn is exactly what the entropy is computed of
PART_BYTES = 1 << 22
FIRST = 0x20  # of the 95 printable characters of ASCII
MAX_EQUAL = 1e-3  # pairs of equal documents, expected: a token store would drop the second


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """What a spec `synthetic:tokens=1e6,vocab=64,...` says; what it leaves out is as here.

    tokens: at least, as the tokenizer `bytes` counts them, end tokens included.
    vocab: characters, at most 95. exponent: of Zipf's law; 0 is uniform. length: characters a document.
    """

    tokens: int = 1_000_000
    vocab: int = 64
    exponent: float = 1.0
    length: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        settle(self, "synthetic")
        require(2 <= self.vocab <= 95, f"synthetic.vocab={self.vocab} is outside 2 to 95")
        require(0 <= self.exponent <= 8, f"synthetic.exponent={self.exponent} is outside 0 to 8")
        require(self.tokens >= 1 and self.length >= 1, "synthetic.tokens and synthetic.length must be positive")
        require(self.seed >= 0, f"synthetic.seed={self.seed} is negative")

    @property
    def documents(self) -> int:
        """How many there are."""
        return -(-self.tokens // (self.length + 1))


def parse_synthetic(spec: str) -> Synthetic:
    """What `synthetic:NAME=VALUE,...` says. Raises InputError for an unknown name (with the nearest) or no number."""
    scheme, _, argument = spec.partition(":")
    require(scheme == "synthetic", f"{spec!r} is not synthetic:NAME=VALUE,...")
    values = {}
    for piece in filter(None, argument.split(",")):
        name, _, number = piece.partition("=")
        try:
            value = float(number)
        except ValueError:
            raise InputError(f"{piece!r} is not NAME=NUMBER", spec) from None
        values[name] = int(value) if value.is_integer() else value
    return from_dict(Synthetic, values, "synthetic")


def synthetic(argument: str) -> Source:
    """The source. Raises InputError as `parse_synthetic`, and for documents so short that some would be equal."""
    spec = parse_synthetic(f"synthetic:{argument}")
    pairs = spec.documents * (spec.documents - 1) / 2 * _equal_probability(spec)
    require(
        pairs <= MAX_EQUAL,
        f"of {spec.documents:,} documents of {spec.length} characters, {pairs:.2g} pairs would be equal",
        "a token store keeps only one of them: ask for a larger length",
        f"synthetic:{argument}",
    )
    size = max(1, PART_BYTES // spec.length)
    starts = range(0, spec.documents, size)
    return Source(
        parts=tuple(Part(f"documents from {i}", functools.partial(_read, spec, i, size)) for i in starts),
        fingerprint=f"synthetic 1 {spec}",
    )


def transitions(spec: Synthetic) -> np.ndarray:
    """P_VxV: the probability that a character (row) is followed by another (column)."""
    return np.diff(_cumulative(spec), axis=1, prepend=0) / ONE


def stationary(spec: Synthetic) -> np.ndarray:
    """p_V with p P = p, the sum of which is 1: the distribution of the first character, and of every later one."""
    V = spec.vocab
    equations = transitions(spec).T - np.eye(V)
    equations[-1] = 1.0  # in place of one of V dependent equations
    return np.linalg.solve(equations, np.eye(V)[-1])


def entropy_rate(spec: str) -> float:
    """Nats per character, given those before it: -sum_s p_s sum_t P_st ln P_st (Cover & Thomas 2006, theorem 4.2.4)."""
    parsed = parse_synthetic(spec)
    return float(stationary(parsed) @ _entropies(transitions(parsed)))


def best_loss(spec: str, length: int) -> float:
    """The expected loss, in nats per token, of the perfect predictor on windows of `length` targets.

    For the tokenizer `bytes` and windows that start at multiples of `length`, whose first token is only read. It is
    not the entropy rate h: of the d + 1 tokens from end to end, one is the end token, one is a first character, which
    costs the entropy H of the stationary distribution, and d - 1 cost h. Where the end tokens are costs, too: a window
    starts with equal probability at one of the N phases of a document that are multiples of g = gcd(length, d + 1).
    Of these, k do not start on the end token, and r of the k see no end token. As long as none is seen all k remain
    possible but for those that would have shown one; then the phase is known, and all further ends with it. That is
    ln k nats for each of the k - r and ln(k / r) for each of the r: k ln k - r ln r over all N.
    """
    parsed, L = parse_synthetic(spec), length
    require(L >= 1, f"windows of {L} tokens")
    d, period = parsed.length, parsed.length + 1
    g = math.gcd(L, period)
    N, k, r = period // g, -(-d // g), max(0, -(-(d - L) // g))
    ends = (_x_log_x(k) - _x_log_x(r)) / (N * L)
    first = float(_entropies(stationary(parsed)))
    return entropy_rate(spec) * (1 - 2 / period) + first / period + ends


def _x_log_x(x: int) -> float:
    return x * math.log(x) if x else 0.0


def _entropies(p: np.ndarray) -> np.ndarray:
    """Of distributions along the last axis, in nats."""
    return -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=-1)


@functools.lru_cache(maxsize=8)
def _cumulative(spec: Synthetic) -> np.ndarray:
    """Cumulative transition probabilities in units of 1 / ONE, VxV int64; the last of each row is ONE."""
    V = spec.vocab
    rank_VxV = np.argsort(np.argsort(_bits(spec.seed).random_raw(V * V).reshape(V, V), axis=1), axis=1)
    weight_VxV = (rank_VxV + 1.0) ** -spec.exponent
    cumulative_VxV = np.cumsum(weight_VxV, axis=1)
    return np.rint(cumulative_VxV / cumulative_VxV[:, -1:] * ONE).astype(np.int64)


def _equal_probability(spec: Synthetic) -> float:
    """That two documents are equal: the sum over all documents of their squared probability."""
    walk_VxV = np.linalg.matrix_power(transitions(spec) ** 2, spec.length - 1)
    return float(stationary(spec) ** 2 @ walk_VxV.sum(axis=1))


def _bits(*seed: int) -> np.random.PCG64:
    """Raw random bits: NumPy keeps their stream the same from version to version, and not that of its distributions."""
    return np.random.PCG64(np.random.SeedSequence(seed))


def _read(spec: Synthetic, start: int, size: int) -> Documents:
    D = min(size, spec.documents - start)
    bits = _bits(spec.seed, start + 1)
    # One ascending table of all rows, s ONE + cumulative: where s ONE + a number below ONE falls is the successor of s.
    table = (_cumulative(spec) + ONE * np.arange(spec.vocab)[:, None]).ravel()
    state_D = np.searchsorted(np.rint(np.cumsum(stationary(spec)) * ONE).astype(np.int64), _draw(bits, D), side="right")
    text_DxL = np.empty((D, spec.length), np.uint8)
    for i in range(spec.length):
        text_DxL[:, i] = state_D + FIRST
        index_D = np.searchsorted(table, state_D * ONE + _draw(bits, D), side="right")
        state_D = index_D % spec.vocab
    for i, row_L in enumerate(text_DxL, start):
        yield f"synthetic[{i}]", row_L.tobytes()


def _draw(bits: np.random.PCG64, n: int) -> np.ndarray:
    return (bits.random_raw(n) >> np.uint64(32)).astype(np.int64)
