"""Running cells side by side in worker processes on this machine, next to launchers that do the same elsewhere."""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from scaling.command import compilations
from scaling.errors import MENDED, NEVER, InputError
from scaling.sweeps import packing
from scaling.sweeps.tasks import (
    Event,
    OnEvent,
    Task,
    Way,
    after_failure,
    cell_environment,
    cell_item,
    failed,
    on_stop,
    outcome,
    pause,
    read_failure,
    read_result,
    steps_done,
    waits,
)
from scaling.sweeps.workdir import read_sweep
from scaling.training.claims import Sightings, read_claim, seems_alive
from scaling.training.failures import Failure

GRACE_SECONDS = 60.0  # between being asked to stop and being killed: time for a step and a save
LOOK_SECONDS = 2.0  # between two looks at a cell that another launcher has


class Share(NamedTuple):
    """What of this machine a worker has. cores: to stay on, comma-separated; "": any. environment: what it is told."""

    cores: str
    environment: dict[str, str]


def devices_here() -> tuple[str, int]:
    """The platform of jax's devices on this machine (cpu, gpu, tpu), and how many of them there are."""
    if os.environ.get("JAX_PLATFORMS") == "cpu" or not _has_plugins():
        return "cpu", 1
    # Another process asks, because asking takes hold of an accelerator.
    ask = [sys.executable, "-c", "import jax; print(jax.default_backend(), jax.local_device_count())"]
    backend, number = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.split()[-2:]
    return backend, int(number)


def _has_plugins() -> bool:
    """Whether jax may find anything but a CPU here. It looks in these places; its own look takes a second."""
    named = importlib.metadata.entry_points(group="jax_plugins")
    modules = [name for name in ("jax_plugins", "libtpu") if importlib.util.find_spec(name)]
    return bool(named or modules or "PJRT_NAMES_AND_LIBRARY_PATHS" in os.environ)


def run_local(workdir: pathlib.Path, tasks: Sequence[Task], way: Way, on_event: OnEvent) -> bool:
    """Trains cells, in order, as workers become free, and waits for those that other launchers train.

    An engine, as scaling.sweeps.tasks has it. Cells of as many devices run together, those of the most first (see
    scaling.sweeps.packing). What workers print goes to workers.log.
    """
    sweep = read_sweep(workdir)
    cells = {cell.id: cell for cell in sweep.cells}
    for width in sorted({task.devices for task in tasks}, reverse=True):
        places = [k for k, task in enumerate(tasks) if task.devices == width]
        some = [tasks[k] for k in places]
        items = [cell_item(workdir, cells[task.run], sweep, way) for task in some]

        def tell(index: int, event: Event, places: list[int] = places) -> None:
            on_event(places[index], event)

        cache = compilations(way.compilations, workdir)
        if not run_cells(some, items, way, workdir / "workers.log", cache, tell):
            return False
    return True


def run_cells(
    tasks: Sequence[Task],
    items: Sequence[dict[str, Any]],
    way: Way,
    log: pathlib.Path,
    cache: pathlib.Path,
    on_event: OnEvent,
) -> bool:
    """Trains cells; returns False if it was stopped by SIGINT or SIGTERM.

    items: of each task, as scaling.sweeps.worker takes them. on_event is called from several threads, one at a time. A
    worker that dies fails its cell, and a new one takes its place. log: where the workers' standard error goes. What
    goes wrong in the launcher itself stops all workers, as a signal would, and is raised.
    """
    stop = threading.Event()
    agenda = Agenda(tasks, way, on_event)
    faults: list[Exception] = []

    def serve(share: Share, rank: int) -> None:
        worker = None
        try:
            while (index := agenda.next(stop)) is not None:
                if worker is None or worker.poll() is not None:
                    worker = _start(share, log, cache)
                    running.append(worker)
                if stop.is_set():
                    break
                following = agenda.later(rank)
                item = {**items[index], "next": None if following is None else items[following]}
                end = _one_cell(worker, item, lambda event, index=index: agenda.tell(index, event))
                agenda.ended(index, end, stop.is_set())
                # It will stop at every cell, or have no device that works: the next one is for a new worker.
                if end["event"] == "stopped" or end.get("kind") == "device":
                    _close(worker)
        except Exception as fault:  # a thread's exception would end in nothing; it is raised below
            faults.append(fault)
            _ask_to_stop(stop, running)
        if worker is not None:
            _close(worker)

    running: list[subprocess.Popen[str]] = []
    shares = _shares(way.workers, max((task.devices for task in tasks), default=1))
    threads = [threading.Thread(target=serve, args=(share, k)) for k, share in enumerate(shares[: len(tasks)])]
    with on_stop(lambda: _ask_to_stop(stop, running)):
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():  # short waits, in which Python can run the signal handler
                thread.join(0.2)
    if faults:
        raise faults[0]
    return not stop.is_set()


class Agenda:
    """The cells that are left, in their order, each with the time before which it is not looked at.

    A cell leaves it when it is done or given up, by this launcher or by another. It comes back when it failed of what
    may be gone, after a pause, and when another launcher has it, to be looked at again every LOOK_SECONDS. Whose a cell
    is, its files say; two launchers that take it at once are told apart by its claim. A fork waits until its trunk has
    handed over to it, or is over.
    """

    def __init__(self, tasks: Sequence[Task], way: Way, on_event: OnEvent):
        self._tasks, self._way, self._on_event = tasks, way, on_event
        self._due = dict.fromkeys(range(len(tasks)), 0.0)  # of the cells that wait, by time.monotonic()
        self._left = {task.run for task in tasks}  # the cells that are not over
        self._tries = [0] * len(tasks)
        self._known = [_failure_bytes(task) for task in tasks]  # failures from before: this start is another chance
        self._sightings = Sightings(way.care.stale_seconds)
        self._lock = threading.Lock()

    def tell(self, index: int, event: Event) -> None:
        """Passes an event on."""
        with self._lock:
            self._on_event(index, event)

    def next(self, stop: threading.Event) -> int | None:
        """The next cell to be started, None once none is left that could be; waits for those that are not due."""
        while not stop.is_set():
            with self._lock:
                if not self._due:
                    return None
                for index in sorted(self._due):
                    if self._due[index] <= time.monotonic() and self._is_ours(index):
                        del self._due[index]
                        return index
            stop.wait(0.1)
        return None

    def later(self, place: int) -> int | None:
        """The cell that stands at a place among those that wait: a guess at what comes, which promises nothing."""
        with self._lock:
            waiting = sorted(self._due)
        return waiting[place] if place < len(waiting) else None

    def ended(self, index: int, event: Event, stopped: bool) -> None:
        """How a cell that was started has ended: tells so, and puts it back if it is not over."""
        with self._lock:
            if event["event"] == "failed" and not stopped:
                event = after_failure(event, self._tries[index], self._way)
            if event["event"] == "again":
                self._tries[index] = event["tries"]
                self._due[index] = time.monotonic() + pause(event["tries"])
                self._known[index] = _failure_bytes(self._tasks[index])
            elif event["event"] == "busy" or (event["event"] == "stopped" and not stopped):
                self._due[index] = time.monotonic() + LOOK_SECONDS
            else:
                self._over(index)
            if event["event"] != "busy":
                self._on_event(index, event)

    def _is_ours(self, index: int) -> bool:
        """Whether a cell is free to be started here. One that has ended elsewhere leaves the agenda."""
        task = self._tasks[index]
        try:
            end = self._end_elsewhere(index)
            # Our own sightings, or, at once, the clocks of hosts as a hint: the worker decides by sightings of its own.
            alive = seems_alive(read_claim(task.directory), self._way.care.stale_seconds)
            busy = not self._sightings.is_free(task.directory) and alive
            done = steps_done(task.directory) if busy and end is None else 0
        except InputError as error:
            end, busy = failed(Failure("refused", str(error))), False
        if end is not None:
            del self._due[index]
            self._over(index)
            self._on_event(index, end)
            return False
        if not busy and waits(task, self._left):
            self._due[index] = time.monotonic() + LOOK_SECONDS
            return False
        if busy:
            self._due[index] = time.monotonic() + LOOK_SECONDS
            self._on_event(index, {"event": "progress", "done": done, "steps": task.steps})
        return not busy

    def _over(self, index: int) -> None:
        """A cell has left the agenda: its forks need not wait any more."""
        run = self._tasks[index].run
        self._left.discard(run)
        self._due |= {fork: 0.0 for fork in self._due if self._tasks[fork].after == run}

    def _end_elsewhere(self, index: int) -> Event | None:
        """How another launcher has ended a cell, None if it has not."""
        directory = self._tasks[index].directory
        if read_result(directory) is not None:
            return {"event": "done"}
        if _failure_bytes(self._tasks[index]) == self._known[index]:
            return None
        failure = read_failure(directory)
        return failed(failure) if failure is not None and failure.retry in (NEVER, MENDED) else None


def _failure_bytes(task: Task) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        return (task.directory / "failure.json").read_bytes()
    return b""


def _one_cell(worker: "subprocess.Popen[str]", item: dict[str, Any], tell: Callable[[Event], None]) -> Event:
    """Has a worker train a cell, passing its progress on, and returns how that ended."""
    try:
        worker.stdin.write(json.dumps(item) + "\n")
        worker.stdin.flush()
    except BrokenPipeError:
        pass  # it died between two cells; the loop below sees the end of its output and says so
    for line in worker.stdout:
        if not line.endswith("\n"):
            break  # half a line: it died while it wrote
        event = json.loads(line)
        if event["event"] != "progress":
            return event
        tell(event)
    try:
        return outcome(pathlib.Path(item["directory"]), worker.wait())
    except InputError as error:  # a file that a person has to look at; the others go on
        return failed(Failure("refused", str(error)))


def _start(share: Share, log: pathlib.Path, cache: pathlib.Path) -> "subprocess.Popen[str]":
    """Starts a worker, which ends with this thread."""
    options = [f"--cores={share.cores}", f"--cache={cache}", f"--parent={os.getpid()}"]
    with open(log, "a", encoding="utf-8") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "scaling.sweeps.worker", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**cell_environment(), **share.environment},
        )


def _close(worker: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.close()
    worker.wait()


def _ask_to_stop(stop: threading.Event, running: list["subprocess.Popen[str]"]) -> None:
    """Asks the workers to save and stop, and kills those that do not in time."""
    told = stop.is_set()
    stop.set()  # before anything is printed: a second Ctrl-C may come in the midst of that
    if not told:
        print(f"\nstopping: cells in progress save their state, within {GRACE_SECONDS:.0f} s", file=sys.stderr)
    for worker in running:
        worker.terminate()
    killer = threading.Timer(GRACE_SECONDS, lambda: [worker.kill() for worker in running])
    killer.daemon = True
    killer.start()


def _shares(workers: int | None, width: int = 1) -> list[Share]:
    """What each worker has, so many or as many as there is room for, for cells of `width` devices.

    On a CPU its cores, all of them dealt out, one a worker by default: at sizes where a matrix product does not fill
    two cores, two one-thread processes do nearly twice the work of one process with two threads. Of accelerators
    `width` each (scaling.sweeps.packing); where a process cannot be shown some of them alone, one worker has all.
    Workers that outnumber the cores share them.
    """
    platform, devices = devices_here()
    if platform != "cpu":
        held = packing.groups(devices, width, workers if platform in packing.DEALT else 1)
        return [Share("", packing.visible(platform, group, devices, os.environ)) for group in held]
    cores = _cores()
    workers = workers or len(cores)
    if workers > len(cores) or workers == 1 or not hasattr(os, "sched_setaffinity"):
        return [Share("", {})] * workers
    return [Share(",".join(map(str, cores[k::workers])), {}) for k in range(workers)]


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
