import dataclasses

import pytest

from scaling.errors import InputError
from scaling.models.counts import counts, parameters
from scaling.parallel.chips import GIB
from scaling.parallel.placements import choose
from scaling.parallel.topology import parse_topology
from scaling.runs import Placement, run_from_dict
from scaling.specs import from_dict, to_dict
from scaling.sweeps import plan
from scaling.sweeps.cells import all_stores
from scaling.sweeps.grid import make_grid
from scaling.sweeps.plan import Planned, placement_columns, placement_words, plan_rows, program_of, select, totals

V5E = parse_topology("v5e:4x4")


@pytest.fixture(scope="module")
def large(make_config, make_texts):
    """The cells of a study at the scale of 1e8 to 3e9 parameters."""
    return make_grid(make_config("large"), make_texts(1e15, 32_000))[0]


def test_a_row_a_cell_with_what_it_will_compute(make_config, make_texts):
    texts = make_texts(1e6)
    cells, _ = make_grid(make_config("study", data__max_epochs=30.0), texts)
    rows = plan_rows(cells, all_stores(texts))
    assert [row["run"] for row in rows] == [cell.id for cell in cells]
    for row, cell in zip(rows, cells, strict=True):
        run = cell.run
        counted = counts(run.model, run.data.sequence_length, run.tokens)
        assert {name: row[name] for name in counted} == counted
        assert row["D"] == run.steps * run.batch_size * 64 == row["steps"] * row["batch_tokens"]
        assert row["flops_error"] == row["C"] / row["budget"] - 1
        assert abs(row["flops_error"]) < 0.005
        assert row["peak_lr"] == run.optimizer.peak_lr
        assert row["tokens_per_parameter"] == row["D"] / row["N"]
        # 15,624 windows of 64 tokens and their targets are what 1e6 tokens hold
        assert row["epochs"] == pytest.approx(row["D"] / (15_624 * 64 + 64), rel=1e-4)
        assert row["unique_tokens"] == min(row["D"], (1_000_000 - 1) // 64 * 64)
        assert run_from_dict(row["run_spec"]) == run


def test_the_state_is_sixteen_bytes_a_parameter(make_config, make_texts):
    """fp32: the parameter, its gradient, and Adam's two moments; 8e9 parameters are 119.2 GiB."""
    texts = make_texts(1e15, 32_000)
    cells, _ = make_grid(make_config("large", grid__budgets=(4e19,), grid__sizes=4), texts)
    for row in plan_rows(cells, all_stores(texts)):
        assert row["state_gib_est"] == pytest.approx(119.2 * row["N"] / 8e9, rel=1e-3)


def test_cells_are_selected_by_their_beginning_or_by_their_size(large):
    sizes = [parameters(cell.run.model).N for cell in large]
    one = large[3]
    assert select(large, [one.id]) == [one]
    width = one.id.split("-")[0]
    assert one in select(large, [width])
    assert all(cell.id.startswith(width) for cell in select(large, [width]))
    smallest = f"{min(sizes) / 1e6:.0f}M"
    assert select(large, [smallest]) == [cell for cell, N in zip(large, sizes, strict=True) if N == min(sizes)]
    assert select(large, [large[2].id, large[0].id]) == [large[0], large[2]]  # in the order of the sweep


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("16b", "no cell of about 16b (sizes are "),
        ("0m", "no cell of about 0m"),
        ("d64x", "no cell is called 'd64x' (the beginning of an id such as d"),
        ("", "no cell is called ''"),
    ],
)
def test_a_name_without_a_cell_is_refused(large, name, fault):
    with pytest.raises(InputError) as error:
        select(large, [name])
    assert fault in str(error.value)


def test_runs_of_one_program_differ_in_steps_rate_and_seed_alone(large):
    run = large[0].run
    same = dataclasses.replace(run, seed=7, steps=run.steps + 1, optimizer=dataclasses.replace(run.optimizer, b1=0.8))
    assert program_of(same) == program_of(run)
    for change in ({"batch_size": 2 * run.batch_size}, {"precision": "bf16"}, {"z_loss": 0.1}):
        assert program_of(dataclasses.replace(run, **change)) != program_of(run)
    longer = dataclasses.replace(run.data, sequence_length=2 * run.data.sequence_length)
    assert program_of(dataclasses.replace(run, data=longer)) != program_of(run)


def test_what_a_topology_adds_to_a_row(large):
    """Hours are steps of the estimated length; kWh and dollars are chip-hours by what a chip takes."""
    run = large[0].run
    best = choose(run, V5E)[0]
    planned = plan.estimated(run, V5E)
    assert planned == Planned(best)
    row = placement_columns(run, planned, V5E, price=2.0, watts=250.0)
    assert from_dict(Placement, row["placement"]) == best.placement
    assert row["memory_gib_est"] == best.memory.total / GIB
    assert row["hours_est"] == run.steps * best.step.seconds / 3600
    assert row["chip_hours_est"] == 16 * row["hours_est"]
    assert row["kwh_est"] == pytest.approx(row["chip_hours_est"] / 4)
    assert row["cost_est"] == 2 * row["chip_hours_est"]
    assert row["proof"] is row["fault"] is None
    # MFU is the run's own FLOPs over what the chips could have done in that time
    flops = counts(run.model, run.data.sequence_length, run.tokens)["C"]
    assert row["mfu_est"] == pytest.approx(flops / (row["chip_hours_est"] * 3600 * 197e12))


def test_a_run_that_fits_nowhere_has_a_row_that_says_so(large):
    run = dataclasses.replace(large[-1].run, model=dataclasses.replace(large[-1].run.model, n_layers=256))
    planned = plan.estimated(run, V5E)
    assert planned.candidate is None
    row = placement_columns(run, planned, V5E, None, None)
    assert "the least that would hold it is" in row["fault"]
    assert row["placement"] is row["hours_est"] is row["proof"] is None


def test_what_the_compiler_refuses_is_told_with_what_was_tried(large, monkeypatch):
    refusal = {"tried": [{"placement": {}, "fits": False}], "reason": "Mosaic failed"}
    monkeypatch.setattr(plan, "first_that_fits", lambda *arguments: (None, refusal))
    planned = plan.proved(large[0].run, V5E, list)
    assert planned.candidate is None
    row = placement_columns(large[0].run, planned, V5E, None, None)
    assert row["fault"] == "the compiler refuses all 1 placements tried; the last: Mosaic failed"
    assert row["tried"] == refusal["tried"]


def test_the_candidate_that_the_compiler_accepts_is_the_plan(large, monkeypatch):
    """Also where it is not the first."""
    run = large[0].run
    second = choose(run, V5E)[1]
    monkeypatch.setattr(plan, "first_that_fits", lambda run, candidates, *rest: (candidates[1], {"fits": True}))
    planned = plan.proved(run, V5E, list)
    assert planned == Planned(second, {"fits": True})
    row = placement_columns(run, planned, V5E, None, None)
    assert row["placement"] == to_dict(second.placement)
    assert row["proof"] == {"fits": True}


@pytest.mark.parametrize(
    ("placement", "words"),
    [
        ({}, "one device, 64 a shard"),
        ({"fsdp": 16, "remat": "full"}, "fsdp 16, 4 a shard, remat full"),
        ({"data": 2, "fsdp": 4, "zero": 1, "microbatch": 16}, "data 2 x fsdp 4, ZeRO 1, 2 x 4 a shard"),
        ({"tensor": 8, "kernels": "plain"}, "tensor 8, 64 a shard, plain kernels"),
    ],
)
def test_a_placement_in_words(large, placement, words):
    run = dataclasses.replace(large[0].run, batch_size=64)
    assert placement_words(Placement(**placement), run) == words


NODE = parse_topology("h100:8")


def test_small_cells_get_a_device_each_and_run_side_by_side(make_config, make_texts):
    cells, _ = make_grid(make_config("study"), make_texts(1e9))
    parts = plan.parts_of(cells, NODE)
    assert {part.text for part in parts.values()} == {"h100:1"}
    rows = [placement_columns(c.run, plan.estimated(c.run, parts[program_of(c.run)]), NODE, None, None) for c in cells]
    assert {from_dict(Placement, row["placement"]).devices for row in rows} == {1}


def test_the_parts_are_the_best_of_the_whole_and_of_each_alone(large):
    """Done no later than with any one part for all; a model that no small part holds has a larger one."""
    parts = plan.parts_of(large, NODE)

    def elapsed(part_of):
        rows = []
        for cell in large:
            part = part_of(cell)
            columns = placement_columns(cell.run, plan.estimated(cell.run, part), part, None, None)
            rows.append({"C": 0.0, "D": 0.0, **columns})
        if any(row["placement"] is None for row in rows):
            return float("inf")
        return totals(rows, NODE)["elapsed_hours_est"]

    packed = elapsed(lambda cell: parts[program_of(cell.run)])
    alike = [elapsed(lambda cell, text=text: parse_topology(text)) for text in ("h100:1", "h100:2", "h100:4", "h100:8")]
    assert packed <= min(alike) * (1 + 1e-9)
    assert packed < float("inf")


def test_what_fits_nowhere_is_left_to_the_whole(large):
    nowhere = dataclasses.replace(large[-1].run, model=dataclasses.replace(large[-1].run.model, n_layers=512))
    cells = [large[0], dataclasses.replace(large[-1], run=nowhere)]
    assert plan.parts_of(cells, NODE)[program_of(nowhere)] == NODE


def test_on_one_slice_cells_go_one_after_the_other(large):
    assert set(plan.parts_of(large[:4], V5E).values()) == {V5E}
    row = {"C": 1.0, "D": 2.0, "placement": {}, "topology": "v5e:4x4"} | dict.fromkeys(plan.ESTIMATED, 3.0)
    summed = totals([row, row], V5E)
    assert (summed["elapsed_hours_est"], summed["busy_est"]) == (6.0, 1.0)


def test_elapsed_time_and_idle_devices():
    """On 8 devices: one cell alone for an hour, then one on a half for two and one on a single device for one."""
    row = {"C": 1.0, "D": 2.0, "placement": {}} | dict.fromkeys(plan.ESTIMATED, 0.0)
    rows = [{**row, "topology": f"h100:{n}", "hours_est": hours} for n, hours in ((8, 1.0), (4, 2.0), (1, 1.0))]
    summed = totals([*rows, {**row, **plan.UNPLACED}], NODE)
    assert summed["hours_est"] == 4.0
    assert summed["elapsed_hours_est"] == 1.0 + 2.0 + 1.0
    assert summed["busy_est"] == (8 * 1 + 4 * 2 + 1 * 1) / (8 * 4.0)


def test_totals_are_over_what_fits():
    fits = {"C": 1.0, "D": 2.0, "placement": {}, "hours_est": 3.0, "chip_hours_est": 4.0, "kwh_est": 5.0, "cost_est": 6}
    nowhere = {"C": 10.0, "D": 20.0, **plan.UNPLACED}
    assert totals([fits, fits, nowhere]) == {
        "cells": 3,
        "C": 12.0,
        "D": 24.0,
        "hours_est": 6.0,
        "chip_hours_est": 8.0,
        "kwh_est": 10.0,
        "cost_est": 12,
    }
    assert totals([nowhere]) == {"cells": 1, "C": 10.0, "D": 20.0}
