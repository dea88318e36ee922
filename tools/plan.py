"""The table of all cells of a sweep before anything is spent, and where each goes on given hardware.

python -m tools.plan --config=experiments/configs/laptop.py [--out=plan.json]
python -m tools.plan --config=experiments/configs/chinchilla.py --suppose_tokens=1.5e11 --suppose_vocab=32000
python -m tools.plan --config=... --topology=v5e:16x16 [--cells=16b,d640x10] [--aot] [--price=1.2] [--power=155]

The second plans with a text of a supposed size, which need not be there. The third finds for each cell the fastest
placement that fits, with its memory, time, energy and cost: estimates, in columns whose heads end in est. With --aot
the compiler of that hardware, which need not be there either, accepts a placement or refuses it, and then the next is
tried. On one machine (h100:8, v5e:2x2) cells that are too small to use all of its devices get a part of them each, and
run side by side. experiments.sweep and experiments.train take the plan with --plan=.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from absl import flags
from ml_collections import config_flags

from scaling import command
from scaling.errors import InputError
from scaling.files import write_json
from scaling.parallel.chips import GIB
from scaling.parallel.roofline import COMPARED
from scaling.parallel.topology import Topology, parse_topology
from scaling.progress import progress_bar
from scaling.runs import Placement, Run, run_id
from scaling.specs import require
from scaling.sweeps import plan
from scaling.sweeps.cells import Cell, all_stores
from scaling.sweeps.config import SweepConfig, sweep_config
from scaling.sweeps.forks import groups, plan_words, trunk_steps
from scaling.sweeps.grid import make_grid
from scaling.sweeps.prove import prove_all
from scaling.sweeps.texts import Texts, data_configs, planned_text, prepare_texts
from scaling.sweeps.variants import check_variants

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of the sweep; its fields are --config.FIELD=.")
STORES = flags.DEFINE_string("stores", command.default_stores(), "Directory where token stores are kept.")
OUT = flags.DEFINE_string("out", None, "File to write the plan to as JSON.")
SUPPOSE_TOKENS = flags.DEFINE_float("suppose_tokens", None, "Plan with a text of so many training tokens.")
SUPPOSE_VOCAB = flags.DEFINE_integer("suppose_vocab", None, "And a vocabulary of so many tokens.", lower_bound=2)
CELLS = flags.DEFINE_list("cells", None, "Only these: beginnings of run ids, or sizes such as 16b, 70m.")
TOPOLOGY = flags.DEFINE_string("topology", None, "Hardware to place the cells on: v5e:16x16, 4xv5e:16x16, h100:64.")
AOT = flags.DEFINE_bool("aot", False, "Have the compiler of the topology accept each placement, or take the next one.")
PROVERS = flags.DEFINE_integer("provers", 1, "Compilations at a time.", lower_bound=1)
PRICE = flags.DEFINE_float("price", None, "Dollars a chip-hour, instead of the list price.", lower_bound=0)
POWER = flags.DEFINE_float("power", None, "Watts a chip, instead of the published or estimated ones.", lower_bound=0)


def _billions(number: float) -> str:
    return f"{number / 1e9:.3g}B"


def _figures(number: float) -> str:
    """Three of them, in a plain number."""
    return f"{float(f'{number:.3g}'):,.0f}" if number >= 100 else f"{number:.3g}"


def _dollars(number: float) -> str:
    return f"${number:,.2f}" if number < 1000 else f"${number:,.0f}"


# How each column is headed and printed. The JSON has all columns, unrounded, under the names that are keys here.
COLUMNS = {
    "variant": ("variant", str),
    "budget": ("budget", "{:.3g}".format),
    "N": ("N", "{:,.0f}".format),
    "shape": ("shape", str),
    "D": ("D", "{:.3g}".format),
    "C": ("C", "{:.3g}".format),
    "tokens_per_parameter": ("tokens/N", "{:.1f}".format),
    "batch_tokens": ("tokens/step", "{:,}".format),
    "steps": ("steps", "{:,}".format),
    "trunk_steps": ("from trunk", lambda steps: f"{steps:,}" if steps else ""),
    "peak_lr": ("peak rate", "{:.2e}".format),
    "epochs": ("epochs", "{:.2f}".format),
    "flops_error": ("FLOP error", "{:+.2%}".format),
    "state_gib_est": ("state GiB est", "{:.3g}".format),
}
PLACED_COLUMNS = {
    "run": ("run", str),
    "variant": ("variant", str),
    "budget": ("budget", "{:.3g}".format),
    "N": ("N", _billions),
    "batch_tokens": ("tokens/step", "{:,}".format),
    "placed": ("placed", str),
    "memory_gib_est": ("GiB est", "{:.2f}".format),
    "peak_gib": ("GiB", "{:.2f}".format),
    "step_seconds_est": ("step est", "{:.3g} s".format),
    "mfu_est": ("MFU est", "{:.1%}".format),
    "hours_est": ("hours est", _figures),
    "chip_hours_est": ("chip-h est", _figures),
    "kwh_est": ("kWh est", _figures),
    "cost_est": ("$ est", _dollars),
}
Columns = dict[str, tuple[str, Callable[[Any], str]]]


def main(argv: list[str]) -> None:
    del argv
    if OUT.value is not None and pathlib.Path(OUT.value).is_dir():
        raise InputError(f"--out={OUT.value} is a folder", do="name a file")
    config, topology = sweep_config(command.config_values(CONFIG)), _topology()
    require(
        topology is None or config.placement == Placement(),
        "config.placement is given, and --topology finds a placement for each cell",
        "leave one of them out",
    )
    check_variants(config)
    texts = _texts(config)
    cells, dropped = make_grid(config, texts)
    forked = groups(config, cells)
    if CELLS.value is not None:
        cells = plan.select(cells, CELLS.value)
    rows = plan.plan_rows(cells, all_stores(texts), trunk_steps(forked))
    if topology is None:
        for cell in cells:
            config.placement.check(cell.run)
        rows = [{**row, **plan.UNPLACED} for row in rows]
    else:
        rows = _placed(rows, cells, topology)
        print(_hardware(topology))
        print(_evidence(rows, topology))
    print(_table(rows, COLUMNS if topology is None else PLACED_COLUMNS))
    for line in [*_proofs(rows), *(f"fits nowhere: {row['run']}: {row['fault']}" for row in rows if row["fault"])]:
        print(line)
    for cell in dropped:
        print(f"dropped: {cell}")
    summed = plan.totals(rows, topology)
    print(_totals(summed, rows, topology))
    if forked:
        print(plan_words(forked))
    for line in plan.repetition(config, texts, rows):
        print(line)
    if OUT.value is not None:
        where = topology and topology.text
        left_out = [dataclasses.asdict(cell) for cell in dropped]
        write_json(pathlib.Path(OUT.value), {"topology": where, "cells": rows, "dropped": left_out, "totals": summed})


def _topology() -> Topology | None:
    if TOPOLOGY.value is not None:
        return parse_topology(TOPOLOGY.value)
    for name, given in (("aot", AOT.value), ("price", PRICE.value is not None), ("power", POWER.value is not None)):
        require(not given, f"--{name} without --topology", "--topology=v5e:16x16, say")
    return None


def _texts(config: SweepConfig) -> Texts:
    if (SUPPOSE_TOKENS.value is None) != (SUPPOSE_VOCAB.value is None):
        raise InputError("--suppose_tokens and --suppose_vocab come together")
    if SUPPOSE_TOKENS.value is None:
        return prepare_texts(config, STORES.value)
    supposed = enumerate(data_configs(config))
    return {data: planned_text(data, k, SUPPOSE_TOKENS.value, SUPPOSE_VOCAB.value) for k, data in supposed}


def _placed(rows: Sequence[dict[str, Any]], cells: Sequence[Cell], topology: Topology) -> list[dict[str, Any]]:
    """The rows with what the topology adds to each. Raises InputError if none of the cells fits."""
    runs = {plan.program_of(cell.run): cell.run for cell in cells}
    parts = plan.parts_of(cells, topology, {row["run"]: row["trunk_steps"] for row in rows})
    found = dict(zip(runs, _planned([(run, parts[program]) for program, run in runs.items()], topology), strict=True))
    first = next(iter(found.values()))
    require(
        any(planned.candidate for planned in found.values()), f"no cell fits {topology.text}; the first: {first.fault}"
    )
    prices = PRICE.value, POWER.value
    return [
        {**row, **plan.placement_columns(cell.run, found[program], parts[program], *prices, row["trunk_steps"])}
        for row, cell in zip(rows, cells, strict=True)
        for program in [plan.program_of(cell.run)]
    ]


def _planned(runs: Sequence[tuple[Run, Topology]], topology: Topology) -> list[plan.Planned]:
    """Where each run goes on its part of the topology, by the estimates, or with --aot by the compiler, whose tries are
    told on standard error."""
    with progress_bar(len(runs), "program", f"{'compiling' if AOT.value else 'placing'} for {topology.text}") as bar:

        def planned(run: Run, part: Topology) -> plan.Planned:
            def report(line: str) -> None:
                bar.write(f"{run_id(run)}: {line}", file=sys.stderr)

            found = plan.proved(run, part, report) if AOT.value else plan.estimated(run, part)
            bar.update()
            return found

        return prove_all([functools.partial(planned, *run) for run in runs], PROVERS.value)


def _hardware(topology: Topology) -> str:
    chip = topology.chip
    price = chip.dollars_an_hour if PRICE.value is None else PRICE.value
    watts = chip.watts if POWER.value is None else POWER.value
    return (
        f"{topology.text}: {topology.chips} chips, {topology.device_memory / GIB:.2f} GiB a device; a chip at "
        f"${price:g} an hour (--price) and {watts:g} W (--power). Columns that end in est are estimates."
    )


def _evidence(rows: Sequence[dict[str, Any]], topology: Topology) -> str:
    """How far the times can be believed on these chips, and how many of them go beyond what anyone has published."""
    name = topology.chip.name
    line = "Times come from a roofline that was fitted to two published runs on TPUs (benchmarks/step_time.py)"
    if name not in COMPARED:
        return f"{line}; with runs on {name} it was not compared."
    known = COMPARED[name]
    beyond = sum(row["mfu_est"] is not None and row["mfu_est"] > known.best for row in rows)
    return (
        f"{line}. On {name}, where it was compared with runs of up to {known.best:.1%}, its MFUs were {known.low:+.0%} "
        f"to {known.high:+.0%} off; it puts {beyond} of these {len(rows)} cells above {known.best:.1%}."
    )


def _proofs(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the compiler says of each program, a line each."""
    proofs = {id(row["proof"]): (row, row["proof"]) for row in rows if row["proof"] is not None}
    return [_proof(row, proof) for row, proof in proofs.values()]


def _proof(row: dict[str, Any], proof: dict[str, Any]) -> str:
    return (
        f"compiled: N {row['N']:,.0f}, {row['batch_tokens']:,} tokens a step, {row['placed']}: "
        f"{proof['peak_gib']:.2f} of {proof['hbm_gib']:.2f} GiB ({proof['peak_is']}; estimated "
        f"{row['memory_gib_est']:.2f}), try {len(proof['tried'])}, {proof['compile_seconds']:.0f} s and "
        f"{proof['rss_gib']:.1f} GiB here, {proof['compiler']}; in the program text, a loop once: {_collectives(proof)}"
    )


def _collectives(proof: dict[str, Any]) -> str:
    kinds = [f"{kind} {found['count']} ({found['gib']:.3g} GiB)" for kind, found in proof["collectives"].items()]
    return ", ".join(kinds) or "no collectives"


def _totals(summed: dict[str, float], rows: Sequence[dict[str, Any]], topology: Topology | None) -> str:
    """What the whole sweep takes, in a line."""
    line = f"{summed['cells']} cells, {summed['C']:.3g} FLOPs, {summed['D']:.3g} tokens"
    if "hours_est" not in summed:
        return line
    names = ("elapsed_hours_est", "chip_hours_est", "kwh_est")
    hours, chip_hours, kwh = (_figures(summed[name]) for name in names)
    how = (
        "side by side"
        if any(topology.text != row["topology"] for row in rows if row["topology"])
        else "one after the other"
    )
    return (
        f"{line}; estimated, {how} on {topology.text}: {hours} hours, {chip_hours} chip-hours, {kwh} kWh, "
        f"{_dollars(summed['cost_est'])}; devices idle {1 - summed['busy_est']:.1%}"
    )


def _table(rows: Sequence[dict[str, Any]], columns: Columns) -> str:
    rows = [{**row, "peak_gib": (row["proof"] or {}).get("peak_gib")} for row in rows]
    said = [{head: _said(row[name], form) for name, (head, form) in columns.items()} for row in rows]
    table = pd.DataFrame(said)
    return table.loc[:, (table != "").any()].to_string(index=False)


def _said(value: Any, form: Callable[[Any], str]) -> str:
    return "" if value is None else form(value)


if __name__ == "__main__":
    command.launch(main)
