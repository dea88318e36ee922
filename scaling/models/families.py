"""Families of published models: the options that make one, and its presets with their exact shapes."""

import dataclasses
from typing import Any

from scaling.errors import InputError, nearest
from scaling.models.ladder import CHINCHILLA, chinchilla_shape
from scaling.runs import ModelShape


@dataclasses.dataclass(frozen=True)
class Family:
    """Models that differ in size. options: the fields of ModelShape that all share, as `shape_for` takes them."""

    source: str
    options: dict[str, Any]
    presets: dict[str, ModelShape]


def preset(family: str, name: str, vocab_size: int | None = None) -> ModelShape:
    """A published shape, with its own vocabulary or another. Raises InputError with the nearest name for an unknown."""
    if family not in FAMILIES:
        raise InputError(f"unknown family {family!r}", do=nearest(family, FAMILIES))
    presets = FAMILIES[family].presets
    if name not in presets:
        if family == "chinchilla":
            chinchilla_shape(name)  # refuses it, and names the nearest of its sizes
        raise InputError(f"unknown model {name!r}", where=f"family {family}", do=nearest(name, presets))
    shape = presets[name]
    return shape if vocab_size is None else dataclasses.replace(shape, vocab_size=vocab_size)


_GPT2 = {
    "norm": "layernorm",
    "positions": "learned",
    "activation": "gelu",
    "biases": True,
    "tied_embeddings": True,
    "norm_epsilon": 1e-5,
}
_LLAMA = {"norm": "rmsnorm", "positions": "rotary", "activation": "swiglu", "norm_epsilon": 1e-5}
_MIXTRAL = {**_LLAMA, "n_experts": 8, "experts_per_token": 2}


def _gpt2(d_model: int, n_layers: int, n_heads: int) -> ModelShape:
    return ModelShape(d_model, n_layers, n_heads, 4 * d_model, vocab_size=50_257, n_positions=1024, **_GPT2)


def _llama(d_model: int, n_layers: int, n_heads: int, d_ff: int, vocab_size: int, **options: Any) -> ModelShape:
    return ModelShape(d_model, n_layers, n_heads, d_ff, vocab_size, **_LLAMA, **options)


# The presets' names are those that the models are published under; Radford et al. 2019, Table 2, gives smaller counts.
FAMILIES = {
    "gpt2": Family(
        source="Radford et al. 2019, Table 2, and the configs of the released models",
        options=_GPT2,
        presets={
            "124M": _gpt2(768, 12, 12),
            "355M": _gpt2(1024, 24, 16),
            "774M": _gpt2(1280, 36, 20),
            "1558M": _gpt2(1600, 48, 25),
        },
    ),
    # 3.1 and later scale their rotary frequencies, which this model does not have.
    "llama": Family(
        source="Touvron et al. 2023 (Llama 2), Grattafiori et al. 2024 (Llama 3), Zhang et al. 2024 (TinyLlama), "
        "Ben Allal et al. 2025 (SmolLM2), and the configs of the released models",
        options=_LLAMA,
        presets={
            "smollm2-135M": _llama(576, 30, 9, 1536, 49_152, n_kv_heads=3, rotary_base=100_000.0, tied_embeddings=True),
            "smollm2-360M": _llama(
                960, 32, 15, 2560, 49_152, n_kv_heads=5, rotary_base=100_000.0, tied_embeddings=True
            ),
            "tinyllama-1.1B": _llama(2048, 22, 32, 5632, 32_000, n_kv_heads=4),
            "llama2-7B": _llama(4096, 32, 32, 11_008, 32_000),
            "llama2-13B": _llama(5120, 40, 40, 13_824, 32_000),
            "llama2-70B": _llama(8192, 80, 64, 28_672, 32_000, n_kv_heads=8),
            "llama3-8B": _llama(4096, 32, 32, 14_336, 128_256, n_kv_heads=8, rotary_base=500_000.0),
            "llama3-70B": _llama(8192, 80, 64, 28_672, 128_256, n_kv_heads=8, rotary_base=500_000.0),
        },
    ),
    # Dropless. How its router was trained is not published: the weights of its losses are ours.
    "mixtral": Family(
        source="Jiang et al. 2024, Table 1, and the config of the released model",
        options=_MIXTRAL,
        presets={
            "8x7B": ModelShape(4096, 32, 32, 14_336, 32_000, n_kv_heads=8, rotary_base=1_000_000.0, **_MIXTRAL),
        },
    ),
    # Its relative positions (Dai et al. 2019) are rotary ones here.
    "chinchilla": Family(
        source="Hoffmann et al. 2022, Table A9",
        options={"norm": "rmsnorm", "positions": "rotary", "activation": "gelu"},
        presets={name: chinchilla_shape(name) for name in CHINCHILLA},
    ),
}
