"""What ended a run, told from the exception that it ended with."""

import errno
import json

import pytest

from scaling.data.storage import StorageError
from scaling.errors import KINDS, MENDED, NEVER, SOON, BusyError, InputError, RunFailedError
from scaling.training.care import Care, parse_care
from scaling.training.failures import Failure, failure_from, failure_of


class XlaRuntimeError(RuntimeError):
    """As jaxlib names it."""


def caused_by(cause):
    """An exception without a word of its own, raised from another."""
    try:
        raise ValueError("it did not work") from cause
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("error", "kind", "retry", "code"),
    [
        (RunFailedError("step 3: loss nan", "not_finite", 3), "not_finite", NEVER, 3),
        (RunFailedError("step 3", "diverged", 3), "diverged", NEVER, 3),
        (XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), "out_of_memory", MENDED, 3),
        (MemoryError(), "out_of_memory", MENDED, 3),
        (XlaRuntimeError("UNKNOWN: [/gloo/transport/tcp/pair.cc] Gloo all-reduce failed"), "peer_lost", SOON, 75),
        (ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"), "peer_lost", SOON, 75),
        (XlaRuntimeError("INTERNAL: CUDA_ERROR_ECC_UNCORRECTABLE"), "device", SOON, 75),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full", SOON, 75),
        (caused_by(OSError(errno.EDQUOT, "Disk quota exceeded")), "disk_full", SOON, 75),
        (ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [OS error 28]"), "disk_full", SOON, 75),
        (PermissionError(errno.EACCES, "Permission denied"), "unwritable", MENDED, 2),
        (OSError(errno.EROFS, "Read-only file system"), "unwritable", MENDED, 2),
        (OSError(errno.EIO, "Input/output error"), "storage", SOON, 75),
        (StorageError("object storage: no answer", "gs://b"), "storage", SOON, 75),
        (BusyError("another process"), "storage", SOON, 75),
        (InputError("a fault", "a file", "a remedy"), "refused", MENDED, 2),
        (ZeroDivisionError("division by zero"), "bug", MENDED, 1),
    ],
)
def test_kinds(error, kind, retry, code):
    failure = failure_of(error, step=7, attempt=2)
    assert (failure.kind, failure.retry, failure.exit_code) == (kind, retry, code)
    assert failure.attempt == 2
    assert failure.step == (3 if isinstance(error, RunFailedError) else 7)
    assert "\n" not in failure.reason
    assert str(error).split(":")[0] in failure.reason
    assert ("(" in failure.reason) >= (kind in ("disk_full", "unwritable", "out_of_memory"))  # what to do


def test_failures_survive_their_json():
    for kind in KINDS:
        failure = Failure(kind, "why", step=1, attempt=2)
        assert failure_from(json.loads(json.dumps(failure.to_json())), "failure.json") == failure


@pytest.mark.parametrize("values", [None, [], {}, {"kind": "unheard_of", "reason": "x"}, {"kind": "bug", "reason": 1}])
def test_what_is_no_failure_is_named(values):
    with pytest.raises(InputError, match=r"failure\.json: not a failure"):
        failure_from(values, "failure.json")


def test_care_is_read_as_it_is_written():
    assert parse_care("") == Care()
    care = Care(step_seconds=7.5, keep_every=10)
    assert parse_care(care.text()) == care
    assert care.text() == "keep_every=10,step_seconds=7.5"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("step_second=3", "unknown 'step_second' .did you mean step_seconds"),
        ("step_seconds=soon", "step_seconds=NUMBER"),
        ("step_seconds", "step_seconds=NUMBER"),
        ("step_seconds=0", "care.step_seconds=0.0"),
        ("keep_every=-1", "care.keep_every=-1"),
        ("step_seconds=nan", "not finite"),
    ],
)
def test_care_that_is_none_is_refused(text, fault):
    with pytest.raises(InputError, match=fault):
        parse_care(text)
