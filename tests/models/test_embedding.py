import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.models.axes import Layout, constrain, spec
from scaling.models.embedding import look_up
from scaling.parallel.mesh import make_mesh
from scaling.runs import Placement

pytestmark = pytest.mark.usefixtures("quick_compilation")

B, L, D, V = 8, 24, 40, 64  # sizes by which a shape says what it is
PLACEMENTS = {
    "data x fsdp x tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "context": {"context": 8},
    "words over tensor x stage": {"tensor": 2, "stage": 2, "context": 2},
    "expert x stage": {"expert": 4, "stage": 2},
    "fsdp x tensor": {"fsdp": 4, "tensor": 2},
}
# fp32 sums of at most some ten terms in another order.
SUMMED = 1e-6


@functools.cache
def arrays():
    """A table, tokens of which one is frequent, and the direction along which the rows are differentiated."""
    rng = np.random.default_rng(0)
    tokens_BxL = rng.integers(V, size=(B, L)).astype(np.int32)
    tokens_BxL[rng.random((B, L)) < 0.3] = 7
    return rng.standard_normal((V, D)).astype(np.float32), tokens_BxL, rng.standard_normal((B, L, D)).astype(np.float32)


def rows_and_gradient(layout, table_VxD, tokens_BxL, along_BxLxD):
    def both(table_VxD, tokens_BxL, along_BxLxD):
        tokens_BxL = constrain(layout, tokens_BxL, "batch", "length")
        x_BxLxD, back = jax.vjp(lambda table_VxD: look_up(table_VxD, tokens_BxL, layout), table_VxD)
        return x_BxLxD, back(along_BxLxD)[0]

    return jax.jit(both)(table_VxD, tokens_BxL, along_BxLxD)


def check(x_BxLxD, gradient_VxD):
    table_VxD, tokens_BxL, along_BxLxD = arrays()
    expected_VxD = np.zeros((V, D))
    np.add.at(expected_VxD, tokens_BxL, along_BxLxD)
    assert np.array_equal(x_BxLxD, table_VxD[tokens_BxL])
    np.testing.assert_allclose(gradient_VxD, expected_VxD, rtol=0, atol=SUMMED * np.abs(expected_VxD).max())
    assert not np.any(gradient_VxD[np.setdiff1d(np.arange(V), tokens_BxL)])


def test_rows_are_exact_and_their_gradients_are_sums_over_tokens():
    check(*rows_and_gradient(None, *arrays()))


@pytest.mark.parametrize("name", PLACEMENTS)
def test_any_mesh_gives_what_one_device_gives(name):
    placement = Placement(**PLACEMENTS[name])
    with jax.set_mesh(make_mesh(placement)):
        x_BxLxD, gradient_VxD = rows_and_gradient(Layout(context=placement.context), *arrays())
    stream = jax.sharding.NamedSharding(make_mesh(placement), spec(("batch", "residual", None)))
    assert x_BxLxD.sharding.is_equivalent_to(stream, 3)
    check(x_BxLxD, gradient_VxD)


@pytest.mark.parametrize("axes", [{}, {"tensor": 2, "stage": 2, "fsdp": 2}], ids=["one device", "mesh"])
def test_a_frequent_token_keeps_its_gradient_in_bf16(axes):
    """2048 times the same token, each with a gradient of 1: in bf16 257 is no number, and a sum would stay at 256."""
    tokens_BxL, ones_BxLxD = np.full((B, 256), 7, np.int32), jnp.ones((B, 256, D), jnp.bfloat16)
    placement = Placement(**axes)
    with jax.set_mesh(make_mesh(placement)):
        table_VxD = jnp.zeros((V, D), jnp.bfloat16)
        _, gradient_VxD = rows_and_gradient(Layout() if axes else None, table_VxD, tokens_BxL, ones_BxLxD)
    assert gradient_VxD.dtype == jnp.bfloat16
    assert np.array_equal(gradient_VxD, 2048 * (np.arange(V) == 7)[:, None] * np.ones((V, D)))


def compiled(rows):
    """The text of the program for one device that makes the gradient of a table from `rows(table, tokens)`."""
    table_VxD, tokens_BxL, along_BxLxD = arrays()

    def gradient(table_VxD, tokens_BxL, along_BxLxD):
        gradient_VxD = jax.vjp(lambda table_VxD: rows(table_VxD, tokens_BxL), table_VxD)[1](along_BxLxD)[0]
        return constrain(Layout(), gradient_VxD, "vocab", "embed")

    mesh = make_mesh(Placement(data=2, fsdp=2, tensor=2))
    axes = ("vocab", "embed"), ("batch", "length"), ("batch", "residual", None)
    shardings = tuple(jax.sharding.NamedSharding(mesh, spec(of)) for of in axes)
    with jax.set_mesh(mesh):
        return jax.jit(gradient, in_shardings=shardings).lower(table_VxD, tokens_BxL, along_BxLxD).compile().as_text()


def test_no_device_has_the_gradient_of_all_words():
    """That of its own words, made of its own tokens, is summed straight into the part that it keeps. The partitioner
    alone would make the whole table's on each device."""
    text = compiled(lambda table_VxD, tokens_BxL: look_up(table_VxD, tokens_BxL, Layout()))
    assert f"f32[{V},{D}]" not in text
    assert not re.search(rf"s32\[({B},{L}|{B * L})[,\]]| sort\(", text)  # the tokens of all, or their order
    assert len(re.findall(rf"= f32\[{V // 2},{D // 2}\]\S* reduce-scatter\(", text)) == 1
    assert f"f32[{V},{D}]" in compiled(lambda table_VxD, tokens_BxL: jnp.take(table_VxD, tokens_BxL, axis=0))
