import dataclasses
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.models.attention import (
    attention,
    balanced_order,
    natural_order,
    rotary_tables,
)
from scaling.models.axes import Layout
from scaling.models.kernels import choose_attention
from scaling.parallel.mesh import make_mesh
from scaling.runs import ModelShape, Placement

pytestmark = pytest.mark.usefixtures("quick_compilation")

# fp32 sums of at most some hundred terms in another order: relative errors of some ten units of 6e-8.
SUMMED = 2e-6


@functools.cache
def arrays(B=2, L=32, H=4, G=2, K=8):
    """Queries, keys, values, and the direction along which the output is differentiated."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((B, L, heads, K)).astype(np.float32) for heads in (H, G, G, H)]


def in_float64(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, along_BxLxHxK):
    """Attention head by head, and its gradients against `along`, in natural order."""
    q, k, v, along = (np.asarray(t, np.float64) for t in (q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, along_BxLxHxK))
    (B, L, H, K), G = q.shape, k.shape[2]
    o, q_grad, k_grad, v_grad = np.zeros(q.shape), np.zeros(q.shape), np.zeros(k.shape), np.zeros(k.shape)
    for b, h in np.ndindex(B, H):
        g = h // (H // G)
        scores_LxL = np.where(np.tri(L, dtype=bool), q[b, :, h] @ k[b, :, g].T / np.sqrt(K), -np.inf)
        p_LxL = np.exp(scores_LxL - scores_LxL.max(axis=1, keepdims=True))
        p_LxL /= p_LxL.sum(axis=1, keepdims=True)
        o[b, :, h] = p_LxL @ v[b, :, g]
        p_grad_LxL = along[b, :, h] @ v[b, :, g].T
        s_grad_LxL = p_LxL * (p_grad_LxL - (p_grad_LxL * p_LxL).sum(axis=1, keepdims=True)) / np.sqrt(K)
        q_grad[b, :, h] = s_grad_LxL @ k[b, :, g]
        k_grad[b, :, g] += s_grad_LxL.T @ q[b, :, h]
        v_grad[b, :, g] += p_LxL.T @ along[b, :, h]
    return o, q_grad, k_grad, v_grad


def computed(kernel, layout, q, k, v, along, within=lambda f: f):
    """The output and the gradients, in natural order, of arrays that are given in natural order."""
    f = within(lambda q, k, v: attention(q, k, v, kernel, layout))
    order = balanced_order(q.shape[1], layout.context if layout else 1)
    back_to_natural = np.argsort(order)

    def both(q, k, v, along):
        o, back = jax.vjp(f, q, k, v)
        return o, *back(along)

    return [t[:, back_to_natural] for t in jax.jit(both)(*(t[:, order] for t in (q, k, v, along)))]


def check(results, tensors):
    for got, expected in zip(results, in_float64(*tensors), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=SUMMED * np.abs(expected).max())


@pytest.mark.parametrize("G", [1, 2, 4])
def test_plain_is_the_softmax_in_float64(G):
    check(computed("plain", None, *arrays(G=G)), arrays(G=G))


def test_rotary_tables_know_positions_and_not_places():
    natural, balanced = (rotary_tables(balanced_order(32, parts), 8, 1e4) for parts in (1, 4))
    for table_LxK, expected_LxK in zip(balanced, natural, strict=True):
        assert np.array_equal(table_LxK, expected_LxK[balanced_order(32, 4)])


@pytest.mark.parametrize(("length", "parts"), [(32, 1), (32, 2), (48, 3), (64, 8), (16, 8)])
def test_balanced_order_is_a_permutation_with_equal_work_in_each_part(length, parts):
    order = balanced_order(length, parts)
    assert sorted(order) == list(range(length))
    pairs = (order + 1).reshape(parts, -1).sum(axis=1)  # position i looks at i + 1 positions
    assert len(set(pairs)) == 1
    x_BxLxGxK = arrays(L=length)[1]
    assert np.array_equal(natural_order(x_BxLxGxK[:, order], parts), x_BxLxGxK)


def test_balanced_order_of_a_length_that_does_not_fit():
    with pytest.raises(ValueError, match="reshape"):
        balanced_order(12, 4)


PLACEMENTS = {
    "context": {"context": 8},
    "data x context": {"data": 2, "context": 4},
    "tensor x context": {"tensor": 2, "context": 4},
    "data x fsdp x tensor": {"data": 2, "fsdp": 2, "tensor": 2},
}


@pytest.mark.parametrize("name", PLACEMENTS)
def test_plain_on_any_mesh_gives_what_one_device_gives(name):
    tensors, placement = arrays(B=4), Placement(**PLACEMENTS[name])
    with jax.set_mesh(make_mesh(placement)):
        check(computed("plain", Layout(context=placement.context), *tensors), tensors)


@pytest.fixture
def interpreted(monkeypatch):
    """Runs the TPU's kernel on a CPU, by its own interpreter."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    make = functools.partial(splash_attention_kernel.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mha", make)


@pytest.mark.parametrize(("H", "G"), [(2, 2), (4, 2), (2, 1)])
def test_splash_is_the_softmax_in_float64(H, G, interpreted):
    tensors = arrays(B=1, L=256, H=H, G=G)
    check(computed("splash", None, *tensors), tensors)


@pytest.mark.parametrize("placement", [{"context": 2, "tensor": 2, "data": 2}, {"context": 4, "fsdp": 2}])
def test_splash_on_parts_of_sequences_gives_what_one_device_gives(placement, interpreted):
    """Blocks of 128 positions, in chunks of 128 and of 64: such as the mask cuts, fills and leaves empty."""
    tensors = arrays(B=2, L=512, H=4, G=2)
    with jax.set_mesh(make_mesh(Placement(**placement))):
        check(computed("splash", Layout(context=placement["context"]), *tensors), tensors)


@pytest.mark.parametrize("kernel", ["plain", "splash"])
def test_within_a_pipeline(kernel, interpreted):
    """The code around it is then already on each device's own part of the axis `stage`."""

    def pipelined(f):
        def of_the_last_stage(*qkv):
            return jax.lax.psum(jnp.where(jax.lax.axis_index("stage") == 1, f(*qkv), 0), "stage")

        return jax.shard_map(
            of_the_last_stage, in_specs=jax.P(), out_specs=jax.P(), axis_names={"stage"}, check_vma=False
        )

    tensors = arrays(B=2, L=256, H=2, G=2)
    with jax.set_mesh(make_mesh(Placement(stage=2, data=2, tensor=2))):
        check(computed(kernel, Layout(stages=2), *tensors, pipelined), tensors)


SMALL = ModelShape(d_model=512, n_layers=2, n_heads=8, d_ff=32, vocab_size=64)


@pytest.mark.parametrize(
    ("kernel", "platform", "changes"),
    [
        ("splash", "tpu", {}),
        ("splash", "tpu", {"precision": "fp32", "context": 16}),
        ("plain", "tpu", {"context": 32}),
        ("plain", "tpu", {"length": 2000}),
        ("plain", "tpu", {"kernels": "plain"}),
        ("cudnn", "gpu", {}),
        ("plain", "gpu", {"precision": "fp32"}),
        ("plain", "gpu", {"context": 2}),
        ("plain", "gpu", {"shape": dataclasses.replace(SMALL, d_head=136)}),
        ("plain", "gpu", {"shape": dataclasses.replace(SMALL, d_head=60)}),
        ("blocks", "cpu", {}),
        ("blocks", "cpu", {"length": 2001, "precision": "fp32"}),
        ("plain", "cpu", {"context": 2}),
        ("plain", "cpu", {"kernels": "plain"}),
    ],
)
def test_the_kernel_is_the_platforms_own_where_it_can(kernel, platform, changes):
    given = {"kernels": "auto", "shape": SMALL, "length": 2048, "precision": "bf16", "context": 1, **changes}
    assert choose_attention(platform=platform, **given) == kernel


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="no attention kernel 'fast'"):
        attention(*arrays()[:3], "fast", None)
    with pytest.raises(ValueError, match="cudnn kernel has no mask"):
        attention(*arrays()[:3], "cudnn", Layout(context=2))
    with pytest.raises(ValueError, match="takes whole sequences"):
        attention(*arrays()[:3], "blocks", Layout(context=2))


COMPILED = """
import jax, jax.numpy as jnp
from scaling.models.attention import attention
from scaling.models.axes import Layout, spec
from scaling.parallel.absent import absent_devices, collectives_of
from scaling.parallel.mesh import make_mesh
from scaling.parallel.topology import parse_topology
from scaling.runs import Placement

AXES = ("batch", "length", "heads", None)

def compiled(kernel, topology, placement, dtype, L, H, G, K):
    layout = Layout(context=placement.context)
    def loss(q, k, v):  # the output of attention is all that is kept
        policy = jax.checkpoint_policies.save_only_these_names("attention")
        o = jax.checkpoint(attention, static_argnums=(3, 4), policy=policy)(q, k, v, kernel, layout)
        return jnp.sum(o.astype(jnp.float32) ** 2)
    mesh = make_mesh(placement, absent_devices(parse_topology(topology)))
    sharding = jax.sharding.NamedSharding(mesh, spec(AXES))
    arrays = [jax.ShapeDtypeStruct((16, L, heads, K), dtype, sharding=sharding) for heads in (H, G, G)]
    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays).compile().as_text()

def check(kernels, collectives, *of):
    text = compiled(*of)
    counts = {name: text.count(name) for name in kernels}
    assert counts == kernels, (of, counts)
    assert set(collectives_of(text)) == collectives, (of, collectives_of(text))
"""
SPLASH = """
kernels = {"tpu_custom_call": 3}  # forward once, and the two of the backward
check(kernels, set(), "splash", "v5e:4x4", Placement(data=2, fsdp=2, tensor=4), jnp.bfloat16, 2048, 8, 4, 128)
check(kernels, set(), "splash", "v5e:4x4", Placement(fsdp=16), jnp.float32, 384, 4, 1, 80)
gathered = {"all-gather", "reduce-scatter"}  # the gradients of keys and values are never whole
check(kernels, gathered, "splash", "v5e:4x4", Placement(fsdp=4, context=4), jnp.bfloat16, 4096, 4, 4, 64)
"""
CUDNN = """
kernels = {"__cudnn$fmhaSoftmaxBackward": 1}
check(kernels, set(), "cudnn", "h100:8", Placement(data=2, fsdp=2, tensor=2), jnp.bfloat16, 2048, 8, 4, 128)
check(kernels, set(), "cudnn", "h100:8", Placement(fsdp=8), jnp.bfloat16, 1000, 4, 1, 64)
"""


def run(program):
    absent = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    subprocess.run([sys.executable, "-c", COMPILED + program], check=True, env={**os.environ, **absent}, timeout=300)


@pytest.mark.slow
def test_splash_compiles_for_tpus():
    pytest.importorskip("libtpu", reason="needs XLA's compiler for TPUs")
    run(SPLASH)


@pytest.mark.slow
def test_cudnn_compiles_for_gpus():
    pytest.importorskip("nvidia.cudnn", reason="needs NVIDIA's cuDNN")
    pytest.importorskip("jax_cuda12_plugin", reason="needs XLA's compiler for GPUs")
    run(CUDNN)
