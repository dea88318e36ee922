"""One cell as a task of a SLURM job array: what the batch script of scaling.sweeps.on_slurm runs, on the cell's node.

python -m scaling.sweeps.slurm_job --folder=WORKDIR/slurm/NAME --retries=3 --processes=2 -- COMMAND...

COMMAND is that of a cell, without --cell=RUN: the run is that of SLURM_ARRAY_TASK_ID in the folder's submission.json.
It runs as a step (srun), and when it ends this process decides whether SLURM is to start it again. How SLURM signals
and requeues, as measured on version 22.05, is why that takes a program:

- A pre-emption with a GraceTime signals steps alone: a cell that ran in the batch script itself would not learn of it.
- --signal=B:TERM@120, before a job's time limit, reaches the batch script alone; and srun kills its step when it gets a
  SIGTERM itself. So the signal is passed on with `scancel --signal`.
- `scontrol requeue` brings a job back even if a person has just cancelled it, so it is only asked for while SLURM says
  that the job runs.
- The last task of an array has the number of the array as its job id: `scontrol requeue $SLURM_JOB_ID` there requeues
  every task. Tasks are named ARRAY_INDEX here.

SLURM itself puts off what is requeued until its credentials have expired, 121 s unless AuthInfo's cred_expire says
otherwise. That is longer than `pause` asks for after any of the first six failures, so nothing sleeps here.
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import time

from scaling.command import AGAIN, DONE, FAILED
from scaling.errors import SOON
from scaling.files import check_name, read_json
from scaling.specs import require
from scaling.sweeps.slurm_commands import STOP, ask
from scaling.sweeps.tasks import Event, outcome
from scaling.sweeps.workdir import run_directory

REPEAT_SECONDS = 5.0  # between signals to a step that may not have begun when the first was sent
TERMINATED = (AGAIN, -signal.SIGTERM, 128 + signal.SIGTERM)


def main() -> int:
    """Runs the cell, and returns the exit code of the job, if SLURM has not ended it to start it again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--retries", type=int, required=True)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    folder, index = arguments.folder, int(os.environ["SLURM_ARRAY_TASK_ID"])
    job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{index}"
    run = runs_of(folder)[index]
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    if (folder / STOP).exists():
        return AGAIN
    code = _run_step(step_command(arguments.command, run, arguments.processes), job, asked)
    event = (
        {"event": "stopped"}  # perhaps before the run was claimed, or Python was up: nothing has failed
        if asked and code in TERMINATED
        else outcome(run_directory(folder.parents[1], run), code)
    )
    print(f"{job}: {run}: {event.get('reason', event['event'])}", flush=True)
    again = is_again(event, folder / f"{index}.tries", arguments.retries)
    if again and not (folder / STOP).exists() and ask("squeue", "-h", "-j", job, "-o", "%T") == "RUNNING":
        ask("scontrol", "requeue", job)
    return DONE if event["event"] == "done" else AGAIN if again else FAILED


def step_command(command: list[str], run: str, processes: int) -> list[str]:
    """The command line of a cell as a step of so many tasks. When one of them fails, the others are ended too."""
    several = ["--distributed"] if processes > 1 else []
    return ["srun", f"--ntasks={processes}", "--kill-on-bad-exit=1", *command, f"--cell={run}", *several]


def is_again(event: Event, tries: pathlib.Path, retries: int) -> bool:
    """Whether a cell is to be started again: after a stop always, after a failure while it may help.

    tries: a file with a line for each failure of this submission, to which this one is added: being pre-empted often
    must not use up the tries.
    """
    if event["event"] != "failed":
        return event["event"] == "stopped"
    with open(tries, "a", encoding="utf-8") as f:
        f.write(f"{event['kind']}: {' '.join(event['reason'].split())}\n")
    return event["retry"] == SOON and count_tries(tries) <= retries


def count_tries(tries: pathlib.Path) -> int:
    """How many failures such a file tells of."""
    return tries.read_bytes().count(b"\n") if tries.exists() else 0


def runs_of(folder: pathlib.Path) -> list[str]:
    """The runs of a submission, by their index in the array. Raises InputError for a file that holds none."""
    path = folder / "submission.json"
    values = read_json(path)
    runs = values.get("runs") if isinstance(values, dict) else None
    require(isinstance(runs, list), "is no submission", "remove its folder: its cells are submitted again", str(path))
    return [check_name(run, str(path)) for run in runs]


def _run_step(command: list[str], job: str, asked: list[int]) -> int:
    """Runs a step to its end, and returns its exit code. While this process is asked to end, so is the step."""
    # Since 22.05 srun does not read by itself how many cores a task of the job has.
    cores = os.environ.get("SLURM_CPUS_PER_TASK")
    environment = {**os.environ, **({"SRUN_CPUS_PER_TASK": cores} if cores else {})}
    step, sent = subprocess.Popen(command, env=environment), -REPEAT_SECONDS
    while step.poll() is None:
        if asked and time.monotonic() - sent >= REPEAT_SECONDS:
            subprocess.run(["scancel", "--signal=TERM", job], capture_output=True)
            sent = time.monotonic()
        time.sleep(0.2)
    return step.returncode


if __name__ == "__main__":
    sys.exit(main())
