"""Nothing is lost: small runs and sweeps that are killed, paused and stopped end as if they had been left alone.

    python -m benchmarks.chaos --kills=30 [--seed=0] [--workdir=DIR]
    python -m benchmarks.chaos --mode=sweep --kills=12 [--seed=0] [--workdir=DIR]

The first kills a training (kill -9) at so many instants, starting it again after each, and compares it with a twin that
was left alone: its result, its metrics to the byte, and every bit of parameters and optimizer state in its last
checkpoint. A run takes 15 kills; more go to another, of another seed. The second has two launchers share one sweep, and
kills, pauses and stops them and their workers; then results.csv and all runs are compared with those of one launcher
that was left alone. Timings are what may differ. Exits with 1, and says in what, if anything else does.
"""

import argparse
import os
import pathlib
import sys
import tempfile
from typing import Any

from benchmarks import chaos_run, chaos_sweep


def main() -> None:
    """Prints what was done, where it hit, and what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("run", "sweep"), default="run", help="What is disturbed.")
    parser.add_argument("--kills", type=int, default=30, help="How often; in a sweep, pauses and stops included.")
    parser.add_argument("--seed", type=int, default=0, help="Of the instants, and of the runs.")
    parser.add_argument("--workdir", type=pathlib.Path, help="A new directory, to be kept; by default none is.")
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"  # here too, where checkpoints are compared
    survive = {"run": chaos_run.survive, "sweep": chaos_sweep.survive}[arguments.mode]
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        row = survive(arguments.kills, arguments.seed, (arguments.workdir or pathlib.Path(temporary)).absolute())
    print(*lines(row), sep="\n")
    sys.exit(1 if row["differences"] else 0)


def lines(row: dict[str, Any]) -> list[str]:
    """What came of it, in words."""
    told = [f"{row['kills']} disturbances:", *(f"{count:5} {where}" for where, count in row["where"].items())]
    told.append(f"results lost {row['results_lost']}, recorded twice {row['recorded_twice']}")
    if "woken" in row:
        ended = ", ".join(f"{count} {outcome}" for outcome, count in row["woken"].items())
        told.append(f"of the owners that were paused, {row['taken_over']} were taken over; their attempts: {ended}")
    if "lost_seconds" in row:
        rest = row["lost_seconds"] - row["start_seconds"] - row["again_seconds"]
        told.append(
            f"time lost per kill {row['lost_seconds']:.1f} s: imports {row['start_seconds']:.1f}, steps done again "
            f"{row['again_seconds']:.1f}, restoring, compiling and the rest {rest:.1f}; as result.json counts, from "
            f"the claim on, {row['told_seconds']:.1f} s; a run that is left alone takes {row['twin_seconds']:.1f} s"
        )
    return [*told, *([f"DIFFERENT: {each}" for each in row["differences"]] or ["all as it would have been"])]


if __name__ == "__main__":
    main()
