"""Builds a token store from text.

python -m tools.tokenize --source=files:'text/**/*.txt' --out=stores/mine
"""

import time

from absl import flags

from scaling import command
from scaling.data.token_store import build_store

SOURCE = flags.DEFINE_string("source", "stdlib", "stdlib, files:GLOB, or tfds:NAME[/CONFIG][:VERSION].")
TOKENIZER = flags.DEFINE_string("tokenizer", "bytes", "Name of the tokenizer.")
OUT = flags.DEFINE_string("out", None, "Directory of the new store; it must not exist.", required=True)
VALIDATION_FRACTION = flags.DEFINE_float("validation_fraction", 0.05, "Expected share of documents to hold out.")


def main(argv: list[str]) -> None:
    del argv
    start = time.perf_counter()
    store = build_store(SOURCE.value, TOKENIZER.value, VALIDATION_FRACTION.value, OUT.value)
    for name, split in store.splits.items():
        print(
            f"{name}: {split.documents:,} documents, {split.tokens:,} tokens, {split.bytes_per_token:.4f} bytes a token"
        )
    print(f"left out: {', '.join(f'{count} {reason}' for reason, count in store.left_out.items())}")
    print(f"content id: {store.content_id}")
    print(f"seconds: {time.perf_counter() - start:.1f}")


if __name__ == "__main__":
    command.launch(main)
