"""A run is the same on any mesh, and its arrays are really laid out over it. On eight fake devices."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from scaling.errors import InputError
from scaling.models import axes, module
from scaling.models.axes import RULES, spec
from scaling.models.transformer import abstract_params
from scaling.parallel.chips import peak_flops
from scaling.parallel.mesh import batch_sharding, make_mesh, shardings
from scaling.runs import MESH_AXES, DataSpec, ModelShape, OptimizerSpec, Placement, Run, ScheduleSpec
from scaling.training.step import State, make_program

pytestmark = pytest.mark.usefixtures("quick_compilation")

B, L = 8, 12  # no other dimension is 12, so that whatever has it, in compiled text, is an activation
SHAPE = ModelShape(d_model=32, n_layers=2, n_heads=4, d_ff=64, vocab_size=48, n_kv_heads=4, norm="layernorm")
# eps is large so that an update is a smooth function of the gradient: with Adam's usual one, an entry whose gradient
# is zero but for rounding would move by the whole learning rate, up or down.
OPTIMIZER = OptimizerSpec(peak_lr=0.01, eps=1e-3)
RUN = Run(SHAPE, DataSpec("store", L, 2), B, 10, OPTIMIZER, ScheduleSpec("cosine", 1), z_loss=1e-3)
STEPS = 3
MESHES = {
    "2 x 2 x 2": Placement(data=2, fsdp=2, tensor=2),
    "fsdp 2 x tensor 4, remat, chunks": Placement(fsdp=2, tensor=4, remat="full", loss_chunk=1),
    "data 2 x tensor 4, microbatches": Placement(data=2, tensor=4, microbatch=4),
}


def tokens_of(step):
    return np.random.default_rng(step).integers(SHAPE.vocab_size, size=(B, L + 1)).astype(np.int32)


def initial_state(program):
    """The same numbers for any mesh, laid out as the program says."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jax.device_put((0.3 * rng.standard_normal(x.shape)).astype(x.dtype), x.sharding),
        program.abstract_state.params,
    )
    zeros = jax.tree.map(
        lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), program.abstract_state.optimizer
    )
    return State(params, zeros)


def trained(placement):
    """Losses and gradient norms of three steps, the state after them, and window losses."""
    mesh = make_mesh(placement)
    program = make_program(RUN, placement, mesh)
    with jax.set_mesh(mesh):
        state, metrics = initial_state(program), []
        for k in range(STEPS):
            state, values = program.step(state, tokens_of(k), np.float32(0.01))
            metrics.append([float(values["loss"]), float(values["grad_norm"])])
        return np.array(metrics), state, program.window_losses(state.params, tokens_of(STEPS))


@pytest.fixture(scope="module")
def unsharded():
    return trained(Placement())


@pytest.mark.parametrize("placement", MESHES.values(), ids=MESHES)
def test_sharded_equals_unsharded(placement, unsharded):
    """Sums of some hundred fp32 terms in another order, three steps of them: 1e-5 of the largest entry."""
    metrics, state, losses_W = trained(placement)
    expected_metrics, expected_state, expected_losses_W = unsharded
    np.testing.assert_allclose(metrics, expected_metrics, rtol=1e-5)
    np.testing.assert_allclose(losses_W, expected_losses_W, rtol=1e-5)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(expected_state), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=0, atol=1e-5 * np.abs(y).max())
    assert metrics[0, 0] != metrics[-1, 0]


def test_the_initialisation_does_not_depend_on_the_mesh():
    """To the last bit but one: each entry is a function of its own counter (threefry is partitionable)."""
    states = []
    for placement in (Placement(), MESHES["2 x 2 x 2"]):
        mesh = make_mesh(placement)
        with jax.set_mesh(mesh):
            states.append(make_program(RUN, placement, mesh).init(jax.random.key(3)))
    for x, y in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=2.0**-22)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_parameters_and_optimizer_state_are_sharded_as_stored(zero):
    """Over fsdp 4 x tensor 2, each device holds its eighth of the moments of every matrix, and under ZeRO 3 of the
    matrix, else half of that; in the state that a step returns as well."""
    placement = Placement(fsdp=4, tensor=2, zero=zero)
    mesh = make_mesh(placement)
    program = make_program(RUN, placement, mesh)
    with jax.set_mesh(mesh):
        state, _ = program.step(initial_state(program), tokens_of(0), np.float32(0.01))
    boxed = abstract_params(SHAPE)
    adam = state.optimizer[1]
    for tree, shards in ((state.params, 8 if zero == 3 else 2), (adam.mu, 8), (adam.nu, 8)):
        for x, box in zip(
            jax.tree.leaves(tree), jax.tree.leaves(boxed, is_leaf=lambda b: hasattr(b, "names")), strict=True
        ):
            share = shards if len(set(box.names) - {"layers"}) > 1 else 1  # scales and biases are replicated
            assert x.addressable_shards[0].data.size * share == x.size, box.names


@pytest.mark.parametrize(("zero", "whole"), [(1, 2), (2, 1), (3, 0)])
def test_a_zero_stage_keeps_whole_what_it_says(zero, whole):
    """Of the two N x D x F that the compiled loops of forward, backward and accumulation carry, the parameters of all
    layers and their gradient: under ZeRO 1 a device has the whole of both, under 2 of the parameters, under 3 of none.
    """
    placement = Placement(fsdp=4, zero=zero, microbatch=4, remat="full")
    mesh = make_mesh(placement)
    program = make_program(RUN, placement, mesh)
    tokens_BxM, lr = jax.ShapeDtypeStruct((B, L + 1), np.int32), jax.ShapeDtypeStruct((), np.float32)
    with jax.set_mesh(mesh):
        text = program.step.lower(program.abstract_state, tokens_BxM, lr).compile().as_text()
    loops = [line.split(" while(")[0] for line in text.splitlines() if " while(" in line]
    assert max(carried.count("f32[2,32,64]") for carried in loops) == whole
    assert max(carried.count("f32[2,32,64]") + carried.count("f32[2,8,64]") for carried in loops) == 2


def fresh_program(mesh):
    """With nothing traced yet: a trace from under another mesh, or none, would be found again."""
    make_program.__globals__["_program"].cache_clear()
    program = make_program(RUN, Placement(data=2, fsdp=2, tensor=2), mesh)
    tokens_BxM = jax.ShapeDtypeStruct((B, L + 1), np.int32)
    return program.step, (program.abstract_state, tokens_BxM, jax.ShapeDtypeStruct((), np.float32))


def constraints(jaxpr):
    """(shape, spec) of every sharding constraint in a jaxpr and in those inside it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "sharding_constraint":
            yield equation.outvars[0].aval.shape, equation.params["sharding"].spec
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            yield from constraints(inner) if hasattr(inner, "eqns") else ()


def test_every_kind_of_activation_is_constrained():
    mesh = make_mesh(Placement(data=2, fsdp=2, tensor=2))
    step, arguments = fresh_program(mesh)
    with jax.set_mesh(mesh):
        found = set(constraints(jax.make_jaxpr(step)(*arguments).jaxpr))
    rows = ("data", "fsdp", "expert")
    assert {(shape, spec) for shape, spec in found if shape[0] == B} == {
        ((B, L), jax.P(rows, "context")),  # tokens
        ((B, L, 32), jax.P(rows, ("context", "tensor"), None)),  # the residual stream and its norms
        ((B, L, 32), jax.P(rows, "context", None)),  # what the matrices of a block read
        ((B, L, 4, 8), jax.P(rows, "context", "tensor", None)),  # queries, keys and values
        ((B, L, 4, 8), jax.P(rows, None, "tensor", None)),  # keys and values, whole along the sequence
        ((B, L, 64), jax.P(rows, "context", "tensor")),  # the feed-forward's
    }


def activations(mesh):
    """The shapes of all activations on one device in the compiled step: those with a dimension of L."""
    step, arguments = fresh_program(mesh)
    with jax.set_mesh(mesh):
        text = step.lower(*arguments).compile().as_text()
    shapes = {tuple(map(int, found.split(","))) for found in re.findall(r"= f32\[([\d,]+)\]", text)}
    return {shape for shape in shapes if {L, L // 2} & set(shape)}


def test_activations_are_sharded_by_the_constraints(monkeypatch):
    """Under 2 x 2 x 2, a device holds 2 of 8 sequences, half of their positions between the matrices, 2 of 4 heads, 32
    of 64 features, 24 of 48 logits - everywhere.

    The check is shown to fail where the constraints of activations do nothing: the partitioner then follows the weights
    and lays the residual stream over fsdp in its width, with twice the sequences on a device.
    """
    mesh = make_mesh(Placement(data=2, fsdp=2, tensor=2))
    residual, stream, hidden, scores, logits = (2, L // 2, 32), (2, L, 32), (2, L, 32), (2, 2, 1, L, L), (2, L, 24)
    wrong = {(b, length, d) for b in (2, 4, 8) for length in (L, L // 2) for d in (16, 32, 64, 48, 24)}
    wrong -= {residual, stream, hidden, logits}
    laid_out = activations(mesh)
    assert {residual, stream, hidden, scores, logits} <= laid_out
    assert not wrong & laid_out
    monkeypatch.setattr(module, "constrain", lambda layout, x, *names: x)
    assert wrong & activations(mesh)
    make_program.__globals__["_program"].cache_clear()  # no other test is to meet this program


def test_a_program_is_not_traced_without_its_mesh():
    """Flax would drop every constraint in silence."""
    step, arguments = fresh_program(make_mesh(Placement(data=2, fsdp=2, tensor=2)))
    with pytest.raises(RuntimeError, match="set_mesh"):
        step.lower(*arguments)


def test_axes_are_of_the_auto_type_and_hold_the_first_devices():
    mesh = make_mesh(Placement(data=2, fsdp=2))
    assert mesh.axis_names == MESH_AXES
    assert dict(mesh.shape) == {**dict.fromkeys(MESH_AXES, 1), "data": 2, "fsdp": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert list(mesh.devices.flat) == jax.devices()[:4]


def test_every_parameter_has_a_layout_under_every_zero_stage():
    """An axis without a rule, or a mesh axis that an array would have twice, is refused by `spec`."""
    shape = ModelShape(16, 2, 2, 32, 12, positions="learned", n_positions=4, qk_norm=True, activation="swiglu")
    sparse = ModelShape(16, 2, 2, 32, 12, n_experts=2)
    for box in jax.tree.leaves(
        [abstract_params(shape), abstract_params(sparse)], is_leaf=lambda b: hasattr(b, "names")
    ):
        for zero in (1, 2, 3):
            layout = axes.Layout(zero)
            kept, summed, used = layout.stored(box.names), layout.gradient(box.names), spec(box.names)
            assert ("fsdp" in used) == ("embed" in box.names)
            assert kept == (used if zero == 3 else spec(axes.without_embed(box.names)))
            assert summed == (used if zero >= 2 else spec(axes.without_embed(box.names)))


def test_collisions_and_unknown_axes_are_refused():
    with pytest.raises(ValueError, match=r"lays two axes of one array over fsdp"):
        spec(("batch", None, "embed"))
    with pytest.raises(ValueError, match=r"lays two axes of one array over tensor"):
        spec(("residual", "vocab"))
    with pytest.raises(ValueError, match=r"no rule for the logical axis 'lenght'"):
        spec(("batch", "lenght"))
    assert {mesh_axis for over in RULES.values() for mesh_axis in over} == set(MESH_AXES)


def test_shardings_of_the_embedding_and_of_a_batch():
    mesh = make_mesh(Placement(data=2, fsdp=2, tensor=2))
    laid_out = shardings(abstract_params(SHAPE), mesh)
    assert laid_out["embedding"].spec == jax.P(("tensor", "stage"), "fsdp")
    assert laid_out["blocks"]["mlp"]["up"].shard_shape((2, 32, 64)) == (2, 16, 32)
    assert batch_sharding(mesh).shard_shape((B, L)) == (2, L)


def test_too_few_devices_are_refused():
    with pytest.raises(InputError, match=r"placement needs 16 devices, this machine has 8 \(lower placement"):
        make_mesh(Placement(data=16))


def test_a_placement_that_does_not_fit_is_refused_before_anything_is_traced():
    placement = Placement(data=3)
    with pytest.raises(InputError, match="data=3 does not divide batch_size=8"):
        make_program(RUN, placement, make_mesh(placement))


@pytest.mark.parametrize(
    ("kind", "peak"),
    [("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("TPU v4", 275e12), ("NVIDIA H200", 989e12), ("cpu", None)],
)
def test_peaks_are_the_published_ones_or_none(kind, peak):
    assert peak_flops(kind) == peak
