"""Calls of one function, spread over processes."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

from scaling.errors import RunFailedError
from scaling.progress import progress_bar


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(function: Callable[..., Any], jobs: Sequence[tuple], processes: int, unit: str, what: str) -> list[Any]:
    """The results of function(*job), in the order of the jobs, with a progress line.

    A single job, or a single process, is run by the caller itself; else function and jobs are pickled. Processes are
    spawned, not forked: a fork of a process with threads, JAX's for one, can hang. They end when the caller does, even
    when it is killed. The first error of a job ends all of them and is raised here.
    Raises RunFailedError if a process was killed.
    """
    workers = min(processes, len(jobs))
    with progress_bar(len(jobs), unit, what) as bar:
        if workers <= 1:
            results = []
            for job in jobs:
                results.append(function(*job))
                bar.update()
            return results
        with _pool(workers) as pool:
            futures = [pool.submit(function, *job) for job in jobs]
            for future in as_completed(futures):
                future.result()
                bar.update()
            return [future.result() for future in futures]


@contextlib.contextmanager
def _pool(workers: int) -> Any:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_serve, initargs=(receiver,))
    try:
        yield pool
    except BrokenProcessPool:
        sender.close()
        raise RunFailedError(
            "a worker process was killed, for want of memory perhaps: fewer processes need less", "out_of_memory"
        ) from None
    except BaseException:
        sender.close()  # ends the workers at once, in the middle of their jobs
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        sender.close()
        receiver.close()


def _serve(receiver: Connection) -> None:
    """Makes this process end with its parent: the other end of the pipe closes when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent decides

    def watch() -> None:
        receiver.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
