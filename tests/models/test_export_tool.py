"""tools.export and tools.import_hf, as a user runs them."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from scaling.data.token_store import build_store, store_tokenizer
from scaling.errors import InputError
from scaling.files import read_json, write_json
from scaling.models.huggingface import from_hf, read_checkpoint
from scaling.models.parameter_files import read_params, start_params
from scaling.parallel.mesh import make_mesh
from scaling.runs import DataSpec, ModelShape, OptimizerSpec, Placement, Run, ScheduleSpec, run_id, run_to_dict
from scaling.specs import to_dict
from scaling.training.checkpoints import Checkpoints
from scaling.training.last_params import last_params
from scaling.training.step import State, make_program

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = pathlib.Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "huggingface"
LLAMA = ModelShape(32, 2, 4, 64, 264, n_kv_heads=2, activation="swiglu")
RUN = Run(LLAMA, DataSpec("0123456789abcdef", 16, 2), 4, 10, OptimizerSpec(1e-3), ScheduleSpec("cosine", 1))


def run_tool(name, *flags):
    """As on a machine with one device. What it says leaves out that an installed CUDA plugin found no driver."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-m", f"tools.{name}", *flags]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    result.stderr = re.sub(r".*(cudart_stub|absl::InitializeLog).*\n", "", result.stderr)
    return result


def saved_run(directory, run, placement, step):
    """The files of a run that has come to a step on a mesh, with random parameters; these, layers stacked."""
    mesh = make_mesh(placement)
    program = make_program(run, placement, mesh)
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda x: jax.device_put(rng.standard_normal(x.shape).astype(x.dtype), x.sharding), program.abstract_state
    )
    directory.mkdir()
    write_json(directory / "run.json", run_to_dict(run))
    write_json(directory / "placement.json", to_dict(placement))
    with Checkpoints(directory / "checkpoints", run_id(run), attempt=1) as checkpoints:
        checkpoints.save(1, jax.tree.map(np.zeros_like, State(*state)), {})
        checkpoints.save(step, state, {})
    return jax.device_get(state.params)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def content_id_of(result):
    assert result.returncode == 0, result.stderr
    return next(line.split()[-1] for line in result.stdout.splitlines() if line.startswith("content id:"))


def test_a_run_is_exported_and_imported(tmp_path):
    """From a mesh of eight, through Hugging Face's layout and directly: the same parameters, the same content id."""
    params = saved_run(tmp_path / "run", RUN, Placement(data=2, fsdp=2, tensor=2), step=7)
    before = sorted(path for path in (tmp_path / "run").rglob("*"))
    result = run_tool("export", f"--run={tmp_path}/run", f"--out={tmp_path}/hf")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "after 7 of 10 steps, as huggingface" in result.stdout
    config, tensors = read_checkpoint(tmp_path / "hf")
    assert config["max_position_embeddings"] == 16
    shape, exported = from_hf(config, tensors)
    assert shape == LLAMA
    assert_same(exported, params)
    direct = run_tool("export", f"--run={tmp_path}/run", f"--out={tmp_path}/direct", "--format=params")
    imported = run_tool("import_hf", f"--checkpoint={tmp_path}/hf", f"--out={tmp_path}/imported")
    assert content_id_of(direct) == content_id_of(imported)
    assert_same(start_params(tmp_path / "imported", LLAMA, content_id_of(direct)), params)
    assert read_json(tmp_path / "imported" / "params.json")["source"] == "huggingface llama hf"
    assert sorted(path for path in (tmp_path / "run").rglob("*")) == before  # a run that goes on is left alone


def test_layers_that_were_not_scanned_are_stacked(tmp_path):
    params = saved_run(tmp_path / "run", RUN, Placement(scan_layers=False), step=3)
    step, stacked = last_params(tmp_path / "run", RUN)
    assert step == 3
    for n in range(2):
        assert_same(jax.tree.map(lambda x, n=n: x[n], stacked["blocks"]), params[f"layers_{n}"])
    assert np.array_equal(stacked["head"], params["head"])


def test_the_stores_tokenizer_comes_along(tmp_path):
    for i in range(30):
        (tmp_path / f"{i:02}.txt").write_text(" ".join(f"{i} times {j} is {i * j}." for j in range(20)))
    store = build_store(f"files:{tmp_path}/*.txt", "bpe:270", 0.3, tmp_path / "store")
    other = build_store(f"files:{tmp_path}/*.txt", "bytes", 0.3, tmp_path / "other")
    data = dataclasses.replace(RUN.data, store=store.content_id)
    run = dataclasses.replace(RUN, data=data, model=dataclasses.replace(LLAMA, vocab_size=store.vocab_size))
    saved_run(tmp_path / "run", run, Placement(), step=3)
    result = run_tool("export", f"--run={tmp_path}/run", f"--out={tmp_path}/hf", f"--store={store.path}")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "hf" / "tokenizer.json").read_bytes() == store_tokenizer(store).file
    assert read_json(tmp_path / "hf" / "config.json")["eos_token_id"] == store.end_token
    result = run_tool("export", f"--run={tmp_path}/run", f"--out={tmp_path}/no", f"--store={other.path}")
    assert result.returncode == 2
    assert "is not a store of d32x2-" in result.stderr
    assert not (tmp_path / "no").exists()
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: its reader is not tried")
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "7 times 8 is 56."
    assert reader.encode(text) == store_tokenizer(store).encode(text.encode()).tolist()


def test_a_checkpoint_is_imported(tmp_path):
    result = run_tool("import_hf", f"--checkpoint={FIXTURES / 'gpt2'}", f"--out={tmp_path}/params")
    shape, params, found = read_params(tmp_path / "params")
    assert content_id_of(result) == found
    expected_shape, expected = from_hf(*read_checkpoint(FIXTURES / "gpt2"))
    assert shape == expected_shape
    assert_same(params, expected)
    assert f"gpt2, {sum(x.size for x in jax.tree.leaves(params)):,} parameters" in result.stdout


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no checkpoints"):
        last_params(tmp_path, RUN)
    (tmp_path / "checkpoints").mkdir()
    write_json(tmp_path / "placement.json", {})
    with pytest.raises(InputError, match="has no checkpoint yet"):
        last_params(tmp_path, RUN)


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    gelu = dataclasses.replace(RUN, model=dataclasses.replace(LLAMA, activation="gelu"))
    (tmp_path / "gelu").mkdir()
    write_json(tmp_path / "gelu" / "run.json", run_to_dict(gelu))
    for tool, flags, fault in (
        ("export", [f"--run={tmp_path}/gelu", f"--out={tmp_path}/out"], "no Hugging Face layout here can say this"),
        ("import_hf", [f"--checkpoint={FIXTURES / 'gpt2'}", f"--out={tmp_path}/gelu"], "exists already"),
    ):
        result = run_tool(tool, *flags)
        assert result.returncode == 2, result.stderr
        (line,) = result.stderr.splitlines()
        assert fault in line
    assert [path.name for path in tmp_path.iterdir()] == ["gelu"]
