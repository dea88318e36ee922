"""What a Chinchilla-optimal model costs, by its size and by the hardware: from 74M to 16B on v5e, v5p, v6e and H100.

    python -m benchmarks.size_table --out=compiled_memory.json [--rows=306M@v5e:16x16,...]

Six of Chinchilla's shapes, each trained on 20 tokens a parameter as benchmarks.compiled_memory has it, whose rows these
are: a file of its finished rows serves here too, and the other way round. The compiler of the hardware, which need not
be there, accepts the placement, and says what memory it takes; utilisation, hours, energy and price are estimates, at
the prices and powers of scaling.parallel.chips. How far the utilisation is off on each chip stands under the table:
where it is too high by a third, hours, energy and price are too low by a quarter.

A row that is not in the file takes 5 s (H100) to 100 s (TPU) on 2 cores; the 8 that benchmarks.compiled_memory does not
have, about 6 minutes.

Result (2 shared cores, jax 0.10.2, libtpu 0.0.42.1 and jax-cuda12-plugin 0.10.2):

    | N | topology | placement | MFU est | GiB compiled | compile s | hours est | kWh est | $ est |
    | --- | --- | --- | --- | --- | --- | --- | --- | --- |
    | 0.0901B | v5e:16x16 | data 2 x fsdp 128, 1 a shard | 30% | 1.15 of 15.75 | 13 | 0.0383 | 1.52 | 11.8 |
    | 0.0901B | v5p:4x4x4 | data 2 x fsdp 32, 2 a shard | 38% | 2.31 of 95.73 | 40 | 0.0257 | 0.386 | 6.9 |
    | 0.0901B | v6e:16x16 | data 2 x fsdp 128, 1 a shard | 15% | 1.15 of 31.24 | 71 | 0.0167 | 1.84 | 11.6 |
    | 0.0901B | h100:64 | fsdp 64, 2 a shard | 29% | 2.17 of 72.77 | 5 | 0.0159 | 0.712 | 7 |
    | 0.317B | v5e:16x16 | fsdp 256, 1 a shard | 38% | 3.63 of 15.75 | 95 | 0.204 | 8.1 | 62.7 |
    | 0.317B | v5p:4x4x4 | data 2 x fsdp 32, 4 a shard | 48% | 14.13 of 95.73 | 83 | 0.276 | 4.16 | 74.3 |
    | 0.317B | v6e:16x16 | fsdp 256, 1 a shard | 20% | 3.56 of 31.24 | 66 | 0.085 | 9.35 | 58.7 |
    | 0.317B | h100:64 | fsdp 64, 4 a shard | 39% | 12.78 of 72.77 | 9 | 0.159 | 7.15 | 70.2 |
    | 1.39B | v5e:16x16 | fsdp 256, 1 x 2 a shard | 53% | 8.17 of 15.75 | 20 | 2.64 | 105 | 812 |
    | 1.39B | v5p:4x4x4 | data 2 x fsdp 32, 8 a shard | 68% | 63.03 of 95.73 | 73 | 3.55 | 53.4 | 954 |
    | 1.39B | v6e:16x16 | fsdp 256, 2 a shard | 33% | 15.94 of 31.24 | 91 | 0.926 | 102 | 640 |
    | 1.39B | h100:64 | fsdp 64, 8 a shard | 54% | 62.48 of 72.77 | 4 | 2.07 | 92.7 | 911 |
    | 2.84B | v5e:16x16 | fsdp 256, 4 a shard, remat dots | 58% | 13.07 of 15.75 | 83 | 10.1 | 403 | 3,116 |
    | 2.84B | v5p:4x4x4 | data 2 x fsdp 32, 4 x 4 a shard | 72% | 54.00 of 95.73 | 56 | 14 | 210 | 3,760 |
    | 2.84B | v6e:16x16 | fsdp 256, 2 x 2 a shard | 37% | 27.08 of 31.24 | 40 | 3.42 | 376 | 2,362 |
    | 2.84B | h100:64 | fsdp 64, 4 x 4 a shard | 58% | 53.97 of 72.77 | 3 | 7.98 | 358 | 3,514 |
    | 6.4B | v5e:16x16 | fsdp 256, 2 x 4 a shard, remat dots | 63% | 11.45 of 15.75 | 34 | 46.4 | 1,840 | 14,248 |
    | 6.4B | v5p:4x4x4 | data 2 x fsdp 32, 2 x 16 a shard | 75% | 46.81 of 95.73 | 57 | 66.1 | 994 | 17,772 |
    | 6.4B | v6e:16x16 | fsdp 256, 4 x 2 a shard, remat dots | 41% | 21.74 of 31.24 | 52 | 15.2 | 1,673 | 10,503 |
    | 6.4B | h100:64 | fsdp 64, 2 x 16 a shard | 63% | 46.06 of 72.77 | 8 | 36.9 | 1,653 | 16,243 |
    | 15.1B | v5e:16x16 | fsdp 256, 1 x 16 a shard, remat dots | 64% | 11.22 of 15.75 | 27 | 248 | 9,826 | 76,074 |
    | 15.1B | v5p:4x4x4 | data 2 x fsdp 32, 2 x 32 a shard | 80% | 81.68 of 95.73 | 21 | 341 | 5,125 | 91,603 |
    | 15.1B | v6e:16x16 | fsdp 256, 2 x 8 a shard, remat dots | 46% | 19.15 of 31.24 | 54 | 74.5 | 8,202 | 51,503 |
    | 15.1B | h100:64 | fsdp 64, 4 x 16 a shard, remat dots | 68% | 40.25 of 72.77 | 9 | 187 | 8,367 | 82,237 |

Estimated MFUs were off by -2 to +12 % on v5e, +5 to +6 % on v5p, 0 to +19 % on v6e, and +34 to +72 % on H100.
"""

from typing import Any

from benchmarks import asked_rows, kept_rows
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
        figures(cost.hours),
        figures(cost.kwh),
        figures(cost.dollars),
    ]
    return f"| {' | '.join(cells)} |"


def figures(number: float) -> str:
    """Three at least, in a plain number."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def off(topology: str) -> str:
    """How far the estimated utilisation was off on these chips, in words."""
    known = COMPARED[parse_topology(topology).chip.name]
    return f"{topology.split(':')[0]} {known.low:+.0%} to {known.high:+.0%}, of published ones up to {known.best:.1%}"


def main() -> None:
    """Measures the rows that are not in the file yet, and prints all that were asked for."""
    names, path = asked_rows(__doc__, ROWS)
    print(f"| {' | '.join(HEADS)} |\n|{' --- |' * len(HEADS)}")
    for name, row in kept_rows(path, names, measure):
        print(line(name, row), flush=True)
    print(f"\nEstimated MFUs were off by: {'; '.join(map(off, TOPOLOGIES))}.")


if __name__ == "__main__":
    main()
