"""Which cells fork from which, what that saves, the order in which they are started, and what the tables say of it."""

import dataclasses
import threading

import pytest

from scaling.analysis.table import table_from_frame
from scaling.analysis.verdicts import FEW
from scaling.errors import InputError
from scaling.files import write_json
from scaling.models.counts import counts
from scaling.parallel.topology import parse_topology
from scaling.runs import Placement
from scaling.sweeps import execution, launch
from scaling.sweeps.cells import Cell
from scaling.sweeps.execution import execute
from scaling.sweeps.forks import forks_of, groups, plan_words, saved_words, savings, trunk_steps, trunks
from scaling.sweeps.grid import make_grid
from scaling.sweeps.launch import LOOK_SECONDS, Agenda
from scaling.sweeps.plan import estimated, placement_columns, plan_rows
from scaling.sweeps.results import collect
from scaling.sweeps.status import notes, status_rows, time_left
from scaling.sweeps.tasks import Task, Way, cell_item, waits
from scaling.sweeps.vary import over
from scaling.sweeps.workdir import read_sweep, run_directory, write_sweep
from scaling.training.planned import Planned

BUDGETS = (2e10, 3e10, 5e10)
FORKED = {"recipe": "small_wsd", "sweep__schedule": "forked", "grid__budgets": BUDGETS}


@pytest.fixture
def config(make_config):
    return make_config("small", **FORKED)


@pytest.fixture
def cells(config, make_texts):
    return make_grid(config, make_texts())[0]


@pytest.fixture
def sweep(config, cells, make_texts, tmp_path):
    return write_sweep(tmp_path, config, make_texts(), cells, ())


def finish(workdir, run, trunk_steps=0):
    directory = run_directory(workdir, run)
    timing = {"attempt": 1, "trunk_steps": trunk_steps}
    write_json(directory / "result.json", {"run": run, "loss": 2.0, "loss_stderr": 0.01, "timing": timing})
    (directory / "metrics.jsonl").write_text("")


def hand_over(workdir, cell):
    """As far as a launcher looks."""
    step = trunk_steps_of(cell)
    (run_directory(workdir, cell.id) / "checkpoints" / f"{step}-1").mkdir(parents=True)


def trunk_steps_of(cell):
    return cell.run.steps - cell.run.schedule.decay_steps


# Who forks from whom


def test_the_longest_cell_of_a_size_is_the_trunk_of_the_others(config, cells):
    found = groups(config, cells)
    assert len(cells) == 12
    assert [group.trunk.budget for group in found] == [5e10] * 4
    assert [[fork.budget for fork in group.forks] for group in found] == [[2e10, 3e10]] * 4
    for group in found:
        assert {cell.run.model for cell in group.forks} == {group.trunk.run.model}
    assert {cell.id for group in found for cell in (group.trunk, *group.forks)} == {cell.id for cell in cells}
    assert set(trunks(found)) == {cell.id for cell in cells}
    assert sum(name == trunk for name, trunk in trunks(found).items()) == 4


def test_seeds_and_variants_have_trunks_of_their_own(make_config, make_texts):
    config = make_config("small", **FORKED, seeds=(0, 1), vary=over("lr_factor", (0.5, 1.0)))
    found = groups(config, make_grid(config, make_texts())[0])
    assert len(found) == 4 * 2 * 2
    assert all(len(group.forks) == 2 for group in found)


def test_a_sweep_from_scratch_has_no_groups(make_config, make_texts):
    config = make_config("small", **{**FORKED, "sweep__schedule": "scratch"})
    cells, _ = make_grid(config, make_texts())
    assert groups(config, cells) == []
    assert forks_of(config, cells, cells[-1]) == ()


def test_the_cell_that_tests_the_law_is_alone(config, cells):
    """It is known when the trunks are done. So it is no trunk, though of a size of the grid and longer."""
    longer = dataclasses.replace(cells[-1].run, steps=2 * cells[-1].run.steps)
    test = Cell(longer, 1e11, "prediction")
    found = groups(config, [*cells, test])
    assert [group for group in found if group.trunk == test] == [group for group in found if not group.forks]
    assert test.id not in trunks(found)
    assert trunk_steps(found)[test.id] == 0


def test_a_cell_of_a_second_pass_joins_its_size(config, cells):
    """The statistics then know that it shares its noise."""
    refined = Cell(dataclasses.replace(cells[0].run, steps=150), 1e10, refined=True)
    assert trunks(groups(config, [*cells, refined]))[refined.id] == trunks(groups(config, cells))[cells[0].id]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"recipe": "small"}, "config.sweep.schedule=forked: .*schedule.kind='cosine'.*small_wsd or haegele"),
        (
            {"recipe": "wsd", "grid__budgets": (2e11, 3e13), "grid__prior_size": 5e4, "grid__sizes": 6},
            "config.sweep.schedule=forked: .* differ before they decay: batch_size=.* and .*; optimizer.peak_lr=",
        ),
    ],
)
def test_what_cannot_be_forked_is_refused_before_anything_is_written(make_config, make_texts, changes, named):
    config = make_config("small", **{**FORKED, **changes}, data__max_epochs=1e6)
    with pytest.raises(InputError, match=named):
        make_grid(config, make_texts())
    make_grid(dataclasses.replace(config, sweep=dataclasses.replace(config.sweep, schedule="scratch")), make_texts())


def test_a_schedule_may_change_where_a_sweep_goes_on(sweep, cells, make_config, make_texts, tmp_path):
    """It changes no result."""
    scratch = make_config("small", **{**FORKED, "sweep__schedule": "scratch"})
    again = write_sweep(tmp_path, scratch, make_texts(), cells, ())
    assert again.cells == sweep.cells
    assert read_sweep(tmp_path).config.sweep.schedule == "scratch"


# What it saves


def test_the_flops_saved_are_those_of_the_steps_not_taken(config, cells):
    """Against another sum: the compute of all cells less that of whole trunks and of decays alone."""
    saved, total = savings(groups(config, cells))

    def flops(cell, steps):
        run = cell.run
        return counts(run.model, run.data.sequence_length, steps * run.batch_tokens)["C"]

    most = {}
    for cell in cells:
        most[cell.run.model] = max(most.get(cell.run.model, 0), cell.run.steps)
    own = [
        flops(cell, cell.run.steps if cell.run.steps == most[cell.run.model] else cell.run.schedule.decay_steps)
        for cell in cells
    ]
    whole = [flops(cell, cell.run.steps) for cell in cells]
    assert total == pytest.approx(sum(whole), rel=1e-12)  # rounding of sums alone
    assert saved == pytest.approx(sum(whole) - sum(own), rel=1e-12)
    assert plan_words(groups(config, cells)) == "forked: 4 trunks, 8 decays; 1.6e+11 of 4e+11 FLOPs saved (40%)"


def test_the_flops_that_were_saved_are_told_from_the_results(sweep, tmp_path):
    """Of a fork that was trained from scratch after all, and one that is not done, nothing."""
    (first, second, *_), *_ = [group.forks for group in groups(sweep.config, sweep.cells)]
    for cell in (sweep.cells[-1], first):
        finish(tmp_path, cell.id)
    finish(tmp_path, second.id, trunk_steps_of(second))
    results, _ = collect(tmp_path, sweep)
    done = (sweep.cells[-1], first, second)
    saved = second.flops * trunk_steps_of(second) / second.run.steps
    assert saved_words(results) == (
        f"forked decays: 1 of 3 runs; {saved:.3g} of {sum(cell.flops for cell in done):.3g} FLOPs saved "
        f"({saved / sum(cell.flops for cell in done):.0%}); 1 that share a trunk were trained from scratch"
    )


def test_a_plan_counts_the_hours_of_own_steps(config, cells, make_store):
    """Half of the steps, half of the hours; and the rows say how many steps are of trunks."""
    run, topology = cells[0].run, parse_topology("v5e:1x1")
    planned = estimated(run, topology)
    whole, half = (placement_columns(run, planned, topology, 2.0, 250.0, steps) for steps in (0, run.steps / 2))
    for name in ("hours_est", "chip_hours_est", "kwh_est", "cost_est"):
        assert half[name] == pytest.approx(whole[name] / 2)
    assert half["step_seconds_est"] == whole["step_seconds_est"]
    steps = trunk_steps(groups(config, cells))
    rows = plan_rows(cells, {"cafe": make_store(1e7)}, steps)
    assert {row["run"]: row["trunk_steps"] for row in rows} == steps


# In which order


def run_none(asked):
    def engine(workdir, tasks, way, on_event):
        asked.append(tasks)
        for index in range(len(tasks)):
            on_event(index, {"event": "done"})
        return True

    return engine


def test_trunks_come_first_and_forks_count_their_own_steps(sweep, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(execution, "engine", lambda launcher: run_none(asked))
    execute(tmp_path, sweep, sweep.cells, Way())
    tasks, trunk_of = asked[0], trunks(groups(sweep.config, sweep.cells))
    cells = {cell.id: cell for cell in sweep.cells}
    assert [task.after for task in tasks[:4]] == [None] * 4
    assert all(task.after == trunk_of[task.run] for task in tasks[4:])
    for task in tasks[4:]:
        cell = cells[task.run]
        assert task.first == trunk_steps_of(cell)
        assert task.flops == pytest.approx(cell.flops * cell.run.schedule.decay_steps / cell.run.steps)
        assert (task.share(task.first - 1), task.share(task.first), task.share(task.steps)) == (0, 0, 1)
    saved, total = savings(groups(sweep.config, sweep.cells))
    assert sum(task.flops for task in tasks) == pytest.approx(total - saved)


def test_forks_of_a_trunk_that_is_done_wait_for_none(sweep, tmp_path, monkeypatch):
    """One has its checkpoint; the other, added later say, trains from scratch, and is counted whole."""
    asked = []
    monkeypatch.setattr(execution, "engine", lambda launcher: run_none(asked))
    group = groups(sweep.config, sweep.cells)[0]
    finish(tmp_path, group.trunk.id)
    hand_over(tmp_path, group.forks[0])
    execute(tmp_path, sweep, sweep.cells, Way())
    tasks = {task.run: task for task in asked[0]}
    handed, alone = (tasks[fork.id] for fork in group.forks)
    assert (handed.after, handed.first) == (None, trunk_steps_of(group.forks[0]))
    assert (alone.after, alone.first, alone.flops) == (None, 0, group.forks[1].flops)


def test_a_trunk_is_told_its_forks(sweep, tmp_path):
    group = groups(sweep.config, sweep.cells)[0]
    item = cell_item(tmp_path, group.trunk, sweep, Way())
    assert [fork["directory"] for fork in item["forks"]] == [str(tmp_path / "runs" / fork.id) for fork in group.forks]
    assert "forks" not in cell_item(tmp_path, group.forks[0], sweep, Way())


def test_a_fork_that_is_placed_otherwise_is_none_of_its_trunk(sweep, tmp_path):
    """By a plan of some cells: it could not read a checkpoint of another layout."""
    group = groups(sweep.config, sweep.cells)[0]
    topology = parse_topology("v5e:1x1")
    planned = {
        cell.id: Planned(cell.run, Placement(scan_layers=False), "", topology, 1.0, None)
        for cell in (group.trunk, group.forks[1])
    }
    item = cell_item(tmp_path, group.trunk, sweep, Way(planned=planned))
    assert [fork["directory"] for fork in item["forks"]] == [str(tmp_path / "runs" / group.forks[1].id)]


@pytest.fixture
def trunk_and_fork(tmp_path):
    """Two tasks, of which the second forks from the first at step 80."""
    return [
        Task("a", tmp_path / "a", 1.0, 200),
        Task("b", tmp_path / "b", 0.2, 100, after="a", first=80),
    ]


@pytest.fixture
def agenda(trunk_and_fork, monkeypatch):
    monkeypatch.setattr(launch, "LOOK_SECONDS", 0.05)
    events = []
    agenda = Agenda(trunk_and_fork, Way(), lambda index, event: events.append((index, event["event"])))
    agenda.events = events
    return agenda


def next_within(agenda, seconds):
    """What the agenda gives out in so many seconds, "nothing" if it has not."""
    stop = threading.Event()
    timer = threading.Timer(seconds, stop.set)
    timer.start()
    found = agenda.next(stop)
    timer.cancel()
    return "nothing" if stop.is_set() else found


FAILED = {"event": "failed", "kind": "not_finite", "reason": "loss nan", "retry": "never"}
KILLED = {"event": "failed", "kind": "killed", "reason": "signal 9", "retry": "soon"}


def test_a_fork_is_started_while_its_trunk_goes_on_once_it_is_handed_over(agenda, trunk_and_fork):
    assert next_within(agenda, 10) == 0
    assert next_within(agenda, 0.4) == "nothing"
    (trunk_and_fork[1].directory / "checkpoints" / "80-1.orbax-checkpoint-tmp").mkdir(parents=True)
    (trunk_and_fork[1].directory / "checkpoints" / "79-1").mkdir()
    assert next_within(agenda, 0.4) == "nothing"
    (trunk_and_fork[1].directory / "checkpoints" / "80-1").mkdir()
    assert next_within(agenda, 10) == 1


def test_a_fork_is_started_when_its_trunk_is_over_however_it_ended(agenda):
    assert next_within(agenda, 10) == 0
    agenda.ended(0, KILLED, stopped=False)  # which is tried again
    assert next_within(agenda, 0.4) == "nothing"
    agenda.ended(0, FAILED, stopped=False)
    assert next_within(agenda, 10) == 1
    assert agenda.events == [(0, "again"), (0, "failed")]


def test_a_fork_is_started_when_another_launcher_has_done_its_trunk(agenda, trunk_and_fork):
    write_json(trunk_and_fork[0].directory / "result.json", {"run": "a", "loss": 2.0, "timing": {"attempt": 1}})
    assert next_within(agenda, 10) == 1
    assert agenda.events == [(0, "done")]


def test_a_fork_whose_trunk_is_not_to_be_done_waits_for_nobody(trunk_and_fork):
    assert not waits(trunk_and_fork[1], {"b"})
    assert waits(trunk_and_fork[1], {"a", "b"})
    assert not waits(trunk_and_fork[0], {"a", "b"})
    assert LOOK_SECONDS < 10


# What is said of it


def test_the_statistics_take_the_runs_of_a_trunk_together(sweep, tmp_path):
    for cell in sweep.cells:
        finish(tmp_path, cell.id)
    results, _ = collect(tmp_path, sweep)
    trunk_of = trunks(groups(sweep.config, sweep.cells))
    assert results["trunk"].tolist() == [trunk_of[name] for name in results["run"]]
    table = table_from_frame(results)
    assert table.correlated
    assert len(set(table.cluster_R)) == 4 < FEW
    assert table_from_frame(results.drop(columns="trunk")).correlated is False


def test_a_table_from_scratch_knows_no_trunks(sweep, cells, make_config, make_texts, tmp_path):
    scratch = make_config("small", **{**FORKED, "sweep__schedule": "scratch"})
    results, _ = collect(tmp_path, write_sweep(tmp_path, scratch, make_texts(), cells, ()))
    assert not {"trunk", "trunk_steps"} & set(results)


def records(directory, steps, pace, begin=0, attempt=1):
    """The records of steps on end, a line each ten; of a fork from a step on."""
    folder = directory / "attempts" / str(attempt)
    folder.mkdir(parents=True)
    lines = [f'{{"step": {begin}, "seconds": {{}}}}\n'] if begin else []
    lines += [
        f'{{"step": {step}, "seconds": {{"train": {(step - begin) * pace}}}}}\n' for step in range(begin + 1, steps + 1)
    ]
    (folder / "timing.jsonl").write_text("".join(lines))
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "loss": 2.0}}\n' for step in range(1, steps + 1)))


def test_a_fork_that_waits_and_one_that_was_handed_over(sweep, tmp_path):
    """The status says so, and counts neither the time nor the work of their trunks as theirs."""
    group = groups(sweep.config, sweep.cells)[0]
    first, second = group.forks
    at = trunk_steps_of(first)
    records(run_directory(tmp_path, group.trunk.id), at + 5, 0.1)
    records(run_directory(tmp_path, first.id), at + 4, 0.5, begin=at)
    rows = {row.run: row for row in status_rows(tmp_path, sweep).itertuples()}
    tokens = first.run.batch_tokens
    assert rows[first.id].first == pytest.approx(at / first.run.steps)
    assert rows[first.id].tokens_per_second == pytest.approx(tokens / 0.5)
    assert rows[first.id].seconds == pytest.approx(4 * 0.5)
    assert (rows[second.id].progress, rows[second.id].first) == (0, trunk_steps_of(second) / second.run.steps)
    assert rows[group.trunk.id].first == 0
    assert "forks: 7 of 12 missing wait for their trunks" in notes(status_rows(tmp_path, sweep))


def test_the_time_left_counts_what_forks_have_to_do_themselves(sweep, tmp_path):
    """All but one size is done; its trunk runs at a step in .1 s, and both forks wait."""
    *others, group = groups(sweep.config, sweep.cells)
    for other in others:
        for cell in (other.trunk, *other.forks):
            finish(tmp_path, cell.id)
    steps = group.trunk.run.steps
    records(run_directory(tmp_path, group.trunk.id), steps // 4, 0.1)
    table = status_rows(tmp_path, sweep).query(f"run in {[c.id for c in (group.trunk, *group.forks)]}")
    table.loc[table["run"] == group.trunk.id, "status"] = "running"
    own = steps * 0.75 + sum(fork.run.schedule.decay_steps for fork in group.forks)
    assert time_left(table).startswith(f"about {own * 0.1:.0f} s left")


def test_a_prefix_whose_trunk_was_killed_is_no_fault_of_the_fork(sweep, tmp_path):
    fork = groups(sweep.config, sweep.cells)[0].forks[0]
    attempt = run_directory(tmp_path, fork.id) / "attempts" / "1" / "attempt.json"
    write_json(attempt, {"attempt": 1, "outcome": None, "trunk": "a", "step": 5, "time": 0.0})
    (row,) = [row for row in status_rows(tmp_path, sweep).itertuples() if row.run == fork.id]
    assert row.faults == ()
    write_json(attempt, {"attempt": 1, "outcome": None, "time": 0.0})
    (row,) = [row for row in status_rows(tmp_path, sweep).itertuples() if row.run == fork.id]
    assert row.faults == ("killed",)
