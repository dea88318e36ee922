"""A whole sweep: plan it, run what is not done yet, collect, analyse, report. Running it again continues.

python -m experiments.sweep --config=experiments/configs/laptop.py --workdir=runs/demo
python -m experiments.sweep --config=experiments/configs/laptop.py --workdir=runs/demo --refine

The second adds sizes around the optimum that the first found at each budget; what is done is not done again. With
--plan=plan.json, of tools.plan for the same config, each cell is trained where the plan has placed it, and other cells
where config.placement says.

Any number of these may be at work on one WORKDIR, on any hosts that see it: they share the cells. --launcher=slurm or
ray hands the cells to a cluster instead of this machine: see docs/clusters.md.

Exit codes: 0 done; 75 stopped on request with all saved, start it again; 3 some cells failed, tools.status says why; 2
something has to be mended first; 1 a bug.
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
from scaling.sweeps.execution import LAUNCHERS, check_engine
from scaling.sweeps.grid import make_grid
from scaling.sweeps.tasks import Way
from scaling.sweeps.texts import Texts, prepare_texts, verify_stores
from scaling.sweeps.variants import check_variants
from scaling.training import care
from scaling.training.planned import Planned, read_plan
from scaling.training.trackers import check_trackers

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of the sweep; its fields are --config.FIELD=.")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the sweep.", required=True)
STORES = flags.DEFINE_string("stores", command.default_stores(), "Directory where token stores are kept.")
LAUNCHER = flags.DEFINE_enum("launcher", "local", LAUNCHERS, "Where the cells run: here, or on a cluster.")
WORKERS = flags.DEFINE_integer(
    "workers",
    None,
    "Cells at a time. By default, here one a core where jax computes on the CPU, else as many as have room on its "
    "devices; on a cluster as many as it has room for.",
    lower_bound=1,
)
RETRIES = flags.DEFINE_integer("retries", 3, "How often a cell is tried again that was killed, say.", lower_bound=0)
CARE = flags.DEFINE_string("care", "", care.HELP)
COMPILATIONS = flags.DEFINE_string("compilations", None, command.COMPILATIONS_HELP)
DEVICES_PER_PROCESS = flags.DEFINE_integer(
    "devices_per_process", None, "Devices that each process of a cell has; by default one has all.", lower_bound=1
)
SBATCH = flags.DEFINE_list("sbatch", [], "Options of sbatch, as in --sbatch=partition=gpu,time=24:00:00.")
RAY_ADDRESS = flags.DEFINE_string("ray_address", "auto", "The Ray cluster, as ray.init takes it.")
RAY_RESOURCES = flags.DEFINE_list("ray_resources", [], "What a process of a cell takes: --ray_resources=TPU=4.")
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
    way = _way(plan)
    check_engine(way)
    check_variants(config)  # before the text is tokenised, which may take hours
    texts = prepare_texts(config, STORES.value)
    begins = not (workdir / "sweep.json").exists()
    verified = verify_stores(all_stores(texts)) if begins else []
    if plan:
        print(_planned_line(plan, config, texts))
    study = run_study(config, texts, workdir, way, REFINE.value, verified=verified)
    print(*study.said, sep="\n")
    print(f"report: {study.report}")
    for cell, reason in study.failed:
        print(f"failed: {cell.id}: {reason}")
    return command.FAILED if study.failed else command.DONE


def _way(plan: dict[str, Planned]) -> Way:
    """How the flags say that cells are run."""
    require(
        LAUNCHER.value != "local" or DEVICES_PER_PROCESS.value is None,
        "--devices_per_process is for --launcher=slurm and ray",
        "here a cell is trained by one process",
    )
    return Way(
        workers=WORKERS.value,
        trackers=tuple(TRACKERS.value),
        profile_steps=PROFILE_STEPS.value,
        planned=plan,
        plan=PLAN.value,
        launcher=LAUNCHER.value,
        care=care.parse_care(CARE.value),
        compilations=COMPILATIONS.value,
        retries=RETRIES.value,
        devices_per_process=DEVICES_PER_PROCESS.value,
        sbatch=tuple(SBATCH.value),
        ray_address=RAY_ADDRESS.value,
        ray_resources=dict(_resource(part) for part in RAY_RESOURCES.value),
    )


def _resource(text: str) -> tuple[str, float]:
    name, _, amount = text.partition("=")
    try:
        return name, float(amount)
    except ValueError:
        raise InputError(f"--ray_resources={text}", do="NAME=NUMBER, as in TPU=4") from None


def _planned_line(plan: dict[str, Planned], config: SweepConfig, texts: Texts) -> str:
    """How much of the sweep's grid a plan places. Raises InputError for a plan of another sweep."""
    cells, _ = make_grid(config, texts)
    found = sum(cell.id in plan for cell in cells)
    require(found > 0, "places no cell of this sweep", "plan it with the same --config and the same text", PLAN.value)
    return f"{PLAN.value} places {found} of {len(cells)} cells; others go where config.placement says"


if __name__ == "__main__":
    command.launch(main)
