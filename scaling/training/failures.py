"""What an exception that ended a run amounts to: a kind of scaling.errors.KINDS, written to failure.json."""

import dataclasses
import errno
import socket
import traceback
from typing import Any

from scaling.data.storage import StorageError
from scaling.errors import KINDS, BusyError, InputError, RunFailedError
from scaling.specs import from_dict, require, settle, shown

_ERRNOS = {
    errno.ENOSPC: "disk_full",
    errno.EDQUOT: "disk_full",
    errno.EACCES: "unwritable",
    errno.EPERM: "unwritable",
    errno.EROFS: "unwritable",
}
# What libraries say in errors of types that tell nothing: TensorStore and orbax of disks, Gloo of processes, and XLA of
# devices and processes.
_WORDS = (
    ("No space left on device", "disk_full"),
    ("Disk quota exceeded", "disk_full"),
    ("Permission denied", "unwritable"),
    ("Read-only file system", "unwritable"),
    ("Gloo", "peer_lost"),
)
_DEVICE_WORDS = (
    ("RESOURCE_EXHAUSTED", "out_of_memory"),
    ("INVALID_ARGUMENT", "bug"),
    ("UNIMPLEMENTED", "bug"),
    ("NCCL", "peer_lost"),
    ("coordination service", "peer_lost"),
    ("heartbeat", "peer_lost"),
    ("UNAVAILABLE", "peer_lost"),
    ("DEADLINE_EXCEEDED", "peer_lost"),
)
# What to do, where the error itself does not say.
_DO = {
    "disk_full": "free some space: started again, it goes on from its last good checkpoint",
    "unwritable": "make it writable, or give another --workdir",
    "out_of_memory": "it takes more devices, or a placement.microbatch or placement.remat that needs less",
}


@dataclasses.dataclass(frozen=True)
class Failure:
    """What failure.json holds: a kind of KINDS, the reason in a line, and where in the run and on which host."""

    kind: str
    reason: str
    step: int | None = None
    attempt: int | None = None
    host: str = dataclasses.field(default_factory=socket.gethostname)

    def __post_init__(self) -> None:
        settle(self, "failure")
        require(self.kind in KINDS, f"failure.kind={shown(self.kind)} is unknown")

    @property
    def retry(self) -> str:
        """NEVER, MENDED or SOON."""
        return KINDS[self.kind][0]

    @property
    def exit_code(self) -> int:
        """Of a command that ends with it."""
        return KINDS[self.kind][1]

    def to_json(self) -> dict[str, Any]:
        """As failure.json has it."""
        return {**dataclasses.asdict(self), "retry": self.retry}


def failure_from(values: Any, where: str) -> Failure:
    """The failure that a failure.json holds. Raises InputError for anything else."""
    names = {field.name for field in dataclasses.fields(Failure)}
    said = {name: value for name, value in values.items() if name in names} if isinstance(values, dict) else {}
    try:
        return from_dict(Failure, {"host": "", **said})  # where it does not say, not the host that reads it
    except InputError as error:
        fault = f"not a failure as this version writes it: {error.what}"
        raise InputError(fault, where, "remove the file: the cell is then missing") from None


def failure_of(error: BaseException, step: int | None = None, attempt: int | None = None) -> Failure:
    """What an exception that ended a run amounts to, from its type, its number and its words."""
    if isinstance(error, RunFailedError):
        return Failure(error.kind, str(error), step if error.step is None else error.step, attempt)
    kind = _kind(error)
    remedy = f" ({_DO[kind]})" if kind in _DO else ""
    return Failure(kind, _line(error) + remedy, step, attempt)


def _kind(error: BaseException) -> str:
    if isinstance(error, BusyError | StorageError):
        return "storage"
    if isinstance(error, InputError):
        return "refused"
    for each in _chain(error):
        if isinstance(each, MemoryError):
            return "out_of_memory"
        if isinstance(each, OSError) and each.errno in _ERRNOS:
            return _ERRNOS[each.errno]
        if kind := _said(str(each), _WORDS):
            return kind
        if type(each).__name__ in ("XlaRuntimeError", "JaxRuntimeError"):
            return _said(str(each), _DEVICE_WORDS) or "device"
        if isinstance(each, ConnectionError):
            return "peer_lost"
    return "storage" if isinstance(error, OSError) else "bug"


def _said(text: str, words: tuple[tuple[str, str], ...]) -> str | None:
    return next((kind for word, kind in words if word in text), None)


def _chain(error: BaseException | None) -> list[BaseException]:
    """An exception and those that it was raised from, the outermost first."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _line(error: BaseException) -> str:
    if isinstance(error, InputError):
        return str(error)
    return " ".join("".join(traceback.format_exception_only(error)).split())[:1000]
