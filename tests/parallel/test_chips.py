"""Chips: what is published agrees with itself, and what needs no JAX does without."""

import subprocess
import sys

import pytest

from scaling.parallel.chips import CHIPS, peak_flops


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v5 lite", 197e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 2307e12 / 2),  # two devices a chip
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", None),
        ("cpu", None),
    ],
)
def test_peaks_by_the_device_kind_of_jax(kind, peak):
    assert peak_flops(kind) == peak


@pytest.mark.parametrize(
    ("name", "both_ways"), [("v4", 600e9), ("v5e", 400e9), ("v5p", 1200e9), ("v6e", 800e9), ("tpu7x", 1200e9)]
)
def test_links_add_up_to_the_bandwidth_of_googles_pages(name, both_ways):
    """Two links an axis, in two directions. Of v4, Jouppi et al. 2023 have six links of 50 GB/s, one way."""
    chip = CHIPS[name]
    assert chip.link * 4 * chip.torus_axes == both_ways


def test_power_and_price_follow_from_what_the_docstring_says():
    """Rounded to the nearest 5 W."""
    tpu7x = 10e6 / 9216
    v6e = tpu7x * 918 / 4614 * 2
    assert CHIPS["tpu7x"].watts == pytest.approx(tpu7x, abs=2.5)
    assert CHIPS["v6e"].watts == pytest.approx(v6e, abs=2.5)
    assert CHIPS["v5e"].watts == pytest.approx(v6e * 197 / 918 * 1.67, abs=2.5)
    assert CHIPS["v5p"].watts == pytest.approx(170 * 459 / 275 / 1.2, abs=2.5)
    assert all(chip.dollars_an_hour > 0 for chip in CHIPS.values() if chip.platform != "cpu")


def test_a_plan_needs_no_jax():
    """All that a plan imports from here; JAX alone takes seconds, and an accelerator."""
    parts = ("chips", "topology", "memory", "wires", "roofline", "placements", "costs")
    code = (
        f"import sys, {', '.join(f'scaling.parallel.{part}' for part in parts)}\n"
        "found = {'jax', 'jaxlib', 'flax', 'numpy'} & sys.modules.keys()\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
