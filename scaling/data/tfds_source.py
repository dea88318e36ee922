"""TFDS data sets as text: the field `text` of the split train, read without TensorFlow.

A data set that is prepared as array_record is read by ranges of its examples. One prepared as tfrecord, TFDS's own
default and that of C4, is read shard by shard; `python -m tools.prepare_tfds --convert=` makes array_record of it.
"""

import difflib
import functools
import hashlib
import itertools
import pathlib
import textwrap
from typing import Any

from scaling.data.parts import Documents, Part, Source
from scaling.data.tfrecords import read_tfrecords
from scaling.errors import InputError

PART_EXAMPLES = 8192  # about 16 MB of C4
HOW_TO_GET = (
    "prepare it as array_record, tfds.builder(NAME, file_format='array_record').download_and_prepare(), "
    "set TFDS_DATA_DIR to where it is, or read local text with files:GLOB"
)


def tfds(name: str) -> Source:
    """A data set by TFDS's name for it, such as c4/en:3.1.0, found in TFDS_DATA_DIR or TFDS's default directory.

    Raises InputError for an unknown name (with the nearest), for a data set that is not there or has another file
    format, no split train, or no field text.
    """
    builder = _builder(name)
    train = builder.info.splits["train"]
    if builder.info.file_format.value == "array_record":
        edges = [*range(0, train.num_examples, PART_EXAMPLES), train.num_examples]
        parts = tuple(
            Part(f"train[{i}:{j}]", functools.partial(_read_range, name, i, j)) for i, j in itertools.pairwise(edges)
        )
    else:
        shards = zip(train.filepaths, train.shard_lengths, strict=True)
        parts = tuple(Part(path.name, functools.partial(_read_shard, name, str(path), n)) for path, n in shards)
    written = (builder.data_path / "dataset_info.json").stat()
    identity = [train.num_bytes, train.shard_lengths, builder.info.file_format.value, written.length, written.mtime]
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    return Source(parts, f"{builder.info.full_name} {train.num_examples} {digest}")


@functools.lru_cache(maxsize=8)
def _builder(name: str) -> Any:
    """The checked builder of a prepared data set; once a process, as each part asks for it."""
    import tensorflow_datasets as tfds  # here: it takes a second, and no other source needs it
    from tensorflow_datasets.text import c4  # noqa: F401  (tfds does not register it where TensorFlow is missing)

    where = f"tfds:{name}"
    try:
        builder = tfds.builder(name)
    except tfds.core.DatasetNotFoundError:
        raise InputError("unknown data set", where, f"{_nearest(name)}{HOW_TO_GET}") from None
    except (ValueError, AssertionError) as error:
        fault = str(error).partition('}": ')[2] or str(error)  # without "Failed to construct ... {arguments}: "
        fault = textwrap.shorten(fault, 200, placeholder=" ...")
        raise InputError(fault, where, f"{_nearest(name)}{HOW_TO_GET}") from None
    splits, features = builder.info.splits, builder.info.features
    if not splits:
        raise InputError(f"no such data set in {builder.data_dir}", where, HOW_TO_GET)
    if "train" not in splits:
        raise InputError(f"it has no split train, only {', '.join(splits)}", where)
    if "text" not in features:
        raise InputError(f"its examples have no field text, only {', '.join(features)}", where)
    if builder.info.file_format.value not in ("array_record", "tfrecord"):
        raise InputError(f"its file format is {builder.info.file_format.value}", where, HOW_TO_GET)
    return builder


def _nearest(name: str) -> str:
    """The names nearest to an unknown one: of the data sets that TFDS knows and those prepared here, or of configs."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import file_utils

    wanted = name.split(":")[0]
    base = wanted.split("/")[0]
    known = set(tfds.list_builders(with_community_datasets=False))
    if base not in known:
        wanted = base
    if base in known:
        known = {f"{base}/{config}" for config in tfds.builder_cls(base).builder_configs}
    else:
        for directory in file_utils.list_data_dirs():
            known |= {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    found = [] if wanted in known else difflib.get_close_matches(wanted, sorted(known), cutoff=0.5)
    return f"did you mean {' or '.join(found)}? Else " if found else ""


def _read_range(name: str, start: int, stop: int) -> Documents:
    examples = _builder(name).as_data_source(split=f"train[{start}:{stop}]")
    for i in range(len(examples)):
        yield f"train[{start + i}]", examples[i]["text"]


def _read_shard(name: str, path: str, length: int) -> Documents:
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({"text": _builder(name).info.features["text"]})
    for i, record in enumerate(read_tfrecords(path, length)):
        yield f"{pathlib.Path(path).name}[{i}]", features.deserialize_example_np(record)["text"]
