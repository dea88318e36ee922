"""A worker is told what probably comes next, and compiles it where that takes nothing from the present cell."""

import threading
import types

import pytest

from scaling.sweeps import launch, worker
from scaling.sweeps.tasks import Task, Way, cell_command


@pytest.fixture
def handed_out(monkeypatch, tmp_path):
    """Runs cells by name with so many workers that do nothing: returns (worker, cell, the one told as next)."""

    def run(names, workers):
        seen, lock = [], threading.Barrier(workers)

        def one_cell(started, item, tell):
            following = item["next"] and item["next"]["name"]
            seen.append((started.name, item["name"], following))
            if len(seen) <= workers:
                lock.wait(10)  # all have their first cell before any ends
            return {"event": "done"}

        def start(share, *_):
            return types.SimpleNamespace(name=share.cores, poll=lambda: None)

        monkeypatch.setattr(launch, "_shares", lambda *_: [launch.Share(str(k), {}) for k in range(workers)])
        monkeypatch.setattr(launch, "_start", start)
        monkeypatch.setattr(launch, "_close", lambda worker: None)
        monkeypatch.setattr(launch, "_one_cell", one_cell)
        tasks = [Task(name, tmp_path / name, 1.0, 1) for name in names]
        items = [{"name": name} for name in names]
        assert launch.run_cells(tasks, items, Way(workers), tmp_path / "log", tmp_path, lambda *_: None)
        return seen

    return run


def test_one_worker_is_told_the_cell_that_it_gets(handed_out):
    assert [(cell, following) for _, cell, following in handed_out("abc", 1)] == [("a", "b"), ("b", "c"), ("c", None)]


def test_workers_are_told_different_cells(handed_out):
    """Of those that nobody has begun: the first for the first worker, the second for the second."""
    seen = handed_out("abcdef", 2)
    told = {(name, following) for name, cell, following in seen if following is not None}
    assert {cell for _, cell, _ in seen} == set("abcdef")
    assert all(following > cell for _, cell, following in seen if following is not None)
    assert len({following for _, following in told}) > 1


@pytest.fixture
def compiling(monkeypatch):
    """The directories of cells that were compiled; each takes until `go` is set."""
    begun, go = [], threading.Event()

    def compile_cell(item):
        begun.append(item["directory"])
        assert go.wait(10)
        if item["directory"] == "bad":
            raise ValueError("no such thing")

    monkeypatch.setattr(worker, "compile_cell", compile_cell)
    return begun, go


def test_the_next_cell_is_compiled_once_and_waited_for(compiling):
    begun, go = compiling
    ahead = worker.Ahead(lambda: True)
    for _ in range(3):
        ahead.begin({"directory": "next"})
    ahead.wait({"directory": "another"})  # at once: that one is not being compiled
    threading.Timer(0.05, go.set).start()
    ahead.wait({"directory": "next"})
    assert go.is_set()
    assert begun == ["next"]
    ahead.begin({"directory": "next"})  # again: nothing to do
    ahead.begin({"directory": "after"})
    ahead.wait({"directory": "after"})
    assert begun == ["next", "after"]


def test_nothing_is_compiled_ahead_where_it_would_take_from_the_steps(compiling):
    begun, _ = compiling
    worker.Ahead(lambda: False).begin({"directory": "next"})
    worker.Ahead(lambda: True).begin(None)
    assert begun == []
    assert not worker._elsewhere()  # the tests compute on the CPU


def test_a_fault_is_left_to_the_cell_itself_and_told_in_the_log(compiling, capsys):
    _, go = compiling
    go.set()
    ahead = worker.Ahead(lambda: True)
    ahead.begin({"directory": "bad"})
    ahead.wait({"directory": "bad"})
    assert capsys.readouterr().out == "bad: not compiled ahead: no such thing\n"


def test_schedulers_tell_their_cells_where_compilations_are(tmp_path):
    told = cell_command(tmp_path, "a", Way(compilations=str(tmp_path / "kept")))
    assert f"--compilations={tmp_path / 'kept'}" in told
    assert not [part for part in cell_command(tmp_path, "a", Way()) if "compilations" in part]
