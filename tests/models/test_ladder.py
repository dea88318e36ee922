import math

import numpy as np
import pytest

from scaling.errors import InputError
from scaling.models.counts import parameters
from scaling.models.ladder import CHINCHILLA, LARGEST, SMALLEST, chinchilla_shape, depth, shape_for

CASES = [(257, 1e4, 1e9), (32_000, 1e8, LARGEST)]  # a vocabulary, and the sizes it makes sense for


@pytest.mark.parametrize(("vocab_size", "smallest", "largest"), CASES)
@pytest.mark.parametrize("options", [{}, {"tied_embeddings": True, "activation": "swiglu"}])
def test_a_shape_is_near_its_size_and_of_usual_proportions(vocab_size, smallest, largest, options):
    """The factors are those that shape_for states."""
    made = []
    for size in np.geomspace(smallest, largest, 25):
        shape = shape_for(size, vocab_size, **options)
        made.append(parameters(shape).N)
        factor = 1.31 if size < 1e7 else 1.09
        assert 1 / factor < made[-1] / size < factor, (size, shape)
        tile = 4 if shape.d_model < 64 else shape.d_model / 8
        assert abs(shape.d_ff - shape.d_model * (8 / 3 if options else 4)) <= (tile / 2 if options else 0)
        assert abs(math.log(shape.n_layers / depth(shape.d_model))) < math.log(1.31)
        assert shape.n_heads * shape.head_size == shape.d_model
        assert shape.head_size <= 128 or shape.n_heads == 1
        assert (shape.tied_embeddings, shape.activation) == (bool(options), options.get("activation", "gelu"))
    assert made == sorted(made)


@pytest.mark.parametrize("size", [SMALLEST * 0.99, LARGEST * 1.01, 0, -1, math.nan, math.inf])
def test_sizes_outside_are_refused(size):
    with pytest.raises(InputError, match=r"no shape for .* parameters \(sizes are 1e\+04 to 1e\+12\)"):
        shape_for(size, 257)


def test_a_size_that_the_vocabulary_alone_exceeds_is_refused():
    """The smallest width, 8, needs 2 x 8 x 32,000 parameters for embedding and head: fifty times the 1e4 asked."""
    with pytest.raises(InputError, match="vocab"):
        shape_for(1e4, 32_000)


@pytest.mark.parametrize(("vocab_size", "smallest", "largest"), CASES)
def test_a_given_depth_is_kept_and_the_size_is_met(vocab_size, smallest, largest):
    """From half to twice the usual depth, at one size each within 4 %, as shape_for states."""
    for size in np.geomspace(max(smallest, 1e5), largest, 7):
        usual = shape_for(size, vocab_size).n_layers
        for n_layers in {max(1, usual // 2), usual, 2 * usual}:
            shape = shape_for(size, vocab_size, n_layers=n_layers, activation="swiglu")
            assert shape.n_layers == n_layers
            assert abs(math.log(parameters(shape).N / size)) < 0.04, (size, shape)


def test_a_depth_that_no_width_brings_to_the_size_is_refused():
    with pytest.raises(InputError, match="vocab_size=257, n_layers=200: the nearest has"):
        shape_for(1e4, 257, n_layers=200)


def test_grouped_queries_choose_widths_whose_heads_they_divide():
    """At 1e8, 3 key-value heads leave widths 576 and 768, a factor of 1.5 apart in size: met within its root."""
    for n_kv_heads in (1, 3, 8):
        shape = shape_for(1e8, 32_000, n_kv_heads=n_kv_heads)
        assert shape.kv_heads == n_kv_heads
        assert abs(math.log(parameters(shape).N / 1e8)) < math.log(1.25)
    with pytest.raises(InputError, match="n_kv_heads=16: no width has such heads"):
        shape_for(1e4, 257, n_kv_heads=16)
    with pytest.raises(InputError, match="n_kv_heads=17: no width has such heads"):
        shape_for(1e8, 257, n_kv_heads=17)


def test_depth_is_table_a9s():
    """To a factor of 1.75: the table itself has 10, 13 and 16 layers at one width of 640."""
    for d_model, _, _, _, n_layers in CHINCHILLA.values():
        assert 1 / 1.75 < depth(d_model) / n_layers < 1.75, (d_model, n_layers)
    assert (round(depth(512)), round(depth(5120))) == (8, 47)


def test_published_shapes():
    assert len(CHINCHILLA) == 50
    assert [*CHINCHILLA][:: len(CHINCHILLA) - 1] == ["44M", "16183M"]
    shape = chinchilla_shape("74M", tied_embeddings=True)
    assert (shape.d_model, shape.d_ff, shape.head_size, shape.n_heads, shape.n_layers) == (640, 2560, 64, 10, 10)
    assert (shape.vocab_size, shape.tied_embeddings) == (32_000, True)


def test_an_unknown_size_names_the_nearest():
    with pytest.raises(InputError, match=r"Table A9: unknown size '70M' \(did you mean 74M\?\)"):
        chinchilla_shape("70M")
    with pytest.raises(InputError, match=r"unknown size '16183' \(did you mean 16183M\?\)"):
        chinchilla_shape("16183")
