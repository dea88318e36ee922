import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from scaling.data import sources
from scaling.data.parts import Part, Source
from scaling.data.token_store import build_store, open_store, prepare_store, read_ends, read_tokens, store_tokenizer
from scaling.errors import InputError


def texts(store, split):
    """The documents of a split, decoded from its tokens."""
    pieces = np.split(read_tokens(store, split), read_ends(store, split))
    assert len(pieces.pop()) == 0
    assert all(piece[-1] == store.end_token for piece in pieces)
    return [bytes(piece[:-1].astype(np.uint8)) for piece in pieces]


def test_every_document_is_in_one_split_as_it_was(store, documents):
    train, validation = texts(store, "train"), texts(store, "validation")
    assert sorted(train + validation) == sorted(documents)
    assert [text for text in documents if text in set(train)] == train  # in the order of the source
    # binomial: 100 documents at 0.3, and bounds of four standard deviations
    assert 12 <= len(validation) <= 48


def test_counts(store):
    for name, split in store.splits.items():
        size = sum(map(len, texts(store, name)))
        assert (split.bytes, split.tokens) == (size, size + split.documents)
        assert split.bytes_per_token == size / (size + split.documents)


def test_duplicates_and_empty_documents_are_left_out_and_counted(tmp_path, documents, store, write):
    copies = build_store(write(tmp_path / "text", [*documents, b"", *documents]), "bytes", 0.3, tmp_path / "store")
    assert copies.left_out == {"empty": 1, "duplicate": len(documents), "filtered": 0}
    assert not set(texts(copies, "train")) & set(texts(copies, "validation"))
    assert copies.content_id == store.content_id


def test_a_document_is_held_out_whatever_its_company(tmp_path, documents, store, write):
    other = build_store(write(tmp_path / "text", documents[::-2]), "bytes", 0.3, tmp_path / "store")
    assert set(texts(other, "validation")) == set(texts(store, "validation")) & set(documents[::-2])


def test_content_id_is_of_the_content_alone(tmp_path, documents, store, write):
    same = build_store(write(tmp_path / "elsewhere", documents), "bytes", 0.3, tmp_path / "a" / "store")
    split = build_store(write(tmp_path / "split", documents), "bytes", 0.2, tmp_path / "b")
    assert same.content_id == store.content_id != split.content_id


def test_content_id_changes_with_one_byte(tmp_path, documents, store, write):
    def changed(byte):
        source = write(tmp_path / f"text{byte}", [documents[0] + bytes([byte]), *documents[1:]])
        return build_store(source, "bytes", 0.3, tmp_path / f"store{byte}")

    stores = [changed(byte) for byte in b"abcdefgh"]
    assert len({other.content_id for other in stores}) == len(stores)
    counts = {tuple((split.tokens, split.documents) for split in other.splits.values()) for other in stores}
    assert len(counts) <= 2  # the changed document is on either side: most stores differ in nothing but the byte


def test_prepared_once_and_again_when_the_source_changes(tmp_path, documents, write):
    source = write(tmp_path / "text", documents)
    first = prepare_store(source, "bytes", 0.3, tmp_path / "stores")
    written = (first.path / "store.json").stat().st_mtime_ns
    again = prepare_store(source, "bytes", 0.3, tmp_path / "stores")
    assert (again, (again.path / "store.json").stat().st_mtime_ns) == (first, written)
    (tmp_path / "text" / "0000.txt").write_text("something else, and longer")
    other = prepare_store(source, "bytes", 0.3, tmp_path / "stores")
    assert other.path != first.path
    assert other.content_id != first.content_id


def test_two_builders_at_once_leave_one_store(tmp_path, documents, monkeypatch):
    both_have_opened = threading.Barrier(2)
    reads = []

    def read():
        reads.append(1)
        yield from ((str(i), text) for i, text in enumerate(documents))

    def both(_):
        both_have_opened.wait(timeout=30)
        return Source((Part("all", read),), "same")

    monkeypatch.setitem(sources.SOURCES, "both", both)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(prepare_store, "both", "bytes", 0.3, tmp_path) for _ in range(2)]
        first, second = (future.result() for future in futures)
    assert first == second
    assert [path.name for path in tmp_path.iterdir()] == [first.path.name]
    assert len(reads) == 1  # the second waited, and found what the first had built
    open_store(first.path, verify=True)


def test_a_failed_build_leaves_nothing(tmp_path, documents, write):
    source = write(tmp_path / "text", [*documents, b"caf\xe9"])
    with pytest.raises(InputError, match=r"document .*/0100\.txt is not UTF-8.*position 3"):
        build_store(source, "bytes", 0.3, tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_an_existing_path_is_not_overwritten(tmp_path, source):
    (tmp_path / "store").mkdir()
    with pytest.raises(InputError, match=r"exists already .a store is never overwritten"):
        build_store(source, "bytes", 0.3, tmp_path / "store")


def test_a_path_that_cannot_be_written_is_refused(tmp_path, source):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file: .*cannot be a directory|cannot be a directory: Not a directory"):
        build_store(source, "bytes", 0.3, tmp_path / "file" / "store")


def test_text_of_one_document_has_no_validation_split(tmp_path, write):
    source = write(tmp_path / "text", [b"one"])
    with pytest.raises(InputError, match=r"no document of 1 fell to the \w+ split .documents are never cut"):
        build_store(source, "bytes", 0.5, tmp_path / "store")


def test_a_text_may_be_held_out_whole(tmp_path, source, documents):
    store = build_store(source, "bytes", 1.0, tmp_path / "s")
    assert store.splits["validation"].documents == len(documents)
    assert (store.splits["train"].documents, store.splits["train"].tokens) == (0, 0)
    assert open_store(tmp_path / "s", verify=True) == store


@pytest.mark.parametrize("fraction", [0, 1.1, -0.1, float("nan")])
def test_a_validation_fraction_outside_its_range_is_refused(tmp_path, source, fraction):
    with pytest.raises(InputError, match="validation_fraction"):
        build_store(source, "bytes", fraction, tmp_path / "store")


@pytest.fixture
def own_store(tmp_path, source):
    return build_store(source, "bytes", 0.3, tmp_path / "own")


@pytest.mark.parametrize("name", ["train-00000.tokens", "validation-00000.tokens"])
def test_one_flipped_bit_is_found_by_verify(own_store, name):
    content = bytearray((own_store.path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (own_store.path / name).write_bytes(content)
    open_store(own_store.path)
    with pytest.raises(InputError, match=f"the {name.split('-')[0]} split does not match its checksum"):
        open_store(own_store.path, verify=True)


def test_another_tokenizer_in_store_json_is_found_by_verify(own_store):
    path = own_store.path / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "end_token": 0}))
    with pytest.raises(InputError, match="does not match"):
        open_store(own_store.path, verify=True)


def test_a_cut_or_missing_file_is_found_on_opening(own_store):
    path = own_store.path / "train-00000.tokens"
    os.truncate(path, 10)
    with pytest.raises(InputError, match=r"train-00000\.tokens: 10 bytes instead of \d+ .remove the store"):
        open_store(own_store.path)
    path.unlink()
    with pytest.raises(InputError, match=r"train-00000\.tokens: 0 bytes instead of"):
        open_store(own_store.path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("[]", "schema"),
        ('{"schema": 1}', "not of schema 2"),
        ('{"schema": 2}', "incomplete or altered: missing source, validation_fraction, tokenizer, vocab_size"),
        ("{", "JSON"),
    ],
)
def test_a_wrong_store_json_is_refused(own_store, content, fault):
    (own_store.path / "store.json").write_text(content)
    with pytest.raises(InputError, match=fault):
        open_store(own_store.path)


def test_no_store_says_how_to_build_one(tmp_path):
    with pytest.raises(InputError, match=r"no store\.json .tools\.tokenize --out= builds one"):
        open_store(tmp_path)


def test_a_store_opens_its_own_tokenizer(store, documents):
    tokenizer = store_tokenizer(store)
    assert tokenizer.decode(tokenizer.encode(documents[0])) == documents[0]


def test_tokens_that_are_handed_out_are_a_copy(store):
    read_tokens(store, "train")[:] = 0
    assert read_tokens(store, "train").any()
