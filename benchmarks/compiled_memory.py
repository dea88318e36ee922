"""Predicted and compiled memory: whether the planner's first choice fits, as the hardware's own compiler has it.

    python -m benchmarks.compiled_memory --out=compiled_memory.json [--rows=16183M@v5e:16x16,...]

Chinchilla's shapes of 74M, 1.4B, 6.8B and 16B parameters, sequences of 2048 and V 32000 in bf16, trained as the recipe
`chinchilla` says on 20 tokens a parameter, but with at least a sequence a chip. For each the placement is that of
tools.plan --aot: the fastest of those whose estimate fits, compiled; where it does not fit, the next, up to six.
Predicted and compiled are those of the first choice; its error is predicted / compiled - 1. A row is a compilation of
20 to 100 s, and is kept in the file, so that the benchmark goes on where it was stopped.
"""

import argparse
import dataclasses
import pathlib
import statistics
import sys
from typing import Any

from benchmarks import kept_rows
from scaling.models.counts import flops_per_token, parameters
from scaling.models.ladder import chinchilla_shape
from scaling.parallel.placements import choose
from scaling.parallel.topology import Topology, parse_topology
from scaling.recipes import chinchilla
from scaling.runs import DataSpec, ModelShape, Placement, Run
from scaling.specs import from_dict
from scaling.sweeps.plan import placement_words
from scaling.sweeps.prove import first_that_fits

LENGTH, TOKENS_A_PARAMETER = 2048, 20
SIZES = ("74M", "1429M", "6796M", "16183M")
TOPOLOGIES = ("v5e:16x16", "v5p:4x4x4", "v6e:16x16", "h100:8", "h100:64")
ROWS = [*(f"{size}@{topology}" for topology in TOPOLOGIES for size in SIZES), "1429M@4xv5e:16x16"]


def run_of(shape: ModelShape, topology: Topology) -> Run:
    """The run of a shape, with its batch raised to a sequence a device if it has fewer."""
    tokens = TOKENS_A_PARAMETER * parameters(shape).N
    settings = chinchilla(shape, tokens, tokens * flops_per_token(shape, LENGTH), LENGTH)
    batch_size = max(settings.batch_size, topology.devices)
    given = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    return Run(model=shape, data=DataSpec("none", LENGTH, 2), precision="bf16", **{**given, "batch_size": batch_size})


def measure(name: str) -> dict[str, Any]:
    """Compiles the first choice of a row, and others until one fits."""
    size, text = name.split("@")
    topology = parse_topology(text)
    run = run_of(chinchilla_shape(size), topology)
    found = choose(run, topology)

    def report(line: str) -> None:
        print(f"{name}: {line}", file=sys.stderr, flush=True)

    candidate, proof = first_that_fits(run, found, topology, report)
    first = from_dict(Placement, proof["tried"][0]["placement"])
    return {
        "N": parameters(run.model).N,
        "batch_size": run.batch_size,
        "first": placement_words(first, run),
        "taken": None if candidate is None else placement_words(candidate.placement, run),
        "mfu_est": found[0].step.mfu,
        "proof": proof,
    }


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the table."""
    proof, first = row["proof"], row["proof"]["tried"][0]
    compiled, predicted = first["peak_gib"], first["memory_gib_est"]
    known = compiled is not None
    fits = (
        "yes" if first["fits"] else "no" if row["taken"] is None else f"no; try {len(proof['tried'])}: {row['taken']}"
    )
    cells = (
        f"{row['N'] / 1e9:.3g}B",
        name.split("@")[1],
        str(row["batch_size"]),
        row["first"],
        f"{predicted:.2f}",
        f"{compiled:.2f}" if known else first["reason"],
        f"{predicted / compiled - 1:+.0%}" if known else "",
        fits,
        f"{first['compile_seconds']:.0f}" if known else "",
        f"{proof['rss_gib']:.1f}" if "rss_gib" in proof else "",
    )
    return f"| {' | '.join(cells)} |"


def summary(rows: list[dict[str, Any]]) -> str:
    """How often the first choice fits, and how far its estimate is off."""
    firsts = [row["proof"]["tried"][0] for row in rows]
    errors = [abs(first["memory_gib_est"] / first["peak_gib"] - 1) for first in firsts if first["peak_gib"]]
    fits = sum(first["fits"] for first in firsts)
    median = f"{statistics.median(errors):.0%}" if errors else "unknown"
    return f"The first choice fits in {fits} of {len(firsts)} cases; the median absolute error is {median}."


def main() -> None:
    """Measures the rows that are not in the file yet, and prints all that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="Which, comma-separated: SIZE@TOPOLOGY.")
    parser.add_argument("--out", type=pathlib.Path, help="File of finished rows, which are not run again.")
    arguments = parser.parse_args()
    names = arguments.rows.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"no row {unknown[0]!r}; rows are {', '.join(ROWS)}")
    heads = ("N", "topology", "batch", "first choice", "GiB predicted", "GiB compiled", "error", "fits")
    print(f"| {' | '.join((*heads, 'compile s', 'RSS GiB'))} |\n|{' --- |' * (len(heads) + 2)}")
    done = []
    for name, row in kept_rows(arguments.out, names, measure):
        print(line(name, row), flush=True)
        done.append(row)
    print(f"\n{summary(done)}")


if __name__ == "__main__":
    main()
