"""The benchmark of a whole sweep: what its parts add up to, and that its yardstick trains the same grid, no more."""

import dataclasses
import os
import pathlib
from types import SimpleNamespace

import pytest

from scaling.errors import InputError
from scaling.files import write_json
from scaling.speed import sweep
from scaling.speed.start import as_a_user

CELLS = tuple(SimpleNamespace(id=name) for name in ("first", "second", "predicted"))


@dataclasses.dataclass(frozen=True)
class Sweep:
    """As much of a sweep as is read here: two cells of its grid, and the one that was predicted."""

    cells: tuple = CELLS

    @property
    def grid(self):
        return self.cells[:2]


@pytest.fixture(autouse=True)
def sweeps(monkeypatch):
    monkeypatch.setattr(sweep, "read_sweep", lambda workdir: Sweep())


def finished(workdir, cell, began, ended, loss=2.0, attempt=1, **seconds):
    """The files of a cell that was trained from one second to another."""
    directory = workdir / "runs" / cell
    work = {f"{part}_seconds": seconds.get(part, 0.0) for part in sweep.WORK}
    timing = {**work, "wall_seconds": float(ended - began), "attempt": attempt}
    write_json(directory / "attempts" / "1" / "attempt.json", {"time": float(began)})
    write_json(directory / "result.json", {"run": cell, "loss": loss, "timing": timing})
    os.utime(directory / "result.json", (ended, ended))


def test_where_the_time_of_a_sweep_went(tmp_path):
    """Two workers from second 100 to 130: one trains 10 s and then the predicted cell for 8, the other 12 s."""
    finished(tmp_path, "first", 102, 112, train=6.0, compile=2.0, evaluate=1.0)
    finished(tmp_path, "second", 103, 115, train=10.0, save=1.0)
    finished(tmp_path, "predicted", 118, 126, train=8.0)
    parts = sweep.breakdown(sweep.Finished(tmp_path, began=100.0, seconds=30.0), 2)
    assert parts.start == 2 * 2
    assert parts.work == {"train": 24.0, "evaluate": 1.0, "compile": 2.0, "save": 1.0}
    assert parts.rest == 10 + 12 + 8 - 28
    assert parts.idle == 2 * 24 - 30
    assert parts.end == 2 * 4
    assert parts.start + sum(parts.work.values()) + parts.rest + parts.idle + parts.end == 2 * 30
    assert parts.share_of_steps == 24 / 48
    told = sweep.words(parts, 30.0)
    assert "50.0% is in training steps" in told
    assert "   12.00 s  40.0%  cells: train" in told


def test_a_cell_with_two_clocks_is_refused(tmp_path):
    for cell in CELLS:
        finished(tmp_path, cell.id, 100, 110, attempt=2 if cell.id == "second" else 1)
    with pytest.raises(InputError, match="was started more than once"):
        sweep.breakdown(sweep.Finished(tmp_path, 99.0, 12.0), 1)


def test_losses_are_compared_over_the_grid(tmp_path):
    """A predicted cell is each sweep's own."""
    one, other = tmp_path / "one", tmp_path / "other"
    for workdir, losses in ((one, (2.0, 3.0)), (other, (2.0, 3.003))):
        for cell, loss in zip(Sweep().grid, losses, strict=True):
            finished(workdir, cell.id, 0, 1, loss)
    finished(one, "predicted", 0, 1, 1.0)
    assert sweep.apart(one, other) == pytest.approx(0.001, rel=2e-3)
    finished(other, "first", 0, 1, 2.0 / (1 + 1.01 * sweep.MOST_APART))
    with pytest.raises(InputError, match=r"the losses are 2\.02% apart"):
        sweep.apart(one, other)


def test_the_yardstick_is_a_process_a_cell_of_the_grid_and_then_the_report(tmp_path, monkeypatch):
    ran, saved = [], []
    monkeypatch.setattr(sweep, "_run", lambda command, environment: ran.append((command[2], command[3:])))
    monkeypatch.setattr(sweep, "save_sweep", lambda workdir, like: saved.append((workdir, like.cells)))
    workdir = tmp_path / "theirs"
    sweep.one_after_the_other(workdir, tmp_path / "ours", ["--config=c.py"], {})
    assert saved == [(workdir, CELLS[:2])]
    assert ran == [
        *(
            ("experiments.cell", [f"--workdir={workdir}", f"--cell={cell.id}", f"--compilations={workdir}/compiled{k}"])
            for k, cell in enumerate(CELLS[:2])
        ),
        ("experiments.sweep", [f"--workdir={workdir}", "--config=c.py", "--workers=1"]),
    ]


def test_a_user_meets_bytecode_and_no_kept_programs(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("SCALING_COMPILATIONS", "/kept")
    environment = as_a_user(tmp_path)
    assert not {"PYTHONDONTWRITEBYTECODE", "SCALING_COMPILATIONS"} & environment.keys()
    assert pathlib.Path(environment["PYTHONPYCACHEPREFIX"]).parent == tmp_path


def test_a_command_that_fails_is_told(tmp_path):
    with pytest.raises(InputError, match="has ended with 3 and said: too bad"):
        sweep._run([sweep.sys.executable, "-c", "import sys; print('too bad', file=sys.stderr); sys.exit(3)"], {})
