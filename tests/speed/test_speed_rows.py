"""Rows of a benchmark: which way a ratio goes, medians, and files that anyone may have written."""

import dataclasses
import json

import pytest

from scaling.errors import InputError
from scaling.speed.rows import Row, alternate, row_from_dict, row_of, row_to_dict

TIMES = ((10.0, 20.0), (11.0, 20.0), (400.0, 800.0), (10.0, 30.0), (10.0, 5.0))


def test_the_ratio_of_times_is_how_often_ours_fits_into_the_peers():
    assert Row("step", "ms", 100.0, 200.0, "").ratio == 2.0


def test_the_ratio_of_rates_is_how_often_the_peers_fits_into_ours():
    assert Row("data", "tokens/s", 100.0, 200.0, "").ratio == 0.5


def test_the_ratio_is_the_median_over_the_turns():
    """The third turn, in which the whole machine was slow, has the ratio of the others."""
    row = row_of("step", "ms", TIMES, "")
    assert (row.ours, row.peer, row.ratio) == (10.0, 20.0, 2.0)
    assert row.spread == (0.5, 3.0)


def test_without_a_peer_there_is_no_ratio():
    row = row_of("step", "ms", ((3.0, None), (1.0, None), (2.0, None)), "")
    assert (row.ours, row.peer, row.ratio, row.spread) == (2.0, None, None, None)
    assert row_from_dict(row_to_dict(row)) == row


def test_turns_alternate_after_one_warm_up_each():
    calls = []
    samples = alternate(lambda: calls.append("o") or 1.0 * len(calls), lambda: calls.append("p") or 2.0, 4)
    assert "".join(calls) == "op" + "op" + "po" + "op" + "po"
    assert samples == ((3.0, 2.0), (6.0, 2.0), (7.0, 2.0), (10.0, 2.0))


@pytest.mark.parametrize("row", [row_of("step d", "ms", TIMES, "what", "peer"), Row("m", "GiB", 1.5, 2.0, "", "plan")])
def test_a_row_goes_through_json_and_comes_back(row):
    values = json.loads(json.dumps(row_to_dict(row)))
    assert values["ratio"] == row.ratio
    assert row_from_dict(values, "f.json") == row


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"unit": "mss"}, "did you mean ms?"),
        ({"ours": 0.0}, "not positive"),
        ({"ours": "1"}, "row.ours='1' is not of type float"),
        ({"peer": None}, "a peer in some samples, and not in all"),
        ({"samples": [[1.0]]}, "has not 2 items"),
        ({"samples": [[1e-300, 1e300]], "ratio": 1.0}, "a ratio of inf"),
        ({"ratio": 1.9}, "ratio=1.9, and its samples give 2.0"),
        ({"ratio": True}, "ratio=True, and its samples give 2.0"),
        ({"name": "a\x1b[2J"}, "cannot name a row"),
        ({"speed": 1}, "unknown key 'speed'"),
    ],
)
def test_a_hostile_row_is_refused_with_its_fault(change, fault):
    values = row_to_dict(row_of("step", "ms", TIMES, "")) | change
    with pytest.raises(InputError) as refused:
        row_from_dict(values, "f.json")
    assert fault in str(refused.value)
    assert "f.json" in str(refused.value)


def test_what_is_no_row_is_refused():
    with pytest.raises(InputError, match="expected the mapping of a row"):
        row_from_dict([1], "f.json")


def test_a_missing_field_is_named():
    values = row_to_dict(Row("step", "ms", 1.0, 1.0, ""))
    del values["ours"]
    with pytest.raises(InputError, match="missing ours"):
        row_from_dict(values, "f.json")


def test_a_row_is_a_value():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Row("step", "ms", 1.0, 1.0, "").ours = 2.0
