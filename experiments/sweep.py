"""A whole sweep: plan it, run what is not done yet, collect, analyse, report. Running it again continues.

python -m experiments.sweep --config=experiments/configs/laptop.py --workdir=runs/demo
"""

import pathlib
from typing import Any

from absl import flags
from ml_collections import config_flags

from scaling import command
from scaling.analysis.report import inside, summary
from scaling.errors import InputError
from scaling.study import predicted_line, run_study
from scaling.sweeps.config import prepare_data, sweep_config
from scaling.sweeps.launch import default_workers

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of the sweep; its fields are --config.FIELD=.")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the sweep.", required=True)
STORES = flags.DEFINE_string("stores", command.default_stores(), "Directory where token stores are kept.")
LAUNCHER = flags.DEFINE_enum("launcher", "local", ["local"], "Where the cells run.")
WORKERS = flags.DEFINE_integer(
    "workers", None, "Cells at a time. By default one a core where jax computes on the CPU, else one.", lower_bound=1
)


def main(argv: list[str]) -> int:
    del argv
    config = sweep_config(command.config_values(CONFIG))
    workdir = pathlib.Path(WORKDIR.value)
    if workdir.exists() and not workdir.is_dir():
        raise InputError("is not a directory", where=str(workdir))
    store = prepare_data(config.data, STORES.value)
    study = run_study(config, store, workdir, WORKERS.value or default_workers())
    print(summary(study.analysis))
    if study.prediction:
        print(prediction_line(study.prediction))
    print(f"report: {study.report}")
    for cell, reason in study.failed:
        print(f"failed: {cell.id}: {reason}")
    return command.FAILED if study.failed else command.DONE


def prediction_line(prediction: dict[str, Any]) -> str:
    """Prediction and measurement side by side."""
    told, measured = f"predicted: {predicted_line(prediction)}", prediction["measured"]
    if measured is None:
        return f"{told}; not measured"
    where = {None: "", True: ", inside", False: ", outside"}[inside(prediction)]
    when = "" if prediction["blind"] else " (its run was trained before the prediction was made)"
    return f"{told}\nmeasured: loss {measured:.3f}{where}{when}"


if __name__ == "__main__":
    command.launch(main)
