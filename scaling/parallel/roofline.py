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
collective takes the time of its hops at least. On a torus an axis of the mesh has the wires of the axes of the slice
that it covers, twice where the ring closes (part 2); on GPUs those of NVLink within a node of 8, and of one network
card a GPU beyond it.

A pipeline of S stages and A microbatches is idle in S - 1 of A + S - 1 steps (Huang et al. 2019, section 2.3).

Both numbers were fitted on TPUs: on a GPU these are estimates without any calibration.
"""

import dataclasses
import math

from scaling.models.counts import flops_per_token
from scaling.parallel.memory import BYTES, Block, attention_kernel, block_of
from scaling.parallel.topology import Topology
from scaling.runs import MESH_AXES, Placement, Run

HOP = 1e-6  # seconds from one chip of a torus to the next (Austin et al. 2025, part 3)
LATENCY = 1e-5  # seconds of a collective among GPUs, and of one over the data-centre network: an estimate
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

    splash computes the scores twice in its backward pass (seven products over two), cuDNN once (five); the plain kernel
    has them (four), and ignores the mask.
    """
    backward, tile = {"splash": (3.5, 512), "cudnn": (2.5, 128), "plain": (2.0, None)}[kernel]
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
    behind = sent["fsdp"] + sent["data"]
    exposed = sum(sent.values()) - behind + max(0.0, behind - busy)
    seconds = busy + bubble + exposed
    model_flops = flops_per_token(shape, length) * run.batch_tokens
    mfu = model_flops / (seconds * topology.chip.peak_flops * topology.chips)
    return StepEstimate(seconds, mfu, compute, hbm, sent, exposed, bubble)


def executed_flops(run: Run, block: Block, topology: Topology, work: Work) -> float:
    """FLOPs a token of a step as it is executed: forward, twice as many backward, and what is computed work.

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
    """Bytes that a device reads and writes in a step: operands and results of products, what lies between, state."""
    shape, size = run.model, BYTES[run.precision]
    D, F, V, HK, GK = (
        shape.d_model,
        shape.d_ff * block.rows,
        shape.vocab_size,
        shape.n_heads * shape.head_size,
        shape.kv_heads * shape.head_size,
    )
    ups = 2 if shape.activation == "swiglu" else 1
    t = p.tensor
    # Operands and results of one forward pass, a token and layer; a backward pass has two products for each of these.
    projections = 4 * D + 2 * (HK + GK) / t
    feed_forward = (ups + 1) * (D * block.rows + F / t)
    # Two norms and two additions to the stream; the activation; rotation, and what attention reads and writes; rows
    # sent to their experts and back.
    between = 10 * D / t + (ups + 1) * F / t + 4 * (HK + GK) / t + (4 * D * block.rows if shape.n_experts else 0)
    layer = (3 + work.projections) * projections + (3 + work.feed_forward) * feed_forward + (3 + work.between) * between
    if kernel == "plain":  # scores and their softmax, written and read, in fp32
        layer += (3 + work.kernel) * 4 * shape.n_heads * run.data.sequence_length * (4 / size) / t
    loss = V / (t * p.stage) * (4 * 4 + 3 * size)
    passes = 3 + work.projections * 0.5 + work.feed_forward * 0.5
    microbatches = run.batch_size / (p.microbatch or run.batch_size)
    weights = (block.projections + block.feed_forward * block.experts / p.expert) / t
    layers = shape.n_layers / p.stage
    local = (layers * weights + 2 * D * V / (t * p.stage)) / p.fsdp
    streamed = layers * (tokens * layer + passes * microbatches * weights) * size
    return streamed + tokens * loss + OPTIMIZER_BYTES * local


def communication(
    run: Run, block: Block, p: Placement, topology: Topology, work: Work, tokens: float
) -> dict[str, float]:
    """Seconds that a device sends in a step, by mesh axis, each axis as if it had the wires to itself."""
    shape, size = run.model, BYTES[run.precision]
    D, layers = shape.d_model, shape.n_layers / p.stage
    rate, hops = wires(p, topology)
    A = run.batch_size / (p.microbatch or run.batch_size)
    trips = A if p.stage == 1 else 1  # a pipeline gathers a layer for each microbatch too, but sums one gradient

    def gathered(axis: str, volume: float, times: float, all_to_all: bool = False) -> float:
        n = getattr(p, axis)
        if n == 1:
            return 0.0
        share = (n - 1) / n
        if all_to_all and topology.chip.torus_axes:
            share = max(share, n / 4)  # a ring carries each part past its neighbours: Austin et al. 2025, part 3
        return times * (volume * share / rate[axis] + hops[axis])

    tables = 2 * D * shape.vocab_size / (p.tensor * p.stage) / max(1.0, layers)  # a layer's share of embedding and head
    dense = (block.projections + block.router) / p.tensor + tables
    experts = block.feed_forward * block.experts / p.expert / p.tensor
    if shape.n_experts == 0:
        dense, experts = dense + experts, 0.0
    weights = dense + experts
    # ZeRO: a layer is gathered forward and backward, its gradient scattered; stage 2 gathers the updated parameters
    # once, in fp32; stage 1 sums the whole gradient everywhere before.
    trips_of_fsdp = {3: 3 * A, 2: trips, 1: 2 * trips}[p.zero]
    fsdp = gathered("fsdp", weights * size, layers * trips_of_fsdp)
    fsdp += gathered("fsdp", weights * 4, layers) if p.zero < 3 else 0.0
    kept = p.fsdp if p.zero >= 2 else 1  # parts in which a gradient is kept, each of which is summed over replicas
    replicas = gathered("data", 2 * weights * size / kept, layers * trips)
    replicas += gathered("expert", 2 * dense * size / kept, layers * trips) if shape.n_experts else 0.0
    slices = topology.data_slices
    if slices > 1 and p.data > 1:
        between = 2 * weights * size / kept / (p.data / math.gcd(slices, p.data)) * (1 - 1 / slices)
        replicas = max(replicas, layers * trips * (between / topology.chip.network + LATENCY))

    stream = tokens * D * size
    # Each half of a block gathers the stream before its matrices and scatters it behind; so backward, and work.
    tensor = gathered("tensor", stream, layers * (8 + 2 * work.projections + work.feed_forward) + 3)
    keys = 2 * tokens * p.context * shape.kv_heads * shape.head_size / p.tensor * size
    context = gathered("context", keys, layers * (2 + work.kernel))
    if shape.capacity_factor is None:  # dropless: all tokens of the axis, and their results scattered
        expert = gathered("expert", p.expert * stream, layers * (4 + work.feed_forward))
    else:
        expert = gathered("expert", block.rows * stream, layers * (4 + 2 * work.feed_forward), all_to_all=True)
    stage = 0.0
    if p.stage > 1:
        sends = 2 * (stream / p.tensor / A / rate["stage"] + hops["stage"]) * (A + p.stage - 1)
        stage = sends + gathered("stage", 2 * stream / p.tensor, 2)
    return {"fsdp": fsdp, "data": replicas, "tensor": tensor, "context": context, "expert": expert, "stage": stage}


def wires(p: Placement, topology: Topology) -> tuple[dict[str, float], dict[str, float]]:
    """For each mesh axis, the bytes/s that a device receives along it, and the least seconds of one collective."""
    sizes = {axis: getattr(p, axis) for axis in MESH_AXES}
    if topology.chip.torus_axes:
        return _torus(sizes, topology)
    rate, hops, inner = {}, {}, 1
    node = topology.slice_shape[0] if topology.slices > 1 else topology.devices
    for axis in reversed(MESH_AXES):
        n = sizes[axis]
        outside = n * inner > node
        # Members within a node share its network cards; each receives what all of them fetch.
        rate[axis] = (
            min(topology.chip.link, topology.chip.network * max(1, node // inner)) if outside else topology.chip.link
        )
        hops[axis] = LATENCY * (2 if outside else 1)
        inner *= n
    return rate, hops


def _torus(sizes: dict[str, int], topology: Topology) -> tuple[dict[str, float], dict[str, float]]:
    """Mesh axes, the innermost first, take whole axes of the slice where such are left that match, else parts."""
    chip = topology.chip
    link = chip.link / chip.devices_per_chip
    left = list(topology.slice_shape)
    closed = [side % chip.ring == 0 and side > 2 for side in left]
    whole = list(left)
    cores = chip.devices_per_chip  # the two devices of a chip: a die-to-die link, six times one of the torus
    across = topology.data_slices
    rate, hops = {}, {}
    for axis in reversed(MESH_AXES):
        n = sizes[axis]
        if axis in ("data", "stage"):
            outside = math.gcd(across, n)
            across, n = across // outside, n // outside
            if outside > 1 and n == 1:
                rate[axis], hops[axis] = chip.network / chip.devices_per_chip, LATENCY
                continue
        speed, steps, taken = 0.0, 0, 1
        for i in _match(left, whole, n):
            part = math.gcd(n // taken, left[i])
            if part > 1:
                ring = part == whole[i] and closed[i]
                speed += link * (2 if ring else 1)
                steps += part // 2 if ring else part - 1
                left[i] //= part
                taken *= part
        if taken < n and (n // taken) % cores == 0:
            speed, taken, steps = max(speed, 6 * link * cores), taken * cores, steps + 1
            cores = 1
        rate[axis], hops[axis] = speed or link, HOP * max(1, steps)
    return rate, hops


def _match(left: list[int], whole: list[int], n: int) -> list[int]:
    """The axes of the slice in the order in which a mesh axis of n takes them: those that together are n, or all."""
    free = [i for i in range(len(left)) if left[i] == whole[i] and left[i] > 1]
    for count in range(len(free), 0, -1):
        for start in range(len(free) - count + 1):
            some = free[start : start + count]
            if math.prod(left[i] for i in some) == n:
                return some
    return sorted(range(len(left)), key=lambda i: left[i])
