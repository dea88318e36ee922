import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from scaling.data import batches
from scaling.data.batches import batch, epochs, eval_windows, num_windows, permutation, unique_tokens
from scaling.data.token_store import read_tokens
from scaling.errors import InputError

GOLDEN = {
    (0, 0): [13, 11, 6, 9, 4, 3, 1, 14, 7, 0, 10, 15, 5, 2, 12, 8],
    (0, 1): [1, 4, 2, 3, 7, 9, 8, 11, 12, 14, 5, 15, 13, 6, 0, 10],
    (1, 0): [5, 7, 10, 2, 14, 1, 13, 6, 12, 3, 15, 9, 11, 4, 8, 0],
}


@pytest.mark.parametrize(("seed", "epoch"), GOLDEN)
def test_golden_shuffle(seed, epoch):
    """A change here changes the data order of every run: old runs could not be continued or repeated. Do not."""
    assert permutation(seed, epoch, 16, np.arange(16)).tolist() == GOLDEN[seed, epoch]


def test_golden_shuffle_of_a_large_store():
    index = np.array([0, 1, 10**12 - 1])
    assert permutation(2**64 - 1, 3, 10**12, index).tolist() == [629579015689, 734012051158, 206974058842]


@pytest.mark.parametrize("n", [*range(1, 40), 63, 64, 65, 1000, 1024, 4097, 65537])
def test_permutation_is_a_bijection(n):
    for epoch in range(3):
        assert np.array_equal(np.sort(permutation(5, epoch, n, np.arange(n))), np.arange(n))


def test_permutation_needs_no_other_entry():
    whole = permutation(5, 2, 1000, np.arange(1000))
    index = np.array([[999, 3], [500, 3]])
    assert np.array_equal(permutation(5, 2, 1000, index), whole[index])
    epoch = np.array([[2], [3]])
    both = permutation(5, epoch, 1000, np.arange(1000))
    assert np.array_equal(both, [whole, permutation(5, 3, 1000, np.arange(1000))])


def test_all_orders_of_four_are_equally_frequent():
    orders = permutation(0, np.arange(48_000)[:, None], 4, np.arange(4))
    _, counts = np.unique(orders @ 4 ** np.arange(4), return_counts=True)
    assert len(counts) == math.factorial(4)
    assert stats.chisquare(counts).pvalue > 0.001  # of a fixed sample: it passes or fails for good


def test_neighbours_are_shuffled_apart():
    n = 500
    order = permutation(0, np.arange(1000)[:, None], n, np.arange(n))
    distance = np.diff(order, axis=1) % n
    assert stats.chisquare(np.bincount(distance.ravel(), minlength=n)[1:]).pvalue > 0.001


def test_epochs_are_unrelated():
    """Two random permutations agree in one place on average, with a variance of one."""
    order = permutation(0, np.arange(1001)[:, None], 500, np.arange(500))
    agreements = (order[1:] == order[:-1]).sum(axis=1)
    assert abs(agreements.mean() - 1) < 4 / math.sqrt(1000)  # four standard errors


def test_a_window_needs_the_target_of_its_last_token(store):
    tokens = store.splits["train"].tokens
    assert [num_windows(store, "train", L) for L in (1, tokens - 1, tokens)] == [tokens - 1, 1, 0]


def test_a_batch_is_the_windows_of_its_step_each_with_its_last_target(store, stores, spec):
    ids_T, L = read_tokens(store, "train"), spec.sequence_length
    n = num_windows(store, "train", L)
    assert n == (len(ids_T) - 1) // L
    window_B = permutation(spec.seed, 0, n, np.arange(4, 8))
    tokens_BxM = batch(stores, spec, 4, step=1)
    assert tokens_BxM.dtype == np.int32
    assert np.array_equal(tokens_BxM, [ids_T[i * L : i * L + L + 1] for i in window_B])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_an_epoch_reads_each_window_once_and_the_next_in_another_order(store, stores, spec, batch_size):
    n = num_windows(store, "train", spec.sequence_length)
    steps = -(-2 * n // batch_size)
    stream = np.concatenate([batch(stores, spec, batch_size, step)[:, :-1] for step in range(steps)])
    ids_T = read_tokens(store, "train")
    windows = sorted(ids_T[: n * spec.sequence_length].reshape(n, -1).tolist())
    first, second = stream[:n].tolist(), stream[n : 2 * n].tolist()
    assert sorted(first) == sorted(second) == windows
    assert first != second


def test_the_stream_does_not_depend_on_the_blocks_it_is_computed_in(stores, spec, monkeypatch):
    last = 2 * batches.BLOCK // 8
    steps = [0, 1, last // 2 - 1, last // 2, last - 1, last]
    expected = [batch(stores, spec, 8, step) for step in steps]
    monkeypatch.setattr(batches, "_block", batches._block.__wrapped__)
    monkeypatch.setattr(batches, "BLOCK", 5)
    assert all(np.array_equal(batch(stores, spec, 8, step), x) for step, x in zip(steps, expected, strict=True))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_batches_are_the_same_for_any_number_of_processes(store, stores, spec, processes):
    B = 16
    end_of_epoch = num_windows(store, "train", spec.sequence_length) // B
    share = B // processes
    for step in (0, end_of_epoch, 10**9):
        parts = [batch(stores, spec, B, step, slice(p * share, (p + 1) * share)) for p in range(processes)]
        assert np.array_equal(np.concatenate(parts), batch(stores, spec, B, step))


def test_the_batch_size_cuts_one_stream(stores, spec):
    small = np.concatenate([batch(stores, spec, 4, step) for step in range(6, 12)])
    assert np.array_equal(small, batch(stores, spec, 24, 1))


def test_another_data_seed_is_another_order(stores, spec):
    other = dataclasses.replace(spec, seed=1)
    assert not np.array_equal(batch(stores, spec, 16, 0), batch(stores, other, 16, 0))


@pytest.mark.parametrize("W", [2, 3, 10])
def test_eval_windows_are_spread_evenly(store, stores, spec, W):
    L, ids_T = spec.sequence_length, read_tokens(store, "validation")
    n = num_windows(store, "validation", L)
    tokens_WxM = eval_windows(stores, dataclasses.replace(spec, eval_windows=W))["validation"]
    windows = ids_T[: n * L].reshape(n, L).tolist()
    where = [windows.index(x) for x in tokens_WxM[:, :-1].tolist()]
    assert [windows.count(x) for x in tokens_WxM[:, :-1].tolist()] == [1] * W
    assert max(np.diff(where)) - min(np.diff(where)) <= 1
    assert abs(where[0] - (n - 1 - where[-1])) <= 1
    assert np.array_equal(tokens_WxM[:, -1], [ids_T[(i + 1) * L] for i in where])


def test_all_windows_can_be_evaluated_and_not_one_more(store, stores, spec):
    n = num_windows(store, "validation", spec.sequence_length)
    x_WxL = eval_windows(stores, dataclasses.replace(spec, eval_windows=n))["validation"][:, :-1]
    assert np.array_equal(x_WxL.ravel(), read_tokens(store, "validation")[: x_WxL.size])
    with pytest.raises(InputError, match=rf"eval_windows={n + 1}, but the validation split has {n} windows of 16"):
        eval_windows(stores, dataclasses.replace(spec, eval_windows=n + 1))


def test_epochs_and_unique_tokens(store, stores, spec):
    L = spec.sequence_length
    n = num_windows(store, "train", L)
    assert epochs(stores, spec, n // 2 * L) == n // 2 / n
    assert epochs(stores, spec, 3 * n * L) == 3
    assert unique_tokens(stores, spec, (n - 1) * L) == (n - 1) * L
    assert unique_tokens(stores, spec, 3 * n * L) == n * L


@pytest.mark.parametrize("function", [lambda s, d: batch(s, d, 4, 0), eval_windows, lambda s, d: epochs(s, d, 1)])
def test_a_store_that_is_not_there_is_refused(store, stores, spec, function):
    with pytest.raises(InputError, match=f"reads token store other, which was not given: there is {store.content_id}"):
        function(stores, dataclasses.replace(spec, store="other"))


def test_a_store_of_less_than_one_window_is_refused(stores, spec):
    with pytest.raises(InputError, match=r"\d+ training tokens do not fill a window of 1000000"):
        batch(stores, dataclasses.replace(spec, sequence_length=1_000_000), 4, 0)


def test_a_data_seed_of_more_than_64_bits_is_refused(stores, spec):
    with pytest.raises(InputError, match="is beyond 64 bits"):
        batch(stores, dataclasses.replace(spec, seed=2**64), 4, 0)
