"""Accelerators as a plan needs them: peak, memory, bandwidths, power and price of one chip, with their sources. No JAX.

Sources of what is published:
- TPU: Google Cloud's pages of v4, v5e, v5p, v6e and TPU7x (peak, HBM bandwidth, ICI bandwidth a chip), of which newer
  versions give some memory bandwidths in GiB, a few percent off. A page's ICI bandwidth counts every link in both
  directions: a 2D chip has four links, a 3D chip six. Of v4: Jouppi et al. 2023, table 4, six links of 50 GB/s.
  Data-centre bandwidth a chip, and where a torus closes: Austin et al. 2025, "How to Scale Your Model", part 2, which
  has links 10 % slower than the pages (45 and 90 GB/s).
- GPU: NVIDIA's data sheets of H100 and H200 SXM: NVLink 900 GB/s in both directions; one 400 Gb/s NIC a GPU as in DGX.
- Memory of a TPU device: what its compiler grants a program, as libtpu 0.0.42 states it when one does not fit. Of a
  GPU: 0.92 of the device's, which the user has to set (XLA_PYTHON_CLIENT_MEM_FRACTION=.92; XLA's default is .75).

Power is of the accelerator alone, and only partly published:
- v4: the mean of 170 W of Jouppi et al. 2023, Table 4 (maximum 192 W). H100, H200: the data sheet's maximum of 700 W.
- tpu7x: an estimate, 10 MW over the 9,216 chips of a pod as Google announced it (hosts and cooling included).
- v6e, v5e: estimates, from tpu7x by Google's "twice the performance per watt of Trillium" (918 TFLOP/s, and 4,614 in
  fp8), and from v6e by its "67 % more energy-efficient than v5e". v5p: an estimate, the power of v4 a FLOP over 1.2,
  Google's gain in carbon a FLOP.

Prices are list prices on demand, in US dollars a chip-hour, as of 2025 and 2026, and change: of TPUs Google Cloud in
its cheapest region of the United States, of GPUs a machine of eight on AWS by eight (p5.48xlarge at 55.04 and
p5en.48xlarge at 63.296). They were checked against quotations of these lists, not against the lists. Power and price
are settings: give your own.
"""

import dataclasses
from typing import Literal

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator. A chip has one JAX device or more; figures are a chip's, memory a device's.

    Bandwidths in bytes/s. link: one way over one link of the torus, or into the switch of a node. network: one way
    between slices or nodes. torus_axes: 0 for a switch. ring: where an axis of a slice is a multiple of it, it closes.
    """

    name: str
    platform: Literal["tpu", "cuda", "cpu"]
    kinds: tuple[str, ...]  # beginnings of jax's device_kind
    peak_flops: float  # dense bf16
    device_memory: float  # bytes that a program may have
    hbm_bandwidth: float
    link: float
    network: float
    torus_axes: int
    ring: int
    largest: tuple[int, ...]  # slice, or GPUs of a node
    watts: float
    dollars_an_hour: float
    devices_per_chip: int = 1
    matrix_unit: int = 128  # side of the systolic array; a shorter dimension of a product leaves part of it idle

    @property
    def device_flops(self) -> float:
        return self.peak_flops / self.devices_per_chip

    @property
    def device_bandwidth(self) -> float:
        """Of the memory of one device."""
        return self.hbm_bandwidth / self.devices_per_chip


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "v4", "tpu", ("TPU v4",), 275e12, 30.75 * GIB, 1228e9, link=50e9, network=6.25e9, torus_axes=3, ring=4,
            largest=(16, 16, 16), watts=170, dollars_an_hour=3.22,
        ),
        Chip(
            "v5e", "tpu", ("TPU v5 lite",), 197e12, 15.75 * GIB, 819e9, link=50e9, network=3.125e9, torus_axes=2,
            ring=16, largest=(16, 16), watts=155, dollars_an_hour=1.20,
        ),
        Chip(
            "v5p", "tpu", ("TPU v5p", "TPU v5"), 459e12, 95.73 * GIB, 2765e9, link=100e9, network=6.25e9, torus_axes=3,
            ring=4, largest=(16, 16, 24), watts=235, dollars_an_hour=4.20,
        ),
        Chip(
            "v6e", "tpu", ("TPU v6 lite",), 918e12, 31.24 * GIB, 1638e9, link=100e9, network=12.5e9, torus_axes=2,
            ring=16, largest=(16, 16), watts=430, dollars_an_hour=2.70, matrix_unit=256,
        ),
        Chip(
            "tpu7x", "tpu", ("TPU7x", "TPU v7x"), 2307e12, 94.74 * GIB, 7380e9, link=100e9, network=12.5e9,
            torus_axes=3, ring=4, largest=(16, 24, 24), watts=1085, dollars_an_hour=12.00, devices_per_chip=2,
            matrix_unit=256,
        ),
        Chip(
            "h100", "cuda", ("NVIDIA H100 80GB HBM3",), 989e12, 0.92 * 79.1 * GIB, 3350e9, link=450e9, network=50e9,
            torus_axes=0, ring=0, largest=(8,), watts=700, dollars_an_hour=6.88, matrix_unit=64,
        ),
        Chip(
            "h200", "cuda", ("NVIDIA H200",), 989e12, 0.92 * 139.8 * GIB, 4800e9, link=450e9, network=50e9,
            torus_axes=0, ring=0, largest=(8,), watts=700, dollars_an_hour=7.91, matrix_unit=64,
        ),
        # Stands for the fake devices of a test: no published figures, so its times order placements and mean no more.
        Chip(
            "cpu", "cpu", (), 1e11, 2 * GIB, 1e10, link=1e9, network=1e9, torus_axes=0, ring=0, largest=(1024,),
            watts=0, dollars_an_hour=0, matrix_unit=1,
        ),
    )
}  # fmt: skip

A100_FLOPS = 312e12  # NVIDIA's data sheet; no topology of A100s is planned


def peak_flops(device_kind: str) -> float | None:
    """Peak bf16 FLOP/s of one JAX device by its kind; None where none is published, as for CPUs."""
    peaks = {kind: chip.device_flops for chip in CHIPS.values() for kind in chip.kinds}
    peaks["NVIDIA A100-SXM"] = A100_FLOPS
    matches = [kind for kind in peaks if device_kind.startswith(kind)]
    return peaks[max(matches, key=len)] if matches else None
