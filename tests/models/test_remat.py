"""What autodiff keeps of the layers under each policy: the arrays that the scan over them stacks, on eight devices."""

import collections
import contextlib
import dataclasses
import io
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import print_saved_residuals

from scaling.models.transformer import Transformer, abstract_params
from scaling.parallel.mesh import layout_of, make_mesh
from scaling.runs import ModelShape, Placement
from scaling.training.step import summed_loss

N, B, L, D, H, G, K, F, E, C = 5, 8, 16, 24, 4, 2, 6, 40, 4, 8  # sizes by which a shape says what it is
DENSE = ModelShape(D, N, H, F, 64, n_kv_heads=G, activation="swiglu")
SPARSE = dataclasses.replace(DENSE, n_experts=E, experts_per_token=2, capacity_factor=1.0)
# The output of attention has the shape of the queries.
STREAM, QUERIES, KEYS, HIDDEN = (f"bf16[{N},{B},{L},{of}]" for of in (D, f"{H},{K}", f"{G},{K}", F))


def kept(shape, **axes):
    """How many arrays of which type and shape, as "bf16[5,8,16,24]", are kept besides the arguments."""
    placement, printed = Placement(**axes), io.StringIO()
    model = Transformer(shape, jnp.bfloat16, layout_of(placement), remat=placement.remat)

    def loss(params):
        return summed_loss(model, params, jnp.zeros((B, L + 1), jnp.int32), 0.0, None)[0]

    with jax.set_mesh(make_mesh(placement)), contextlib.redirect_stdout(printed):
        print_saved_residuals(loss, nn.unbox(abstract_params(shape)))
    lines = [line for line in printed.getvalue().splitlines() if "from the argument" not in line]
    return collections.Counter(line.split()[0] for line in lines if re.match(rf"\S*\[{N},", line))


@pytest.mark.parametrize("shape", [DENSE, SPARSE], ids=["dense", "experts"])
def test_full_keeps_the_stream_alone_and_offload_moves_it_to_the_host(shape):
    assert kept(shape, data=2, fsdp=2, tensor=2, remat="full") == {STREAM: 1}
    assert kept(shape, data=2, fsdp=2, tensor=2, remat="offload") == {STREAM.replace("bf16", "bf16<host>"): 1}


@pytest.mark.parametrize("shape", [DENSE, SPARSE], ids=["dense", "experts"])
def test_named_keeps_the_output_of_attention_too(shape):
    assert kept(shape, data=2, fsdp=2, tensor=2, remat="named") == {STREAM: 1, QUERIES: 1}


def test_dots_keeps_products_with_weights():
    """Those of attention: queries, keys and values, and its output; of the feed-forward up and gate, as the product
    with `down` is only added. But that of experts is weighed, by a factor that has a gradient."""
    attention = {STREAM: 2, QUERIES: 1, KEYS: 2}
    assert kept(DENSE, data=2, fsdp=2, tensor=2, remat="dots") == {**attention, HIDDEN: 2}
    # Each device keeps its own rows, and autodiff puts those of the two shards of F one behind the other.
    experts = {f"bf16[{N},{2 * B},{E},{C},{F // 2}]": 2, f"bf16[{N},{2 * B},{E},{C},{D}]": 1}
    router = {f"f32[{N},{B},{L},{E}]": 1}
    assert kept(SPARSE, data=2, fsdp=2, tensor=2, remat="dots") == {**attention, **router, **experts}


WEIGHTS = {f"bf16[{N},{of}]" for of in (f"{D},{H},{K}", f"{D},{G},{K}", f"{H},{K},{D}", f"{D},{F}", f"{F},{D}")}


def test_none_keeps_all_but_the_gathered_weights():
    """Where parameters lie over `fsdp`, the gathered ones would be the whole model on each device. Where they do not, a
    matrix is there as a whole anyway, and what is kept is its copy in bf16."""
    whole, gathered = (kept(DENSE, fsdp=8, remat="none", zero=zero) for zero in (2, 3))
    assert WEIGHTS <= set(whole)
    assert {name: number for name, number in whole.items() if name not in WEIGHTS} == gathered
    assert gathered[HIDDEN] > 2  # also what is neither a product nor named


def test_none_keeps_results_of_experts_in_their_own_type():
    """The gradient of a router is a sum in fp32, for which derived code would keep its summands in fp32."""
    results = re.compile(rf"(\w+)\[{N},\d+,{L},2,{D}\]")
    found = [results.fullmatch(name) for name in kept(SPARSE, data=2, fsdp=2, tensor=2, remat="none")]
    assert [match[1] for match in found if match] == ["bf16"]
