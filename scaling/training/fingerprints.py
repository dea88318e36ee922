"""A checksum of each array of a state, computed where the array is: on the devices, shard by shard. It has 64 bits.

Storage formats differ in what damage they notice, and none sees what went wrong before a byte reached it. So a state is
summed up before it is saved and again after it is restored, by its values alone: neither its sharding, nor the mesh,
nor the number of processes enters, and the arrays never pass through the host.

Of an array with 32-bit words b_i at positions i (shorter elements are widened, longer ones are two words), with a hash
p_i of each position, it is the pair

    t_i = mix(b_i xor p_i),    S = sum of t_i,    R = sum of t_i (2 p_i + 1),    all modulo 2^32.

Sums of integers modulo 2^32 are exact in any order, so any cut of an array gives the same.

One damaged element is always seen, however it is damaged. `mix` is a bijection of 32-bit words (its steps are: a
multiplication by an odd number and a xor with a right shift of itself, both of which can be undone), so for a given p_i
another b_i gives another t_i. That alone changes S; and as an odd number times a d that is not 0 modulo 2^32 is not 0,
it changes R too. For an element of two words the words are two positions, and a changed byte is in one of them.

Several damaged elements are missed by chance alone. A weighted sum of the bits themselves, the more usual checksum,
would not do: any weight must be odd for the argument above, and then two flipped sign bits add 2^31 (w_i + w_j) = 0, in
every such sum. After mix, the change of a t is as good as random, so S misses what is not seen otherwise once in 2^32;
what it misses because changes cancel, R weighs by where they are, and misses once in 2^31 of these. Elements that are
swapped, and blocks that are shifted, change t_i as any other values do, for p_i differs between positions that differ
along one axis. None of this withstands somebody who forges a state on purpose.

mix is the finaliser of MurmurHash3 (Appleby, public domain).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

GOLDEN = 0x9E3779B1  # odd, 2^32 over the golden ratio (Knuth, The Art of Computer Programming 3, section 6.4)


def fingerprints(tree: Any, prefix: str = "") -> dict[str, str]:
    """The checksum of each array of a tree, 16 hexadecimal digits, by its path in it: ".params['head']".

    prefix: where the tree is in a larger one, so that a part has the names it has there. All processes that hold a
    share of the arrays must call this together, and all get the same.
    """
    paths_and_leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    summed = jax.device_get([_on(_mesh(leaf))(leaf) for _, leaf in paths_and_leaves])
    names = [prefix + jax.tree_util.keystr(path) for path, _ in paths_and_leaves]
    return {name: f"{int(s):08x}{int(r):08x}" for name, (s, r) in zip(names, summed, strict=True)}


def _mesh(leaf: Any) -> Mesh | None:
    sharding = getattr(leaf, "sharding", None)
    return sharding.mesh if isinstance(sharding, NamedSharding) else None


@functools.lru_cache(maxsize=8)
def _on(mesh: Mesh | None) -> Any:
    """The checksum, compiled once for each kind of array. Every process of the mesh gets it."""
    return jax.jit(checksum, out_shardings=None if mesh is None else NamedSharding(mesh, PartitionSpec()))


def checksum(x: jax.Array) -> jax.Array:
    """The pair (S, R) of an array, uint32: see the module. Traceable."""
    words = _words(x)
    p = positions(words.shape)
    t = mix(words ^ p)
    return jnp.stack([jnp.sum(t, dtype=jnp.uint32), jnp.sum(t * (2 * p + 1), dtype=jnp.uint32)])


def _words(x: jax.Array) -> jax.Array:
    """The bits of each element as uint32; of one with 64 bits as two, along a last axis."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    bits = 8 * x.dtype.itemsize
    return jax.lax.bitcast_convert_type(x, f"uint{min(bits, 32)}").astype(jnp.uint32)


def positions(shape: tuple[int, ...]) -> jax.Array:
    """A hash of each position of an array, uint32.

    An index of each axis is taken in by a bijection of what was there, so positions that differ along one axis never
    share a hash. There is no linear index, which would come round in arrays of more than 2^32 elements.
    """
    # Of a scalar too, so that an array is never all there is at a position.
    p = jnp.full((1,) * len(shape), GOLDEN, jnp.uint32)
    for axis, size in enumerate(shape):
        across = [1] * len(shape)
        across[axis] = size
        p = (p + jax.lax.broadcasted_iota(jnp.uint32, across, axis)) * jnp.uint32(GOLDEN)
        p ^= p >> 15
    return p


def mix(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words in which every bit depends on every bit."""
    x ^= x >> 16
    x *= jnp.uint32(0x85EBCA6B)
    x ^= x >> 13
    x *= jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
