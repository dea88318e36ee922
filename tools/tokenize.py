"""Builds a token store from text, on all cores.

python -m tools.tokenize --source=files:'text/**/*.txt' --tokenizer=bpe:8192 --out=stores/mine
python -m tools.tokenize --source=tfds:c4/en:3.1.0 --tokenizer=json:gpt2.json --out=gs://bucket/stores/c4

When it is stopped or killed, the same command goes on where it was. Meanwhile it needs twice the tokens' size on disk
(2 bytes a token, 4 with more than 65,536 kinds), beside --out; for a URL once their size, under SCALING_STORES.
"""

import time

from absl import flags

from scaling import command
from scaling.data.token_store import build_store

SOURCE = flags.DEFINE_string(
    "source",
    "stdlib",
    "stdlib, files:GLOB, tfds:NAME[/CONFIG][:VERSION] or synthetic:KEY=VALUE,...; per-document filters follow after |, "
    "as in 'files:*.txt | min_bytes:100'.",
)
TOKENIZER = flags.DEFINE_string(
    "tokenizer",
    "bytes",
    "bytes; bpe:VOCAB_SIZE, trained on the source; json:PATH[#END] (a tokenizer.json); sentencepiece:PATH[#END].",
)
OUT = flags.DEFINE_string(
    "out",
    None,
    "The new store: a directory, or gs://BUCKET/PATH, s3://BUCKET/PATH; it must not exist.",
    required=True,
)
VALIDATION_FRACTION = flags.DEFINE_float("validation_fraction", 0.05, "Expected share of documents to hold out.")
PROCESSES = flags.DEFINE_integer("processes", None, "Processes, one a core if not given. The store is the same.")


def main(argv: list[str]) -> None:
    del argv
    start = time.perf_counter()
    store = build_store(SOURCE.value, TOKENIZER.value, VALIDATION_FRACTION.value, OUT.value, PROCESSES.value)
    for name, split in store.splits.items():
        print(
            f"{name}: {split.documents:,} documents, {split.tokens:,} tokens, {split.bytes_per_token:.4f} bytes a token"
        )
    print(f"left out: {', '.join(f'{count} {reason}' for reason, count in store.left_out.items())}")
    print(f"content id: {store.content_id}")
    tokens = sum(split.tokens for split in store.splits.values())
    print(
        f"seconds: {time.perf_counter() - start:.1f}; {tokens / store.core_seconds:,.0f} tokens/s a core, by CPU time"
    )


if __name__ == "__main__":
    command.launch(main)
