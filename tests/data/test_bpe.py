import hashlib
import os
import subprocess
import sys

import pytest

from scaling.data import bpe
from scaling.data.bpe import train_bpe, training_text
from scaling.data.sources import open_source
from scaling.data.tokenizers import resolve_tokenizer
from scaling.errors import InputError


def test_training_gives_the_same_file_in_another_process(tmp_path):
    train_bpe(open_source("stdlib | max_bytes:8000"), 1000, tmp_path / "once.json")
    code = (
        "import sys; from scaling.data.bpe import train_bpe; from scaling.data.sources import open_source\n"
        "train_bpe(open_source('stdlib | max_bytes:8000'), 1000, sys.argv[1])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    environment["TOKENIZERS_PARALLELISM"] = "false" if os.environ.get("TOKENIZERS_PARALLELISM") == "true" else "true"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again.json")], env=environment, check=True)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "once.json").read_bytes()


def test_a_tokenizer_is_trained_on_training_documents_alone(source, documents):
    read = [text.encode() for text in training_text(open_source(source))]
    halves = [int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64 for text in documents]
    assert read == [text for text, half in zip(documents, halves, strict=True) if half >= 0.5]
    assert 30 < len(read) < 70


def test_the_text_for_training_is_bounded_and_spread(monkeypatch):
    opened = open_source("synthetic:tokens=2e5,length=200")
    monkeypatch.setattr("scaling.data.synthetic.PART_BYTES", 4000)
    many = open_source("synthetic:tokens=2e5,length=200")
    assert (len(opened.parts), len(many.parts)) == (1, 50)
    for limit in (20_000, 25_000):
        monkeypatch.setattr(bpe, "TRAINING_CHARACTERS", limit)
        assert sum(map(len, training_text(opened))) == limit
        assert sum(map(len, training_text(many))) == limit  # each of 50 parts has its share of 1/50
    monkeypatch.setattr(bpe, "TRAINING_PARTS", 5)
    monkeypatch.setattr(bpe, "TRAINING_CHARACTERS", 5 * 300)
    starts = {text[:100]: i for i, part in enumerate(many.parts) for _, text in part.read()}
    read = [(starts[text[:100].encode()], len(text)) for text in training_text(many)]
    assert read == [(i, length) for i in (0, 10, 20, 30, 40) for length in (200, 100)]


def test_text_that_a_tokenizer_cannot_be_trained_on_is_named(tmp_path, write):
    source = open_source(write(tmp_path / "text", [b"caf\xe9" * i for i in range(1, 20)]))
    with pytest.raises(InputError, match=r"document .*\.txt: not UTF-8: .* \(convert it or leave it out\)"):
        train_bpe(source, 1000, tmp_path / "bpe.json")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


@pytest.mark.parametrize("size", [0, 257])
def test_a_vocabulary_needs_room_for_merges(source, size, tmp_path):
    with pytest.raises(InputError, match="256 bytes and the end token come before merges"):
        train_bpe(open_source(source), size, tmp_path / "bpe.json")


def test_a_vocabulary_that_the_text_does_not_fill_is_refused(source, tmp_path):
    with pytest.raises(InputError, match=r"50000, but the text gives only \d+ tokens .give more text or a smaller"):
        train_bpe(open_source(source), 50000, tmp_path / "bpe.json")
    assert not list(tmp_path.iterdir())


def test_bpe_is_trained_once_for_a_text_and_a_size(source, documents, tmp_path, write):
    opened = open_source(source)
    specs = [resolve_tokenizer("bpe:300", opened, tmp_path / "new") for _ in range(2)]
    assert specs[0] == specs[1]
    (path,) = (tmp_path / "new").iterdir()
    assert specs[0] == f"json:{path}"
    before = path.stat().st_mtime_ns
    resolve_tokenizer("bpe:300", opened, tmp_path / "new")
    assert path.stat().st_mtime_ns == before
    other = open_source(write(tmp_path / "text", documents[:50]))
    resolve_tokenizer("bpe:300", other, tmp_path / "new")
    resolve_tokenizer("bpe:301", opened, tmp_path / "new")
    assert len(list((tmp_path / "new").iterdir())) == 3
    for spec in ("bytes", "json:some/path", "unknown:x"):
        assert resolve_tokenizer(spec, opened, tmp_path / "none") == spec
    with pytest.raises(InputError, match="'bpe:many' has no vocabulary size"):
        resolve_tokenizer("bpe:many", opened, tmp_path)
