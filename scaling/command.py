"""One way to start every command: friendly errors for flags and configs, and the exit codes of the design.

0 done; 1 a bug (traceback); 2 the user's input, or what the user has to mend (one line); 3 a run failed and would fail
again, or some cells of a sweep failed; 75 start again: stopped on request with all saved, or failed of what another try
may not meet; 124 ended by the watchdog: start again.
"""

import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

from scaling.errors import BusyError, InputError, LostClaimError, RunFailedError, StoppedError

DONE, BAD_INPUT, FAILED, AGAIN = 0, 2, 3, 75
COMPILATIONS_HELP = "Where compiled programs are kept. By default in SCALING_COMPILATIONS, if set, else in WORKDIR."


def launch(main: Callable[[list[str]], int | None]) -> None:
    """Parses the flags, calls main(argv without flags), and exits with its code. For `if __name__ == "__main__":`."""
    app.run(lambda argv: _guarded(main, argv), flags_parser=_parse)


def config_values(config: flags.FlagHolder) -> dict[str, Any]:
    """The values of a --config flag as plain nested dictionaries. Raises InputError if it was not given or not read."""
    values = config.value
    if values is None:
        raise InputError("--config is missing", do="--config=experiments/configs/laptop.py, say")
    if isinstance(values, dict):
        raise InputError("get_config() returned a dict", where="--config", do="return an ml_collections.ConfigDict")
    try:
        return values.to_dict()
    # A file that cannot be run is kept by ml_collections as an object that raises the file's own error when it is used.
    except Exception as error:
        raise InputError(_config_fault(error)) from None


def default_stores() -> str:
    """Where token stores are kept unless a flag says otherwise: SCALING_STORES, or the user's cache."""
    return os.environ.get("SCALING_STORES", str(pathlib.Path.home() / ".cache" / "scaling" / "stores"))


def compilations(flag: str | None, workdir: pathlib.Path) -> pathlib.Path:
    """Where compiled programs are kept: as a flag says, or SCALING_COMPILATIONS, or else in the workdir.

    The workdir is what a job that is started again on another machine finds again, of all its directories. One place
    for all sweeps of a user lets the second of them start warm.
    """
    return pathlib.Path(flag or os.environ.get("SCALING_COMPILATIONS") or workdir / "compilations")


def _guarded(main: Callable[[list[str]], int | None], argv: list[str]) -> int:
    if argv[1:]:
        return _refuse(f"unexpected argument {argv[1]!r}: every option is a flag, --name=value")
    try:
        return main(argv[1:]) or DONE
    except (StoppedError, LostClaimError, BusyError) as error:
        print(f"stopped: {error}", file=sys.stderr)
        return AGAIN
    except InputError as error:
        return _refuse(str(error))
    except BrokenPipeError:  # whoever read our output has enough: ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except RunFailedError as error:
        print(f"failed: {error}", file=sys.stderr)
        return error.exit_code


def _parse(argv: list[str]) -> list[str]:
    logging.set_verbosity(logging.WARNING)
    if asked := {"--help", "-help", "-h", "--helpfull", "--helpshort"} & set(argv[1:]):
        # absl would exit with 1.
        app.usage(shorthelp="--helpfull" not in asked, writeto_stdout=True)
        raise SystemExit(DONE)
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        message = str(error)
    # ml_collections reads the config file and sets its fields while flags are parsed, and lets their errors through:
    # whatever a user's config file raises is the user's to mend, so it is shown by type and text, in one line.
    except Exception as error:
        message = _field_fault(error)
    raise SystemExit(_refuse(message))


def _field_fault(error: Exception) -> str:
    """What is wrong with --config.FIELD=, of which ml_collections tells the field, and at times a better one."""
    in_file = any(frame.name == "get_config" for frame in traceback.extract_tb(error.__traceback__))
    if (
        isinstance(error, (AttributeError, KeyError))
        and not in_file
        and (found := re.match(r"\W*(\w+)\W*(?:Did you mean \"(\w+)\"|$)", str(error).replace("\\n", " ")))
    ):
        guess = f" (did you mean {found[2]}?)" if found[2] else ""
        return f"{_config_flag()}: unknown field {found[1]!r}{guess}"
    return _config_fault(error)


def _config_fault(error: Exception) -> str:
    """What is wrong with a config file: its own refusal, or the error that running it raised."""
    if isinstance(error, InputError):
        return str(error)
    cause = error.__cause__ or error
    if isinstance(cause, OSError) and "No such file" in str(cause):
        return f"{_config_flag()}: no such file"
    return f"{_config_flag()}: {type(cause).__name__}: {cause}"


def _config_flag() -> str:
    return next((argument for argument in sys.argv if argument.startswith("--config=")), "--config")


def _refuse(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return BAD_INPUT
