import os
import pathlib
import pickle

import pytest

from scaling.data import local_source
from scaling.data.local_source import is_library_text
from scaling.data.sources import open_source
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


def test_text_is_cut_into_parts_by_the_source_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(local_source, "PART_BYTES", (10, 20))
    for name, size in {"a": 4, "b": 6, "c": 15, "d": 3, "e": 7, "f": 1}.items():
        (tmp_path / name).write_bytes(b"x" * size)
    parts = open_source(f"files:{tmp_path}/*").parts
    assert ["".join(name[-1] for name, _ in part.read()) for part in parts] == ["ab", "c", "de", "f"]


def test_parts_grow_with_the_text_between_their_limits():
    smallest, largest = local_source.PART_BYTES
    for total, limit in ((100, smallest), (64 * 3 * smallest, 3 * smallest), (1000 * largest, largest)):
        sizes = [limit // 10] * (10 * total // limit)
        groups = local_source._groups(sizes)
        assert [i for group in groups for i in range(group.start, group.stop)] == list(range(len(sizes)))
        assert all(sum(sizes[group]) <= limit for group in groups)
        assert sum(sum(sizes[group]) < limit * 0.9 for group in groups) <= 1


@pytest.mark.parametrize("source", ["stdlib", "stdlib | ascii | max_bytes:9000", "synthetic:tokens=1e4"])
def test_a_part_is_read_alike_in_another_process(source):
    opened = open_source(source)
    documents = [document for part in opened.parts for document in pickle.loads(pickle.dumps(part)).read()]
    assert documents == list(opened.documents) == list(opened.documents)
    assert len(documents) == len({name for name, _ in documents}) > 5


def test_a_file_that_goes_away_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    opened = open_source(f"files:{tmp_path}/*.txt")
    (tmp_path / "a.txt").unlink()
    with pytest.raises(InputError, match=r"a\.txt: cannot be read: No such file"):
        list(opened.documents)
