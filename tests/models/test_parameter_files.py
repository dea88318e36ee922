import dataclasses
import hashlib
import struct

import jax
import numpy as np
import pytest
from flax import linen as nn

from scaling.errors import InputError
from scaling.files import read_json, write_json
from scaling.models.counts import parameters
from scaling.models.parameter_files import (
    content_id,
    flatten,
    load_arrays,
    read_header,
    read_params,
    save_arrays,
    stack_layers,
    start_params,
    unflatten,
    unstack_layers,
    write_params,
)
from scaling.models.transformer import Transformer, abstract_params, init_params
from scaling.runs import ModelShape

SHAPE = ModelShape(16, 3, 2, 24, 11, tied_embeddings=True)


def random_params(shape=SHAPE):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), nn.unbox(abstract_params(shape)))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "params"
    write_params(path, SHAPE, random_params(), "a test")
    return path


def test_what_is_written_is_read(written):
    shape, params, found = read_params(written)
    assert shape == SHAPE
    assert_same(params, random_params())
    header = read_json(written / "params.json")
    assert header == {
        "schema": 1,
        "content_id": found,
        "shape": {"d_model": 16, "n_layers": 3, "n_heads": 2, "d_ff": 24, "vocab_size": 11, "tied_embeddings": True},
        "N": parameters(SHAPE).N,
        "source": "a test",
    }
    assert read_header(written) == (SHAPE, found)
    assert {path.name for path in written.iterdir()} == {"params.safetensors", "params.json"}


def test_the_content_id_is_of_names_shapes_types_and_bytes():
    """Worked out from its definition. It sees each change, and no order of names or of memory."""
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.zeros(2, np.float32)}
    same = content_id(arrays)
    text = b"a (2,) float32\n" + struct.pack("<2f", 0, 0) + b"b (2, 3) float32\n" + struct.pack("<6f", *range(6))
    assert same == hashlib.sha256(text).hexdigest()[:16]
    assert content_id(dict(sorted(arrays.items()))) == same
    assert content_id({**arrays, "b": np.asfortranarray(arrays["b"])}) == same
    assert content_id({**arrays, "b": arrays["b"].astype(">f4")}) == same
    for other in (
        {"c": arrays["b"], "a": arrays["a"]},
        {**arrays, "b": arrays["b"].reshape(3, 2)},
        {**arrays, "a": np.zeros(2, np.int32)},
        {**arrays, "a": np.array([0, -0.0], np.float32)},
    ):
        assert content_id(other) != same


def test_memory_that_is_not_contiguous_is_written_as_it_reads(tmp_path):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_arrays(tmp_path / "x.safetensors", {"turned": x.T, "every second": x[:, ::2]})
    read = load_arrays(tmp_path / "x.safetensors")
    assert np.array_equal(read["turned"], x.T)
    assert np.array_equal(read["every second"], x[:, ::2])


def test_layers_are_stacked_and_unstacked():
    """As the model without scan names them."""
    params = random_params()
    apart = unstack_layers(params)
    unscanned = jax.eval_shape(lambda key: init_params(Transformer(SHAPE, scan=False), key), jax.random.key(0))
    assert jax.tree.structure(apart) == jax.tree.structure(nn.unbox(unscanned))
    assert_same(stack_layers(apart), params)
    assert_same(unflatten(flatten(params)), params)


def test_a_run_starts_from_the_parameters_it_names(written):
    _, expected = read_header(written)
    assert_same(start_params(written, SHAPE, expected), random_params())
    assert_same(start_params(written, dataclasses.replace(SHAPE, output_init="zero"), expected), random_params())
    with pytest.raises(InputError, match=f"holds parameters {expected}; the run starts from 0123456789abcdef"):
        start_params(written, SHAPE, "0123456789abcdef")
    other = dataclasses.replace(SHAPE, rotary_base=5e5, n_heads=4)
    with pytest.raises(InputError, match=r"another shape than the run: n_heads=2, not 4; rotary_base=10000.0, not 5"):
        start_params(written, other, expected)


def test_an_existing_path_is_refused(written):
    with pytest.raises(InputError, match="exists already"):
        write_params(written, SHAPE, random_params(), "a test")


def test_parameters_of_another_shape_are_not_written(tmp_path):
    other = dataclasses.replace(SHAPE, tied_embeddings=False, d_ff=32)
    params = random_params()
    with pytest.raises(InputError, match="missing or unexpected: head"):
        write_params(tmp_path / "params", other, params, "a test")
    with pytest.raises(InputError, match=r"mlp/down is float32 of \(3, 24, 16\), not float32 of \(3, 32, 16\)"):
        write_params(tmp_path / "params", dataclasses.replace(SHAPE, d_ff=32), params, "a test")
    with pytest.raises(InputError, match="embedding is float64"):
        write_params(tmp_path / "params", SHAPE, {**params, "embedding": np.zeros((11, 16))}, "a test")
    assert not list(tmp_path.iterdir())


def test_altered_files_are_refused(written):
    arrays = load_arrays(written / "params.safetensors")
    arrays["embedding"][3, 3] += 1e-6
    save_arrays(written / "params.safetensors", arrays)
    with pytest.raises(InputError, match=r"params.safetensors: the content is [0-9a-f]{16}, not [0-9a-f]{16} as"):
        read_params(written)
    del arrays["embedding"]
    save_arrays(written / "params.safetensors", arrays)
    with pytest.raises(InputError, match="missing or unexpected: embedding"):
        read_params(written)
    (written / "params.safetensors").write_bytes(b"0123")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        read_params(written)
    (written / "params.safetensors").unlink()
    with pytest.raises(InputError, match=r"params.safetensors: no such file"):
        read_params(written)


def test_headers_that_say_something_else_are_refused(written):
    header = read_json(written / "params.json")
    for changed, said in (
        ({**header, "schema": 2}, "not of schema 1"),
        ({**header, "shape": {"d_model": 16}}, "missing n_layers"),
        ([], "not of schema 1"),
    ):
        write_json(written / "params.json", changed)
        with pytest.raises(InputError, match=said):
            read_header(written)
    (written / "params.json").unlink()
    with pytest.raises(InputError, match=r"no params.json: not a directory of parameters \(tools.import_hf writes one"):
        read_header(written)
