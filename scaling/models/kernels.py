"""Which kernel computes what has several, and how many logits exist at a time: rules that the model runs by, and the
planner counts with. No JAX: a plan is made without it."""

from typing import Literal

from scaling.runs import ModelShape, Placement

Attention = Literal["plain", "splash", "cudnn", "blocks"]
MOST_UNROLLED = 32  # layers of a model, as the time to compile grows with each
CPU_BLOCK = 64  # queries of a block: at 256 positions 3/8 of the scores are skipped, and the products still are fast
SPLASH_BLOCK = 128  # positions: the lanes of a TPU's vector unit, of which splash's blocks are multiples
CUDNN_HEAD_SIZE = 128  # the largest that cuDNN has on every GPU with bf16
MAX_LOGITS = 2**22  # of a sequence at a time, in fp32 16 MiB


def choose_attention(
    kernels: Literal["auto", "plain"],
    platform: Literal["tpu", "gpu", "cpu"],
    shape: ModelShape,
    length: int,
    precision: Literal["fp32", "bf16"],
    context: int,
) -> Attention:
    """The kernel that `scaling.models.attention.attention` runs: the platform's own where it can, else "plain".

    splash: parts of a sequence that are multiples of 128 positions. cudnn: bf16, whole sequences, and a head size that
    is a multiple of 8 up to 128. blocks: whole sequences.
    """
    if kernels == "plain":
        return "plain"
    if platform == "cpu" and context == 1:
        return "blocks"
    if platform == "tpu" and length % (context * SPLASH_BLOCK) == 0:
        return "splash"
    sizes_fit = shape.head_size % 8 == 0 and shape.head_size <= CUDNN_HEAD_SIZE
    if platform == "gpu" and precision == "bf16" and context == 1 and sizes_fit:
        return "cudnn"
    return "plain"


def on_one_cpu(placement: Placement, platform: Literal["tpu", "gpu", "cpu"]) -> bool:
    """Whether the model takes what is faster there: bf16 products with sums in fp32, and no loop over its layers.

    Each step of a loop copies what a layer keeps for its backward pass into one array, and out again; a CPU's memory is
    slow enough to show it, and its compiler fast enough to do without.
    """
    return placement.kernels == "auto" and platform == "cpu" and placement.devices == 1
