"""What the compiled step holds and sends on each device, read from the programs that XLA's compilers make of it.

For one chip, fsdp, fsdp with tensor, and data over slices: no logits but those of a chunk, no weight gathered in fp32,
no activation of the whole batch, all of the state in the place of what was given, and collectives beside products. Each
check is shown to find what it is for, in a program that is wrong on purpose. Fake devices of the CPU do for all but the
schedule; the slow tests are for v5e, v5p and H100, which need not be there.
"""

import dataclasses
import importlib.util

import jax
import pytest
from hlo import aliased, arrays, gathered, parse, sent

from scaling.models import module
from scaling.models.axes import RULES, spec, without_embed
from scaling.models.chunks import whole_chunk
from scaling.models.ladder import chinchilla_shape
from scaling.parallel import xla_flags
from scaling.parallel.absent import absent_devices
from scaling.parallel.mesh import make_mesh
from scaling.parallel.topology import parse_topology
from scaling.runs import DataSpec, ModelShape, OptimizerSpec, Placement, Run, ScheduleSpec
from scaling.sweeps.prove import environment
from scaling.training import step as step_module
from scaling.training.step import lowered_step, make_program

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Three layers, which no other dimension is: an array with a 3 in its shape is one of all layers. A chunk of the logits
# has as many tokens on a device as a table has columns, D: both have the same bound. The feed-forward is three times as
# wide as the stream, so that on four devices no array of it is as large as the stream of the whole batch.
TINY = ModelShape(d_model=64, n_layers=3, n_heads=4, d_ff=192, vocab_size=1280)
SMALL = ModelShape(d_model=1024, n_layers=3, n_heads=8, d_ff=3072, vocab_size=32_000)  # 98M parameters
PLACEMENTS = {
    "one device": Placement(),
    "fsdp x tensor": Placement(fsdp=4, tensor=2),
    "data x fsdp": Placement(data=2, fsdp=4),
}


def run_of(shape, length, placement):
    """Eight sequences a shard, in bf16."""
    data = DataSpec("s", length, 2)
    return Run(
        shape, data, 8 * placement.batch_shards, 10, OptimizerSpec(1e-3), ScheduleSpec("cosine", 1), "bf16", z_loss=1e-4
    )


def compiled(run, placement, devices=None, options=None):
    """The text of the step's program, traced anew."""
    step_module._program.cache_clear()
    mesh = make_mesh(placement, devices)
    program = make_program(run, placement, mesh)
    with jax.set_mesh(mesh):
        text = lowered_step(program, run).compile(options).as_text()
    step_module._program.cache_clear()  # no other test is to meet this program
    return text


def largest_logits(program, run, placement):
    """Entries of the largest array over the vocabulary, for each word of it."""
    words = {run.model.vocab_size, run.model.vocab_size // (placement.tensor * placement.stage)}
    return max(a.size // max(words & set(a.shape)) for a in arrays(program) if words & set(a.shape))


def largest_activation(program, run):
    """Entries of the largest array, of one layer."""
    layers = run.model.n_layers
    return max(a.size // (layers if layers in a.shape else 1) for a in arrays(program))


def gathered_in_fp32(program, run):
    """What is gathered in fp32 and is more than a vector."""
    return {a for a in gathered(program) if a.dtype == "f32" and a.size > run.model.d_model}


def leaves(run):
    """Arrays of the state: parameters, two moments of each, and the count of steps."""
    return 3 * len(jax.tree.leaves(make_program(run, Placement(), make_mesh(Placement())).abstract_state.params)) + 1


def check(text, run, placement):
    """All that holds for every program."""
    program, tokens = parse(text), 8 * whole_chunk(run.data.sequence_length, run.model.vocab_size)
    length, width = run.data.sequence_length, run.model.d_model
    assert largest_logits(program, run, placement) <= tokens == width < 8 * length
    assert aliased(text) == leaves(run)
    if placement.devices > 1:
        assert gathered(program)
        assert largest_activation(program, run) < run.batch_size * length * width


L = 64


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch, request):
    """Of the tiny shape eight positions of each sequence are a chunk."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr("scaling.models.chunks.MAX_LOGITS", 8 * TINY.vocab_size)


@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
def test_a_step_holds_no_more_than_it_must(placement):
    run = run_of(TINY, L, placement)
    check(compiled(run, placement), run, placement)


def test_logits_of_whole_sequences_are_found():
    """All of a sequence in one chunk: 8 x 64 tokens of logits, where 64 are the most."""
    placement = Placement(fsdp=4, tensor=2, loss_chunk=L)
    run = run_of(TINY, L, placement)
    assert largest_logits(parse(compiled(run, placement)), run, placement) == 8 * L


def test_activations_of_the_whole_batch_are_found(monkeypatch):
    """Where the table of axes forgets that batches are dealt over fsdp: every device then has all of it."""
    placement = Placement(fsdp=8)
    run = run_of(TINY, L, placement)
    monkeypatch.setitem(RULES, "batch", ("data", "expert"))
    assert largest_activation(parse(compiled(run, placement)), run) >= run.batch_size * L * TINY.d_model


def test_a_state_that_is_not_donated_is_found(monkeypatch):
    """Its results then are as many new arrays."""
    jit = jax.jit
    monkeypatch.setattr(step_module.jax, "jit", lambda f, donate_argnums=(), **options: jit(f, **options))
    run = run_of(TINY, L, Placement())
    assert aliased(compiled(run, Placement())) == 0 < leaves(run)


# The compilers of what is not here.

ABSENT = {
    "v5e:1x1": Placement(),
    "v5e:2x2": Placement(fsdp=4),
    "v5e:2x4": Placement(fsdp=4, tensor=2),
    "2xv5e:2x2": Placement(data=2, fsdp=4),
    "v5p:2x2x1": Placement(fsdp=4),
    "h100:1": Placement(),
    "h100:8": Placement(fsdp=8),
    "h100:8 ": Placement(fsdp=4, tensor=2),
    "h100:16": Placement(data=2, fsdp=8),
}
NEEDS = {"tpu": "libtpu", "cuda": "jax_cuda12_plugin"}


@pytest.fixture
def absent(monkeypatch):
    """The devices of a topology, compiled for as users do. The compilers read these variables when they are loaded; see
    sweeps.prove."""

    def devices(text):
        topology = parse_topology(text)
        needed = NEEDS[topology.chip.platform]
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed: pip install 'scaling[aot]'")
        for name, value in environment(topology).items():
            monkeypatch.setenv(name, value)
        return absent_devices(topology)

    quick = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield devices
    jax.config.update("jax_disable_most_optimizations", quick)


@pytest.mark.slow
@pytest.mark.parametrize(("text", "placement"), ABSENT.items(), ids=ABSENT)
def test_a_step_for_what_is_not_here_holds_no_more_than_it_must(text, placement, absent):
    run = run_of(SMALL, 2048, placement)
    program = compiled(run, placement, absent(text))
    check(program, run, placement)
    assert not gathered_in_fp32(parse(program), run)


@pytest.mark.slow
def test_weights_that_are_gathered_before_they_are_cast_are_found(monkeypatch, absent):
    def gathered_first(w, axes, dtype, layout):
        whole = w if layout is None else jax.lax.with_sharding_constraint(w, spec(without_embed(axes)))
        return jax.lax.optimization_barrier(whole).astype(dtype)  # or XLA casts first of itself

    monkeypatch.setattr(module, "gathered", gathered_first)
    monkeypatch.setattr(step_module, "decay_mask", lambda boxed: jax.tree.map(lambda _: False, boxed, is_leaf=is_box))
    run = run_of(SMALL, 2048, placement := Placement(fsdp=8))
    wrong = gathered_in_fp32(parse(compiled(run, placement, absent("h100:8"))), run)
    assert {a.size for a in wrong} >= {SMALL.d_model * SMALL.d_ff, SMALL.d_model * SMALL.vocab_size}


def is_box(x):
    return hasattr(x, "names")


def hidden(text):
    """The share of what the layers send, by entries, that is under way while something is computed."""
    looped = [each for each in sent(parse(text)) if each.looped]
    return sum(each.moved for each in looped if each.hidden) / sum(each.moved for each in looped)


LARGE = dataclasses.replace(chinchilla_shape("1429M"), n_layers=3)
# Of each kind of device: the share that is hidden, as scaling.parallel.xla_flags has it, and without an option.
OVERLAP = [
    ("v5e:2x2", 4, 0.80, {"xla_tpu_enable_latency_hiding_scheduler": False}, 0.05),
    ("v5e:2x2", 4, 0.80, {"xla_tpu_enable_async_collective_fusion": False}, 0.26),
    *(("v5p:2x2x1", 4, 0.64, {name: False}, 0.0) for name in xla_flags.TPU_V5P),
    ("h100:8", 8, 0.92, {"xla_gpu_experimental_parallel_collective_overlap_limit": 1}, 0.58),
]


@pytest.mark.slow
@pytest.mark.parametrize(("text", "fsdp", "share", "without", "share_without"), OVERLAP)
def test_what_layers_send_is_hidden_behind_products(text, fsdp, share, without, share_without, absent):
    """The shares are those that were read off with libtpu 0.0.42.1 and the CUDA plugin 0.10.2. Other versions schedule
    otherwise: 0.1 of all is one matrix of a layer."""
    placement = Placement(fsdp=fsdp)
    run = dataclasses.replace(run_of(LARGE, 2048, placement), batch_size=16)
    devices = absent(text)
    assert hidden(compiled(run, placement, devices)) == pytest.approx(share, abs=0.1)
    assert hidden(compiled(run, placement, devices, without)) == pytest.approx(share_without, abs=0.1)
