"""A whole sweep: plan it, run what is not done yet, collect, analyse, report. Running it again continues.

python -m experiments.sweep --config=experiments/configs/laptop.py --workdir=runs/demo
python -m experiments.sweep --config=experiments/configs/laptop.py --workdir=runs/demo --refine

The second adds sizes around the optimum that the first found at each budget; what is done is not done again. With
--plan=plan.json, of tools.plan for the same config, each cell is trained where the plan has placed it, and other cells
where config.placement says.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from scaling import command
from scaling.errors import InputError
from scaling.specs import require
from scaling.study import run_study
from scaling.sweeps.cells import all_stores
from scaling.sweeps.config import SweepConfig, sweep_config
from scaling.sweeps.execution import Way
from scaling.sweeps.grid import make_grid
from scaling.sweeps.launch import default_workers
from scaling.sweeps.texts import Texts, prepare_texts, verify_stores
from scaling.sweeps.variants import check_variants
from scaling.training.planned import Planned, read_plan
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
PLAN = flags.DEFINE_string("plan", None, "A plan of tools.plan, whose placements the cells take.")
PROFILE_STEPS = flags.DEFINE_integer("profile_steps", 0, "Steps of each run to take a profile of.", lower_bound=0)


def main(argv: list[str]) -> int:
    del argv
    config = sweep_config(command.config_values(CONFIG))
    workdir = pathlib.Path(WORKDIR.value)
    require("://" not in WORKDIR.value, "is not in a file system", "a folder on a disk", WORKDIR.value)
    if workdir.exists() and not workdir.is_dir():
        raise InputError("is not a directory", where=str(workdir))
    check_trackers(TRACKERS.value)
    plan = {} if PLAN.value is None else read_plan(PLAN.value)
    check_variants(config)  # before the text is tokenised, which may take hours
    texts = prepare_texts(config, STORES.value)
    if not (workdir / "sweep.json").exists():
        verify_stores(all_stores(texts))
    if plan:
        print(_planned_line(plan, config, texts))
    way = Way(WORKERS.value or default_workers(), tuple(TRACKERS.value), PROFILE_STEPS.value, plan)
    study = run_study(config, texts, workdir, way, REFINE.value)
    print(*study.said, sep="\n")
    print(f"report: {study.report}")
    for cell, reason in study.failed:
        print(f"failed: {cell.id}: {reason}")
    return command.FAILED if study.failed else command.DONE


def _planned_line(plan: dict[str, Planned], config: SweepConfig, texts: Texts) -> str:
    """How much of the sweep's grid a plan places. Raises InputError for a plan of another sweep."""
    cells, _ = make_grid(config, texts)
    found = sum(cell.id in plan for cell in cells)
    require(found > 0, "places no cell of this sweep", "plan it with the same --config and the same text", PLAN.value)
    return f"{PLAN.value} places {found} of {len(cells)} cells; others go where config.placement says"


if __name__ == "__main__":
    command.launch(main)
