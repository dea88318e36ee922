"""One run: from a config that names a size and a budget, from a run.json or next_run.json, or a cell of a plan.

python -m experiments.train --config=experiments/configs/one.py --workdir=runs/one
python -m experiments.train --run=runs/demo/report/next_run.json --workdir=runs/next
python -m experiments.train --plan=plan.json --cell=d5120x47 --workdir=runs/16b --distributed

The third starts on the placement that tools.plan has found, if the hardware is what was planned. On several hosts, each
starts the same command: with --distributed where jax finds the others itself (SLURM, Kubernetes, TPU pods), or with
--coordinator=HOST:PORT --processes=2 --process_id=0, and 1. They need one WORKDIR and see the same --stores.

Killed or stopped at any moment, the same command goes on from the last good checkpoint, and ends with the same bits.
Exit codes: 0 done, 75 and 124 start it again, 2 something has to be mended first, 3 it has failed and would fail again,
1 a bug; the reason is in WORKDIR/failure.json.
"""

import contextlib
import dataclasses
import pathlib
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags

from scaling import command
from scaling.data.batches import Stores
from scaling.progress import progress_bar
from scaling.runs import Placement, Run, run_id
from scaling.specs import require
from scaling.sweeps.cells import continued_run, one_run
from scaling.sweeps.config import one_config
from scaling.sweeps.one_cell import stop_on_signals
from scaling.sweeps.texts import find_stores, prepare_text
from scaling.training import care
from scaling.training.planned import Planned, check_hardware, find_cell, hardware, planned_lines, read_plan, read_run
from scaling.training.trackers import check_trackers

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of one run; its fields are --config.FIELD=.")
RUN = flags.DEFINE_string("run", None, "A run.json or next_run.json, instead of a config.")
PLAN = flags.DEFINE_string("plan", None, "A plan of tools.plan, instead of a config; needs --cell.")
CELL = flags.DEFINE_string("cell", None, "The cell of the plan: its run, or the beginning of one.")
START = flags.DEFINE_string("start", "", "With --run or --plan: the directory of the parameters that it starts from.")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
STORES = flags.DEFINE_string("stores", command.default_stores(), "Directory where token stores are kept.")
TRACKERS = flags.DEFINE_list("trackers", [], "Where to watch the run besides: tensorboard, wandb.")
PROFILE_STEPS = flags.DEFINE_integer("profile_steps", 0, "Steps to take a profile of.", lower_bound=0)
CARE = flags.DEFINE_string("care", "", care.HELP)
COMPILATIONS = flags.DEFINE_string("compilations", None, command.COMPILATIONS_HELP)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One process of several that jax finds: SLURM, GKE, TPU pods.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "Or HOST:PORT of process 0, with the next two.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes train the run.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)


@dataclasses.dataclass(frozen=True)
class Task:
    """A run, where it is placed, its token stores, the parameters that it starts from, and its plan, if any."""

    run: Run
    placement: Placement
    stores: Stores
    start: str | None = None
    planned: Planned | None = None


def main(argv: list[str]) -> None:
    del argv
    check_trackers(TRACKERS.value)
    asked = [value for value in (CONFIG.value, RUN.value, PLAN.value) if value is not None]
    require(len(asked) == 1, "give either --config, --run or --plan")
    care.parse_care(CARE.value)
    require((PLAN.value is None) == (CELL.value is None), "--plan and --cell come together")
    workdir = pathlib.Path(WORKDIR.value)
    require("://" not in WORKDIR.value, "is not in a file system", "a folder that every host sees", WORKDIR.value)
    there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    require(there.is_dir(), "is not a directory", where=str(there))
    if DISTRIBUTED.value or any(flag.value is not None for flag in (COORDINATOR, PROCESSES, PROCESS_ID)):
        from scaling.training import hosts

        hosts.connect(COORDINATOR.value, PROCESSES.value, PROCESS_ID.value)
        with hosts.leaving():
            result = _train(hosts.first_alone(_task), workdir)
    else:
        result = _train(_task(), workdir)
    if result is not None:
        print(_summary(result))


def _train(task: Task, workdir: pathlib.Path) -> dict[str, Any] | None:
    """The result of the training, None on a process that is not to print it."""
    # Here: jax takes a second, which --help and refusals need not wait for.
    from scaling.training import hosts
    from scaling.training.compilations import keep_compilations
    from scaling.training.loop import train

    keep_compilations(command.compilations(COMPILATIONS.value, workdir))
    if (planned := task.planned) is not None:
        here = hardware()
        if hosts.writes():
            print(*planned_lines(planned, here), sep="\n")
        hosts.together(lambda: check_hardware(planned.topology, planned.needed_gib, here))
    stop = stop_on_signals()  # after the processes are connected: see there
    on_screen = hosts.writes() and sys.stderr.isatty()  # in a log the lines are enough
    with progress_bar(task.run.steps, "step", run_id(task.run)) if on_screen else contextlib.nullcontext() as bar:

        def report(done: int, steps: int) -> None:
            if bar is not None:
                bar.update(done - bar.n)

        def say(line: str) -> None:
            if bar is not None:
                bar.write(line)  # above the bar
            else:
                print(line, flush=True)

        result = train(
            task.run,
            task.placement,
            task.stores,
            workdir,
            report,
            stop.is_set,
            start=task.start,
            trackers=TRACKERS.value,
            profile_steps=PROFILE_STEPS.value,
            say=say,
            care=care.parse_care(CARE.value),
        )
    return result if hosts.writes() else None


def _task() -> Task:
    """What the flags ask for."""
    if PLAN.value is not None:
        planned = find_cell(read_plan(PLAN.value), CELL.value, PLAN.value)
        stores = find_stores(planned.run.stores, STORES.value)
        return Task(planned.run, planned.placement, stores, START.value or None, planned)
    if RUN.value is not None:
        run = read_run(RUN.value)
        return Task(run, Placement(), find_stores(run.stores, STORES.value), START.value or None)
    config = one_config(command.config_values(CONFIG))
    text = prepare_text(config.data, STORES.value)
    if not config.start:
        return Task(one_run(config, text), config.placement, text.stores)
    from scaling.models.parameter_files import read_header

    shape, content_id = read_header(config.start)
    print(f"starting from {config.start}: its shape is taken, config.size and config.model are not")
    return Task(continued_run(config, text, shape, content_id), config.placement, text.stores, config.start)


def _summary(result: dict[str, Any]) -> str:
    timing = result["timing"]
    seconds = ", ".join(f"{what} {timing[f'{what}_seconds']:.1f}" for what in ("compile", "train", "evaluate", "save"))
    active = f" ({result['N_active']:,.0f} active)" if result["N_active"] < result["N"] else ""
    return (
        f"{result['run']}: N {result['N']:,.0f}{active}, D {result['D']:,.0f}, C {result['C']:.3g}, held-out loss "
        f"{result['loss']:.4f} nats per token\nseconds: {seconds}; {timing['flops_per_second']:.3g} FLOP/s"
        + (f", MFU {timing['mfu']:.1%}" if timing["mfu"] is not None else "")
    )


if __name__ == "__main__":
    command.launch(main)
