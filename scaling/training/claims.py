"""Who is at work on a run: a claim file in its directory, renewed while the owner lives, and taken over when it is not.

Any number of processes, on any hosts that see one directory, may want the same run. claim.json names one of them, its
owner. It is only ever written under a condition: that it is still what the writer has last read or written. TensorStore
does this (KvStore.write with if_equal; on a file system under a lock file), so of two that want the run at once one
wins. The owner rewrites its claim every few seconds, its heartbeat. Others watch by their own clocks, which are never
compared with the owner's: a claim that has not changed for so long is stale. On the owner's own machine its process can
be looked up, so that there nobody waits for a process that was killed.

A paused owner may wake up after its run was taken over. It learns of it from its next heartbeat, and asks before each
save; what it writes until then goes to files of its own (scaling.training.attempts). So a run may be computed twice,
but its result is recorded once: result.json is created on the condition that it does not exist (`record_once`).

What this asks of a file system: that a rename replaces a file at once for all who read it, and that locks (flock,
fcntl) hold between hosts. Local disks give both, and that is what the tests run on. NFS 4 and Lustre mounted with
`flock` promise them; NFS 3 without a lock daemon, and Lustre mounted with `localflock`, do not hold locks between
hosts: two owners are then possible, each result is still whole, and the later one replaces the first.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from scaling.errors import BusyError, InputError, LostClaimError
from scaling.files import parse_json
from scaling.specs import from_dict, settle
from scaling.training.records import attempts_at

CLAIM = "claim.json"
BEAT_SECONDS = 5.0  # between heartbeats, at most: four are to fit into the time after which a claim is stale
POLL_SECONDS = 1.0

Spent = dict[str, float]  # wall_seconds, tokens, joules: over all attempts at a run, lost work included


@dataclasses.dataclass(frozen=True)
class Claim:
    """What claim.json holds. machine and process identify the owner where it can be looked up: see `_is_gone`."""

    owner: str
    attempt: int  # counts from 1: how often the run was taken up
    machine: str
    process: str
    host: str
    beat: int
    time: float  # of the owner's clock, to show; nothing is decided by it
    spent: Spent
    released: bool = False

    def __post_init__(self) -> None:
        settle(self, "claim")


class Sightings:
    """When claims were last seen to change, by this process's own clock. Keep one for as long as you watch."""

    def __init__(self, stale_seconds: float):
        self.stale_seconds = stale_seconds
        self._seen: dict[pathlib.Path, tuple[bytes, float]] = {}

    def unchanged_seconds(self, path: pathlib.Path, content: bytes) -> float:
        """How long a file has been seen to be as it is."""
        now = time.monotonic()
        before, since = self._seen.get(path, (b"", now))
        if before != content:
            since = now
        self._seen[path] = (content, since)
        return now - since

    def is_free(self, directory: pathlib.Path) -> bool:
        """Whether the run of a directory can be taken: nobody has it, or its owner is gone."""
        return self._is_free(directory / CLAIM, _read_bytes(directory / CLAIM))

    def _is_free(self, path: pathlib.Path, content: bytes | None) -> bool:
        if content is None:
            return True
        claim = _parse(content, path)
        stale = self.unchanged_seconds(path, content) >= self.stale_seconds
        return claim.released or _is_gone(claim) or stale

    def take(self, directory: pathlib.Path) -> "Held":
        """Takes the run of a directory. Raises BusyError, with the owner's host, while another has it."""
        path, store = directory / CLAIM, _open(directory)
        read = store.read(CLAIM).result()
        content = read.value if read.state == "value" else None
        if not self._is_free(path, content):
            raise BusyError(
                f"another process is training this run, on {_parse(content, path).host}",
                str(directory),
                f"it may be taken over {self.stale_seconds:g} s after its last sign of life",
            )
        before = None if content is None else _parse(content, path)
        claim = Claim(
            owner=uuid.uuid4().hex,
            # Beyond the folders too: where a claim was removed, no number is given out again.
            attempt=1 + max(0 if before is None else before.attempt, *attempts_at(directory), 0),
            machine=_machine(),
            process=_process(os.getpid()) or "",
            host=socket.gethostname(),
            beat=0,
            time=time.time(),
            spent={} if before is None else before.spent,
        )
        generation = _write(store, claim, read.stamp.generation)
        if not generation:
            raise BusyError("another process has just taken this run", str(directory))
        return Held(store, claim, generation, min(BEAT_SECONDS, self.stale_seconds / 4))


def take_patiently(directory: pathlib.Path, stale_seconds: float) -> "Held":
    """Takes the run of a directory, waiting to see whether its owner still lives. Raises BusyError once it does."""
    sightings = Sightings(stale_seconds)
    first = read_claim(directory)
    while True:
        try:
            return sightings.take(directory)
        except BusyError:
            now = read_claim(directory)
            if first is None or now is None or (now.owner, now.beat) != (first.owner, first.beat):
                raise
        time.sleep(min(POLL_SECONDS, stale_seconds / 4))


class Held:
    """A claim of this process, renewed by a thread of its own until it is released, or found to be lost.

    counted: say what this attempt has spent so far, besides time.
    """

    def __init__(self, store: Any, claim: Claim, generation: bytes, beat_seconds: float):
        self._store, self._claim, self._generation, self._beat_seconds = store, claim, generation, beat_seconds
        self._before = claim.spent
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._since = time.monotonic()
        self.counted: list[Callable[[], Spent]] = []

    @property
    def attempt(self) -> int:
        """Which attempt at the run this is, from 1."""
        return self._claim.attempt

    def spent(self) -> Spent:
        """Over all attempts up to now: wall_seconds, and what is counted besides."""
        now = {"wall_seconds": time.monotonic() - self._since}
        for count in self.counted:
            now.update(count())
        return {name: self._before.get(name, 0.0) + now.get(name, 0.0) for name in (*self._before, *now)}

    def is_mine(self) -> bool:
        """Renews the claim now, and returns whether this process still has it."""
        with self._lock:
            self._renew()
            return bool(self._generation)

    def release(self) -> None:
        """Lets go of the run, for another to take at once."""
        self._ended.set()
        with self._lock:
            self._renew(released=True)
            self._generation = b""

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """While open, the claim is renewed every few seconds; then it is released."""
        thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            # Where the disk is full or away the claim cannot be written, and becomes stale by itself.
            with contextlib.suppress(OSError, ValueError):
                self.release()

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_seconds):
            # A disk that is full or away for a moment loses no claim: only another owner does, and others see no sign
            # of life meanwhile. The next heartbeat tries again.
            with contextlib.suppress(OSError, ValueError):
                if not self.is_mine():
                    return

    def _renew(self, released: bool = False) -> None:
        if not self._generation:
            return
        self._claim = dataclasses.replace(
            self._claim, beat=self._claim.beat + 1, time=time.time(), spent=self.spent(), released=released
        )
        self._generation = _write(self._store, self._claim, self._generation)


def read_claim(directory: pathlib.Path) -> Claim | None:
    """The claim on the run of a directory, if there ever was one."""
    content = _read_bytes(directory / CLAIM)
    return None if content is None else _parse(content, directory / CLAIM)


def seems_alive(claim: Claim | None, stale_seconds: float) -> bool:
    """Whether a run seems to be trained, at one look: to show, not to decide by. It trusts the clocks of hosts."""
    if claim is None or claim.released or _is_gone(claim):
        return False
    return time.time() - claim.time < stale_seconds


def lost(directory: pathlib.Path) -> LostClaimError:
    """What to raise where a claim is found to be lost."""
    return LostClaimError(f"{directory}: another process has taken over this run; nothing of this one counts any more")


def record_once(path: pathlib.Path, value: Any) -> bool:
    """Creates a JSON file if it does not exist. Returns whether this call did. NaN and infinity are refused."""
    store = _open(path.parent)
    read = store.read(path.name).result()
    if read.state != "missing":
        return False
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    return bool(store.write(path.name, text.encode(), if_equal=read.stamp.generation).result().generation)


def _open(directory: pathlib.Path) -> Any:
    import tensorstore  # here: readers of claims do without

    return tensorstore.KvStore.open({"driver": "file", "path": f"{directory.absolute()}/"}).result()


def _write(store: Any, claim: Claim, generation: bytes) -> bytes:
    """Writes a claim if the file is of a generation, and returns its new one, b"" if it was not."""
    # An empty if_equal would be no condition at all.
    assert generation
    content = json.dumps(dataclasses.asdict(claim), indent=2) + "\n"
    return store.write(CLAIM, content.encode(), if_equal=generation).result().generation


def _read_bytes(path: pathlib.Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _parse(content: bytes, path: pathlib.Path) -> Claim:
    try:
        return from_dict(Claim, parse_json(content, str(path)))
    except InputError as error:
        do = "remove the file if nothing trains this run"
        raise InputError(f"not a claim: {error.what}", str(path), do) from None


def _is_gone(claim: Claim) -> bool:
    """Whether the owner is known to have ended: it was on this machine, in this view of its processes."""
    number = claim.process.partition(" ")[0]
    if claim.machine != _machine() or not (number.isdecimal() and len(number) < 20):
        return False
    return _process(int(number)) != claim.process


@functools.cache
def _machine() -> str:
    """This boot of this machine, and its view of processes, which containers have of their own; "" where not known."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.uuid4().hex}"


def _process(pid: int) -> str | None:
    """A process by its number and when it was started, as numbers are given out again; None if there is none."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # from the third on; the name before it may hold spaces
    return None if fields[0] in "ZX" else f"{pid} {fields[19]}"
