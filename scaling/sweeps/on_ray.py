"""Cells as tasks of a Ray cluster that is there: Ray picks the nodes, and the cell's own command does the work.

A task (scaling.sweeps.ray_task) starts experiments.cell as a process of its own on whichever node has the resources,
waits for it, and returns its exit code; strings and numbers are all that goes through Ray. What became of a cell is
read from the files of its run, in a WORKDIR that all nodes see. Ray itself runs a task again whose worker or node was
lost. A cell of several processes gets a placement group, one bundle a process, and is started again as a whole.

Ray is used as its documentation has it (docs.ray.io, 2.60): resources and `max_retries` of tasks, placement groups with
`topology_strategy`, which keeps one within a TPU slice by the label ray.io/tpu-slice-name that Ray gives to TPU hosts,
and `ray.cancel`, which interrupts a worker as Ctrl-C would.
"""

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from scaling.errors import InputError
from scaling.files import write_text
from scaling.specs import require
from scaling.sweeps.ray_task import GRACE_SECONDS, free_address, group_options, lacking, run_cell, task_options
from scaling.sweeps.tasks import (
    Event,
    OnEvent,
    Task,
    Way,
    after_failure,
    cell_command,
    died,
    failed,
    on_stop,
    outcome,
    pause,
    read_result,
    steps_done,
    waits,
)
from scaling.training.claims import Sightings
from scaling.training.failures import Failure

END_SECONDS = 30.0  # for Ray to bring the news
POLL_SECONDS = 0.5
LOOK_SECONDS = 5.0  # between two looks at the files of a cell
CONNECT_SECONDS = 30.0
LOST, CANCELLED = "its Ray worker or node was lost", "it was cancelled before it ran"
QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
# Settings of the launcher that its cells take over; whatever else they need, the nodes have to have. The rest of the
# environment, secrets among it, does not go through Ray.
SETTINGS = ("JAX_", "XLA_", "LIBTPU_", "SCALING_", "OMP_NUM_THREADS")


@dataclasses.dataclass
class Started:
    """A cell that was handed to Ray. refs: of its processes, by rank. group: their placement group, if several.

    until: when the rest of them is killed, by the monotonic clock, once one has ended.
    """

    refs: list[Any]
    group: Any = None
    until: float = float("inf")


@dataclasses.dataclass(frozen=True)
class Shared:
    """What all cells of a launcher have in common. mark: a file that only a node that sees this WORKDIR can read."""

    workdir: pathlib.Path
    mark: pathlib.Path
    way: Way

    def log(self, run: str, rank: int) -> str:
        """Where a process of a cell prints."""
        return str(self.mark.parent / (f"{run}.log" if rank == 0 else f"{run}.{rank}.log"))


def check(address: str) -> None:
    """Raises InputError if Ray is not installed here, or no cluster answers at address."""
    installed = importlib.util.find_spec("ray") is not None
    require(installed, "--launcher=ray: Ray is not installed", "pip install 'scaling[ray]'")
    where = f"--ray_address={address}"
    require("://" not in address, where, "HOST:PORT, on a machine that is a node of the cluster")
    # Another process asks: Ray tries an address where nothing answers for minutes, and then ends the process.
    ask = [sys.executable, "-c", "import ray, sys; ray.init(sys.argv[1], log_to_driver=False)", address]
    do = "start this on a node of a running cluster, or give --ray_address=HOST:PORT"
    try:
        done = subprocess.run(ask, env={**os.environ, **QUIET}, capture_output=True, text=True, timeout=CONNECT_SECONDS)
    except subprocess.TimeoutExpired:
        raise InputError(f"no Ray cluster has answered in {CONNECT_SECONDS:g} s", where, do) from None
    if done.returncode != 0:
        raise InputError((done.stderr.strip().splitlines() or ["no Ray cluster answers"])[-1], where, do)


def run_ray(workdir: pathlib.Path, tasks: Sequence[Task], way: Way, on_event: OnEvent) -> bool:
    """Gets tasks done on a Ray cluster, as an engine of scaling.sweeps.tasks does.

    way.workers: cells at a time; None leaves it to Ray. What cells print goes to WORKDIR/ray/RUN.log. Raises InputError
    if no cluster answers, and if one of its nodes does not see WORKDIR or has no `scaling`.
    """
    check(way.ray_address)
    os.environ.update(QUIET)
    import ray

    ray.init(way.ray_address, log_to_driver=False, logging_level="warning")
    shared = Shared(workdir.absolute(), workdir.absolute() / "ray" / f".{uuid.uuid4().hex}", way)
    write_text(shared.mark, "")
    try:
        if lack := lacking(way.ray_resources, [node["Resources"] for node in ray.nodes() if node["Alive"]]):
            print(f"Ray: {lack}; cells wait until one has", file=sys.stderr)  # a cluster that grows may get it yet
        stop = threading.Event()
        with on_stop(stop.set), _ray_aside(shared.mark.with_name("cluster.log"), on_event) as tell:
            return _drive(ray, shared, tasks, tell, stop)
    finally:
        shared.mark.unlink(missing_ok=True)
        ray.shutdown()


def _drive(ray: Any, shared: Shared, tasks: Sequence[Task], on_event: OnEvent, stop: threading.Event) -> bool:
    """Starts cells in their order and tells what becomes of them, until all are over or a stop is asked. A fork waits
    until its trunk has handed over to it, or is over."""
    way, most = shared.way, shared.way.workers or len(tasks)
    due = dict.fromkeys(range(len(tasks)), 0.0)  # cells that wait, and from when on, by time.monotonic()
    tries = [0] * len(tasks)
    running: dict[int, Started] = {}
    left = {task.run for task in tasks}  # not over
    sightings = Sightings(way.care.stale_seconds)
    looked = time.monotonic()

    def tell(index: int, event: Event) -> None:
        if event["event"] in ("done", "failed"):
            left.discard(tasks[index].run)
            due.update({fork: 0.0 for fork in due if tasks[fork].after == tasks[index].run})
        on_event(index, event)

    try:
        while (due or running) and not stop.is_set():
            for index in sorted(index for index in due if due[index] <= time.monotonic()):
                if len(running) == most:
                    break
                if waits(tasks[index], left):
                    due[index] = time.monotonic() + LOOK_SECONDS
                    continue
                del due[index]
                if (event := _before(tasks[index], sightings)) is None:
                    running[index] = _start(ray, tasks[index], shared)
                    continue
                if event["event"] == "progress":  # another launcher has it
                    due[index] = time.monotonic() + LOOK_SECONDS
                tell(index, event)
            stop.wait(POLL_SECONDS)
            for index, codes in _ended(ray, running):
                event = _after(tasks[index], codes, tries[index], way)
                if event["event"] == "again":
                    tries[index] = event["tries"]
                    due[index] = time.monotonic() + pause(event["tries"], elsewhere=True)
                elif event["event"] == "stopped":  # by its node, or another launcher was faster
                    due[index] = time.monotonic() + LOOK_SECONDS
                tell(index, event)
            if time.monotonic() - looked >= LOOK_SECONDS:
                looked = time.monotonic()
                for index in running:
                    with contextlib.suppress(InputError):  # of a file that is none: the cell itself will say so
                        on_event(index, _progress(tasks[index]))
    finally:
        _stop(ray, running, tasks, tries, way, on_event)
    return not stop.is_set()


def _start(ray: Any, task: Task, shared: Shared) -> Started:
    """Hands a cell to Ray, which starts it when it has the resources."""
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    way, settings = shared.way, {k: v for k, v in os.environ.items() if k.startswith(SETTINGS)}
    command = cell_command(shared.workdir, task.run, way)
    options = {"name": task.run, **task_options(way.ray_resources)}
    remote, mark = ray.remote(run_cell), str(shared.mark)
    if task.processes == 1:
        # Ray itself starts it again when its worker or node is lost.
        alone = remote.options(**options, max_retries=way.retries)
        return Started([alone.remote(command, mark, shared.log(task.run, 0), settings)])
    group = placement_group(**group_options(task.processes, way.ray_resources))

    def on(rank: int) -> dict[str, Any]:
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
        return {"scheduling_strategy": strategy, "max_retries": 0}

    coordinator = ray.remote(free_address).options(num_cpus=0, **on(0)).remote()
    refs = []
    for rank in range(task.processes):
        one = [*command, f"--processes={task.processes}", f"--process_id={rank}"]
        ranked = remote.options(**options, **on(rank))
        refs.append(ranked.remote(one, mark, shared.log(task.run, rank), settings, coordinator))
    return Started(refs, group)


def _ended(ray: Any, running: dict[int, Started]) -> Iterator[tuple[int, list[int | str]]]:
    """Takes out the cells that have ended, all their processes, with the exit codes, or LOST or CANCELLED, by rank."""
    from ray.util.placement_group import remove_placement_group

    for index, cell in list(running.items()):
        ended, left = ray.wait(cell.refs, num_returns=len(cell.refs), timeout=0)
        if not left:
            del running[index]
            if cell.group is not None:
                remove_placement_group(cell.group)
            yield index, [_code(ray, ref) for ref in cell.refs]
        elif ended:  # the others end too, by the watch that they keep on each other, or are ended
            cell.until = min(cell.until, time.monotonic() + GRACE_SECONDS)
            if time.monotonic() >= cell.until:
                _cancel(ray, left, force=True)


def _code(ray: Any, ref: Any) -> int | str:
    """The exit code of a process that has ended. Raises InputError if its node cannot run cells."""
    try:
        return ray.get(ref)
    except ray.exceptions.TaskCancelledError:
        return CANCELLED
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        if "No module named 'scaling" in str(error):
            raise InputError("a Ray node has no `scaling`", do="install it on all, in the environment of Ray") from None
        raise
    except (
        ray.exceptions.NodeDiedError,
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.TaskPlacementGroupRemoved,
    ):
        return LOST


def _before(task: Task, sightings: Sightings) -> Event | None:
    """What is to be told of a cell instead of starting it: that another launcher has done it, or is at it, or that its
    files are none. None if it is to be started."""
    try:
        if read_result(task.directory) is not None:
            return {"event": "done"}
        return None if sightings.is_free(task.directory) else _progress(task)
    except InputError as error:
        return failed(Failure("refused", str(error)))


def _after(task: Task, codes: Sequence[int | str], tries: int, way: Way) -> Event:
    """What came of a cell, of the ends of its processes: the first that failed by itself tells why."""
    failures = [code for code in codes if code not in (0, LOST, CANCELLED)]
    try:
        if failures or all(code == 0 for code in codes):
            event = outcome(task.directory, failures[0] if failures else 0)
        elif read_result(task.directory) is not None:
            event = {"event": "done"}
        else:
            event = failed(died(task.directory, LOST)) if LOST in codes else {"event": "stopped"}
    except InputError as error:
        event = failed(Failure("refused", str(error)))
    return after_failure(event, tries, way) if event["event"] == "failed" else event


def _progress(task: Task) -> Event:
    return {"event": "progress", "done": steps_done(task.directory), "steps": task.steps}


def _stop(
    ray: Any, running: dict[int, Started], tasks: Sequence[Task], tries: list[int], way: Way, on_event: OnEvent
) -> None:
    """Has the cells that run save and stop, in bounded time, and tells how each has ended."""
    _cancel(ray, [ref for cell in running.values() for ref in cell.refs])
    until = time.monotonic() + GRACE_SECONDS + END_SECONDS
    while running and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
        for index, codes in _ended(ray, running):
            on_event(index, _after(tasks[index], codes, tries[index], way))
    _cancel(ray, [ref for cell in running.values() for ref in cell.refs], force=True)


def _cancel(ray: Any, refs: Sequence[Any], force: bool = False) -> None:
    for ref in refs:
        ray.cancel(ref, force=force)


@contextlib.contextmanager
def _ray_aside(log: pathlib.Path, on_event: OnEvent) -> Iterator[OnEvent]:
    """While open, what Ray prints of its nodes (pages, when one is lost) goes to a file. Yields on_event, not aside."""
    screen = sys.stdout

    def tell(index: int, event: Event) -> None:
        with contextlib.redirect_stdout(screen):
            on_event(index, event)

    with open(log, "a", encoding="utf-8") as words, contextlib.redirect_stdout(words):
        yield tell
