"""Mixtures: every row belongs to one component, each reads its own stream of epochs, and the counts are right."""

import collections
import dataclasses

import numpy as np
import pytest

from scaling.data import batches
from scaling.data.batches import PERIOD, batch, epochs, eval_windows, num_windows, unique_tokens, usage
from scaling.data.token_store import build_store
from scaling.errors import InputError
from scaling.runs import Component, DataSpec, EvalSet

L = 8
SIZES = {"large": 120, "middle": 60, "little": 12}  # documents


@pytest.fixture(scope="module")
def named(tmp_path_factory, write):
    """Three stores whose texts share no window: each is written in letters of its own."""
    root = tmp_path_factory.mktemp("mixture")
    found = {}
    for letters, (name, documents) in zip(("abcdefgh", "ijklmnop", "qrstuvwx"), SIZES.items(), strict=True):
        rng = np.random.default_rng(len(name))
        texts = ["".join(rng.choice(list(letters), 90)).encode() for _ in range(documents)]
        found[name] = build_store(write(root / name, texts), "bytes", 0.25, root / f"store-{name}")
    return found


@pytest.fixture(scope="module")
def stores(named):
    return {store.content_id: store for store in named.values()}


def mixed(named, seed=0, main="large", **weights):
    parts = tuple(Component(named[name].content_id, weight) for name, weight in weights.items())
    return DataSpec(named[main].content_id, L, 4, seed=seed, mixture=parts)


def owner_of(named, tokens_BxM):
    """The store of each row, by its letters: 'large' has a to h. End tokens are in all."""
    letter_B = np.where(tokens_BxM == 255, 0, tokens_BxM).max(axis=1)
    return [("large", "middle", "little")[(letter - ord("a")) // 8] for letter in letter_B]


def stream(stores, spec, rows):
    return np.concatenate([batch(stores, spec, 64, step) for step in range(rows // 64)])


def test_every_period_has_the_shares_to_the_nearest_row(named, stores):
    spec = mixed(named, large=0.7, middle=0.2, little=0.1)
    owners = owner_of(named, stream(stores, spec, 2 * PERIOD))
    for period in (owners[:PERIOD], owners[PERIOD:]):
        counts = collections.Counter(period)
        assert abs(counts["large"] - 0.7 * PERIOD) < 1
        assert abs(counts["middle"] - 0.2 * PERIOD) < 1
        assert abs(counts["little"] - 0.1 * PERIOD) < 1
    assert owners[:PERIOD] != owners[PERIOD:]


def test_the_components_are_well_mixed(named, stores):
    """Of 64 rows, those of a half: as in 64 draws without replacement, within five standard deviations (4 each)."""
    owners = np.array(owner_of(named, stream(stores, mixed(named, large=1, middle=1), PERIOD))) == "large"
    counts = owners.reshape(-1, 64).sum(axis=1)
    assert abs(counts - 32).max() <= 20
    assert counts.std() == pytest.approx(4, rel=0.3)


def test_each_component_reads_its_own_stream_as_if_alone(named, stores):
    spec = mixed(named, large=0.5, middle=0.3, little=0.2)
    rows = stream(stores, spec, 2 * PERIOD)
    owners = np.array(owner_of(named, rows))
    for name, store in named.items():
        mine = rows[owners == name]
        alone = DataSpec(store.content_id, L, 4)
        assert np.array_equal(mine, batch(stores, alone, len(mine), 0))


def test_rows_and_batch_size_cut_one_stream(named, stores):
    spec = mixed(named, large=0.5, little=0.5)
    whole = batch(stores, spec, 96, 50)  # across the end of the first period
    assert np.array_equal(whole, np.concatenate([batch(stores, spec, 48, step) for step in (100, 101)]))
    assert np.array_equal(whole[32:80], batch(stores, spec, 96, 50, slice(32, 80)))
    assert not np.array_equal(whole, batch(stores, dataclasses.replace(spec, seed=1), 96, 50))


@pytest.mark.parametrize("rows", [64, PERIOD - 64, PERIOD, 3 * PERIOD + 640])
def test_usage_is_what_was_read(named, stores, rows):
    spec = mixed(named, large=0.6, middle=0.3, little=0.1)
    owners = collections.Counter(owner_of(named, stream(stores, spec, rows)))
    found = {part.store: part for part in usage(stores, spec, rows * L)}
    for name, store in named.items():
        n, part = num_windows(store, "train", L), found[store.content_id]
        assert part.tokens == owners[name] * L
        assert part.unique_tokens == min(owners[name], n) * L
        assert part.epochs == owners[name] / n
    assert sum(part.tokens for part in found.values()) == rows * L
    assert unique_tokens(stores, spec, rows * L) == sum(part.unique_tokens for part in found.values())
    assert epochs(stores, spec, rows * L) == max(part.epochs for part in found.values())


def test_unique_tokens_are_the_different_windows_read(named, stores):
    spec = mixed(named, large=0.5, little=0.5)
    rows = stream(stores, spec, 512)
    different = {row.tobytes() for row in rows}
    assert unique_tokens(stores, spec, 512 * L) == len(different) * L


def test_a_mixture_has_one_form(named):
    spec = mixed(named, large=0.8, middle=0.2)
    assert spec == mixed(named, middle=1, large=4)
    assert spec == mixed(named, middle=0.2, large=0.8, little=0.0)
    assert mixed(named, large=3.0) == DataSpec(named["large"].content_id, L, 4)
    assert mixed(named, middle=3.0).mixture == (Component(named["middle"].content_id, 1.0),)


def test_the_form_of_a_mixture_survives_its_own_text():
    """Else a sweep that is started again would not know its own runs. Weights that are no binary fractions, in any
    order."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        count = int(rng.integers(2, 7))
        weights = rng.integers(1, 20, count) / 20
        weights = weights / rng.choice([1.0, weights.sum()])
        stores = [f"{number:016x}" for number in rng.permutation(count)]
        parts = [Component(store, float(weight)) for store, weight in zip(stores, weights, strict=True)]
        spec = DataSpec("m", L, 4, mixture=tuple(parts))
        assert DataSpec("m", L, 4, mixture=spec.mixture) == spec
        assert DataSpec("m", L, 4, mixture=tuple(reversed(parts))) == spec
        assert sum(part.weight for part in spec.mixture) == pytest.approx(1)


def test_what_is_no_mixture_is_refused(named):
    large = named["large"].content_id
    for parts, message in (
        ([(large, 0.0), ("other", 0.0)], "the weights sum to nothing"),
        ([(large, -1.0)], "weight=-1.0 is negative"),
        ([(large, 1.0), (large, 2.0)], "has a store twice"),
    ):
        with pytest.raises(InputError, match=message):
            DataSpec(large, L, 4, mixture=tuple(Component(*part) for part in parts))


def test_a_share_of_less_than_a_row_is_refused(named, stores):
    with pytest.raises(InputError, match=r"a share of 0\.0001 \(the least is 1/4096\)"):
        batch(stores, mixed(named, large=0.9999, middle=0.0001), 4, 0)


GOLDEN_DEAL = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0]


def test_golden_deal():
    """A change here changes the data of every run on a mixture. Do not."""
    component_S, rank_S = batches._dealt(0, (Component("a", 0.75), Component("b", 0.25)), 1)
    assert component_S[:24].tolist() == GOLDEN_DEAL
    assert rank_S[:6].tolist() == [sum(component_S[:k] == component_S[k]) for k in range(6)]


def test_evaluation_sets_are_those_of_their_stores(named, stores):
    sets = tuple(EvalSet(name, named[name].content_id) for name in ("middle", "little"))
    spec = DataSpec(named["large"].content_id, L, 4, validation=sets)
    found = eval_windows(stores, spec)
    assert list(found) == ["validation", "middle", "little"]
    for name, store in (("validation", "large"), ("middle", "middle"), ("little", "little")):
        alone = DataSpec(named[store].content_id, L, 4)
        assert np.array_equal(found[name], eval_windows(stores, alone)["validation"])


def test_an_evaluation_set_that_is_too_small_names_its_store(named, stores):
    spec = DataSpec(named["large"].content_id, L, 100, validation=(EvalSet("small", named["little"].content_id),))
    with pytest.raises(
        InputError, match=r"store-little: data\.eval_windows=100, but the validation split has \d+ wind"
    ):
        eval_windows(stores, spec)


@pytest.mark.parametrize("name", ["validation", "a b", "", "1st"])
def test_a_name_that_cannot_be_a_column_is_refused(name):
    with pytest.raises(InputError, match="cannot name an evaluation set"):
        EvalSet(name, "s")
