import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from scaling.data.sources import is_library_text, open_source
from scaling.errors import InputError


def test_stdlib_is_library_text_of_about_nine_megabytes():
    documents = dict(open_source("stdlib").documents)
    assert 7e6 < sum(map(len, documents.values())) < 11e6
    assert {"argparse.py", "ast.py", "json/decoder.py", "unittest/mock.py"} <= documents.keys()
    left_out = {"test", "tests", "idle_test", "encodings", "idlelib", "lib2to3", "site-packages", "pydoc_data"}
    assert not [name for name in documents if left_out & set(pathlib.PurePath(name).parts)]
    assert not {"token.py", "keyword.py", "stringprep.py", "html/entities.py"} & documents.keys()
    assert all(text.decode("utf-8") is not None for text in documents.values())


@pytest.mark.parametrize("name", ["unittest", "doctest.py", "testing.py", "json", "configparser.py"])
def test_library_names(name):
    assert is_library_text(name)


@pytest.mark.parametrize(
    "name", ["test", "tests", "encodings", "site-packages", "_sysconfigdata__x.py", "config-3.11-x"]
)
def test_other_names(name):
    assert not is_library_text(name)


def test_stdlib_takes_no_argument():
    with pytest.raises(InputError, match="stdlib takes no argument, not 'json'"):
        open_source("stdlib:json")


def test_files_are_sorted_and_recursive(tmp_path):
    for name in ("b.txt", "deep/er/a.txt", "a.txt", "c.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    documents = list(open_source(f"files:{tmp_path}/**/*.txt").documents)
    assert [text.decode() for _, text in documents] == ["a.txt", "b.txt", "deep/er/a.txt"]
    assert documents[0][0] == str(tmp_path / "a.txt")


def test_fingerprint_follows_the_files(tmp_path):
    source, path = f"files:{tmp_path}/*", tmp_path / "a.txt"
    path.write_text("one")
    first = open_source(source).fingerprint
    assert open_source(source).fingerprint == first
    path.write_text("three")
    os.utime(path, ns=(0, 0))
    second = open_source(source).fingerprint
    (tmp_path / "b.txt").write_text("one")
    assert len({first, second, open_source(source).fingerprint}) == 3


def test_files_without_a_match_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no file matches .*\*\.txt"):
        open_source(f"files:{tmp_path}/*.txt")


@pytest.mark.parametrize("source", ["file:x", "stdlibs", "fils:x"])
def test_an_unknown_source_names_the_nearest(source):
    with pytest.raises(InputError, match=f"unknown source '{source}' .did you mean (files|stdlib)"):
        open_source(source)


BUILDER = """
import tensorflow_datasets as tfds

class SmallText(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")
    FIELD = "text"

    def _info(self):
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({self.FIELD: tfds.features.Text()}))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(50):
            yield i, {self.FIELD: f"Document {i} of a data set."}

class OtherField(SmallText):
    FIELD = "body"

class OtherSplit(SmallText):
    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples()}
"""

PREPARE = """
import sys
from prepared_for_a_test import builders
for name in ("SmallText", "OtherField", "OtherSplit"):
    builder = getattr(builders, name)(data_dir=sys.argv[1], file_format="array_record")
    builder.download_and_prepare()
"""

READ = """
import sys
from scaling.data.sources import open_source
from scaling.errors import InputError
try:
    opened = open_source(sys.argv[1])
    print(opened.fingerprint)
    print(*sorted(text.decode() for _, text in opened.documents), sep="\\n")
except InputError as error:
    print(error)
assert "tensorflow" not in sys.modules
"""


def run_python(code, *arguments, **environment):
    """In a process of its own: tfds reads TFDS_DATA_DIR when it is imported, and registers what has been imported."""
    path = os.pathsep.join([environment.pop("PYTHONPATH", ""), *sys.path])
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    package = root / "package" / "prepared_for_a_test"  # tfds takes builders from modules of packages only
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "builders.py").write_text(BUILDER)
    run_python(PREPARE, str(root / "data"), PYTHONPATH=str(root / "package"))
    return str(root / "data")


def test_tfds_is_read_without_tensorflow(data_dir):
    fingerprint, *texts = run_python(READ, "tfds:small_text", TFDS_DATA_DIR=data_dir)
    assert fingerprint.startswith("small_text/1.2.0 50 ")
    assert texts == sorted(f"Document {i} of a data set." for i in range(50))
    assert run_python(READ, "tfds:small_text:1.2.0", TFDS_DATA_DIR=data_dir) == [fingerprint, *texts]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("no_such_text", "Dataset no_such_text not found"),
        ("c4/realnewslike:3.1.0", "no such data set in"),
        ("small_text:7.0.0", "small_text"),
        ("no name", "Parsing builder name string no name failed"),
    ],
)
def test_a_missing_tfds_data_set_says_how_to_get_it(data_dir, name, fault):
    (message,) = run_python(READ, f"tfds:{name}", TFDS_DATA_DIR=data_dir)
    assert fault in message
    assert "prepare it as array_record" in message
    assert "TFDS_DATA_DIR" in message
    assert "files:GLOB" in message


def test_tfds_needs_a_field_text_and_a_split_train(data_dir):
    (message,) = run_python(READ, "tfds:other_field", TFDS_DATA_DIR=data_dir)
    assert message == "tfds:other_field: its examples have no field text, only body"
    (message,) = run_python(READ, "tfds:other_split", TFDS_DATA_DIR=data_dir)
    assert message == "tfds:other_split: it has no split train, only test"


def test_tfds_in_a_format_that_needs_tensorflow_is_refused(data_dir, tmp_path):

    shutil.copytree(data_dir, tmp_path / "data")
    info = tmp_path / "data" / "small_text" / "1.2.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    (message,) = run_python(READ, "tfds:small_text", TFDS_DATA_DIR=str(tmp_path / "data"))
    assert "tfrecord" in message
    assert "prepare it as array_record" in message
