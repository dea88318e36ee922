"""What a training says while it runs: the memory of its step before the first one, then a line a logged step."""

import datetime
from collections.abc import Mapping
from typing import Any

import jax

from scaling.models.counts import flops_per_token
from scaling.runs import Run
from scaling.training.result import mfu

GIB = 2**30


class Pace:
    """How fast a run trains, from readings of its clock: seconds by what they were spent on."""

    def __init__(self, run: Run, devices: int, step: int, seconds: Mapping[str, float]):
        """Of a run on so many devices that goes on after `step` steps, when its clock reads `seconds`."""
        self.run, self.devices = run, devices
        self.flops_per_token = flops_per_token(run.model, run.data.sequence_length)
        self.start, self.start_seconds = step, sum(seconds.values())
        self.last, self.last_train = step, seconds.get("train", 0.0)

    def line(self, step: int, loss: float, seconds: Mapping[str, float]) -> str:
        """The line of a step: tokens a second and device, and MFU, over the steps since the line before, of their
        training alone; the time left from all seconds since the start, evaluations and checkpoints among them."""
        steps = self.run.steps
        tokens_per_second = (step - self.last) * self.run.batch_tokens / (seconds["train"] - self.last_train)
        left = (sum(seconds.values()) - self.start_seconds) / (step - self.start) * (steps - step)
        used = mfu(tokens_per_second * self.flops_per_token, self.devices)
        self.last, self.last_train = step, seconds["train"]
        parts = [
            f"step {step:,}/{steps:,}",
            f"loss {loss:.4f}",
            f"{tokens_per_second / self.devices:,.0f} tokens/s/chip",
            f"MFU {used:.1%}" if used is not None else "",
            f"{datetime.timedelta(seconds=round(left))} left",
        ]
        return "  ".join(part for part in parts if part)


def memory_line(compiled: Any) -> str:
    """What a compiled step takes on each device, as its compiler says, beside what a device of this process grants."""
    said = compiled.memory_analysis()
    if said is None:
        return "memory of the compiled step: this backend does not say"
    parts = {
        "arguments": said.argument_size_in_bytes,
        "temporaries": said.temp_size_in_bytes,
        "peak": getattr(said, "peak_memory_in_bytes", 0),  # 0 where the backend has none
    }
    taken = ", ".join(f"{name} {size / GIB:.3g}" for name, size in parts.items() if size)
    granted = device_bytes()
    of = f"{granted / GIB:.4g}" if granted else "unknown, as this backend does not say"
    return f"memory of the compiled step, GiB per device: {taken}; there is: {of}"


def device_bytes() -> int | None:
    """The memory that the backend grants a device of this process; None where it does not say, as on CPUs."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
