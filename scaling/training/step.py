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

from scaling.models.transformer import Transformer, constrain, init_params
from scaling.parallel.mesh import RULES, batch_sharding, shardings
from scaling.runs import ModelShape, OptimizerSpec, Placement, Run
from scaling.training.optimizer import decay_mask, make_optimizer

MAX_LOGITS = 2**22  # of a sequence at a time, in fp32 16 MiB


class State(NamedTuple):
    """All that training carries from step to step. The step's number and the data need no state: see scaling.data."""

    params: Any
    optimizer: Any


@dataclasses.dataclass(frozen=True)
class Program:
    """The functions of a run on a mesh, traced under its rules. All are jitted, none is compiled yet.

    Windows hold M = L + 1 tokens: the first L are inputs, the last L targets.
    init(key) -> State; step(State, tokens_BxM, lr) -> (State, metrics), which consumes the state;
    window_losses(params, tokens_WxM) -> nats a token of each window, fp32.
    """

    mesh: Mesh
    abstract_state: State  # ShapeDtypeStructs with shardings
    init: Callable[..., Any]
    step: Callable[..., Any]
    window_losses: Callable[..., Any]


def token_losses(
    model: Transformer, params: Any, tokens_BxM: jax.Array, chunk: int | None
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy and squared log-partition of every token, each B x L in fp32.

    With a chunk, logits exist for only so many positions of each sequence at a time, and the backward pass makes them
    again: memory falls from L x V to chunk x V a sequence for one more product with the head. None: `whole_chunk`.
    """
    x_BxL, y_BxL = tokens_BxM[:, :-1], tokens_BxM[:, 1:]
    hidden_BxLxD = model.apply({"params": params}, x_BxL)

    def losses(hidden_BxCxD: jax.Array, y_BxC: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_BxCxV = model.apply({"params": params}, hidden_BxCxD, method=Transformer.logits)
        log_z_BxC = jax.nn.logsumexp(logits_BxCxV, axis=-1)
        target_BxC = jnp.take_along_axis(logits_BxCxV, y_BxC[..., None], axis=-1)[..., 0]
        return log_z_BxC - target_BxC, jnp.square(log_z_BxC)

    chunk = chunk or whole_chunk(x_BxL.shape[1], model.shape.vocab_size)
    if chunk == x_BxL.shape[1]:
        return losses(hidden_BxLxD, y_BxL)

    def split(t: jax.Array) -> jax.Array:
        return jnp.moveaxis(t.reshape(t.shape[0], -1, chunk, *t.shape[2:]), 1, 0)

    def join(t_NxBxC: jax.Array) -> jax.Array:
        return jnp.moveaxis(t_NxBxC, 0, 1).reshape(y_BxL.shape)

    nll, square = jax.lax.map(lambda c: jax.checkpoint(losses)(*c), (split(hidden_BxLxD), split(y_BxL)))
    return join(nll), join(square)


def whole_chunk(length: int, vocab_size: int) -> int:
    """The largest divisor of the length at which a sequence's fp32 logits take at most 16 MiB; 1 if none does."""
    fitting = [chunk for chunk in range(1, length + 1) if length % chunk == 0 and chunk * vocab_size <= MAX_LOGITS]
    return max(fitting, default=1)


def make_program(run: Run, placement: Placement, mesh: Mesh) -> Program:
    """Everything that is compiled for a run. Raises InputError if the placement does not fit it.

    The peak rate, the schedule, the number of steps and the seeds stay outside, so runs that differ only in these share
    one program, and with it the compilation.
    """
    placement.check(run)
    optimizer = dataclasses.replace(run.optimizer, peak_lr=1.0)
    return _program(run.model, run.precision, run.z_loss, optimizer, placement, mesh)


@functools.lru_cache(maxsize=8)
def _program(
    shape: ModelShape, precision: str, z_loss: float, optimizer_spec: OptimizerSpec, placement: Placement, mesh: Mesh
) -> Program:
    dtype = {"fp32": jnp.float32, "bf16": jnp.bfloat16}[precision]
    model = Transformer(shape, dtype, remat=placement.remat == "full", scan=placement.scan_layers)

    def traced(f: Callable[..., Any]) -> Callable[..., Any]:
        """Runs f under the rules; fp32 then means fp32 on accelerators too, whose default is a shorter type."""

        @functools.wraps(f)
        def wrapped(*args: Any) -> Any:
            if mesh.size > 1 and jax.sharding.get_abstract_mesh().empty:
                # Flax would then drop every constraint without a word, and each device hold far more than its share.
                raise RuntimeError("trace the program under jax.set_mesh(program.mesh)")
            with nn.logical_axis_rules(RULES), jax.default_matmul_precision("float32" if precision == "fp32" else None):
                return f(*args)

        return wrapped

    boxed_params = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    optimizer = make_optimizer(optimizer_spec, decay_mask(boxed_params))

    def boxed_state(key: jax.Array) -> State:
        params = init_params(model, key)
        return State(params, optimizer.init(params))

    def init(key: jax.Array) -> State:
        return nn.unbox(boxed_state(key))

    def summed_loss(params: Any, tokens_BxM: jax.Array) -> tuple[jax.Array, jax.Array]:
        nll_BxL, square_BxL = token_losses(model, params, tokens_BxM, placement.loss_chunk)
        nll = jnp.sum(nll_BxL)
        return nll + z_loss * jnp.sum(square_BxL), nll

    def gradient(params: Any, tokens_BxM: jax.Array) -> tuple[jax.Array, Any]:
        """Sums over tokens, so that microbatches add up to the batch whatever their sizes."""
        (_, nll), grads = jax.value_and_grad(summed_loss, has_aux=True)(params, tokens_BxM)
        return nll, grads

    def accumulated(params: Any, tokens_BxM: jax.Array) -> tuple[jax.Array, Any]:
        B, M = tokens_BxM.shape
        size = placement.microbatch or B
        if size == B:
            return gradient(params, tokens_BxM)
        # A microbatch takes every (B / size)-th row: each device cuts its own rows, and none has to move.
        tokens_AxbxM = jnp.swapaxes(tokens_BxM.reshape(size, B // size, M), 0, 1)

        def add(total: Any, tokens_bxM: jax.Array) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(params, tokens_bxM)), None

        zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(add, zero, constrain(tokens_AxbxM, None, "batch", None))[0]

    def step(state: State, tokens_BxM: jax.Array, lr: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        nll, grads = accumulated(state.params, tokens_BxM)
        targets = tokens_BxM[:, 1:].size
        loss, grads = jax.tree.map(lambda t: t / targets, (nll, grads))
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = jax.tree.map(lambda p, u: p - lr * u, state.params, updates)
        return State(params, optimizer_state), {"loss": loss, "grad_norm": optax.tree.norm(grads)}

    def window_losses(params: Any, tokens_WxM: jax.Array) -> jax.Array:
        return jnp.mean(token_losses(model, params, tokens_WxM, placement.loss_chunk)[0], axis=-1)

    boxed = jax.eval_shape(boxed_state, jax.random.key(0))
    sharding = shardings(boxed, mesh)
    abstract_state = jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), nn.unbox(boxed), sharding
    )
    rows = batch_sharding(mesh)
    return Program(
        mesh,
        abstract_state,
        init=jax.jit(traced(init), out_shardings=sharding),
        step=jax.jit(
            traced(step),
            donate_argnums=0,
            in_shardings=(sharding, rows, None),
            out_shardings=(sharding, None),
        ),
        window_losses=jax.jit(
            traced(window_losses),
            in_shardings=(sharding.params, rows),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        ),
    )
