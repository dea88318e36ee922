"""Which candidate is taken, by a compiler that is played here; and real ones, each in a process of its own."""

import dataclasses
import importlib.metadata
import sys

import pytest

from scaling.errors import InputError
from scaling.parallel.memory import estimate_memory
from scaling.parallel.placements import Candidate, choose
from scaling.parallel.roofline import estimate_step
from scaling.parallel.topology import parse_topology
from scaling.runs import DataSpec, ModelShape, OptimizerSpec, Placement, Run, ScheduleSpec
from scaling.specs import from_dict, to_dict
from scaling.sweeps import prove as module
from scaling.sweeps.prove import environment, first_that_fits, next_candidates, outcome, prove, prove_all

SHAPE = ModelShape(d_model=64, n_layers=2, n_heads=2, d_ff=128, vocab_size=256)
CPU = parse_topology("cpu:4")
HBM = 2.0  # GiB, of the played compiler


def run_of(shape: ModelShape = SHAPE, batch_size: int = 8, length: int = 32) -> Run:
    optimizer, schedule = OptimizerSpec(peak_lr=1e-3), ScheduleSpec("cosine", warmup_steps=10)
    return Run(shape, DataSpec("text", length, eval_windows=2), batch_size, 1000, optimizer, schedule)


def candidate(gib: float, **placement: int) -> Candidate:
    """A candidate whose memory is estimated so; its placement tells it apart."""
    place = Placement(**placement)
    memory = estimate_memory(run_of(), place, CPU)
    memory = dataclasses.replace(memory, saved=gib * 2**30 - (memory.total - memory.saved))
    return Candidate(place, memory, estimate_step(run_of(), place, CPU))


A, B, C, D = candidate(1.8, data=4), candidate(1.9, fsdp=4), candidate(1.7, fsdp=2, data=2), candidate(1.0, tensor=2)


def played(*peaks: tuple[Candidate, float | None]):
    """A compiler that finds so many GiB for each candidate; for None it fails for another reason."""
    by_placement = {each.placement: peak for each, peak in peaks}

    def prove(run, placement, topology):
        peak = by_placement[placement]
        fits = peak is not None and peak <= HBM
        reason = "" if fits else "too large" if peak else "Mosaic failed"
        return {
            "placement": to_dict(placement), "fits": fits, "reason": reason, "peak_gib": peak, "hbm_gib": HBM,
            "compile_seconds": 3.0,
        }  # fmt: skip

    return prove


def tried(proof) -> list[Placement]:
    return [from_dict(Placement, each["placement"]) for each in proof["tried"]]


def test_the_first_that_fits_is_taken():
    said = []
    taken, proof = first_that_fits(run_of(), [A, B], CPU, said.append, played((A, 1.95), (B, 1.0)))
    assert taken is A
    assert proof["fits"]
    (only,) = proof["tried"]
    assert only["peak_gib"] == 1.95
    assert only["memory_gib_est"] == pytest.approx(1.8)
    assert said == ["fits: 1.95 of 2.00 GiB (estimated 1.80), compiled in 3 s"]


def test_after_one_that_is_too_large_comes_what_is_smaller_by_enough():
    """A needs 1.5 times its estimate. B is larger than A; C would need 2.55 of 2 GiB; D 1.5."""
    taken, proof = first_that_fits(run_of(), [A, B, C, D], CPU, list, played((A, 2.7), (B, 1.0), (C, 1.0), (D, 1.4)))
    assert taken is D
    assert tried(proof) == [A.placement, D.placement]


def test_what_would_not_fit_either_is_tried_last():
    assert next_candidates([B, C, D], A, {"peak_gib": 2.7, "hbm_gib": HBM}) == [D, C]
    # An estimate above what was needed makes no other one larger.
    assert next_candidates([B, C, D], A, {"peak_gib": 2.01, "hbm_gib": HBM}) == [C, D]


def test_a_failure_for_another_reason_says_nothing_of_memory():
    said = []
    taken, proof = first_that_fits(run_of(), [A, B], CPU, said.append, played((A, None), (B, 1.5)))
    assert taken is B
    assert tried(proof) == [A.placement, B.placement]
    assert said[0] == "Mosaic failed"


def test_six_tries_and_no_more():
    many = [candidate(1.9 - k / 100, microbatch=8 // 2 ** (k % 4), data=2 ** (k // 4)) for k in range(9)]
    taken, proof = first_that_fits(run_of(), many, CPU, list, played(*[(each, 2.5) for each in many]))
    assert taken is None
    assert tried(proof) == [each.placement for each in many[:6]]
    assert proof["reason"] == "too large"


def test_jobs_keep_their_order_and_end_at_a_refusal():
    assert prove_all([lambda k=k: k * k for k in range(5)], provers=2) == [0, 1, 4, 9, 16]

    def refuse():
        raise InputError("no compiler")

    later = []
    with pytest.raises(InputError, match="no compiler"):
        prove_all([refuse, *[lambda: later.append(1)] * 100], provers=1)
    assert len(later) < 100


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "import os, sys; print('last words', file=sys.stderr, flush=True); os.abort()",
            "ended with signal 6: last words",
        ),
        ("import sys; sys.exit(3)", "ended with code 3: it said nothing"),
        ("""print('{"failed": "KeyError: 7"}')""", "KeyError: 7"),
    ],
)
def test_a_compiler_that_crashes_is_a_reason(monkeypatch, code, reason):
    monkeypatch.setattr(module, "COMMAND", [sys.executable, "-c", code])
    proof = prove(run_of(), Placement(data=4), CPU)
    assert not proof["fits"]
    assert reason in proof["reason"]
    assert outcome(proof, A) == proof["reason"]
    assert next_candidates([B], A, proof) == [B]


def test_a_compiler_that_hangs_is_a_reason(monkeypatch):
    monkeypatch.setattr(module, "COMMAND", [sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(module, "MOST_SECONDS", 0.2)
    assert prove(run_of(), Placement(data=4), CPU)["reason"] == "the compiler did not end in 0 s"


def test_the_environment_of_a_compiler():
    assert environment(CPU)["JAX_NUM_CPU_DEVICES"] == "4"
    for text in ("cpu:4", "v5e:2x2", "h100:8"):
        assert environment(parse_topology(text))["JAX_PLATFORMS"] == "cpu"


def test_a_run_is_proved_by_the_compiler_of_this_machine():
    """Fully sharded over four fake devices: each is given a quarter of all parameters and moments.

    What else is given are norms, whole on each device (4 bytes x 3 x (2 + 2 + 1) x 64 at most), tokens and the rate.
    """
    run = run_of()
    proof = prove(run, Placement(fsdp=4), CPU)
    assert proof["fits"], proof["reason"]
    assert proof["topology"] == "cpu:4"
    assert proof["placement"] == {"fsdp": 4}
    matrices = 2 * 256 * 64 + 2 * (4 * 64 * 64 + 2 * 64 * 128)
    beside = proof["arguments_gib"] * 2**30 - 12 * matrices / 4
    assert 0 < beside < 4 * 3 * 5 * 64 + 1000
    assert proof["peak_gib"] > proof["arguments_gib"]
    assert proof["collectives"]["all-gather"]["count"] > 0
    assert 0 < proof["rss_gib"] < 4
    assert proof["compile_seconds"] > 0


def test_a_placement_of_other_hardware_is_refused():
    with pytest.raises(InputError, match="the placement has 2 devices, cpu:4 has 4"):
        prove(run_of(), Placement(data=2), CPU)


def needs(*packages: str) -> None:
    """Skips where a compiler is not installed. cuDNN is what GPUs' attention is compiled with."""
    there = {name.replace("-", "_").lower() for dist in importlib.metadata.distributions() if (name := dist.name)}
    if missing := [package for package in packages if package.replace("-", "_") not in there]:
        pytest.skip(f"{', '.join(missing)} not installed: pip install 'scaling[aot]'")


SMALL = ModelShape(d_model=256, n_layers=2, n_heads=2, d_ff=1024, vocab_size=8192)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "packages"), [("v5e:2x2", ["libtpu"]), ("h100:8", ["jax-cuda12-plugin", "nvidia-cudnn-cu12"])]
)
def test_a_small_model_is_proved_for_absent_hardware(text, packages):
    """By the first choice of the planner."""
    needs(*packages)
    topology = parse_topology(text)
    run = dataclasses.replace(run_of(SMALL, batch_size=8, length=512), precision="bf16")
    taken, proof = first_that_fits(run, choose(run, topology), topology, list)
    assert taken is not None, proof["reason"]
    assert len(proof["tried"]) == 1
    assert proof["compiler"].startswith(packages[0])
    assert proof["arguments_gib"] < proof["peak_gib"] < proof["hbm_gib"] == topology.device_memory / 2**30
    assert proof["collectives"]


@pytest.mark.slow
def test_what_does_not_fit_is_followed_by_what_does():
    """A replica of 1.4B parameters takes 16 bytes a parameter, 21 GiB, on each chip of 15.75; cut over four it fits."""
    needs("libtpu")
    topology = parse_topology("v5e:2x2")
    shape = ModelShape(d_model=2048, n_layers=25, n_heads=16, d_ff=8192, vocab_size=32_000)
    run = dataclasses.replace(run_of(shape, batch_size=4, length=2048), precision="bf16")
    candidates = [
        Candidate(p, estimate_memory(run, p, topology), estimate_step(run, p, topology))
        for p in (Placement(data=4, remat="full"), Placement(fsdp=4, remat="full"))
    ]
    taken, proof = first_that_fits(run, candidates, topology, list)
    assert taken is candidates[1]
    first, second = proof["tried"]
    assert "RESOURCE_EXHAUSTED" in first["reason"]
    assert first["peak_gib"] > 15.75 > second["peak_gib"] > 4
