"""The texts of a config: stores that exist, texts that are only evaluated on, and tokenizers that must be one."""

import dataclasses

import pytest

from scaling.data.token_store import build_store
from scaling.errors import InputError
from scaling.sweeps.config import DataConfig
from scaling.sweeps.texts import find_stores, prepare_text


@pytest.fixture
def write(tmp_path):
    def text(name, count=40):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{i:02}.txt").write_text(f"{name} {i} " * 30)
        return f"files:{tmp_path}/{name}/*.txt"

    return text


@pytest.fixture
def data(write):
    return DataConfig(write("main"), "bytes", 16, 4, validation_fraction=0.3)


def test_a_text_that_is_only_evaluated_on_is_held_out_whole(data, write, tmp_path):
    other = write("other", 3)
    text = prepare_text(dataclasses.replace(data, validation=(f"other={other}",)), tmp_path / "stores")
    ((name, store),) = text.validation
    assert (name, store.splits["validation"].documents, store.splits["train"].documents) == ("other", 3, 0)
    assert text.main.splits["train"].documents + text.main.splits["validation"].documents == 40


def test_of_a_text_that_is_trained_on_the_held_out_documents_are_evaluated(data, write, tmp_path):
    other = write("other")
    mixed = dataclasses.replace(
        data,
        mixture=(f"1 {data.source}", f"1 {other} | min_bytes:2"),
        validation=(f"other={other}", "utf=" + data.source),
    )
    text = prepare_text(mixed, tmp_path / "stores")
    for _, store in text.validation:
        assert 0 < store.splits["validation"].documents < 40
    assert dict(text.validation)["utf"] == text.main


def test_a_store_that_exists_is_used_as_it_is(data, tmp_path):
    built = build_store(data.source, "bytes", 0.5, tmp_path / "mine")
    text = prepare_text(dataclasses.replace(data, source=f"store:{tmp_path}/mine"), tmp_path / "stores")
    assert text.main == built
    assert not (tmp_path / "stores").exists()


def test_a_store_of_another_tokenizer_is_refused(data, tmp_path):
    build_store(data.source, "bytes", 0.5, tmp_path / "mine")
    other = dataclasses.replace(data, source=f"store:{tmp_path}/mine", tokenizer="bpe:270")
    with pytest.raises(InputError, match=r"mine: the tokenizer does not match its store, of bytes .* is 'bpe:270'"):
        prepare_text(other, tmp_path / "stores")
    mixed = dataclasses.replace(data, tokenizer="bpe:270", mixture=(f"1 store:{tmp_path}/mine",))
    with pytest.raises(InputError, match="mine: its tokenizer is bytes, not bpe-270-"):
        prepare_text(mixed, tmp_path / "stores")


def test_stores_are_found_by_content(data, tmp_path):
    text = prepare_text(data, tmp_path / "stores")
    content_id = text.main.content_id
    assert find_stores([content_id], tmp_path / "stores") == {content_id: text.main}
    with pytest.raises(InputError, match="no token store of content id feed"):
        find_stores([content_id, "feed"], tmp_path / "stores")


def test_a_text_that_would_count_twice_is_refused(data):
    with pytest.raises(InputError, match=r"config.data.mixture has stdlib twice \(its text would count twice"):
        dataclasses.replace(data, mixture=("0.9 stdlib", "0.1 stdlib | max_bytes:3000"))
