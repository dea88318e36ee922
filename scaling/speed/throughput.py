"""Throughput, utilisation and memory of a run's training step on this machine, whatever that is.

Where the peak of the device is published, the ratio of a row is the model FLOPs utilisation: 6ND and attention in full,
as in C (scaling.models.counts), nothing for what is computed again. Elsewhere, as on a CPU, it is the share of what one
large matrix product reaches here in the same precision, measured in turn with the step. The ratio of a row of memory is
that of the plan's estimate to what the step took.

A batch of many microbatches is measured by a few of them, which overstates the optimizer's share and understates the
throughput, by little.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from scaling.errors import InputError
from scaling.models.counts import flops_per_token, parameters
from scaling.parallel.absent import memory_of
from scaling.parallel.chips import CHIPS, GIB, peak_flops
from scaling.parallel.memory import estimate_memory
from scaling.parallel.placements import choose
from scaling.parallel.topology import Topology, parse_topology, slice_shapes
from scaling.runs import Placement, Run
from scaling.specs import require
from scaling.speed.rows import Row, alternate, row_of
from scaling.speed.step import compiled_step, timed_step
from scaling.speed.stopwatch import stopwatch
from scaling.sweeps.plan import placement_words
from scaling.training.planned import chip_of

MICROBATCHES = 4  # that are measured, at most
TRIES = 4  # placements, the fastest by its estimate first
SIDE = 2048  # of the matrices of the product that stands for the peak


def measure_run(name: str, run: Run, placement: Placement | None, repeats: int) -> list[Row]:
    """The rows "train NAME" and "memory NAME". placement: None for the fastest that fits on all devices here.

    Raises InputError if none fits, and for what else keeps a run from being placed here.
    """
    refused = None
    for each in placements_here(run)[:TRIES] if placement is None else [placement]:
        try:
            return _measured(name, _few(run, each), each, repeats)
        except InputError as error:
            refused = error
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            refused = InputError(f"runs out of memory as {placement_words(each, run)}")
    raise refused


def placements_here(run: Run) -> list[Placement]:
    """The placements whose estimated memory fits, the fastest first; on a CPU, of which nothing is published, as it is.

    Raises InputError if there are none.
    """
    topology = topology_of(jax.local_devices()[0].device_kind, jax.local_device_count())
    if topology.chip.platform == "cpu":
        return [Placement()]
    return [candidate.placement for candidate in choose(run, topology)]


def topology_of(kind: str, devices: int) -> Topology:
    """The devices of this machine as a topology. Raises InputError for devices that no plan knows."""
    chip, do = CHIPS.get(chip_of(kind)), "give --config.placement"
    require(chip is not None, f"no plan knows devices of kind {kind!r}", do)
    if chip.platform == "cpu":
        return parse_topology("cpu:1")
    if chip.torus_axes == 0:
        return parse_topology(f"{chip.name}:{devices}")
    shape = next((s for s in slice_shapes(chip) if math.prod(s) * chip.devices_per_chip == devices), None)
    require(shape is not None, f"{devices} x {kind} are no whole slice", do)
    return parse_topology(f"{chip.name}:{'x'.join(map(str, shape))}")


def _few(run: Run, placement: Placement) -> Run:
    """The run with a batch of no more than MICROBATCHES."""
    at_a_time = placement.microbatch or run.batch_size
    return dataclasses.replace(run, batch_size=min(run.batch_size, MICROBATCHES * at_a_time))


def _measured(name: str, run: Run, placement: Placement, repeats: int) -> list[Row]:
    program, compiled = compiled_step(run, placement)
    stated = memory_of(compiled, jax.local_devices()[0].platform)["peak_gib"]
    step = timed_step(run, program, compiled)
    F = flops_per_token(run.model, run.data.sequence_length)
    milliseconds = []

    def ours() -> float:
        milliseconds.append(step())
        return 1e3 * run.batch_tokens / milliseconds[-1]

    peak, peak_is = yardstick(run.precision, placement.devices)
    samples = alternate(ours, lambda: peak() / F, repeats)
    N = parameters(run.model).N
    words = (
        f"N {N:,}, {run.batch_size} x {run.data.sequence_length} tokens, {run.precision}, "
        f"{placement_words(placement, run)}"
    )
    speed = row_of(f"train {name}", "tokens/s", samples, f"{words}; {min(milliseconds):.4g} ms a step", peak_is)
    return [speed, _memory(f"memory {name}", run, placement, words, stated)]


def _memory(name: str, run: Run, placement: Placement, words: str, stated: float) -> Row:
    """What a device held at most, or where the backend does not say what the compiler states, beside the estimate."""
    in_use = max((device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()) / GIB
    kind = jax.local_devices()[0].device_kind
    chip = CHIPS.get(chip_of(kind))
    how = f"in use at most; the compiler states {stated:.4g}" if in_use else "as the compiler states it"
    what = f"{words}; on a device, {how}"
    if chip is None:
        return Row(name, "GiB", in_use or stated, None, what, f"no estimate: no plan knows {kind!r}")
    estimate = estimate_memory(run, placement, Topology(chip, (placement.devices,), 1, kind)).gib
    return Row(name, "GiB", in_use or stated, estimate, what, "the plan's estimate")


def yardstick(precision: str, devices: int) -> tuple[Callable[[], float], str]:
    """FLOP/s that the devices could reach at most, and what that is: their published peak, or else measured."""
    peak = peak_flops(jax.local_devices()[0].device_kind)
    if peak is not None:
        return lambda: peak * devices, f"the published bf16 peak of {devices} devices: the ratio is the MFU"
    dtype = {"fp32": jnp.float32, "bf16": jnp.bfloat16}[precision]
    x = jax.random.normal(jax.random.key(0), (SIDE, SIDE), dtype)
    product = jax.jit(lambda x: x @ x / SIDE**0.5)
    made = x

    def multiply() -> None:
        nonlocal made
        made = product(made)

    clock = stopwatch(multiply, lambda: made.block_until_ready())
    said = f"the speed of a product of {SIDE} x {SIDE} matrices in {precision}, measured in turn"
    return lambda: devices * 2e3 * SIDE**3 / clock(), said
