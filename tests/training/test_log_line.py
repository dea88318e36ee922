"""The lines of a training: rates over the steps between two of them, and what of memory a compiler says."""

import types

import jax
import jax.numpy as jnp
import pytest

from scaling.models.counts import flops_per_token
from scaling.parallel import absent
from scaling.runs import Placement
from scaling.training import log_line, records
from scaling.training.log_line import Pace, memory_line
from scaling.training.loop import train
from scaling.training.records import Clock, read_lines

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_a_line_is_of_the_steps_since_the_one_before(run, monkeypatch):
    """20 steps of 128 tokens on 4 devices: two steps in 0.5 s of training are 128 tokens a second and device."""
    peak = 128 * flops_per_token(run.model, run.data.sequence_length) / 0.4
    monkeypatch.setattr(log_line, "mfu", lambda flops_per_second, devices: flops_per_second / (peak * devices))
    pace = Pace(run, 4, step=10, seconds={"train": 7.0, "compile": 3.0})
    first = pace.line(12, 3.14159, {"train": 7.5, "compile": 3.0})
    assert first == "step 12/20  loss 3.1416  128 tokens/s/chip  MFU 40.0%  0:00:02 left"
    # Since the start 4 steps took 1.5 s of training and 498.5 s of evaluation: 6 more take 750 s.
    second = pace.line(14, 3.0, {"train": 8.5, "compile": 3.0, "evaluate": 498.5})
    assert second == "step 14/20  loss 3.0000  64 tokens/s/chip  MFU 20.0%  0:12:30 left"


def test_a_chip_may_have_two_devices(run, monkeypatch):
    """As a TPU7x has: 128 tokens a second on 4 devices are 64 a chip."""
    kind = types.SimpleNamespace(device_kind="TPU7x")
    monkeypatch.setattr(log_line.jax, "local_devices", lambda: [kind])
    assert "  64 tokens/s/chip  " in Pace(run, 4, 0, {}).line(1, 5.0, {"train": 1.0})


def test_the_first_step_and_a_slow_one_have_a_line(run, stores, tmp_path, monkeypatch):
    """Between those that metrics.jsonl has, which are a matter of the step alone."""
    monkeypatch.setattr(records, "LOGGED_LINES", 2)
    logged = {10, 20}
    for seconds, said_steps in ((1e9, [1, 10, 20]), (0.0, list(range(1, 21)))):
        monkeypatch.setattr(log_line, "LINE_SECONDS", seconds)
        said = []
        train(run, Placement(), stores, tmp_path / str(seconds), say=said.append)
        assert [line.split()[1] for line in said[1:]] == [f"{k}/20" for k in said_steps]
        lines = read_lines(tmp_path / str(seconds) / "metrics.jsonl")
        assert {line["step"] for line in lines if "loss" in line} == logged


def test_without_a_published_peak_there_is_no_mfu(run):
    line = Pace(run, 1, 0, {}).line(1, 5.0, {"train": 1.0})
    assert line == "step 1/20  loss 5.0000  128 tokens/s/chip  0:00:19 left"


def test_the_compiled_memory_is_said_with_what_there_is(monkeypatch):
    compiled = jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((4096, 4096), jnp.float32)).compile()
    assert memory_line(compiled).startswith(
        "memory of the compiled step, GiB per device: arguments 0.06, "
    )  # 2^26 bytes
    assert memory_line(compiled).endswith("there is: unknown, as this backend does not say")
    said = types.SimpleNamespace(
        argument_size_in_bytes=2**29,
        temp_size_in_bytes=2**30,
        output_size_in_bytes=0,
        alias_size_in_bytes=0,
        peak_memory_in_bytes=3 * 2**29,
    )
    monkeypatch.setattr(log_line, "memory_of", lambda compiled, _: absent.memory_of(compiled, "tpu"))
    monkeypatch.setattr(log_line, "device_bytes", lambda: 63 * 2**28)
    assert memory_line(types.SimpleNamespace(memory_analysis=lambda: said)) == (
        "memory of the compiled step, GiB per device: arguments 0.50, temporaries 1.00, peak 1.50 (stated by the "
        "compiler); there is: 15.75"
    )
    assert "does not say" in memory_line(types.SimpleNamespace(memory_analysis=lambda: None))


def test_a_training_says_its_memory_and_then_a_line_a_logged_step(run, stores, tmp_path):
    said = []
    train(run, Placement(), stores, tmp_path, say=said.append)
    assert said[0].startswith("memory of the compiled step")
    assert [line.split()[1] for line in said[1:]] == [f"{k}/20" for k in range(1, 21)]
    assert said[-1].endswith("0:00:00 left")


def test_a_clock_reads_what_is_being_measured_too(monkeypatch):
    now = iter([0.0, 2.0, 5.0, 9.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = Clock({"train": 10.0, "save": 1.0})
    with clock.measure("train"):
        assert clock.so_far() == {"train": 12.0, "save": 1.0}
        assert clock.seconds["train"] == 10.0
    assert clock.so_far() == {"train": 15.0, "save": 1.0}
