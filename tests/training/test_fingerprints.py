"""Checksums of arrays: by another way to compute them, over shardings, and what they see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scaling.training.fingerprints import GOLDEN, _on, fingerprints, mix, positions
from scaling.training.step import State

pytestmark = pytest.mark.usefixtures("quick_compilation")
WORD = 2**32


def of(x):
    (found,) = fingerprints({"x": x}).values()
    return found


def mixed(x):
    """MurmurHash3's finaliser, by Python's own integers."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ x >> shift) * factor % WORD
    return x ^ x >> 16


def by_hand(words):
    """The checksum of an array of words, element by element."""
    s = r = 0
    for place, word in np.ndenumerate(words):
        p = GOLDEN
        for index in place:
            p = (p + index) * GOLDEN % WORD
            p ^= p >> 15
        t = mixed(int(word) ^ p)
        s, r = (s + t) % WORD, (r + t * (2 * p + 1)) % WORD
    return f"{s:08x}{r:08x}"


def unmixed(x):
    """Undoes `mix`."""
    x ^= x >> 16
    x = x * pow(0xC2B2AE35, -1, WORD) % WORD
    x ^= x >> 13 ^ x >> 26
    x = x * pow(0x85EBCA6B, -1, WORD) % WORD
    return x ^ x >> 16


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


def test_by_hand(rng):
    words = rng.integers(0, WORD, (3, 4, 5), dtype=np.uint32)
    assert of(jnp.asarray(words)) == by_hand(words)
    assert of(jnp.asarray(words.view(np.float32))) == by_hand(words)  # NaNs and denormal numbers among them
    assert of(jnp.asarray(words.view(np.int32))) == by_hand(words)
    short = rng.integers(0, 2**16, (7,), dtype=np.uint16)
    assert of(jax.lax.bitcast_convert_type(jnp.asarray(short), jnp.bfloat16)) == by_hand(short)
    assert of(jnp.asarray([True, False, True])) == by_hand([1, 0, 1])
    assert of(jnp.float32(1.5)) == by_hand(np.uint32(0x3FC00000))
    assert of(jnp.zeros((3, 0, 2))) == "0" * 16
    key = jax.random.key(7)
    assert of(key) == by_hand(np.asarray(jax.random.key_data(key)))


def test_the_same_on_every_version():
    """Of JAX too: a checkpoint may be read by a later one. These were taken with 0.10.2 and 0.12.0."""
    assert of(np.arange(1000, dtype=np.float32).reshape(10, 100) / np.float32(7)) == "b7886c068eb9bc98"
    assert of(np.arange(-5, 5, dtype=np.int32)) == "d09a5bf96efe5cb1"


def test_names_are_paths_and_a_part_has_the_names_of_the_whole():
    state = State({"head": jnp.ones((2, 3)), "blocks": {"w": jnp.zeros(4)}}, ({"mu": jnp.ones(2)}, jnp.int32(3)))
    whole = fingerprints(state)
    assert list(whole) == [".params['blocks']['w']", ".params['head']", ".optimizer[0]['mu']", ".optimizer[1]"]
    part = fingerprints(state.params, ".params")
    assert part == {name: found for name, found in whole.items() if name.startswith(".params")}


def test_any_mesh_and_sharding_give_the_same(rng):
    x = rng.standard_normal((8, 16, 24)).astype(np.float32)
    expected = of(x)
    devices = np.array(jax.devices())
    assert len(devices) == 8
    for shape, names in (((8,), ("a",)), ((2, 4), ("a", "b")), ((4, 2), ("a", "b")), ((1,), ("a",))):
        mesh = Mesh(devices[: np.prod(shape)].reshape(shape), names)
        specs = [(), ("a",), (None, "a"), (None, None, "a")]
        specs += [("a", "b"), (("a", "b"),), (None, "b", "a")] if len(shape) == 2 else []
        for spec in specs:
            assert of(jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))) == expected, (shape, spec)


def test_no_array_leaves_its_shards():
    """On eight devices, each sums its own: nothing but the sums is sent, and no more memory taken than a shard has."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
    rows = NamedSharding(mesh, PartitionSpec(None, "a", "b"))
    shape = jax.ShapeDtypeStruct((4, 256, 512), jnp.float32, sharding=rows)
    compiled = _on(mesh).lower(shape).compile()
    assert "all-reduce" in compiled.as_text()
    for sent in ("all-gather", "all-to-all", "collective-permute"):
        assert sent not in compiled.as_text()
    shard = 4 * 256 * 512 * 4 // 8
    assert compiled.memory_analysis().temp_size_in_bytes <= shard + 16_384  # what each of a few small buffers takes


def test_mix_is_a_bijection(rng):
    """Which the proof in the module needs: it can be undone."""
    words = np.concatenate([rng.integers(0, WORD, 1000, dtype=np.uint32), np.uint32([0, 1, WORD - 1])])
    assert [unmixed(int(word)) for word in mix(jnp.asarray(words))] == words.tolist()
    assert [mixed(int(word)) for word in words] == np.asarray(mix(jnp.asarray(words))).tolist()


def test_positions_along_an_axis_share_no_hash():
    for shape in ((100_000,), (3, 30_000), (30_000, 3)):
        p = np.asarray(positions(shape))
        assert p.shape == shape
        for axis in range(len(shape)):
            lines = np.moveaxis(p, axis, 0).reshape(shape[axis], -1)
            assert all(len(np.unique(line)) == len(line) for line in lines.T[:3])


def test_every_flipped_bit_is_seen(rng):
    """Each of the 32 of each of some elements, in both sums."""
    words = rng.integers(0, WORD, (6, 5), dtype=np.uint32)
    before = of(jnp.asarray(words))
    for place in ((0, 0), (3, 2), (5, 4)):
        for bit in range(32):
            other = words.copy()
            other[place] ^= np.uint32(1 << bit)
            after = of(jnp.asarray(other))
            assert after[:8] != before[:8]
            assert after[8:] != before[8:]


def test_what_changes_in_many_places_is_seen(rng):
    """Of many damages of each kind: a miss would have a chance of 2^-63. A sum of weighted bits would miss signs."""
    x = rng.standard_normal((64, 32)).astype(np.float32)
    seen = {of(jnp.asarray(x))}
    damages = [
        -x,
        x.T.reshape(64, 32),
        np.roll(x, 1),
        np.roll(x, 1, axis=0),
        np.roll(x, 1, axis=1),
        x[::-1],
        x[:, ::-1],
    ]
    for _ in range(40):
        i, j = rng.choice(64, 2, replace=False)
        k, m = rng.choice(32, 2, replace=False)
        swapped_rows, swapped, signs, zeroed = (x.copy() for _ in range(4))
        swapped_rows[[i, j]] = x[[j, i]]
        swapped[i, k], swapped[j, m] = x[j, m], x[i, k]
        signs[i, k], signs[j, m] = -x[i, k], -x[j, m]
        zeroed[i, k:] = 0
        damages += [swapped_rows, swapped, signs, zeroed]
    for damage in damages:
        seen.add(of(jnp.asarray(damage)))
    assert len(seen) == len({damage.tobytes() for damage in [*damages, x]})
