"""The table of all cells of a sweep before anything is spent.

python -m tools.plan --config=experiments/configs/laptop.py [--out=plan.json]
"""

import dataclasses
import pathlib
from typing import Any

import pandas as pd
from absl import flags
from ml_collections import config_flags

from scaling import command
from scaling.files import write_json
from scaling.sweeps.config import prepare_data, sweep_config
from scaling.sweeps.grid import make_grid
from scaling.sweeps.plan import plan_rows

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of the sweep; its fields are --config.FIELD=.")
STORES = flags.DEFINE_string("stores", command.default_stores(), "Directory where token stores are kept.")
OUT = flags.DEFINE_string("out", None, "File to write the plan to as JSON.")

# How each column is printed; the JSON has all of them, unrounded.
COLUMNS = {
    "budget": "{:.3g}",
    "N": "{:,.0f}",
    "shape": "{}",
    "D": "{:.3g}",
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
    config = sweep_config(command.config_values(CONFIG))
    store = prepare_data(config.data, STORES.value)
    cells, dropped = make_grid(config, store)
    rows = plan_rows(cells, store)
    table = pd.DataFrame([{name: form.format(row[name]) for name, form in COLUMNS.items()} for row in rows])
    print(table.to_string(index=False))
    for cell in dropped:
        print(f"dropped: {cell.size:,.0f} parameters at {cell.budget:.3g} FLOPs: {cell.reason}")
    print(totals(rows))
    if OUT.value:
        plan = {"cells": rows, "dropped": [dataclasses.asdict(cell) for cell in dropped]}
        write_json(pathlib.Path(OUT.value), plan)


def totals(rows: list[dict[str, Any]]) -> str:
    """What the whole sweep takes, in a line."""
    repeated = sum(row["epochs"] > 1 for row in rows)
    return (
        f"{len(rows)} cells, {sum(row['C'] for row in rows):.3g} FLOPs, {sum(row['D'] for row in rows):.3g} tokens; "
        f"{repeated} repeat their data"
    )


if __name__ == "__main__":
    command.launch(main)
