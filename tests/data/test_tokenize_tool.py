import os
import re
import subprocess
import sys

from scaling.data.token_store import open_store


def tokenize(*flags):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tools.tokenize", *flags]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_builds_a_store_and_prints_what_is_in_it(source, tmp_path, store):
    out = tmp_path / "store"
    result = tokenize(f"--source={source}", "--tokenizer=bytes", f"--out={out}", "--validation_fraction=0.3")
    assert result.returncode == 0, result.stderr
    built = open_store(out, verify=True)
    assert built.content_id == store.content_id
    split = built.splits["train"]
    assert f"train: {split.documents:,} documents, {split.tokens:,} tokens" in result.stdout
    assert f"{split.bytes_per_token:.4f} bytes a token" in result.stdout
    assert f"content id: {store.content_id}" in result.stdout
    assert re.search(r"left out: 0 empty, 0 duplicate, 0 filtered\n", result.stdout)
    assert re.search(r"seconds: [\d.]+; [\d,]+ tokens/s a core", result.stdout)


def test_bad_input_is_one_line_and_exit_code_2(source, tmp_path, store):
    for flags, fault in (
        ([f"--source={source}", f"--out={store.path}"], "exists already"),
        (["--source=file:x", f"--out={tmp_path}/x"], "did you mean files?"),
        ([f"--source=files:{tmp_path}/none", f"--out={tmp_path}/x"], "no file matches"),
        (["--tokenizer=byte", f"--out={tmp_path}/x"], "did you mean bytes?"),
        ([f"--source={source}"], "out"),
        ([f"--source={source}", f"--out={tmp_path}/x", "--processes=0"], "processes=0 is below 1"),
    ):
        result = tokenize(*flags)
        assert result.returncode == 2, result.stderr
        (line,) = result.stderr.splitlines()
        assert fault in line
    assert not list(tmp_path.iterdir())


def test_help_says_what_can_be_read_and_written():
    said = tokenize("--help").stdout
    for word in ("files:", "tfds:", "synthetic:", "bpe:", "sentencepiece:", "gs://", "--processes"):
        assert word in said
