"""What is kept of compilations is found again wherever it is moved to, and damage to it costs time alone."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from scaling import command

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import collections, json, sys
import jax, jax.numpy as jnp
from scaling.training.compilations import keep_compilations
keep_compilations(sys.argv[1])
found = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: found.update([event.rpartition("/")[2]]))
value = jax.jit(lambda x: jnp.tanh(x @ x.T).sum())(jnp.arange(12.0).reshape(3, 4))
print(json.dumps([found["cache_hits"], found["cache_misses"], float(value).hex()]))
"""


def compiled(kept):
    """(hits, misses, value, warnings) of a process that compiles a small program and keeps it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(kept)], env=environment, capture_output=True, text=True, check=True
    )
    return *json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    directory = tmp_path_factory.mktemp("kept")
    hits, misses, value, _ = compiled(directory)
    assert hits == 0
    assert misses > 0
    return directory, misses, value


def test_it_is_found_again_at_another_place(kept, tmp_path):
    directory, programs, value = kept
    shutil.copytree(directory, tmp_path / "moved")
    for place in (directory, tmp_path / "moved"):
        assert compiled(place)[:3] == (programs, 0, value)


def test_a_damaged_entry_is_compiled_again_with_a_warning(kept, tmp_path):
    """Cut short, as by a kill, and with a byte changed in the middle."""
    directory, programs, value = kept
    shutil.copytree(directory, tmp_path / "damaged")
    cut, changed, *_ = sorted((tmp_path / "damaged").glob("*/*-cache"))
    cut.write_bytes(cut.read_bytes()[:100])
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    hits, _, found, warnings = compiled(tmp_path / "damaged")
    assert (hits, found) == (programs - 2, value)
    assert warnings.count("Error reading persistent compilation cache entry") == 2


def test_two_may_write_at_once(kept, tmp_path):
    _, programs, value = kept
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(compiled, [tmp_path, tmp_path]))
    assert {each[2] for each in found} == {value}
    assert compiled(tmp_path)[:3] == (programs, 0, value)


def test_the_place_is_the_flag_or_the_users_own_or_the_workdir(monkeypatch, tmp_path):
    monkeypatch.delenv("SCALING_COMPILATIONS", raising=False)
    assert command.compilations(None, tmp_path) == tmp_path / "compilations"
    monkeypatch.setenv("SCALING_COMPILATIONS", "/kept")
    assert command.compilations(None, tmp_path) == pathlib.Path("/kept")
    assert command.compilations("here", tmp_path) == pathlib.Path("here")
