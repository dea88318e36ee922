"""A whole sweep: plan it, run what is not done yet, collect, analyse, report. Running it again continues.

python -m experiments.sweep --config=experiments/configs/laptop.py --workdir=runs/demo
python -m experiments.sweep --config=experiments/configs/laptop.py --workdir=runs/demo --refine

The second adds sizes around the optimum that the first found at each budget; what is done is not done again.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from scaling import command
from scaling.errors import InputError
from scaling.study import run_study
from scaling.sweeps.cells import all_stores
from scaling.sweeps.config import sweep_config
from scaling.sweeps.execution import Way
from scaling.sweeps.launch import default_workers
from scaling.sweeps.texts import prepare_texts, verify_stores
from scaling.sweeps.variants import check_variants
from scaling.training.trackers import check_trackers

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of the sweep; its fields are --config.FIELD=.")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the sweep.", required=True)
STORES = flags.DEFINE_string("stores", command.default_stores(), "Directory where token stores are kept.")
LAUNCHER = flags.DEFINE_enum("launcher", "local", ["local"], "Where the cells run.")
WORKERS = flags.DEFINE_integer(
    "workers", None, "Cells at a time. By default one a core where jax computes on the CPU, else one.", lower_bound=1
)
REFINE = flags.DEFINE_bool("refine", False, "Add sizes around the optimum found at each budget, and analyse again.")
TRACKERS = flags.DEFINE_list("trackers", [], "Where to watch the runs besides: tensorboard, wandb.")
PROFILE_STEPS = flags.DEFINE_integer("profile_steps", 0, "Steps of each run to take a profile of.", lower_bound=0)


def main(argv: list[str]) -> int:
    del argv
    config = sweep_config(command.config_values(CONFIG))
    workdir = pathlib.Path(WORKDIR.value)
    if workdir.exists() and not workdir.is_dir():
        raise InputError("is not a directory", where=str(workdir))
    check_trackers(TRACKERS.value)
    check_variants(config)  # before the text is tokenised, which may take hours
    texts = prepare_texts(config, STORES.value)
    if not (workdir / "sweep.json").exists():
        verify_stores(all_stores(texts))
    way = Way(WORKERS.value or default_workers(), tuple(TRACKERS.value), PROFILE_STEPS.value)
    study = run_study(config, texts, workdir, way, REFINE.value)
    print(*study.said, sep="\n")
    print(f"report: {study.report}")
    for cell, reason in study.failed:
        print(f"failed: {cell.id}: {reason}")
    return command.FAILED if study.failed else command.DONE


if __name__ == "__main__":
    command.launch(main)
