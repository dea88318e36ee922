"""The training step and the evaluation step: pure functions of the state, compiled for a mesh."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scaling.models.attention import balanced_order
from scaling.models.axes import Layout, constrain, spec
from scaling.models.cross_entropy import summed_cross_entropy, token_nll
from scaling.models.grouped_matmul import choose_grouped_matmul
from scaling.models.kernels import choose_attention, on_one_cpu
from scaling.models.module import Kernels
from scaling.models.transformer import Stats, Transformer, init_params
from scaling.parallel.mesh import batch_sharding, layout_of, shardings
from scaling.parallel.xla_flags import compiler_options
from scaling.runs import ModelShape, OptimizerSpec, Placement, Run
from scaling.training.optimizer import decay_mask, make_optimizer


class State(NamedTuple):
    """All that training carries from step to step. The step's number and the data need no state: see scaling.data."""

    params: Any
    optimizer: Any


@dataclasses.dataclass(frozen=True)
class Program:
    """The functions of a run on a mesh. All are jitted, none is compiled yet.

    Windows hold M = L + 1 tokens: the first L are inputs, the last L targets.
    init(key) -> State; step(State, tokens_BxM, lr) -> (State, metrics), which consumes the state;
    window_losses(params, tokens_WxM) -> nats a token of each window, fp32.
    """

    mesh: Mesh
    abstract_state: State  # ShapeDtypeStructs with shardings
    init: Callable[..., Any]
    step: Callable[..., Any]
    window_losses: Callable[..., Any]


class Sums(NamedTuple):
    """What a batch's loss is made of, as sums: those of microbatches of any sizes add up to those of the batch."""

    nll: jax.Array  # over tokens
    stats: Stats  # of the routers, over sequences and layers


def summed_loss(
    model: Transformer, params: Any, tokens_BxM: jax.Array, z_loss: float, chunk: int | None
) -> tuple[jax.Array, Sums]:
    """The sum over tokens of what is minimised, and its parts.

    A router's losses are means over the tokens of a sequence, and count as often as there are tokens in it.
    """
    x_BxL, y_BxL = inputs_and_targets(tokens_BxM, model.layout)
    hidden_BxLxD, stats_N = model.apply({"params": params}, x_BxL)
    head_DxV = model.apply({"params": params}, method=Transformer.head)
    loss, nll = summed_cross_entropy(hidden_BxLxD, head_DxV, y_BxL, z_loss, chunk, model.layout)
    stats = jax.tree.map(jnp.sum, stats_N)
    if stats:
        shape, L = model.shape, x_BxL.shape[1]
        loss += L * (shape.balance_loss * stats["balance"] + shape.router_z_loss * stats["router_z"])
    return loss, Sums(nll, stats)


def token_losses(model: Transformer, params: Any, tokens_BxM: jax.Array, chunk: int | None) -> jax.Array:
    """Cross-entropy of every token, B x L in fp32, in the order in which the model's layout has positions."""
    x_BxL, y_BxL = inputs_and_targets(tokens_BxM, model.layout)
    hidden_BxLxD, _ = model.apply({"params": params}, x_BxL)
    return token_nll(hidden_BxLxD, model.apply({"params": params}, method=Transformer.head), y_BxL, chunk, model.layout)


def inputs_and_targets(tokens_BxM: jax.Array, layout: Layout | None) -> tuple[jax.Array, jax.Array]:
    """Windows of M = L + 1 tokens as inputs and targets, each B x L, positions in the order of the layout."""
    x_BxL, y_BxL = tokens_BxM[:, :-1], tokens_BxM[:, 1:]
    if layout is not None and layout.context > 1:
        order = balanced_order(x_BxL.shape[1], layout.context)
        x_BxL, y_BxL = x_BxL[:, order], y_BxL[:, order]
    return constrain(layout, x_BxL, "batch", "length"), constrain(layout, y_BxL, "batch", "length")


def make_program(run: Run, placement: Placement, mesh: Mesh) -> Program:
    """Everything that is compiled for a run. Raises InputError if the placement does not fit it.

    The peak rate, the schedule, the number of steps and the seeds stay outside, so runs that differ only in these share
    one program, and with it the compilation.
    """
    placement.check(run)
    optimizer = dataclasses.replace(run.optimizer, peak_lr=1.0)
    return _program(run.model, run.precision, run.z_loss, run.data.sequence_length, optimizer, placement, mesh)


@functools.lru_cache(maxsize=16)  # a sweep trains its sizes side by side; what was compiled goes with them
def _program(
    shape: ModelShape,
    precision: str,
    z_loss: float,
    length: int,
    optimizer_spec: OptimizerSpec,
    placement: Placement,
    mesh: Mesh,
) -> Program:
    dtype = {"fp32": jnp.float32, "bf16": jnp.bfloat16}[precision]
    layout = layout_of(placement)
    kernels = kernels_of(placement, shape, length, precision, mesh.devices.flat[0].platform)
    model = Transformer(shape, dtype, layout, kernels, remat=placement.remat, scan=placement.scan_layers)

    def traced(f: Callable[..., Any]) -> Callable[..., Any]:
        """Runs f where fp32 means fp32 on accelerators too, whose default is a shorter type."""

        @functools.wraps(f)
        def wrapped(*args: Any) -> Any:
            if layout is not None and jax.sharding.get_abstract_mesh().empty:
                raise RuntimeError("trace the program under jax.set_mesh(program.mesh)")
            with jax.default_matmul_precision("float32" if precision == "fp32" else None):
                return f(*args)

        return wrapped

    boxed_params = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    axes = jax.tree.map(lambda box: box.names, boxed_params, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    matrices = decay_mask(boxed_params)
    optimizer = make_optimizer(optimizer_spec, matrices)

    def boxed_state(key: jax.Array) -> State:
        params = init_params(model, key)
        return State(params, optimizer.init(params))

    def init(key: jax.Array) -> State:
        return nn.unbox(boxed_state(key))

    def laid_out(grads: Any) -> Any:
        if layout is None:
            return grads
        return jax.tree.map(lambda g, names: jax.lax.with_sharding_constraint(g, layout.gradient(names)), grads, axes)

    def gradient(params: Any, tokens_BxM: jax.Array) -> tuple[Sums, Any]:
        """In the type that each parameter has."""
        loss = functools.partial(summed_loss, model, z_loss=z_loss, chunk=placement.loss_chunk)
        (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(params, tokens_BxM)
        return sums, laid_out(grads)

    def cast(params: Any) -> Any:
        """Matrices in the compute type, once for all that use them. Their gradients, which are made in that type, then
        wait in it until the last layer's is there. Vectors, and a router, whose second axis has no name, stay fp32."""
        return jax.tree.map(
            lambda p, matrix, names: p.astype(dtype) if matrix and None not in names else p, params, matrices, axes
        )

    def accumulated(params: Any, tokens_BxM: jax.Array) -> tuple[Sums, Any]:
        B, M = tokens_BxM.shape
        size = placement.microbatch or B
        if size == B or placement.stage > 1:  # a pipeline takes all microbatches, one behind the other
            return gradient(params, tokens_BxM)
        # A microbatch takes every (B / size)-th row: each device cuts its own rows, and none has to move.
        tokens_AxbxM = jnp.swapaxes(tokens_BxM.reshape(size, B // size, M), 0, 1)
        tokens_AxbxM = constrain(layout, tokens_AxbxM, None, "batch", None)

        def add(total: Any, tokens_bxM: jax.Array) -> tuple[Any, None]:
            # The barrier keeps XLA from moving the sums over devices out of the loop, which its TPU compiler tries, and
            # fails at (libtpu 0.0.42: RET_CHECK in while_loop_all_reduce_code_motion).
            sums, grads = jax.lax.optimization_barrier(gradient(params, tokens_bxM))
            return (jax.tree.map(jnp.add, total[0], sums), laid_out(jax.tree.map(jnp.add, total[1], grads))), None

        sums = jax.eval_shape(gradient, params, tokens_AxbxM[0])[0]
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (sums, params))
        zero = zero[0], laid_out(zero[1])
        return jax.lax.scan(add, zero, tokens_AxbxM)[0]

    def step(state: State, tokens_BxM: jax.Array, lr: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        sums, grads = accumulated(cast(state.params), tokens_BxM)
        sequences, targets = len(tokens_BxM), tokens_BxM[:, 1:].size
        grads = jax.tree.map(lambda g: g.astype(jnp.float32) / targets, grads)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = jax.tree.map(lambda p, u: p - lr * u, state.params, updates)
        per_router = jax.tree.map(lambda x: x / (sequences * shape.n_layers), sums.stats)
        routers = {f"router_{name.removeprefix('router_')}": x for name, x in per_router.items()}
        metrics = {"loss": sums.nll / targets, "grad_norm": optax.tree.norm(grads), **routers}
        return State(params, optimizer_state), metrics

    def window_losses(params: Any, tokens_WxM: jax.Array) -> jax.Array:
        return jnp.mean(token_losses(model, params, tokens_WxM, placement.loss_chunk), axis=-1)

    boxed = jax.eval_shape(boxed_state, jax.random.key(0))
    sharding = State(
        shardings(boxed.params, mesh, layout.stored if layout else spec), shardings(boxed.optimizer, mesh, spec)
    )
    abstract_state = jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), nn.unbox(boxed), sharding
    )
    rows = batch_sharding(mesh)
    options = compiler_options(mesh.devices.flat[0].platform, mesh.devices.flat[0].device_kind)
    return Program(
        mesh,
        abstract_state,
        init=jax.jit(traced(init), out_shardings=sharding),
        step=jax.jit(
            traced(step),
            donate_argnums=0,
            in_shardings=(sharding, rows, None),
            out_shardings=(sharding, None),
            compiler_options=options or None,
        ),
        window_losses=jax.jit(
            traced(window_losses),
            in_shardings=(sharding.params, rows),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        ),
    )


def lowered_step(program: Program, run: Run) -> jax.stages.Lowered:
    """The step for a run's batches, to be compiled: the same for those who train it and those who prove that it fits.

    To be called under `jax.set_mesh(program.mesh)`.
    """
    shape = run.batch_size, run.data.sequence_length + 1
    tokens_BxM = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(program.mesh))
    return program.step.lower(program.abstract_state, tokens_BxM, jax.ShapeDtypeStruct((), jnp.float32))


def kernels_of(placement: Placement, shape: ModelShape, length: int, precision: str, platform: str) -> Kernels:
    """The implementations that a placement takes on a platform ("tpu", "gpu" or "cpu")."""
    return Kernels(
        choose_attention(placement.kernels, platform, shape, length, precision, placement.context),
        choose_grouped_matmul(placement.kernels, platform),
        on_one_cpu(placement, platform),
    )
