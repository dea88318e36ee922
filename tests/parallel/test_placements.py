"""Placements: all that are offered can hold the run, the first is the fastest that fits, refusals say what would do."""

import dataclasses
import time

import pytest

from scaling.errors import InputError
from scaling.models.ladder import CHINCHILLA, chinchilla_shape
from scaling.parallel.memory import estimate_memory
from scaling.parallel.placements import MARGIN, candidates, choose
from scaling.parallel.topology import parse_topology
from scaling.runs import DataSpec, ModelShape, OptimizerSpec, Placement, Run, ScheduleSpec

SPARSE = ModelShape(1024, 8, 8, 4096, 32_000, n_experts=8, experts_per_token=2)
SMALL = ModelShape(64, 4, 4, 128, 256)


def run_of(shape, batch=256, length=2048):
    return Run(shape, DataSpec("s", length, 2), batch, 10, OptimizerSpec(1e-3), ScheduleSpec("cosine", 1), "bf16")


@pytest.mark.parametrize(
    ("shape", "batch", "length", "topology"),
    [
        (chinchilla_shape("57M"), 64, 2048, "v5e:16x16"),  # 9 heads of width 576
        (chinchilla_shape("16183M"), 512, 2048, "h100:64"),
        (chinchilla_shape("1429M"), 1024, 2048, "4xv5e:16x16"),
        (chinchilla_shape("1429M"), 16, 16_384, "tpu7x:2x2x1"),
        (SPARSE, 64, 512, "v6e:4x4"),
        (SMALL, 8, 64, "cpu:8"),
    ],
)
def test_every_candidate_holds_the_run_and_uses_every_device(shape, batch, length, topology):
    run, topology = run_of(shape, batch, length), parse_topology(topology)
    found = candidates(run, topology)
    assert found
    assert len(set(found)) == len(found)
    for placement in found:
        placement.check(run)
        assert placement.devices == topology.devices
        if topology.data_slices > 1:
            assert placement.data * placement.stage % topology.slices == 0


def test_chosen_placements_fit_and_come_fastest_first():
    run, topology = run_of(chinchilla_shape("6796M")), parse_topology("v5e:16x16")
    found = choose(run, topology)
    seconds = [candidate.step.seconds for candidate in found]
    assert seconds == sorted(seconds)
    assert all(c.memory.total <= (1 - MARGIN) * topology.device_memory for c in found)
    assert all(c.memory == estimate_memory(run, c.placement, topology) for c in found)
    assert {c.placement for c in found} <= set(candidates(run, topology))
    assert len({c.memory.total for c in found}) > 10  # somewhere to go if the compiler disagrees


def test_a_small_model_is_not_cut_more_than_it_must_be():
    first = choose(run_of(chinchilla_shape("74M")), parse_topology("v5e:16x16"))[0].placement
    assert (first.tensor, first.context, first.stage, first.remat) == (1, 1, 1, "none")


def test_a_closed_cube_is_not_cut_by_fsdp_alone():
    """There the TPU compiler makes all-reduces of all gathers; on a plane, or an open cube, it does not."""
    run = run_of(chinchilla_shape("1429M"), 512)
    found = {text: choose(run, parse_topology(text))[0].placement for text in ("v5p:4x4x4", "v6e:8x8", "v5p:2x2x2")}
    assert found["v5p:4x4x4"].fsdp == 32
    assert (found["v6e:8x8"].fsdp, found["v5p:2x2x2"].fsdp) == (64, 8)


def test_experts_may_be_spread_and_dense_models_not():
    topology = parse_topology("v6e:4x4")
    assert {p.expert for p in candidates(run_of(SPARSE, 64, 512), topology)} == {1, 2, 4, 8}
    assert {p.expert for p in candidates(run_of(SMALL, 64, 512), topology)} == {1}


def test_long_sequences_and_small_batches_may_be_cut_over_context():
    topology = parse_topology("v5e:4x4")
    for length, batch, contexts in ((2048, 16, {1}), (8192, 16, {1, 2, 4, 8, 16}), (2048, 2, {2, 4, 8})):
        found = {p.context for p in candidates(run_of(SMALL, batch, length), topology)}
        assert found >= contexts
        assert found == {1} or contexts != {1}


def test_the_same_answer_serves_runs_that_differ_in_what_does_not_matter():
    one = run_of(chinchilla_shape("74M"))
    other = dataclasses.replace(
        one, steps=77, seed=3, data=dataclasses.replace(one.data, store="t", seed=1), optimizer=OptimizerSpec(1e-2)
    )
    topology = parse_topology("v5e:16x16")
    assert choose(one, topology)[0] is choose(other, topology)[0]


@pytest.mark.parametrize(("topology", "least"), [("v5e:2x2", "v5e:4x8"), ("v6e:2x2", "v6e:4x4"), ("h100:1", "h100:8")])
def test_what_fits_nowhere_is_told_the_least_that_would_hold_it(topology, least):
    """16B: 190 GB of parameters and moments, and 64 of gradients. The least is a topology that does hold it, and no
    smaller one does."""
    run = run_of(chinchilla_shape("16183M"), batch=64)
    with pytest.raises(InputError, match=f"the least that would hold it is {least}, ") as error:
        choose(run, parse_topology(topology))
    assert "fits nowhere: the smallest placement needs an estimated" in str(error.value)
    assert choose(run, parse_topology(least))


def test_no_chips_of_a_kind_hold_a_sequence_that_is_too_long():
    run = run_of(ModelShape(16_384, 200, 1, 65_536, 32_000), batch=1, length=2**17)
    with pytest.raises(InputError, match="no slice of these chips would"):
        choose(run, parse_topology("v5e:1x1"))


def test_a_batch_that_no_mesh_deals_out_is_refused():
    with pytest.raises(InputError, match=r"no mesh deals batch_size=3 over 256 devices .* a multiple of 256"):
        choose(run_of(ModelShape(64, 3, 1, 128, 256), batch=3), parse_topology("v5e:16x16"))


def test_a_grid_is_planned_in_seconds():
    """Every eighth of Chinchilla's sizes with two batches: a 28th of what 400 runs need, which may take 60 s. Processor
    time: the machine may be busy with other work."""
    began = time.process_time()
    for name in list(CHINCHILLA)[::8]:
        for batch in (256, 1024):
            assert choose(run_of(chinchilla_shape(name), batch), parse_topology("v5p:4x4x4"))
    assert time.process_time() - began < 60 * 14 / 400 * 3  # three times: a slower machine, and nothing cached yet


def test_placement_fields_are_those_of_a_mesh():
    """A family is made from the mesh's own names: a renamed axis must not vanish."""
    assert Placement(data=2, fsdp=2) in candidates(run_of(SMALL, 8, 64), parse_topology("cpu:4"))
