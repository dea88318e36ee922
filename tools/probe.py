"""Learning rates and seeds of a config's sizes, tried side by side in one step: quick, for tuning only.

python -m tools.probe --config=experiments/configs/tune.py --rates=0.25,0.5,1,2,4 --out=runs/probes
python -m tools.probe --config=experiments/configs/one.py --config.size=2e4 --seeds=0,1 --out=runs/probes

Each size and duration of a sweep's config, or the run of a config of one run, is trained at each multiple of its
recipe's peak rate and with each seed, on all devices of this machine. Writes OUT/probes.csv, a row a probe, and prints
the best rate of each size, where the rates bracket it, with its interval. Then tools.tune --runs=OUT/probes.csv fits a
rule to them. The same command with more rates, or with more seeds, adds those that the file does not have.

A probe's loss is that of its run within rounding, and it is no cell of a sweep: nothing reads it but tools.tune.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from absl import flags
from ml_collections import config_flags

from scaling import command
from scaling.analysis.rates import find_optima
from scaling.analysis.table import read_frame
from scaling.data.batches import Stores
from scaling.errors import InputError
from scaling.files import write_text
from scaling.models.counts import counts
from scaling.progress import progress_bar
from scaling.recipes import base_recipe
from scaling.runs import Run, run_id
from scaling.specs import require
from scaling.sweeps.cells import all_stores, one_run
from scaling.sweeps.config import one_config, sweep_config
from scaling.sweeps.grid import make_grid
from scaling.sweeps.one_cell import stop_on_signals
from scaling.sweeps.texts import prepare_text, prepare_texts
from scaling.tuned import RATES as RATE_FIELDS
from scaling.tuned import optima_table

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of a sweep or one run.")
STORES = flags.DEFINE_string("stores", command.default_stores(), "Directory where token stores are kept.")
RATES = flags.DEFINE_list("rates", ["0.25", "0.5", "1", "2", "4"], "Multiples of the recipe's peak rate.")
SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of initialisation and data order, added to the config's.")
OUT = flags.DEFINE_string("out", None, "Folder for probes.csv.", required=True)
flags.register_validator("out", lambda out: out != "", "name a folder")

COLUMNS = (
    *("probe_of", "status", "reason", "N", "D", "batch_tokens", "steps", "peak_lr", "seed", "loss", "loss_stderr"),
    *("rate_factor", "together"),
)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the flags ask for. runs: one of each size and duration, at the recipe's rate."""

    runs: tuple[Run, ...]
    recipe: str
    stores: Stores


def main(argv: list[str]) -> None:
    del argv
    factors = _numbers(RATES.value, "rates", float, lambda factor: 0 < factor < math.inf)
    seeds = _numbers(SEEDS.value, "seeds", int, lambda seed: seed >= 0)
    asked = _asked(command.config_values(CONFIG))
    path = pathlib.Path(OUT.value) / "probes.csv"
    rows = _rows(path)
    # Here: jax takes a second, which --help and refusals need not wait for.
    import jax

    from scaling.training.compilations import keep_compilations
    from scaling.training.probes import probe, replica, use_all_cores

    use_all_cores()
    keep_compilations(path.parent / "compilations")
    stop = stop_on_signals()

    def stands_for(run: Run, rate: float, seed: int) -> str:
        return run_id(replica(run, rate, seed))

    for row in rows:
        known = any(stands_for(run, float(row["peak_lr"]), int(row["seed"])) == row["probe_of"] for run in asked.runs)
        require(known, f"has {row['probe_of']}, which is of another config", "give another --out", str(path))
    for run in asked.runs:
        done = {row["probe_of"] for row in rows}
        new = [
            (f, s)
            for s in seeds
            for f in factors
            if stands_for(run, f * run.optimizer.peak_lr, run.seed + s) not in done
        ]
        if not new:
            continue
        with progress_bar(run.steps, "step", run_id(run)) as bar:

            def report(done: int, steps: int, bar: Any = bar) -> None:
                bar.total = steps  # of all turns
                bar.update(done - bar.n)

            found = probe(
                run,
                [factor * run.optimizer.peak_lr for factor in factors if factor in {f for f, _ in new}],
                [run.seed + seed for seed in seeds if seed in {s for _, s in new}],
                asked.stores,
                jax.local_devices(),
                say=bar.write,
                report=report,
                stopping=stop.is_set,
            )
        rows += [_row(run, one) for one in found if run_id(one.run) not in done]
        write_text(path, pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False, lineterminator="\n"))
    print(optima_table(find_optima(read_frame([path]), str(path))))
    print(f"probes: {path}")
    base = base_recipe(asked.recipe)
    print(f"next: python -m tools.tune --runs={path} --base={base} --out={path.parent / 'rule'}, from 3 sizes on")


def _asked(values: dict[str, Any]) -> Asked:
    """The runs of a config of one run, which names a size, or of a sweep."""
    if "size" in values:
        config = one_config(values)
        require(not config.start, "probes start from an initialisation", "leave config.start out")
        text = prepare_text(config.data, STORES.value)
        return Asked((one_run(config, text),), config.recipe, text.stores)
    config = sweep_config(values)
    fields = {field for variant in config.variants for field, _ in variant} - {*RATE_FIELDS, "seed"}
    require(
        not fields,
        f"config.vary has {', '.join(sorted(fields))}",
        "probes try rates and seeds; fix the others",
        "config",
    )
    config = dataclasses.replace(config, vary=(), seeds=(0,))
    texts = prepare_texts(config, STORES.value)
    cells, dropped = make_grid(config, texts)
    for one in dropped:
        print(f"left out: {one}")
    return Asked(tuple({cell.id: cell.run for cell in cells}.values()), config.recipe, all_stores(texts))


def _row(run: Run, found: Any) -> dict[str, Any]:
    """A row of probes.csv, whose names are those that a tuning sweep's table has. run: at the recipe's rate."""
    one: Run = found.run
    counted = counts(one.model, one.data.sequence_length, one.tokens)
    failed = bool(found.reason)
    return {
        "probe_of": run_id(one),
        "status": "failed" if failed else "done",
        "reason": found.reason,
        "N": counted["N"],
        "D": counted["D"],
        "batch_tokens": one.batch_tokens,
        "steps": one.steps,
        "peak_lr": one.optimizer.peak_lr,
        "seed": one.seed,
        "loss": None if failed else found.loss,
        "loss_stderr": None if failed else found.stderr,
        "rate_factor": one.optimizer.peak_lr / run.optimizer.peak_lr,
        "together": found.together,
    }


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """What was probed before. Raises InputError for a file that this command has not written."""
    if not path.exists():
        return []
    frame = read_frame([path])
    require(tuple(frame.columns) == COLUMNS, "not a table of probes", "give another --out", str(path))
    return frame.to_dict("records")


def _numbers(values: Sequence[str], flag: str, kind: type, good: Callable[[Any], bool]) -> list[Any]:
    try:
        numbers = [kind(value) for value in values]
    except ValueError as error:
        raise InputError(f"--{flag}: {error}") from None
    said = f"--{flag}={','.join(values)}"
    require(bool(numbers) and all(map(good, numbers)), f"{said} is not possible", "rates are over 0, seeds from 0 on")
    require(len(set(numbers)) == len(numbers), f"{said} has one twice")
    return numbers


if __name__ == "__main__":
    command.launch(main)
