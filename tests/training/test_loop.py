import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest
from same_training import PLAIN, SAVES_ALL_STEPS, kept_steps, program_of

from scaling.data.batches import batch, eval_windows
from scaling.errors import BusyError, InputError, RunFailedError
from scaling.files import read_json
from scaling.models.counts import counts
from scaling.parallel.mesh import batch_sharding
from scaling.runs import Placement, run_from_dict, run_id
from scaling.training import claims, loop, step, trainer
from scaling.training.attempts import begun
from scaling.training.care import Care
from scaling.training.checkpoints import Checkpoints
from scaling.training.evaluation import evaluate, row_multiple, rows_at_a_time
from scaling.training.loop import train
from scaling.training.records import evaluation_steps, read_lines, records_of
from scaling.training.schedules import learning_rates

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_the_result(run, store, finished):
    result = read_json(finished / "result.json")
    counted = counts(run.model, run.data.sequence_length, run.tokens)
    assert {name: result[name] for name in counted} == counted
    assert result["D"] == run.tokens == 20 * 8 * 16
    epoch = (store.splits["train"].tokens - 1) // 16 * 16
    assert result["epochs"] == run.tokens / epoch
    assert result["unique_tokens"] == min(run.tokens, epoch)
    assert (result["run"], result["steps"], result["seed"]) == (run_id(run), run.steps, run.seed)
    expected = {"schema", "run", *counted, "unique_tokens", "epochs", "steps", "loss", "loss_stderr", "seed", "timing"}
    assert set(result) == expected | {"losses"}
    bits = result["loss"] / math.log(2) * store.splits["validation"].tokens / store.splits["validation"].bytes
    assert result["losses"] == {
        "validation": {"loss": result["loss"], "stderr": result["loss_stderr"], "bits_per_byte": pytest.approx(bits)}
    }
    timing = result["timing"]
    assert set(timing) == {
        *("compile_seconds", "train_seconds", "evaluate_seconds", "save_seconds", "tokens_per_second"),
        *("flops_per_second", "mfu", "device_kind", "devices", "jax"),
        *("wall_seconds", "lost_seconds", "tokens_trained", "energy_kwh", "energy_kwh_est", "attempt", "trunk_steps"),
    }
    assert timing["tokens_trained"] == run.tokens
    assert timing["trunk_steps"] == 0
    assert timing["wall_seconds"] > timing["lost_seconds"] >= 0
    assert all(timing[f"{what}_seconds"] > 0 for what in ("compile", "train", "evaluate", "save"))
    assert math.isclose(timing["flops_per_second"] * timing["train_seconds"], counted["C"])
    assert (timing["mfu"], timing["devices"]) == (None, 1)  # no peak is published for a CPU
    assert run_from_dict(read_json(finished / "run.json")) == run
    assert not (finished / "failure.json").exists()


def test_the_loss_is_of_the_last_steps_parameters_on_the_fixed_windows(run, stores, finished):
    """And its standard error is that of a mean over windows, by numpy."""
    result, program = read_json(finished / "result.json"), program_of(run)
    with Checkpoints(finished / "checkpoints", run_id(run), 0, read_only=True) as checkpoints:
        _, state, *_ = checkpoints.restore(program.abstract_state)
    losses_W = np.asarray(program.window_losses(state.params, eval_windows(stores, run.data)["validation"]), np.float64)
    assert math.isclose(result["loss"], np.mean(losses_W), rel_tol=1e-6)  # of fp32 window losses
    assert math.isclose(result["loss_stderr"], np.std(losses_W, ddof=1) / math.sqrt(10), rel_tol=1e-5)
    lines = read_lines(finished / "metrics.jsonl")
    assert lines[-1]["eval"]["validation"] == {"loss": result["loss"], "stderr": result["loss_stderr"]}
    assert result["loss"] < lines[0]["loss"] - 0.5  # it learned


def test_metrics_and_curves(run, finished):
    lines = read_lines(finished / "metrics.jsonl")
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == list(range(1, run.steps + 1))
    assert [line["tokens"] for line in training] == [k * run.batch_tokens for k in range(1, run.steps + 1)]
    assert np.array_equal(np.float32([line["lr"] for line in training]), learning_rates(run))
    assert all(line["grad_norm"] > 0 for line in training)
    assert [line["step"] for line in lines if "eval" in line] == evaluation_steps(run) == [2, 4, 9, 20]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    timing = read_lines(finished / "timing.jsonl")
    assert len(timing) == len(lines)
    assert set(timing[0]) == {"step", "seconds", "tokens_per_second", "peak_memory_bytes"}


@pytest.mark.parametrize(("steps", "points"), [(100, 10), (1000, 10), (12_345, 10), (100, 1), (100, 2)])
def test_evaluations_are_evenly_spaced_in_log_steps_and_end_at_the_end(run, steps, points):
    at = evaluation_steps(dataclasses.replace(run, steps=steps, eval_points=points))
    assert len(at) == points
    assert at[-1] == steps
    if points > 1:
        assert at[0] == round(steps / 10)
        assert np.abs(np.diff(np.log(at)) - math.log(10) / (points - 1)).max() < 2 * 0.5 / at[0]  # of whole steps


def test_evaluations_of_a_short_run_are_as_many_as_its_steps_allow(run):
    short = dataclasses.replace(run, steps=3, eval_points=10)
    assert evaluation_steps(short) == [1, 2, 3]


def test_training_reads_the_batches_of_its_steps(run, stores, finished):
    """The first loss is that of the initial parameters on batch 0, and the second is not."""
    program = program_of(run)
    params = program.init(jax.random.key(run.seed)).params
    first = np.mean(program.window_losses(params, batch(stores, run.data, run.batch_size, 0)))
    lines = read_lines(finished / "metrics.jsonl")
    assert math.isclose(lines[0]["loss"], first, rel_tol=1e-6)  # an fp32 mean in another order
    assert not math.isclose(lines[1]["loss"], first, rel_tol=1e-6)


def test_a_recorded_result_is_returned_without_training(run, stores, finished, monkeypatch):
    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(loop, "make_program", refuse)
    before = (finished / "result.json").read_bytes()
    assert train(run, PLAIN, stores, finished) == json.loads(before)
    assert (finished / "result.json").read_bytes() == before


def test_a_result_that_another_records_meanwhile_takes_no_attempt(run, stores, finished, tmp_path, monkeypatch):
    """As for one that waits for the claim of a run, and gets it with the result."""
    run_directory = shutil.copytree(finished, tmp_path / "run")
    result = run_directory / "result.json"
    content = result.read_bytes()
    result.unlink()

    def make_program(*arguments):
        result.write_bytes(content)
        return step.make_program(*arguments)

    monkeypatch.setattr(loop, "make_program", make_program)
    assert train(run, PLAIN, stores, run_directory) == json.loads(content)
    assert [path.name for path in (run_directory / "attempts").iterdir()] == ["1"]


def test_a_directory_in_use_is_refused(run, stores, tmp_path):
    with begun(run, tmp_path, 60.0), pytest.raises(BusyError, match="another process is training this run"):
        train(run, PLAIN, stores, tmp_path, care=Care(stale_seconds=0.5 + 2 * claims.BEAT_SECONDS))
    assert not (tmp_path / "attempts" / "2").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_what_does_not_fit_is_refused_before_anything_is_written(run, store, stores, tmp_path):
    size = store.vocab_size
    small = dataclasses.replace(run, model=dataclasses.replace(run.model, vocab_size=size - 1))
    with pytest.raises(InputError, match=rf"model\.vocab_size={size - 1} is below the store's {size}"):
        train(small, PLAIN, stores, tmp_path / "a")
    other = dataclasses.replace(run, data=dataclasses.replace(run.data, store="another"))
    with pytest.raises(InputError, match="reads token store another, which was not given"):
        train(other, PLAIN, stores, tmp_path / "a")
    with pytest.raises(InputError, match="microbatch=3 does not divide batch_size=8"):
        train(run, Placement(microbatch=3), stores, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_progress_is_reported_after_each_logged_step(run, stores, tmp_path):
    reports = []
    train(dataclasses.replace(run, steps=4), PLAIN, stores, tmp_path, report=lambda *args: reports.append(args))
    assert reports == [(k, 4) for k in range(1, 5)]


def test_statistics_of_the_routers_are_logged(run, stores, tmp_path):
    routed = dataclasses.replace(run, steps=2, model=dataclasses.replace(run.model, n_experts=2))
    train(routed, Placement(expert=2), stores, tmp_path)
    lines = [line for line in read_lines(tmp_path / "metrics.jsonl") if "loss" in line]
    assert len(lines) == 2
    assert all({"router_balance", "router_load_max", "router_dropped"} <= line.keys() for line in lines)


def diverging(run, **options):
    """A rate that throws the parameters out of fp32's range at once."""
    optimizer, schedule = (
        dataclasses.replace(run.optimizer, peak_lr=1e38),
        dataclasses.replace(run.schedule, warmup_steps=0),
    )
    return dataclasses.replace(run, optimizer=optimizer, schedule=schedule, **options)


def assert_failed(directory, first_step, last_step):
    failure = read_json(directory / "failure.json")
    assert (failure["kind"], failure["retry"]) == ("not_finite", "never")
    assert first_step <= failure["step"] <= last_step
    assert "loss" in failure["reason"] or "grad_norm" in failure["reason"]
    assert all(step < failure["step"] for step in kept_steps(directory))
    assert not (directory / "result.json").exists()
    for line in read_lines(records_of(directory) / "metrics.jsonl"):
        assert line["step"] < failure["step"] or "eval" not in line
        assert all(map(math.isfinite, [line.get("loss", 0.0), line.get("grad_norm", 0.0)]))


def test_a_loss_that_is_not_finite_ends_the_run(run, stores, tmp_path):
    """With a checkpoint after every step that may have one."""
    with pytest.raises(RunFailedError, match=r"step \d of 20: .*(nan|inf)"):
        train(diverging(run, eval_points=1), PLAIN, stores, tmp_path, care=SAVES_ALL_STEPS)
    assert_failed(tmp_path, 2, 3)


def test_a_loss_that_is_not_finite_ends_a_run_in_the_middle(run, stores, tmp_path, monkeypatch):
    """The rate of step 9 throws the parameters out of range, so the loss of step 10 is the first to see it."""
    rates = learning_rates(run)
    rates[8] = 1e38
    monkeypatch.setattr(trainer, "learning_rates", lambda _: rates)
    with pytest.raises(RunFailedError, match="step 10 of 20"):
        train(dataclasses.replace(run, eval_points=1), PLAIN, stores, tmp_path)
    assert_failed(tmp_path, 10, 10)
    assert [line["step"] for line in read_lines(records_of(tmp_path) / "metrics.jsonl")] == list(range(1, 10))


def test_a_held_out_loss_that_is_not_finite_ends_the_run_too(run, stores, tmp_path):
    """The first step's loss is finite; the evaluation after its update is the first that is not.

    (By LayerNorm, whose mean of large numbers overflows; RMSNorm makes zeros of them, and a finite loss.)
    """
    shape = dataclasses.replace(run.model, norm="layernorm")
    with pytest.raises(RunFailedError, match=r"nan|inf"):
        train(diverging(run, steps=10, model=shape), PLAIN, stores, tmp_path)
    assert_failed(tmp_path, 1, 1)


@pytest.mark.parametrize("rows", [3, 16])
def test_evaluation_does_not_depend_on_the_windows_at_a_time(run, stores, finished, rows):
    """Three at a time, the last group filled up; or all ten and six again. fp32 sums in another order: 1e-6."""
    program, tokens_WxM = program_of(run), eval_windows(stores, run.data)["validation"]
    with Checkpoints(finished / "checkpoints", run_id(run), 0, read_only=True) as checkpoints:
        _, state, *_ = checkpoints.restore(program.abstract_state)
    loss, stderr = evaluate(program.window_losses, state.params, tokens_WxM, rows, batch_sharding(program.mesh))
    result = read_json(finished / "result.json")
    assert math.isclose(loss, result["loss"], rel_tol=1e-6)
    assert math.isclose(stderr, result["loss_stderr"], rel_tol=1e-5)


@pytest.mark.parametrize(
    ("placement", "multiple"),
    [
        (Placement(), 1),
        (Placement(data=2, fsdp=2, expert=2, tensor=2, context=2), 8),
        (Placement(data=2, microbatch=4), 2),  # accumulation is of training alone
        (Placement(data=2, stage=2, microbatch=4), 4),
        (Placement(data=2, stage=2), 2),
    ],
)
def test_the_parts_that_evaluated_windows_fill(placement, multiple):
    assert row_multiple(placement) == multiple


@pytest.mark.parametrize(
    ("windows", "length", "shards", "rows"),
    [(10, 16, 1, 10), (10, 16, 8, 16), (512, 64, 1, 512), (4096, 64, 1, 1024), (100, 2048, 8, 32), (9, 10**6, 2, 2)],
)
def test_windows_at_a_time(windows, length, shards, rows):
    assert rows_at_a_time(windows, length, shards, "gpu") == rows
    assert rows_at_a_time(windows, length, shards, "tpu") == rows


@pytest.mark.parametrize(("windows", "length", "shards", "rows"), [(512, 64, 1, 32), (10, 64, 1, 10), (9, 4096, 2, 2)])
def test_windows_at_a_time_on_a_cpu(windows, length, shards, rows):
    assert rows_at_a_time(windows, length, shards, "cpu") == rows
