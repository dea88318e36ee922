"""Training a run to its result: dispatch a step, read the one before, evaluate on the way, save, and record.

The state after step k is a function of the run and k alone, so a stopped run goes on where its checkpoint is. Several
processes run this loop side by side, each on its devices and with its rows of every batch; where they could part, they
ask scaling.training.hosts.
"""

import contextlib
import fcntl
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from scaling.data.batches import Stores, batch, eval_windows
from scaling.errors import InputError, RunFailedError, StoppedError
from scaling.files import Path, make_directory, read_json, write_json
from scaling.models.counts import flops_per_token
from scaling.parallel.mesh import batch_sharding, make_mesh
from scaling.runs import Placement, Run, run_from_dict, run_id, run_to_dict
from scaling.specs import to_dict
from scaling.training import hosts, profiling, records
from scaling.training.checkpoints import Checkpoints
from scaling.training.distribute import place_rows
from scaling.training.evaluation import evaluate, row_multiple, rows_at_a_time
from scaling.training.log_line import Pace, memory_line
from scaling.training.preflight import check_vocabulary, compiled_to_fit, first_params, placed
from scaling.training.result import Losses, make_result, mfu
from scaling.training.schedules import learning_rates
from scaling.training.step import Program, State, lowered_step, make_program
from scaling.training.trackers import Track, open_trackers, tracked

LOGGED_LINES = 100  # a run, about
CHECKPOINT_SECONDS = 300.0

Report = Callable[[int, int], None]  # (steps done, steps of the run), after each logged step


def evaluation_steps(run: Run) -> list[int]:
    """After how many steps the held-out loss is taken: evenly spaced in log from a tenth of the run to its end."""
    points = np.geomspace(max(1.0, run.steps / 10), run.steps, run.eval_points) if run.eval_points > 1 else [run.steps]
    return sorted({round(point) for point in points} | {run.steps})


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
) -> dict[str, Any]:
    """Trains `run` in `directory`, from its last checkpoint if there is one, and returns what stands in result.json.

    stores: at least those of `run.stores`, by content id. report: called after each logged step. stopping: asked after
    each step; once true, the state is saved and StoppedError raised (with several processes, once true on any, a step
    later). start: where the parameters are that the run starts from, if it names any. trackers: where its numbers are
    written besides. profile_steps: how many of its steps to profile. say: told in a line the memory of the compiled
    step, the first step, each logged one, and one every LINE_SECONDS. Raises InputError for a placement, a store,
    parameters or a compiled step that do not fit, and RunFailedError when a loss is not finite; the reason is then in
    failure.json, and the checkpoints are from before.

    Of several processes, all return and raise the same, and process 0 alone reports, says and writes; but for the
    checkpoints, which need a directory that all of them share.
    """
    result = hosts.told(lambda: _recorded(run, directory))
    if result is not None:
        return result

    def prepared() -> tuple[dict[str, np.ndarray], Any, Program]:
        windows = eval_windows(stores, run.data)
        check_vocabulary(run, stores)
        params = first_params(run, placement, start)
        hosts.check_devices(placement.devices)
        return windows, params, make_program(run, placement, make_mesh(placement))

    windows, params, program = hosts.together(prepared)
    with _begun(run, placement, directory):
        with jax.set_mesh(program.mesh), Checkpoints(directory / "checkpoints") as checkpoints:
            trainer = _Trainer(run, placement, stores, directory, program, checkpoints, windows, params, say)
            losses = trainer.train(report, stopping, trackers, profile_steps)

        def recorded() -> dict[str, Any]:
            result = make_result(run, placement, stores, losses, dict(trainer.clock.seconds))
            write_json(directory / "result.json", result)
            (directory / "failure.json").unlink(missing_ok=True)
            return result

        return hosts.told(recorded)


def _recorded(run: Run, directory: pathlib.Path) -> dict[str, Any] | None:
    """The result that a directory holds, if any. Raises InputError if the directory is that of another run."""
    run_path, result_path = directory / "run.json", directory / "result.json"
    if run_path.exists() and run_from_dict(read_json(run_path), str(run_path)) != run:
        raise InputError("holds another run", where=str(directory), do="give another --workdir")
    return read_json(result_path) if result_path.exists() else None


@contextlib.contextmanager
def _begun(run: Run, placement: Placement, directory: pathlib.Path) -> Iterator[None]:
    """Holds the run's directory for its processes: locked, and with what is trained there and where in its files."""
    with contextlib.ExitStack() as held:

        def begin() -> None:
            make_directory(directory)
            held.enter_context(_locked(directory))
            write_json(directory / "run.json", run_to_dict(run))
            write_json(directory / "placement.json", to_dict(placement))

        hosts.told(begin)
        yield


@contextlib.contextmanager
def _locked(directory: pathlib.Path) -> Iterator[None]:
    """Holds the run's lock, which the system lets go of when the process ends, however it ends."""
    with open(directory / records.LOCK, "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError("another process is training this run", where=str(directory)) from None
        yield


class _Trainer:
    """One run on one mesh. Holds what does not change from step to step, the clock, and what was read last."""

    def __init__(
        self,
        run: Run,
        placement: Placement,
        stores: Stores,
        directory: pathlib.Path,
        program: Program,
        checkpoints: Checkpoints,
        windows: dict[str, np.ndarray],
        params: Any,
        say: Callable[[str], None],
    ):
        self.run, self.stores, self.directory = run, stores, directory
        self.program, self.checkpoints, self.windows = program, checkpoints, windows
        self.first_params, self.devices = params, placement.devices
        self.writes, self.say, self.votes = hosts.writes(), say, hosts.Votes(program.mesh)
        self.rows = batch_sharding(program.mesh)
        self.rates = learning_rates(run)
        self.log_every = max(1, math.ceil(run.steps / LOGGED_LINES))
        self.eval_steps = set(evaluation_steps(run))
        self.eval_rows = rows_at_a_time(run.data.eval_windows, run.data.sequence_length, row_multiple(placement))
        self.clock = records.Clock({})
        self.track: Track = lambda step, values: None

    def train(
        self, report: Report, stopping: Callable[[], bool], trackers: Sequence[str], profile_steps: int
    ) -> Losses:
        """Runs all steps that are left, watched by process 0. Returns the final held-out losses."""
        start, state = self.restored_or_new()
        if not self.writes:
            report, trackers, profile_steps = (lambda done, steps: None), (), 0
        with (
            contextlib.ExitStack() as opened,
            profiling.profile_steps(self.directory, start + profiling.WARM_UP, profile_steps) as profile,
        ):
            opening = open_trackers(trackers, self.run, self.directory, start)
            self.track = hosts.together(lambda: opened.enter_context(opening))
            return self.steps_from(start, state, report, stopping, profile)

    def steps_from(
        self, start: int, state: State, report: Report, stopping: Callable[[], bool], profile: profiling.Profile
    ) -> Losses:
        """The steps from one on."""
        run = self.run
        step, window_losses = self.compiled()
        self.pace = Pace(run, self.devices, start, self.clock.seconds)
        saved_at = time.perf_counter()
        pending = None  # (steps done, metrics) of the step that is still running
        final = None
        for k in range(start, run.steps):
            done = k + 1
            with self.clock.measure("train"):
                with jax.profiler.StepTraceAnnotation("train", step_num=done):
                    state, metrics = step(state, self.batch(k), self.rates[k])
                # Reading the metrics of the step before, while this one runs, keeps host and device both busy.
                self.read(pending)
                pending = (done, metrics)
            stop, due = self.votes.ask(stopping(), time.perf_counter() - saved_at > CHECKPOINT_SECONDS)
            logged = done % self.log_every == 0 or done == run.steps
            traced = profile.due(done, logged and done < run.steps and self.writes)
            if done in self.eval_steps or stop or due or traced:
                with self.clock.measure("train"):
                    self.read(pending)  # nothing is evaluated or kept whose loss was not seen to be finite
                    pending = None
            if traced:
                profile.turn(done)
            if done in self.eval_steps:
                final = self.evaluate(window_losses, state, done)
            if done == run.steps or stop or due:
                self.save(done, state)
                saved_at = time.perf_counter()
                self.votes.forget()
            if logged:
                report(done, run.steps)
            if stop and done < run.steps:
                raise StoppedError(f"{run_id(run)} at step {done} of {run.steps}; its state is saved")
        if final is None:  # the checkpoint was of the last step: the run was stopped before its result was written
            if self.writes:
                records.cut_back(self.directory / "metrics.jsonl", run.steps, evaluations_from=run.steps)
            final = self.evaluate(window_losses, state, run.steps)
        return final

    def restored_or_new(self) -> tuple[int, State]:
        """The state to go on from, with the records cut back to it."""
        with self.clock.measure("save"):
            restored = self.checkpoints.restore(self.program.abstract_state)
        if restored is None:
            start = 0
            with self.clock.measure("compile"):
                state = self.program.init(jax.random.key(self.run.seed))
                if self.first_params is not None:
                    state = state._replace(params=placed(self.first_params, self.program.abstract_state.params))
                self.first_params = None  # on the host, all of them
        else:
            start, state, progress = restored
            self.clock = records.Clock(progress["seconds"])
        for name in ("metrics.jsonl", "timing.jsonl") if self.writes else ():
            records.cut_back(self.directory / name, start)
        return start, state

    def compiled(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The step and the evaluation, compiled ahead, so that no time of theirs is charged to training."""
        params, M = self.program.abstract_state.params, self.run.data.sequence_length + 1
        tokens_RxM = jax.ShapeDtypeStruct((self.eval_rows, M), np.int32, sharding=self.rows)
        with self.clock.measure("compile"):
            step = hosts.together(lambda: compiled_to_fit(lowered_step(self.program, self.run)))
            window_losses = self.program.window_losses.lower(params, tokens_RxM).compile()
        if self.writes:
            self.say(memory_line(step))
        return step, window_losses

    def batch(self, k: int) -> jax.Array:
        run = self.run
        shape = (run.batch_size, run.data.sequence_length + 1)
        return place_rows(lambda rows: batch(self.stores, run.data, run.batch_size, k, rows), shape, self.rows)

    def read(self, pending: tuple[int, dict[str, jax.Array]] | None) -> None:
        """Waits for the metrics of a step, refuses a loss that is not finite, and records every so many."""
        if pending is None:
            return
        done, metrics = pending
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.refuse_infinite(done, values)
        logged = done % self.log_every == 0 or done == self.run.steps
        if logged:
            self.log(done, {"lr": float(self.rates[done - 1]), **values})
        if self.writes and (logged or self.pace.due()):
            self.say(self.pace.line(done, values["loss"], self.clock.so_far()))

    def refuse_infinite(self, done: int, values: dict[str, float]) -> None:
        if not all(map(math.isfinite, values.values())):
            reason = f"step {done} of {self.run.steps}: " + ", ".join(f"{k} {v}" for k, v in values.items())
            if self.writes:
                write_json(self.directory / "failure.json", {"reason": reason, "step": done, "final": True})
            raise RunFailedError(f"{run_id(self.run)}: {reason}", "not_finite", done)

    def evaluate(self, window_losses: Callable[..., jax.Array], state: State, done: int) -> Losses:
        losses = {}
        for name, tokens_WxM in self.windows.items():
            with self.clock.measure("evaluate"):
                loss, stderr = evaluate(window_losses, state.params, tokens_WxM, self.eval_rows, self.rows)
            self.refuse_infinite(done, {f"{name} loss": loss, "its standard error": stderr})
            losses[name] = {"loss": loss, "stderr": stderr}
        self.log(done, {"eval": losses})
        return losses

    def save(self, done: int, state: State) -> None:
        with self.clock.measure("save"):
            self.checkpoints.save(done, state, {"seconds": dict(self.clock.seconds)})

    def log(self, done: int, record: dict[str, Any]) -> None:
        if not self.writes:
            return
        tokens, seconds = done * self.run.batch_tokens, self.clock.so_far()
        records.append(self.directory / "metrics.jsonl", {"step": done, "tokens": tokens, **record})
        rate = tokens / seconds["train"] if seconds["train"] else None
        memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        flops_per_second = rate and rate * flops_per_token(self.run.model, self.run.data.sequence_length)
        self.track(done, tracked(record, rate, flops_per_second and mfu(flops_per_second, self.devices)))
        timing = {"step": done, "seconds": seconds}
        records.append(
            self.directory / "timing.jsonl", {**timing, "tokens_per_second": rate, "peak_memory_bytes": memory}
        )
