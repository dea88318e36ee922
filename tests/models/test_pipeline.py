import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding

from scaling.errors import InputError
from scaling.models.axes import Layout, constrain, spec
from scaling.models.pipeline import pipeline, tied
from scaling.runs import MESH_AXES

pytestmark = pytest.mark.usefixtures("quick_compilation")

N, B, L, D, F = 8, 8, 6, 12, 20  # sizes by which the shape of an array says what it is
PARAM_AXES = {"up": ("layers", "embed", "mlp"), "down": ("layers", "mlp", "embed")}
# fp32 sums of a few hundred terms in another order, through eight layers: far below this unless a term is missing.
SUMMED = 1e-5


def make_mesh(**sizes):
    shape = [sizes.get(axis, 1) for axis in MESH_AXES]
    devices = np.asarray(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def inputs(dtype=np.float32):
    """fp32 parameters, and x in the type of the computation."""
    rng = np.random.default_rng(0)
    up_NxDxF, down_NxFxD, x_BxLxD = (rng.standard_normal(s) for s in ((N, D, F), (N, F, D), (B, L, D)))
    params_N = {"up": up_NxDxF / D**0.5, "down": down_NxFxD / F**0.5}
    return jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params_N), jnp.asarray(x_BxLxD, dtype)


def layer_of(layout, kernel=jax.nn.gelu):
    """A residual layer, laid out as a block of the model is, which is singular at zero: its norm has no epsilon."""
    turn_Lx1 = jnp.cos(jnp.arange(L))[:, None]  # an array from outside of the pipeline, as rotary tables are

    def layer(params, x_bxLxD):
        up_DxF = constrain(layout, params["up"].astype(x_bxLxD.dtype), None, "mlp")
        down_FxD = constrain(layout, params["down"].astype(x_bxLxD.dtype), "mlp", None)
        norm_bxLx1 = jax.lax.rsqrt(jnp.mean(jnp.square(x_bxLxD), axis=-1, keepdims=True))
        h_bxLxD = x_bxLxD * norm_bxLx1 * turn_Lx1.astype(x_bxLxD.dtype)
        h_bxLxF = kernel(constrain(layout, h_bxLxD @ up_DxF, "batch", "length", "mlp"))
        stats = {"square": jnp.sum(jnp.mean(jnp.square(h_bxLxF.astype(jnp.float32)), axis=(1, 2)))}
        return constrain(layout, x_bxLxD + h_bxLxF @ down_FxD, "batch", "residual", None), stats

    return layer


def with_gradient(run, shardings=None):
    """((value, (y, stats)), gradients) of something in which every entry of y and of the stats counts."""

    def loss(params_N, x_BxLxD):
        y_BxLxD, stats_N = run(params_N, x_BxLxD)
        value = jnp.mean(jnp.cos(y_BxLxD.astype(jnp.float32))) + jnp.mean(jnp.arange(1.0, N + 1) * stats_N["square"])
        return value, (y_BxLxD, stats_N)

    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    return jax.jit(gradient, out_shardings=(None, shardings))


@functools.cache
def expected(dtype=np.float32, kernel=jax.nn.gelu):
    """What the scan over all layers computes on one device."""

    def run(params_N, x_BxLxD):
        layer = layer_of(None, kernel)
        return jax.lax.scan(lambda x, params: layer(params, x), x_BxLxD, params_N)

    return with_gradient(run)(*inputs(dtype))


def piped(stages, microbatches, wrapped=lambda layer: layer, dtype=np.float32, kernel=jax.nn.gelu, **sizes):
    """The compiled pipeline, and its arguments as they are laid out."""
    mesh, layout = make_mesh(stage=stages, **sizes), Layout()

    def run(params_N, x_BxLxD):
        return pipeline(wrapped(layer_of(layout, kernel)), params_N, x_BxLxD, stages, microbatches, layout)

    params_N, x_BxLxD = inputs(dtype)
    params_N = {name: jax.device_put(p, NamedSharding(mesh, spec(PARAM_AXES[name]))) for name, p in params_N.items()}
    x_BxLxD = jax.device_put(x_BxLxD, NamedSharding(mesh, spec(("batch", "residual", None))))
    arguments = params_N, x_BxLxD
    with jax.set_mesh(mesh):
        program = with_gradient(run, jax.tree.map(lambda t: t.sharding, arguments))
        return program.lower(*arguments).compile(), arguments


def errors(found, reference):
    """Of each leaf: the norm of the difference, relative to that of the leaf."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(reference), jax.tree.leaves(found), strict=True)
    pairs = [(jax.tree_util.keystr(path), *np.asarray([right, leaf], np.float64)) for (path, right), leaf in pairs]
    return {name: np.linalg.norm(leaf - right) / np.linalg.norm(right) for name, right, leaf in pairs}


def assert_near(found, reference):
    assert all(error < SUMMED for error in errors(found, reference).values()), errors(found, reference)


def remat(layer):
    return jax.checkpoint(tied(layer), prevent_cse=False)


@pytest.mark.parametrize("microbatches", [1, 2, 4])
@pytest.mark.parametrize("stages", [2, 4, 8])
def test_it_equals_the_scan_over_layers(stages, microbatches):
    """Idle steps too are in the gradient, with weight zero: at zeros, this layer would make that no number."""
    program, arguments = piped(stages, microbatches)
    assert_near(program(*arguments), expected())


@pytest.mark.parametrize("wrapped", [lambda layer: layer, remat], ids=["kept", "remat"])
@pytest.mark.parametrize("axis", ["data", "fsdp", "context", "tensor"])
def test_the_layer_uses_the_other_axes(axis, wrapped):
    program, arguments = piped(4, 2, wrapped, **{axis: 2})
    assert_near(program(*arguments), expected())


def centred(h_bxLxF):
    return h_bxLxF - jnp.mean(h_bxLxF, axis=-1, keepdims=True)


def centred_by_parts(h_bxLxF):
    """The same, mapped over the axes that are left as the attention kernels are."""
    mesh, over = jax.sharding.get_abstract_mesh(), spec(("batch", "length", "mlp"))

    def here(h_bxLxf):
        return h_bxLxf - jax.lax.psum(jnp.sum(h_bxLxf, axis=-1, keepdims=True), "tensor") / F

    axes = set(mesh.axis_names) - set(mesh.manual_axes)
    return jax.shard_map(here, in_specs=over, out_specs=over, axis_names=axes, check_vma=False)(h_bxLxF)


def test_a_kernel_of_each_device_goes_inside():
    program, arguments = piped(4, 2, kernel=centred_by_parts, tensor=2)
    assert_near(program(*arguments), expected(kernel=centred))


def test_in_bf16():
    """It compiles, which it would not with an all-reduce of bf16 among the sends, and differs from the scan in bf16 by
    less than that does from fp32: by rounding alone."""
    program, arguments = piped(4, 4, remat, dtype=jnp.bfloat16, data=2)
    found, scanned = program(*arguments), expected(jnp.bfloat16)
    rounding = errors(scanned, expected())
    assert max(rounding.values()) < 0.05  # ten times 2^-8 for eight layers: the scan itself is no nonsense
    assert all(error < rounding[name] for name, error in errors(found, scanned).items())


def collectives(text):
    """(kind, the shapes that come out) of every collective of a compiled program."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    return [
        (kind, re.findall(r"\w+\[[\d,]*\]", types))
        for types, kind in re.findall(rf"= (.+?) ({kinds})(?:-start)?\(", text)
    ]


def test_only_microbatches_are_sent():
    """Forwards and back; and the result once, and the gradient of the input. No row moves between devices."""
    sent = collectives(piped(4, 2, data=2)[0].as_text())
    of = {kind: [shape for each, shapes in sent if each == kind for shape in shapes] for kind, _ in sent}
    assert set(of) == {"collective-permute", "all-reduce"}
    assert of["collective-permute"] == [f"f32[{B // 2 // 2},{L},{D}]"] * 2
    assert sum(shape == f"f32[2,{B // 2 // 2},{L},{D}]" for shape in of["all-reduce"]) == 2


@pytest.mark.parametrize("wrapped", [lambda layer: layer, remat], ids=["kept", "remat"])
def test_a_stage_holds_its_own_parameters_once(wrapped):
    text = piped(4, 2, wrapped, dtype=jnp.bfloat16)[0].as_text()
    n, T = N // 4, 2 + 4 - 1
    assert f"f32[{n},{D},{F}]" in text
    for matrix in (f"{D},{F}]", f"{F},{D}]"):
        assert f"[{N},{matrix}" not in text  # no stage has those of another
        assert f"[{T},{n},{matrix}" not in text  # no copy for each step


def test_weights_are_gathered_layer_by_layer():
    text = piped(4, 2, remat, dtype=jnp.bfloat16, fsdp=2)[0].as_text()
    n = N // 4
    assert f"[{n},{D // 2},{F}]" in text
    assert f"[{n},{D},{F}]" not in text
    assert f"[{n},{F},{D}]" not in text
    gathered = {shape for kind, shapes in collectives(text) if kind == "all-gather" for shape in shapes}
    assert {re.sub(r"^\w+|\b1,", "", shape) for shape in gathered} == {f"[{D},{F}]", f"[{F},{D}]"}


@pytest.mark.parametrize(("stages", "microbatches"), [(3, 2), (2, 3)])
def test_what_does_not_divide_is_refused(stages, microbatches):
    with pytest.raises(InputError, match=r"^3 .* do not divide 8 "):
        pipeline(layer_of(None), *inputs(), stages, microbatches, Layout())
