"""Running cells side by side in worker processes on this machine."""

import contextlib
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from scaling.files import write_json

GRACE_SECONDS = 60.0  # between being asked to stop and being killed: time for a step and a save


def default_workers() -> int:
    """One worker a core where jax computes on the CPU, else one, which holds the accelerators.

    On a CPU, at sizes where a matrix product does not fill two cores, two one-thread processes do nearly twice the work
    of one process with two threads.
    """
    # Another process asks, because asking takes hold of an accelerator.
    ask = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    backend = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.split()[-1]
    return len(_cores()) if backend == "cpu" else 1


def run_cells(
    cells: Sequence[dict[str, Any]],
    workers: int,
    log: pathlib.Path,
    cache: pathlib.Path,
    on_event: Callable[[int, dict[str, Any]], None],
) -> bool:
    """Trains cells, in order, as workers become free; returns False if it was stopped by SIGINT or SIGTERM.

    cells: as scaling.sweeps.worker takes them. on_event(index of the cell, event):
    progress with done and steps, done, stopped, or failed with a reason; called from several threads, one at a time. A
    worker that dies fails its cell, and a new one takes its place. log: where the workers' standard error goes. What
    goes wrong in the launcher itself stops all workers, as a signal would, and is raised.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(cells)):
        waiting.put(index)
    stop, lock = threading.Event(), threading.Lock()
    faults: list[Exception] = []

    def tell(index: int, event: dict[str, Any]) -> None:
        with lock:
            on_event(index, event)

    def serve(cores: str) -> None:
        worker = None
        try:
            while not stop.is_set():
                index = waiting.get_nowait()
                if worker is None or worker.poll() is not None:
                    worker = _start(cores, log, cache)
                    running.append(worker)
                if stop.is_set():
                    break
                _one_cell(worker, cells[index], lambda event, index=index: tell(index, event))
        except queue.Empty:
            pass
        except Exception as fault:  # a thread's exception would end in nothing; it is raised below
            faults.append(fault)
            _ask_to_stop(stop, running)
        if worker is not None:
            _close(worker)

    running: list[subprocess.Popen[str]] = []
    threads = [threading.Thread(target=serve, args=(share,)) for share in _shares(workers)[: len(cells)]]
    with _on_signal(stop, running):
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():  # short waits, in which Python can run the signal handler
                thread.join(0.2)
    if faults:
        raise faults[0]
    return not stop.is_set()


def _one_cell(worker: "subprocess.Popen[str]", cell: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    try:
        worker.stdin.write(json.dumps(cell) + "\n")
        worker.stdin.flush()
    except BrokenPipeError:
        pass  # it died between two cells; the loop below sees the end of its output and says so
    for line in worker.stdout:
        if not line.endswith("\n"):
            break  # half a line: it died while it wrote
        event = json.loads(line)
        if event["event"] == "failed" and not event["final"]:
            _record(cell, event["reason"])  # of a final one, the training itself has said why
        tell(event)
        if event["event"] != "progress":
            return
    code = worker.wait()
    by = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
    reason = f"its process ended with {by}" + (", as when memory runs out" if code == -signal.SIGKILL else "")
    _record(cell, reason)
    tell({"event": "failed", "reason": reason, "final": False})


def _record(cell: dict[str, Any], reason: str) -> None:
    """Leaves the reason of a failure that another try may not meet."""
    write_json(pathlib.Path(cell["directory"]) / "failure.json", {"reason": reason, "final": False})


def _start(cores: str, log: pathlib.Path, cache: pathlib.Path) -> "subprocess.Popen[str]":
    root = pathlib.Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "scaling.sweeps.worker", f"--cores={cores}", f"--cache={cache}"]
    with open(log, "a", encoding="utf-8") as errors:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )


def _close(worker: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.close()
    worker.wait()


@contextlib.contextmanager
def _on_signal(stop: threading.Event, running: list["subprocess.Popen[str]"]) -> Iterator[None]:
    """While open, SIGINT and SIGTERM ask the workers to save and stop, and kill those that do not in time."""

    def handle(*_: object) -> None:
        _ask_to_stop(stop, running)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ask_to_stop(stop: threading.Event, running: list["subprocess.Popen[str]"]) -> None:
    stop.set()
    for worker in running:
        worker.terminate()
    killer = threading.Timer(GRACE_SECONDS, lambda: [worker.kill() for worker in running])
    killer.daemon = True
    killer.start()


def _shares(workers: int) -> list[str]:
    """The cores of each worker, all of ours dealt out; "" pins nothing: a lone worker, too few cores, or no way to."""
    cores = _cores()
    if workers > len(cores) or workers == 1 or not hasattr(os, "sched_setaffinity"):
        return [""] * workers
    return [",".join(map(str, cores[k::workers])) for k in range(workers)]


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
