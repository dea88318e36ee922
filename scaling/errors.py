"""Errors that a user can act on. They carry what is wrong, where, and what to do; a command prints them as one line."""

import difflib
from collections.abc import Iterable


class ScalingError(Exception):
    """Base of all errors raised on purpose by this project."""


class InputError(ScalingError):
    """The user's input is unknown, impossible or missing. Commands exit with 2.

    what: the fault, with the offending value ("model.n_heads=6 does not divide d_model=64").
    where: the file, key or row it was found in; empty if `what` says it.
    do: what would make it work; empty if `what` says it.
    """

    def __init__(self, what: str, where: str = "", do: str = ""):
        self.what, self.where, self.do = what, where, do
        message = f"{where}: {what}" if where else what
        super().__init__(f"{message} ({do})" if do else message)


class RunFailedError(ScalingError):
    """A run cannot be completed, and trying again would not help (a loss that is not finite, say)."""


class StoppedError(ScalingError):
    """A run was asked to stop and has saved its state. Commands exit with 75: start them again to go on."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """What to do about an unknown name: the closest valid one, or the list of them."""
    valid = sorted(valid)
    match = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    return f"did you mean {match[0]}?" if match else f"valid: {', '.join(valid)}"
