"""Byte-level BPE, trained on a source.

The algorithm is that of Sennrich et al. 2016 (arXiv:1508.07909) on bytes, after GPT-2's division into words (Radford et
al. 2019, section 2.2), as the library `tokenizers` has it. Any UTF-8 text is encoded, and comes back byte for byte.
"""

import hashlib
import os
from collections.abc import Iterator

from scaling.data.parts import Source
from scaling.errors import InputError
from scaling.files import Path, atomic_path

END = "<|endoftext|>"
TRAINING_CHARACTERS = 100_000_000  # at most; the merges of so many words hardly change with more
TRAINING_PARTS = 64  # of the source, spread evenly over it, each with an equal share of these characters
BYTES = 256


def train_bpe(source: Source, vocab_size: int, path: Path) -> str:
    """Trains on at most 1e8 characters of the source and writes a tokenizer.json. Returns its spec, `json:PATH`.

    Only documents of which the hash of the content lies in its upper half are read: these are on the training side of
    every token store whose validation_fraction is at most 0.5. The same text gives the same file, byte for byte.
    vocab_size: the 256 bytes, the end token, and merges.
    Raises InputError for a vocabulary that the text does not fill, and for text that is not UTF-8.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size <= BYTES + 1:
        raise InputError(f"a vocabulary of {vocab_size}", "bpe", f"{BYTES} bytes and the end token come before merges")
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(training_text(source), trainer)
    one_thread()
    if library.get_vocab_size() < vocab_size:
        raise InputError(
            f"a vocabulary of {vocab_size}, but the text gives only {library.get_vocab_size()} tokens",
            "bpe",
            "give more text or a smaller vocabulary",
        )
    with atomic_path(path) as temporary:
        library.save(str(temporary))
    return f"json:{path}"


def training_text(source: Source) -> Iterator[str]:
    """The documents that a tokenizer is trained on. Raises InputError for text that is not UTF-8."""
    n = len(source.parts)
    chosen = [source.parts[i] for i in sorted({k * n // TRAINING_PARTS for k in range(TRAINING_PARTS)})] if n else []
    for part in chosen:
        left = TRAINING_CHARACTERS // len(chosen)
        for name, text in part.read():
            if text is None or hashlib.sha256(text).digest()[0] < 128:  # its upper half: see train_bpe
                continue
            try:
                characters = text.decode("utf-8")[:left]
            except UnicodeDecodeError as error:
                raise InputError(f"not UTF-8: {error}", f"document {name}", "convert it or leave it out") from None
            yield characters
            left -= len(characters)
            if not left:
                break


def one_thread() -> None:
    """Keeps the library to one thread from now on: a store is built by many processes, each of which encodes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
