import numpy as np
import pytest

from scaling.data.tokenizers import TOKENIZERS, get_tokenizer
from scaling.errors import InputError


def test_bytes_are_utf8_and_never_the_end_token():
    tokenizer = get_tokenizer("bytes")
    every_character = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000).encode()
    ids_T = tokenizer.encode(every_character)
    assert ids_T.dtype == np.uint16
    assert bytes(ids_T.astype(np.uint8)) == every_character
    assert tokenizer.end_token not in ids_T
    assert tokenizer.end_token < tokenizer.vocab_size == 256


@pytest.mark.parametrize("text", [b"\xff", b"caf\xe9", b"\xed\xa0\x80", b"\xc0\x80"])
def test_other_bytes_are_refused(text):
    with pytest.raises(UnicodeDecodeError):
        get_tokenizer("bytes").encode(text)


def test_an_unknown_tokenizer_names_the_nearest():
    with pytest.raises(InputError, match=r"unknown tokenizer 'byte' .did you mean bytes"):
        get_tokenizer("byte")


def test_vocabularies_fit_the_token_files():
    assert all(tokenizer.vocab_size <= 2**16 for tokenizer in TOKENIZERS.values())
