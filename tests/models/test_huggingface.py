"""Checkpoints of transformers: the same logits as PyTorch's, and the same bytes on the way back.

tests/fixtures/make_huggingface.py made the checkpoints and their logits.
"""

import dataclasses
import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn

from scaling.errors import InputError
from scaling.models.families import FAMILIES
from scaling.models.huggingface import from_hf, layout_of, read_checkpoint, shape_of, to_hf, write_checkpoint
from scaling.models.parameter_files import load_arrays, save_arrays
from scaling.models.transformer import Transformer, abstract_params
from scaling.runs import ModelShape

pytestmark = pytest.mark.usefixtures("quick_compilation")

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "huggingface"
NAMES = ("gpt2", "llama")
LLAMA = ModelShape(16, 2, 2, 24, 11, activation="swiglu")
GPT2 = ModelShape(
    16, 2, 2, 24, 11, n_positions=8, norm="layernorm", positions="learned", biases=True, tied_embeddings=True
)
SHAPES = {
    "gpt2": GPT2,
    "gpt2 untied": dataclasses.replace(GPT2, tied_embeddings=False),
    "llama": LLAMA,
    "llama tied, grouped": dataclasses.replace(LLAMA, tied_embeddings=True, n_kv_heads=1, rotary_base=5e5),
    "llama with biases": dataclasses.replace(LLAMA, biases=True, d_head=6, norm_epsilon=1e-5),
}


def random_params(shape):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), nn.unbox(abstract_params(shape)))


def logits_of(shape, params, ids_BxL):
    model = Transformer(shape)

    def logits(p):
        hidden_BxLxD, _ = model.apply({"params": p}, ids_BxL)
        return model.apply({"params": p}, hidden_BxLxD, method=Transformer.logits)

    return np.asarray(jax.jit(logits)(params))


def expected_of(name):
    values = np.load(FIXTURES / name / "expected.npz")
    return values["ids_BxL"], values["logits_BxLxV"]


def same_tree(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def same_tensors(a, b):
    return a.keys() == b.keys() and all(
        (a[k].dtype, a[k].shape, a[k].tobytes()) == (b[k].dtype, b[k].shape, b[k].tobytes()) for k in a
    )


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_of_transformers(name):
    ids_BxL, logits_BxLxV = expected_of(name)
    shape, params = from_hf(*read_checkpoint(FIXTURES / name))
    assert logits_BxLxV.std() > 1
    np.testing.assert_allclose(logits_of(shape, params, ids_BxL), logits_BxLxV, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("gpt2", {"norm_epsilon": 1e-6}),
        ("llama", {"norm_epsilon": 1e-6}),
        ("llama", {"rotary_base": 10_000.0}),
    ],
)
def test_logits_show_what_no_tensor_says(name, changed):
    ids_BxL, logits_BxLxV = expected_of(name)
    shape, params = from_hf(*read_checkpoint(FIXTURES / name))
    other = logits_of(dataclasses.replace(shape, **changed), params, ids_BxL)
    assert np.abs(other - logits_BxLxV).max() > 5e-5


@pytest.mark.parametrize("name", NAMES)
def test_export_of_an_import_has_the_same_bytes(name):
    config, tensors = read_checkpoint(FIXTURES / name)
    back, written = to_hf(*from_hf(config, tensors))
    assert same_tensors(written, tensors)
    assert {key: config[key] for key in back if key in config and not key.endswith("_pdrop")} == {
        key: value for key, value in back.items() if key in config and not key.endswith("_pdrop")
    }


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_import_of_an_export_is_the_model(shape, tmp_path):
    """Through the files; tied, with a head, with grouped queries, with biases."""
    params = random_params(shape)
    write_checkpoint(tmp_path, *to_hf(shape, params))
    back, restored = from_hf(*read_checkpoint(tmp_path))
    assert back == shape
    assert same_tree(restored, params)


@pytest.mark.parametrize("name", [*SHAPES, *NAMES])
def test_transformers_reads_what_is_exported(name, tmp_path):
    """Its logits are ours: for the fixtures' weights and for random ones of every kind of shape."""
    reason = "it is the reference itself, and is not among the requirements of the tests"
    torch = pytest.importorskip("torch", reason=f"torch is not installed: {reason}")
    transformers = pytest.importorskip("transformers", reason=f"transformers is not installed: {reason}")
    if name in NAMES:
        shape, params = from_hf(*read_checkpoint(FIXTURES / name))
    else:
        shape = SHAPES[name]
        params = jax.tree.map(lambda x: 0.3 * x, random_params(shape))
    write_checkpoint(tmp_path, *to_hf(shape, params))
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    ids_BxL = np.random.default_rng(0).integers(shape.vocab_size, size=(2, 8))
    with torch.no_grad():
        theirs = model.eval()(torch.from_numpy(ids_BxL)).logits.numpy()
    np.testing.assert_allclose(logits_of(shape, params, ids_BxL), theirs, rtol=0, atol=1e-5)


def test_every_preset_of_gpt2_and_llama_has_a_layout():
    for name in NAMES:
        assert {layout_of(shape) for shape in FAMILIES[name].presets.values()} == {name}


def test_a_shape_without_a_layout_is_refused_by_its_fields():
    said = (
        r"gpt2 has norm='layernorm', not 'rmsnorm', positions='learned', not 'rotary', biases=True, not False; "
        r"llama has activation='swiglu', not 'gelu' \(--format=params can\)"
    )
    with pytest.raises(InputError, match=said):
        to_hf(dataclasses.replace(LLAMA, activation="gelu"), {})
    with pytest.raises(InputError, match="llama has qk_norm=False, not True"):
        to_hf(dataclasses.replace(LLAMA, qk_norm=True), {})


def test_checkpoints_in_several_files(tmp_path):
    config, tensors = read_checkpoint(FIXTURES / "llama")
    (tmp_path / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in files.items():
        save_arrays(tmp_path / file, {name: tensors[name] for name in held})
    index = {"weight_map": {name: file for file, held in files.items() for name in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same_tensors(read_checkpoint(tmp_path)[1], tensors)
    index["weight_map"]["more"] = "model-00001-of-00002.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"index.json: missing tensor more"):
        read_checkpoint(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-00002-of-00002.safetensors: no such file"):
        read_checkpoint(tmp_path)


def test_older_checkpoints_of_gpt2():
    """Those on the hub are of the bare model: no prefix, the causal mask as a tensor, sizes under fewer keys."""
    config, tensors = read_checkpoint(FIXTURES / "gpt2")
    shape, params = from_hf(config, tensors)
    bare = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    bare |= {"h.0.attn.bias": np.ones((1, 1, 24, 24), np.uint8), "h.0.attn.masked_bias": np.float32(-1e4)}
    kept = {"model_type", "n_embd", "n_layer", "n_head", "n_inner", "n_positions", "vocab_size"}
    old_shape, old_params = from_hf({key: value for key, value in config.items() if key in kept}, bare)
    assert old_shape == shape
    assert same_tree(old_params, params)


def test_older_configs_of_llama():
    config, _ = read_checkpoint(FIXTURES / "llama")
    shape = shape_of(config)
    rest = {key: value for key, value in config.items() if key != "rope_parameters"}
    assert shape_of({**rest, "rope_theta": 500_000.0, "rope_scaling": None}) == shape
    assert shape_of(rest).rotary_base == 10_000.0
    del rest["num_key_value_heads"], rest["rms_norm_eps"], rest["head_dim"]
    plain = shape_of(rest)
    assert (plain.kv_heads, plain.norm_epsilon, plain.head_size) == (4, 1e-6, 8)


def test_tied_heads_that_are_written_twice():
    config, tensors = read_checkpoint(FIXTURES / "gpt2")
    table = tensors["transformer.wte.weight"]
    assert from_hf(config, {**tensors, "lm_head.weight": table})[0].tied_embeddings
    with pytest.raises(InputError, match=r"lm_head.weight differs from transformer.wte.weight, which the config ties"):
        from_hf(config, {**tensors, "lm_head.weight": table + 1})


def test_short_types_are_widened_exactly(tmp_path):
    config, tensors = read_checkpoint(FIXTURES / "llama")
    for dtype in (ml_dtypes.bfloat16, np.float16):
        short = {name: x.astype(dtype) for name, x in tensors.items()}
        save_arrays(tmp_path / "short.safetensors", short)
        _, params = from_hf(config, load_arrays(tmp_path / "short.safetensors"))
        assert params["embedding"].dtype == np.float32
        assert np.array_equal(params["embedding"], short["model.embed_tokens.weight"].astype(np.float32))
    with pytest.raises(InputError, match=r"model.norm.weight is of type int8"):
        from_hf(config, {**tensors, "model.norm.weight": np.ones(32, np.int8)})


LLAMA3_SCALING = {"rope_type": "llama3", "factor": 8.0}


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("llama", {"model_type": "qwen2"}, r"model_type='qwen2' is not read \(gpt2 and llama are\)"),
        ("llama", {"model_type": None}, "model_type=None is not read"),
        ("llama", {"rope_scaling": LLAMA3_SCALING, "rope_parameters": None}, "rope_scaling of type 'llama3'"),
        ("llama", {"rope_parameters": {**LLAMA3_SCALING, "rope_theta": 5e5}}, "rope_scaling of type 'llama3'"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None}, "of type 'linear'"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5: this model turns whole heads"),
        ("llama", {"attention_bias": True}, "attention_bias=True, mlp_bias=False: this model has biases in both"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu' is not what this model computes: 'silu' is"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantized weights are not read"),
        ("llama", {"hidden_size": 64}, r"model.embed_tokens.weight has shape \(61, 32\), not \(61, 64\) as the config"),
        ("llama", {"num_key_value_heads": 4}, r"k_proj.weight has shape \(24, 32\), not \(48, 32\)"),
        ("llama", {"num_hidden_layers": 1}, "unexpected tensor model.layers.1.input_layernorm.weight and 8 more"),
        ("llama", {"num_hidden_layers": 3}, "missing tensor model.layers.2.input_layernorm.weight and 8 more"),
        ("llama", {"tie_word_embeddings": True}, "lm_head.weight differs from model.embed_tokens.weight"),
        ("gpt2", {"activation_function": "gelu"}, "activation_function='gelu' is not what this model computes"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not what"),
        ("gpt2", {"n_inner": None}, r"mlp.c_fc.weight has shape \(32, 72\), not \(32, 128\)"),
        ("gpt2", {"tie_word_embeddings": False}, "missing tensor lm_head.weight"),
    ],
)
def test_what_this_model_does_not_have_is_refused(name, changed, said):
    config, tensors = read_checkpoint(FIXTURES / name)
    with pytest.raises(InputError, match=said):
        from_hf({**config, **changed}, tensors)


def test_a_config_without_a_size_is_refused():
    config, tensors = read_checkpoint(FIXTURES / "gpt2")
    with pytest.raises(InputError, match=r"config.json: missing n_embd, n_head"):
        from_hf({key: value for key, value in config.items() if key not in ("n_embd", "n_head")}, tensors)


def test_folders_that_are_no_checkpoint_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"config.json: no such file"):
        read_checkpoint(tmp_path)
    shutil.copy(FIXTURES / "gpt2" / "config.json", tmp_path)
    with pytest.raises(InputError, match=r"no model.safetensors \(save it with save_pretrained"):
        read_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(InputError, match=r"holds pytorch_model.bin, which is not read: no model.safetensors"):
        read_checkpoint(tmp_path)
    whole = (FIXTURES / "gpt2" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-5])
    with pytest.raises(InputError, match=r"model.safetensors: not a whole safetensors file"):
        read_checkpoint(tmp_path)
