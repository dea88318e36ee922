"""From text to token ids. A new tokenizer is one more entry in TOKENIZERS."""

import dataclasses
from collections.abc import Callable

import numpy as np

from scaling.errors import InputError, nearest


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and how text becomes ids of it.

    encode: bytes of UTF-8 text -> ids_T uint16, without the end token. Raises UnicodeDecodeError on other bytes.
    end_token: stands after each document, and nowhere within one.
    """

    name: str
    vocab_size: int
    end_token: int
    encode: Callable[[bytes], np.ndarray]


def get_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a name. Raises InputError for an unknown one."""
    if name not in TOKENIZERS:
        raise InputError(f"unknown tokenizer {name!r}", do=nearest(name, TOKENIZERS))
    return TOKENIZERS[name]


def _encode_bytes(text: bytes) -> np.ndarray:
    text.decode("utf-8")  # valid UTF-8 holds no byte 0xFF (RFC 3629, section 1), which is therefore free for the end
    return np.frombuffer(text, np.uint8).astype(np.uint16)


TOKENIZERS = {"bytes": Tokenizer(name="bytes", vocab_size=256, end_token=0xFF, encode=_encode_bytes)}
