import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from scaling.data.bpe import train_bpe
from scaling.data.sources import open_source
from scaling.data.tokenizers import _checked, get_tokenizer, stored_tokenizer
from scaling.errors import InputError

EVERY_CHARACTER = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000).encode()
TEXTS = [b"", b" ", b"\0\r\n\n\t  x ", "Zwölf Boxkämpfer, 中文, 🙂\u200d🙂.".encode(), b"def f(x):\n    return x\n" * 9]


@pytest.fixture(scope="module")
def bpe_spec(tmp_path_factory):
    return train_bpe(open_source("stdlib | max_bytes:8000"), 1000, tmp_path_factory.mktemp("bpe") / "bpe.json")


@pytest.fixture(scope="module")
def bpe_values(bpe_spec):
    return json.loads(get_tokenizer(bpe_spec).file)


@pytest.fixture
def changed(bpe_values, tmp_path):
    """Writes the BPE tokenizer with some of its values changed. Returns its path."""

    def write(**values):
        (tmp_path / "changed.json").write_text(json.dumps({**bpe_values, **values}))
        return tmp_path / "changed.json"

    return write


def added(text, i, special=True):
    options = dict.fromkeys(("normalized", "lstrip", "rstrip", "single_word"), False)
    return {"id": i, "content": text, "special": special, **options}


def word_level(path, vocabulary):
    """A tokenizer.json of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    library = Tokenizer(models.WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.save(str(path))
    return path


def sentencepiece_model(path, **options):
    import sentencepiece

    lines = [text.decode() for _, text in open_source("stdlib | max_bytes:3000").documents if text]
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter("\n".join(lines).splitlines()),
            model_writer=file,
            vocab_size=600,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            byte_fallback=True,
            minloglevel=2,
            **options,
        )
    return path


@pytest.fixture(scope="module")
def sentencepiece_path(tmp_path_factory):
    return sentencepiece_model(tmp_path_factory.mktemp("sp") / "text.model", user_defined_symbols=["<mine>"])


def test_bytes_are_utf8_and_never_the_end_token():
    tokenizer = get_tokenizer("bytes")
    ids_T = tokenizer.encode(EVERY_CHARACTER)
    assert ids_T.dtype == np.uint16
    assert bytes(ids_T.astype(np.uint8)) == EVERY_CHARACTER == tokenizer.decode(ids_T)
    assert tokenizer.end_token not in ids_T
    assert tokenizer.end_token < tokenizer.vocab_size == 256
    assert tokenizer.file is None


@pytest.mark.parametrize("text", [b"\xff", b"caf\xe9", b"\xed\xa0\x80", b"\xc0\x80"])
def test_other_bytes_are_refused(text, bpe_spec, sentencepiece_path):
    for spec in ("bytes", bpe_spec, f"sentencepiece:{sentencepiece_path}"):
        with pytest.raises(UnicodeDecodeError):
            get_tokenizer(spec).encode(text)


def test_bpe_loses_nothing(bpe_spec):
    tokenizer = get_tokenizer(bpe_spec)
    for text in (EVERY_CHARACTER.decode()[::11].encode(), *TEXTS):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    ids_T = tokenizer.encode(TEXTS[-1])
    assert (ids_T.dtype, tokenizer.vocab_size) == (np.uint16, 1000)
    assert len(ids_T) < len(TEXTS[-1]) / 2
    digest = hashlib.sha256(tokenizer.file).hexdigest()[:12]
    assert tokenizer.name == f"bpe-1000-{digest}"


# A document may quote the end token. Each way in which a tokenizer.json can hold it would let it through by default.
QUOTES = b"<|endoftext|>", b"a <|endoftext|>b<|endoftext|><|endoftext|> ", b"<|endoftext|"


@pytest.mark.parametrize("tokens", [[added("<|endoftext|>", 0)], [added("<|endoftext|>", 0, special=False)], []])
def test_the_end_token_in_a_document_is_text(changed, tokens):
    tokenizer = get_tokenizer(f"json:{changed(added_tokens=tokens)}")
    assert tokenizer.end_token == 0
    for text in QUOTES:
        ids_T = tokenizer.encode(text)
        assert 0 not in ids_T
        assert tokenizer.decode(ids_T) == text


def test_other_special_tokens_in_a_document_are_text(changed):
    path = changed(added_tokens=[added("<|endoftext|>", 0), added("<|start|>", 1000), added("<|word|>", 1001, False)])
    tokenizer = get_tokenizer(f"json:{path}")
    assert tokenizer.vocab_size == 1002
    assert 1000 not in tokenizer.encode(b"a<|start|>b")
    assert 1001 in tokenizer.encode(b"a<|word|>b")  # an ordinary token that its author added


def test_an_end_token_that_text_yields_is_refused(changed, bpe_values):
    """One that merges lead to: an ordinary word."""
    word = bpe_values["model"]["merges"][-1]
    word = "".join(word) if isinstance(word, list) else word.replace(" ", "")
    tokenizer = get_tokenizer(f"json:{changed()}#{word}")
    with pytest.raises(InputError, match=r"gave its end token, \d+, within a document .name another: #END"):
        tokenizer.encode(word.replace("Ġ", " ").replace("Ċ", "\n").encode())


def test_nothing_is_added_cut_or_filled(changed, bpe_spec):
    plain = get_tokenizer(bpe_spec)
    piece = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    end = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    path = changed(
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        padding={
            **{"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None},
            **{"pad_id": 1, "pad_type_id": 0, "pad_token": "!"},
        },
        post_processor={"type": "TemplateProcessing", "single": [piece, text], "pair": [text], "special_tokens": end},
    )
    tokenizer = get_tokenizer(f"json:{path}")
    for words in TEXTS:
        assert tokenizer.encode(words).tolist() == plain.encode(words).tolist()


def test_random_merges_are_refused(changed, bpe_values):
    path = changed(model={**bpe_values["model"], "dropout": 0.1})
    with pytest.raises(InputError, match=r"leaves out merges at random: dropout=0\.1"):
        get_tokenizer(f"json:{path}")


@pytest.mark.parametrize("end", ["<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[EOS]"])
def test_the_usual_end_tokens_are_found(end, tmp_path):
    tokenizer = get_tokenizer(f"json:{word_level(tmp_path / 'x.json', {'a': 0, 'b': 1, end: 7})}")
    assert (tokenizer.end_token, tokenizer.vocab_size) == (7, 8)
    assert tokenizer.encode(b"b a a").tolist() == [1, 0, 0]
    assert tokenizer.name.startswith("wordlevel-8-")


def test_none_or_several_usual_end_tokens_ask_for_a_name(tmp_path, changed):
    path = word_level(tmp_path / "x.json", {"a": 0, "</s>": 1, "[EOS]": 2})
    with pytest.raises(InputError, match=r"x\.json: 2 usual end tokens: </s>, \[EOS\] .name the end token, .*#END"):
        get_tokenizer(f"json:{path}")
    assert get_tokenizer(f"json:{path}#[EOS]").end_token == 2
    with pytest.raises(InputError, match=r"no token <end> .*special: <\|endoftext\|>"):
        get_tokenizer(f"json:{changed()}#<end>")
    word_level(path, {"a": 0})
    with pytest.raises(InputError, match=r"0 usual end tokens: none .*special: none"):
        get_tokenizer(f"json:{path}")


def test_large_vocabularies_are_of_32_bits(tmp_path):
    for size, dtype in ((65536, np.uint16), (65537, np.uint32)):
        vocabulary = {f"w{i}": i for i in range(size - 1)} | {"</s>": size - 1}
        tokenizer = get_tokenizer(f"json:{word_level(tmp_path / 'x.json', vocabulary)}")
        ids_T = tokenizer.encode(f"w{size - 2} w0".encode())
        assert (ids_T.dtype, ids_T.tolist()) == (dtype, [size - 2, 0])


def test_an_id_beyond_the_vocabulary_is_refused():
    with pytest.raises(InputError, match="gave id 8, beyond its vocabulary of 8"):
        _checked([1, 8, 2], 8, 0)
    assert _checked([], 8, 0).dtype == np.uint16


def test_sentencepiece_loses_nothing_and_keeps_its_controls(sentencepiece_path):
    tokenizer = get_tokenizer(f"sentencepiece:{sentencepiece_path}")
    assert (tokenizer.vocab_size, tokenizer.end_token) == (600, 2)
    assert tokenizer.name.startswith("sentencepiece-600-")
    for text in (*TEXTS, b"a</s>b <s> </s>", EVERY_CHARACTER[::977].decode(errors="ignore").encode()):
        ids_T = tokenizer.encode(text)
        assert ids_T.dtype == np.uint16
        assert not {0, 1, 2} & set(ids_T.tolist())  # unknown, start, end
        assert tokenizer.decode(ids_T) == text
    assert get_tokenizer(f"sentencepiece:{sentencepiece_path}#<s>").end_token == 1


def test_a_sentencepiece_symbol_that_text_yields_is_no_end(sentencepiece_path):
    tokenizer = get_tokenizer(f"sentencepiece:{sentencepiece_path}#<mine>")
    with pytest.raises(InputError, match="gave its end token"):
        tokenizer.encode(b"a <mine> b")


def test_a_sentencepiece_model_without_an_end_asks_for_one(tmp_path):
    path = sentencepiece_model(tmp_path / "x.model", eos_id=-1)
    with pytest.raises(InputError, match=r"0 usual end tokens: none .*special: <s>"):
        get_tokenizer(f"sentencepiece:{path}")


def test_a_store_opens_its_own_copy(bpe_spec, sentencepiece_path):
    for spec in ("bytes", bpe_spec, f"{bpe_spec}#!", f"sentencepiece:{sentencepiece_path}"):
        tokenizer = get_tokenizer(spec)
        copy = stored_tokenizer(tokenizer.name, tokenizer.file, tokenizer.end_token)
        assert copy == tokenizer or (copy.name, copy.end_token) == (tokenizer.name, tokenizer.end_token)
        assert copy.encode(TEXTS[-1]).tolist() == tokenizer.encode(TEXTS[-1]).tolist()
    with pytest.raises(InputError, match="file is not that of bpe-1000-"):
        stored_tokenizer(get_tokenizer(bpe_spec).name, get_tokenizer(bpe_spec).file + b" ", 0)
    with pytest.raises(InputError, match="file is not that of bpe-1000-"):
        stored_tokenizer(get_tokenizer(bpe_spec).name, None, 0)


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("byte", r"unknown tokenizer 'byte' .did you mean bytes\?"),
        ("gpt2", "unknown tokenizer 'gpt2' .valid: bytes, "),
        ("bytes:8", "takes no argument"),
        ("bpe:8192", "bpe:8192 is not trained yet"),
        ("json:no/such.json", r"no/such\.json: cannot be read: No such file"),
        ("json:", "give PATH or PATH#END"),
        ("sentencepiece:no/such.model#</s>", r"no/such\.model: cannot be read"),
        (f"json:{__file__}", "not a tokenizer.json"),
        (f"sentencepiece:{__file__}", "not a SentencePiece model"),
    ],
)
def test_what_is_no_tokenizer_is_refused(spec, fault):
    with pytest.raises(InputError, match=fault):
        get_tokenizer(spec)


@pytest.mark.parametrize("content", ["{}", "[]", "", "\0", '{"model": {}}', '{"model": {"type": "BPE"}}'])
def test_json_that_is_no_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=r"x\.json: not a tokenizer\.json: "):
        get_tokenizer(f"json:{tmp_path}/x.json")


def test_the_libraries_are_imported_when_they_are_needed():
    code = (
        "import sys, scaling.data.sources; from scaling.data.tokenizers import get_tokenizer; get_tokenizer('bytes')\n"
        "assert not {'tokenizers', 'sentencepiece', 'tensorflow_datasets', 'google_crc32c'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=True
    )
