"""How fast this version is: ratios measured beside a peer, in turn, on one machine; and whether it became slower.

python -m tools.benchmark --of=step,start,data,sweep [--repeats=5] [--out=speed.json]
python -m tools.benchmark --of=step --compare=benchmarks/speed.json
python -m tools.benchmark --config=experiments/configs/laptop.py [--cells=45k,150k]
python -m tools.benchmark --config=experiments/configs/ladder.py --suppose_vocab=32000

The first measures the training step beside transformers' GPT-2 on PyTorch (pip install 'scaling[benchmark]'), the start
of a run, the data, and a whole sweep beside the same cells one after the other, which takes half an hour. The second
ends with 3 if a ratio is more than 10 % below that in the file. The others measure the step of a config's models, as
they are placed on this machine: tokens a second, utilisation and memory.
"""

import datetime
import os
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from scaling import command
from scaling.errors import InputError, nearest
from scaling.models.counts import parameters
from scaling.parallel.xla_flags import with_malloc
from scaling.runs import Placement, Run
from scaling.specs import require
from scaling.speed.parts import PARTS, machine, measure_model, measure_part
from scaling.speed.peer import EXTRA, installed
from scaling.speed.records import (
    Comparison,
    Record,
    check_machine,
    compare,
    read_record,
    table,
    versions,
    write_record,
)
from scaling.speed.rows import Row
from scaling.sweeps.cells import Cell
from scaling.sweeps.config import SweepConfig, sweep_config
from scaling.sweeps.grid import make_grid
from scaling.sweeps.plan import select
from scaling.sweeps.texts import Texts, data_configs, planned_text, prepare_texts

SUPPOSED_TOKENS = 1e15  # enough for any run

OF = flags.DEFINE_list("of", None, f"What to measure: {', '.join(PARTS)}.")
CONFIG = config_flags.DEFINE_config_file("config", None, "Config of a sweep whose models to measure, as placed here.")
CELLS = flags.DEFINE_list("cells", None, "Of the config only these: beginnings of run ids, or sizes such as 70m.")
STORES = flags.DEFINE_string("stores", command.default_stores(), "Directory where token stores are kept.")
SUPPOSE_VOCAB = flags.DEFINE_integer(
    "suppose_vocab", None, "Instead of the config's text, suppose one of so many different tokens.", lower_bound=2
)
PEER = flags.DEFINE_enum(
    "peer", "auto", ["auto", "torch", "none"], "Beside whom to measure; auto: torch if it is here."
)
REPEATS = flags.DEFINE_integer("repeats", 5, "Turns, the median of which counts.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "File to write what was measured to, as JSON.")
COMPARE = flags.DEFINE_string("compare", None, "Such a file of this machine: fail if a ratio fell by more than 10 %.")


def main(argv: list[str]) -> int:
    del argv
    for flag in (OUT, COMPARE):
        named = flag.value is None or (flag.value and not pathlib.Path(flag.value).is_dir())
        require(named, f"--{flag.name}={flag.value} is a folder", "name a file")
    parts = _parts()
    earlier = None if COMPARE.value is None else read_record(COMPARE.value)
    cells = _cells() if CONFIG.present else {}
    os.environ.update(with_malloc(os.environ))  # of all processes that measure, ours and the peer's, as cells have it
    here = machine()
    if earlier is not None:
        check_machine(earlier, here, COMPARE.value)
    with_peer = {part: _with_peer(part) for part in parts}

    rows: list[Row] = []
    for part in parts:
        rows += measure_part(part, REPEATS.value, with_peer[part])
    left_out = {}
    for name, (run, placement) in cells.items():
        try:
            rows += measure_model(name, run, placement, REPEATS.value)
        except InputError as error:
            left_out[name] = str(error)
    record = Record(here, versions(), datetime.date.today().isoformat(), tuple(rows), left_out)
    if OUT.value is not None:
        write_record(OUT.value, record)
    print(*_lines(record), sep="\n")
    return command.DONE if earlier is None else _judged(compare(earlier, record))


def _parts() -> list[str]:
    given = OF.value or []
    require(bool(given) or CONFIG.present, "nothing to measure", f"--of={','.join(PARTS)}, or --config=")
    for part in given:
        require(part in PARTS, f"--of={part} is unknown", nearest(part, PARTS))
    require(
        CONFIG.present or (CELLS.value is None and SUPPOSE_VOCAB.value is None),
        "--cells or --suppose_vocab without --config",
    )
    return list(dict.fromkeys(given))


def _with_peer(part: str) -> bool:
    """Whether a part is measured beside its peer, which for the step alone is PyTorch."""
    if PEER.value == "none":
        return False
    if part != "step" or installed():
        return True
    require(PEER.value == "auto", "--peer=torch: torch or transformers is not installed", EXTRA)
    print(f"PyTorch is not installed: our step alone is measured, without a ratio ({EXTRA})", file=sys.stderr)
    return False


def _cells() -> dict[str, tuple[Run, Placement | None]]:
    """A run of each model of the config, that of the largest batch, from the smallest model to the largest."""
    config = sweep_config(command.config_values(CONFIG))
    cells, _ = make_grid(config, _texts(config))
    cells = cells if CELLS.value is None else select(cells, CELLS.value)
    ordered = sorted(cells, key=lambda cell: (parameters(cell.run.model).N, cell.run.batch_size))
    placement = None if config.placement == Placement() else config.placement
    return {_name(cell): (cell.run, placement) for cell in ordered}


def _name(cell: Cell) -> str:
    model, L = cell.run.model, cell.run.data.sequence_length
    variant = f" {cell.variant}" if cell.variant else ""
    return f"d{model.d_model}x{model.n_layers}, N {parameters(model).N:,}, L {L}, {cell.run.precision}{variant}"


def _texts(config: SweepConfig) -> Texts:
    if SUPPOSE_VOCAB.value is None:
        return prepare_texts(config, STORES.value)
    supposed = enumerate(data_configs(config))
    return {data: planned_text(data, k, SUPPOSED_TOKENS, SUPPOSE_VOCAB.value) for k, data in supposed}


def _lines(record: Record) -> list[str]:
    """The record as text: machine, table, what each row is, and what could not be measured."""
    said = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    lines = [f"{record.machine.words}, {record.machine.memory_gib:g} GiB; {said}; {record.date}"]
    lines += table(record.rows) if record.rows else []
    for row in record.rows:
        beside = f"; beside it: {row.peer_is}" if row.peer_is else ""
        lines.append(f"{row.name}: {row.what}{beside}")
    return lines + [f"not measured: {name}: {why}" for name, why in record.left_out.items()]


def _judged(comparison: Comparison) -> int:
    print(*comparison.lines, sep="\n")
    for line in comparison.fallen:
        print(f"failed: slower by more than 10 %: {line}", file=sys.stderr)
    return command.FAILED if comparison.fallen else command.DONE


if __name__ == "__main__":
    command.launch(main)
