"""The training step beside the peer's: one AdamW step with clipping, as the trainer compiles it, on random tokens.

Ours runs in this process and the peer's in its own (scaling.speed.peer), in turn: each sample is of about a second in
which the other waits. On a CPU: the shapes of scaling.speed.shapes, in fp32 beside PyTorch as it is and beside the best
of that and torch.compile, and in bf16 beside the best of both. On a GPU: GPT-2 124M in bf16. On a TPU there is no peer.
"""

import dataclasses
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp

from scaling.parallel.mesh import batch_sharding, make_mesh
from scaling.runs import Placement, Run
from scaling.speed.peer import torch_peer
from scaling.speed.rows import Row, alternate, row_of
from scaling.speed.shapes import GPT2_SMALL, SHAPES, Shape, run_of, token_batches
from scaling.speed.stopwatch import stopwatch
from scaling.training.preflight import compiled_to_fit
from scaling.training.step import Program, lowered_step, make_program

ONE_DEVICE = Placement()


@dataclasses.dataclass(frozen=True)
class Against:
    """One comparison. compiled: the peer may take torch.compile."""

    words: str
    precision: str
    compiled: bool


ON_CPU = (
    Against("fp32", "fp32", compiled=False),
    Against("fp32 vs compiled", "fp32", compiled=True),
    Against("bf16", "bf16", compiled=True),
)


def measure(repeats: int, peer: bool, say: Callable[[str], None]) -> list[Row]:
    """A row for each shape and comparison: milliseconds of a step."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peer needs memory of the same GPU
    platform = jax.local_devices()[0].platform
    shapes, comparisons = (SHAPES, ON_CPU) if platform == "cpu" else (GPT2_SMALL, ON_CPU[-1:])
    rows = []
    for against in comparisons:
        for name, shape in shapes.items():
            say(f"step {name} {against.words}")
            rows.append(measured(name, shape, against, repeats, peer and platform in ("cpu", "gpu")))
    return rows


def measured(name: str, shape: Shape, against: Against, repeats: int, peer: bool) -> Row:
    """The row of one shape in one comparison."""
    name = f"step {name} {against.words}"
    device = jax.local_devices()[0]
    ours = our_step(run_of(shape, against.precision))
    what = f"ms a step of {shape.tokens:,} tokens, {device.device_kind}, {cores()} cores"
    if not peer:
        return row_of(name, "ms", alternate(ours, None, repeats), what)
    with torch_peer(
        shape, against.precision, cores(), against.compiled, {"gpu": "cuda"}.get(device.platform, "cpu")
    ) as theirs:
        samples = alternate(ours, theirs.milliseconds, repeats)
        return row_of(name, "ms", samples, what, theirs.description)


def our_step(run: Run, placement: Placement = ONE_DEVICE) -> Callable[[], float]:
    """A function that trains a run for about a second and returns the milliseconds of a step."""
    program, compiled = compiled_step(run, placement)
    return timed_step(run, program, compiled)


def compiled_step(run: Run, placement: Placement) -> tuple[Program, jax.stages.Compiled]:
    """The trainer's step, compiled ahead under its mesh as there. Raises InputError if it does not fit in memory."""
    program = make_program(run, placement, make_mesh(placement))
    with jax.set_mesh(program.mesh):
        return program, compiled_to_fit(lowered_step(program, run))


def timed_step(run: Run, program: Program, compiled: jax.stages.Compiled) -> Callable[[], float]:
    """The stopwatch of a compiled step: its state is donated, and its batches of random tokens are on the device."""
    with jax.set_mesh(program.mesh):
        state = program.init(jax.random.key(run.seed))
    tokens = token_batches(run.model.vocab_size, run.batch_size, run.data.sequence_length)
    batches = [jax.device_put(each, batch_sharding(program.mesh)) for each in tokens]
    rate = jnp.float32(1e-3)
    taken = 0

    def step() -> None:
        nonlocal state, taken
        state, _ = compiled(state, batches[taken % len(batches)], rate)
        taken += 1

    return stopwatch(step, lambda: jax.block_until_ready(state))


def cores() -> int:
    """Cores that this process may use, and so the threads that each side gets."""
    return len(os.sched_getaffinity(0))
