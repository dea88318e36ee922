"""What a compiled program says of itself, and devices that are not here."""

import importlib.util
import json
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from scaling.errors import InputError
from scaling.parallel import absent
from scaling.parallel.absent import GIB, absent_devices, collectives_of, memory_of, too_large
from scaling.parallel.mesh import make_mesh
from scaling.parallel.topology import parse_topology
from scaling.runs import Placement
from scaling.sweeps.prove import environment

pytestmark = pytest.mark.usefixtures("quick_compilation")

# As the compiler for TPUs writes: one all-gather, channel 7, in the computations of its start and its end, and a
# reduce-scatter in a computation of its own. Layouts hold parentheses.
TPU_TEXT = """HloModule jit_step

%all-reduce-scatter.clone.1 (input.4: bf16[2048,4096]) -> bf16[2048,2048] {
  %input.4 = bf16[2048,4096]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-reduce.14 = bf16[2048,4096]{1,0:T(8,128)(2,1)} all-reduce(%input.4), channel_id=12, replica_groups={{0,1},{2,3}}
  ROOT %dynamic-slice.76 = bf16[2048,2048]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.14, %c.1, %c.2)
}

%fused_computation.47 (param_0.138: bf16[1,2048,2048]) -> (bf16[1,2048,2048], bf16[1,4096,2048]) {
  %param_0.138 = bf16[1,2048,2048]{2,1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.59 = bf16[1,4096,2048]{2,1,0:T(8,128)(2,1)} all-gather(%param_0.138), channel_id=7, dimensions={1}
}

%async_collective_fusion.69 (param_0.141: bf16[1,2048,2048]) -> bf16[1,4096,2048] {
  %param_0.141 = bf16[1,2048,2048]{2,1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.61 = bf16[1,4096,2048]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%param_0.141), channel_id=7, dimensions={1}
}
"""
# As the compiler for GPUs writes: each as a start, whose type holds what goes in and what comes out, and a done.
GPU_TEXT = """
ENTRY %main (p: f32[8,16]) -> f32[8,128] {
  %p = f32[8,16]{1,0} parameter(0)
  %q = s8[1024]{0} parameter(1)
  %all-gather-start.1 = (f32[8,16]{1,0}, f32[8,128]{1,0}) all-gather-start(%p), channel_id=1, dimensions={1}
  %all-gather-done.1 = f32[8,128]{1,0} all-gather-done(%all-gather-start.1)
  %collective-permute-start = (s8[1024]{0}, s8[1024]{0}, u32[], u32[]) collective-permute-start(%q), channel_id=2
  %collective-permute-done = s8[1024]{0} collective-permute-done(%collective-permute-start)
  %reduce-scatter-start = ((f32[8,16]{1,0}), f32[1,16]{1,0}) reduce-scatter-start(%p), channel_id=3, dimensions={0}
  %reduce-scatter-done = f32[1,16]{1,0} reduce-scatter-done(%reduce-scatter-start)
  %add.1 = f32[8,128]{1,0} add(%all-gather-done.1, %all-gather-done.1)
}
"""


def test_a_collective_of_the_tpu_compiler_counts_once():
    assert collectives_of(TPU_TEXT) == {
        "all-gather": {"count": 1, "gib": 4096 * 2048 * 2 / GIB},
        "reduce-scatter": {"count": 1, "gib": 2048 * 4096 * 2 / GIB},
    }


def test_a_collective_of_the_gpu_compiler_counts_once():
    assert collectives_of(GPU_TEXT) == {
        "all-gather": {"count": 1, "gib": 8 * 128 * 4 / GIB},
        "collective-permute": {"count": 1, "gib": 1024 / GIB},
        "reduce-scatter": {"count": 1, "gib": 8 * 16 * 4 / GIB},
    }
    assert collectives_of("ENTRY %main {\n  %p = f32[8]{0} parameter(0)\n}") == {}


def one_of_each(x_BxD: jax.Array) -> tuple[jax.Array, ...]:
    """Five collectives over eight devices, one of each kind, of 128 fp32 numbers on a device."""
    return (
        jax.lax.psum(x_BxD, "data"),
        jax.lax.all_gather(x_BxD * 2, "data"),
        jax.lax.psum_scatter(x_BxD * 3, "data", scatter_dimension=1, tiled=True),
        jax.lax.all_to_all(x_BxD * 5, "data", 0, 1, tiled=True),
        jax.lax.ppermute(x_BxD * 7, "data", [(i, (i + 1) % 8) for i in range(8)]),
    )


def test_collectives_of_a_program_that_has_one_of_each():
    mesh = make_mesh(Placement(data=8))
    spec = PartitionSpec("data", None)
    each = jax.shard_map(one_of_each, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    x_BxD = jax.ShapeDtypeStruct((128, 8), jnp.float32, sharding=NamedSharding(mesh, spec))
    found = collectives_of(jax.jit(each).lower(x_BxD).compile().as_text())
    bytes_in = 16 * 8 * 4
    assert found == {
        kind: {"count": 1, "gib": bytes_in * (8 if kind == "all-gather" else 1) / GIB} for kind in absent.COLLECTIVES
    }


def test_a_loop_counts_once():
    mesh = make_mesh(Placement(data=8))

    def body(carry, _):
        return jax.lax.psum(carry, "data") / 8, None

    def loop(x_BxD):
        return jax.lax.scan(body, x_BxD, length=5)[0]

    spec = PartitionSpec("data", None)
    looped = jax.shard_map(loop, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    x_BxD = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=NamedSharding(mesh, spec))
    assert collectives_of(jax.jit(looped).lower(x_BxD).compile().as_text())["all-reduce"]["count"] == 1


def stats(**changes):
    values = {"argument": 3, "output": 2, "alias": 2, "temp": 5}
    sizes = {f"{name}_size_in_bytes": GIB * size for name, size in (values | changes).items() if name != "peak"}
    found = types.SimpleNamespace(**sizes, peak_memory_in_bytes=GIB * changes.get("peak", 6))
    return types.SimpleNamespace(memory_analysis=lambda: found)


def test_the_stated_peak_decides():
    """The compiler for TPUs accepts programs whose arguments and temporaries together are more than the device has."""
    found = memory_of(stats(), "tpu")
    assert found == {
        "peak_gib": 6.0,
        "arguments_gib": 3.0,
        "temporary_gib": 5.0,
        "peak_is": "stated by the compiler",
    }


@pytest.mark.parametrize(("platform", "peak"), [("cpu", 6), ("tpu", 0)])
def test_without_a_peak_the_pieces_are_summed(platform, peak):
    """New outputs only: what is donated is already among the arguments."""
    found = memory_of(stats(output=4, peak=peak), platform)
    assert found["peak_gib"] == 3 + (4 - 2) + 5
    assert found["peak_is"] == "arguments + outputs + temporaries"


def test_memory_of_a_real_program():
    """a + b of 2^20 fp32 numbers each: two arguments and a new output of 4 MiB, nothing between."""
    x = jax.ShapeDtypeStruct((2**20,), jnp.float32)
    found = memory_of(jax.jit(jnp.add).lower(x, x).compile(), "cpu")
    assert found["arguments_gib"] == 8 / 1024
    assert found["peak_gib"] == pytest.approx(12 / 1024, rel=1e-3)  # a pointer's worth beyond


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (278.12G) "
            "exceeds available HBM (15.75G).",
            278.12,
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded", 17.5),
        ("RESOURCE_EXHAUSTED: the total memory required (512.00M) exceeds available HBM (15.75G)", 0.5),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 16.5M of 16.0M vmem.", None),
        ("INTERNAL: Mosaic failed to compile TPU kernel", None),
    ],
)
def test_a_refusal_for_memory_says_how_much(message, gib):
    assert too_large(RuntimeError(message)) == gib


def test_a_compiler_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(absent.importlib.util, "find_spec", lambda name: None)
    for topology, package in (("v5e:2x2", "libtpu"), ("h100:8", "jax-cuda12-plugin")):
        with pytest.raises(InputError, match=rf"{package}, .* is not installed \(pip install 'scaling\[aot\]'\)"):
            absent_devices(parse_topology(topology))


def test_a_plugin_of_another_version_is_refused(monkeypatch):
    """jax leaves it out with a warning, and would then say that there is no such platform."""
    versions = {"jax-cuda12-plugin": "0.9.1", "jaxlib": "0.10.2"}
    monkeypatch.setattr(absent.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(absent, "version", versions.get)
    with pytest.raises(InputError, match=r"jax-cuda12-plugin is 0\.9\.1, jaxlib is 0\.10\.2"):
        absent_devices(parse_topology("h200:8"))


def test_fake_devices_of_this_machine():
    assert absent_devices(parse_topology("cpu:4")) == jax.devices("cpu")[:4]
    with pytest.raises(InputError, match="JAX_NUM_CPU_DEVICES=64"):
        absent_devices(parse_topology("cpu:64"))


NEEDS = {"tpu": "libtpu", "cuda": "jax_cuda12_plugin"}
ASK = """
import json, sys
from scaling.parallel.absent import absent_devices
from scaling.parallel.topology import parse_topology
devices = absent_devices(parse_topology(sys.argv[1]))
slices = len({getattr(device, "slice_index", 0) for device in devices})
print(json.dumps([len(devices), devices[0].device_kind, devices[0].platform, slices]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "v4:2x2x2",
        "v5e:1x1",
        "v5e:16x16",
        "4xv5e:4x4",
        "v5p:4x4x4",
        "v6e:4x4",
        "tpu7x:2x2x1",
        "h100:8",
        "h100:64",
        "h200:16",
    ],
)
def test_devices_of_absent_hardware_are_those_of_the_topology(text):
    topology = parse_topology(text)
    needed = NEEDS[topology.chip.platform]
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed: pip install 'scaling[aot]'")
    asked = [sys.executable, "-c", ASK, text]
    done = subprocess.run(asked, capture_output=True, text=True, env=environment(topology), check=False)
    assert done.returncode == 0, done.stderr
    number, kind, platform, slices = json.loads(done.stdout)
    assert number == topology.devices
    assert any(kind.startswith(known) for known in topology.chip.kinds)
    assert platform == {"tpu": "tpu", "cuda": "gpu"}[topology.chip.platform]
    assert slices == topology.data_slices
