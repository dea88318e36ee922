"""One cell of a sweep, as schedulers start it: SLURM, Ray, a JobSet on Kubernetes, or a person.

python -m experiments.cell --workdir=runs/demo --cell=d48x2-1.5M-0123456789ab
python -m experiments.cell --workdir=runs/demo --cell=d48x2-1.5M-0123456789ab --distributed

The sweep must be there: experiments.sweep makes it. Start this as often as you like: a cell goes on from its last
checkpoint, one that is done is left alone, and of several processes that are started for the same cell one trains it.
Exit codes: 0 done (now or before), 75 start it again (it was stopped and has saved its state, another process has the
cell, or it failed of what may be gone), 124 start it again (it hung), 2 something has to be mended first, 3 it has
failed and would fail again, 1 a bug. Reasons are in WORKDIR/runs/CELL/failure.json. With --distributed, or
--coordinator, --processes and --process_id, it is one process of several, as with experiments.train.
"""

import pathlib

from absl import flags

from scaling import command
from scaling.specs import require
from scaling.sweeps.one_cell import stop_on_signals, train_cell
from scaling.sweeps.tasks import Way, cell_item, cell_of, die_with_parent, read_result
from scaling.sweeps.workdir import read_sweep, run_directory
from scaling.training import care
from scaling.training.planned import read_plan
from scaling.training.trackers import check_trackers

WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the sweep, which every host sees.", required=True)
CELL = flags.DEFINE_string("cell", None, "The run of the cell, as tools.status names it.", required=True)
PLAN = flags.DEFINE_string("plan", None, "A plan of tools.plan, whose placement the cell takes, if it places it.")
TRACKERS = flags.DEFINE_list("trackers", [], "Where to watch the run besides: tensorboard, wandb.")
PROFILE_STEPS = flags.DEFINE_integer("profile_steps", 0, "Steps to take a profile of.", lower_bound=0)
CARE = flags.DEFINE_string("care", "", care.HELP)
COMPILATIONS = flags.DEFINE_string("compilations", None, command.COMPILATIONS_HELP)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One process of several that jax finds: SLURM, GKE, TPU pods.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "Or HOST:PORT of process 0, with the next two.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes train the cell.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)
PARENT = flags.DEFINE_integer("parent", None, "The process that starts this one, to be killed when it ends. On Linux.")


def main(argv: list[str]) -> int:
    del argv
    if PARENT.value is not None:
        die_with_parent(PARENT.value)
    check_trackers(TRACKERS.value)
    require("://" not in WORKDIR.value, "is not in a file system", "a folder that every host sees", WORKDIR.value)
    workdir = pathlib.Path(WORKDIR.value)
    sweep = read_sweep(workdir)
    cell = cell_of(sweep, CELL.value)
    plan = {} if PLAN.value is None else read_plan(PLAN.value)
    way = Way(
        trackers=tuple(TRACKERS.value),
        profile_steps=PROFILE_STEPS.value,
        planned=plan,
        care=care.parse_care(CARE.value),
    )
    several = DISTRIBUTED.value or any(flag.value is not None for flag in (COORDINATOR, PROCESSES, PROCESS_ID))
    if not several and read_result(run_directory(workdir, cell.id)) is not None:
        print(f"{cell.id}: done before")
        return command.DONE
    stop = stop_on_signals()
    # Here: jax takes a second, which --help, refusals and cells that are done need not wait for.
    from scaling.training import hosts
    from scaling.training.compilations import keep_compilations

    if several:
        hosts.connect(COORDINATOR.value, PROCESSES.value, PROCESS_ID.value)
        stop_on_signals(stop)
    keep_compilations(command.compilations(COMPILATIONS.value, workdir))
    with hosts.leaving():
        result = train_cell(
            cell_item(workdir, cell, sweep, way),
            lambda done, steps: None,
            stop.is_set,
            lambda line: print(line, flush=True),
        )
    if hosts.writes():
        print(f"{result['run']}: done, held-out loss {result['loss']:.4f} nats per token")
    return command.DONE


if __name__ == "__main__":
    command.launch(main)
