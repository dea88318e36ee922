import math

import jax
import numpy as np
import pytest

from scaling.errors import InputError
from scaling.models.counts import active_parameters, parameters
from scaling.models.families import FAMILIES, preset
from scaling.models.ladder import CHINCHILLA, chinchilla_shape, shape_for
from scaling.models.transformer import abstract_params

PRESETS = [(family, name) for family, values in FAMILIES.items() for name in values.presets]
# The fifty of Chinchilla are alike: a few of them at once, the others with the slow tests.
QUICK = [pair for pair in PRESETS if pair[0] != "chinchilla"] + PRESETS[-50::16]
SLOW = [pytest.param(*pair, marks=pytest.mark.slow) for pair in PRESETS if pair not in QUICK]
# Counts of the released checkpoints, as their model cards and transformers' num_parameters() give them.
PUBLISHED = {
    ("gpt2", "124M"): 124_439_808,
    ("gpt2", "355M"): 354_823_168,
    ("gpt2", "774M"): 774_030_080,
    ("gpt2", "1558M"): 1_557_611_200,
    ("llama", "smollm2-135M"): 134_515_008,
    ("llama", "smollm2-360M"): 361_821_120,
    ("llama", "tinyllama-1.1B"): 1_100_048_384,
    ("llama", "llama2-7B"): 6_738_415_616,
    ("llama", "llama2-13B"): 13_015_864_320,
    ("llama", "llama2-70B"): 68_976_648_192,
    ("llama", "llama3-8B"): 8_030_261_248,
    ("llama", "llama3-70B"): 70_553_706_496,
    ("mixtral", "8x7B"): 46_702_792_704,
}


@pytest.mark.parametrize(("family", "name"), QUICK + SLOW)
def test_counts_are_those_of_the_tree_and_the_published_ones(family, name):
    shape = preset(family, name)
    counted = parameters(shape).N
    assert counted == sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(shape)))
    if family == "chinchilla":
        assert shape == chinchilla_shape(name)
    else:
        assert counted == PUBLISHED[family, name]


def test_mixtral_computes_with_13_of_its_47_billion():
    """Jiang et al. 2024, section 1: "each token has access to 47B parameters, but only uses 13B"."""
    shape = preset("mixtral", "8x7B")
    assert round(parameters(shape).N / 1e9) == 47
    assert round(active_parameters(shape) / 1e9) == 13


def test_every_preset_has_its_familys_options():
    assert [name for family, name in PRESETS if family == "chinchilla"] == [*CHINCHILLA]
    for family, name in PRESETS:
        shape = preset(family, name)
        for field, value in FAMILIES[family].options.items():
            assert getattr(shape, field) == value, (family, name, field)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_size_of_a_family(family):
    options = FAMILIES[family].options
    learned = {"n_positions": 1024} if options["positions"] == "learned" else {}
    shape = shape_for(3e8, 32_000, **options, **learned)
    assert abs(parameters(shape).N / 3e8 - 1) < 0.09
    assert {field: getattr(shape, field) for field in options} == options


@pytest.mark.parametrize("experts", [8, 128])
def test_a_size_counts_all_experts(experts):
    """Above 1e7 within 12 %, as shape_for states: a layer more or less of many experts is a large part of a model."""
    for size in np.geomspace(1e7, 1e12, 16):
        shape = shape_for(size, 257, n_experts=experts, experts_per_token=2, activation="swiglu")
        assert abs(math.log(parameters(shape).N / size)) < 0.12, (size, shape)


def test_more_experts_than_a_size_has_room_for_are_refused():
    with pytest.raises(InputError, match=r"vocab_size=257, n_experts=64: the nearest has"):
        shape_for(1e4, 257, n_experts=64)


def test_a_preset_with_another_vocabulary():
    shape = preset("gpt2", "124M", vocab_size=8192)
    assert shape.vocab_size == 8192
    assert parameters(shape).N == 124_439_808 - (50_257 - 8192) * 768


@pytest.mark.parametrize(
    ("family", "name", "said"),
    [
        ("gpt3", "124M", r"unknown family 'gpt3' \(did you mean gpt2\?\)"),
        ("gpt2", "125M", r"family gpt2: unknown model '125M' \(did you mean 124M\?\)"),
        ("llama", "llama3-7B", r"family llama: unknown model 'llama3-7B' \(did you mean llama3-70B\?\)"),
        ("llama", "405B", r"family llama: unknown model '405B' \(valid: llama2-13B, "),
        ("chinchilla", "70M", r"unknown size '70M' \(did you mean 74M\?\)"),
    ],
)
def test_an_unknown_name_names_the_nearest(family, name, said):
    with pytest.raises(InputError, match=said):
        preset(family, name)
