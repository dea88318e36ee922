"""Training a run to its result: claim it, go on from its last good checkpoint, train, and record once.

The state after step k is a function of the run and k alone, so a stopped run goes on where its checkpoint is, and ends
as if it had never stopped. Several processes run this side by side, each on its devices and with its rows of every
batch; where they could part, they ask scaling.training.hosts.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from scaling.data.batches import Stores, eval_windows
from scaling.data.store_check import Stamp, check, stamp
from scaling.data.token_store import TokenStore
from scaling.errors import RunFailedError
from scaling.files import Path
from scaling.parallel.mesh import make_mesh
from scaling.runs import Placement, Run, run_id
from scaling.training import hosts
from scaling.training.attempts import Attempt, begun, recorded
from scaling.training.care import Care
from scaling.training.checkpoints import Checkpoints
from scaling.training.energy import counter
from scaling.training.failures import Failure
from scaling.training.forks import Fork
from scaling.training.preflight import check_vocabulary, first_params
from scaling.training.result import make_result
from scaling.training.step import Program, make_program
from scaling.training.trainer import Job, Report, Trainer
from scaling.training.watchdog import Watchdog

AS_USUAL = Care()
TOKEN_BYTES = 4  # at most
SLOWEST_READ = 20e6  # bytes a second, at which a text may be compared before that is taken for a hang


def train(
    run: Run,
    placement: Placement,
    stores: Stores,
    directory: pathlib.Path,
    report: Report = lambda done, steps: None,
    stopping: Callable[[], bool] = lambda: False,
    start: Path | None = None,
    trackers: Sequence[str] = (),
    profile_steps: int = 0,
    say: Callable[[str], None] = lambda line: None,
    care: Care = AS_USUAL,
    verified: pathlib.Path | None = None,
    forks: Sequence[Fork] = (),
) -> dict[str, Any]:
    """Trains `run` in `directory`, from its last good checkpoint if there is one, and returns what result.json holds.

    stores: at least those of `run.stores`, by content id. report: called after each logged step. stopping: asked after
    each step; once true, the state is saved and StoppedError raised (with several processes, once true on any, a step
    later). start: where the parameters are that the run starts from, if it names any. trackers: where its numbers are
    written besides. profile_steps: how many of its steps to profile. say: told in a line the memory of the compiled
    step, the first step, each logged one, and one every LINE_SECONDS; and of each checkpoint that is set aside. care:
    how it is looked after. verified: the file that remembers which stores were compared with their checksums, by
    default one in `directory`. forks: the runs of which this one is the trunk (scaling.training.forks), each with its
    directory.

    Raises BusyError while another process trains the run; LostClaimError once another has taken it over; InputError for
    a placement, a store, parameters or a compiled step that do not fit; and RunFailedError, with its kind, for a loss
    that is not finite or diverged, for memory, disks, devices and peers that fail, and for a store that has changed:
    the reason is then in failure.json, and the checkpoints are from before.

    Of several processes, all return and raise the same, and process 0 alone reports, says and writes; but for the
    checkpoints, which need a directory that all of them share.
    """
    result = hosts.told(lambda: recorded(run, directory))
    if result is not None:
        return result
    first_stamps: dict[str, list[Stamp]] = {}

    def prepared() -> tuple[dict[str, np.ndarray], Any, Program]:
        windows = eval_windows(stores, run.data)
        check_vocabulary(run, stores)
        first_stamps.update({name: stamp(stores[name]) for name in run.stores})
        params = first_params(run, placement, start)
        hosts.check_devices(placement.devices)
        return windows, params, make_program(run, placement, make_mesh(placement))

    def check_texts() -> None:
        """Microseconds as a rule; but a store that nobody has compared yet is read whole, and no sign of life comes."""
        for name in run.stores:
            tokens = sum(split.tokens for split in stores[name].splits.values())
            with watchdog.phase("save", at_least=tokens * TOKEN_BYTES / SLOWEST_READ):
                hosts.first_alone(lambda name=name: _check_text(stores[name], known, first_stamps[name]))

    known = verified or directory / "stores.json"
    with _watched(care) as (watchdog, watched), contextlib.ExitStack() as held:
        with watchdog.phase("compile"):
            windows, params, program = hosts.together(prepared)
            attempt = held.enter_context(begun(run, directory, care.stale_seconds))
        result = hosts.told(lambda: recorded(run, directory))
        if result is not None:  # by the one that was at it until now
            return result
        attempt.tell()
        watched.append(attempt)
        watchdog.stacks = attempt.folder / "stacks.txt"
        check_texts()
        job = Job(run, placement, stores, directory, program, windows, params, care, say, forks)
        with jax.set_mesh(program.mesh):
            checkpoints = Checkpoints(directory / "checkpoints", run_id(run), attempt.number, care.keep_every, say=say)
            devices = list(program.mesh.devices.flat)
            attempt.tell(device_kind=devices[0].device_kind, devices=len(devices))
            attempt.count(counter(devices))
            with checkpoints:
                trainer = Trainer(job, attempt, checkpoints, watchdog, check_texts)
                losses = trainer.train(report, stopping, trackers, profile_steps)
                with watchdog.phase("save"):
                    checkpoints.wait()
        check_texts()
        seconds = dict(trainer.clock.seconds)
        spent, trunk_steps = attempt.spent(), trainer.trunk_steps
        return attempt.record(make_result(run, placement, stores, losses, seconds, spent, attempt.number, trunk_steps))


def _check_text(store: TokenStore, known: pathlib.Path, first: list[Stamp]) -> None:
    """Refuses a store that is not what it was, and one that somebody has written to since this process opened it."""
    check(store, known)
    if stamp(store) != first:
        raise RunFailedError(
            f"token store {store.content_id} was written to, and is what it was: batches in between may not have been "
            "(started again, the run goes on from the checkpoint before)",
            "storage",
        )


@contextlib.contextmanager
def _watched(care: Care) -> Iterator[tuple[Watchdog, list[Attempt]]]:
    """A watchdog, and a list: the attempts put there are told before it ends the process."""
    attempts: list[Attempt] = []

    def expired(reason: str) -> None:
        for attempt in attempts:
            attempt.fail(Failure("hung", reason, attempt.step, attempt.number))

    with Watchdog(care, expired) as watchdog:
        yield watchdog, attempts
