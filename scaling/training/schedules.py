"""The learning rate of every step, as numbers that the host hands to the step: one compiled step serves them all.

With warm-up, stable, decay a longer run and a shorter one, its fork, are the same up to where the shorter begins to
decay, if they differ in nothing else. Then one training serves both that far (Hu et al. 2024, section 4.5; Haegele et
al. 2024, section 5).
"""

import dataclasses
from typing import Any

import numpy as np

from scaling.runs import Run, run_id
from scaling.specs import require


def learning_rates(run: Run) -> np.ndarray:
    """The rates of steps 0 .. steps-1 as float32.

    Both kinds warm up linearly, reaching the peak at step warmup_steps - 1, and end, at the last step, at
    final_fraction of it: cosine by half a cosine wave (Loshchilov & Hutter 2017, eq. 5), wsd by staying at the peak and
    falling linearly over the last decay_steps (Hu et al. 2024, section 4.2; the linear form: Haegele et al. 2024).
    """
    schedule, steps = run.schedule, run.steps
    step = np.arange(steps, dtype=np.float64)
    warmup = np.minimum(1.0, (step + 1) / max(1, schedule.warmup_steps))
    start = schedule.warmup_steps if schedule.kind == "cosine" else steps - schedule.decay_steps
    progress = np.clip((step + 1 - start) / max(1, steps - start), 0.0, 1.0)
    shape = (1 + np.cos(np.pi * progress)) / 2 if schedule.kind == "cosine" else 1 - progress
    decay = schedule.final_fraction + (1 - schedule.final_fraction) * shape
    return (run.optimizer.peak_lr * warmup * decay).astype(np.float32)


def fork_step(run: Run) -> int:
    """After how many steps a run begins to decay. Raises InputError for another schedule than wsd."""
    kind = run.schedule.kind
    require(kind == "wsd", f"{run_id(run)} has schedule.kind={kind!r}, which knows its end from the start", WSD)
    return run.steps - run.schedule.decay_steps


WSD = "only wsd can be forked: take a recipe such as small_wsd or haegele, or config.sweep.schedule=scratch"


def check_fork(trunk: Run, fork: Run) -> None:
    """Raises InputError, with the field and both values, unless a fork is the same as its trunk until it decays."""
    until, latest, ours, other = fork_step(fork), fork_step(trunk), _flat(trunk), _flat(fork)
    differ = [f"{name}={ours[name]!r} and {other[name]!r}" for name in ours if ours[name] != other[name]]
    require(
        not differ,
        f"{run_id(trunk)} and {run_id(fork)} differ before they decay: {'; '.join(differ)}",
        "to fork them, nothing but steps and schedule.decay_steps may follow D or the budget: take a recipe such as "
        "small_wsd or haegele, or config.sweep.schedule=scratch",
    )
    require(
        until <= latest and fork.steps <= trunk.steps,
        f"{run_id(fork)} decays from step {until} to {fork.steps}, and {run_id(trunk)} from {latest} to {trunk.steps}",
        "a trunk must decay after its forks, and be longer",
    )


def _flat(run: Run) -> dict[str, Any]:
    """The fields of a run by their dotted names, but for those in which a fork may differ."""
    found: dict[str, Any] = {}
    for name, value in dataclasses.asdict(run).items():
        parts = value.items() if isinstance(value, dict) else [(None, value)]
        found |= {f"{name}.{part}" if part else name: item for part, item in parts}
    return {name: value for name, value in found.items() if name not in ("steps", "schedule.decay_steps")}
