"""The peer computes what we compute: with the same parameters, the same losses, step by step."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.errors import InputError
from scaling.models.huggingface import from_hf
from scaling.parallel.mesh import make_mesh
from scaling.runs import Placement
from scaling.speed import peer, step, stopwatch
from scaling.speed.shapes import GPT2_SMALL, SHAPES, Shape, model_of, run_of, token_batches
from scaling.training.step import make_program

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = Shape(16, n_layers=2, n_heads=2, length=12, batch=3, vocab_size=19)
FP32 = step.Against("fp32", "fp32", compiled=False)
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None,
    reason="torch and transformers are not installed: pip install 'scaling[benchmark]'",
)


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    monkeypatch.setattr(stopwatch, "SECONDS", 0.01)


@needs_torch
@pytest.mark.slow  # it imports PyTorch
def test_the_peer_trains_as_we_do():
    """From its parameters, four steps of AdamW with clipping on the same batches: losses agree to the rounding of fp32,
    and they move by far more than that."""
    import torch

    torch.manual_seed(0)
    theirs = peer.gpt2(TINY, "eager", "cpu")
    tensors = {name: x.numpy().copy() for name, x in theirs.state_dict().items()}
    shape, params = from_hf(theirs.config.to_dict(), tensors)
    assert shape == model_of(TINY)

    torch.manual_seed(0)
    their_step = peer.build(TINY, "fp32", "cpu", peer.FIRST)
    expected = [float(their_step().detach()) for _ in range(4)]

    program = make_program(run_of(TINY, "fp32"), Placement(), make_mesh(Placement()))
    with jax.set_mesh(program.mesh):
        state = program.init(jax.random.key(0))._replace(params=jax.tree.map(jnp.asarray, params))
        ours = []
        for tokens_BxM in token_batches(TINY.vocab_size, TINY.batch, TINY.length):
            state, metrics = program.step(state, tokens_BxM, jnp.float32(1e-3))
            ours.append(float(metrics["loss"]))
    # Sums of 16 to 64 products in another order, through two layers, and through the square root of Adam: 1e-5.
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    assert np.ptp(expected) > 1e-3


@needs_torch
@pytest.mark.slow  # a process that imports PyTorch
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_peer_is_measured_beside_us_with_its_options_told(precision):
    row = step.measured("tiny", TINY, step.Against(precision, precision, compiled=False), 2, peer=True)
    assert row.name == f"step tiny {precision}"
    assert len(row.samples) == 2
    assert row.ratio > 0
    for said in ("transformers' GPT-2 on PyTorch", "eager attention, fused AdamW, eager", "foreach AdamW"):
        assert said in row.peer_is
    assert "compiled" not in row.peer_is


def test_without_the_extra_the_peer_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(peer, "installed", lambda: False)
    with pytest.raises(InputError, match=r"pip install 'scaling\[benchmark\]'"):
        step.measured("tiny", TINY, FP32, 1, peer=True)


def test_ours_alone_has_no_ratio():
    row = step.measured("tiny", TINY, FP32, 3, peer=False)
    assert (row.unit, row.peer, row.ratio, len(row.samples)) == ("ms", None, None, 3)
    assert row.ours > 0


def test_a_part_has_a_row_for_each_shape_and_comparison(monkeypatch):
    monkeypatch.setattr(step, "SHAPES", {"tiny": TINY})
    said = []
    rows = step.measure(1, False, said.append)
    assert [row.name for row in rows] == ["step tiny fp32", "step tiny fp32 vs compiled", "step tiny bf16"]
    assert said == [row.name for row in rows]


@pytest.mark.parametrize("name", ["d128", "d384", "d256-v8192"])
def test_the_shapes_are_those_that_peers_were_measured_at(name):
    """D, layers, heads, L, B, V."""
    expected = {
        "d128": (128, 4, 4, 128, 32, 256),
        "d384": (384, 6, 6, 256, 16, 256),
        "d256-v8192": (256, 4, 4, 256, 8, 8192),
    }
    shape = SHAPES[name]
    numbers = shape.d_model, shape.n_layers, shape.n_heads, shape.length, shape.batch, shape.vocab_size
    assert numbers == expected[name]
    assert run_of(shape, "bf16").batch_tokens == shape.tokens


def test_on_a_gpu_the_shape_is_that_of_the_smallest_gpt2():
    model = model_of(GPT2_SMALL["gpt2-124m"])
    assert (model.d_model, model.n_layers, model.n_heads, model.d_ff, model.n_positions) == (768, 12, 12, 3072, 1024)
