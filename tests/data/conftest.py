"""A small corpus of distinct documents, and its token store."""

import pathlib

import pytest

from scaling.data.token_store import TokenStore, build_store
from scaling.runs import DataSpec


def write_documents(directory: pathlib.Path, documents: list[bytes]) -> str:
    """Writes a file a document. Returns the source that reads them in this order."""
    directory.mkdir()
    for i, text in enumerate(documents):
        (directory / f"{i:04}.txt").write_bytes(text)
    return f"files:{directory}/*.txt"


@pytest.fixture(scope="session")
def documents() -> list[bytes]:
    return [" ".join([f"Document {i}.", *(f"é{i}-{j}" for j in range(i % 17 + 5))]).encode() for i in range(100)]


@pytest.fixture(scope="session")
def source(documents, tmp_path_factory) -> str:
    return write_documents(tmp_path_factory.mktemp("corpus") / "text", documents)


@pytest.fixture(scope="session")
def store(source, tmp_path_factory) -> TokenStore:
    return build_store(source, "bytes", 0.3, tmp_path_factory.mktemp("stores") / "small")


@pytest.fixture(scope="session")
def stores(store) -> dict[str, TokenStore]:
    return {store.content_id: store}


@pytest.fixture(scope="session")
def spec(store) -> DataSpec:
    return DataSpec(store=store.content_id, sequence_length=16, eval_windows=10)


@pytest.fixture(scope="session")
def write():
    return write_documents
