"""TFDS data sets made without TensorFlow: of local text, and of the tfrecord shards of another."""

import multiprocessing
import os
import pathlib
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from scaling.data.parts import Source
from scaling.data.tfrecords import read_tfrecords
from scaling.errors import InputError
from scaling.files import Path, atomic_path, make_directory, read_json, write_json
from scaling.progress import progress_bar


class LocalText(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The documents of a source in its order, in the field `text` of the split train.

    tfds takes builders from modules of packages only. `count` says afterwards how many were written and filtered.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, name: str, source: Source, data_dir: Path):
        self.name = name
        self.source = source
        self.count: Counter = Counter()
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, description="Local text.", features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, bytes]]]:
        for i, (_, text) in enumerate(self.source.documents):
            self.count["filtered" if text is None else "written"] += 1
            if text is not None:
                yield i, {"text": text}
        if not self.count["written"]:
            raise InputError("it has no document, or none that the filters leave", self.name)


def prepare_text(source: Source, name: str, data_dir: Path) -> LocalText:
    """Prepares a source as the data set `name`, version 1.0.0, which `tfds:NAME` reads with TFDS_DATA_DIR=data_dir.

    Raises InputError for a name that TFDS does not take, if the data set is there already, and for a source without
    documents.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(f"--name={name!r} is not a name of a data set", do="small letters, digits and _: my_text")
    builder = LocalText(name, source, data_dir)
    if builder.is_prepared():
        raise InputError("exists already", str(builder.data_dir), "remove it, or give another name")
    builder.download_and_prepare()
    return builder


def convert(source_dir: Path, data_dir: Path) -> pathlib.Path:
    """Rewrites a data set that is prepared as tfrecord as array_record, on all cores.

    source_dir: that with the data set's dataset_info.json (.../c4/en/3.1.0). data_dir: the result is in
      data_dir/NAME[/CONFIG]/VERSION, which is returned. It can be read as soon as its dataset_info.json is there, which
      comes last; shards that an earlier call has finished are kept.
    Raises InputError if there is no such data set, it has another format, the result is there already, or a record
    does not match its checksum.
    """
    source_dir = pathlib.Path(source_dir)
    values = _tfrecord_info(source_dir)
    info = tfds.builder_from_directory(source_dir).info
    out = pathlib.Path(data_dir, info.full_name)
    if (out / "dataset_info.json").exists():
        raise InputError("exists already", str(out), "remove it, or give another directory")
    make_directory(out)
    jobs = [
        (str(path), str(out / path.name.replace("tfrecord", "array_record")), length)
        for split in info.splits.values()
        for path, length in zip(split.filepaths, split.shard_lengths, strict=True)
    ]
    # Processes of their own: the parent runs threads of tfds, which a fork would not survive.
    with (
        multiprocessing.get_context("spawn").Pool(min(os.cpu_count() or 1, len(jobs))) as pool,
        progress_bar(len(jobs), "shards", "converting") as bar,
    ):
        for _ in pool.imap_unordered(_convert_shard, jobs):
            bar.update()
    for path in source_dir.iterdir():
        if "tfrecord" not in path.name and path.name != "dataset_info.json":
            shutil.copyfile(path, out / path.name)
    for split in values["splits"]:
        split["filepathTemplate"] = split["filepathTemplate"].replace("tfrecord", "array_record")
    write_json(out / "dataset_info.json", {**values, "fileFormat": "array_record"})
    return out


def _tfrecord_info(source_dir: pathlib.Path) -> dict[str, Any]:
    values = read_json(source_dir / "dataset_info.json")
    if not isinstance(values, dict) or values.get("fileFormat", "tfrecord") != "tfrecord":
        raise InputError("not a data set prepared as tfrecord", str(source_dir))
    return values


def _convert_shard(job: tuple[str, str, int]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    path, out, length = job
    if os.path.exists(out):
        return
    with atomic_path(out) as temporary:
        writer = ArrayRecordWriter(str(temporary), "group_size:1")  # as tfds writes it
        for record in read_tfrecords(path, length):
            writer.write(record)
        writer.close()
