"""What a run has cost, as result.json has it: None where it is not known, and apart from all that is compared."""

import json

import pytest

from scaling.runs import Placement
from scaling.training.result import make_result

SECONDS = {"compile": 2.0, "train": 10.0, "evaluate": 1.0, "save": 0.5}
LOSSES = {"validation": {"loss": 2.5, "stderr": 0.01}}


@pytest.fixture
def result(run, stores):
    def made(spent, attempt=1, seconds=SECONDS):
        return make_result(run, Placement(), stores, LOSSES, seconds, spent, attempt)

    return made


def test_what_was_lost_is_what_is_in_none_of_the_parts(run, result):
    """Two attempts of 9 s each, with a kill that undid 4.5 s of the 18 s; and steps taken again, in tokens."""
    timing = result({"wall_seconds": 18.0, "tokens": 1.25 * run.tokens, "joules": 3.6e6}, attempt=2)["timing"]
    assert (timing["wall_seconds"], timing["lost_seconds"], timing["attempt"]) == (18.0, 18.0 - 13.5, 2)
    assert timing["tokens_trained"] == 1.25 * run.tokens
    assert (timing["energy_kwh"], timing["energy_kwh_est"]) == (1.0, None)
    assert result({"wall_seconds": 18.0, "joules_est": 1.8e6})["timing"]["energy_kwh_est"] == 0.5


def test_clocks_that_differ_lose_no_less_than_nothing(result):
    assert result({"wall_seconds": 13.4999})["timing"]["lost_seconds"] == 0.0


def test_what_was_not_counted_is_none(result):
    timing = result({})["timing"]
    names = ("wall_seconds", "lost_seconds", "tokens_trained", "energy_kwh", "energy_kwh_est")
    assert {name: timing[name] for name in names} == dict.fromkeys(names)


def test_kills_show_in_the_timings_alone(result):
    """Bit for bit."""
    calm, killed = result({"wall_seconds": 14.0}), result({"wall_seconds": 99.0}, 7, {**SECONDS, "train": 12.0})
    assert calm.pop("timing") != killed.pop("timing")
    assert json.dumps(calm) == json.dumps(killed)
