"""A profile of some steps of a run: what host and devices did, as a trace.

A trace is in DIRECTORY/profile/plugins/profile/steps_FIRST_to_LAST. Its *.trace.json.gz opens in https://ui.perfetto.dev
as it is; `xprof --logdir DIRECTORY/profile` (`pip install xprof`), or TensorBoard with that plugin, show the same and
more from *.xplane.pb. Throughput measured while a trace is taken is lower than otherwise.
"""

import contextlib
import pathlib
from collections.abc import Iterator

from absl import logging

from scaling.errors import InputError
from scaling.files import read_json, write_json
from scaling.specs import require

REQUEST = "profile_request"  # a file in a run's directory that asks for a profile: {"steps": 5}
WARM_UP = 10  # steps that a profile lets pass first: caches fill, and the devices' clocks settle


def request_profile(directory: pathlib.Path, steps: int) -> None:
    """Asks the process that trains in `directory` for a profile of so many steps, from its next logged step on."""
    require(steps >= 1, f"a profile of {steps} steps", "give at least 1")
    write_json(directory / REQUEST, {"steps": steps})


class Profile:
    """The profiles of one run: of `count` steps once `first` are done (0: none), and of steps asked for while it runs.

    After each step, the loop asks `due`; if so, it waits for the step to end and calls `turn`. So a trace holds whole
    steps, and exactly as many as were asked for, if the run does not end before.
    """

    def __init__(self, directory: pathlib.Path, first: int, count: int):
        self.directory = directory
        self.first, self.count = first, count
        self.tracing = False

    def due(self, done: int, logged: bool) -> bool:
        """Whether a trace starts or ends after `done` steps. logged: whether to look for a request, which is a file."""
        if self.tracing:
            return done == self.first + self.count
        past = done >= self.first + self.count
        if past and logged and (steps := _take_request(self.directory / REQUEST)):
            self.first, self.count = done, steps
        return self.count > 0 and done == self.first

    def turn(self, done: int) -> None:
        """Starts the trace, or ends it and writes its files."""
        import jax

        if self.tracing:
            self.close()
            return
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # recording each Python call would slow the host that is to be seen
        options.session_id = f"steps_{done + 1}_to_{done + self.count}"
        jax.profiler.start_trace(self.directory / "profile", profiler_options=options)
        self.tracing = True

    def close(self) -> None:
        """Ends a trace that is under way, and writes its files."""
        import jax

        if self.tracing:
            self.tracing = False
            jax.profiler.stop_trace()


@contextlib.contextmanager
def profile_steps(directory: pathlib.Path, first: int, count: int) -> Iterator[Profile]:
    """A profile of the `count` steps after the first `first` of the run in `directory`, count=0 for none but those that
    are asked for on the way. A run that ends earlier, however it does, leaves a trace of the steps it did."""
    profile = Profile(directory, first, count)
    try:
        yield profile
    finally:
        profile.close()


def _take_request(path: pathlib.Path) -> int:
    """How many steps were asked for, 0 for none. The request is then gone."""
    if not path.exists():
        return 0
    try:
        steps = read_json(path)["steps"]
        require(isinstance(steps, int) and steps >= 1, f"steps={steps!r}")
    except (InputError, LookupError, TypeError) as error:  # of a file written by hand: no reason to end a training
        logging.warning('%s asks for no profile, {"steps": 5} would: %s', path, error)
        steps = 0
    path.unlink(missing_ok=True)
    return steps
