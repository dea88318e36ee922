"""The shapes whose training step is measured beside the peer's, and the run of each. No JAX.

All are GPT-2's architecture (Radford et al. 2019), so that its implementation in transformers computes the same.
"""

import dataclasses

import numpy as np

from scaling.models.families import FAMILIES
from scaling.runs import DataSpec, ModelShape, OptimizerSpec, Run, ScheduleSpec

BATCHES = 4  # of random tokens, taken in turn


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model and the batches that it is trained on: B windows of L tokens."""

    d_model: int
    n_layers: int
    n_heads: int
    length: int
    batch: int
    vocab_size: int

    @property
    def tokens(self) -> int:
        """A step."""
        return self.batch * self.length


# On a CPU.
SHAPES = {
    "d128": Shape(128, n_layers=4, n_heads=4, length=128, batch=32, vocab_size=256),
    "d384": Shape(384, n_layers=6, n_heads=6, length=256, batch=16, vocab_size=256),
    "d256-v8192": Shape(256, n_layers=4, n_heads=4, length=256, batch=8, vocab_size=8192),
}
# On a GPU: GPT-2's smallest, its vocabulary padded to whole tiles on both sides, as nanoGPT does.
GPT2_SMALL = {"gpt2-124m": Shape(768, n_layers=12, n_heads=12, length=1024, batch=16, vocab_size=50_304)}


def model_of(shape: Shape) -> ModelShape:
    """The model of a shape: layer norms, learned positions, tied embeddings, biases, GELU, feed-forward of 4 D."""
    return ModelShape(
        shape.d_model,
        shape.n_layers,
        shape.n_heads,
        d_ff=4 * shape.d_model,
        vocab_size=shape.vocab_size,
        n_positions=shape.length,
        **FAMILIES["gpt2"].options,
    )


def run_of(shape: Shape, precision: str) -> Run:
    """A run of a shape, of which the speed of a step depends on nothing else: its text is of random tokens."""
    return random_run(model_of(shape), shape.batch, shape.length, precision)


def random_run(model: ModelShape, batch: int, length: int, precision: str) -> Run:
    """A run on batches of random tokens, which no store holds; AdamW and clipping at their defaults."""
    data = DataSpec(store="random", sequence_length=length, eval_windows=2)
    return Run(model, data, batch, 100, OptimizerSpec(peak_lr=1e-3), ScheduleSpec("cosine", 10), precision)


def token_batches(vocab_size: int, batch: int, length: int) -> np.ndarray:
    """Batches of random tokens, BATCHES x B x (L + 1), the same for whoever is measured."""
    return np.random.default_rng(0).integers(vocab_size, size=(BATCHES, batch, length + 1), dtype=np.int32)
