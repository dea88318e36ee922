"""Joules that a run's devices have used: by meters where there are any, else estimated, else unknown; never mixed up.

GPUs count their own energy, which NVML tells in mJ since the driver was loaded, idle power and memory included (NVML
API reference, nvmlDeviceGetTotalEnergyConsumption). That of the devices that this process uses is the run's, as nobody
shares them: a measurement.

CPUs count by package: Intel's RAPL, AMD's too, which Linux shows under /sys/class/powercap, to root alone since 2020
(CVE-2020-8694). A package is shared by all that run on the host, other workers of the sweep among them, and each would
count all of it. So a process is charged its share of the CPU time that the host was busy in, interval by interval. That
is a rule and not a measurement, and what comes of it is an estimate.

Without a meter, as on TPUs, accelerators are charged the power of their kind in scaling.parallel.chips, for as long as
the run holds them: an estimate. CPUs without a meter have none, and their energy is unknown. What a run has spent adds
up over its attempts, so each of the three is counted apart (`Spent`): a sum is measured only if all of it was.
"""

import dataclasses
import os
import pathlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from scaling.parallel.chips import CHIPS

POWERCAP = pathlib.Path("/sys/class/powercap")
STAT = pathlib.Path("/proc/stat")
INTERVAL_SECONDS = 1.0  # CPU time is counted in steps of 10 ms

Spent = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Meter:
    """joules: since it was opened, and never less than before; may be called by any thread. what: is metered, and how.

    estimated: whether what it says is the process's by a rule, and not by measurement.
    """

    what: str
    estimated: bool
    joules: Callable[[], float]


def counter(devices: Sequence[jax.Device]) -> Callable[[], Spent]:
    """A function that says what a run on these devices, of all its processes, has used from now on. It never raises.

    "joules" if measured, "joules_est" if estimated, and where unknown "unmetered_seconds", for how long. Each process
    meters its own devices; with several, the others' are taken to use as much, which makes it an estimate.
    """
    mine = [device for device in devices if device.process_index == jax.process_index()]
    meter, watts = open_meter(mine), device_watts(mine[0].device_kind)
    begun = time.monotonic()
    if meter is None and watts is None:
        return lambda: {"unmetered_seconds": time.monotonic() - begun}
    if meter is None:
        return lambda: {"joules_est": watts * len(devices) * (time.monotonic() - begun)}
    name = "joules_est" if meter.estimated or len(mine) < len(devices) else "joules"
    read, at = 0.0, begun

    def spent() -> Spent:
        nonlocal read, at
        try:
            read, at = meter.joules() * len(devices) / len(mine), time.monotonic()
        except Exception:  # of drivers: a heartbeat must not end with them. From here on it is unknown, and said so
            return {name: read, "unmetered_seconds": time.monotonic() - at}
        return {name: read}

    return spent


def kilowatt_hours(spent: Spent) -> tuple[float | None, float | None]:
    """What a run has used over its attempts: (measured, estimated), of which one at least is None, both if unknown.

    An estimate includes what was measured of it.
    """
    measured, estimated = spent.get("joules"), spent.get("joules_est")
    if spent.get("unmetered_seconds") or (measured is None and estimated is None):
        return None, None
    joules = (measured or 0.0) + (estimated or 0.0)
    return (joules / 3.6e6, None) if estimated is None else (None, joules / 3.6e6)


def open_meter(devices: Sequence[jax.Device], root: pathlib.Path = POWERCAP) -> Meter | None:
    """The meter of devices of this process, None where there is none that may be read."""
    platform = devices[0].platform
    if platform == "gpu":
        return _open_nvml([device.local_hardware_id for device in devices])
    return _open_rapl(root) if platform == "cpu" else None


def device_watts(device_kind: str) -> float | None:
    """The power of a JAX device by its kind, as scaling.parallel.chips has it; None where none is known."""
    watts = {kind: chip.watts / chip.devices_per_chip for chip in CHIPS.values() for kind in chip.kinds}
    matches = [kind for kind in watts if device_kind.startswith(kind)]
    return watts[max(matches, key=len)] if matches else None


def _open_nvml(hardware_ids: list[int]) -> Meter | None:
    """Of GPUs by their places among those that CUDA shows to this process."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handles = [_nvml_handle(pynvml, number) for number in hardware_ids]
        counters = [_since(lambda h=h: pynvml.nvmlDeviceGetTotalEnergyConsumption(h) / 1e3) for h in handles]
    except pynvml.NVMLError:  # no driver, a slice of a GPU (MIG), or one older than Volta
        return None
    return Meter(f"{len(handles)} GPUs, NVML", False, lambda: sum(joules() for joules in counters))


def _nvml_handle(pynvml: Any, number: int) -> Any:
    """NVML sees all GPUs of the host. CUDA_VISIBLE_DEVICES names those of this process, by number or UUID.

    Numbers mean the same to both where all GPUs are alike, or with CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    name = visible[number] if visible else str(number)
    if name.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml.nvmlDeviceGetHandleByUUID(name)


def _open_rapl(root: pathlib.Path) -> Meter | None:
    """The packages; their cores and graphics, which have counters of their own, are in theirs."""
    found = [path for path in sorted(root.glob("intel-rapl:*")) if path.name.count(":") == 1]
    try:
        packages = [path for path in found if (path / "name").read_text().startswith("package")]
        counters = [_wrapping(path) for path in packages]
        busy = _busy_seconds()
    except OSError:
        return None
    if not counters:
        return None
    return Meter(f"share of {len(counters)} CPU packages, RAPL", True, _share(counters, busy))


def _share(counters: list[Callable[[], float]], busy: float) -> Callable[[], float]:
    """Joules of the packages, each interval's times this process's part of the CPU time that was spent in it."""
    lock = threading.Lock()
    total, joules, own, since = 0.0, 0.0, time.process_time(), time.monotonic()

    def charged() -> float:
        nonlocal total, joules, own, busy, since
        with lock:
            if time.monotonic() - since >= INTERVAL_SECONDS:
                now, own_now, busy_now = sum(read() for read in counters), time.process_time(), _busy_seconds()
                if busy_now > busy:
                    total += (now - joules) * min(1.0, (own_now - own) / (busy_now - busy))
                joules, own, busy, since = now, own_now, busy_now, time.monotonic()
            return total

    return charged


def _wrapping(package: pathlib.Path) -> Callable[[], float]:
    """Joules of a package since now. Its counter starts again at its range: about every 20 minutes at 200 W."""
    limit = int((package / "max_energy_range_uj").read_text())
    before, total = int((package / "energy_uj").read_text()), 0

    def joules() -> float:
        nonlocal before, total
        now = int((package / "energy_uj").read_text())
        total += now - before if now >= before else now - before + limit
        before = now
        return total / 1e6

    return joules


def _since(read: Callable[[], float]) -> Callable[[], float]:
    """What is read, less what it is now."""
    first = read()
    return lambda: read() - first


def _busy_seconds() -> float:
    """CPU time of the host since it was started, in which it was not idle and did not wait for disks."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, STAT.read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
