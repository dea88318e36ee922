"""Options that XLA's compilers are given, a table for each kind of device: option, value, and the reason. No JAX.

They go with each compilation of the step (`jax.jit(..., compiler_options=)`), not with the environment: the compiler
for absent hardware gets the same ones as the hardware itself, a cached program is found by them, and one that a
compiler does not know is refused. Here stands only what was seen to act, on the schedule of a compiled step: the 1.4B
shape with 3 layers, fsdp over one slice or node, bf16. What counts is how much of what the layers send and receive is
under way while a matrix product or a kernel runs, by entries (tests/parallel/hlo.py, `sent`). That a schedule is better
is no measurement of time, for which there was no device.

What libtpu and XLA do anyway, and what to leave alone:
- TPU: the latency-hiding scheduler and asynchronous collective fusions are on. On v5e 80 % is hidden behind products;
  5 % with xla_tpu_enable_latency_hiding_scheduler=false, 26 % with xla_tpu_enable_async_collective_fusion=false.
- TPU, several slices: xla_tpu_enable_data_parallel_all_reduce_opt, with xla_tpu_data_parallel_opt_different_sized_ops,
  hides nothing more of what goes between two slices of v5e; nor does xla_tpu_enable_ag_backward_pipelining on one.
  Of v4, v6e and tpu7x nothing was looked at.
- GPU: xla_gpu_enable_latency_hiding_scheduler changes not a byte of the program, true or false, nor does
  xla_gpu_enable_command_buffer="" or xla_gpu_enable_pipelined_reduce_scatter. Often recommended, and worse here: larger
  combine thresholds (33 %), and pipelined all-gathers (46 %, and 6 % more memory).
"""

from collections.abc import Mapping
from typing import NamedTuple


class Flag(NamedTuple):
    """The value of an option, and why."""

    value: bool | int | str
    reason: str


CPU: dict[str, Flag] = {}  # none acts: vector widths, schedulers and oneDNN were tried (docs/speed.md)
MALLOC = {
    "glibc.malloc.hugetlb": Flag(
        1,
        "XLA takes a step's temporary memory from the system anew each step. In pages of 2 MiB instead of 4 KiB a step "
        "at d 384 takes 1.02 s instead of 1.15 to 1.34, in bf16 .69 instead of .92.",
    ),
}
GPU = {
    "xla_gpu_experimental_parallel_collective_overlap_limit": Flag(
        2,
        "Two collectives may be under way at once. With one, the reduce-scatter of a layer's gradients waits for the "
        "gathers of the next layer's weights, and nothing runs beside it: hidden on h100:8 92 % instead of 58 %.",
    ),
}
_TOGETHER = (
    "With the other two it gathers weights beside products, step by step, as v5e does by default. A v5p gathers each "
    "matrix and waits for it: hidden on v5p:2x2x1 64 % instead of nothing. Any two of the three do nothing."
)
TPU_V5P = {
    "xla_tpu_overlap_compute_collective_tc": Flag(True, _TOGETHER),
    "xla_enable_async_all_gather": Flag(True, _TOGETHER),
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": Flag(True, _TOGETHER),
}


def flags_of(platform: str, kind: str) -> dict[str, Flag]:
    """The options for a device: its platform ("tpu", "gpu" or "cpu") and device_kind, as jax names them."""
    if platform == "tpu":
        return TPU_V5P if kind in ("TPU v5", "TPU v5p") else {}
    return {"gpu": GPU, "cpu": CPU}.get(platform, {})


def compiler_options(platform: str, kind: str) -> dict[str, bool | int | str]:
    """As `jax.jit` and `Lowered.compile` take them."""
    return {name: flag.value for name, flag in flags_of(platform, kind).items()}


def with_malloc(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process that computes on a CPU: that with MALLOC's settings for glibc, which it reads when a
    process starts. What is set already stays; other C libraries ignore it."""
    given = [part for part in environment.get("GLIBC_TUNABLES", "").split(":") if part]
    names = {part.partition("=")[0] for part in given}
    ours = [f"{name}={flag.value}" for name, flag in MALLOC.items() if name not in names]
    return {**environment, "GLIBC_TUNABLES": ":".join([*given, *ours])}
