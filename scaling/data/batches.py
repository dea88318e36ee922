"""The batch of a step, as a pure function of (token stores, data seed, step).

A split is cut into windows of L inputs and their L targets (the inputs shifted by one). Training on a store reads an
endless stream of epochs, each a fresh permutation of all its windows; step k reads rows k B to (k + 1) B of it.
Documents follow each other with an end token between them, and a window may hold pieces of several.

A mixture gives every row to one of its components: of each 4,096 rows in succession, each component has its share to
the nearest row, in pseudo-random order, and reads its own stream of epochs. So a row is found without those before it.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import numpy as np

from scaling.data.token_store import TokenStore, read_windows
from scaling.errors import InputError
from scaling.runs import MAIN_SPLIT, Component, DataSpec

ROUNDS = 6  # each of two halves; with 4, the orders of six windows are visibly not equally frequent
BLOCK = 4096  # rows of a stream permuted at a time: for 8 of them, numpy takes a third as long
PERIOD = 4096  # rows in which each component of a mixture has its share
_32 = np.uint64(32)
_MIXING = np.uint64(0xD1B54A32D192ED03)  # sets the order of components apart from the orders of windows

Stores = Mapping[str, TokenStore]  # by content id


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a training reads of one store: tokens in all, different tokens among them, and how often over."""

    store: str
    tokens: int
    unique_tokens: int
    epochs: float


def num_windows(store: TokenStore, split: str, sequence_length: int) -> int:
    """Windows of a split: window i holds tokens i L to (i + 1) L inclusive, of which L are targets."""
    return (store.splits[split].tokens - 1) // sequence_length


def batch(stores: Stores, spec: DataSpec, batch_size: int, step: int, rows: slice | None = None) -> np.ndarray:
    """The windows of one training step, M = L + 1 tokens each: inputs are the first L, targets the last L.

    rows: of the global batch, those to return; None: all. No other row is computed, so processes that each ask for
      their own rows see the same global batch, however many they are.
    Returns tokens_BxM, int32.
    Raises InputError if a store that the spec names is not there, or has not one window.
    """
    position_B = step * batch_size + np.arange(batch_size)[slice(None) if rows is None else rows]
    if not spec.mixture:
        return _read(stores, spec, spec.store, position_B)
    component_B, position_B = _deal(spec, position_B)
    tokens_BxM = np.empty((len(position_B), spec.sequence_length + 1), np.int32)
    for c, part in enumerate(spec.mixture):
        mine_B = component_B == c
        if mine_B.any():
            tokens_BxM[mine_B] = _read(stores, spec, part.store, position_B[mine_B])
    return tokens_BxM


def eval_windows(stores: Stores, spec: DataSpec) -> dict[str, np.ndarray]:
    """The run's fixed evaluation windows, spread evenly over each validation split: tokens_WxM, int32, M = L + 1.

    By the name of the set; the first is "validation", that of `spec.store`.
    Raises InputError if a store is not there, or has fewer windows than `spec.eval_windows`.
    """
    check_eval_windows(stores, spec)
    L, W = spec.sequence_length, spec.eval_windows
    found = {}
    for name, store in eval_stores(stores, spec).items():
        n = num_windows(store, "validation", L)
        found[name] = read_windows(store, "validation", L, (2 * np.arange(W) + 1) * n // (2 * W))
    return found


def eval_stores(stores: Stores, spec: DataSpec) -> dict[str, TokenStore]:
    """The store of each evaluation set, by the set's name. Raises InputError if one is not there."""
    held_out = {MAIN_SPLIT: spec.store, **{part.name: part.store for part in spec.validation}}
    return {name: _get(stores, store) for name, store in held_out.items()}


def check_eval_windows(stores: Stores, spec: DataSpec) -> None:
    """Raises InputError as `eval_windows`, without reading any text."""
    for store in eval_stores(stores, spec).values():
        n = num_windows(store, "validation", spec.sequence_length)
        if n < spec.eval_windows:
            raise InputError(
                f"data.eval_windows={spec.eval_windows}, but the validation split has {n} windows of "
                f"{spec.sequence_length} tokens",
                str(store.path),
                "lower eval_windows, or build the store with a larger validation_fraction",
            )


def usage(stores: Stores, spec: DataSpec, tokens: int) -> tuple[Usage, ...]:
    """What a training on `tokens` tokens, whole windows, reads of each store. Raises as `batch`."""
    L = spec.sequence_length
    rows = tokens // L
    if spec.mixture:
        whole, rest = divmod(rows, PERIOD)
        component_S, _ = _dealt(spec.seed, spec.mixture, whole)
        rows_C = whole * _shares(spec.mixture) + np.bincount(component_S[:rest], minlength=len(spec.mixture))
    else:
        rows_C = np.array([rows])
    found = []
    for store, read in zip([part.store for part in spec.mixture] or [spec.store], rows_C, strict=True):
        size = _train_windows(stores, spec, store)
        found.append(Usage(store, int(read) * L, min(int(read), size) * L, float(read) / size))
    return tuple(found)


def epochs(stores: Stores, spec: DataSpec, tokens: int) -> float:
    """How often a training on `tokens` tokens reads each window; of a mixture, of its most repeated component."""
    return max(part.epochs for part in usage(stores, spec, tokens))


def unique_tokens(stores: Stores, spec: DataSpec, tokens: int) -> int:
    """How many different tokens a training on `tokens` tokens reads. Raises as `batch`."""
    return sum(part.unique_tokens for part in usage(stores, spec, tokens))


def permutation(seed: int, epoch: int | np.ndarray, n: int, index: np.ndarray) -> np.ndarray:
    """Where the pseudo-random permutation of range(n) of an epoch takes `index`; no other entry is computed.

    The generalised Feistel network of Black & Rogaway (2002, "Ciphers with arbitrary finite domains", method 3) on
    Z_a x Z_b, a = ceil(sqrt n), b = ceil(n / a). Its domain exceeds n by less than a, so cycle walking (their method 2)
    hardly ever goes round again, where a network on bits would walk through up to 4n. Round function: the output mix of
    splitmix64 (Steele, Lea & Flood 2014). It shuffles; it is no cipher.

    epoch, index: int64 of shapes that broadcast; index in [0, n). Returns int64 of their common shape.
    """
    a = math.isqrt(n - 1) + 1
    sides = np.uint64(a), np.uint64(-(-n // a))
    epoch, index = np.broadcast_arrays(epoch, index)
    key = _mix(_mix(np.uint64(seed)) + epoch.astype(np.uint64))
    value = _feistel(index.astype(np.uint64), key, *sides)
    while (outside := value >= n).any():
        value[outside] = _feistel(value[outside], key[outside], *sides)
    return value.astype(np.int64)


def _feistel(value: np.ndarray, key: np.ndarray, a: np.uint64, b: np.uint64) -> np.ndarray:
    right, left = np.divmod(value, a)
    for _ in range(ROUNDS):
        key = _mix(key)
        left = (left + (_mix(key + right) >> _32)) % a
        key = _mix(key)
        right = (right + (_mix(key + left) >> _32)) % b
    return right * a + left


def _mix(z: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _stream(seed: int, n: int, position_B: np.ndarray) -> np.ndarray:
    """The windows at positions (ascending) of the endless stream of epochs."""
    first, last = int(position_B[0]) // BLOCK, int(position_B[-1]) // BLOCK
    window_B = np.concatenate([_block(seed, n, k) for k in range(first, last + 1)])
    return window_B[position_B - first * BLOCK]


@functools.lru_cache(maxsize=16)
def _block(seed: int, n: int, block: int) -> np.ndarray:
    epoch, index = np.divmod(block * BLOCK + np.arange(BLOCK), n)
    return permutation(seed, epoch, n, index)


def _read(stores: Stores, spec: DataSpec, store: str, position_B: np.ndarray) -> np.ndarray:
    n = _train_windows(stores, spec, store)
    return read_windows(stores[store], "train", spec.sequence_length, _stream(spec.seed, n, position_B))


def _deal(spec: DataSpec, position_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The component of each row of the mixture, and the row's position in that component's own stream."""
    first, last = int(position_B[0]) // PERIOD, int(position_B[-1]) // PERIOD
    dealt = [_dealt(spec.seed, spec.mixture, k) for k in range(first, last + 1)]
    component_S, rank_S = (np.concatenate(part) for part in zip(*dealt, strict=True))
    row_B = position_B - first * PERIOD
    component_B = component_S[row_B]
    return component_B, position_B // PERIOD * _shares(spec.mixture)[component_B] + rank_S[row_B]


@functools.lru_cache(maxsize=16)
def _dealt(seed: int, mixture: tuple[Component, ...], period: int) -> tuple[np.ndarray, np.ndarray]:
    """The component of each row of a period, and the row's rank among those of its component."""
    share_C = _shares(mixture)
    order_S = permutation(int(np.uint64(seed) ^ _MIXING), period, PERIOD, np.arange(PERIOD))
    component_S = np.repeat(np.arange(len(mixture)), share_C)[order_S]
    rank_S = np.empty(PERIOD, np.int64)
    for c, share in enumerate(share_C):
        rank_S[component_S == c] = np.arange(share)
    return component_S, rank_S


@functools.lru_cache(maxsize=64)
def _shares(mixture: tuple[Component, ...]) -> np.ndarray:
    """Rows of each component in a period, by the largest remainders. Raises InputError for a share of less than one."""
    exact_C = PERIOD * np.array([part.weight for part in mixture])
    share_C = np.floor(exact_C).astype(np.int64)
    missing = PERIOD - share_C.sum()
    share_C[np.argsort(share_C - exact_C, kind="stable")[:missing]] += 1
    if not share_C.all():
        part = mixture[int(np.argmin(share_C))]
        raise InputError(
            f"data.mixture: store {part.store} has a share of {part.weight:.2g}", do=f"the least is 1/{PERIOD}"
        )
    return share_C


def _get(stores: Stores, content_id: str) -> TokenStore:
    if content_id not in stores:
        raise InputError(
            f"the run reads token store {content_id}, which was not given: there is {', '.join(sorted(stores))}"
        )
    return stores[content_id]


def _train_windows(stores: Stores, spec: DataSpec, content_id: str) -> int:
    if spec.seed >= 2**64:
        raise InputError(f"data.seed={spec.seed} is not below 2^64")
    store = _get(stores, content_id)
    n = num_windows(store, "train", spec.sequence_length)
    if n < 1:
        raise InputError(
            f"{store.splits['train'].tokens} training tokens do not fill a window of {spec.sequence_length}",
            str(store.path),
        )
    return n
