"""What each cell of a sweep will compute and need, known before it is run, and where each goes on given hardware.

Runs that differ only in their steps, rate or seed are one program: they share a placement, its estimates and its proof.
"""

import dataclasses
import math
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any

from scaling.data.batches import Stores, epochs, unique_tokens
from scaling.errors import InputError
from scaling.models.counts import counts, parameters
from scaling.parallel.chips import GIB
from scaling.parallel.costs import cost_of
from scaling.parallel.placements import Candidate, choose
from scaling.parallel.topology import Topology, parse_topology
from scaling.runs import MESH_AXES, Placement, Run, run_to_dict
from scaling.specs import to_dict
from scaling.sweeps import packing
from scaling.sweeps.cells import Cell, all_stores
from scaling.sweeps.config import SweepConfig
from scaling.sweeps.prove import Report, first_that_fits
from scaling.sweeps.texts import Texts

# The parameter and the two moments of Adam in fp32; and its gradient in fp32, or in bf16 with a copy of it in bf16.
BYTES_A_PARAMETER = 16
NEAR = 1.5  # a size that is further off than this factor is not the one that was meant
ESTIMATED = ("memory_gib_est", "step_seconds_est", "mfu_est", "hours_est", "chip_hours_est", "kwh_est", "cost_est")
UNPLACED = dict.fromkeys(
    ("topology", "placement", "placed", *ESTIMATED, "proof", "fault")
)  # the columns of a row without a place
ALONE: Mapping[str, int] = types.MappingProxyType({})  # no cell has a trunk
UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


@dataclasses.dataclass(frozen=True)
class Planned:
    """Where the runs of a program go: the candidate that was taken, with the compiler's proof if it was asked; or why
    there is none, with the placements that the compiler refused."""

    candidate: Candidate | None
    proof: dict[str, Any] | None = None
    fault: str = ""
    tried: tuple[dict[str, Any], ...] = ()


def plan_rows(cells: Sequence[Cell], stores: Stores, trunk_steps: Mapping[str, int] = ALONE) -> list[dict[str, Any]]:
    """A row a cell: counts in all conventions, steps, batch, rate, repetition of data, FLOP error, memory of the state.

    state_gib_est: parameters, gradients and optimizer state over all devices; activations come on top of it.
    run_spec: the content of run.json. trunk_steps: how many of its steps another cell takes for it, by run
    (scaling.sweeps.forks).
    """
    rows = []
    for cell in cells:
        run = cell.run
        counted = counts(run.model, run.data.sequence_length, run.tokens)
        rows.append(
            {
                "run": cell.id,
                "budget": cell.budget,
                "variant": cell.variant,
                "shape": f"{run.model.d_model}x{run.model.n_layers}, {run.model.n_heads} heads",
                **counted,
                "tokens_per_parameter": run.tokens / counted["N"],
                "batch_tokens": run.batch_tokens,
                "steps": run.steps,
                "trunk_steps": trunk_steps.get(cell.id, 0),
                "peak_lr": run.optimizer.peak_lr,
                "unique_tokens": unique_tokens(stores, run.data, run.tokens),
                "epochs": epochs(stores, run.data, run.tokens),
                "flops_error": counted["C"] / cell.budget - 1 if cell.budget else None,
                "state_gib_est": BYTES_A_PARAMETER * counted["N"] / GIB,
                "run_spec": run_to_dict(run),
            }
        )
    return rows


def select(cells: Sequence[Cell], names: Sequence[str]) -> list[Cell]:
    """The cells whose id begins with one of the names, or whose N is the nearest to one ("16b", "70m"), in their order.

    Raises InputError for a name without a cell.
    """
    kept = {cell.key for name in names for cell in _named(cells, name)}
    return [cell for cell in cells if cell.key in kept]


def _named(cells: Sequence[Cell], name: str) -> list[Cell]:
    size = re.fullmatch(r"(\d+(?:\.\d+)?)([kmbt])", name.strip().lower())
    if size is None:
        found = [cell for cell in cells if cell.id.startswith(name.strip())]
        if not found or not name.strip():
            do = f"the beginning of an id such as {cells[0].id}, or a size such as 70m"
            raise InputError(f"no cell is called {name!r}", "--cells", do)
        return found
    wanted = float(size[1]) * UNITS[size[2]]
    sizes = sorted({parameters(cell.run.model).N for cell in cells})
    best = min(sizes, key=lambda N: abs(math.log(N / wanted)) if wanted else math.inf)
    if not 1 / NEAR < best / max(wanted, 1) < NEAR:
        raise InputError(f"no cell of about {name}", "--cells", f"sizes are {sizes[0]:,} to {sizes[-1]:,}")
    return [cell for cell in cells if parameters(cell.run.model).N == best]


def program_of(run: Run) -> tuple[Any, ...]:
    """What decides a run's program on a topology. Runs that share it share their placement."""
    return run.model, run.batch_size, run.data.sequence_length, run.precision, run.z_loss


def estimated(run: Run, topology: Topology) -> Planned:
    """The fastest placement of a run of those whose estimate fits."""
    try:
        return Planned(choose(run, topology)[0])
    except InputError as error:
        return Planned(None, fault=str(error))


def parts_of(
    cells: Sequence[Cell], topology: Topology, trunk_steps: Mapping[str, int] = ALONE
) -> dict[tuple[Any, ...], Topology]:
    """For each program of some cells, the part of a machine's devices on which its cells run, several side by side, so
    that all of them are done the soonest by the estimates (scaling.sweeps.packing); the whole for what fits nowhere."""
    parts = packing.widths_of(topology)
    runs = {program_of(cell.run): cell.run for cell in cells}
    steps = {
        program: {
            width: found.candidate.step.seconds
            for width, part in parts.items()
            if (found := estimated(run, part)).candidate
        }
        for program, run in runs.items()
    }
    fitting = [cell for cell in cells if steps[program_of(cell.run)]]
    own = [cell.run.steps - trunk_steps.get(cell.id, 0) for cell in fitting]
    times = [{w: n * s for w, s in steps[program_of(cell.run)].items()} for n, cell in zip(own, fitting, strict=True)]
    programs = [program_of(cell.run) for cell in fitting]
    widths = packing.pack(times, programs, topology.devices).widths
    return dict.fromkeys(runs, topology) | {p: parts[width] for p, width in zip(programs, widths, strict=True)}


def proved(run: Run, topology: Topology, report: Report) -> Planned:
    """The first placement of a run that the compiler accepts. Raises InputError if the compiler is not installed."""
    try:
        candidates = choose(run, topology)
    except InputError as error:
        return Planned(None, fault=str(error))
    candidate, proof = first_that_fits(run, candidates, topology, report)
    if candidate is None:
        tried = tuple(proof["tried"])
        fault = f"the compiler refuses all {len(tried)} placements tried; the last: {proof['reason']}"
        return Planned(None, fault=fault, tried=tried)
    return Planned(candidate, proof)


def placement_columns(
    run: Run, planned: Planned, topology: Topology, price: float | None, watts: float | None, trunk_steps: int = 0
) -> dict[str, Any]:
    """What a topology, or the part of one that a run is placed on, adds to its row. placed: the placement in words.
    fault: why the run fits nowhere, with what was tried; all else is None then. price, watts: of a chip, as in
    scaling.parallel.costs. trunk_steps: of its steps, those that cost it nothing."""
    candidate = planned.candidate
    if candidate is None:
        return {**UNPLACED, "fault": planned.fault, "tried": list(planned.tried)}
    own = 1 - trunk_steps / run.steps
    cost = cost_of(run, topology, own * candidate.step.seconds, price, watts)
    return {
        **UNPLACED,
        "topology": topology.text,
        "placement": to_dict(candidate.placement),
        "placed": placement_words(candidate.placement, run),
        "memory_gib_est": candidate.memory.gib,
        "step_seconds_est": candidate.step.seconds,
        "mfu_est": candidate.step.mfu,
        "hours_est": cost.hours,
        "chip_hours_est": cost.chip_hours,
        "kwh_est": cost.kwh,
        "cost_est": cost.dollars,
        "proof": planned.proof,
    }


def placement_words(placement: Placement, run: Run) -> str:
    """A placement in a few words: "fsdp 256, 6 a shard, remat full"."""
    p = placement
    axes = [f"{axis} {getattr(p, axis)}" for axis in MESH_AXES if getattr(p, axis) > 1] or ["one device"]
    at_a_time = p.microbatch or run.batch_size
    parts = f" x {run.batch_size // at_a_time}" if at_a_time < run.batch_size else ""
    words = [" x ".join(axes)]
    words += [f"ZeRO {p.zero}"] if p.fsdp > 1 and p.zero < 3 else []
    words += [f"{at_a_time // p.batch_shards}{parts} a shard"]
    words += [f"remat {p.remat}"] if p.remat != "none" else []
    words += ["plain kernels"] if p.kernels == "plain" else []
    return ", ".join(words)


def totals(rows: Sequence[dict[str, Any]], topology: Topology | None = None) -> dict[str, float]:
    """Sums over the rows; of what is estimated, over those that fit. With a topology also elapsed_hours_est, of all
    cells, as many side by side as it has room for, and busy_est, the share of its devices' time that they use."""
    summed = {"cells": len(rows), "C": sum(row["C"] for row in rows), "D": sum(row["D"] for row in rows)}
    fitting = [row for row in rows if row.get("placement") is not None]
    names = ("hours_est", "chip_hours_est", "kwh_est", "cost_est") if fitting else ()
    summed |= {name: sum(row[name] for row in fitting) for name in names}
    if topology is not None:
        widths = [parse_topology(row["topology"]).devices for row in fitting]
        elapsed, busy = packing.side_by_side(widths, [row["hours_est"] for row in fitting], topology.devices)
        summed |= {"elapsed_hours_est": elapsed, "busy_est": busy}
    return summed


def repetition(config: SweepConfig, texts: Texts, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Which cells need more tokens than their text has, how often they repeat it, and whether a sweep may, in lines."""
    sizes = {store.source: store.splits["train"].tokens for store in all_stores(texts).values()}
    held = "; ".join(f"{source} holds {tokens:,} training tokens" for source, tokens in sizes.items())
    repeated = [row for row in rows if row["epochs"] > 1]
    if not repeated:
        return [f"{held}: no cell repeats its data"]
    lines = [f"{held}: too few for {len(repeated)} of {len(rows)} cells, which repeat their data:"]
    lines += [
        f"  N {row['N']:,.0f} at {row['C']:.3g} FLOPs needs {row['D']:.3g} tokens: {row['epochs']:.2f} epochs"
        for row in sorted(repeated, key=lambda row: -row["epochs"])
    ]
    most, allowed = max(row["epochs"] for row in repeated), config.data.max_epochs
    if most > allowed:
        lines.append(
            f"experiments.sweep refuses more than config.data.max_epochs={allowed:g}; give more text, a smaller grid, "
            f"or --config.data.max_epochs={math.ceil(most * 10) / 10}"
        )
    return lines
