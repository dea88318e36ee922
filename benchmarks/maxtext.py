"""Memory and compile time of our training step beside MaxText's, on the same shapes, slices and compiler.

    python -m benchmarks.maxtext [--rows=16B-6,1.4B] [--out=maxtext.json]

The figures of MaxText (version of August 2026) were taken with jax 0.10.2 and libtpu 0.0.42.1, compiling ahead of time:
sequences of 2048, full remat, scanned layers, FSDP over the slice, AdamW with fp32 weights and moments, bf16 compute.
15.8B: 32 layers, d 4096, SwiGLU of 28672, 64 heads of 128, V 32000. 1.41B is known by its size and its 21 layers; with
MaxText's default width (d 2048, SwiGLU of 7168, 16 heads of 128, V 32000) they have 1.408B parameters, which is taken.
Peak is `peak_memory_in_bytes`; the compile time is that of tracing and compiling, on a machine of 2 cores.

Result (2 shared cores, the same versions, 3 minutes; where it does not fit, the peak is what the compiler asks for):

    | model and slice | sequences a chip | peak GiB | MaxText | compile s | MaxText | RSS GiB |
    | --- | --- | --- | --- | --- | --- | --- |
    | 15.83B, v5e:16x16 | 6 | 8.54 (fits) | 8.64 | 33 | 34 | 1.8 |
    | 15.83B, v5e:16x16 | 12 | 14.14 (fits) | 14.66 | 33 | 33 | 1.8 |
    | 15.83B, v5e:16x16 | 13 | 15.66 (fits) | does not fit | 34 | 33 | 1.8 |
    | 15.83B, v5e:16x16 | 14 | 17.07 (does not fit) |  | 2 |  | 0.8 |
    | 15.83B, v5e:16x16 | 16 | 17.78 (does not fit) |  | 2 |  | 0.8 |
    | 1.41B, v5e:4x4 | 8 | 4.66 (fits) | 5.71 | 28 | 23 | 1.9 |
    | 1.41B, v5e:16x16 | 8 | 2.94 (fits) | 2.81 | 28 | 25 | 1.8 |
"""

import dataclasses
from typing import Any

from benchmarks import asked_rows, kept_rows
from scaling.models.counts import parameters
from scaling.parallel.topology import parse_topology
from scaling.runs import DataSpec, ModelShape, OptimizerSpec, Placement, Run, ScheduleSpec
from scaling.sweeps.prove import prove

LARGE = ModelShape(4096, 32, 64, 28672, 32_000, d_head=128, activation="swiglu")
SMALL = ModelShape(2048, 21, 16, 7168, 32_000, activation="swiglu")


@dataclasses.dataclass(frozen=True)
class Case:
    """A shape on a slice, and what MaxText reports: GiB a chip, and seconds; None where it does not fit or says not."""

    shape: ModelShape
    topology: str
    sequences: int  # a chip
    peer_peak: float | None
    peer_seconds: float | None


CASES = {
    "16B-6": Case(LARGE, "v5e:16x16", 6, 8.64, 34),
    "16B-12": Case(LARGE, "v5e:16x16", 12, 14.66, 33),
    "16B-13": Case(LARGE, "v5e:16x16", 13, None, 33),
    "16B-14": Case(LARGE, "v5e:16x16", 14, None, None),
    "16B-16": Case(LARGE, "v5e:16x16", 16, None, None),
    "1.4B": Case(SMALL, "v5e:4x4", 8, 5.71, 23),
    "1.4B-256": Case(SMALL, "v5e:16x16", 8, 2.81, 25),
}


def measure(case: Case) -> dict[str, Any]:
    """Compiles our step of a case."""
    topology = parse_topology(case.topology)
    run = Run(
        model=case.shape,
        data=DataSpec("none", sequence_length=2048, eval_windows=2),
        batch_size=case.sequences * topology.devices,
        steps=1000,
        optimizer=OptimizerSpec(peak_lr=1e-4),
        schedule=ScheduleSpec("cosine", warmup_steps=10),
        precision="bf16",
    )
    return prove(run, Placement(fsdp=topology.devices, remat="full"), topology)


def line(case: Case, proof: dict[str, Any]) -> str:
    """A row of the table."""

    def said(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    verdict = "fits" if proof["fits"] else "does not fit"
    peer = "does not fit" if case.peer_peak is None and case.sequences == 13 else said(case.peer_peak, ".2f")
    cells = (
        f"{parameters(case.shape).N / 1e9:.2f}B, {case.topology}",
        str(case.sequences),
        f"{said(proof['peak_gib'], '.2f')} ({verdict})",
        peer,
        said(proof["compile_seconds"], ".0f"),
        said(case.peer_seconds, ".0f"),
        said(proof.get("rss_gib"), ".1f"),
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measures the rows that are not in the file yet, and prints all that were asked for."""
    names, path = asked_rows(__doc__, CASES)
    print("| model and slice | sequences a chip | peak GiB | MaxText | compile s | MaxText | RSS GiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, proof in kept_rows(path, names, lambda name: measure(CASES[name])):
        print(line(CASES[name], proof), flush=True)


if __name__ == "__main__":
    main()
