"""A run on several texts: mixtures trained on, further sets evaluated on, and parameters to start from."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from scaling.data.batches import batch, eval_windows
from scaling.data.token_store import build_store
from scaling.errors import InputError
from scaling.files import read_json
from scaling.models.parameter_files import write_params
from scaling.models.transformer import Transformer, init_params
from scaling.parallel.mesh import make_mesh
from scaling.runs import Component, EvalSet, Placement
from scaling.training.loop import train
from scaling.training.records import read_lines
from scaling.training.step import make_program

PLAIN = Placement()


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another text: capitals and digits in random order."""
    text, rng = tmp_path_factory.mktemp("other"), np.random.default_rng(0)
    for i in range(40):
        (text / f"{i:02}.txt").write_bytes(bytes(rng.integers(65, 91, 400, dtype=np.uint8)))
    return build_store(f"files:{text}/*.txt", "bytes", 0.3, tmp_path_factory.mktemp("stores") / "other")


@pytest.fixture(scope="module")
def both(stores, other):
    return {**stores, other.content_id: other}


@pytest.fixture(scope="module")
def mixed(run, store, other):
    data = dataclasses.replace(
        run.data,
        mixture=(Component(store.content_id, 0.75), Component(other.content_id, 0.25)),
        validation=(EvalSet("capitals", other.content_id),),
    )
    return dataclasses.replace(run, data=data)


@pytest.fixture(scope="module")
def finished(mixed, both, tmp_path_factory):
    directory = tmp_path_factory.mktemp("mixed") / "run"
    train(mixed, PLAIN, both, directory)
    return directory


def test_each_evaluation_set_is_in_metrics_and_result(mixed, both, other, finished):
    result = read_json(finished / "result.json")
    lines = [line["eval"] for line in read_lines(finished / "metrics.jsonl") if "eval" in line]
    assert all(list(line) == ["validation", "capitals"] for line in lines)
    for name in ("validation", "capitals"):
        last = lines[-1][name]
        assert {**last, "bits_per_byte": result["losses"][name]["bits_per_byte"]} == result["losses"][name]
    assert result["loss"] == result["losses"]["validation"]["loss"]
    split = other.splits["validation"]
    bits = result["losses"]["capitals"]["loss"] / math.log(2) * split.tokens / split.bytes
    assert result["losses"]["capitals"]["bits_per_byte"] == pytest.approx(bits)


def test_the_mixture_is_what_it_was_trained_on(mixed, both, finished, tmp_path, run):
    """The first training loss is of the mixture's first batch; and training on it helps on the other text."""
    program = make_program(mixed, PLAIN, make_mesh(PLAIN))
    params = program.init(jax.random.key(mixed.seed)).params
    first = np.mean(program.window_losses(params, batch(both, mixed.data, mixed.batch_size, 0)))
    assert read_lines(finished / "metrics.jsonl")[0]["loss"] == pytest.approx(float(first), rel=1e-6)
    plain = dataclasses.replace(run, data=dataclasses.replace(mixed.data, mixture=()))
    alone = train(plain, PLAIN, both, tmp_path / "alone")
    together = read_json(finished / "result.json")
    assert together["losses"]["capitals"]["loss"] < alone["losses"]["capitals"]["loss"] - 0.5
    assert together["unique_tokens"] <= together["D"]


def test_stores_of_another_tokenizer_are_refused(mixed, both, other, tmp_path):
    strange = {**both, other.content_id: dataclasses.replace(other, tokenizer="bpe-256-x")}
    with pytest.raises(InputError, match=r"its tokenizer is bpe-256-x, that of .* is bytes \(all texts of a run need"):
        train(mixed, PLAIN, strange, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.fixture(scope="module")
def parameters(run, tmp_path_factory):
    """Parameters in a directory, with their tree: a start of their own seed."""
    params = jax.device_get(init_params(Transformer(run.model), jax.random.key(77)))
    params = jax.tree.map(lambda leaf: leaf.value, params, is_leaf=lambda x: hasattr(x, "value"))
    directory = tmp_path_factory.mktemp("start") / "params"
    return directory, write_params(directory, run.model, params, "a test"), params


def test_a_run_starts_from_given_parameters(run, stores, parameters, tmp_path):
    directory, content_id, params = parameters
    begun = dataclasses.replace(run, start=content_id)
    train(begun, PLAIN, stores, tmp_path / "a", start=directory)
    program = make_program(begun, PLAIN, make_mesh(PLAIN))
    first = np.mean(program.window_losses(params, batch(stores, run.data, run.batch_size, 0)))
    assert read_lines(tmp_path / "a" / "metrics.jsonl")[0]["loss"] == pytest.approx(float(first), rel=1e-6)


def test_the_same_start_on_a_mesh_is_the_same_run(run, stores, parameters, tmp_path):
    directory, content_id, _ = parameters
    begun = dataclasses.replace(run, start=content_id, steps=4)
    one = train(begun, PLAIN, stores, tmp_path / "a", start=directory)
    many = train(begun, Placement(data=2, fsdp=2, tensor=2), stores, tmp_path / "b", start=directory)
    assert many["loss"] == pytest.approx(one["loss"], rel=1e-5)  # of sums in another order, fp32


def test_a_start_that_does_not_fit_is_refused(run, stores, parameters, tmp_path):
    directory, content_id, _ = parameters
    begun = dataclasses.replace(run, start=content_id)
    with pytest.raises(InputError, match=rf"starts from parameters {content_id}, and none was given"):
        train(begun, PLAIN, stores, tmp_path / "a")
    with pytest.raises(InputError, match="starts from parameters None"):
        train(run, PLAIN, stores, tmp_path / "a", start=directory)
    with pytest.raises(InputError, match="0123456789abcdef"):
        train(dataclasses.replace(run, start="0123456789abcdef"), PLAIN, stores, tmp_path / "a", start=directory)
    wider = dataclasses.replace(begun, model=dataclasses.replace(run.model, d_ff=64))
    with pytest.raises(InputError):
        train(wider, PLAIN, stores, tmp_path / "a", start=directory)
    assert not (tmp_path / "a").exists()


def test_eval_windows_of_a_mixture_are_of_the_main_text(mixed, both, stores, run):
    assert np.array_equal(eval_windows(both, mixed.data)["validation"], eval_windows(stores, run.data)["validation"])
