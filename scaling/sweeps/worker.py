"""A process that trains cells, one after the other, as its launcher tells it on standard input.

In: one JSON line a cell, {"directory", "stores", "placement", "trackers", "profile_steps"}; run.json is in its
directory. A cell of a plan has "planned" besides, {"topology", "needed_gib"}, and is trained on no other hardware. Out:
one JSON line an event, on the standard output it was started with; whatever libraries print goes to standard error.
When standard input closes, the launcher has gone, and the process ends at once, in the middle of a step if need be.
"""

import argparse
import json
import os
import pathlib
import queue
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cores", default="", help="Comma-separated CPU cores to stay on; empty: all.")
    parser.add_argument("--cache", default="", help="Directory of jax's compilation cache; empty: none.")
    arguments = parser.parse_args()
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
        _train(json.loads(cells.get()), events, stop.is_set)


def _read(cells: "queue.Queue[str]") -> None:
    for line in sys.stdin:
        cells.put(line)
    os._exit(0)


def _train(cell: dict[str, Any], events: TextIO, stopping: Callable[[], bool]) -> None:
    from scaling.data.token_store import open_store
    from scaling.errors import RunFailedError, ScalingError, StoppedError
    from scaling.files import read_json
    from scaling.parallel.topology import parse_topology
    from scaling.runs import Placement, run_from_dict
    from scaling.specs import from_dict
    from scaling.training.loop import train
    from scaling.training.planned import check_hardware, hardware

    def tell(event: str, **facts: Any) -> None:
        events.write(json.dumps({"event": event, **facts}) + "\n")

    directory = pathlib.Path(cell["directory"])
    try:
        run = run_from_dict(read_json(directory / "run.json"), str(directory / "run.json"))
        placement = from_dict(Placement, cell["placement"], "placement")
        if planned := cell.get("planned"):
            check_hardware(parse_topology(planned["topology"]), planned["needed_gib"], hardware())
        stores = {store.content_id: store for store in map(open_store, cell["stores"])}
        train(
            run,
            placement,
            stores,
            directory,
            lambda done, steps: tell("progress", done=done, steps=steps),
            stopping,
            trackers=cell["trackers"],
            profile_steps=cell["profile_steps"],
        )
    except StoppedError:
        tell("stopped")
    except RunFailedError as error:
        tell("failed", reason=str(error), final=True)
    except ScalingError as error:
        tell("failed", reason=str(error), final=False)
    except Exception as error:
        import traceback

        traceback.print_exc()
        tell("failed", reason=f"{type(error).__name__}: {error}".splitlines()[0], final=False)
    else:
        tell("done")


if __name__ == "__main__":
    main()
