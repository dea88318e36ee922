"""The training step and the evaluation step: pure functions of the state, compiled for a mesh."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from scaling.models.transformer import Transformer, constrain, init_params
from scaling.parallel.mesh import RULES, batch_sharding, shardings
from scaling.runs import Placement, Run
from scaling.training.optimizer import decay_mask, make_optimizer


class State(NamedTuple):
    """All that training carries from step to step. The step's number and the data need no state: see scaling.data."""

    params: Any
    optimizer: Any


@dataclasses.dataclass(frozen=True)
class Program:
    """The functions of a run on a mesh, traced under its rules. All are jitted, none is compiled yet.

    init(key) -> State; step(State, x_BxL, y_BxL, lr) -> (State, metrics), which consumes the state;
    window_losses(params, x_WxL, y_WxL) -> nats a token of each window, fp32.
    """

    mesh: Mesh
    abstract_state: State  # ShapeDtypeStructs with shardings
    init: Callable[..., Any]
    step: Callable[..., Any]
    window_losses: Callable[..., Any]


def token_losses(
    model: Transformer, params: Any, x_BxL: jax.Array, y_BxL: jax.Array, chunk: int | None
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy and squared log-partition of every token, each B x L in fp32.

    With a chunk, logits exist for only so many positions of each sequence at a time, and the backward pass makes them
    again: memory falls from L x V to chunk x V a sequence for one more product with the head.
    """
    hidden_BxLxD = model.apply({"params": params}, x_BxL)

    def losses(hidden_BxCxD: jax.Array, y_BxC: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_BxCxV = model.apply({"params": params}, hidden_BxCxD, method=Transformer.logits)
        log_z_BxC = jax.nn.logsumexp(logits_BxCxV, axis=-1)
        target_BxC = jnp.take_along_axis(logits_BxCxV, y_BxC[..., None], axis=-1)[..., 0]
        return log_z_BxC - target_BxC, jnp.square(log_z_BxC)

    if chunk is None:
        return losses(hidden_BxLxD, y_BxL)

    def split(t: jax.Array) -> jax.Array:
        return jnp.moveaxis(t.reshape(t.shape[0], -1, chunk, *t.shape[2:]), 1, 0)

    def join(t_NxBxC: jax.Array) -> jax.Array:
        return jnp.moveaxis(t_NxBxC, 0, 1).reshape(y_BxL.shape)

    nll, square = jax.lax.map(lambda c: jax.checkpoint(losses)(*c), (split(hidden_BxLxD), split(y_BxL)))
    return join(nll), join(square)


def make_program(run: Run, placement: Placement, mesh: Mesh) -> Program:
    """Everything that is compiled for a run. Raises InputError if the placement does not fit it.

    The peak rate, the schedule, the number of steps and the seeds stay outside, so runs that differ only in these share
    one program, and with it the compilation.
    """
    placement.check(run)
    return _program(
        run.model, run.precision, run.z_loss, dataclasses.replace(run.optimizer, peak_lr=1.0), placement, mesh
    )


@functools.lru_cache(maxsize=8)
def _program(shape, precision, z_loss, optimizer_spec, placement, mesh) -> Program:  # noqa: ANN001 typed by make_program
    dtype = {"fp32": jnp.float32, "bf16": jnp.bfloat16}[precision]
    model = Transformer(shape, dtype, remat=placement.remat == "full", scan=placement.scan_layers)

    def traced(f: Callable[..., Any]) -> Callable[..., Any]:
        """Runs f under the rules; fp32 then means fp32 on accelerators too, whose default is a shorter type."""

        @functools.wraps(f)
        def wrapped(*args: Any) -> Any:
            with nn.logical_axis_rules(RULES), jax.default_matmul_precision("float32" if precision == "fp32" else None):
                return f(*args)

        return wrapped

    boxed_params = jax.eval_shape(traced(lambda key: init_params(model, key)), jax.random.key(0))
    optimizer = make_optimizer(optimizer_spec, decay_mask(boxed_params))

    def boxed_state(key: jax.Array) -> State:
        params = init_params(model, key)
        return State(params, optimizer.init(params))

    def init(key: jax.Array) -> State:
        return nn.unbox(boxed_state(key))

    def summed_loss(params: Any, x_BxL: jax.Array, y_BxL: jax.Array) -> tuple[jax.Array, jax.Array]:
        nll_BxL, square_BxL = token_losses(model, params, x_BxL, y_BxL, placement.loss_chunk)
        nll = jnp.sum(nll_BxL)
        return nll + z_loss * jnp.sum(square_BxL), nll

    def gradient(params: Any, x_BxL: jax.Array, y_BxL: jax.Array) -> tuple[jax.Array, Any]:
        """Sums over tokens, so that microbatches add up to the batch whatever their sizes."""
        (_, nll), grads = jax.value_and_grad(summed_loss, has_aux=True)(params, x_BxL, y_BxL)
        return nll, grads

    def accumulated(params: Any, x_BxL: jax.Array, y_BxL: jax.Array) -> tuple[jax.Array, Any]:
        size = placement.microbatch or x_BxL.shape[0]
        if size == x_BxL.shape[0]:
            return gradient(params, x_BxL, y_BxL)

        def microbatches(t_BxL: jax.Array) -> jax.Array:
            # Every M-th row: each device cuts its own rows, and none has to move.
            t_MxbxL = jnp.swapaxes(t_BxL.reshape(size, -1, t_BxL.shape[1]), 0, 1)
            return constrain(t_MxbxL, None, "batch", None)

        def add(total: Any, xy: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(params, *xy)), None

        zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(add, zero, (microbatches(x_BxL), microbatches(y_BxL)))[0]

    def step(state: State, x_BxL: jax.Array, y_BxL: jax.Array, lr: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        nll, grads = accumulated(state.params, x_BxL, y_BxL)
        loss, grads = jax.tree.map(lambda t: t / x_BxL.size, (nll, grads))
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = jax.tree.map(lambda p, u: p - lr * u, state.params, updates)
        return State(params, optimizer_state), {"loss": loss, "grad_norm": optax.tree.norm(grads)}

    def window_losses(params: Any, x_WxL: jax.Array, y_WxL: jax.Array) -> jax.Array:
        return jnp.mean(token_losses(model, params, x_WxL, y_WxL, placement.loss_chunk)[0], axis=-1)

    boxed = jax.eval_shape(traced(boxed_state), jax.random.key(0))
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
            in_shardings=(sharding, rows, rows, None),
            out_shardings=(sharding, None),
        ),
        window_losses=jax.jit(traced(window_losses), in_shardings=(sharding.params, rows, rows)),
    )
