"""The exit codes of every command, by the error that ends it."""

import pytest

from scaling import command
from scaling.errors import BusyError, InputError, LostClaimError, RunFailedError, StoppedError


def raises(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "line"),
    [
        (lambda argv: None, 0, ""),
        (lambda argv: 3, 3, ""),
        (raises(InputError("a=1 is\nodd", "f.py", "make it 2")), 2, "error: f.py: a=1 is odd (make it 2)\n"),
        (raises(RunFailedError("loss nan", "not_finite")), 3, "failed: loss nan\n"),
        (raises(RunFailedError("no space", "disk_full")), 75, "failed: no space\n"),
        (raises(RunFailedError("read-only", "unwritable")), 2, "failed: read-only\n"),
        (raises(BusyError("taken", "d")), 75, "stopped: d: taken\n"),
        (raises(LostClaimError("taken over")), 75, "stopped: taken over\n"),
        (raises(StoppedError("saved")), 75, "stopped: saved\n"),
    ],
)
def test_exit_codes(capsys, main, code, line):
    assert command._guarded(main, ["command"]) == code
    assert capsys.readouterr().err == line


def test_a_bug_is_not_dressed_up():
    with pytest.raises(ZeroDivisionError):
        command._guarded(lambda argv: 1 // 0, ["command"])
