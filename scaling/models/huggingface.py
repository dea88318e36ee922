"""GPT-2 and Llama checkpoints as Hugging Face's transformers keeps them, to and from this model's parameters.

Both directions read the same table, that of scaling.models.huggingface_layouts.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from scaling.errors import InputError
from scaling.files import Path, check_name, read_json, write_json
from scaling.models.counts import parameters
from scaling.models.huggingface_layouts import LAYOUTS, REQUIRED, Entry, Layout, same
from scaling.models.parameter_files import (
    check_arrays,
    flatten,
    leaf_shapes,
    load_arrays,
    save_arrays,
    unflatten,
)
from scaling.runs import ModelShape
from scaling.specs import located, require, shown

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MOST_MISSING = 8  # a config may ask for less than so many times what the tensors hold


def to_hf(shape: ModelShape, params: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The content of config.json and the tensors, fp32, of a model. `params`: nested arrays, layers stacked.

    Raises InputError, naming the fields, for a shape that no layout can say.
    """
    model_type = layout_of(shape)
    layout, leaves = LAYOUTS[model_type], flatten(params)
    check_arrays(leaves, shape, "export")
    tensors = {}
    for name, layer, entry in _entries(layout, shape):
        joined = np.concatenate(_matrices(leaves, layer, entry), axis=-1)
        tensors[name] = np.ascontiguousarray(joined.T if entry.transposed else joined)
    return _config(model_type, shape), tensors


def from_hf(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> tuple[ModelShape, Any]:
    """The shape and the fp32 parameters, layers stacked, of a checkpoint. Inverse of `to_hf`.

    Raises InputError for what this model does not have, and for tensors that are missing, unexpected or misshapen.
    """
    shape = shape_of(config)
    layout = LAYOUTS[config["model_type"]]
    # Before anything is built of the sizes that a file says: a checkpoint lacks a tensor at times, never most of them.
    N, held = parameters(shape).N, sum(x.size for x in tensors.values())
    near = N <= MOST_MISSING * held and shape.n_layers <= len(tensors)
    said = f"is of {N:.4g} parameters in {shape.n_layers} layers; the tensors hold {held:.4g}"
    require(near, said, where=CONFIG)
    tensors = _cleaned(tensors, layout, shape)
    entries = list(_entries(layout, shape))
    _same_names({name for name, *_ in entries}, tensors.keys())
    leaves = {leaf: np.empty(size, np.float32) for leaf, size in leaf_shapes(shape).items()}
    for name, layer, entry in entries:
        matrices = _matrices(leaves, layer, entry)
        widths = [m.shape[-1] for m in matrices]
        expected = (*matrices[0].shape[:-1], sum(widths))
        theirs = expected[::-1] if entry.transposed else expected
        said = f"{name} has shape {tensors[name].shape}, not {theirs} as the config says"
        require(tensors[name].shape == theirs, said)
        x = tensors[name].T if entry.transposed else tensors[name]
        for matrix, part in zip(matrices, np.split(x, np.cumsum(widths)[:-1], axis=-1), strict=True):
            matrix[...] = part
    return shape, unflatten(leaves)


def layout_of(shape: ModelShape) -> str:
    """The model_type that can say a shape. Raises InputError with the fields for which none can."""
    misses = {
        name: [f"{f}={v!r}, not {getattr(shape, f)!r}" for f, v in layout.fixed.items() if getattr(shape, f) != v]
        for name, layout in LAYOUTS.items()
    }
    for name, missed in misses.items():
        if not missed:
            return name
    said = "; ".join(f"{name} has {', '.join(missed)}" for name, missed in misses.items())
    raise InputError(f"no Hugging Face layout here can say this shape: {said}", do="--format=params can")


def shape_of(config: dict[str, Any]) -> ModelShape:
    """The shape that a config.json describes. Raises InputError, naming the key, for what this model does not have."""
    model_type = config.get("model_type")
    known = isinstance(model_type, str) and model_type in LAYOUTS
    require(known, f"model_type={shown(model_type)} is not read", "gpt2 and llama are", CONFIG)
    layout = LAYOUTS[model_type]
    require("quantization_config" not in config, "quantized weights are not read", "give the original", CONFIG)
    for key, known in layout.config.items():
        value = config.get(key, known[0])
        require(value in known, f"{key}={shown(value)} is not what this model computes: {known[0]!r} is", where=CONFIG)
    if model_type == "llama":
        config = _plain_rotary(config)
        biases = config.get("attention_bias", False), config.get("mlp_bias", False)
        said = f"attention_bias={shown(biases[0])}, mlp_bias={shown(biases[1])}"
        require(biases[0] == biases[1], f"{said}: this model has biases in both, or in none", where=CONFIG)
    fields = {field: config.get(key, default) for field, (key, default) in layout.sizes.items()}
    missing = [key for field, (key, _) in layout.sizes.items() if fields[field] is REQUIRED]
    require(not missing, f"missing {', '.join(missing)}", where=CONFIG)
    if fields["d_ff"] is None and isinstance(fields["d_model"], int):
        fields["d_ff"] = 4 * fields["d_model"]
    with located(CONFIG):
        return ModelShape(**{**layout.fixed, **fields})


def read_checkpoint(directory: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The config and all tensors of a checkpoint, in one file or in several with an index, in host memory."""
    directory = pathlib.Path(directory)
    config = read_json(directory / CONFIG)
    require(isinstance(config, dict), "not a mapping", where=str(directory / CONFIG))
    if (directory / INDEX).is_file():
        index = read_json(directory / INDEX)
        where = index.get("weight_map") if isinstance(index, dict) else None
        require(isinstance(where, dict), "no weight_map", where=str(directory / INDEX))
        files = [check_name(file, str(directory / INDEX)) for file in where.values()]  # of this folder, and no other
        tensors: dict[str, np.ndarray] = {}
        for file in sorted(set(files)):
            tensors |= load_arrays(directory / file)
        _same_names(where.keys(), tensors.keys(), str(directory / INDEX))
        return config, tensors
    found = sorted(path.name for path in directory.glob("*.bin"))
    instead = f"holds {found[0]}, which is not read: " if found else ""
    said = f"{instead}no {WEIGHTS}"
    require((directory / WEIGHTS).is_file(), said, "save it with save_pretrained of transformers", str(directory))
    return config, load_arrays(directory / WEIGHTS)


def write_checkpoint(directory: pathlib.Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Writes config.json and model.safetensors into an existing directory."""
    save_arrays(directory / WEIGHTS, tensors)
    write_json(directory / CONFIG, config)


def _config(model_type: str, shape: ModelShape) -> dict[str, Any]:
    layout = LAYOUTS[model_type]
    values = {**dataclasses.asdict(shape), "d_head": shape.head_size, "n_kv_heads": shape.kv_heads}
    config = {
        "architectures": [layout.architecture],
        "model_type": model_type,
        "dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": None,
        **{key: known[0] for key, known in layout.config.items()},
        **{key: values[field] for field, (key, _) in layout.sizes.items()},
    }
    if model_type == "gpt2":
        # Dropout is not part of this model, and theirs defaults to 0.1.
        return {**config, **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)}
    # rope_theta is read by transformers 4, rope_parameters by 5.
    rotary = {"rope_theta": shape.rotary_base, "rope_type": "default"}
    return {**config, "mlp_bias": shape.biases, "rope_parameters": rotary}


def _plain_rotary(config: dict[str, Any]) -> dict[str, Any]:
    """A Llama config with its base under rope_theta, whichever version wrote it. Refuses scaled frequencies."""
    given = [config.get(key) or {} for key in ("rope_scaling", "rope_parameters")]
    require(all(isinstance(part, dict) for part in given), "rope_parameters is no mapping", where=CONFIG)
    rotary = {**given[0], **given[1]}
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    said = f"rope_scaling of type {shown(kind)}: this model has plain rotary positions"
    require(kind == "default", said, where=CONFIG)
    factor = rotary.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    require(factor == 1.0, f"partial_rotary_factor={shown(factor)}: this model turns whole heads", where=CONFIG)
    return {**config, "rope_theta": rotary.get("rope_theta", config.get("rope_theta", 10_000.0))}


def _entries(layout: Layout, shape: ModelShape) -> Iterator[tuple[str, int | None, Entry]]:
    """(their name, layer, entry) of all tensors of a model: those whose leaves it has."""
    ours = leaf_shapes(shape)
    for name, entry in layout.whole.items():
        if entry.leaves[0] in ours:
            yield name, None, entry
    for layer in range(shape.n_layers):
        for name, entry in layout.layer.items():
            if f"blocks/{entry.leaves[0]}" in ours:
                yield f"{layout.block}{layer}.{name}", layer, entry


def _matrices(leaves: dict[str, np.ndarray], layer: int | None, entry: Entry) -> list[np.ndarray]:
    """The leaves of an entry, as views: inputs x outputs, heads and their entries being one dimension in theirs."""
    matrices = []
    for leaf in entry.leaves:
        x = leaves[leaf] if layer is None else leaves[f"blocks/{leaf}"][layer]
        if x.ndim == 3:
            x = x.reshape(-1, x.shape[-1]) if leaf == "attention/out" else x.reshape(x.shape[0], -1)
        matrices.append(x)
    return matrices


def _cleaned(tensors: dict[str, np.ndarray], layout: Layout, shape: ModelShape) -> dict[str, np.ndarray]:
    """With the prefix that checkpoints of a bare model lack; without constants and the second copy of a tied table."""
    prefix = layout.block.split(".")[0] + "."
    bare = not any(name.startswith(prefix) for name in tensors)
    named = {f"{prefix}{name}" if bare and name != "lm_head.weight" else name: x for name, x in tensors.items()}
    kept = {name: x for name, x in named.items() if not re.fullmatch(layout.buffers, name)}
    if shape.tied_embeddings and (head := kept.pop("lm_head.weight", None)) is not None:
        table = next(name for name, entry in layout.whole.items() if entry == same("embedding"))
        said = f"lm_head.weight differs from {table}, which the config ties it to"
        require(table not in kept or np.array_equal(head, kept[table]), said)
    for name, x in kept.items():
        readable = x.dtype in (np.float32, np.float16, ml_dtypes.bfloat16)  # each of them exact in fp32
        require(readable, f"{name} is of type {x.dtype}", "float32, bfloat16 and float16 are read")
    return kept


def _same_names(expected: Any, found: Any, where: str = "") -> None:
    """Refuses missing and unexpected tensors: the first of them, and how many."""
    for what, names in (("missing", expected - found), ("unexpected", found - expected)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(f"{what} tensor {min(names)}{more}", where)
