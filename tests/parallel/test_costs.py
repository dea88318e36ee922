"""Costs by hand."""

import math

import pytest

from scaling.errors import InputError
from scaling.parallel.costs import Cost, cost_of
from scaling.parallel.topology import parse_topology
from scaling.runs import DataSpec, ModelShape, OptimizerSpec, Run, ScheduleSpec

RUN = Run(ModelShape(64, 2, 2, 128, 256), DataSpec("s", 64, 2), 8, 1800, OptimizerSpec(1e-3), ScheduleSpec("cosine", 1))


def test_by_hand():
    """1,800 steps of 2 s are an hour, on 256 chips of 155 W at 1.20 dollars; 8 chips of 2 devices count as chips."""
    assert cost_of(RUN, parse_topology("v5e:16x16"), 2.0) == Cost(
        1.0, 256.0, pytest.approx(39.68), pytest.approx(307.2)
    )
    assert cost_of(RUN, parse_topology("tpu7x:2x2x2"), 2.0).chip_hours == 8
    assert cost_of(RUN, parse_topology("4xv5e:16x16"), 2.0).chip_hours == 1024


def test_prices_and_powers_are_settings():
    cost = cost_of(RUN, parse_topology("h100:8"), 1.0, price=2.0, watts=1000)
    assert cost == Cost(0.5, 4.0, 4.0, 8.0)
    assert cost_of(RUN, parse_topology("h100:8"), 1.0, price=0, watts=0) == Cost(0.5, 4.0, 0.0, 0.0)


@pytest.mark.parametrize("setting", ["price", "watts"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_negative_settings_and_no_numbers_are_refused(setting, value):
    with pytest.raises(InputError, match=f"of {value} .* is negative or not finite"):
        cost_of(RUN, parse_topology("h100:8"), 1.0, **{setting: value})
