"""Several processes, a host each, that train one run together: jax.distributed, and what they must agree on.

Every process runs the same program on its own devices, so each must take every branch that the others take: one that
raises, stops or saves alone leaves the rest waiting in a collective for ever. Here is all that one of them could see
differently (its files, its signals, its clock), turned into an answer that all share. Of the files of a run only
process 0 writes any, but for the checkpoints, of which each process writes its own shards.

With one process nothing here costs anything.

No failure of one process leaves the others hanging. What is raised inside `told` or `together` is raised by all. A
process that leaves at another place, by an error or by kill -9, closes its connections: the others' next collective
raises an error of Gloo's or NCCL's, or jax ends them with SIGABRT once the coordination service has missed its
heartbeats for HEARTBEAT_SECONDS. One that stands still without ending is left to the others' own watchdogs.
"""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scaling import command
from scaling.data.storage import StorageError
from scaling.errors import BusyError, InputError, LostClaimError, RunFailedError, ScalingError, StoppedError
from scaling.specs import require
from scaling.training.failures import failure_of

T = TypeVar("T")
RELAYED = {
    kind.__name__: kind
    for kind in (InputError, BusyError, StorageError, RunFailedError, LostClaimError, StoppedError, ScalingError)
}
HEARTBEAT_SECONDS = 60  # without a sign of life from a process, after which the others end
SHUTDOWN_SECONDS = 5  # jax's own 300 s would hold up a job whose one process has ended with an error
CONNECT_SECONDS = 300
LEAVE_SECONDS = 3.0
BLOCK = 4096  # bytes; messages are filled up to whole blocks, so that few sizes are ever compiled


def connect(
    coordinator: str | None,
    processes: int | None,
    process_id: int | None,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
) -> None:
    """Joins the processes of a job; to be called before anything that asks jax for its devices.

    coordinator: HOST:PORT of process 0, with `processes` and this one's `process_id`; all None where jax finds them
    itself: under SLURM, Open MPI and Kubernetes, and on TPU pods (GCE, GKE). Under SLURM and Open MPI jax gives a
    process one GPU, so start as many on a node as it has. Raises InputError if only some are given, and if none is and
    no cluster is recognised. Processes that do not find each other in CONNECT_SECONDS are ended by jax, with a message
    of its own that no exception carries.

    jax's pre-emption service is left off: it would take SIGTERM for itself, and a process that waits at its end for
    the others could then not be ended by it. Votes are what stops all processes at one step.
    """
    given = [value is not None for value in (coordinator, processes, process_id)]
    require(all(given) or not any(given), "--coordinator, --processes and --process_id come together")
    if all(given):
        host, _, port = coordinator.rpartition(":")
        require(bool(host) and port.isdigit(), f"--coordinator={coordinator}", "HOST:PORT of process 0")
        require(0 <= process_id < processes, f"--process_id={process_id} is outside 0 to {processes - 1}")
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process_id,
            initialization_timeout=CONNECT_SECONDS,
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        raise InputError(
            f"no cluster is recognised here: {error}", do="give --coordinator, --processes and --process_id"
        ) from None


def writes() -> bool:
    """Whether this process writes the run's files and talks to the user: process 0."""
    return jax.process_index() == 0


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Around all that the processes of a job do: one that fails ends soon, and with the exit code of its failure.

    On its way out jax waits for the other processes. They come where all have failed together; where one has failed
    alone they do not, and after SHUTDOWN_SECONDS jax would end it with SIGABRT. It is ended LEAVE_SECONDS after its
    failure instead, and at once if it failed because another process is gone: jax would not wait then, but abort.
    """
    try:
        yield
    except Exception as error:
        if jax.distributed.is_initialized():
            failure = failure_of(error)
            code = command.AGAIN if isinstance(error, StoppedError | LostClaimError) else failure.exit_code
            if failure.kind == "peer_lost":
                print(f"failed: {failure.reason}", file=sys.stderr)
                _end(code)
            timer = threading.Timer(LEAVE_SECONDS, _end, [code])
            timer.daemon = True
            timer.start()
        raise


def _end(code: int) -> None:
    """Ends this process now, with what it has said until now."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def told(do: Callable[[], Any]) -> Any:
    """What `do` returns on process 0, a JSON value, on every process; `do` runs there alone. Raises as `together`."""
    found: list[Any] = []
    _raise_together(_fault_of(lambda: found.append(do())) if writes() else None)
    return found[0] if jax.process_count() == 1 else _exchange(found)[0][0]


def together(do: Callable[[], T]) -> T:
    """What `do` returns here, once it has returned on every process. If it raises on any, it raises on all.

    All raise the error of the first process that has one: where it is a ScalingError, of the same type and kind, else
    RunFailedError of the kind that it amounts to.
    """
    found: list[T] = []
    _raise_together(_fault_of(lambda: found.append(do())))
    return found[0]


def first_alone(do: Callable[[], T]) -> T:
    """As `together`, but that the others begin when process 0 is done: what it builds on a shared disk, they find."""
    if jax.process_count() == 1:
        return do()
    found = together(lambda: [do()] if writes() else [])
    return together(lambda: found[0] if writes() else do())


def check_devices(devices: int) -> None:
    """Refuses a placement that leaves devices of several processes idle: a process without a share could not take part.

    Raises InputError with both numbers.
    """
    require(
        jax.process_count() == 1 or devices == jax.device_count(),
        f"the placement takes {devices} devices, the {jax.process_count()} processes have {jax.device_count()}",
        "place the run on all of them",
    )


class Votes:
    """Yes-or-no questions that each process answers for itself (was it asked to stop?), and all decide alike.

    A question is decided with yes if any process says yes. It is counted on the devices, behind the step that runs, and
    read when the next one has been dispatched, so no host waits for it: several processes hear the answers of the step
    before. One process has its own answers at once.
    """

    def __init__(self, mesh: Mesh):
        self._cast = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._count = jax.jit(
            lambda votes_PxQ: jnp.max(votes_PxQ, axis=0), out_shardings=NamedSharding(mesh, PartitionSpec())
        )
        self._counted: jax.Array | None = None

    def ask(self, *answers: bool) -> tuple[bool, ...]:
        """Hands in this process's answers, and returns what was decided of those handed in a step ago, at first no."""
        if jax.process_count() == 1:
            return answers
        shape = (self._cast.mesh.size, len(answers))
        mine_1xQ = np.array([answers], np.int32)
        votes_PxQ = jax.make_array_from_callback(shape, self._cast, lambda _: mine_1xQ)
        decided, self._counted = self._counted, self._count(votes_PxQ)
        return (False,) * len(answers) if decided is None else tuple(bool(yes) for yes in jax.device_get(decided))

    def forget(self) -> None:
        """Drops what was handed in and is not decided yet: acting on an answer may have answered the question."""
        self._counted = None


def _fault_of(do: Callable[[], Any]) -> Exception | None:
    try:
        do()
    except Exception as error:  # raised again by `_raise_together`, once the other processes know of it
        return error
    return None


def _raise_together(fault: Exception | None) -> None:
    """Raises the fault of the first process that has one, on every process."""
    if jax.process_count() > 1:
        said = _exchange(None if fault is None else _to_values(fault))
        first = next((rank for rank, values in enumerate(said) if values is not None), None)
        if first not in (None, jax.process_index()):
            raise _from_values(said[first], first) from fault
    if fault is not None:
        raise fault


def _to_values(error: Exception) -> dict[str, Any]:
    """An error as JSON: its type, or RunFailedError for a type that is none of ours, and what it is made of."""
    if not isinstance(error, ScalingError):
        failure = failure_of(error)
        return {"type": "RunFailedError", "what": failure.reason, "kind": failure.kind, "step": None}
    name = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in RELAYED)
    if isinstance(error, InputError):
        return {"type": name, "what": error.what, "where": error.where, "do": error.do}
    if isinstance(error, RunFailedError):
        return {"type": name, "what": str(error), "kind": error.kind, "step": error.step}
    return {"type": name, "what": str(error)}


def _from_values(values: dict[str, Any], rank: int) -> ScalingError:
    """The error again, on a process that has it from another."""
    kind, what = RELAYED[values.pop("type")], f"{values.pop('what')}, says process {rank}"
    return kind(what, **values)


def _exchange(message: Any) -> list[Any]:
    """The JSON values of all processes, by their rank, on each of them."""
    text = np.frombuffer(json.dumps(message).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(-(-int(sizes.max()) // BLOCK) * BLOCK, np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
