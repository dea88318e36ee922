"""A plan in training: its cells are found, other hardware is refused, and a start anew compiles nothing."""

import copy
import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import typing

import pytest

from scaling.errors import InputError
from scaling.files import read_json, write_json
from scaling.parallel.chips import CHIPS
from scaling.parallel.topology import parse_topology
from scaling.runs import MESH_AXES, Placement, run_id, run_to_dict
from scaling.specs import to_dict
from scaling.sweeps.cells import Cell
from scaling.sweeps.config import sweep_config
from scaling.sweeps.launch import run_cells
from scaling.sweeps.tasks import Task, Way, cell_item, make_task
from scaling.sweeps.workdir import Sweep
from scaling.training.planned import Hardware, check_hardware, find_cell, planned_lines, read_plan

ROOT = pathlib.Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "scale.md"
EIGHT = Placement(data=2, fsdp=4)
GIB = 2**30


def plan_of(runs, topology="cpu:8", **fields):
    placed = {"placement": to_dict(EIGHT), "placed": "data 2 x fsdp 4", "memory_gib_est": 0.5}
    cells = [copy.deepcopy({"run": run_id(run), "run_spec": run_to_dict(run), **placed, **fields}) for run in runs]
    return {"topology": topology, "cells": cells, "dropped": [], "totals": {}}


@pytest.fixture
def plan(run, tmp_path):
    """A plan of two runs, in a file."""
    path = tmp_path / "plan.json"
    write_json(path, plan_of([run, dataclasses.replace(run, seed=1)]))
    return path


def test_a_plan_gives_each_run_its_place(run, plan):
    cells = read_plan(plan)
    assert list(cells) == [run_id(run), run_id(dataclasses.replace(run, seed=1))]
    planned = cells[run_id(run)]
    assert (planned.run, planned.placement, planned.topology.text) == (run, EIGHT, "cpu:8")
    assert (planned.estimated_gib, planned.compiled_gib, planned.needed_gib) == (0.5, None, 0.5)


def part_of_a_node(run, part):
    plan = plan_of([run], "h100:8", placement={})
    plan["cells"][0]["topology"] = part
    return plan


def test_a_cell_of_several_side_by_side_is_planned_for_its_part(run, tmp_path):
    write_json(tmp_path / "plan.json", part_of_a_node(run, "h100:1"))
    planned = read_plan(tmp_path / "plan.json")[run_id(run)]
    assert planned.topology.text == "h100:1"
    check_hardware(planned.topology, planned.needed_gib, Hardware("NVIDIA H100 80GB HBM3", 1, 1, 72 * GIB))
    with pytest.raises(InputError, match=r"devices 1 planned, 8 here; .*CUDA_VISIBLE_DEVICES"):
        check_hardware(planned.topology, planned.needed_gib, Hardware("NVIDIA H100 80GB HBM3", 8, 1, 72 * GIB))
    write_json(tmp_path / "plan.json", part_of_a_node(run, ["h100:1"]))
    with pytest.raises(InputError, match=r"topology .* is none"):
        read_plan(tmp_path / "plan.json")


def test_the_guide_reads_a_plan_as_written(plan, monkeypatch, capsys):
    monkeypatch.chdir(plan.parent)
    (block,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(block, str(GUIDE), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["data 2 x fsdp 4 0.5"] * 2


def test_the_guide_names_all_that_a_placement_and_a_topology_can_be():
    text = GUIDE.read_text(encoding="utf-8")
    policies = typing.get_args(typing.get_type_hints(Placement)["remat"])
    fields = {field.name for field in dataclasses.fields(Placement)} - {"scan_layers"}  # unrolled: for comparisons only
    for name in (*fields, *MESH_AXES, *policies, "auto", "plain"):
        assert f"`{name}`" in text, name
    for name in CHIPS:
        assert re.search(rf"`(4x)?{name}[:`]", text), name


def test_the_compiled_peak_goes_before_the_estimate(run, tmp_path):
    write_json(tmp_path / "plan.json", plan_of([run], proof={"fits": True, "peak_gib": 0.75}))
    assert read_plan(tmp_path / "plan.json")[run_id(run)].needed_gib == 0.75


def test_a_cell_is_found_by_the_beginning_of_its_run(run, plan):
    cells = read_plan(plan)
    assert find_cell(cells, run_id(run)).run == run
    assert find_cell(cells, run_id(run)[:-4]).run == run
    with pytest.raises(InputError, match=r"--cell=d16x2 begins 2 runs: d16x2-.*, d16x2-"):
        find_cell(cells, "d16x2")
    with pytest.raises(
        InputError, match=f"--cell=x{run_id(run)} is not placed in the plan .did you mean {run_id(run)}"
    ):
        find_cell(cells, f"x{run_id(run)}")


def test_a_refusal_names_no_more_cells_than_can_be_read():
    plan = {f"d{width}x2-1M": None for width in range(100, 400)}
    for name, fault in (
        ("d", "begins 300 runs: d100x2-1M, .*d119x2-1M, \\.\\.\\. .give more"),
        ("x", "valid: (\\S+ ){19}"),
    ):
        with pytest.raises(InputError, match=fault) as refusal:
            find_cell(plan, name)
        assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda plan: plan.pop("cells"), "is no plan"),
        (lambda plan: plan.update(topology=None), "places no cell"),
        (lambda plan: plan["cells"][0].update(placement=None), "places no cell"),
        (lambda plan: plan["cells"][0].pop("run_spec"), "has no run_spec"),
        (lambda plan: plan["cells"][0]["run_spec"].update(seed=7), "its run_spec is that of d16x2-"),
        (lambda plan: plan["cells"][0]["placement"].update(fsdb=2), "did you mean fsdp"),
    ],
)
def test_what_is_no_plan_is_refused(run, tmp_path, spoil, fault):
    values = plan_of([run])
    spoil(values)
    write_json(tmp_path / "plan.json", values)
    with pytest.raises(InputError, match=fault) as refusal:
        read_plan(tmp_path / "plan.json")
    assert str(tmp_path / "plan.json") in str(refusal.value)


V5E_SLICE = Hardware("TPU v5 lite", devices=256, slices=1, memory=int(15.75 * GIB))


@pytest.mark.parametrize(
    ("topology", "needed", "here"),
    [
        ("v5e:16x16", 15.7, V5E_SLICE),
        ("v5e:16x16", None, V5E_SLICE),
        ("4xv5e:16x16", 9.0, dataclasses.replace(V5E_SLICE, devices=1024, slices=4)),
        ("v5p:4x4x4", 90.0, Hardware("TPU v5", 64, 1, int(95.7 * GIB))),
        ("tpu7x:2x2x1", 90.0, Hardware("TPU7x", 8, 1, int(94.7 * GIB))),
        ("h100:64", 60.0, Hardware("NVIDIA H100 80GB HBM3", 64, 1, int(72 * GIB))),
        ("cpu:8", 1e6, Hardware("cpu", 8, 1, None)),
    ],
)
def test_the_planned_hardware_is_accepted(topology, needed, here):
    check_hardware(parse_topology(topology), needed, here)


@pytest.mark.parametrize(
    ("topology", "needed", "changes", "fault"),
    [
        ("v5e:16x16", 15.0, {"devices": 128}, "devices 256 planned, 128 here"),
        ("v5e:16x16", 15.0, {"memory": 8 * GIB}, "GiB per device 15 needed, 8 here"),
        ("v5e:16x16", 15.0, {"kind": "TPU v6 lite"}, "chip v5e planned, v6e here"),
        ("v5e:16x16", 15.0, {"kind": "Abacus"}, "chip v5e planned, Abacus here"),
        ("v5e:16x16", 15.0, {"slices": 4}, "slices 1 planned, 4 here"),
        ("v5p:4x8x8", 15.0, {}, "chip v5p planned, v5e here; devices 256 planned, 256 here"),
        ("h100:8", 15.0, {}, "chip h100 planned, v5e here; devices 8 planned, 256 here; slices 1 planned, 1 here"),
        (
            "h100:8",
            65.0,
            {"kind": "NVIDIA H100 80GB HBM3", "devices": 8, "memory": 59 * GIB},
            "GiB per device 65 needed, 59 here (XLA_PYTHON_CLIENT_MEM_FRACTION=.92 grants",
        ),
        (
            "cpu:8",
            1.0,
            {"kind": "cpu", "devices": 1, "memory": None},
            "slices 1 planned, 1 here (JAX_NUM_CPU_DEVICES=8)",
        ),
    ],
)
def test_other_hardware_is_refused_with_both_sides(topology, needed, changes, fault):
    """ "TPU v5 lite" begins as "TPU v5" does, which is a v5p: the longer name counts."""
    with pytest.raises(InputError, match="the hardware is not what was planned: ") as refusal:
        check_hardware(parse_topology(topology), needed, dataclasses.replace(V5E_SLICE, **changes))
    assert fault in str(refusal.value)


def test_what_is_said_before_a_training(run, plan):
    planned = read_plan(plan)[run_id(run)]
    assert planned_lines(planned, Hardware("cpu", 8, 1, None)) == (
        "planned for cpu:8: data 2 x fsdp 4; GiB per device: 0.50 estimated, not compiled",
        "here are 8 x cpu; GiB per device: unknown, as this backend does not say",
    )
    compiled = dataclasses.replace(planned, compiled_gib=9.791)
    assert planned_lines(compiled, dataclasses.replace(V5E_SLICE, slices=4)) == (
        "planned for cpu:8: data 2 x fsdp 4; GiB per device: 0.50 estimated, 9.79 at the compiled peak",
        "here are 256 x TPU v5 lite in 4 slices; GiB per device: 15.75",
    )


def test_a_sweep_places_each_cell_as_planned(run, store, plan, tmp_path):
    """And a cell that the plan has not, where the sweep's config says; with as many processes as that takes."""
    cells = [Cell(each, 1e6) for each in (run, dataclasses.replace(run, seed=2))]
    durations = {"sizes": (1e4,), "tokens": (1e5,)}
    data = {"source": "s", "tokenizer": "bytes", "sequence_length": 64, "eval_windows": 4}
    config = sweep_config({"data": data, "recipe": "small", "placement": {"tensor": 2}, "durations": durations})
    sweep = Sweep(config, {store.content_id: str(store.path)}, tuple(cells), ())
    way = Way(planned=read_plan(plan), devices_per_process=2)
    planned, other = (cell_item(tmp_path, cell, sweep, way) for cell in cells)
    assert planned["placement"] == {"data": 2, "fsdp": 4}
    assert planned["planned"] == {"topology": "cpu:8", "needed_gib": 0.5}
    assert other["placement"] == {"tensor": 2}
    assert "planned" not in other
    assert [make_task(tmp_path, cell, config.placement, way).processes for cell in cells] == [4, 1]
    with pytest.raises(InputError, match="--devices_per_process=3 does not divide the 8 devices"):
        make_task(tmp_path, cells[0], config.placement, dataclasses.replace(way, devices_per_process=3))


def test_a_worker_trains_a_planned_cell_on_no_other_hardware(run, store, tmp_path):
    task = Task(run_id(run), tmp_path / run_id(run), 1.0, run.steps)
    item = {"directory": str(task.directory), "run": run_to_dict(run), "stores": [str(store.path)]}
    item |= {"placement": to_dict(EIGHT), "trackers": [], "profile_steps": 0, "care": ""}
    item |= {"planned": {"topology": "v5e:2x4", "needed_gib": 3.0}}
    events = []
    run_cells([task], [item], Way(1), tmp_path / "log", tmp_path / "cache", lambda _, event: events.append(event))
    (event,) = events
    assert (event["event"], event["retry"]) == ("failed", "when mended")
    assert "chip v5e planned, cpu here; devices 8 planned, 8 here" in event["reason"]
    assert read_json(task.directory / "failure.json")["reason"] == event["reason"]


@pytest.fixture
def start(run, store, tmp_path):
    """Starts experiments.train on the cell of a plan for cpu:8, as a process."""
    long = dataclasses.replace(run, steps=200, eval_points=2)
    write_json(tmp_path / "plan.json", plan_of([long]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

    def begin(workdir, *flags, devices=8):
        plan = [f"--plan={tmp_path}/plan.json", "--cell=d16x2", f"--stores={store.path.parent}"]
        command = [sys.executable, "-m", "experiments.train", *plan, f"--workdir={workdir}", *flags]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, "JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def test_a_planned_run_is_refused_on_fewer_devices(start, tmp_path):
    process = start(tmp_path / "w", devices=4)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert "the hardware is not what was planned: chip cpu planned, cpu here; devices 8 planned, 4 here" in errors
    assert output.splitlines()[0].startswith("planned for cpu:8")
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_a_planned_run_starts_and_starts_anew_from_its_compilations(start, tmp_path):
    """The second start finds all its programs: it adds none to those kept, and trains to the same bits."""
    kept, metrics = [], []
    while len(kept) < 2:
        process = start(tmp_path / "w")
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        lines = output.splitlines()
        assert lines[0].startswith("planned for cpu:8: data 2 x fsdp 4; GiB per device: 0.50 estimated")
        assert lines[1].startswith("here are 8 x cpu")
        assert lines[2].startswith("memory of the compiled step, GiB per device: arguments ")
        assert lines[3].startswith("step 1/200  loss ")
        assert lines[3].endswith(" left")
        assert any(line.startswith("step 200/200  loss ") for line in lines)
        programs = (tmp_path / "w" / "compilations").glob("*/*-cache")  # a folder for each kind of processor
        kept.append(sorted(path.name for path in programs))
        metrics.append((tmp_path / "w" / "metrics.jsonl").read_text())
        (tmp_path / "w").rename(before := tmp_path / f"before{len(kept)}")
        (tmp_path / "w").mkdir()
        (before / "compilations").rename(tmp_path / "w" / "compilations")
    assert any(name.startswith("jit_step") for name in kept[0])
    assert kept[0] == kept[1]
    assert metrics[0] == metrics[1]
