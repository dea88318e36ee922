"""Parameters and FLOPs of a model, in pieces, and the field's conventions for adding them up.

Closed forms in plain integers and floats, so that a plan of thousands of cells needs no tracing. That they equal the
abstract tree and the matrix products of the traced training step is shown in tests/models/test_counts.py.
"""

import dataclasses
import fractions
import math

from scaling.runs import ModelShape


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Sizes of the pieces of the real parameter tree; a tied embedding counts once, under N_embedding."""

    N_embedding: int  # token table, and learned positions
    N_head: int
    N_blocks: int  # matrices of attention, router and feed-forward, with all experts, and their biases
    N_norms: int

    @property
    def N(self) -> int:
        return self.N_embedding + self.N_head + self.N_blocks + self.N_norms


def parameters(shape: ModelShape) -> Parameters:
    """The parameters of a model in pieces."""
    D, N, K, V = shape.d_model, shape.n_layers, shape.head_size, shape.vocab_size
    vectors = 2 if shape.norm == "layernorm" else 1
    norm_width = D * (2 * N + 1) + (2 * K * N if shape.qk_norm else 0)
    return Parameters(
        N_embedding=V * D + (shape.n_positions or 0) * D,
        N_head=0 if shape.tied_embeddings else V * D,
        N_blocks=N * (block_matrices(shape) + block_biases(shape)),
        N_norms=vectors * norm_width,
    )


def active_parameters(shape: ModelShape) -> int:
    """The parameters that one token is computed with: N less the experts that it is not sent to."""
    idle = block_matrices(shape) - active_block_matrices(shape)
    return parameters(shape).N - shape.n_layers * idle


def block_matrices(shape: ModelShape) -> int:
    """Matrix parameters of one block: queries, keys, values, output; up, down, and the gate of SwiGLU, or those of each
    expert and the router."""
    return _block_matrices(shape, max(1, shape.n_experts))


def active_block_matrices(shape: ModelShape) -> int:
    """Of these, what one token is multiplied with: the router, and as many experts as it is sent to."""
    return _block_matrices(shape, shape.experts_per_token)


def _block_matrices(shape: ModelShape, feed_forwards: int) -> int:
    attention = shape.d_model * shape.head_size * 2 * (shape.n_heads + shape.kv_heads)
    feed_forward = shape.d_model * shape.d_ff * (3 if shape.activation == "swiglu" else 2)
    router = shape.d_model * shape.n_experts
    return attention + router + feed_forwards * feed_forward


def expert_rows(shape: ModelShape, length: int) -> int | None:
    """Rows that an expert has for a sequence of `length` tokens: the even share k L / E times the capacity factor,
    rounded up (Fedus et al. 2022, eq. 3), and never more than L, as no token chooses an expert twice; None if dropless.

    The factor is taken as the decimal that it is written as: 1.1 x 10 is 11, where floats would make it 12.
    """
    if shape.capacity_factor is None:
        return None
    factor = fractions.Fraction(str(shape.capacity_factor))
    return min(length, math.ceil(factor * shape.experts_per_token * length / shape.n_experts))


def block_biases(shape: ModelShape) -> int:
    """Bias parameters of one block: an entry for each output of its projections, or none at all."""
    attention = shape.head_size * (shape.n_heads + 2 * shape.kv_heads) + shape.d_model
    feed_forward = shape.d_ff * (2 if shape.activation == "swiglu" else 1) + shape.d_model
    return attention + feed_forward if shape.biases else 0


@dataclasses.dataclass(frozen=True)
class ForwardFlops:
    """FLOPs a token of one forward pass, in pieces. A multiply-add is two; biases, norms and activations count none."""

    matmul: int  # matrices of the blocks; of the experts, those that a token is sent to
    attention: int  # q k^T and weights x v, every query against all L keys
    head: int


def forward_flops(shape: ModelShape, length: int) -> ForwardFlops:
    """FLOPs a token of the forward pass over sequences of `length` tokens.

    With experts, of what the router asks for: neither a choice that is dropped nor a row that stays empty changes it.
    """
    return ForwardFlops(
        matmul=2 * shape.n_layers * active_block_matrices(shape),
        attention=4 * shape.n_layers * length * shape.n_heads * shape.head_size,
        head=2 * shape.d_model * shape.vocab_size,
    )


def flops_per_token(shape: ModelShape, length: int) -> float:
    """F: training FLOPs a token, three times the forward pass; C = D x F, the convention of budgets."""
    f = forward_flops(shape, length)
    return 3.0 * (f.matmul + f.attention + f.head)


def chinchilla_flops_per_token(shape: ModelShape, length: int, layers_only: bool) -> float:
    """Training FLOPs a token as counted in Hoffmann et al. 2022, Appendix F.

    layers_only leaves out the embedding and final-logit terms that the text lists: so, and with N_published, the ratios
    to 6ND of its Table A4 come out (73M: 1.03; with those terms 1.58).
    """
    D, F, V, S = shape.d_model, shape.experts_per_token * shape.d_ff, shape.vocab_size, length
    width = shape.head_size * shape.n_heads
    attention = 6 * D * width + 2 * S * width + 3 * shape.n_heads * S + 2 * S * width + 2 * width * D
    layers = shape.n_layers * (attention + 4 * D * F)
    embedding_and_logits = 0 if layers_only else 4 * V * D
    return 3.0 * (layers + embedding_and_logits)


def n_published(shape: ModelShape) -> int:
    """The size a Chinchilla model is labelled by: fifth D x HK matrix is Transformer-XL's relative-position projection.

    n_layers (5 D H K + 2 D F) + V D gives all 50 sizes of Hoffmann et al. 2022, Table A9, with V = 32,000. A real tree
    with rotary positions is smaller (the 16,183M one by 7.6 %), so label and N differ.
    """
    D, width = shape.d_model, shape.n_heads * shape.head_size
    return shape.n_layers * (5 * D * width + 2 * D * shape.d_ff) + shape.vocab_size * D


def counts(shape: ModelShape, length: int, tokens: float) -> dict[str, float]:
    """All counts of a run of D = `tokens`, as they stand in results: parameters in pieces, FLOPs in conventions.

    C is D x F. C_6nd is 6 N_active D, which is 6 N D without experts. C_chinchilla and C_chinchilla_layers are Appendix
    F, whose models are dense: each expert that a token is sent to counts as a feed-forward, the router not at all.
    C_causal counts only the L (L + 1) / 2 pairs that attention keeps; C_nonembedding is 6 D times the active parameters
    outside embedding and head (Kaplan et al. 2020).
    Floats: 6 N D overflows int64 at scale.
    """
    n, active = parameters(shape), active_parameters(shape)
    forward = forward_flops(shape, length)
    masked = 3.0 * forward.attention * (length - 1) / (2 * length)
    per_token = {
        "C": flops_per_token(shape, length),
        "C_6nd": 6.0 * active,
        "C_chinchilla": chinchilla_flops_per_token(shape, length, layers_only=False),
        "C_chinchilla_layers": chinchilla_flops_per_token(shape, length, layers_only=True),
        "C_causal": flops_per_token(shape, length) - masked,
        "C_nonembedding": 6.0 * (active - n.N_embedding - n.N_head),
    }
    return {
        "N": float(n.N),
        "N_active": float(active),
        "D": float(tokens),
        **{name: float(value) for name, value in dataclasses.asdict(n).items()},
        **{f"flops_forward_{name}": float(value) for name, value in dataclasses.asdict(forward).items()},
        **{name: value * tokens for name, value in per_token.items()},
    }
