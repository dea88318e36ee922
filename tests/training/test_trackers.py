"""What is tracked is read back from the files: TensorBoard's by its own reader, W&B's as `wandb sync` would."""

import json
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scaling.errors import InputError, StoppedError
from scaling.runs import run_id, run_to_dict
from scaling.training import trackers
from scaling.training.trackers import check_trackers, open_trackers, tracked


def read_tensorboard(directory):
    """Name -> [(step, value)], as TensorBoard shows them."""
    reader = EventAccumulator(str(directory / "tensorboard")).Reload()
    return {name: [(e.step, e.value) for e in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


def test_lines_of_the_records_have_tracked_names():
    line = {"step": 5, "tokens": 640, "lr": 1e-3, "loss": 2.5, "grad_norm": 0.5}
    assert tracked(line, 1e4) == {"train/lr": 1e-3, "train/loss": 2.5, "train/grad_norm": 0.5, "tokens_per_second": 1e4}
    held_out = {"validation": {"loss": 2.0, "stderr": 0.1}, "code": {"loss": 1.5, "stderr": 0.1}}
    assert tracked({"step": 5, "tokens": 640, "eval": held_out}, mfu=0.25) == {
        "eval/validation/loss": 2.0,
        "eval/code/loss": 1.5,
        "mfu": 0.25,
    }


def test_tensorboard_shows_what_was_tracked(run, tmp_path):
    with open_trackers(["tensorboard"], run, tmp_path, 0) as track:
        track(1, {"train/loss": 2.1, "train/lr": 1e-3})
        track(1, {"eval/validation/loss": 2.2})
        track(4, {"train/loss": 1.9})
    assert read_tensorboard(tmp_path) == {
        "tokens": [(1, run.batch_tokens), (4, 4 * run.batch_tokens)],
        "train/loss": [(1, np.float32(2.1)), (4, np.float32(1.9))],
        "train/lr": [(1, np.float32(1e-3))],
        "eval/validation/loss": [(1, np.float32(2.2))],
    }


def test_a_resumed_run_replaces_the_steps_it_does_again(run, tmp_path):
    """The first process saves after step 4, and is cut off after step 6; a second goes on, and is stopped; a third."""
    for start, steps, value in ((0, range(1, 7), 10.0), (4, range(5, 9), 20.0), (8, range(9, 11), 30.0)):
        with open_trackers(["tensorboard"], run, tmp_path, start) as track:
            for step in steps:
                track(step, {"train/loss": value + step})
    expected = [(step, 10.0 + step) for step in range(1, 5)]
    expected += [(step, 20.0 + step) for step in range(5, 9)]
    expected += [(step, 30.0 + step) for step in range(9, 11)]
    assert read_tensorboard(tmp_path)["train/loss"] == expected


def test_what_was_tracked_is_on_disk_while_the_run_goes_on(run, tmp_path):
    with open_trackers(["tensorboard"], run, tmp_path, 0) as track:
        track(1, {"train/loss": 2.0})
        deadline = time.monotonic() + 10
        while "train/loss" not in read_tensorboard(tmp_path):
            assert time.monotonic() < deadline, "not written before the run's end"
            time.sleep(0.05)


def test_files_are_written_without_tensorflow_and_jax(run, tmp_path):
    code = (
        "import pathlib, sys\n"
        "from scaling.runs import run_from_dict\n"
        "from scaling.training.trackers import check_trackers, open_trackers\n"
        "check_trackers(['tensorboard'])\n"
        "assert 'tensorboardX' not in sys.modules\n"
        f"run, directory = run_from_dict({run_to_dict(run)!r}), pathlib.Path({str(tmp_path)!r})\n"
        "with open_trackers(['tensorboard'], run, directory, 0) as track:\n"
        "    track(1, {'train/loss': 2.0})\n"
        "assert not {'tensorflow', 'torch', 'jax'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert read_tensorboard(tmp_path)["train/loss"] == [(1, 2.0)]


def test_without_trackers_nothing_is_written(run, tmp_path):
    with open_trackers([], run, tmp_path, 0) as track:
        track(1, {"train/loss": 2.0})
    assert not list(tmp_path.iterdir())


def test_an_unknown_tracker_names_the_nearest(run, tmp_path):
    with pytest.raises(InputError, match=r"unknown tracker 'tensorbord' \(did you mean tensorboard\?\)"):
        check_trackers(["tensorbord"])
    with pytest.raises(InputError, match="unknown tracker"), open_trackers(["tensorboard", "x"], run, tmp_path, 0):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", trackers.LIBRARIES)
def test_a_missing_library_is_refused_with_the_command_that_installs_it(monkeypatch, name):
    _, install = trackers.LIBRARIES[name]
    monkeypatch.setitem(trackers.LIBRARIES, name, ("no_such_library", install))
    with pytest.raises(InputError) as refusal:
        check_trackers([name])
    assert str(refusal.value) == f"tracker {name} needs no_such_library ({install})"
    assert install.startswith("pip install ")


@pytest.mark.parametrize(
    ("place", "project"),
    [("study/runs/RUN", "study"), ("runs/one", "one"), ("a:b?c#d%e/runs/RUN", "a-b-c-d-e"), ("s" * 200, "s" * 128)],
)
def test_a_project_is_a_sweep_or_a_single_run(tmp_path, place, project):
    directory = tmp_path / place
    directory.mkdir(parents=True)
    if place.endswith("RUN"):
        (directory.parents[1] / "sweep.json").touch()
    assert trackers._project(directory) == project


def read_wandb(path):
    """The records of a .wandb file: a log of LevelDB's format (doc/log_format.md there) after a header of 7 bytes, in
    blocks of 32 KiB, whose records are protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            records.append(Record.FromString(part))
            part = b""
    return records


def history(records):
    """Name -> [(step, value)]."""
    found = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for name in row.keys() - {"_step", "_runtime", "_timestamp"}:
                found.setdefault(name, []).append((row["_step"], row[name]))
    return found


@pytest.fixture
def offline(monkeypatch):
    pytest.importorskip("wandb", reason="optional: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def test_wandb_offline_keeps_values_and_config_under_the_run_id(run, tmp_path, offline):
    directory = tmp_path / "study" / "runs" / run_id(run)
    directory.mkdir(parents=True)
    (tmp_path / "study" / "sweep.json").touch()

    def stopped():
        with open_trackers(["wandb"], run, directory, 0) as track:
            track(5, {"train/loss": 2.0, "tokens_per_second": 1e4})
            track(5, {"eval/validation/loss": 1.5})
            track(10, {"train/loss": 1.0})
            raise StoppedError("saved")

    with pytest.raises(StoppedError):
        stopped()
    with open_trackers(["wandb"], run, directory, 10) as track:
        track(15, {"train/loss": 0.5})
    first, second = [read_wandb(path) for path in sorted(directory.glob("wandb/offline-run-*/*.wandb"))]
    assert history(first) == {
        "tokens": [(5, 5 * run.batch_tokens), (10, 10 * run.batch_tokens)],
        "train/loss": [(5, 2.0), (10, 1.0)],
        "tokens_per_second": [(5, 1e4)],
        "eval/validation/loss": [(5, 1.5)],
    }
    assert history(second)["train/loss"] == [(15, 0.5)]
    for records in (first, second):
        (told,) = [record.run for record in records if record.WhichOneof("record_type") == "run"][:1]
        assert (told.run_id, told.project, told.display_name) == (run_id(run), "study", run_id(run))
        config = {item.key: json.loads(item.value_json) for item in told.config.update if item.key != "_wandb"}
        assert config == json.loads(json.dumps(run_to_dict(run)))
    kinds = [[record.WhichOneof("record_type") for record in records] for records in (first, second)]
    assert ["preempting" in kind for kind in kinds] == [True, False]
    exits = [record.exit.exit_code for records in (first, second) for record in records if record.HasField("exit")]
    assert exits == [1, 0]
