"""What a plan costs: hours, chip-hours, energy and money of a run. No JAX.

Prices and powers are those of scaling.parallel.chips, with their sources and what of them is an estimate, unless the
user gives others. Energy is that of the accelerators alone: hosts, network and cooling come on top (Google's data
centres report a power usage effectiveness of 1.1). All follow from estimated step times, and are estimates as these
are.
"""

import dataclasses
import math

from scaling.parallel.topology import Topology
from scaling.runs import Run
from scaling.specs import require


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a run."""

    hours: float  # of the whole topology
    chip_hours: float
    kwh: float
    dollars: float


def cost_of(
    run: Run, topology: Topology, step_seconds: float, price: float | None = None, watts: float | None = None
) -> Cost:
    """The cost of a run's steps on a topology; evaluations, compilation and restarts come on top.

    price: US dollars a chip-hour, watts: of a chip; None: those of the chip. Raises InputError if either is negative or
    not finite.
    """
    price = topology.chip.dollars_an_hour if price is None else price
    watts = topology.chip.watts if watts is None else watts
    require(0 <= price < math.inf, f"a price of {price} dollars a chip-hour is negative or not finite")
    require(0 <= watts < math.inf, f"a power of {watts} W is negative or not finite")
    hours = run.steps * step_seconds / 3600
    chip_hours = hours * topology.chips
    return Cost(hours, chip_hours, chip_hours * watts / 1000, chip_hours * price)
