"""TFDS data sets. Each is read in a process of its own: tfds reads TFDS_DATA_DIR when it is imported."""

import json
import os
import shutil
import subprocess
import sys

import pytest

BUILDERS = """
import tensorflow_datasets as tfds

class Text(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.2.0")
    FIELDS, SPLIT, NUMBER = ("text",), "train", 50

    def _info(self):
        features = tfds.features.FeaturesDict({name: tfds.features.Text() for name in self.FIELDS})
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager):
        return {self.SPLIT: self._generate_examples()}

    def _generate_examples(self):
        for i in range(self.NUMBER):
            yield i, {name: f"{name} {i} é\\0" * (i % 5) for name in self.FIELDS}

class SmallText(Text):
    pass

class OtherField(Text):
    FIELDS = ("body",)

class OtherSplit(Text):
    SPLIT = "test"

class C4(Text):
    VERSION = tfds.core.Version("3.1.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="en")]
    FIELDS, NUMBER = ("text", "url", "timestamp", "content-type", "content-length"), 10000
"""

PREPARE = """
import sys
import tensorflow_datasets as tfds
from prepared_for_a_test import builders

shards = tfds.download.DownloadConfig(num_shards=3)
for cls in (builders.SmallText, builders.OtherField, builders.OtherSplit, builders.C4):
    cls(data_dir=sys.argv[1], file_format="array_record").download_and_prepare(download_config=shards)
"""

# The examples of the array_record shards, written as the format's own documentation says.
AS_TFRECORD = """
import struct, sys
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from scaling.data.tfrecords import masked_crc32c

for path in tfds.builder_from_directory(sys.argv[1]).info.splits["train"].filepaths:
    name = path.name.replace("array_record", "tfrecord")
    with open(f"{sys.argv[2]}/{name}", "wb") as file:
        for data in ArrayRecordReader(str(path)).read_all():
            length = struct.pack("<Q", len(data))
            file.write(length + masked_crc32c(length) + data + masked_crc32c(data))
"""

READ = """
import hashlib, json, sys
from scaling.data.sources import open_source
from scaling.errors import InputError

def read(source):
    try:
        opened = open_source(source)
        documents = list(opened.documents)
    except InputError as error:
        return str(error)
    return {
        "fingerprint": opened.fingerprint,
        "parts": [part.name for part in opened.parts],
        "documents": [len(documents), documents[0][0], documents[-1][0]],
        "texts": hashlib.sha256(repr([text for _, text in documents]).encode()).hexdigest(),
        "first": repr(min(text for _, text in documents if text)),
    }

print(json.dumps([read(source) for source in sys.argv[1:]]))
assert "tensorflow" not in sys.modules
"""


def python(*arguments, check=True, **environment):
    path = os.pathsep.join([environment.pop("PYTHONPATH", ""), *sys.path])
    result = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
    )
    if check:
        assert result.returncode == 0, result.stderr
    return result


def read(data_dir, *names):
    """What open_source finds under each name, or says."""
    result = python("-c", READ, *[f"tfds:{name}" for name in names], TFDS_DATA_DIR=str(data_dir))
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Small data sets as array_record, one of them under the name of C4 and with its features."""
    root = tmp_path_factory.mktemp("tfds")
    package = root / "package" / "prepared_for_a_test"  # tfds takes builders from modules of packages only
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "builders.py").write_text(BUILDERS)
    python("-c", PREPARE, str(root / "data"), PYTHONPATH=str(root / "package"))
    return root / "data"


@pytest.fixture(scope="module")
def tfrecord_dir(data_dir, tmp_path_factory):
    """The same C4 as tfrecord."""
    root = tmp_path_factory.mktemp("tfrecord")
    source, out = data_dir / "c4/en/3.1.0", root / "c4/en/3.1.0"
    out.mkdir(parents=True)
    python("-c", AS_TFRECORD, str(source), str(out))
    shutil.copy(source / "features.json", out)
    info = (source / "dataset_info.json").read_text()
    (out / "dataset_info.json").write_text(info.replace('"array_record"', '"tfrecord"'))
    return root


@pytest.fixture(scope="module")
def c4(data_dir):
    found = read(data_dir, "c4/en:3.1.0", "c4/en", "c4")
    assert found[0] == found[1] == found[2]
    return found[0]


def test_c4_is_read_by_name_without_tensorflow(c4):
    assert c4["fingerprint"].startswith("c4/en/3.1.0 10000 ")
    assert c4["parts"] == ["train[0:8192]", "train[8192:10000]"]
    assert c4["documents"] == [10000, "train[0]", "train[9999]"]
    assert c4["first"] == repr("text 1 é\0".encode())


def test_tfrecord_shards_give_the_same_documents(c4, tfrecord_dir):
    (found,) = read(tfrecord_dir, "c4/en:3.1.0")
    assert found["texts"] == c4["texts"]
    assert found["parts"] == [f"c4-train.tfrecord-0000{i}-of-00003" for i in range(3)]
    assert found["documents"][:2] == [10000, "c4-train.tfrecord-00000-of-00003[0]"]


def test_tfrecord_is_converted(c4, data_dir, tfrecord_dir, tmp_path):
    source = tfrecord_dir / "c4/en/3.1.0"
    command = ("-m", "tools.prepare_tfds", f"--convert={source}", f"--out={tmp_path}")
    # What a killed conversion leaves: a finished shard, and none of the rest.
    shard = "c4-train.array_record-00001-of-00003"
    (tmp_path / "c4/en/3.1.0").mkdir(parents=True)
    shutil.copy2(data_dir / "c4/en/3.1.0" / shard, tmp_path / "c4/en/3.1.0")
    finished = (tmp_path / "c4/en/3.1.0" / shard).stat()
    assert f"converted: {tmp_path}/c4/en/3.1.0" in python(*command).stdout
    assert (tmp_path / "c4/en/3.1.0" / shard).stat().st_mtime_ns == finished.st_mtime_ns
    (found,) = read(tmp_path, "c4/en:3.1.0")
    assert {**found, "fingerprint": ""} == {**c4, "fingerprint": ""}
    again = python(*command, check=False)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "exists already" in again.stderr


def test_a_damaged_shard_is_refused_and_nothing_converted(tfrecord_dir, tmp_path):
    shutil.copytree(tfrecord_dir, tmp_path / "data")
    shard = tmp_path / "data/c4/en/3.1.0/c4-train.tfrecord-00002-of-00003"
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    (message,) = read(tmp_path / "data", "c4/en:3.1.0")
    assert "c4-train.tfrecord-00002-of-00003: record at byte" in message
    assert "does not match its checksum (fetch or prepare the file again)" in message
    result = python("-m", "tools.prepare_tfds", f"--convert={shard.parent}", f"--out={tmp_path}/out", check=False)
    assert result.returncode == 2
    assert "does not match its checksum" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out/c4/en/3.1.0/dataset_info.json").exists()


def test_local_text_becomes_a_data_set(source, documents, tmp_path):
    flags = ("-m", "tools.prepare_tfds", "--name=my_text", f"--out={tmp_path}")
    out = python(*flags, f"--source={source} | max_bytes:150").stdout
    kept = [text for text in documents if len(text) <= 150]
    assert f"documents: {len(kept):,}, left out by filters: {len(documents) - len(kept):,}" in out
    code = (
        "import sys; from scaling.data.sources import open_source as o; print([x for _, x in o(sys.argv[1]).documents])"
    )
    result = python("-c", code, "tfds:my_text", TFDS_DATA_DIR=str(tmp_path))
    assert result.stdout == f"{kept}\n"  # in the order of the source
    again = python(*flags, f"--source={source}", check=False)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "my_text/1.0.0: exists already" in again.stderr
    nothing = python(
        "-m", "tools.prepare_tfds", "--name=n", f"--out={tmp_path}", f"--source={source} | max_bytes:0", check=False
    )
    assert nothing.returncode == 2
    assert nothing.stderr.splitlines()[-1].endswith("error: n: it has no document, or none that the filters leave")
    assert not list((tmp_path / "n").iterdir())


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--name=x"], "give either --source and --name, or --convert"),
        (["--source=stdlib"], "give either --source and --name, or --convert"),
        (["--source=stdlib", "--name=x", "--convert=y"], "give either --source and --name, or --convert"),
        (["--source=stdlib", "--name=My-Text"], "--name='My-Text' is not a name of a data set"),
        (["--source=stdlb", "--name=x"], "did you mean stdlib?"),
        (["--convert=no_such"], "no_such/dataset_info.json: no such file"),
    ],
)
def test_wrong_flags_are_one_line(flags, fault, tmp_path):
    result = python("-m", "tools.prepare_tfds", f"--out={tmp_path}/out", *flags, check=False)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert fault in line
    assert not list(tmp_path.iterdir())


def test_a_missing_data_set_names_the_nearest_and_says_how_to_get_it(data_dir):
    faults = {
        "smal_text": "unknown data set (did you mean small_text or",
        "wikipeda": "unknown data set (did you mean wikipedia or",
        "c4/enn:3.1.0": "(did you mean c4/en or c4/en.noclean? Else prepare",
        "c4/realnewslike:3.1.0": "no such data set in",
        "small_text:7.0.0": "unknown data set",
        "no name": "Parsing builder name string no name failed",
    }
    for message, (name, fault) in zip(read(data_dir, *faults), faults.items(), strict=True):
        assert message.startswith(f"tfds:{name}: ")
        assert fault in message
        assert "prepare it as array_record" in message
        assert "TFDS_DATA_DIR" in message
        assert "files:GLOB" in message


def test_a_field_text_and_a_split_train_are_needed(data_dir):
    assert read(data_dir, "other_field", "other_split") == [
        "tfds:other_field: its examples have no field text, only body",
        "tfds:other_split: it has no split train, only test",
    ]


def test_another_format_is_refused(data_dir, tmp_path):
    shutil.copytree(data_dir / "small_text", tmp_path / "small_text")
    info = tmp_path / "small_text/1.2.0/dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"riegeli"'))
    (message,) = read(tmp_path, "small_text")
    assert message.startswith("tfds:small_text: its file format is riegeli (prepare it as array_record")


def test_a_data_set_that_is_prepared_again_has_another_fingerprint(data_dir, tmp_path):
    shutil.copytree(data_dir / "small_text", tmp_path / "small_text")
    first, same = read(tmp_path, "small_text", "small_text:1.2.0")
    os.utime(tmp_path / "small_text/1.2.0/dataset_info.json", (0, 0))
    (second,) = read(tmp_path, "small_text")
    assert first["fingerprint"] == same["fingerprint"] != second["fingerprint"]
    assert first["texts"] == second["texts"]
