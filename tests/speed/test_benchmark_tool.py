"""tools.benchmark as a user meets it, and what it measures of a config."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from scaling.errors import InputError
from scaling.models.counts import flops_per_token
from scaling.parallel.chips import CHIPS
from scaling.runs import Placement
from scaling.speed import parts, stopwatch, throughput
from scaling.speed.records import Record, read_record, this_machine, versions, write_record
from scaling.speed.rows import Row
from scaling.speed.shapes import Shape, run_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = pathlib.Path(__file__).parents[2]
ONE_MODEL = ["--config=experiments/configs/smoke.py", "--cells=17k", "--suppose_vocab=256", "--repeats=1"]
TINY = run_of(Shape(16, n_layers=2, n_heads=2, length=12, batch=4, vocab_size=19), "fp32")
NAME = "d20x2, N 14,820, L 64, fp32"


def benchmark(*flags):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tools.benchmark", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_model_is_measured_compared_and_written(tmp_path):
    """The earlier file says that the plan's estimate of the memory, which does not vary, was ten times as good."""
    here = this_machine("cpu", jax.local_device_count())
    earlier = Row(f"memory {NAME}", "GiB", 1.0, 10.0, "")
    write_record(tmp_path / "old.json", Record(here, versions(), "2026-01-01", (earlier,), {}))
    done = benchmark(*ONE_MODEL, f"--out={tmp_path}/new.json", f"--compare={tmp_path}/old.json")
    assert done.returncode == 3, done.stderr
    assert f"failed: slower by more than 10 %: memory {NAME}: 10.000x on 2026-01-01, " in done.stderr
    assert f"not measured in 2026-01-01: train {NAME}" in done.stdout
    found = read_record(tmp_path / "new.json")
    assert found.machine == here
    assert found.versions == versions()
    assert [row.name for row in found.rows] == [f"train {NAME}", f"memory {NAME}"]
    assert f"train {NAME}" in done.stdout


def test_models_that_do_not_fit_are_told(tmp_path):
    """64 replicas on 8 devices: the command goes on, and leaves a file that says so."""
    done = benchmark(*ONE_MODEL, "--config.placement.data=64", f"--out={tmp_path}/speed.json")
    assert done.returncode == 0, done.stderr
    assert f"not measured: {NAME}: placement needs 64 devices, this machine has 8" in done.stdout
    found = read_record(tmp_path / "speed.json")
    assert found.rows == ()
    assert found.left_out.keys() == {NAME}


def test_a_process_that_dies_is_an_error_that_says_so():
    with pytest.raises(InputError, match="the part: the process that measured it has ended without a word"):
        parts._alone("the part", os._exit, 1)


@pytest.fixture
def short_samples(monkeypatch):
    monkeypatch.setattr(stopwatch, "SECONDS", 0.01)
    monkeypatch.setattr(throughput, "SIDE", 64)


def test_throughput_and_memory_of_a_run(short_samples):
    speed, memory = throughput.measure_run("tiny", TINY, None, 2)
    assert (speed.name, speed.unit, len(speed.samples)) == ("train tiny", "tokens/s", 2)
    assert "a product of 64 x 64 matrices in fp32" in speed.peer_is
    assert (memory.name, memory.unit) == ("memory tiny", "GiB")
    assert memory.ours > 0


def test_the_published_peak_is_the_yardstick_where_there_is_one(short_samples, monkeypatch):
    """The ratio is then the MFU: tokens/s x FLOPs a token over the peak."""
    monkeypatch.setattr(throughput, "peak_flops", lambda kind: 2e12)
    speed, _ = throughput.measure_run("tiny", TINY, Placement(data=2), 1)
    F = flops_per_token(TINY.model, TINY.data.sequence_length)
    assert speed.ratio == pytest.approx(speed.ours * F / 4e12, rel=1e-12)
    assert "the published bf16 peak of 2 devices" in speed.peer_is


def test_the_fastest_placement_that_fits_is_measured(short_samples, monkeypatch):
    """The first that the plan takes is refused, as by a compiler; the second runs out of memory; the third is taken."""
    candidates = [Placement(data=2), Placement(data=4), Placement(microbatch=2)]
    monkeypatch.setattr(throughput, "placements_here", lambda run: candidates)
    measured = throughput._measured

    def refusing(name, run, placement, repeats):
        if placement == candidates[0]:
            raise InputError("takes 9 GiB, and there is less")
        if placement == candidates[1]:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return measured(name, run, placement, repeats)

    monkeypatch.setattr(throughput, "_measured", refusing)
    speed, _ = throughput.measure_run("tiny", TINY, None, 1)
    assert "2 x 2 a shard" in speed.what
    with pytest.raises(InputError, match="runs out of memory as data 4"):
        throughput.measure_run("tiny", TINY, candidates[1], 1)


def test_many_microbatches_are_measured_by_a_few(short_samples):
    run = run_of(Shape(16, n_layers=2, n_heads=2, length=12, batch=32, vocab_size=19), "fp32")
    speed, _ = throughput.measure_run("tiny", run, Placement(microbatch=2), 1)
    assert "8 x 12 tokens" in speed.what


@pytest.mark.parametrize(
    ("kind", "devices", "expected"),
    [
        ("cpu", 8, "cpu:1"),
        ("NVIDIA H200", 8, "h200:8"),
        ("NVIDIA H100 80GB HBM3", 1, "h100:1"),
        ("TPU v5 lite", 4, "v5e:2x2"),
        ("TPU v5p", 4, "v5p:2x2x1"),
        ("TPU7x", 8, "tpu7x:2x2x1"),
    ],
)
def test_the_devices_here_as_a_topology(monkeypatch, kind, devices, expected):
    assert any(kind.startswith(start) for chip in CHIPS.values() for start in chip.kinds) or kind == "cpu"
    assert throughput.topology_of(kind, devices).text == expected


@pytest.mark.parametrize(
    ("kind", "devices", "fault"), [("Tesla T4", 1, "no plan knows"), ("TPU v5 lite", 3, "are no whole slice")]
)
def test_devices_that_no_plan_knows_ask_for_a_placement(kind, devices, fault):
    with pytest.raises(InputError, match=rf"{fault}.*give --config.placement"):
        throughput.topology_of(kind, devices)
