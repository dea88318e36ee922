"""What a Chinchilla-optimal model costs, by its size and by the hardware: from 74M to 16B on v5e, v5p, v6e and H100.

    python -m benchmarks.size_table --out=compiled_memory.json [--rows=306M@v5e:16x16,...]

Six of Chinchilla's shapes, each trained on 20 tokens a parameter as benchmarks.compiled_memory has it, whose rows these
are: a file of its finished rows serves here too, and the other way round. The compiler of the hardware, which need not
be there, accepts the placement, and says what memory it takes; utilisation, hours, energy and price are estimates, at
the prices and powers of scaling.parallel.chips. How far the utilisation is off on each chip stands under the table:
where it is too high by a third, hours, energy and price are too low by a quarter.

A row that is not in the file takes 5 s (H100) to 100 s (TPU) on 2 cores; the 8 that benchmarks.compiled_memory does not
have, about 6 minutes.
"""

import argparse
import pathlib
from typing import Any

from benchmarks import kept_rows
from benchmarks.compiled_memory import measure, run_of
from scaling.models.ladder import chinchilla_shape
from scaling.parallel.costs import cost_of
from scaling.parallel.roofline import COMPARED, estimate_step
from scaling.parallel.topology import parse_topology
from scaling.runs import Placement
from scaling.specs import from_dict

SIZES = ("74M", "306M", "1429M", "2980M", "6796M", "16183M")
TOPOLOGIES = ("v5e:16x16", "v5p:4x4x4", "v6e:16x16", "h100:64")
ROWS = [f"{size}@{topology}" for size in SIZES for topology in TOPOLOGIES]
HEADS = ("N", "topology", "placement", "MFU est", "GiB compiled", "compile s", "hours est", "kWh est", "$ est")


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the table. Time and cost are those of the placement that was compiled and fits."""
    size, text = name.split("@")
    topology, proof = parse_topology(text), row["proof"]
    cells = [f"{row['N'] / 1e9:.3g}B", text]
    if not proof["fits"]:
        return f"| {' | '.join([*cells, 'none of those tried fits', *[''] * 6])} |"
    run = run_of(chinchilla_shape(size), topology)
    step = estimate_step(run, from_dict(Placement, proof["placement"]), topology)
    cost = cost_of(run, topology, step.seconds)
    cells += [
        row["taken"],
        f"{step.mfu:.0%}",
        f"{proof['peak_gib']:.2f} of {proof['hbm_gib']:.2f}",
        f"{proof['compile_seconds']:.0f}",
        f"{cost.hours:,.3g}",
        f"{cost.kwh:,.0f}",
        f"{cost.dollars:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def off(topology: str) -> str:
    """How far the estimated utilisation was off on these chips, in words."""
    known = COMPARED[parse_topology(topology).chip.name]
    return f"{topology.split(':')[0]} {known.low:+.0%} to {known.high:+.0%}, of published ones up to {known.best:.1%}"


def main() -> None:
    """Measures the rows that are not in the file yet, and prints all that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="Which, comma-separated: SIZE@TOPOLOGY.")
    parser.add_argument("--out", type=pathlib.Path, help="File of finished rows, which are not run again.")
    arguments = parser.parse_args()
    names = arguments.rows.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"no row {unknown[0]!r}; rows are {', '.join(ROWS)}")
    print(f"| {' | '.join(HEADS)} |\n|{' --- |' * len(HEADS)}")
    for name, row in kept_rows(arguments.out, names, measure):
        print(line(name, row), flush=True)
    print(f"\nEstimated MFUs were off by: {'; '.join(map(off, TOPOLOGIES))}.")


if __name__ == "__main__":
    main()
