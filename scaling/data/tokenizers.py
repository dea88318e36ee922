"""From text to token ids: a tokenizer is a string, of which get_tokenizer makes functions.

    bytes                          UTF-8 itself: 255 byte values that occur, and the end token
    json:PATH[#END]                a tokenizer.json of the library `tokenizers`
    sentencepiece:PATH[#END]       a SentencePiece model
    bpe:VOCAB_SIZE                 byte-level BPE, trained on the source: `resolve_tokenizer` makes json:PATH of it

END is the text of the token that stands after each document. Where it is left out, the file has to have exactly one of
END_TOKENS, or SentencePiece's own end. Text never yields the end token or another control token: `<|endoftext|>` in a
document is encoded as the characters it is. A new kind of tokenizer is one more entry in TOKENIZERS.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from scaling.data.bpe import one_thread, train_bpe
from scaling.data.parts import Source
from scaling.errors import InputError, nearest
from scaling.files import Path, parse_json
from scaling.specs import LONG

END_TOKENS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[EOS]")
BPE_SCHEMA = 1  # of what bpe.py does: another one trains again


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A vocabulary, how text becomes ids of it, and how ids become text.

    name: kind, size and hash of its file, "bpe-8192-0123456789ab" say; two tokenizers of one name encode alike.
    vocab_size: above the largest id, unused ids included.
    end_token: stands after each document, and nowhere within one.
    encode: bytes of UTF-8 text -> ids_T, of `token_type`, without the end token. Raises UnicodeDecodeError on other
      bytes, and InputError where the text yields the end token or an id beyond the vocabulary.
    decode: ids_T -> bytes; what encoding loses (a normalizer, unknown characters) does not come back.
    file: the tokenizer's own file, whole; None for `bytes`.
    """

    name: str
    vocab_size: int
    end_token: int
    encode: Callable[[bytes], np.ndarray] = dataclasses.field(repr=False)
    decode: Callable[[np.ndarray], bytes] = dataclasses.field(repr=False)
    file: bytes | None = dataclasses.field(default=None, repr=False)


def get_tokenizer(spec: str) -> Tokenizer:
    """The tokenizer of a spec.

    Raises InputError for an unknown kind, a file that is missing or not of the kind, and an end token not known.
    """
    kind, _, argument = spec.partition(":")
    if kind == "bpe":
        raise InputError(f"{spec} is not trained yet", do="resolve_tokenizer trains it on a source")
    if kind not in TOKENIZERS:
        raise InputError(f"unknown tokenizer {spec!r}", do=nearest(kind, TOKENIZERS))
    return TOKENIZERS[kind](argument)


def resolve_tokenizer(spec: str, source: Source, directory: Path) -> str:
    """The spec of a tokenizer that exists: `bpe:V` becomes json:PATH, others stay as they are.

    The file is trained on the source where `directory` does not have it yet. Raises InputError as `train_bpe`.
    """
    kind, _, size = spec.partition(":")
    if kind != "bpe":
        return spec
    if not size.isdecimal():
        raise InputError(f"{spec!r} has no vocabulary size", do="bpe:8192, say")
    key = _hash(json.dumps([BPE_SCHEMA, source.fingerprint, int(size)]).encode())
    path = pathlib.Path(directory) / f"bpe-{int(size)}-{key}.json"
    return f"json:{path}" if path.exists() else train_bpe(source, int(size), path)


def stored_tokenizer(name: str, file: bytes | None, end_token: int) -> Tokenizer:
    """A tokenizer from the copy of its file that a token store keeps.

    Raises InputError if the file is not the one that `name` names.
    """
    if name == "bytes":
        return get_tokenizer("bytes")
    if file is None or not name.endswith(_hash(file)):
        raise InputError(f"the tokenizer's file is not that of {name}", do="build the store again")
    load = _from_sentencepiece if name.startswith("sentencepiece-") else _from_json
    return load(file, end_token, name)


def token_type(vocab_size: int) -> np.dtype:
    """The type of ids: uint16 where it holds them all, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def _bytes(argument: str) -> Tokenizer:
    if argument:
        raise InputError(f"the tokenizer bytes takes no argument, not {argument!r}")
    # Valid UTF-8 holds no byte 0xFF (RFC 3629, section 1), which is therefore free for the end.
    return Tokenizer("bytes", 256, 0xFF, _encode_bytes, _decode_bytes)


def _encode_bytes(text: bytes) -> np.ndarray:
    text.decode("utf-8")
    return np.frombuffer(text, np.uint8).astype(np.uint16)


def _decode_bytes(ids_T: np.ndarray) -> bytes:
    return np.asarray(ids_T).astype(np.uint8).tobytes()


def _json(argument: str) -> Tokenizer:
    path, _, end = argument.partition("#")
    return _from_json(_read(path), end or None, path)


def _from_json(file: bytes, end: str | int | None, where: str) -> Tokenizer:
    """A tokenizer.json. end: the end token's text or id; None: the one of END_TOKENS that it has."""
    values, library = _parsed(file, where)
    vocabulary = library.get_vocab(with_added_tokens=True)
    end_text = _end_text(end, vocabulary, [token["content"] for token in values.get("added_tokens") or []], where)
    end_token = vocabulary[end_text]
    vocab_size = max(vocabulary.values()) + 1
    if dropout := values["model"].get("dropout"):
        raise InputError(f"it leaves out merges at random: dropout={dropout}", where, "set model.dropout to null")
    library.add_special_tokens([end_text])  # where it is an added token but no special one, text would yield it
    library.encode_special_tokens = True  # that is, the characters of their text
    library.no_truncation()
    library.no_padding()
    return Tokenizer(
        name=f"{type(library.model).__name__.lower()}-{vocab_size}-{_hash(file)}",
        vocab_size=vocab_size,
        end_token=end_token,
        encode=functools.partial(_encode_json, library, vocab_size, end_token),
        decode=functools.partial(_decode_json, library),
        file=file,
    )


def _parsed(file: bytes, where: str) -> tuple[dict[str, Any], Any]:
    import tokenizers

    one_thread()
    try:
        values = parse_json(file, where)
        return values, tokenizers.Tokenizer.from_str(file.decode("utf-8"))
    except InputError as error:
        raise InputError(f"not a tokenizer.json: {error.what}", where) from None
    # For a file that is no tokenizer the library raises a plain Exception, or panics, and a panic is no Exception.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"not a tokenizer.json: {str(error)[:LONG]}", where) from None


def _encode_json(library: Any, vocab_size: int, end_token: int, text: bytes) -> np.ndarray:
    # The fast batch, even of one, leaves out the characters' offsets: twice as fast as `encode`.
    (encoding,) = library.encode_batch_fast([text.decode("utf-8")], add_special_tokens=False)
    return _checked(encoding.ids, vocab_size, end_token)


def _decode_json(library: Any, ids_T: np.ndarray) -> bytes:
    return library.decode(np.asarray(ids_T).tolist(), skip_special_tokens=False).encode()


def _sentencepiece(argument: str) -> Tokenizer:
    path, _, end = argument.partition("#")
    return _from_sentencepiece(_read(path), end or None, path)


def _from_sentencepiece(file: bytes, end: str | int | None, where: str) -> Tokenizer:
    """A SentencePiece model. end: the end token's text or id; None: the model's own end."""
    import sentencepiece

    try:
        library = sentencepiece.SentencePieceProcessor(model_proto=file)
    except RuntimeError:
        raise InputError("not a SentencePiece model", where) from None
    vocab_size = library.vocab_size()
    vocabulary = {library.id_to_piece(i): i for i in range(vocab_size)}
    controls = [piece for piece, i in vocabulary.items() if library.is_control(i)]
    own = library.eos_id() if end is None and library.eos_id() >= 0 else end
    end_token = vocabulary[_end_text(own, vocabulary, controls, where)]
    return Tokenizer(
        name=f"sentencepiece-{vocab_size}-{_hash(file)}",
        vocab_size=vocab_size,
        end_token=end_token,
        encode=functools.partial(_encode_sentencepiece, library, vocab_size, end_token),
        decode=functools.partial(_decode_sentencepiece, library),
        file=file,
    )


def _encode_sentencepiece(library: Any, vocab_size: int, end_token: int, text: bytes) -> np.ndarray:
    ids = library.encode(text.decode("utf-8"), out_type=int, add_bos=False, add_eos=False, enable_sampling=False)
    return _checked(ids, vocab_size, end_token)


def _decode_sentencepiece(library: Any, ids_T: np.ndarray) -> bytes:
    return library.decode(np.asarray(ids_T).tolist()).encode()


def _checked(ids: list[int], vocab_size: int, end_token: int) -> np.ndarray:
    ids_T = np.array(ids, np.uint32)
    if len(ids_T) and ids_T.max() >= vocab_size:
        raise InputError(f"the tokenizer gave id {ids_T.max()}, beyond its vocabulary of {vocab_size}")
    if (ids_T == end_token).any():
        raise InputError(f"the tokenizer gave its end token, {end_token}, within a document", do="name another: #END")
    return ids_T.astype(token_type(vocab_size))


def _end_text(end: str | int | None, vocabulary: dict[str, int], special: list[str], where: str) -> str:
    """The text of the end token. Raises InputError for one that is not in the vocabulary, and for none or several."""
    if isinstance(end, int):
        end = next((text for text, i in vocabulary.items() if i == end), f"of id {end}")
    choices = [end] if end is not None else [text for text in END_TOKENS if text in vocabulary]
    if len(choices) == 1 and choices[0] in vocabulary:
        return choices[0]
    fault = f"no token {end}" if end is not None else f"{len(choices)} usual end tokens: {', '.join(choices) or 'none'}"
    raise InputError(fault, where, f"name the end token, {where}#END; special: {', '.join(special) or 'none'}")


def _read(path: str) -> bytes:
    try:
        return pathlib.Path(path).expanduser().read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL byte; RuntimeError: no such user's home
        fault = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot be read: {fault}", path or "tokenizer", "give PATH or PATH#END") from None


def _hash(file: bytes) -> str:
    return hashlib.sha256(file).hexdigest()[:12]


TOKENIZERS: dict[str, Callable[[str], Tokenizer]] = {"bytes": _bytes, "json": _json, "sentencepiece": _sentencepiece}
