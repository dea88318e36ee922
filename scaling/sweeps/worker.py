"""A process that trains cells, one after the other, as its launcher tells it on standard input.

In: one JSON line a cell, of `scaling.sweeps.tasks.cell_item`, with "next", the item of the cell that will probably
follow it. Out: one JSON line an event, on the standard output it was started with: progress with done and steps, and at
last done, stopped, busy (another process has the run) or failed with kind, reason and retry. Whatever libraries print
goes to standard error.

Where accelerators compute, a thread compiles the next cell's programs while they train the present one. Where the CPU
computes, it would take from the steps what it gives to the next cell, and is left.

A worker ends with its launcher, in the middle of a step if need be. Standard input then closes, which a thread waits
for; and Linux kills it, even if a call into C holds all its threads up (`die_with_parent`).
"""

import argparse
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from scaling.errors import BusyError, LostClaimError, StoppedError
from scaling.sweeps.one_cell import compile_cell, train_cell
from scaling.sweeps.tasks import Event, die_with_parent, failed
from scaling.training.failures import failure_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cores", default="", help="Comma-separated CPU cores to stay on; empty: all.")
    parser.add_argument("--cache", default="", help="Directory of jax's compilation cache; empty: none.")
    parser.add_argument("--parent", type=int, required=True, help="The process of the launcher.")
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    if arguments.cores:
        os.sched_setaffinity(0, [int(core) for core in arguments.cores.split(",")])
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the launcher decides
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    cells: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(cells,), daemon=True).start()

    # Imports jax, after the affinity is set: it sizes its thread pool by it.
    from scaling.training.compilations import keep_compilations

    if arguments.cache:
        keep_compilations(arguments.cache)
    ahead = Ahead(_elsewhere)
    while True:
        _tell(events, _train(json.loads(cells.get()), events, stop.is_set, ahead))


def _read(cells: "queue.Queue[str]") -> None:
    for line in sys.stdin:
        cells.put(line)
    os._exit(0)


def _tell(events: TextIO, event: Event) -> None:
    events.write(json.dumps(event) + "\n")


class Ahead:
    """Compiles cells on a thread of its own, one at a time. worth_it: whether that takes nothing from training."""

    def __init__(self, worth_it: Callable[[], bool]):
        self._worth_it = worth_it
        self._run: str | None = None
        self._thread: threading.Thread | None = None

    def begin(self, item: dict[str, Any] | None) -> None:
        """Begins to compile a cell, unless one is being compiled, or this one was."""
        busy = self._thread is not None and self._thread.is_alive()
        if item is None or busy or item["directory"] == self._run or not self._worth_it():
            return
        self._run = item["directory"]
        self._thread = threading.Thread(target=_compile, args=(item,), name="ahead", daemon=True)
        self._thread.start()

    def wait(self, item: dict[str, Any]) -> None:
        """Until a cell that is being compiled is: a second compilation beside it would take longer."""
        if self._thread is not None and item["directory"] == self._run:
            self._thread.join()


def _elsewhere() -> bool:
    import jax

    return jax.default_backend() != "cpu"


def _compile(item: dict[str, Any]) -> None:
    try:
        compile_cell(item)
    except Exception as error:  # raised again, and told as its failure, when the cell itself compiles
        print(f"{os.path.basename(item['directory'])}: not compiled ahead: {error}", flush=True)


def _train(item: dict[str, Any], events: TextIO, stopping: Callable[[], bool], ahead: Ahead) -> Event:
    """Trains a cell, telling of its steps, and returns how it ended."""
    run, following = os.path.basename(item["directory"]), item.get("next")

    def report(done: int, steps: int) -> None:
        _tell(events, {"event": "progress", "done": done, "steps": steps})
        ahead.begin(following)

    try:
        ahead.wait(item)
        train_cell(
            item,
            report,
            stopping,
            lambda line: print(f"{run}: {line}", flush=True),
        )
    except StoppedError:
        return {"event": "stopped"}
    except (BusyError, LostClaimError):
        return {"event": "busy"}
    except Exception as error:
        failure = failure_of(error)
        if failure.kind == "bug":
            traceback.print_exc()
        return failed(failure)
    return {"event": "done"}


if __name__ == "__main__":
    main()
