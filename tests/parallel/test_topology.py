"""Topologies: which texts are read, as what, and which are refused with what instead."""

import pytest

from scaling.errors import InputError
from scaling.parallel.chips import CHIPS
from scaling.parallel.topology import of_the_same_chips, parse_topology, slice_shapes


@pytest.mark.parametrize(
    ("text", "chips", "devices", "slices", "shape", "compiler_name"),
    [
        ("v5e:16x16", 256, 256, 1, (16, 16), "v5e:16x16"),
        ("4xv5e:16x16", 1024, 1024, 4, (16, 16), "v5e:16x16"),
        ("v4:2x2x4", 16, 16, 1, (2, 2, 4), "v4:2x2x4"),
        ("v5p:4x4x4", 64, 64, 1, (4, 4, 4), "v5p:4x4x4"),
        ("v5p:16x16x24", 6144, 6144, 1, (16, 16, 24), "v5p:16x16x24"),
        ("tpu7x:2x2x1", 4, 8, 1, (2, 2, 1), "tpu7x:2x2x1"),
        ("2xv6e:2x4", 16, 16, 2, (2, 4), "v6e:2x4"),
        ("h100:8", 8, 8, 1, (8,), "1x1x8"),
        ("h100:64", 64, 64, 8, (8,), "1x8x8"),
        ("h200:2", 2, 2, 1, (2,), "1x1x2"),
        ("cpu:8", 8, 8, 1, (8,), "cpu:8"),
    ],
)
def test_what_a_text_says(text, chips, devices, slices, shape, compiler_name):
    topology = parse_topology(text)
    assert (topology.text, topology.chips, topology.devices) == (text, chips, devices)
    assert (topology.slices, topology.slice_shape, topology.compiler_name) == (slices, shape, compiler_name)
    assert topology.devices_per_slice == devices // slices
    assert parse_topology(text.upper()) == topology


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v5e-256", "did you mean v5e:16x16"),
        ("v5e-16", "did you mean v5e:4x4"),
        ("v5litepod-16", "did you mean v5e:4x4"),
        ("v5p-128", "did you mean v5p:4x4x4"),  # this name counts cores
        ("ironwood:2x2x1", "did you mean tpu7x:2x2x1"),
        ("trillium:4x4", "did you mean v6e:4x4"),
        ("v5e:256", "did you mean v5e:16x16"),
        ("v6:4x4", "unknown chip 'v6'"),
        ("a100:8", "unknown chip 'a100'"),
        ("v5e:4x4x4", "has 3 dimensions, v5e has 2"),
        ("v5p:4x4", "has 2 dimensions, v5p has 3"),
        ("v5e:32x32", "the nearest is v5e:16x16"),
        ("v5e:3x4", "2D slices: 1x1, 2x2, 2x4"),
        ("v5p:4x4x6", "sides 2 or multiples of 4"),
        ("h100:12", "no whole number of nodes of 8 .the nearest is h100:16"),
        ("2xh100:8", "give the number of devices"),
        ("h100:8x8", "did you mean h100:64"),
        ("h100:0", "has a size of 0"),
        ("h100", "valid forms: v5e:16x16"),
        ("16x16", "valid forms"),
        ("", "valid forms"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(text, said):
    with pytest.raises(InputError, match=said) as error:
        parse_topology(text)
    assert repr(text) in str(error.value)


def test_every_slice_that_is_offered_is_read_as_itself():
    for chip in CHIPS.values():
        for shape in slice_shapes(chip) if chip.torus_axes else []:
            text = f"{chip.name}:{'x'.join(map(str, shape))}"
            assert parse_topology(text).slice_shape == shape


def test_larger_ones_of_the_same_kind_come_from_the_smallest_on():
    texts = [topology.text for topology in of_the_same_chips(parse_topology("2xv5e:4x4"))]
    assert texts == [f"2xv5e:{shape}" for shape in ["1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"]]
    assert [topology.chips for topology in of_the_same_chips(parse_topology("h100:8"))][:5] == [1, 2, 4, 8, 16]
    sizes = [topology.chips for topology in of_the_same_chips(parse_topology("v5p:4x4x4"))]
    assert sizes == sorted(sizes)
    assert sizes[:4] == [4, 8, 16, 32]
