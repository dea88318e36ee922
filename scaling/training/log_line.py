"""What a training says while it runs: the memory of its step before the first one, then a line every so often."""

import datetime
import time
from collections.abc import Mapping
from typing import Any

import jax

from scaling.models.counts import flops_per_token
from scaling.parallel.absent import memory_of
from scaling.parallel.chips import CHIPS, GIB
from scaling.runs import Run
from scaling.training.planned import chip_of, gib_words
from scaling.training.result import mfu

LINE_SECONDS = 30.0  # the longest that a reader of the log waits, unless a step takes longer


class Pace:
    """How fast a run trains, from readings of its clock: seconds by what they were spent on."""

    def __init__(self, run: Run, devices: int, step: int, seconds: Mapping[str, float]):
        """Of a run on so many devices that goes on after `step` steps, when its clock reads `seconds`."""
        self.run, self.devices = run, devices
        self.chips = devices / _devices_per_chip()
        self.flops_per_token = flops_per_token(run.model, run.data.sequence_length)
        self.start, self.start_seconds = step, sum(seconds.values())
        self.last, self.last_train = step, seconds.get("train", 0.0)
        self.said_at = time.monotonic() - LINE_SECONDS  # so that the first step, which may be slow to come, has a line

    def due(self) -> bool:
        """Whether it is time for a line again, whatever the step."""
        return time.monotonic() - self.said_at >= LINE_SECONDS

    def line(self, step: int, loss: float, seconds: Mapping[str, float]) -> str:
        """The line of a step: tokens a second and chip, and MFU, over the steps since the line before, of their
        training alone; the time left from all seconds since the start, evaluations and checkpoints among them."""
        steps = self.run.steps
        tokens_per_second = (step - self.last) * self.run.batch_tokens / (seconds["train"] - self.last_train)
        left = (sum(seconds.values()) - self.start_seconds) / (step - self.start) * (steps - step)
        used = mfu(tokens_per_second * self.flops_per_token, self.devices)
        self.last, self.last_train, self.said_at = step, seconds["train"], time.monotonic()
        parts = [
            f"step {step:,}/{steps:,}",
            f"loss {loss:.4f}",
            f"{tokens_per_second / self.chips:,.0f} tokens/s/chip",
            f"MFU {used:.1%}" if used is not None else "",
            f"{datetime.timedelta(seconds=round(left))} left",
        ]
        return "  ".join(part for part in parts if part)


def memory_line(compiled: Any) -> str:
    """What a compiled step takes on each device, as its compiler says, beside what a device of this process grants."""
    if compiled.memory_analysis() is None:
        return "memory of the compiled step: this backend does not say"
    taken = memory_of(compiled, jax.local_devices()[0].platform)
    granted = device_bytes()
    return (
        f"memory of the compiled step, GiB per device: arguments {gib_words(taken['arguments_gib'])}, temporaries "
        f"{gib_words(taken['temporary_gib'])}, peak {gib_words(taken['peak_gib'])} ({taken['peak_is']}); there is: "
        + (gib_words(granted / GIB) if granted else "unknown, as this backend does not say")
    )


def device_bytes() -> int | None:
    """The memory that the backend grants a device of this process; None where it does not say, as on CPUs."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def _devices_per_chip() -> int:
    chip = CHIPS.get(chip_of(jax.local_devices()[0].device_kind))
    return chip.devices_per_chip if chip else 1
