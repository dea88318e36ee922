"""A model's parameters as files: a directory that a run can start from, named by its content.

    params.safetensors  the parameter tree in fp32, layers stacked, by flat names such as blocks/attention/q
    params.json         schema, content_id, shape, N, source

Nothing here is of a device: parameters are nested dictionaries of NumPy arrays.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from scaling.errors import InputError
from scaling.files import Path, make_directory, read_json, write_json
from scaling.models.counts import parameters
from scaling.runs import ModelShape
from scaling.specs import from_dict, require, to_dict

SCHEMA = 1
ARRAYS, HEADER = "params.safetensors", "params.json"
_INITIAL = ("output_init",)  # fields of a shape that matter to an initialisation alone


def write_params(path: Path, shape: ModelShape, params: Any, source: str) -> str:
    """Writes a new directory of parameters and returns their content id. `source` says where they come from.

    Raises InputError if `path` exists, and for parameters that are not of the shape.
    """
    arrays = flatten(params)
    check_arrays(arrays, shape, source)
    header = {
        "schema": SCHEMA,
        "content_id": content_id(arrays),
        "shape": to_dict(shape),
        "N": parameters(shape).N,
        "source": source,
    }
    with new_directory(path) as directory:
        save_arrays(directory / ARRAYS, arrays)
        write_json(directory / HEADER, header)
    return header["content_id"]


def read_header(path: Path) -> tuple[ModelShape, str]:
    """The shape and the content id of a directory of parameters, without reading them. Raises InputError."""
    where = pathlib.Path(path) / HEADER
    require(where.is_file(), f"no {HEADER}: not a directory of parameters", "tools.import_hf writes one", str(path))
    values = read_json(where)
    known = isinstance(values, dict) and values.get("schema") == SCHEMA and isinstance(values.get("content_id"), str)
    require(known, f"not of schema {SCHEMA}, which this version reads", "write it again", str(where))
    return from_dict(ModelShape, values.get("shape"), str(where)), values["content_id"]


def read_params(path: Path) -> tuple[ModelShape, Any, str]:
    """Reads parameters and checks them against their content id: (shape, tree of fp32 arrays, content id).

    Raises InputError for files that are missing, cut short, altered, or not of the shape beside them.
    """
    shape, expected = read_header(path)
    where = pathlib.Path(path) / ARRAYS
    arrays = load_arrays(where)
    check_arrays(arrays, shape, str(where))
    found = content_id(arrays)
    require(found == expected, f"the content is {found}, not {expected} as {HEADER} says", "write it again", str(where))
    return shape, unflatten(arrays), found


def start_params(path: Path, shape: ModelShape, expected: str) -> Any:
    """The parameters that a run of `shape` starts from. Raises InputError if they are others, or of another shape."""
    given, found = read_header(path)
    require(found == expected, f"holds parameters {found}; the run starts from {expected}", where=str(path))
    differing = [
        f"{field.name}={getattr(given, field.name)!r}, not {getattr(shape, field.name)!r}"
        for field in dataclasses.fields(ModelShape)
        if field.name not in _INITIAL and getattr(given, field.name) != getattr(shape, field.name)
    ]
    require(not differing, f"is of another shape than the run: {'; '.join(differing)}", where=str(path))
    return read_params(path)[1]


def content_id(arrays: dict[str, np.ndarray]) -> str:
    """64 bits of SHA-256 over names, shapes, types and little-endian bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        x = np.ascontiguousarray(arrays[name], arrays[name].dtype.newbyteorder("<"))
        digest.update(f"{name} {x.shape} {x.dtype.name}\n".encode())
        digest.update(x.data)
    return digest.hexdigest()[:16]


def leaf_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """The flat names of a model's parameters, layers stacked, and their shapes."""
    import jax
    from flax import linen as nn

    from scaling.models.transformer import abstract_params

    leaves = jax.tree.map(lambda leaf: leaf.shape, nn.unbox(abstract_params(shape)))
    return flatten(leaves)


def check_arrays(arrays: dict[str, np.ndarray], shape: ModelShape, where: str) -> None:
    """Refuses arrays that are not the fp32 parameters of a shape."""
    expected = leaf_shapes(shape)
    odd = sorted(expected.keys() ^ arrays.keys())
    require(not odd, f"missing or unexpected: {', '.join(odd)}", where=where)
    for name, x in arrays.items():
        said = f"{name} is {x.dtype} of {x.shape}, not float32 of {expected[name]}"
        require(x.shape == expected[name] and x.dtype == np.float32, said, where=where)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested dictionary by the paths of its leaves: {"a": {"b": x}} is {"a/b": x}."""
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def stack_layers(params: Any) -> Any:
    """The tree of a model without scan as that of one with it: layers_0, layers_1, ... become blocks."""
    layers = [params[f"layers_{n}"] for n in range(sum(name.startswith("layers_") for name in params))]
    flat = [flatten(layer) for layer in layers]
    blocks = unflatten({name: np.stack([layer[name] for layer in flat]) for name in flat[0]})
    return {**{name: x for name, x in params.items() if not name.startswith("layers_")}, "blocks": blocks}


def unstack_layers(params: Any) -> Any:
    """The inverse of `stack_layers`: parameters of files for a model without scan."""
    blocks = flatten(params["blocks"])
    n_layers = len(next(iter(blocks.values())))
    layers = {f"layers_{n}": unflatten({name: x[n] for name, x in blocks.items()}) for n in range(n_layers)}
    return {**{name: x for name, x in params.items() if name != "blocks"}, **layers}


def save_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file, with the mark that other readers of the format ask for."""
    # The library writes the memory of an array as it lies, strides or not.
    save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)  # it makes 0600


def load_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a safetensors file. Raises InputError if there is none, or it is none."""
    require(path.is_file(), "no such file", where=str(path))
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"not a whole safetensors file: {error}", where=str(path)) from None
    # The format has types and shapes that NumPy has not, and the library tells in different ways.
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"holds an array that NumPy cannot: {error}", where=str(path)) from None


def refuse_existing(path: Path) -> None:
    """Raises InputError if there is anything at `path`."""
    require(not os.path.lexists(path), "exists already", "give another path, or remove it", str(path))


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[pathlib.Path]:
    """Yields a temporary directory beside `path`, which takes the name at the end, or goes away on an error.

    Raises InputError if `path` exists.
    """
    path = pathlib.Path(path)
    refuse_existing(path)
    make_directory(path.parent)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes 0700, which would lock out the other users of a shared disk
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
