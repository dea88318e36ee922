"""What ends a run, and what becomes of it when it is started again: the same bits, or a reason."""

import dataclasses
import math
import shutil

import pytest
from same_training import (
    PLAIN,
    SAVES_ALL_STEPS,
    assert_same_training,
    kept_steps,
    stop_after,
)

from scaling.data.token_store import open_store
from scaling.errors import InputError, LostClaimError, RunFailedError, StoppedError
from scaling.files import read_json, write_json
from scaling.runs import Placement, run_id
from scaling.training import loop, records, trainer
from scaling.training.claims import lost, read_claim, record_once
from scaling.training.loop import train
from scaling.training.records import read_lines, records_of
from scaling.training.result import make_result
from scaling.training.schedules import learning_rates

pytestmark = pytest.mark.usefixtures("quick_compilation")


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


@pytest.mark.parametrize("damage", ["a line is lost", "a number is another", "an early line is lost", "all is lost"])
def test_a_checkpoint_whose_metrics_are_not_whole_is_not_used(run, stores, finished, tmp_path, damage):
    """Both of steps 8 and 9 need line 7; so does every one since. An early line all need: the run starts over, and
    none of the others, which stood until then, is left."""
    stopped_at(9, run, stores, tmp_path)
    path = tmp_path / "attempts" / "1" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    changed = {
        "a line is lost": [*lines[:-3], *lines[-2:]],
        "a number is another": [*lines[:-1], lines[-1].replace('"loss": ', '"loss": 1')],
        "an early line is lost": [*lines[:2], *lines[3:]],
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

    def recorded_by_another(*arguments):
        write_json(tmp_path / "attempts" / "7" / "attempt.json", {"attempt": 7, "outcome": None})
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


def test_a_run_that_loses_what_it_has_learned_has_diverged(run, stores, tmp_path, monkeypatch):
    """A rate in the middle throws the parameters far off, but not out of range: the loss stays finite, and high.

    Stopped and started again on the way, it is found at the same step.
    """
    rates = learning_rates(run := dataclasses.replace(run, steps=100, eval_points=1))
    rates[50] = 1e3
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
