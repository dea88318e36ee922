"""How many positions' logits exist at a time: the rule that the loss runs by, and the planner counts with. No JAX."""

from scaling.models.kernels import MAX_LOGITS


def whole_chunk(length: int, vocab_size: int) -> int:
    """The largest divisor of the length at which a sequence's fp32 logits take at most 16 MiB; 1 if none does."""
    fitting = [chunk for chunk in range(1, length + 1) if length % chunk == 0 and chunk * vocab_size <= MAX_LOGITS]
    return max(fitting, default=1)


def own_chunk(length: int, vocab_size: int, chunk: int | None, parts: int) -> int:
    """Positions of a sequence whose logits a device has at a time, of a chunk (None: `whole_chunk`) that is dealt out
    in parts: rounded down to a divisor of all of its positions."""
    most = max(1, (chunk or whole_chunk(length, vocab_size)) // parts)
    return max(size for size in range(1, most + 1) if length // parts % size == 0)
