"""Devices that are not here, and what a program compiled for them needs: XLA's own compilers, without the hardware.

`jax.experimental.topologies` gives devices that can be put in a mesh and compiled for, not run on. TPU: the compiler is
the libtpu wheel, which needs only the name of the slice. GPU: it is the CUDA plugin, which wants the chip described.
CPU: fake devices of this machine. Environment variables go before JAX (see scaling.sweeps.prove, which starts such a
process); memory and collectives are read off the compiled program, and a refusal of the TPU compiler for want of memory
is read as the number that it gives.
"""

import importlib.util
import math
import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import jax
from jax.experimental import topologies

from scaling.errors import InputError
from scaling.parallel.chips import GIB
from scaling.parallel.topology import Topology

EXTRA = "pip install 'scaling[aot]'"
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

# An instruction of a program text, "%name = type operation(operands), attributes", and an array in a type.
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\(([^)]*)\)(.*)$")
_ARRAY = re.compile(r"\b(?:pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]")

# What XLA wants to know of a GPU. Sources: NVIDIA's data sheets of H100 and H200 SXM (memory, bandwidth), its white
# paper of Hopper (132 SMs of 128 lanes, 50 MiB of L2 cache, 1.98 GHz at most), and the CUDA programming guide's table
# of compute capability 9.0 (threads, registers and shared memory). Sizes of memory are those that the driver reports.
_HOPPER = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 l2_cache_size: 52428800
  device_memory_size: {memory} memory_bandwidth: {bandwidth}
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 7 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{name}"
"""
_GPUS = {
    "h100": _HOPPER.format(name="NVIDIA H100 80GB HBM3", memory=84_929_347_584, bandwidth=3_350_000_000_000),
    "h200": _HOPPER.format(name="NVIDIA H200", memory=150_014_525_440, bandwidth=4_800_000_000_000),
}


def absent_devices(topology: Topology) -> Sequence[jax.Device]:
    """The devices of a topology, to compile for. Raises InputError if its compiler is not installed."""
    chip, name = topology.chip, topology.compiler_name
    if chip.platform == "cpu":
        return _fake_devices(topology.devices)
    if chip.platform == "cuda":
        _check_cuda()
        return topologies.get_topology_desc(platform="cuda", target_config=_GPUS[chip.name], topology=name).devices
    _check_libtpu()
    slices = {"num_slices": topology.slices} if topology.slices > 1 else {}
    cores = {"chip_config_name": "megacore"} if chip.name == "v4" else {}  # its two cores are one device
    alone = {"chips_per_host_bounds": (1, 1, 1)} if topology.slice_shape == (1, 1) else {}  # a host has four, else
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **slices, **cores, **alone).devices


def compiler_of(platform: str) -> str:
    """The compiler's name and version, of a platform whose devices were made."""
    package = {"tpu": "libtpu", "cuda": "jax-cuda12-plugin", "cpu": "jaxlib"}[platform]
    return f"{package} {version(package)}"


def memory_of(compiled: Any, platform: str) -> dict[str, Any]:
    """Memory a device, GiB, of a compiled program: peak_gib, which decides, arguments_gib, temporary_gib, and peak_is.

    The peak is the compiler's own where it states one. The sum of all pieces is above it, as temporaries take the place
    of arguments that are no longer needed; it stands in for the CPU's, whose stated peak leaves temporaries out.
    """
    stats = compiled.memory_analysis()
    arguments, temporary = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    new_outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes  # the others take the place of arguments
    stated = stats.peak_memory_in_bytes if platform != "cpu" else 0
    return {
        "peak_gib": (stated or arguments + new_outputs + temporary) / GIB,
        "arguments_gib": arguments / GIB,
        "temporary_gib": temporary / GIB,
        "peak_is": "stated by the compiler" if stated else "arguments + outputs + temporaries",
    }


def collectives_of(text: str) -> dict[str, dict[str, float]]:
    """The collectives of a program text (`compiled.as_text()`) by kind: count, and gib that they move on a device.

    A loop's body stands in the text once and counts once, however often it runs. What a collective moves is the larger
    of what goes into it and what comes out: the gathered array of an all-gather, what a reduce-scatter starts from.
    The TPU compiler writes one collective several times, for its start, middle and end, under one channel: it counts
    once; and its reduce-scatter is an all-reduce inside a computation of that name.
    """
    moved: dict[tuple[str, str], int] = {}  # by kind, and channel or else name
    computation, lines = "", []
    for line in text.splitlines():
        if not line.startswith(" "):
            computation = line
        elif match := _INSTRUCTION.match(line):
            lines.append((computation, *match.groups()))
    size = {name: _bytes(kind) for _, name, kind, *_ in lines}
    ended = {operands.lstrip("%"): size[name] for _, name, _, what, operands, _ in lines if what.endswith("-done")}
    for within, name, _, what, operands, attributes in lines:
        kind = what.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        if kind == "all-reduce" and within.startswith("%all-reduce-scatter"):
            kind = "reduce-scatter"
        channel = re.search(r"channel_id=(\d+)", attributes)
        given = sum(size.get(operand, 0) for operand in re.findall(r"%([\w.\-]+)", operands))
        moved[kind, channel[1] if channel else name] = max(given, ended.get(name, size[name]))
    kinds = sorted({kind for kind, _ in moved})
    by_kind = {kind: [size for (of, _), size in moved.items() if of == kind] for kind in kinds}
    return {kind: {"count": len(sizes), "gib": sum(sizes) / GIB} for kind, sizes in by_kind.items()}


def _bytes(kind: str) -> int:
    """Bytes of all arrays in a type: "bf16[8,128]{1,0}", or a tuple of such."""
    return sum(
        math.ceil(int(bits or 8) / 8 * math.prod(int(length) for length in lengths.split(",") if length))
        for bits, lengths in _ARRAY.findall(kind)
    )


def too_large(error: Exception) -> float | None:
    """GiB of HBM that a refused program asks of a device, from the compiler's words; None if that was not the reason.

    The words name all of the memory, or only the temporaries where those alone are too many.
    """
    text = str(error)
    found = re.search(r"\(([\d.]+)([KMGT]?)\)\s+exceeds available HBM", text) or re.search(
        r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", text
    )
    return found and float(found[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}[found[2]] / GIB


def _fake_devices(number: int) -> Sequence[jax.Device]:
    devices = jax.devices("cpu")
    if len(devices) < number:
        raise InputError(
            f"cpu:{number}, and this process has {len(devices)} CPU devices", do=f"JAX_NUM_CPU_DEVICES={number}"
        )
    return devices[:number]


def _check_libtpu() -> None:
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("libtpu, the compiler for TPUs, is not installed", do=EXTRA)


def _check_cuda() -> None:
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise InputError("jax-cuda12-plugin, the compiler for NVIDIA GPUs, is not installed", do=EXTRA)
    plugin, jaxlib = version("jax-cuda12-plugin"), version("jaxlib")
    if plugin != jaxlib:  # jax would leave the plugin out, with a warning
        raise InputError(f"jax-cuda12-plugin is {plugin}, jaxlib is {jaxlib}", do=f"{EXTRA} gives both in one version")
