"""Cells as job arrays of SLURM: each task of an array is the command of a cell, which may be started at any time.

What is submitted goes to WORKDIR/slurm/NAME/: submission.json (the runs of the array, by index), job.sh (the script),
INDEX.log, and INDEX.tries, a line a failure. Jobs live without the launcher: they requeue themselves (slurm_job), and
SLURM requeues those that are pre-empted or whose node is lost. The launcher only looks on, at the files of the runs and
at squeue; sacct, which many clusters lack, is not needed. Started again while its jobs are queued or running, it
follows them by their name. Should a cell be submitted twice all the same, one of the two trains it, and the other
requeues itself until it is done. Forks (scaling.sweeps.forks) are arrays of their own, which SLURM starts once those
of the trunks have ended, however they did.

SIGINT and SIGTERM cancel the jobs: what waits at once, what runs when it has saved.
"""

import dataclasses
import pathlib
import shlex
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence

from scaling.errors import MENDED, InputError
from scaling.files import write_json, write_text
from scaling.specs import require
from scaling.sweeps.slurm_commands import STOP, array_size, cancel, jobs_of, queue_of
from scaling.sweeps.slurm_job import count_tries, runs_of
from scaling.sweeps.tasks import (
    Event,
    OnEvent,
    Task,
    Way,
    after_failure,
    cell_command,
    cell_environment,
    died,
    failed,
    on_stop,
    read_failure,
    read_result,
    steps_done,
    waits,
)
from scaling.training.failures import Failure

POLL_SECONDS = 5.0
FILES_SECONDS = 60.0  # from the end of a job until what it wrote is seen here: NFS keeps directories so long
WARNING_SECONDS = 120  # before its time limit, a job is told to save
OURS = ("array", "job-name", "output", "open-mode", "parsable", "wrap")  # options of sbatch that no flag may set


@dataclasses.dataclass
class Watched:
    """A task that is not over. folder, index: its submission, and which of the array it is there.

    told: the failures that on_event knows of. state: of its job when it was last asked for, "" when there is none any
    more, since `gone` by the monotonic clock.
    """

    task: Task
    folder: pathlib.Path
    index: int
    told: int = 0
    state: str = ""
    gone: float | None = None

    @property
    def tries(self) -> pathlib.Path:
        """The file with a line for each failure."""
        return self.folder / f"{self.index}.tries"


def check() -> None:
    """Raises InputError if there is no SLURM here, or its controller does not answer."""
    require(
        shutil.which("sbatch") is not None,
        "--launcher=slurm: sbatch is not in PATH",
        "start it on a login node, or take --launcher=local",
    )
    array_size()


def run_slurm(workdir: pathlib.Path, tasks: Sequence[Task], way: Way, on_event: OnEvent) -> bool:
    """Gets tasks done by SLURM, as an engine of scaling.sweeps.tasks does.

    way.workers: how many run at a time, of each number of processes; None leaves it to SLURM. Raises InputError if
    SLURM refuses a submission.
    """
    workdir = pathlib.Path(workdir).absolute()
    asked = threading.Event()
    with on_stop(asked.set):
        watched = _queued(workdir, tasks)
        watched |= _submit_all(workdir, tasks, watched, way)
        folders = {job.folder for job in watched.values()}
        _follow(watched, way, on_event, asked)
        if watched:  # a stop was asked
            cancel(folders)
            for index, job in watched.items():
                done = read_result(job.task.directory) is not None
                on_event(index, {"event": "done" if done else "stopped"})
        return not watched


def _queued(workdir: pathlib.Path, tasks: Sequence[Task]) -> dict[int, Watched]:
    """Those tasks that an earlier launcher has submitted and SLURM still has. Raises InputError if it does not say."""
    folders = [path.parent for path in sorted((workdir / "slurm").glob("*/submission.json"))]
    folders = [folder for folder in folders if not (folder / STOP).exists()]
    queue = queue_of(folders)
    require(queue is not None, "squeue does not answer", "start this again when the controller is back")
    found = {
        run: Watched(tasks[0], folder, index)
        for folder in folders
        for index, run in enumerate(runs_of(folder))
        if (folder.name, index) in queue
    }
    watched = {i: dataclasses.replace(found[task.run], task=task) for i, task in enumerate(tasks) if task.run in found}
    for job in watched.values():
        job.told = count_tries(job.tries)
    return watched


def _submit_all(
    workdir: pathlib.Path, tasks: Sequence[Task], queued: Mapping[int, Watched], way: Way
) -> dict[int, Watched]:
    """Submits all tasks that are not queued, those that wait for trunks in arrays that wait for the trunks' arrays."""
    runs, watched = {task.run for task in tasks}, {}
    waiting = {i for i, task in enumerate(tasks) if waits(task, runs)}
    jobs = jobs_of({queued[i].folder for i in queued if i not in waiting}) if waiting else []
    for now in (set(range(len(tasks))) - waiting, waiting):
        after = list(jobs)
        for processes in sorted({task.processes for task in tasks}):
            new = [i for i in sorted(now) if i not in queued and tasks[i].processes == processes]
            submitted, numbers = _submit(workdir, tasks, new, way, after if now is waiting else ())
            watched |= submitted
            jobs += numbers
    return watched


def _submit(
    workdir: pathlib.Path, tasks: Sequence[Task], new: Sequence[int], way: Way, jobs: Sequence[str] = ()
) -> tuple[dict[int, Watched], list[str]]:
    """Submits tasks of one number of processes, by their indices: an array, or several that wait for each other.

    jobs: the numbers of those that have to end before. Returns those of the new ones too.
    """
    watched: dict[int, Watched] = {}
    size, before, numbers = array_size(), ":".join(jobs), []
    for start in range(0, len(new), size):
        part = new[start : start + size]
        folder, first = workdir / "slurm" / f"scaling-{uuid.uuid4().hex[:12]}", tasks[part[0]]
        write_json(folder / "submission.json", {"runs": [tasks[i].run for i in part]})
        write_text(folder / "job.sh", job_script(workdir, folder, first, way))
        before = _sbatch(sbatch_command(folder, len(part), first.processes, way, before))
        numbers.append(before)
        watched |= {i: Watched(tasks[i], folder, index) for index, i in enumerate(part)}
    return watched, numbers


def job_script(workdir: pathlib.Path, folder: pathlib.Path, task: Task, way: Way) -> str:
    """The batch script of an array of tasks like this one.

    The command stands in it, and sbatch keeps a copy: what changes in the workdir later changes no command.
    """
    command = [part for part in cell_command(workdir, task.run, way) if part != f"--cell={task.run}"]
    flags = [f"--folder={folder}", f"--retries={way.retries}", f"--processes={task.processes}"]
    job = [sys.executable, "-m", "scaling.sweeps.slurm_job", *flags, "--", *command]
    return f"#!/bin/sh\nexec {shlex.join(job)}\n"


def sbatch_command(folder: pathlib.Path, count: int, processes: int, way: Way, jobs: str = "") -> list[str]:
    """How an array of so many cells is submitted. Options of the way come last: SLURM takes the last of two.

    jobs: the numbers, between colons, of those that have to end before, besides what the way says of that. Raises
    InputError for an option that is ours to set.
    """
    for option in way.sbatch:
        name = option.partition("=")[0]
        require(name not in OURS, f"--sbatch={option}: the launcher sets {name} itself", "leave it out")
    at_a_time = f"%{way.workers}" if way.workers else ""
    log = str(folder).replace("%", "%%") + "/%a.log"
    theirs = [option.partition("=")[2] for option in way.sbatch if option.startswith("dependency=")]
    before = [f"--dependency={','.join([f'afterany:{jobs}', *theirs])}"] if jobs else []
    return [
        "sbatch",
        "--parsable",
        f"--job-name={folder.name}",
        f"--array=0-{count - 1}{at_a_time}",
        f"--ntasks={processes}",
        "--requeue",
        f"--signal=B:TERM@{WARNING_SECONDS}",
        f"--output={log}",
        "--open-mode=append",
        *(f"--{option}" for option in way.sbatch),
        *before,
        str(folder / "job.sh"),
    ]


def _sbatch(command: list[str]) -> str:
    """Submits, once: what may have gone through is not tried again. Returns the number of the job."""
    # Of a launcher that runs in a job itself, the job's own size and limits must not become those of the cells.
    kept = {k: v for k, v in cell_environment().items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}
    done = subprocess.run(command, env=kept, capture_output=True, text=True, start_new_session=True)
    if done.returncode != 0:
        raise InputError(f"sbatch: {' '.join(done.stderr.split())}", do="see --sbatch")
    return done.stdout.strip().partition(";")[0]  # a cluster's name may follow


def _follow(watched: dict[int, Watched], way: Way, on_event: OnEvent, asked: threading.Event) -> None:
    """Tells what happens to tasks, and drops those that are done or given up, until none is left or a stop is asked."""
    while watched and not asked.is_set():
        queue = queue_of({job.folder for job in watched.values()})
        for index, job in [] if queue is None else list(watched.items()):
            try:
                event = _look(job, *queue.get((job.folder.name, job.index), ("", "")), way)
            except InputError as error:  # a file that a person has to look at; the others go on
                event = failed(Failure("refused", str(error)))
            if event is not None:
                on_event(index, event)
                if event["event"] in ("done", "failed"):
                    del watched[index]
        until = time.monotonic() + POLL_SECONDS
        while watched and not asked.is_set() and time.monotonic() < until:
            time.sleep(0.2)  # short waits, in which Python can run the signal handler


def _look(job: Watched, state: str, reason: str, way: Way) -> Event | None:
    """What has happened to a task whose job is in a state, "" for no job, and what it waits for."""
    waited, job.state = job.state == "PENDING", state
    job.gone = None if state else (job.gone or time.monotonic())
    held = any(word in reason.lower() for word in ("held", "hold"))
    if waited and state == "PENDING" and not held:
        return None  # nothing has happened: to ask the file system of each of thousands would take long
    if state != "RUNNING" and read_result(job.task.directory) is not None:  # while it runs, it tidies up
        return {"event": "done"}
    if held:
        why = f"SLURM holds its job back ({reason}): scontrol release, or scancel --name={job.folder.name}"
        return {"event": "failed", "kind": "refused", "reason": why, "retry": MENDED}
    failure = read_failure(job.task.directory)
    if failure is not None and (tries := count_tries(job.tries)) > job.told:
        event = after_failure(failed(failure), tries - 1, way) if state else failed(failure)
        if event["event"] == "again" or not state:  # else its job is about to end
            job.told = tries
            return event
    if state:
        return {"event": "progress", "done": steps_done(job.task.directory), "steps": job.task.steps}
    if time.monotonic() - job.gone < FILES_SECONDS:
        return None
    return failed(died(job.task.directory, f"its job has ended without a word: {job.folder / f'{job.index}.log'}"))
