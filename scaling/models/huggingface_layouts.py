"""How Hugging Face's transformers lays out GPT-2 and Llama: configs and tensors, as tables.

Each of their tensors is one or more of our leaves, joined along the outputs, as it is or transposed: their Linear holds
outputs x inputs, their Conv1D inputs x outputs. Rotary pairs are (k, k + K/2) on both sides, so that queries and keys
need no permutation.
"""

import dataclasses
from typing import Any

REQUIRED = object()


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor of theirs: our leaves, joined along the outputs."""

    leaves: tuple[str, ...]
    transposed: bool


def same(*leaves: str) -> Entry:
    """Held as we hold it: inputs x outputs, a table, or a vector."""
    return Entry(leaves, transposed=False)


def linear(leaf: str) -> Entry:
    """Held as outputs x inputs."""
    return Entry((leaf,), transposed=True)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a family is written. `fixed`: fields of a shape that it cannot have otherwise; `config`: theirs likewise."""

    architecture: str
    fixed: dict[str, Any]
    config: dict[str, tuple[Any, ...]]  # key -> values that mean what we compute, the first one their default
    sizes: dict[str, tuple[str, Any]]  # field of a shape -> their key, and its default
    block: str  # how the names of a layer's tensors begin
    whole: dict[str, Entry]
    layer: dict[str, Entry]
    buffers: str  # pattern of the constants that older checkpoints hold among the parameters


LAYOUTS = {
    "gpt2": Layout(
        architecture="GPT2LMHeadModel",
        fixed={
            "norm": "layernorm",
            "positions": "learned",
            "activation": "gelu",
            "biases": True,
            "qk_norm": False,
            "n_kv_heads": None,
            "d_head": None,
            "n_experts": 0,
        },
        config={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
        sizes={
            "d_model": ("n_embd", REQUIRED),
            "n_layers": ("n_layer", REQUIRED),
            "n_heads": ("n_head", REQUIRED),
            "d_ff": ("n_inner", None),
            "vocab_size": ("vocab_size", REQUIRED),
            "n_positions": ("n_positions", REQUIRED),
            "norm_epsilon": ("layer_norm_epsilon", 1e-5),
            "tied_embeddings": ("tie_word_embeddings", True),
        },
        block="transformer.h.",
        whole={
            "transformer.wte.weight": same("embedding"),
            "transformer.wpe.weight": same("positions"),
            "transformer.ln_f.weight": same("final_norm/scale"),
            "transformer.ln_f.bias": same("final_norm/bias"),
            "lm_head.weight": linear("head"),
        },
        layer={
            "ln_1.weight": same("norm1/scale"),
            "ln_1.bias": same("norm1/bias"),
            "attn.c_attn.weight": same("attention/q", "attention/k", "attention/v"),
            "attn.c_attn.bias": same("attention/q_bias", "attention/k_bias", "attention/v_bias"),
            "attn.c_proj.weight": same("attention/out"),
            "attn.c_proj.bias": same("attention/out_bias"),
            "ln_2.weight": same("norm2/scale"),
            "ln_2.bias": same("norm2/bias"),
            "mlp.c_fc.weight": same("mlp/up"),
            "mlp.c_fc.bias": same("mlp/up_bias"),
            "mlp.c_proj.weight": same("mlp/down"),
            "mlp.c_proj.bias": same("mlp/down_bias"),
        },
        buffers=r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",
    ),
    "llama": Layout(
        architecture="LlamaForCausalLM",
        fixed={"norm": "rmsnorm", "positions": "rotary", "activation": "swiglu", "qk_norm": False, "n_experts": 0},
        config={"hidden_act": ("silu", "swish")},
        sizes={
            "d_model": ("hidden_size", REQUIRED),
            "n_layers": ("num_hidden_layers", REQUIRED),
            "n_heads": ("num_attention_heads", REQUIRED),
            "d_ff": ("intermediate_size", REQUIRED),
            "vocab_size": ("vocab_size", REQUIRED),
            "d_head": ("head_dim", None),
            "n_kv_heads": ("num_key_value_heads", None),
            "norm_epsilon": ("rms_norm_eps", 1e-6),
            "rotary_base": ("rope_theta", 10_000.0),
            "tied_embeddings": ("tie_word_embeddings", False),
            "biases": ("attention_bias", False),
        },
        block="model.layers.",
        whole={
            "model.embed_tokens.weight": same("embedding"),
            "model.norm.weight": same("final_norm/scale"),
            "lm_head.weight": linear("head"),
        },
        layer={
            "input_layernorm.weight": same("norm1/scale"),
            **{
                f"self_attn.{theirs}_proj.{kind}": entry
                for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out"))
                for kind, entry in (
                    ("weight", linear(f"attention/{ours}")),
                    ("bias", same(f"attention/{ours}_bias")),
                )
            },
            "post_attention_layernorm.weight": same("norm2/scale"),
            **{
                f"mlp.{name}_proj.{kind}": entry
                for name in ("gate", "up", "down")
                for kind, entry in (("weight", linear(f"mlp/{name}")), ("bias", same(f"mlp/{name}_bias")))
            },
        },
        buffers=r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
    ),
}
