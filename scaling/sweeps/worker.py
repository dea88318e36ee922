"""A process that trains cells, one after the other, as its launcher tells it on standard input.

In: one JSON line a cell, of `scaling.sweeps.tasks.cell_item`. Out: one JSON line an event, on the standard output it
was started with: progress with done and steps, and at last done, stopped, busy (another process has the run) or failed
with kind, reason and retry. Whatever libraries print goes to standard error.

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
from scaling.sweeps.one_cell import train_cell
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
    while True:
        _tell(events, _train(json.loads(cells.get()), events, stop.is_set))


def _read(cells: "queue.Queue[str]") -> None:
    for line in sys.stdin:
        cells.put(line)
    os._exit(0)


def _tell(events: TextIO, event: Event) -> None:
    events.write(json.dumps(event) + "\n")


def _train(item: dict[str, Any], events: TextIO, stopping: Callable[[], bool]) -> Event:
    """Trains a cell, telling of its steps, and returns how it ended."""
    run = os.path.basename(item["directory"])
    try:
        train_cell(
            item,
            lambda done, steps: _tell(events, {"event": "progress", "done": done, "steps": steps}),
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
