import importlib
import pickle

import numpy as np
import pytest

from scaling.data.filters import FILTERS, get_filter
from scaling.data.sources import open_source
from scaling.errors import InputError


@pytest.mark.parametrize(
    ("spec", "kept", "left_out"),
    [
        ("utf8", ["é".encode(), b""], [b"caf\xe9", b"\xff"]),
        ("ascii", [b"a\n\t~", b""], ["é".encode(), b"\x80"]),
        ("min_bytes:3", [b"abc", "é!".encode()], [b"ab", b"", "é".encode()]),
        ("max_bytes:3", [b"abc", b""], [b"abcd", "éé".encode()]),
        ("no_long_lines:3", [b"abc\nabc\n", b""], [b"abc\nabcd\nabc", b"abcd"]),
        ("mostly_text:0.8", [b"one two three four 5", "сло́во".encode()], [b"one two three 4 5", b"1 2", b" ", b"\xff"]),
    ],
)
def test_what_each_filter_keeps(spec, kept, left_out):
    keep = get_filter(spec)
    assert [keep(text) for text in kept] == [True] * len(kept)
    assert [keep(text) for text in left_out] == [False] * len(left_out)


def test_every_filter_is_documented_and_in_the_table_above():
    assert all(FILTERS[name].__doc__.startswith("Keeps") for name in FILTERS)
    assert len(FILTERS) == 6


def test_what_a_filter_leaves_out_can_be_counted(source, documents):
    limit = int(np.median([len(text) for text in documents]))
    found = list(open_source(f"{source} | min_bytes:{limit} | max_bytes:{limit + 20}").documents)
    assert [text for _, text in found] == [text if limit <= len(text) <= limit + 20 else None for text in documents]
    assert [name for name, _ in found] == [name for name, _ in open_source(source).documents]
    assert 0 < sum(text is None for _, text in found) < 100


def test_filters_are_part_of_the_fingerprint(source):
    pipes = ["", " | utf8", " | utf8 | ascii", " | ascii | utf8", " | max_bytes:9", " | max_bytes:10"]
    assert len({open_source(source + pipe).fingerprint for pipe in pipes}) == len(pipes)
    assert open_source(f"{source}|ascii").fingerprint == open_source(f"{source} |  ascii").fingerprint


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a package `NAME` whose module rules has this text."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "rules.py").write_text(text)
        return f"{name}.rules"

    return write


def test_a_filter_of_ones_own(source, documents, module):
    rules = module(
        "own_filters", "def even(text): return len(text) % 2 == 0\ndef above(text, n): return len(text) > n\n"
    )
    (part,) = open_source(f"{source} | {rules}:even | {rules}:above:100").parts
    kept = [text for _, text in pickle.loads(pickle.dumps(part)).read() if text is not None]
    assert kept == [text for text in documents if len(text) % 2 == 0 and len(text) > 100]
    assert kept


def test_a_filter_of_a_program(documents, source, module, monkeypatch):
    monkeypatch.setitem(FILTERS, "mine", importlib.import_module(module("own_program", "def f(text): return False")).f)
    assert {text for _, text in open_source(f"{source} | mine").documents} == {None}


def test_an_edited_filter_is_another(source, module):
    texts = {"own_a": "def f(text):\n    return True\n", "own_b": "def f(text):\n    return False\n"}
    first, second = (importlib.import_module(module(name, text)).f for name, text in texts.items())
    fingerprints = []
    for function in (first, second, first):
        FILTERS["edited"] = function
        fingerprints.append(open_source(f"{source} | edited").fingerprint)
    del FILTERS["edited"]
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("min_byte:3", r"unknown filter 'min_byte' .did you mean min_bytes\?"),
        ("", "unknown filter '' .valid: ascii, max_bytes"),
        ("min_bytes", "'min_bytes': needs a number .min_bytes:100, say"),
        ("min_bytes:x", "needs a number"),
        ("min_bytes:nan", "needs a number"),
        ("ascii:3", "filter 'ascii:3': takes no number"),
        ("no.such:rule", "No module named 'no'"),
        ("os.path:no_such", "no attribute 'no_such'"),
        ("os.path:sep", "os.path:sep is not a function"),
        ("os.path", "os.path: is not a function"),
    ],
)
def test_a_wrong_filter_is_refused_when_the_source_is_opened(source, spec, fault):
    with pytest.raises(InputError, match=fault):
        open_source(f"{source} | {spec}")
