"""Errors that a user can act on. They carry what is wrong, where, and what to do; a command prints them as one line."""

import difflib
from collections.abc import Iterable

# What another try would do about a run that did not end. NEVER: the run itself fails, wherever it is trained, and would
# fail again. MENDED: something here has to be changed first, by a person. SOON: it may be gone by itself, so launchers
# try again, after a while and so many times.
NEVER, MENDED, SOON = "never", "when mended", "soon"

# kind -> (whether to try again, the exit code of a command that ends with it)
KINDS = {
    "not_finite": (NEVER, 3),
    "diverged": (NEVER, 3),
    "out_of_memory": (MENDED, 3),  # the same placement needs the same memory
    "store_changed": (MENDED, 2),
    "unwritable": (MENDED, 2),
    "refused": (MENDED, 2),
    "no_result": (MENDED, 3),  # of a sweep, no cell of which came through
    "bug": (MENDED, 1),
    "disk_full": (SOON, 75),
    "storage": (SOON, 75),
    "device": (SOON, 75),
    "peer_lost": (SOON, 75),
    "killed": (SOON, 75),
    "hung": (SOON, 124),
}


LONGEST = 1000  # characters of a part of a message


class ScalingError(Exception):
    """Base of all errors raised on purpose by this project."""


class InputError(ScalingError):
    """The user's input is unknown, impossible or missing. Commands exit with 2.

    what: the fault, with the offending value ("model.n_heads=6 does not divide d_model=64").
    where: the file, key or row it was found in; empty if `what` says it.
    do: what would make it work; empty if `what` says it.
    """

    def __init__(self, what: str, where: str = "", do: str = ""):
        what, where, do = self.what, self.where, self.do = tuple(_readable(str(part)) for part in (what, where, do))
        message = f"{where}: {what}" if where else what
        super().__init__(f"{message} ({do})" if do else message)


def _readable(text: str) -> str:
    """A part of a message, which may repeat what stands in a file: no longer than a person reads, and without what a
    terminal would obey."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 4 :]}"
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


class BusyError(InputError):
    """Another process is at work on this run, or was until a moment ago. Commands exit with 75: start them again."""


class RunFailedError(ScalingError):
    """A run cannot go on. kind: why, of KINDS, which says whether to try again. step: where, if known.

    Commands exit with the code of the kind.
    """

    def __init__(self, reason: str, kind: str, step: int | None = None):
        self.kind, self.step = kind, step
        super().__init__(reason)

    @property
    def exit_code(self) -> int:
        """Of a command that ends with it."""
        return KINDS[self.kind][1]


class LostClaimError(ScalingError):
    """Another process has taken over this run, because this one was paused or cut off for too long.

    Nothing that this one does counts any more. Commands exit with 75.
    """


class StoppedError(ScalingError):
    """A run was asked to stop and has saved its state. Commands exit with 75: start them again to go on."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """What to do about an unknown name: the closest valid one, or the list of them."""
    valid = sorted(valid)
    match = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    return f"did you mean {match[0]}?" if match else f"valid: {', '.join(valid)}"
