"""Files that anyone may have written: each reader gives a value, or refuses in one error that names the file."""

import dataclasses
import random
import resource

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import hostile
from benchmarks.hostile_readers import readers

EXAMPLES = 200
SLOWEST = (
    5.0  # CPU seconds of one file; the slowest seen takes half a second, a number that is counted to takes for ever
)
MOST_MEMORY = 1.5  # GiB over all; .7 seen, most of it the libraries'
NAMES = (
    *("run.json", "next_run.json", "placement.json", "claims/claim.json", "failure.json", "page of a checkpoint"),
    *("metrics.jsonl", "plan.json", "rule.json", "sweep.json"),
    *("config (flags)", "flags", "results.csv", "curves.csv", "chart.csv"),
    *("tokenizer.json", "tokenizer.model", "store.json", "tokenizer of a store", "tokens of a store", "params.json"),
    *("params.safetensors", "config.json", "model.safetensors.index.json"),
)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return {reader.name: reader for reader in readers(tmp_path_factory.mktemp("hostile"))}


def test_every_reader_is_tried(known):
    assert tuple(known) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_spoilt_file_is_read_or_refused(known, name):
    outcomes, most_before = set(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def try_one(rng):
        tried = hostile.attempt(known[name], hostile.spoilt(known[name].valid, known[name].kind, rng))
        assert not tried.fault, tried.fault
        assert tried.seconds < SLOWEST
        outcomes.add(tried.outcome)

    try_one()
    assert "refused" in outcomes or name == "page of a checkpoint"  # which is passed over for the one before it
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most_before < MOST_MEMORY * 2**20


def test_what_is_refused_in_no_order_would_be_seen(known):
    """The check itself: an exception of Python, a refusal that names no file, and one that is too long are faults."""
    reader = known["run.json"]

    def broken(error):
        def read(path):
            raise error

        return hostile.attempt(dataclasses.replace(reader, read=read), b"{}")

    assert broken(KeyError("x")).fault == "KeyError: 'x'"
    assert broken(RecursionError("deep")).outcome == "broken"
    assert "does not name" in broken(hostile.ScalingError("something is wrong")).fault
    assert "characters" in broken(hostile.ScalingError(f"{reader.path}: {'x' * 10_000}")).fault
    assert not broken(hostile.ScalingError(f"{reader.path}: no")).fault
    assert reader.path.read_bytes() == reader.valid


def test_the_same_seed_spoils_alike(known):
    valid, kind = known["sweep.json"].valid, known["sweep.json"].kind
    first, second = ([hostile.spoilt(valid, kind, random.Random(k)) for k in range(50)] for _ in range(2))
    assert first == second
    assert len(set(first)) > 40
    assert valid not in first or first.count(valid) < 5
