import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest

from scaling.data.batches import batch, eval_windows
from scaling.data.token_store import open_store
from scaling.errors import BusyError, InputError, LostClaimError, RunFailedError, StoppedError
from scaling.files import read_json, write_json
from scaling.models.counts import counts
from scaling.parallel.mesh import batch_sharding, make_mesh
from scaling.runs import Placement, run_from_dict, run_id
from scaling.training import claims, loop, records, trainer
from scaling.training.attempts import begun
from scaling.training.care import Care
from scaling.training.checkpoints import Checkpoints
from scaling.training.claims import lost, read_claim, record_once
from scaling.training.evaluation import evaluate, row_multiple, rows_at_a_time
from scaling.training.loop import train
from scaling.training.records import read_lines, records_of
from scaling.training.result import make_result
from scaling.training.schedules import learning_rates
from scaling.training.step import make_program
from scaling.training.trainer import evaluation_steps

pytestmark = pytest.mark.usefixtures("quick_compilation")

PLAIN = Placement()
SAVES_ALL_STEPS = Care(checkpoint_seconds=1e-9)


def stop_after(steps):
    """Asked after each step, it says stop after so many."""
    answers = iter([False] * (steps - 1))
    return lambda: next(answers, True)


def program_of(run, placement=PLAIN):
    return make_program(run, placement, make_mesh(placement))


def saved(run, directory):
    """The latest checkpoint: steps done, and the state's leaves."""
    with Checkpoints(directory / "checkpoints", run_id(run), 0, read_only=True) as checkpoints:
        step, state, *_ = checkpoints.restore(program_of(run).abstract_state)
    return step, [np.asarray(x) for x in jax.tree.leaves(state)]


def kept_steps(directory):
    return sorted(int(path.name.partition("-")[0]) for path in (directory / "checkpoints").glob("[0-9]*"))


def assert_same_training(run, directory, expected):
    """Bit for bit: the state, the metrics, and the result but for its timing."""
    assert (directory / "metrics.jsonl").read_text() == (expected / "metrics.jsonl").read_text()
    results = [read_json(where / "result.json") for where in (directory, expected)]
    for result in results:
        del result["timing"]
    assert results[0] == results[1]
    (step, leaves), (expected_step, expected_leaves) = saved(run, directory), saved(run, expected)
    assert step == expected_step == run.steps
    assert all(np.array_equal(x, y) for x, y in zip(leaves, expected_leaves, strict=True))


@pytest.fixture(scope="module")
def finished(run, stores, tmp_path_factory):
    """The directory of the run, trained without interruption."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    train(run, PLAIN, stores, directory)
    return directory


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
        *("wall_seconds", "lost_seconds", "tokens_trained", "energy_kwh", "energy_kwh_est", "attempt"),
    }
    assert timing["tokens_trained"] == run.tokens
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


@pytest.mark.parametrize("stops", [[1], [9], [19], [3, 4, 10]])
def test_resumed_equals_uninterrupted(run, stores, finished, tmp_path, stops):
    """Stopped after 1 step, at an evaluation, one before the end, and three times."""
    done = 0
    for stop in stops:
        with pytest.raises(StoppedError, match=f"at step {stop} of 20; its state is saved"):
            train(run, PLAIN, stores, tmp_path, stopping=stop_after(stop - done))
        assert kept_steps(tmp_path)[-1] == stop
        assert not (tmp_path / "result.json").exists()
        done = stop
    train(run, PLAIN, stores, tmp_path)
    assert_same_training(run, tmp_path, finished)


def test_a_stop_after_the_last_step_is_none(run, stores, finished, tmp_path):
    train(run, PLAIN, stores, tmp_path, stopping=stop_after(run.steps))
    assert_same_training(run, tmp_path, finished)


def test_killed_between_the_last_checkpoint_and_the_result(run, stores, finished, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_result", killed)
        with pytest.raises(KeyboardInterrupt):
            train(run, PLAIN, stores, tmp_path)
    assert kept_steps(tmp_path) == [run.steps]
    train(run, PLAIN, stores, tmp_path)
    assert_same_training(run, tmp_path, finished)


def test_records_past_the_checkpoint_are_cut_back(run, stores, finished, tmp_path):
    """A killed process leaves lines of steps that will be done again, the last one perhaps half-written."""
    with pytest.raises(StoppedError):
        train(run, PLAIN, stores, tmp_path, stopping=stop_after(5))
    for name in ("metrics.jsonl", "timing.jsonl"):
        with open(tmp_path / "attempts" / "1" / name, "a") as f:
            f.write('{"step": 6, "loss": 9.9}\n{"step": 7, "lo')
    train(run, PLAIN, stores, tmp_path)
    assert_same_training(run, tmp_path, finished)
    assert [line["step"] for line in read_lines(tmp_path / "timing.jsonl")] == [
        line["step"] for line in read_lines(finished / "timing.jsonl")
    ]


@pytest.mark.parametrize(("keep_every", "kept"), [(0, [19, 20]), (8, [8, 16, 19, 20])])
def test_checkpoints_on_the_way_change_nothing(run, stores, finished, tmp_path, keep_every, kept):
    """The newest two are kept, and every n-th."""
    train(run, PLAIN, stores, tmp_path, care=dataclasses.replace(SAVES_ALL_STEPS, keep_every=keep_every))
    assert kept_steps(tmp_path) == kept
    assert_same_training(run, tmp_path, finished)


def stopped_at(steps, run, stores, directory, care=SAVES_ALL_STEPS):
    """A run that was stopped after so many steps, each of them saved."""
    with pytest.raises(StoppedError):
        train(run, PLAIN, stores, directory, stopping=stop_after(steps), care=care)


def flip_a_byte(checkpoint):
    """In the middle of the arrays of a checkpoint, where orbax alone would load it without a word."""
    data = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)


def test_of_a_damaged_checkpoint_the_one_before_is_used(run, stores, finished, tmp_path):
    stopped_at(9, run, stores, tmp_path)
    flip_a_byte(tmp_path / "checkpoints" / "9-1")
    said = []
    train(run, PLAIN, stores, tmp_path, say=said.append)
    assert sum(line.startswith("checkpoint 9-1 is set aside: ") for line in said) == 1
    assert (tmp_path / "checkpoints" / "damaged-9-1").exists()
    attempt = read_json(tmp_path / "attempts" / "2" / "attempt.json")
    assert (attempt["from_step"], attempt["outcome"]) == (8, "recorded")
    assert [fault["checkpoint"] for fault in attempt["set_aside"]] == ["9-1"]
    assert_same_training(run, tmp_path, finished)


def test_without_a_good_checkpoint_a_run_starts_over_and_says_so(run, stores, finished, tmp_path):
    stopped_at(9, run, stores, tmp_path)
    for page in tmp_path.glob("checkpoints/[0-9]*/progress/metadata"):
        page.write_text(page.read_text().replace('"step": ', '"step": 1'))
    said = []
    train(run, PLAIN, stores, tmp_path, say=said.append)
    assert "no checkpoint is good: the run starts over" in said
    assert_same_training(run, tmp_path, finished)


@pytest.mark.parametrize("damage", ["a line is lost", "a number is another", "all is lost"])
def test_a_checkpoint_whose_metrics_are_not_whole_is_not_used(run, stores, finished, tmp_path, damage):
    """Both of steps 8 and 9 need line 7; so does every one since."""
    stopped_at(9, run, stores, tmp_path)
    path = tmp_path / "attempts" / "1" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    changed = {
        "a line is lost": [*lines[:-3], *lines[-2:]],
        "a number is another": [*lines[:-1], lines[-1].replace('"loss": ', '"loss": 1')],
        "all is lost": [],
    }
    path.write_text("".join(changed[damage]))
    train(run, PLAIN, stores, tmp_path)
    set_aside = read_json(tmp_path / "attempts" / "2" / "attempt.json")["set_aside"]
    assert set_aside
    assert all("metrics.jsonl" in fault["reason"] for fault in set_aside)
    assert_same_training(run, tmp_path, finished)


def test_a_checkpoint_of_another_run_is_refused(run, stores, tmp_path):
    stopped_at(3, run, stores, tmp_path / "one")
    other = dataclasses.replace(run, seed=1)
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "checkpoints").rename(tmp_path / "two" / "checkpoints")
    with pytest.raises(InputError, match=f"is of another run, '{run_id(run)}', and not of '{run_id(other)}'"):
        train(other, PLAIN, stores, tmp_path / "two")
    assert read_json(tmp_path / "two" / "failure.json")["kind"] == "refused"


def test_what_was_spent_adds_up_over_attempts(run, stores, tmp_path):
    """Step 9's checkpoint is damaged, so 9 steps and then 12 are taken of 20."""
    stopped_at(9, run, stores, tmp_path)
    before = read_claim(tmp_path).spent
    assert before["tokens"] == 9 * run.batch_tokens
    flip_a_byte(tmp_path / "checkpoints" / "9-1")
    train(run, PLAIN, stores, tmp_path)
    spent = read_claim(tmp_path).spent
    assert spent["tokens"] == 21 * run.batch_tokens
    assert spent["wall_seconds"] > before["wall_seconds"] > 0
    assert read_claim(tmp_path).released


def test_an_owner_that_was_taken_over_saves_nothing_more(run, stores, finished, tmp_path, monkeypatch):
    """It finds out before it saves; the one that took over records the result, and the run's failure is nobody's."""
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Attempt, "check", lambda attempt: take_over(attempt.directory))
        with pytest.raises(LostClaimError, match="another process has taken over this run"):
            train(run, PLAIN, stores, tmp_path, care=SAVES_ALL_STEPS)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))
    assert read_json(tmp_path / "attempts" / "1" / "attempt.json")["outcome"] == "lost"
    assert not (tmp_path / "failure.json").exists()
    train(run, PLAIN, stores, tmp_path)
    assert_same_training(run, tmp_path, finished)


def take_over(directory):
    raise lost(directory)


def test_of_two_results_the_first_stands(run, stores, finished, tmp_path, monkeypatch):
    """A woken owner may come to its end too, when another has recorded the result."""
    first = read_json(finished / "result.json")
    first["timing"]["attempt"] = 7
    write_json(tmp_path / "attempts" / "7" / "attempt.json", {"attempt": 7, "outcome": None})

    def recorded_by_another(*arguments):
        record_once(tmp_path / "result.json", first)
        return make_result(*arguments)

    monkeypatch.setattr(loop, "make_result", recorded_by_another)
    assert train(run, PLAIN, stores, tmp_path) == first
    attempt = read_json(tmp_path / "attempts" / "1" / "attempt.json")
    assert (attempt["outcome"], attempt["same"]) == ("duplicate", True)
    assert read_json(tmp_path / "attempts" / "7" / "attempt.json")["outcome"] == "recorded"


def test_a_run_may_go_on_on_another_mesh(run, stores, finished, tmp_path):
    """To fp32 rounding over twenty steps, 1e-5; a batch or a state that was not the same would show at once."""
    with pytest.raises(StoppedError):
        train(run, PLAIN, stores, tmp_path, stopping=stop_after(7))
    result = train(run, Placement(data=2, fsdp=2, tensor=2), stores, tmp_path)
    assert math.isclose(result["loss"], read_json(finished / "result.json")["loss"], rel_tol=1e-5)
    assert result["timing"]["devices"] == 8


def test_a_recorded_result_is_returned_without_training(run, stores, finished, monkeypatch):
    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(loop, "make_program", refuse)
    before = (finished / "result.json").read_bytes()
    assert train(run, PLAIN, stores, finished) == json.loads(before)
    assert (finished / "result.json").read_bytes() == before


def test_what_a_kill_leaves_undone_after_the_result_is_made_good(run, stores, finished, tmp_path, monkeypatch):
    """Between result.json and the moving of the metrics; an earlier attempt had failed."""
    write_json(tmp_path / "failure.json", {"kind": "killed", "reason": "before"})

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(records, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            train(run, PLAIN, stores, tmp_path)
    assert records_of(tmp_path) == tmp_path / "attempts" / "1"
    train(run, PLAIN, stores, tmp_path)
    assert_same_training(run, tmp_path, finished)
    assert read_json(tmp_path / "attempts" / "1" / "attempt.json")["outcome"] == "recorded"
    assert not (tmp_path / "failure.json").exists()


def test_a_directory_in_use_is_refused(run, stores, tmp_path):
    with begun(run, PLAIN, tmp_path, 60.0), pytest.raises(BusyError, match="another process is training this run"):
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


def test_a_run_that_loses_what_it_has_learned_has_diverged(run, stores, tmp_path, monkeypatch):
    """A rate in the middle throws the parameters far off, but not out of range: the loss stays finite, and high.

    Stopped and started again on the way, it is found at the same step.
    """
    rates = learning_rates(run := dataclasses.replace(run, steps=100, eval_points=1))
    rates[50] = 1e4
    monkeypatch.setattr(trainer, "learning_rates", lambda _: rates)
    reasons = []
    for name, stops in (("whole", []), ("stopped", [52, 6])):
        for steps in stops:
            stopped_at(steps, run, stores, tmp_path / name)
        with pytest.raises(RunFailedError) as failed:
            train(run, PLAIN, stores, tmp_path / name)
        reasons.append(str(failed.value))
        failure = read_json(tmp_path / name / "failure.json")
        assert (failure["kind"], failure["retry"]) == ("diverged", "never")
    assert reasons[0] == reasons[1]
    assert "diverged by step" in reasons[0]


def test_a_store_that_changes_underneath_ends_the_run(run, store, tmp_path):
    """One byte of it: before the run starts, and while it trains."""
    copy = shutil.copytree(store.path, tmp_path / "store")
    shard = next(copy.glob("train-*.tokens"))

    def flip(*_):
        content = bytearray(shard.read_bytes())
        content[0] ^= 1
        shard.write_bytes(content)

    def stores():
        opened = open_store(copy)
        return {opened.content_id: opened}

    with pytest.raises(RunFailedError, match="changed while it was in use"):
        train(run, PLAIN, stores(), tmp_path / "a", report=lambda done, steps: flip() if done == 5 else None)
    assert read_json(tmp_path / "a" / "failure.json")["kind"] == "store_changed"
    assert not (tmp_path / "a" / "result.json").exists()
    with pytest.raises(RunFailedError, match="changed while it was in use"):
        train(run, PLAIN, stores(), tmp_path / "b")
    flip()
    train(run, PLAIN, stores(), tmp_path / "a")
    assert not (tmp_path / "a" / "failure.json").exists()


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
    assert rows_at_a_time(windows, length, shards) == rows
