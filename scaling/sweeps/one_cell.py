"""One cell, trained in this process: what a worker does for each of its cells, and experiments.cell for its own."""

import contextlib
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from scaling.errors import BusyError, LostClaimError, StoppedError
from scaling.files import read_json, write_json
from scaling.runs import Placement, run_from_dict
from scaling.specs import from_dict
from scaling.sweeps.texts import VERIFIED
from scaling.training.care import Care, parse_care
from scaling.training.claims import Claim, read_claim, seems_alive
from scaling.training.failures import Failure, failure_of


def train_cell(
    item: dict[str, Any],
    report: Callable[[int, int], None],
    stopping: Callable[[], bool],
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains a cell, of `scaling.sweeps.tasks.cell_item`, and returns its result; raises as `train`.

    A cell of a plan, which has "planned", {"topology", "needed_gib"}, is trained on no other hardware. What goes wrong
    before the run is claimed, and so before `train` leaves word of failures, stands in failure.json too. Several
    processes that are connected train it together.
    """
    # Here: the launcher imports this module's neighbours, and does without jax.
    from scaling.data.token_store import open_store
    from scaling.parallel.topology import parse_topology
    from scaling.training import hosts
    from scaling.training.loop import train
    from scaling.training.planned import check_hardware, hardware

    directory = pathlib.Path(item["directory"])
    run = run_from_dict(item["run"], str(directory))
    placement = from_dict(Placement, item["placement"], "placement")

    def opened() -> dict[str, Any]:
        if planned := item.get("planned"):
            check_hardware(parse_topology(planned["topology"]), planned["needed_gib"], hardware())
        return {store.content_id: store for store in map(open_store, item["stores"])}

    with _faults_left(directory, hosts.writes):
        return train(
            run,
            placement,
            hosts.together(opened),
            directory,
            report,
            stopping,
            trackers=item["trackers"],
            profile_steps=item["profile_steps"],
            say=say,
            care=parse_care(item["care"]),
            verified=directory.parents[1] / VERIFIED,
            forks=[(run_from_dict(fork["run"]), pathlib.Path(fork["directory"])) for fork in item.get("forks", ())],
        )


def compile_cell(item: dict[str, Any]) -> None:
    """Compiles what a cell needs in this process, for `train_cell` to find. Raises what that would raise of it."""
    from scaling.training.ahead import compile_ahead

    compile_ahead(run_from_dict(item["run"], item["directory"]), from_dict(Placement, item["placement"], "placement"))


def stop_on_signals(stop: threading.Event | None = None) -> threading.Event:
    """From now on SIGINT and SIGTERM set the event that is returned, for training to save and stop.

    stop: of an earlier call. jax's own handler of SIGTERM, which `hosts.connect` puts up, takes the place of ours: call
    this again after it.
    """
    stop = stop or threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


@contextlib.contextmanager
def _faults_left(directory: pathlib.Path, writes: Callable[[], bool]) -> Iterator[None]:
    """Leaves the reason of what is raised inside in failure.json, where the training itself has not done so."""
    try:
        yield
    except (StoppedError, LostClaimError, BusyError):
        raise
    except Exception as error:
        path, failure = directory / "failure.json", failure_of(error)
        try:
            told = read_json(path) if path.exists() else None
            claim = read_claim(directory)
            taken = seems_alive(claim, Care().stale_seconds)  # by another, whose failure this is not
            if writes() and not taken and not _is_told(failure, told, claim):
                write_json(path, failure.to_json())
        except Exception as second:  # of a disk that is full, say; the first one is what counts
            print(f"{path} could not be written: {second}", file=sys.stderr)
        raise


def _is_told(failure: Failure, told: Any, claim: Claim | None) -> bool:
    """Whether a failure stands in what failure.json holds: itself, or what the peer that was lost has said of it."""
    if not isinstance(told, dict):
        return False
    by_peer = failure.kind == "peer_lost" and claim is not None and told.get("attempt") == claim.attempt
    return by_peer or (told.get("kind"), told.get("reason")) == (failure.kind, failure.reason)
