"""What a training step holds on one device, estimated: state, what the layers keep, and the largest moment. No JAX.

Parameters and the two moments of Adam are fp32 (12 bytes a parameter), each cut by ZeRO over `fsdp` (Rajbhandari et
al. 2020, section 3), by `tensor` and `stage` (Shoeybi et al. 2019; Huang et al. 2019) and by `expert`. A step in bf16
casts the parameters once, and keeps that copy, laid out as they are, to its end (2 bytes); their gradients wait in bf16
for the last layer's (2). With microbatches, of which each has such gradients, there is their sum in fp32 besides (4).
In fp32 nothing is cast, and gradients and sums take 4 each.

Between forward and backward pass every layer keeps what its remat policy says (scaling.models.remat), the residual
stream cut over `tensor` (Korthikanti et al. 2022, table 2). On top comes the larger of two moments: a layer's backward
pass, with its gathered weights and intermediate values, or the loss, with its logits and the head's gradient.

How many intermediate arrays are alive at once is a compiler's choice. The counts below (`LAYER_COPIES` and those of
`_layer`) come from peaks that XLA's TPU compiler stated: tests/parallel/test_memory.py holds them, and how far this is
off. The estimate orders placements and leaves a margin; the compiler decides (scaling.training.proof).
"""

import dataclasses
import math

from scaling.models.chunks import own_chunk
from scaling.models.counts import block_biases, expert_rows, parameters
from scaling.models.kernels import choose_attention
from scaling.parallel.chips import GIB
from scaling.parallel.topology import Topology
from scaling.runs import ModelShape, Placement, Run

STATE_BYTES = 4  # fp32: of a parameter, of each of the two moments, and of a sum of gradients
LAYER_COPIES = 2  # of a layer's gathered weights: the one in use, and the next one's or its own gradient
LANES = 128  # of a TPU's memory: a head of 64 takes as much of it as one of 128
BYTES = {"bf16": 2, "fp32": 4}


@dataclasses.dataclass(frozen=True)
class Block:
    """Matrix parameters of one block, in the parts that are laid out, or computed again, on their own."""

    projections: int  # of attention: queries, keys, values, output
    feed_forward: int  # of one expert, or the only one
    experts: int  # how many there are
    router: int
    rows: float  # rows that go through a feed-forward, for each token: above 1 for several choices, or spare capacity

    @property
    def parameters(self) -> int:
        return self.projections + self.experts * self.feed_forward + self.router


def block_of(shape: ModelShape, length: int) -> Block:
    """The block of a model, for sequences of `length` tokens: a capacity counts with the rows that it leaves empty."""
    D, K = shape.d_model, shape.head_size
    E = max(1, shape.n_experts)
    rows = expert_rows(shape, length) if shape.n_experts else None
    return Block(
        projections=D * K * 2 * (shape.n_heads + shape.kv_heads),
        feed_forward=D * shape.d_ff * (3 if shape.activation == "swiglu" else 2),
        experts=E,
        router=D * shape.n_experts,
        rows=float(shape.experts_per_token) if rows is None else rows * E / length,
    )


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device. `layer` and `loss` are moments of which only the larger counts; all are estimates."""

    parameters: float
    moments: float
    cast: float  # the parameters once more, in the compute type
    gradients: float  # and their sum over microbatches
    saved: float  # by all layers, for the backward pass
    layer: float  # the backward pass of one layer: gathered weights and intermediate values
    loss: float  # logits of a chunk, the head, its gradient

    @property
    def state(self) -> float:
        """What the step is given and returns."""
        return self.parameters + self.moments

    @property
    def total(self) -> float:
        return self.state + self.cast + self.gradients + self.saved + max(self.layer, self.loss)

    @property
    def gib(self) -> float:
        return self.total / GIB


def estimate_memory(run: Run, placement: Placement, topology: Topology) -> MemoryEstimate:
    """The memory of one step of a run on one device. The placement must fit the run (`Placement.check`)."""
    shape, length = run.model, run.data.sequence_length
    block, p = block_of(shape, length), placement
    layers = shape.n_layers / p.stage
    microbatches = run.batch_size / (p.microbatch or run.batch_size)
    tokens = (p.microbatch or run.batch_size) / p.batch_shards * length / p.context

    size = BYTES[run.precision]
    whole = _parameters(shape, block, p)
    stored, reduced = whole / (p.fsdp if p.zero >= 3 else 1), whole / (p.fsdp if p.zero >= 2 else 1)
    summed = STATE_BYTES if microbatches > 1 and p.stage == 1 else 0  # a pipeline takes all microbatches at once
    kernel = attention_kernel(run, placement, topology)
    # A pipeline holds all its microbatches until the last is through, and runs on copies of its input and output.
    held = microbatches + p.stage - 1 if p.stage > 1 else 1
    buffers = 4 * microbatches * tokens * shape.d_model / p.tensor * size if p.stage > 1 else 0
    head = shape.head_size if topology.chip.platform != "tpu" else LANES * math.ceil(shape.head_size / LANES)
    return MemoryEstimate(
        parameters=STATE_BYTES * stored,
        moments=2 * STATE_BYTES * whole / p.fsdp,
        cast=size * stored if size < STATE_BYTES else 0.0,
        gradients=(size + summed) * reduced,
        saved=held * layers * tokens * saved_bytes(shape, block, p, size, kernel, length, head) + buffers,
        layer=_layer(shape, block, p, size, kernel, length, tokens, head),
        loss=_loss(run, p, size, tokens * (microbatches if p.stage > 1 else 1)),
    )


def attention_kernel(run: Run, placement: Placement, topology: Topology) -> str:
    """What attention will run by there."""
    platform = {"tpu": "tpu", "cuda": "gpu", "cpu": "cpu"}[topology.chip.platform]
    length = run.data.sequence_length
    return choose_attention(placement.kernels, platform, run.model, length, run.precision, placement.context)


def saved_bytes(shape: ModelShape, block: Block, p: Placement, size: int, kernel: str, length: int, K: int) -> float:
    """What one layer keeps for each token on this device. K: of a head, as it is stored."""
    D, F = shape.d_model, shape.d_ff
    H, G = shape.n_heads, shape.kv_heads
    hidden = block.rows * F
    stream = D * size / p.tensor
    if p.remat == "offload":
        return 0.0
    if p.remat == "full":
        return stream
    if p.remat == "named":  # and the fp32 log-sum-exp of each head
        return stream + H * (K * size + 4) / p.tensor
    if p.remat == "dots":  # but for the last product, which nobody reads again
        ups = 2 if shape.activation == "swiglu" else 1
        return 2 * stream + ((H + 2 * G) * K + ups * hidden) * size / p.tensor
    # What derivatives start from: the stream before each norm, what comes out of it over the whole width, queries,
    # keys, values and result, the input and result of GELU or all six steps of another activation, and of plain
    # attention the scores in fp32 with their softmax. On a mesh the result is kept twice: as the kernel has made it,
    # and as it is laid out.
    again = H * shape.head_size if p.devices > 1 else 0
    steps = 6 if shape.activation == "swiglu" or shape.n_experts else 2
    scores = H * length * (8 + size) / p.tensor if kernel == "plain" else 0
    return 2 * stream + 2 * D * size + (2 * (H + G) * K + again + steps * hidden) * size / p.tensor + scores


def _parameters(shape: ModelShape, block: Block, p: Placement) -> float:
    """Parameters on one device, before fsdp cuts them. Vectors, which little cuts, count as if it did: they are few."""
    D = shape.d_model
    layers = shape.n_layers / p.stage
    tables = (1 if shape.tied_embeddings else 2) * shape.vocab_size * D / (p.tensor * p.stage)
    vectors = (parameters(shape).N_norms + shape.n_layers * block_biases(shape)) / p.stage
    return tables + (shape.n_positions or 0) * D + layers * _weights(block, p) + vectors


def _weights(block: Block, p: Placement) -> float:
    """Matrix parameters of one layer on one device, whole over fsdp."""
    return block.router + (block.projections + block.experts / p.expert * block.feed_forward) / p.tensor


def _layer(
    shape: ModelShape, block: Block, p: Placement, size: int, kernel: str, length: int, tokens: float, K: int
) -> float:
    """The backward pass of a layer: three arrays as wide as the feed-forward, queries, keys, values and result, and
    three of the stream, which is whole over `tensor` between its norm and the matrices."""
    D, F, H, G = shape.d_model, shape.d_ff, shape.n_heads, shape.kv_heads
    rows = tokens * block.rows
    if shape.n_experts and shape.capacity_factor is None:  # the rows that might come, of the tokens of all of `expert`
        rows = tokens * p.expert * min(shape.experts_per_token, block.experts / p.expert)
    wide = rows * 3 * F / p.tensor + (rows * 3 * D if shape.n_experts else 0)
    heads = tokens * (2 * H + 2 * G * p.context) * K / p.tensor
    # Queries against all keys, in fp32 and in the compute type: backward, and forward again if they were not kept.
    scores = tokens * H * length / p.tensor * (4 + size) if kernel == "plain" else 0
    scores *= 1 if p.remat == "none" else 2
    return size * (LAYER_COPIES * _weights(block, p) + wide + heads + 3 * tokens * D) + scores


def _loss(run: Run, p: Placement, size: int, tokens: float) -> float:
    """The head in the compute type, its gradient in fp32, final hidden states, and logits of a chunk: in fp32, where
    their exponentials take their place, and their gradient in the compute type."""
    D, length = run.model.d_model, run.data.sequence_length
    words = run.model.vocab_size / (p.tensor * p.stage)
    chunk = own_chunk(length, run.model.vocab_size, p.loss_chunk, p.context)
    logits = tokens * chunk / (length / p.context) * words * (4 + size)
    return D * words * (4 + size) + 2 * tokens * D * size + logits
