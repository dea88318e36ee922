"""Files of a benchmark, and the comparison of two."""

import dataclasses
import json

import pytest

from scaling.errors import InputError
from scaling.files import read_json, write_json
from scaling.speed.records import (
    Machine,
    Record,
    check_machine,
    compare,
    read_record,
    table,
    this_machine,
    versions,
    write_record,
)
from scaling.speed.rows import Row

MACHINE = Machine("Some CPU", 2, 24.0, "cpu", 1)
VERSIONS = {"python": "3.11.7", "jax": "0.10.2"}


def record(*rows, **fields):
    return Record(MACHINE, fields.get("versions", VERSIONS), "2026-11-22", rows, {})


def step(ratio, name="step"):
    return Row(name, "ms", 100.0, 100.0 * ratio, "")


def test_a_record_is_written_and_read_again(tmp_path):
    written = dataclasses.replace(record(step(1.25), Row("alone", "s", 1.0, None, "")), left_out={"3B": "too large"})
    write_record(tmp_path / "speed.json", written)
    assert read_record(tmp_path / "speed.json") == written
    values = json.loads((tmp_path / "speed.json").read_text())
    assert values.keys() == {"machine", "versions", "date", "rows", "left_out"}
    assert [row["ratio"] for row in values["rows"]] == [1.25, None]


@pytest.mark.parametrize(("fall", "fails"), [(0.11, True), (0.09, False), (-0.5, False)])
def test_a_ratio_may_fall_by_ten_per_cent(fall, fails):
    found = compare(record(step(1.2), step(1.0, "other")), record(step(1.2 * (1 - fall)), step(1.0, "other")))
    assert bool(found.fallen) is fails
    if fails:
        assert found.fallen == ("step: 1.200x on 2026-11-22, 1.068x now (-11.0%)",)


def test_a_rate_falls_in_the_same_direction():
    old, new = (record(Row("data", "tokens/s", ours, 1.0, "")) for ours in (100.0, 80.0))
    assert len(compare(old, new).fallen) == 1
    assert compare(new, old).fallen == ()


def test_rows_that_only_one_side_has_are_told_and_fail_nothing():
    old = record(step(1.0), step(1.0, "gone"), Row("alone", "ms", 1.0, None, ""))
    new = record(step(1.0), step(0.1, "new"), Row("alone", "ms", 9.0, None, ""))
    found = compare(old, new)
    assert found.fallen == ()
    for line in ("not measured now: gone", "not measured in 2026-11-22: new", "no ratio on both sides: alone"):
        assert line in found.lines


def test_other_versions_are_told():
    new = record(step(1.0), versions={"python": "3.11.7", "jax": "0.12.0", "torch": "2.13.0"})
    lines = compare(record(step(1.0)), new).lines
    assert lines[:2] == ("jax was 0.10.2 and is 0.12.0", "torch was not there and is 2.13.0")


def test_a_comparison_of_nothing_is_refused():
    for other in (step(1.0, "other"), Row("step", "ms", 1.0, None, "")):
        with pytest.raises(InputError, match="none of its rows with a ratio was measured now"):
            compare(record(step(1.0)), record(other))


@pytest.mark.parametrize("change", [{"cpu": "Other"}, {"cores": 4}, {"device": "TPU v5e"}, {"devices": 8}])
def test_a_record_of_another_machine_is_refused(change):
    with pytest.raises(InputError, match=r"ratios of another machine do not compare \(measure what you compare with"):
        check_machine(record(step(1.0)), dataclasses.replace(MACHINE, **change), "speed.json")


def test_another_share_of_the_memory_is_the_same_machine():
    check_machine(record(step(1.0)), dataclasses.replace(MACHINE, memory_gib=23.5), "speed.json")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"rows": 3}, "is no benchmark's file"),
        ({"rows": [3]}, "row 0: expected the mapping of a row"),
        ({"rows": [{"name": "a"}]}, "row 0: missing unit"),
        ({"date": "yesterday"}, "date='yesterday' is none"),
        ({"date": 3}, "date"),
        ({"machine": {"cpu": "x"}}, "missing cores"),
        ({"machine": []}, "expected a mapping for Machine"),
        ({"versions": {"jax": 1}}, "record.versions.jax=1 is not of type str"),
        ({"versions": {"jax": "\x1b[2J"}}, "is not readable"),
        ({"left_out": None}, "left_out"),
        ({"rowz": []}, "did you mean rows?"),
    ],
)
def test_a_hostile_file_is_refused_with_its_fault(tmp_path, change, fault):
    path = tmp_path / "speed.json"
    write_record(path, record(step(1.0)))
    write_json(path, read_json(path) | change)
    with pytest.raises(InputError) as refused:
        read_record(path)
    assert fault in str(refused.value)
    assert "speed.json" in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"rows": [{"ours": NaN}]}', "null", "[" * 100])
def test_what_is_no_record_is_refused(tmp_path, text):
    (tmp_path / "speed.json").write_text(text)
    with pytest.raises(InputError, match=r"speed\.json"):
        read_record(tmp_path / "speed.json")


def test_two_rows_of_one_name_are_refused(tmp_path):
    with pytest.raises(InputError, match="two rows of one name"):
        record(step(1.0), step(2.0))


def test_this_machine_and_its_versions_are_known():
    here = this_machine("cpu", 8)
    assert here.cpu
    assert here.cores >= 1
    assert here.memory_gib > 0.5
    assert {"python", "jax", "jaxlib", "flax", "optax"} <= versions().keys()


def test_the_table_shows_each_row_under_its_head():
    head, first, second = table([step(1.25), Row("alone", "tokens/s", 123456.0, None, "")])
    assert head.split() == ["row", "unit", "ours", "peer", "ratio", "of", "turns"]
    assert first.split() == ["step", "ms", "100", "125", "1.25x"]
    assert second.split() == ["alone", "tokens/s", "123,456"]
