"""The learning rate of every step, as numbers that the host hands to the step: one compiled step serves them all."""

import numpy as np

from scaling.runs import Run


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
