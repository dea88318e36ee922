"""How long a training step takes, estimated: a roofline over matrix units, memory and wires. No JAX.

The arithmetic is that of "How to Scale Your Model" (Austin et al. 2025), parts 1 (roofline), 3 (collectives) and 5
(training).

Computing. On one device a step needs C seconds for its products at the published peak, with what is computed again and
what a head leaves of the matrix unit; and M seconds for the bytes that products and the operations between them read
and write at least, at the published bandwidth. It takes (C^p + (s M)^p)^(1/p). The two fitted numbers, the same for all
chips and models (`CALIBRATED`), are p, how far the two overlap (1 not at all, infinity wholly), and s, bytes moved over
those counted, because tiles are read more than once.

Sending. An all-gather or a reduce-scatter of V bytes over n devices takes V (n - 1) / n over the bandwidth at which one
of them receives, an all-reduce twice that. Weights and gradients (`fsdp`, `data`) travel while other layers compute, so
that only what exceeds the computing shows; activations (`tensor`, `context`, `expert`, `stage`) are waited for. Each
collective takes the time of its hops at least. What an axis has for wires: scaling.parallel.wires.

Where `fsdp` is a whole slice on three axes of a torus, XLA's TPU compiler makes all-reduces of its gathers and sums,
which nothing runs beside: seen in what libtpu 0.0.42 compiles for v5p:4x4x4, and told of v4 by pytorch/xla's pull
request 6528. They count so; `data 2 x fsdp 32` on the same chips has gathers again. What is seen, and does not count,
as none of the published runs shows what it costs: on TPUs the sums of gradients are waited for, and where `fsdp` is a
whole slice of 64 chips or more they are all-reduces on two axes too. Plans with many microbatches are too fast by that.

A pipeline of S stages and A microbatches is idle in S - 1 of A + S - 1 steps (Huang et al. 2019, section 2.3).

Both numbers were fitted on two runs on TPUs. How far the estimate is off on others is in `COMPARED`: up to a fifth on
TPUs, where what it leaves out takes time, and on GPUs, which it was not fitted on, a third to two thirds too fast.
"""

import dataclasses
import math

from scaling.models.counts import flops_per_token
from scaling.models.kernels import CPU_BLOCK
from scaling.parallel.memory import BYTES, Block, attention_kernel, block_of
from scaling.parallel.topology import Topology
from scaling.parallel.wires import LATENCY, wires
from scaling.runs import Placement, Run

OPTIMIZER_BYTES = 32  # a parameter: read it, its moments and its gradient, write all but the gradient, clip


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """How far computing falls short of the roofline: `overlap` is p and `traffic` is s above."""

    overlap: float
    traffic: float


# Meets MaxText's published utilisations of 61.10 % (16B, 256 v5e) and 45.46 % (Llama 3.1 8B, 256 v6e); fitted, and
# tested on others, by benchmarks/step_time.py.
CALIBRATED = Efficiency(overlap=1.128, traffic=2.216)


@dataclasses.dataclass(frozen=True)
class Compared:
    """Published runs on a kind of chip: the best utilisation among them, and the range of predicted / published - 1."""

    best: float
    low: float
    high: float


# From benchmarks/step_time.py, with the two rows of the fit; rounded to a tenth of a percent and to percents.
COMPARED = {
    "v5e": Compared(0.669, -0.02, 0.12),
    "v5p": Compared(0.715, 0.05, 0.06),
    "v6e": Compared(0.503, 0.0, 0.19),
    "h100": Compared(0.464, 0.34, 0.72),
}


@dataclasses.dataclass(frozen=True)
class Work:
    """What a program computes beside one forward and one backward pass: which shares of the forward pass once more, and
    how its attention kernel works. backward: its products backward, over those forward. tile: positions of a block,
    which is computed whole where the causal mask cuts it; None if the mask saves nothing."""

    projections: float
    kernel: float
    feed_forward: float
    between: float  # norms, activations and all else between the products
    backward: float
    tile: int | None


@dataclasses.dataclass(frozen=True)
class StepEstimate:
    """Seconds of one step. `communication` holds all that is sent, by mesh axis, hidden or not; all are estimates."""

    seconds: float
    mfu: float  # model FLOPs with full attention, over the published peak
    compute: float  # of products alone, at the published peak
    hbm: float  # of memory alone
    communication: dict[str, float]
    exposed: float  # of the communication, what nothing hides
    bubble: float  # idle stages


def work_of(remat: str, kernel: str, swiglu: bool) -> Work:
    """The work of this project's own program. The product that ends a block is not computed again: nobody reads it.

    splash computes the scores twice in its backward pass (seven products over two), cuDNN and the blocks of a CPU once
    (five); the plain kernel has them (four), and ignores the mask.
    """
    backward, tile = {"splash": (3.5, 512), "cudnn": (2.5, 128), "blocks": (2.5, CPU_BLOCK), "plain": (2.0, None)}[
        kernel
    ]
    up = 2 / 3 if swiglu else 1 / 2
    projections, attention, feed_forward, between = {
        "none": (0, 0, 0, 0),
        "dots": (0, 1, 0, 1),
        "named": (1, 0 if kernel == "splash" else 1, up, 1),  # splash keeps all that its backward pass reads
        "full": (1, 1, up, 1),
        "offload": (1, 1, up, 1),
    }[remat]
    return Work(projections, attention, feed_forward, between, backward, tile)


def estimate_step(
    run: Run,
    placement: Placement,
    topology: Topology,
    efficiency: Efficiency = CALIBRATED,
    work: Work | None = None,
) -> StepEstimate:
    """The time of one step. The placement must fit the run and use all devices of the topology.

    work: that of another program, which a benchmark compares with; None: `work_of` the placement.
    """
    shape, length, p = run.model, run.data.sequence_length, placement
    kernel = attention_kernel(run, p, topology)
    work = work or work_of(p.remat, kernel, shape.activation == "swiglu")
    block = block_of(shape, length)
    tokens = run.batch_tokens / p.batch_shards / p.context  # of a whole step, on one device
    peak = topology.chip.device_flops * (1 if run.precision == "bf16" else 0.5)

    compute = tokens * executed_flops(run, block, topology, work) / (p.tensor * p.stage) / peak
    hbm = efficiency.traffic * step_bytes(run, block, p, kernel, work, tokens) / topology.chip.device_bandwidth
    busy = (compute**efficiency.overlap + hbm**efficiency.overlap) ** (1 / efficiency.overlap)
    sent = communication(run, block, p, topology, work, tokens)

    microbatches = run.batch_size / (p.microbatch or run.batch_size)
    bubble = busy * (p.stage - 1) / microbatches
    behind = sent["data"] + (0.0 if gathers_all_reduce(p, topology) else sent["fsdp"])
    exposed = sum(sent.values()) - behind + max(0.0, behind - busy)
    seconds = busy + bubble + exposed
    model_flops = flops_per_token(shape, length) * run.batch_tokens
    mfu = model_flops / (seconds * topology.chip.peak_flops * topology.chips)
    return StepEstimate(seconds, mfu, compute, hbm, sent, exposed, bubble)


def executed_flops(run: Run, block: Block, topology: Topology, work: Work) -> float:
    """FLOPs a token of a step as it is executed: forward, twice as many backward, and what is computed again.

    What a head leaves of the matrix unit counts as if it were used.
    """
    shape, length = run.model, run.data.sequence_length
    projections = 2 * (block.projections + block.router) * (3 + work.projections)
    feed_forward = 2 * block.feed_forward * block.rows * (3 + work.feed_forward)
    unmasked = 1.0 if work.tile is None else min(1.0, (1 + work.tile / length) / 2)
    fill = min(1.0, shape.head_size / topology.chip.matrix_unit)
    scores = 4 * length * shape.n_heads * shape.head_size * unmasked / fill
    attention = scores * (1 + work.backward + work.kernel)
    return shape.n_layers * (projections + feed_forward + attention) + 6 * shape.d_model * shape.vocab_size


def step_bytes(run: Run, block: Block, p: Placement, kernel: str, work: Work, tokens: float) -> float:
    """Bytes that a device reads and writes in a step: activations, weights, logits and the training state."""
    shape, size, t = run.model, BYTES[run.precision], p.tensor
    D, V, F = shape.d_model, shape.vocab_size, shape.d_ff * block.rows
    heads = (shape.n_heads + shape.kv_heads) * shape.head_size
    arrays = 3 if shape.activation == "swiglu" else 2  # as wide as the feed-forward
    layers = shape.n_layers / p.stage

    # Numbers a token of one forward pass; the backward pass has two products for each, and twice what lies between.
    projections = 4 * D + 2 * heads / t
    feed_forward = arrays * (D * block.rows + F / t)
    # Two norms and two additions to the stream; the activation; rotation, and what attention reads and writes; with
    # experts, rows on their way there and back.
    between = 10 * D / t + arrays * F / t + 4 * heads / t + (4 * D * block.rows if shape.n_experts else 0)
    a_token = (
        (3 + work.projections) * projections + (3 + work.feed_forward) * feed_forward + (3 + work.between) * between
    )
    if kernel == "plain":  # scores and their softmax in fp32, each written and read
        a_token += (3 + work.kernel) * 4 * shape.n_heads * run.data.sequence_length * (4 / size) / t

    microbatches = run.batch_size / (p.microbatch or run.batch_size)
    weights = (block.projections + block.feed_forward * block.experts / p.expert) / t
    reads = 3 + (work.projections + work.feed_forward) / 2  # of a layer's weights
    logits = tokens * V / (t * p.stage) * (4 * 4 + 3 * size)  # fp32, twice written and read; their gradient in `size`
    local = (layers * weights + 2 * D * V / (t * p.stage)) / p.fsdp
    return layers * (tokens * a_token + reads * microbatches * weights) * size + logits + OPTIMIZER_BYTES * local


def gathers_all_reduce(p: Placement, topology: Topology) -> bool:
    """Whether the TPU compiler turns what `fsdp` gathers and scatters into all-reduces: see above."""
    closed = topology.chip.torus_axes == 3 and all(side % topology.chip.ring == 0 for side in topology.slice_shape)
    return closed and p.fsdp == topology.devices_per_slice


def communication(
    run: Run, block: Block, p: Placement, topology: Topology, work: Work, tokens: float
) -> dict[str, float]:
    """Seconds that a device sends in a step, by mesh axis, each axis as if it had the wires to itself."""
    shape, size = run.model, BYTES[run.precision]
    D, layers = shape.d_model, shape.n_layers / p.stage
    rate, hops = wires(p, topology)
    microbatches = run.batch_size / (p.microbatch or run.batch_size)
    trips = microbatches + p.stage - 1  # of microbatches through a layer; a pipeline makes some for nothing

    def collective(axis: str, volume: float, times: float, all_to_all: bool = False) -> float:
        n = getattr(p, axis)
        if n == 1:
            return 0.0
        share = (n - 1) / n
        if all_to_all and topology.chip.torus_axes:
            share = max(share, n / 4)  # a ring carries each part past its neighbours (part 3)
        return times * (volume * share / rate[axis] + hops[axis])

    tables = 2 * D * shape.vocab_size / (p.tensor * p.stage) / layers  # a layer's share of embedding and head
    replicated = (block.projections + block.router) / p.tensor + tables  # over `expert`
    experts = block.feed_forward * block.experts / p.expert / p.tensor
    weights = replicated + experts
    # ZeRO: a layer is gathered forward and backward, its gradient scattered; stage 2 gathers the updated parameters
    # once, in fp32; stage 1 sums the whole gradient everywhere before.
    fsdp = collective("fsdp", weights * size, layers * trips * {3: 3, 2: 1, 1: 2}[p.zero])
    fsdp += collective("fsdp", weights * 4, layers) if p.zero < 3 else 0.0
    fsdp *= 2 if gathers_all_reduce(p, topology) else 1
    kept = p.fsdp if p.zero >= 2 else 1  # parts in which a gradient is kept, each of which is summed over replicas
    data = collective("data", 2 * weights * size / kept, layers * trips)
    if topology.data_slices > 1 and p.data > 1:
        within = p.data / math.gcd(topology.data_slices, p.data)
        between = 2 * weights * size / kept / within * (1 - 1 / topology.data_slices)
        data = max(data, layers * trips * (between / topology.chip.network + LATENCY))
    data += collective("expert", 2 * replicated * size / kept, layers * trips)

    stream = tokens * D * size
    # Each half of a block gathers the stream before its matrices and scatters it behind; so backward, and again.
    tensor = collective("tensor", stream, layers * (8 + 2 * work.projections + work.feed_forward) + 3)
    keys = 2 * tokens * p.context * shape.kv_heads * shape.head_size / p.tensor * size
    context = collective("context", keys, layers * (2 + work.kernel))
    if shape.capacity_factor is None:  # dropless: all tokens of the axis are gathered, and their results scattered
        expert = collective("expert", p.expert * stream, layers * (4 + work.feed_forward))
    else:
        expert = collective("expert", block.rows * stream, layers * (4 + 2 * work.feed_forward), all_to_all=True)
    stage = 0.0
    if p.stage > 1:  # microbatches from stage to stage and back; copies of what goes in and comes out (models.pipeline)
        a_trip = stream / p.tensor / microbatches / rate["stage"] + hops["stage"]
        stage = 2 * trips * a_trip + collective("stage", 2 * stream / p.tensor, 2)
    return {"fsdp": fsdp, "data": data, "tensor": tensor, "context": context, "expert": expert, "stage": stage}
