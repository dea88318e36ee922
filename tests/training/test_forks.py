"""A fork resumed from its trunk is the run from scratch, to the bit, whatever becomes of the trunk on the way."""

import dataclasses
import itertools
import shutil

import pytest
from same_training import PLAIN, SAVES_ALL_STEPS, assert_same_training, kept_steps, stop_after

from scaling.errors import InputError, RunFailedError, StoppedError
from scaling.files import read_json
from scaling.runs import OptimizerSpec, ScheduleSpec, run_id
from scaling.training import forks, trainer
from scaling.training.attempts import begun
from scaling.training.care import Care
from scaling.training.checkpoint_folders import UNFINISHED
from scaling.training.claims import Held, read_claim
from scaling.training.divergence import History
from scaling.training.loop import train
from scaling.training.records import read_lines, records_of, saved_step
from scaling.training.schedules import check_fork, fork_step, learning_rates

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def trunk(run):
    return dataclasses.replace(run, schedule=ScheduleSpec("wsd", 2, 4))


def fork_of(trunk, steps, decay):
    return dataclasses.replace(trunk, steps=steps, schedule=dataclasses.replace(trunk.schedule, decay_steps=decay))


@pytest.fixture(scope="module")
def shorter(trunk):
    """Two forks, of 7 and of 12 steps, that decay from steps 5 and 9 on."""
    return fork_of(trunk, 7, 2), fork_of(trunk, 12, 3)


@pytest.fixture(scope="module")
def alone(trunk, shorter, stores, tmp_path_factory):
    """The directory of each run, trained from scratch; by run id."""
    root = tmp_path_factory.mktemp("alone")
    for each in (trunk, *shorter):
        train(each, PLAIN, stores, root / run_id(each))
    return root


def directory_of(root, run):
    return root / run_id(run)


def train_trunk(trunk, shorter, stores, root, **options):
    asked = [(fork, directory_of(root, fork)) for fork in shorter]
    return train(trunk, PLAIN, stores, directory_of(root, trunk), forks=asked, **options)


def assert_all_as_alone(trunk, shorter, stores, root, alone, **options):
    for each in (trunk, *shorter):
        train(each, PLAIN, stores, directory_of(root, each), **options)
        assert_same_training(each, directory_of(root, each), directory_of(alone, each))


def own_steps(root, run):
    """How many steps a run that is done has taken itself, by its heartbeat."""
    timing = read_json(directory_of(root, run) / "result.json")["timing"]
    return timing["tokens_trained"] / run.batch_tokens, timing["trunk_steps"]


def test_a_fork_is_the_run_from_scratch(trunk, shorter, stores, alone, tmp_path):
    """State, metrics and result; and what it has spent is that of its own steps."""
    said = []
    train_trunk(trunk, shorter, stores, tmp_path, say=said.append)
    assert_same_training(trunk, directory_of(tmp_path, trunk), directory_of(alone, trunk))
    for fork in shorter:
        directory = directory_of(tmp_path, fork)
        assert f"fork {run_id(fork)} is handed over after step {fork_step(fork)} of {fork.steps}" in said
        assert kept_steps(directory) == [saved_step(directory)] == [fork_step(fork)]
        assert read_claim(directory).released
        assert not (directory / "result.json").exists()
        told = read_json(directory / "attempts" / "1" / "attempt.json")
        assert (told["outcome"], told["trunk"]) == ("handed_over", run_id(trunk))
    assert_all_as_alone(trunk, shorter, stores, tmp_path, alone)
    assert [own_steps(tmp_path, fork) for fork in shorter] == [(2, 5), (3, 9)]
    assert [own_steps(alone, fork) for fork in shorter] == [(7, 0), (12, 0)]
    assert own_steps(tmp_path, trunk) == (20, 0)


def test_the_time_of_a_fork_is_its_own(trunk, shorter, stores, alone, tmp_path):
    """No second of the trunk is in it, and its throughput is over its own steps alone."""
    train_trunk(trunk, shorter, stores, tmp_path)
    fork = shorter[1]
    train(fork, PLAIN, stores, directory_of(tmp_path, fork))
    timing = read_json(directory_of(tmp_path, fork) / "result.json")["timing"]
    lines = read_lines(directory_of(tmp_path, fork) / "timing.jsonl")
    assert lines[0] == {"step": 9, "seconds": {}, "tokens_per_second": None, "peak_memory_bytes": None}
    assert [line["step"] for line in lines[1:]] == [10, 11, 12, 12]
    assert timing["tokens_per_second"] == pytest.approx(3 * fork.batch_tokens / timing["train_seconds"])
    assert timing["train_seconds"] <= timing["wall_seconds"]
    assert lines[-1]["tokens_per_second"] == pytest.approx(timing["tokens_per_second"], rel=0.5)


@pytest.mark.parametrize("stops", [[1], [4], [5], [6], [9], [12], [3, 8, 15]])
def test_a_trunk_that_was_stopped_goes_on_with_its_forks(trunk, shorter, stores, alone, tmp_path, stops):
    """Before, at and after the steps from which the forks go on: nothing is handed over twice, nor forgotten."""
    done = 0
    for stop in stops:
        with pytest.raises(StoppedError):
            train_trunk(trunk, shorter, stores, tmp_path, stopping=stop_after(stop - done))
        done = stop
    train_trunk(trunk, shorter, stores, tmp_path)
    assert [saved_step(directory_of(tmp_path, fork)) for fork in shorter] == [5, 9]
    assert [len(list(directory_of(tmp_path, fork).glob("attempts/*"))) for fork in shorter] == [1, 1]
    assert_all_as_alone(trunk, shorter, stores, tmp_path, alone)


class Killed(BaseException):
    """As kill -9 for what is on the disk: nothing is caught, and nothing more is written by the step under way."""


def half_saved(checkpoints, step, state, progress):
    """A save that a kill cuts short: of what it would write there is a part, under the name that saves begin with."""
    (checkpoints._directory / f"{step}-{checkpoints._attempt}{UNFINISHED}" / "state").mkdir(parents=True)
    raise Killed


# From the hand-over on, at which call of what; and how many attempts at the fork the trunk then needs in all.
KILLED_AT = {
    "before the claim": (forks.claims, "take_patiently", 1, 1),
    "before its metrics": (forks, "write_text", 1, 2),
    "before the checkpoint": (forks.Checkpoints, "save", 1, 2),
    "in the midst of the checkpoint": (forks.Checkpoints, "save", half_saved, 2),
    "after the checkpoint": (forks, "write_json", 3, 1),
}


@pytest.mark.parametrize("where", KILLED_AT)
def test_a_kill_in_the_midst_of_the_hand_over(trunk, shorter, stores, alone, tmp_path, monkeypatch, where):
    """The trunk had saved two steps before, and no claim is let go. Started again, once its claims are stale, it hands
    over where that was not done yet."""
    owner, name, when, attempts = KILLED_AT[where]
    handing, calls = [], itertools.count(1)
    real_hand_over, real, real_release = forks._hand_over, getattr(owner, name), Held.release

    def hand_over(*arguments):
        handing.append(arguments)
        return real_hand_over(*arguments)

    def killed(*arguments, **options):
        if handing and callable(when):
            return when(*arguments, **options)
        if handing and next(calls) == when:
            raise Killed
        return real(*arguments, **options)

    def release(held):
        if handing:
            held._ended.set()  # its heartbeats end, as with the process
        else:
            real_release(held)

    soon_stale = Care(stale_seconds=0.4)
    with monkeypatch.context() as patch:
        patch.setattr(forks, "_hand_over", hand_over)
        patch.setattr(owner, name, killed)
        patch.setattr(Held, "release", release)
        with pytest.raises(StoppedError):
            train_trunk(trunk, shorter, stores, tmp_path, stopping=stop_after(3))
        with pytest.raises(Killed):
            train_trunk(trunk, shorter, stores, tmp_path)
    train_trunk(trunk, shorter, stores, tmp_path, care=soon_stale)
    assert [saved_step(directory_of(tmp_path, fork)) for fork in shorter] == [5, 9]
    folders = [path.name for path in directory_of(tmp_path, shorter[0]).glob("attempts/*")]
    assert sorted(folders) == [str(number) for number in range(1, attempts + 1)]
    assert_all_as_alone(trunk, shorter, stores, tmp_path, alone, care=soon_stale)
    assert [own_steps(tmp_path, fork) for fork in shorter] == [(2, 5), (3, 9)]


def test_a_trunk_that_saves_all_steps(trunk, shorter, stores, alone, tmp_path):
    train_trunk(trunk, shorter, stores, tmp_path, care=SAVES_ALL_STEPS)
    assert_all_as_alone(trunk, shorter, stores, tmp_path, alone)


def test_a_trunk_that_fails_leaves_the_others_to_themselves(trunk, shorter, stores, alone, tmp_path, monkeypatch):
    """At step 7: the first fork has its state, the second begins anew, and both end as alone."""
    real = trainer.Trainer.refuse_infinite

    def refuse(self, done, values):
        real(self, done, {"loss": float("nan")} if done == 7 and self.run.steps == 20 else values)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "refuse_infinite", refuse)
        with pytest.raises(RunFailedError, match="step 7 of 20"):
            train_trunk(trunk, shorter, stores, tmp_path)
    for fork, taken in zip(shorter, (5, 0), strict=True):
        train(fork, PLAIN, stores, directory_of(tmp_path, fork))
        assert_same_training(fork, directory_of(tmp_path, fork), directory_of(alone, fork))
        assert own_steps(tmp_path, fork)[1] == taken


def test_forks_that_are_done_further_or_at_work_are_left_alone(trunk, shorter, stores, alone, tmp_path, snapshot_of):
    """One has its result, one is being trained by another process while the trunk passes."""
    first, second = shorter
    train(first, PLAIN, stores, directory_of(tmp_path, first))
    before, said = snapshot_of(directory_of(tmp_path, first)), []
    with begun(second, directory_of(tmp_path, second), 1.0):
        train_trunk(trunk, shorter, stores, tmp_path, say=said.append)
    assert snapshot_of(directory_of(tmp_path, first)) == before
    assert not any(run_id(first) in line for line in said)
    assert any(run_id(second) in line and "another process is training this run" in line for line in said)
    assert saved_step(directory_of(tmp_path, second)) == 0
    assert_all_as_alone(trunk, shorter, stores, tmp_path, alone)


def test_a_fork_that_ends_while_the_trunk_waits_for_it_is_left_alone(
    trunk, shorter, stores, alone, tmp_path, monkeypatch, snapshot_of
):
    """As where the claim of its process seemed to be stale, and was let go with the result."""
    fork, said = shorter[0], []
    directory, real = directory_of(tmp_path, fork), forks.claims.take_patiently

    def take_patiently(where, stale_seconds):
        if where == directory:
            shutil.copytree(directory_of(alone, fork), directory, dirs_exist_ok=True)
            before.update(snapshot_of(directory))
        return real(where, stale_seconds)

    before = {}
    monkeypatch.setattr(forks.claims, "take_patiently", take_patiently)
    train_trunk(trunk, shorter, stores, tmp_path, say=said.append)
    after = snapshot_of(directory)
    assert {path for path in before | after if before.get(path) != after.get(path)} == {directory / "claim.json"}
    assert read_claim(directory).released
    assert any(run_id(fork) in line and "it has come as far by itself" in line for line in said)


@pytest.fixture
def snapshot_of():
    return lambda root: {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_what_is_no_directory_of_the_fork_does_not_end_the_trunk(trunk, shorter, stores, alone, tmp_path):
    shutil.copytree(directory_of(alone, shorter[0]), directory_of(tmp_path, shorter[1]))
    train_trunk(trunk, shorter, stores, tmp_path)
    assert saved_step(directory_of(tmp_path, shorter[0])) == 5
    with pytest.raises(InputError, match="holds another run"):
        train(shorter[1], PLAIN, stores, directory_of(tmp_path, shorter[1]))


def test_a_checkpoint_from_before_forks_lets_them_go_and_says_so(trunk, shorter, stores, alone, tmp_path):
    """As where a budget was added to a sweep whose trunk was under way."""
    with pytest.raises(StoppedError):
        train_trunk(trunk, (), stores, tmp_path, stopping=stop_after(3))
    said = []
    train_trunk(trunk, shorter, stores, tmp_path, say=said.append)
    for fork in shorter:
        (told,) = [line for line in said if run_id(fork) in line]
        assert "the trunk goes on from step 3" in told
        assert not directory_of(tmp_path, fork).exists()


def test_a_fork_that_would_diverge_alone_is_let_go(trunk, shorter, stores, tmp_path, monkeypatch):
    """Its patience is shorter than the trunk's. From scratch it then ends as it has to."""
    monkeypatch.setattr(forks, "divergence", lambda history: "diverged" if history == _at(history, 4, 7) else None)
    said = []
    train_trunk(trunk, shorter, stores, tmp_path, say=said.append)
    assert any(run_id(shorter[0]) in line and "alone it would have diverged" in line for line in said)
    assert [saved_step(directory_of(tmp_path, fork)) for fork in shorter] == [0, 9]


def _at(history: History, done: int, steps: int) -> History:
    return dataclasses.replace(history, done=done, steps=steps)


def test_rates_are_the_same_up_to_the_fork(trunk, shorter):
    for fork in shorter:
        until = fork_step(fork)
        assert (learning_rates(fork)[:until] == learning_rates(trunk)[:until]).all()
        assert learning_rates(fork)[until] < learning_rates(trunk)[until]


def other(run, **changes):
    return dataclasses.replace(run, **changes)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda r: other(r, batch_size=16), "differ before they decay: batch_size=8 and 16"),
        (lambda r: other(r, optimizer=OptimizerSpec(0.02, eps=1e-3)), "optimizer.peak_lr=0.01 and 0.02"),
        (lambda r: other(r, schedule=other(r.schedule, warmup_steps=3)), "schedule.warmup_steps=2 and 3"),
        (lambda r: other(r, data=other(r.data, seed=1)), "data.seed=0 and 1"),
        (lambda r: other(r, seed=1), "decay: seed=0 and 1"),
        (lambda r: other(r, schedule=ScheduleSpec("cosine", 2)), "schedule.kind='cosine'"),
        (lambda r: other(r, steps=30), "must decay after its forks"),
    ],
)
def test_what_differs_before_the_fork_is_refused(trunk, shorter, stores, tmp_path, change, named):
    """With the field and both values; and before anything is trained."""
    changed = change(shorter[0])
    with pytest.raises(InputError, match=named):
        check_fork(trunk, changed)
    with pytest.raises(InputError):
        train_trunk(trunk, [changed], stores, tmp_path)
    assert saved_step(directory_of(tmp_path, trunk)) == 0


def test_the_lines_of_a_fork_are_read_as_any_others(trunk, shorter, stores, alone, tmp_path):
    """Between hand-over and start its progress is on record, for tools.status and the progress line."""
    train_trunk(trunk, shorter, stores, tmp_path)
    directory = directory_of(tmp_path, shorter[1])
    lines = read_lines(records_of(directory) / "metrics.jsonl")
    whole = read_lines(directory_of(alone, shorter[1]) / "metrics.jsonl")
    assert lines == [line for line in whole if line["step"] <= 9]
    assert lines[-1]["step"] == 9
