"""What meters say, on files and a driver that stand for them: no machine that tests run on has any that may be read."""

import os
import sys
import time
import types

import jax
import pytest

from scaling.training import energy
from scaling.training.energy import counter, device_watts, kilowatt_hours, open_meter

TICKS = os.sysconf("SC_CLK_TCK")
RANGE = 262_143_328_850  # uJ, of Intel's servers


@pytest.fixture
def cpu():
    return jax.devices()[:1]


@pytest.fixture
def clock(monkeypatch):
    """Seconds of the clock, of the process's CPU time and of the host's, which tests set."""
    now = types.SimpleNamespace(wall=100.0, own=10.0, busy=1000.0)
    monkeypatch.setattr(energy.time, "monotonic", lambda: now.wall)
    monkeypatch.setattr(energy.time, "process_time", lambda: now.own)
    monkeypatch.setattr(energy, "_busy_seconds", lambda: now.busy)
    return now


@pytest.fixture
def rapl(tmp_path):
    """Two packages as Linux shows them, with a part that is in its package, and the platform, which has both."""
    for name, what in {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(f"{what}\n")
        (tmp_path / name / "max_energy_range_uj").write_text(f"{RANGE}\n")
        (tmp_path / name / "energy_uj").write_text("5000000\n")
    return tmp_path


def say(rapl, package, joules):
    (rapl / f"intel-rapl:{package}" / "energy_uj").write_text(f"{round(joules * 1e6)}\n")


class Driver(types.ModuleType):
    """pynvml of a host with four GPUs, each with so many mJ on its counter."""

    NVMLError = type("NVMLError", (Exception,), {})

    def __init__(self):
        super().__init__("pynvml")
        self.mJ = {"0": 1000, "1": 2000, "2": 3000, "GPU-abc": 4000}
        self.works = True

    def nvmlInit(self):
        if not self.works:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.nvmlDeviceGetHandleByUUID(str(index))

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid not in self.mJ:
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        return self.mJ[handle]


@pytest.fixture
def driver(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Driver())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return sys.modules["pynvml"]


def gpus(*numbers, kind="NVIDIA H100 80GB HBM3", processes=None):
    processes = processes or [0] * len(numbers)
    return [
        types.SimpleNamespace(platform="gpu", device_kind=kind, local_hardware_id=number, process_index=process)
        for number, process in zip(numbers, processes, strict=True)
    ]


def test_packages_are_charged_by_the_share_of_cpu_time(rapl, cpu, clock):
    """Of 300 J in which it used 6 of 8 busy seconds, 225; then of 100 J, in which it used none, nothing."""
    meter = open_meter(cpu, rapl)
    assert (meter.what, meter.estimated, meter.joules()) == ("share of 2 CPU packages, RAPL", True, 0.0)
    say(rapl, 0, 205)
    say(rapl, 1, 105)
    clock.wall, clock.own, clock.busy = 102.0, 16.0, 1008.0
    assert meter.joules() == pytest.approx(300 * 6 / 8)
    say(rapl, 0, 305)
    clock.wall, clock.busy = 104.0, 1010.0
    assert meter.joules() == pytest.approx(225)


def test_two_workers_of_a_host_are_charged_no_more_than_it_used(rapl, cpu, clock, monkeypatch):
    """Both alike, each half; where each would count the package, they would say twice what it used."""
    meters = [open_meter(cpu, rapl) for _ in range(2)]
    say(rapl, 0, 105)
    clock.wall, clock.own, clock.busy = 110.0, 15.0, 1010.0
    assert sum(meter.joules() for meter in meters) == pytest.approx(100)


def test_a_share_is_at_most_all_of_it(rapl, cpu, clock):
    """Both CPU times come in steps of 10 ms, so their ratio can be over 1."""
    meter = open_meter(cpu, rapl)
    say(rapl, 0, 15)
    clock.wall, clock.own, clock.busy = 101.0, 11.01, 1001.0
    assert meter.joules() == pytest.approx(10)


def test_short_intervals_wait_for_the_next(rapl, cpu, clock):
    """CPU time is too coarse for them; nothing is lost."""
    meter = open_meter(cpu, rapl)
    for i in range(1, 11):
        say(rapl, 0, 5 + i)
        clock.wall, clock.own, clock.busy = 100 + i / 4, 10 + i / 4, 1000 + i / 2
        meter.joules()
    clock.wall += 1
    assert meter.joules() == pytest.approx(10 / 2)


def test_a_counter_that_starts_again_goes_on(rapl, cpu, clock):
    """From 1 J below its range to 3 J: 4 J, twice over."""
    say(rapl, 0, RANGE / 1e6 - 1)
    meter, before = open_meter(cpu, rapl), 0.0
    for _ in range(2):
        say(rapl, 0, 3)
        clock.wall, clock.own, clock.busy = clock.wall + 2, clock.own + 1, clock.busy + 1
        assert meter.joules() - before == pytest.approx(4)
        before = meter.joules()
        say(rapl, 0, RANGE / 1e6 - 1)
        clock.wall, clock.own, clock.busy = clock.wall + 2, clock.own + 0, clock.busy + 1
        assert meter.joules() == before


def test_the_hosts_busy_time_is_that_of_proc_stat(monkeypatch, tmp_path):
    """user, nice, system, irq and softirq; not idle, iowait and what a hypervisor took."""
    (tmp_path / "stat").write_text("cpu  100 20 30 9000 800 4 5 700 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n")
    monkeypatch.setattr(energy, "STAT", tmp_path / "stat")
    assert energy._busy_seconds() == (100 + 20 + 30 + 4 + 5) / TICKS


@pytest.mark.skipif(not energy.STAT.exists(), reason="there is no /proc/stat but on Linux")
def test_a_process_alone_is_charged_most_of_what_it_burns(rapl, cpu, monkeypatch):
    """With the clocks of this machine: half a second of work, of which others can take a part, so 2 % at least."""
    monkeypatch.setattr(energy, "INTERVAL_SECONDS", 0.4)
    meter = open_meter(cpu, rapl)
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        pass
    say(rapl, 0, 105)
    assert 2 < meter.joules() <= 100


@pytest.mark.parametrize("fault", ["missing", "none", "unreadable", "other"])
def test_no_rapl_is_no_meter(rapl, cpu, tmp_path, fault):
    if fault == "missing":
        (rapl / "intel-rapl:1" / "max_energy_range_uj").unlink()
    if fault == "unreadable":  # also to root, as whom tests may run: a directory
        (rapl / "intel-rapl:0" / "energy_uj").unlink()
        (rapl / "intel-rapl:0" / "energy_uj").mkdir()
    if fault == "other":
        for name in ("intel-rapl:0", "intel-rapl:1"):
            (rapl / name / "name").write_text("dram\n")
    assert open_meter(cpu, tmp_path / "nowhere" if fault == "none" else rapl) is None


def test_gpus_are_metered_from_now_on(driver):
    meter = open_meter(gpus(0, 2))
    assert (meter.what, meter.estimated, meter.joules()) == ("2 GPUs, NVML", False, 0.0)
    driver.mJ.update({"0": 1500, "1": 9_000_000, "2": 3250})
    assert meter.joules() == pytest.approx(0.75)


def test_gpus_are_those_that_cuda_shows(driver, monkeypatch):
    """By number or UUID, in the order of the variable; NVML itself does not look at it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-abc")
    meter = open_meter(gpus(1))
    driver.mJ.update({"1": 9_000_000, "2": 9_000_000, "GPU-abc": 6000})
    assert meter.joules() == pytest.approx(2.0)


def test_gpus_without_nvml_have_no_meter(driver, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    assert open_meter(gpus(0)) is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    driver.works = False
    assert open_meter(gpus(0)) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    assert open_meter(gpus(0)) is None


def test_what_is_measured_and_what_is_not_have_names_of_their_own(driver, clock, cpu, monkeypatch):
    """An H100 has 700 W; a CPU's power is not known."""
    measured, several = counter(gpus(0, 1)), counter(gpus(0, 1, 0, 1, processes=[0, 0, 1, 1]))
    driver.works = False
    estimated = counter(gpus(0, 1))
    monkeypatch.setattr(energy, "open_meter", lambda devices: None)
    unknown = counter(cpu)
    driver.mJ["0"], clock.wall = 31_000, 110.0
    assert measured() == {"joules": 30.0}
    assert several() == {"joules_est": 60.0}  # the other process's two GPUs are taken to use as much
    assert estimated() == {"joules_est": 2 * 700 * 10.0}
    assert unknown() == {"unmetered_seconds": 10.0}


def test_a_meter_that_fails_later_is_not_taken_to_stand_still(driver, clock):
    spent = counter(gpus(0))
    driver.mJ["0"], clock.wall = 31_000, 110.0
    spent()
    del driver.mJ["0"]
    clock.wall = 125.0
    assert spent() == {"joules": 30.0, "unmetered_seconds": 15.0}


def test_attempts_add_up_to_what_all_of_them_know():
    """A sum is measured if all of it was, and known if all of it is."""
    assert kilowatt_hours({"joules": 7.2e6}) == (2.0, None)
    assert kilowatt_hours({"joules": 7.2e6, "joules_est": 3.6e6}) == (None, 3.0)
    assert kilowatt_hours({"joules": 7.2e6, "unmetered_seconds": 1.0}) == (None, None)
    assert kilowatt_hours({"joules": 0.0}) == (0.0, None)
    assert kilowatt_hours({}) == (None, None)


def test_power_is_a_devices():
    """A TPU7x chip of 1085 W has two; the longer of two names that begin alike is meant."""
    assert device_watts("TPU7x") == 1085 / 2
    assert device_watts("TPU v5 lite") == 155
    assert device_watts("TPU v5") == 235
    assert device_watts("cpu") is None
