"""The batch of a step, as a pure function of (store, data seed, step).

A split is cut into windows of L inputs and their L targets (the inputs shifted by one). Training reads an endless
stream of epochs, each a fresh permutation of all windows; step k reads rows k B to (k + 1) B of it. Documents follow
each other with an end token between them, and a window may hold pieces of several.
"""

import functools
import math

import numpy as np

from scaling.data.token_store import TokenStore
from scaling.errors import InputError
from scaling.runs import DataSpec

ROUNDS = 6  # each of two halves; with 4, the orders of six windows are visibly not equally frequent
BLOCK = 4096  # rows of the stream permuted at a time: for 8 of them, numpy takes a third as long
_32 = np.uint64(32)


def num_windows(store: TokenStore, split: str, sequence_length: int) -> int:
    """Windows of a split: window i holds tokens i L to (i + 1) L inclusive, of which L are targets."""
    return (store.splits[split].tokens - 1) // sequence_length


def batch(store: TokenStore, spec: DataSpec, batch_size: int, step: int, rows: slice | None = None) -> np.ndarray:
    """The windows of one training step, M = L + 1 tokens each: inputs are the first L, targets the last L.

    rows: of the global batch, those to return; None: all. No other row is computed, so processes that each ask for
      their own rows see the same global batch, however many they are.
    Returns tokens_BxM, int32.
    Raises InputError if the store is not the one the spec names, or has not one window.
    """
    n = _train_windows(store, spec)
    position_B = step * batch_size + np.arange(batch_size)[slice(None) if rows is None else rows]
    return _gather(store, "train", spec.sequence_length, _stream(spec.seed, n, position_B))


def eval_windows(store: TokenStore, spec: DataSpec) -> np.ndarray:
    """The run's fixed evaluation windows, spread evenly over the validation split: tokens_WxM, int32, M = L + 1.

    Raises InputError if the store is not the one the spec names, or has fewer windows than `spec.eval_windows`.
    """
    check_eval_windows(store, spec)
    n, W = num_windows(store, "validation", spec.sequence_length), spec.eval_windows
    return _gather(store, "validation", spec.sequence_length, (2 * np.arange(W) + 1) * n // (2 * W))


def check_eval_windows(store: TokenStore, spec: DataSpec) -> None:
    """Raises InputError as `eval_windows`, without reading any text."""
    _check(store, spec)
    n, W = num_windows(store, "validation", spec.sequence_length), spec.eval_windows
    if n < W:
        raise InputError(
            f"data.eval_windows={W}, but the validation split has {n} windows of {spec.sequence_length} tokens",
            str(store.path),
            "lower eval_windows, or build the store with a larger validation_fraction",
        )


def epochs(store: TokenStore, spec: DataSpec, tokens: int) -> float:
    """How often a training on `tokens` tokens reads each window. Raises as `batch`."""
    return tokens / (_train_windows(store, spec) * spec.sequence_length)


def unique_tokens(store: TokenStore, spec: DataSpec, tokens: int) -> int:
    """How many different tokens a training on `tokens` tokens reads. Raises as `batch`."""
    return min(tokens, _train_windows(store, spec) * spec.sequence_length)


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


def _check(store: TokenStore, spec: DataSpec) -> None:
    if store.content_id != spec.store:
        raise InputError(f"its content id is {store.content_id}, the run asks for {spec.store}", str(store.path))
    if spec.seed >= 2**64:
        raise InputError(f"data.seed={spec.seed} is not below 2^64")


def _train_windows(store: TokenStore, spec: DataSpec) -> int:
    _check(store, spec)
    n = num_windows(store, "train", spec.sequence_length)
    if n < 1:
        raise InputError(
            f"{store.splits['train'].tokens} training tokens do not fill a window of {spec.sequence_length}",
            str(store.path),
        )
    return n


def _gather(store: TokenStore, split: str, L: int, window_W: np.ndarray) -> np.ndarray:
    ids_T, n = store.splits[split].ids_T, num_windows(store, split, L)
    tokens_WxM = np.empty((len(window_W), L + 1), np.int32)
    tokens_WxM[:, :L] = ids_T[: n * L].reshape(n, L)[window_W]
    tokens_WxM[:, L] = ids_T[(window_W + 1) * L]
    return tokens_WxM
