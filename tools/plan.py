"""The table of all cells of a sweep before anything is spent.

python -m tools.plan --config=experiments/configs/laptop.py [--out=plan.json]
python -m tools.plan --config=experiments/configs/chinchilla.py --suppose_tokens=1.5e11 --suppose_vocab=32000

The second plans with a text of a supposed size, which need not be there.
"""

import dataclasses
import pathlib
from typing import Any

import pandas as pd
from absl import flags
from ml_collections import config_flags

from scaling import command
from scaling.errors import InputError
from scaling.files import write_json
from scaling.sweeps.cells import all_stores
from scaling.sweeps.config import SweepConfig, sweep_config
from scaling.sweeps.grid import make_grid
from scaling.sweeps.plan import plan_rows, repetition
from scaling.sweeps.texts import Texts, data_configs, planned_text, prepare_texts
from scaling.sweeps.variants import check_variants

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of the sweep; its fields are --config.FIELD=.")
STORES = flags.DEFINE_string("stores", command.default_stores(), "Directory where token stores are kept.")
OUT = flags.DEFINE_string("out", None, "File to write the plan to as JSON.")
SUPPOSE_TOKENS = flags.DEFINE_float("suppose_tokens", None, "Plan with a text of so many training tokens.")
SUPPOSE_VOCAB = flags.DEFINE_integer("suppose_vocab", None, "And a vocabulary of so many tokens.", lower_bound=2)

# How each column is printed; the JSON has all of them, unrounded.
COLUMNS = {
    "variant": "{}",
    "budget": "{:.3g}",
    "N": "{:,.0f}",
    "shape": "{}",
    "D": "{:.3g}",
    "C": "{:.3g}",
    "tokens_per_parameter": "{:.1f}",
    "batch_tokens": "{:,}",
    "steps": "{:,}",
    "peak_lr": "{:.2e}",
    "epochs": "{:.2f}",
    "flops_error": "{:+.2%}",
    "state_gib_est": "{:.3g}",
}


def main(argv: list[str]) -> None:
    del argv
    if OUT.value is not None and pathlib.Path(OUT.value).is_dir():
        raise InputError(f"--out={OUT.value} is a folder", do="name a file")
    config = sweep_config(command.config_values(CONFIG))
    check_variants(config)
    texts = _texts(config)
    cells, dropped = make_grid(config, texts)
    for cell in cells:
        config.placement.check(cell.run)
    rows = plan_rows(cells, all_stores(texts))
    table = pd.DataFrame([{name: _said(row[name], form) for name, form in COLUMNS.items()} for row in rows])
    print(table.loc[:, (table != "").any()].to_string(index=False))
    for cell in dropped:
        print(f"dropped: {cell}")
    print(totals(rows))
    for line in repetition(config, texts, rows):
        print(line)
    if OUT.value is not None:
        plan = {"cells": rows, "dropped": [dataclasses.asdict(cell) for cell in dropped]}
        write_json(pathlib.Path(OUT.value), plan)


def _texts(config: SweepConfig) -> Texts:
    if (SUPPOSE_TOKENS.value is None) != (SUPPOSE_VOCAB.value is None):
        raise InputError("--suppose_tokens and --suppose_vocab come together")
    if SUPPOSE_TOKENS.value is None:
        return prepare_texts(config, STORES.value)
    supposed = enumerate(data_configs(config))
    return {data: planned_text(data, k, SUPPOSE_TOKENS.value, SUPPOSE_VOCAB.value) for k, data in supposed}


def _said(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)


def totals(rows: list[dict[str, Any]]) -> str:
    """What the whole sweep takes, in a line."""
    return f"{len(rows)} cells, {sum(row['C'] for row in rows):.3g} FLOPs, {sum(row['D'] for row in rows):.3g} tokens"


if __name__ == "__main__":
    command.launch(main)
