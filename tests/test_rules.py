"""The learning-rate rule as a value and as a file."""

import dataclasses
import json
import math

import pytest

from scaling.errors import InputError
from scaling.rules import LearningRateRule, read_rule, write_rule

RULE = LearningRateRule(
    base="small",
    a=math.log(8.0),
    b=-0.5,
    c=0.25,
    N_range=(1e4, 1e6),
    B_range=(1e3, 4e3),
    D_range=(2e5, 2e7),
    sizes=3,
    optima=6,
    residual_sd=0.1,
    covariance=((0.04, 0.0, 0.0), (0.0, 0.01, 0.0), (0.0, 0.0, 0.0)),
    t=2.0,
    penalty=0.02,
    source="ab" * 32,
    notes=("Left out, edge: N 3M.",),
)
ONE_BATCH = dataclasses.replace(RULE, c=0.0, B_range=None, covariance=None, t=None, residual_sd=None)


def test_the_rate_is_the_power_law():
    assert math.isclose(RULE.peak_lr(1e4, 1e4), 8 * 0.01 * 10)
    assert RULE.formula() == "peak_lr = 8 N^-0.500 B^0.250"
    assert ONE_BATCH.peak_lr(1e4, 123.0) == ONE_BATCH.peak_lr(1e4, 456.0)


def test_the_interval_is_t_times_the_error_of_the_line():
    N = math.exp(3.0)
    half = 2.0 * math.sqrt(0.04 + 9 * 0.01)
    low, high = RULE.interval(N, 2e3)
    assert math.isclose(low, RULE.peak_lr(N, 2e3) * math.exp(-half))
    assert math.isclose(high, RULE.peak_lr(N, 2e3) * math.exp(half))
    assert ONE_BATCH.interval(N, 2e3) is None


def test_coefficients_without_variance_have_no_interval():
    found = RULE.coefficients()
    assert found["b"] == {"value": -0.5, "ci": [-0.7, -0.3], "level": 0.9}
    assert found["c"]["ci"] is None
    assert ONE_BATCH.coefficients()["b"]["ci"] is None


@pytest.mark.parametrize(
    ("N", "B", "factor"),
    [(1e5, 2e3, 1), (1e4, 4e3, 1), (4e6, 2e3, 4), (1e3, 2e3, 10), (1e5, 500, 2), (2e6, 40e3, 10)],
)
def test_extrapolation_is_the_larger_factor_outside(N, B, factor):
    assert math.isclose(RULE.extrapolation(N, B), factor)


def test_an_unknown_range_of_batches_cannot_be_left():
    assert ONE_BATCH.extrapolation(1e5, 1e9) == 1


@pytest.mark.parametrize("rule", [RULE, ONE_BATCH])
def test_a_rule_survives_its_file(tmp_path, rule):
    write_rule(rule, tmp_path / "rule.json")
    assert read_rule(tmp_path / "rule.json") == rule


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2 of a rule; this version reads 1"),
        ({"slope": 1.0}, "unknown key 'slope'"),
        ({"b": "steep"}, "rule.b='steep' is not of type float"),
        ({"N_range": [1e6, 1e4]}, "is not a range of positive numbers"),
        ({"covariance": [[1.0]]}, "not three of three"),
        ({"t": None}, "covariance and t come together"),
        ({"B_range": None}, "without a range of batches"),
    ],
)
def test_what_is_no_rule_is_refused_by_name(tmp_path, change, message):
    path = tmp_path / "rule.json"
    write_rule(RULE, path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=r"rule\.json: ") as refused:
        read_rule(path)
    assert message in str(refused.value)


def test_other_files_are_no_rules(tmp_path):
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InputError, match="not a learning-rate rule"):
        read_rule(tmp_path / "list.json")
    with pytest.raises(InputError, match="no such file"):
        read_rule(tmp_path / "absent.json")


@pytest.mark.parametrize(("N", "B", "message"), [(0.0, 1.0, "N=0.0"), (1e5, math.nan, "depends on the batch")])
def test_impossible_sizes_and_batches_are_refused(N, B, message):
    with pytest.raises(InputError, match=message):
        RULE.peak_lr(N, B)
