"""A process of a cell as a task of Ray: what it takes of a node, and what its worker does, which starts the process,
waits for it, and takes it along when it dies."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from scaling.specs import require
from scaling.sweeps.tasks import cell_environment

GRACE_SECONDS = 60.0  # between being asked to stop and being killed: time for a step and a save
POLL_SECONDS = 0.2
SLICE, HOST_OF_SLICE = "ray.io/tpu-slice-name", "ray.io/tpu-worker-id"  # labels that Ray gives to TPU hosts


def task_options(resources: Mapping[str, float]) -> dict[str, Any]:
    """What a process takes, as options of a Ray task: by default one CPU, no GPU."""
    own = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    taken = {"CPU": 1, **resources}
    options: dict[str, Any] = {own[name]: amount for name, amount in taken.items() if name in own}
    return {**options, "resources": {name: amount for name, amount in taken.items() if name not in own}}


def group_options(processes: int, resources: Mapping[str, float]) -> dict[str, Any]:
    """The placement group of a cell of several processes, each a bundle: as close together as they fit.

    Processes that take TPUs are a host each, of one slice that has this many, and in the order of its hosts.
    """
    options: dict[str, Any] = {"bundles": [{"CPU": 1, **resources}] * processes}
    if not resources.get("TPU"):
        return {**options, "strategy": "PACK"}
    hosts = [{HOST_OF_SLICE: str(rank)} for rank in range(processes)]
    return {**options, "topology_strategy": {SLICE: "STRICT_PACK"}, "bundle_label_selector": hosts}


def lacking(resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> str:
    """What no node has, of the resources of all nodes, busy or not; "" if one has what a process takes."""
    taken = {"CPU": 1, **resources}
    if any(all(node.get(name, 0) >= amount for name, amount in taken.items()) for node in nodes):
        return ""
    return "no node has " + ", ".join(f"{name}={amount:g}" for name, amount in taken.items())


def run_cell(command: list[str], mark: str, log: str, settings: dict[str, str], coordinator: str = "") -> int:
    """In a worker of Ray: runs a cell's command to its end and returns its exit code, negative for a signal.

    A task that is cancelled is interrupted as by Ctrl-C, and a node that is shut down sends SIGTERM: the cell is then
    asked to save and stop. Raises InputError where WORKDIR is not seen.
    """
    seen = os.path.exists(mark)
    where = f"{pathlib.Path(mark).parents[1]} on {socket.gethostname()}"
    require(seen, "is not the launcher's", "--workdir has to be on a disk that every node sees by the same path", where)
    command = [sys.executable, *command[1:], f"--parent={os.getpid()}"]
    command += [f"--coordinator={coordinator}"] if coordinator else []
    asked: list[float] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: asked.append(time.monotonic())) for number in numbers}
    process = None
    try:
        with open(log, "a", encoding="utf-8") as out:
            process = subprocess.Popen(
                command,
                env={**cell_environment(), **settings},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                process_group=0,  # signals to the worker's group are not for it
            )
        return _end_of(process, asked)
    finally:
        if process is not None:
            process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_of(process: "subprocess.Popen[bytes]", asked: list[float]) -> int:
    """Waits for a cell; once asked to stop, it is given GRACE_SECONDS to do so."""
    told = False
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(POLL_SECONDS)
        if asked and not told:
            process.terminate()
            told = True
        if asked and time.monotonic() - asked[0] > GRACE_SECONDS:
            process.kill()


def free_address() -> str:
    """In the bundle of process 0: where the others find it."""
    import ray

    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"
