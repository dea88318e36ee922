"""From the command to the first step: `experiments.train` on a small run, with what it compiles kept from before, and
without.

Measured from outside, as a user waits: from the start of the process until it has said the loss of its first step. The
bytecode of all modules is there, as pip leaves it, and the text is tokenised. There is no peer; the yardstick of the
warm start is what this project asks of it.
"""

import contextlib
import itertools
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from scaling.errors import InputError
from scaling.speed.rows import Row, alternate, row_of
from scaling.sweeps.tasks import ROOT, cell_environment

CONFIG = "experiments/configs/one.py"
ASKED_SECONDS = 5.0
NOT_INHERITED = ("PYTHONDONTWRITEBYTECODE", "SCALING_COMPILATIONS")


def measure(repeats: int, peer: bool, say: Callable[[str], None]) -> list[Row]:
    """Two rows: seconds to the first step with a warm cache of compilations, and with none. peer: has no meaning."""
    del peer
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        environment = as_a_user(root)
        numbers = itertools.count()

        def seconds(kept: pathlib.Path) -> float:
            return first_step_seconds(root / f"run{next(numbers)}", kept, environment)

        say("start warm")
        warm = alternate(lambda: seconds(root / "kept"), lambda: ASKED_SECONDS, repeats)
        say("start cold")
        cold = alternate(lambda: seconds(root / f"kept{next(numbers)}"), None, repeats)
    what = f"seconds from the command to the loss of the first step, {CONFIG}"
    return [
        row_of("start warm", "s", warm, f"{what}; compiled before", "what is asked: 5 s"),
        row_of("start cold", "s", cold, f"{what}; nothing compiled before"),
    ]


def as_a_user(root: pathlib.Path) -> dict[str, str]:
    """This process's environment, but that modules are compiled to bytecode, under `root`, and that programs which the
    user keeps from elsewhere are not found."""
    inherited = {name: value for name, value in cell_environment().items() if name not in NOT_INHERITED}
    return {**inherited, "PYTHONPYCACHEPREFIX": str(root / "bytecode")}


def first_step_seconds(workdir: pathlib.Path, kept: pathlib.Path, environment: dict[str, str]) -> float:
    """How long a run takes to its first step. kept: where its compilations are, and are left."""
    arguments = [f"--config={CONFIG}", f"--workdir={workdir}", f"--compilations={kept}"]
    started = time.perf_counter()
    with _running(["experiments.train", *arguments], environment) as process:
        for line in process.stdout:
            if line.startswith("step 1/"):
                return time.perf_counter() - started
        raise InputError(f"the run has ended with {process.wait()} before its first step: see above")


@contextlib.contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """A command of ours, killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
