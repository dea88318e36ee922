"""The steps of a run: dispatch one, read the one before, evaluate on the way, and save.

What is kept for a later start is all that the rest of the run depends on: the train state, the lines of metrics.jsonl
up to the step, and what the losses so far say of divergence.
"""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from scaling.data.batches import Stores, batch
from scaling.errors import RunFailedError, StoppedError
from scaling.files import write_json, write_text
from scaling.models.counts import flops_per_token
from scaling.parallel.mesh import batch_sharding
from scaling.runs import Placement, Run, run_id
from scaling.specs import to_dict
from scaling.training import hosts, profiling, records
from scaling.training.attempts import Attempt
from scaling.training.care import Care
from scaling.training.checkpoints import Checkpoints
from scaling.training.claims import lost
from scaling.training.distribute import place_rows
from scaling.training.divergence import History, after, divergence
from scaling.training.evaluation import evaluate, lowered_losses, rows_of
from scaling.training.forks import Fork, Forks
from scaling.training.log_line import Pace, memory_line
from scaling.training.preflight import compiled_to_fit, placed
from scaling.training.result import Losses, mfu
from scaling.training.schedules import learning_rates
from scaling.training.step import Program, State, lowered_step
from scaling.training.trackers import Track, open_trackers, tracked
from scaling.training.watchdog import Watchdog

Report = Callable[[int, int], None]  # (steps done, steps of the run), after each logged step


@dataclasses.dataclass(frozen=True)
class Job:
    """A run on a mesh, and all that its steps need. first_params: if it does not start from its own seed. forks: the
    shorter runs of which it is the trunk."""

    run: Run
    placement: Placement
    stores: Stores
    directory: pathlib.Path
    program: Program
    windows: dict[str, np.ndarray]
    first_params: Any
    care: Care
    say: Callable[[str], None]
    forks: Sequence[Fork] = ()


class Trainer:
    """One run on one mesh. Holds what does not change from step to step, the clock, and what was read last."""

    def __init__(
        self,
        job: Job,
        attempt: Attempt,
        checkpoints: Checkpoints,
        watchdog: Watchdog,
        check_texts: Callable[[], None],
    ):
        run, program = job.run, job.program
        self.run, self.stores, self.program, self.windows = run, job.stores, program, job.windows
        self.first_params, self.placement, self.devices = job.first_params, job.placement, job.placement.devices
        self.care, self.say = job.care, job.say
        self.directory, self.folder = job.directory, attempt.folder
        self.attempt, self.checkpoints, self.watchdog, self.check_texts = attempt, checkpoints, watchdog, check_texts
        self.writes, self.votes = hosts.writes(), hosts.Votes(program.mesh)
        self.rows = batch_sharding(program.mesh)
        self.rates = learning_rates(run)
        self.eval_steps = set(records.evaluation_steps(run))
        self.forks = Forks(run, job.forks, job.care.stale_seconds, job.say)
        self.trunk_steps = 0  # of those done, the ones that its own trunk has taken for it
        self.eval_rows = rows_of(run, job.placement, program)
        self.history = History(run.steps)
        self.steps_taken = 0  # by this attempt
        attempt.count(lambda: {"tokens": float(self.steps_taken * run.batch_tokens)})
        self.clock = records.Clock({})
        self.track: Track = lambda step, values: None
        self.report: Report = lambda done, steps: None

    def train(
        self, report: Report, stopping: Callable[[], bool], trackers: Sequence[str], profile_steps: int
    ) -> Losses:
        """Runs all steps that are left, watched by process 0. Returns the final held-out losses."""
        with self.watchdog.phase("save"):
            start, state = self.restored_or_new()
        if self.writes:
            self.report = report
        else:
            trackers, profile_steps = (), 0
        with (
            contextlib.ExitStack() as opened,
            profiling.profile_steps(self.directory, start + profiling.WARM_UP, profile_steps) as profile,
        ):
            opening = open_trackers(trackers, self.run, self.directory, start)
            self.track = hosts.together(lambda: opened.enter_context(opening))
            with self.watchdog.phase("compile"):
                step, window_losses = self.compiled()
            with self.watchdog.phase("step"):
                return self.steps_from(start, state, step, window_losses, stopping, profile)

    def steps_from(
        self,
        start: int,
        state: State,
        step: Callable[..., Any],
        window_losses: Callable[..., jax.Array],
        stopping: Callable[[], bool],
        profile: profiling.Profile,
    ) -> Losses:
        """The steps from one on."""
        run = self.run
        self.pace = Pace(run, self.devices, start, self.clock.seconds)
        saved_at = time.perf_counter()
        pending = None  # (steps done, metrics) of the step that is still running
        final = None
        for k in range(start, run.steps):
            done = k + 1
            self.watchdog.alive(k)
            with self.clock.measure("train"):
                with jax.profiler.StepTraceAnnotation("train", step_num=done):
                    state, metrics = step(state, self.batch(k), self.rates[k])
                # Reading the metrics of the step before, while this one runs, keeps host and device both busy.
                self.read(pending)
                pending = (done, metrics)
            stop, due = self.votes.ask(stopping(), time.perf_counter() - saved_at > self.care.checkpoint_seconds)
            logged = records.is_logged(run, done)
            evaluated = done in self.eval_steps or self.forks.evaluates(done)
            traced = profile.due(done, logged and done < run.steps and self.writes)
            if evaluated or stop or due or traced or self.forks.due(done):
                with self.clock.measure("train"):
                    self.read(pending)  # nothing is evaluated or kept whose loss was not seen to be finite
                    pending = None
            if traced:
                profile.turn(done)
            if evaluated:
                final = self.evaluate(window_losses, state, done)
            if self.forks.due(done):
                self.hand_over(done, state)
            if done == run.steps or stop or due:
                self.save(done, state)
                saved_at = time.perf_counter()
                self.votes.forget()
            if stop and done < run.steps:
                with self.watchdog.phase("save"):
                    self.checkpoints.wait()
                raise StoppedError(f"{run_id(run)} at step {done} of {run.steps}; its state is saved")
        if final is None:  # the checkpoint was of the last step: the run was stopped before its result was written
            self.inherit(self.attempt.number, run.steps, evaluations_from=run.steps)
            final = self.evaluate(window_losses, state, run.steps)
        return final

    def restored_or_new(self) -> tuple[int, State]:
        """The state to go on from, with the records cut back to it."""
        with self.clock.measure("save"):
            restored = self.restored()
        if restored is None:
            start = 0
            self.forks.begin()
            if self.checkpoints.set_aside:
                hosts.told(lambda: self.inherit(self.attempt.number, 0))  # of those that were tried, no line stands
                if self.writes:
                    self.say("no checkpoint is good: the run starts over")
            with self.clock.measure("compile"), self.watchdog.phase("compile"):
                state = self.program.init(jax.random.key(self.run.seed))
                if self.first_params is not None:
                    state = state._replace(params=placed(self.first_params, self.program.abstract_state.params))
        else:
            start, state = restored
        self.first_params = None  # on the host, all of them
        self.attempt.step = start
        self.attempt.tell(from_step=start, set_aside=self.checkpoints.set_aside)
        if self.writes:
            write_json(self.directory / "placement.json", to_dict(self.placement))
        return start, state

    def restored(self) -> tuple[int, State] | None:
        """The newest checkpoint that can be trusted, and the lines of metrics.jsonl that it was saved with."""
        while (found := self.checkpoints.restore(self.program.abstract_state)) is not None:
            start, state, progress, number = found
            if hosts.told(lambda: self.inherit(number, start) == progress["metrics"]):  # noqa: B023 - called at once
                self.clock = records.Clock(progress["seconds"])
                self.history = History.from_json(progress["history"])
                self.trunk_steps = progress.get("trunk_steps", 0)
                self.forks.resume(progress.get("forks", {}), start)
                return start, state
            # A woken owner that has recorded the result by now has moved its metrics away: nothing is wrong with them.
            if hosts.told((self.directory / "result.json").exists):
                raise lost(self.directory)
            self.checkpoints.mark_unusable(start, number, "its metrics.jsonl is not the one that it was saved with")
            del found, state  # so that two never take up memory at once
        return None

    def inherit(self, number: int, steps: int, evaluations_from: float = math.inf) -> int | None:
        """Takes over, on process 0, the lines that an attempt has written up to a step. Returns their checksum."""
        if not self.writes:
            return None
        folder = records.attempt_folder(self.directory, number)
        for name in ("timing.jsonl", "metrics.jsonl"):
            lines = records.up_to(folder / name, steps, evaluations_from)
            write_text(self.folder / name, lines)
        return records.checksum(lines)

    def compiled(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The step and the evaluation, compiled before the first call, so that training is not charged with it.

        Runs that share a program share what was compiled for it: jax finds it again (scaling.training.ahead).
        """
        with self.clock.measure("compile"):
            step = hosts.together(lambda: compiled_to_fit(lowered_step(self.program, self.run)))
            window_losses = lowered_losses(self.program, self.run, self.eval_rows).compile()
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
        self.history = after(self.history, values["loss"])
        if reason := divergence(self.history):
            raise RunFailedError(f"{run_id(self.run)}: {reason}", "diverged", done)
        self.attempt.step = done
        self.steps_taken += 1
        record = {"lr": float(self.rates[done - 1]), **values}
        self.forks.stepped(done, record)
        logged = records.is_logged(self.run, done)
        if logged:
            self.log(done, record)
            self.report(done, self.run.steps)
        if self.writes and (logged or self.pace.due()):
            self.say(self.pace.line(done, values["loss"], self.clock.so_far()))

    def refuse_infinite(self, done: int, values: dict[str, float]) -> None:
        if not all(map(math.isfinite, values.values())):
            told = ", ".join(f"{name} {value}" for name, value in values.items())
            raise RunFailedError(f"{run_id(self.run)}: step {done} of {self.run.steps}: {told}", "not_finite", done)

    def evaluate(self, window_losses: Callable[..., jax.Array], state: State, done: int) -> Losses:
        losses = {}
        for name, tokens_WxM in self.windows.items():
            with self.clock.measure("evaluate"):
                loss, stderr = evaluate(
                    window_losses, state.params, tokens_WxM, self.eval_rows, self.rows, self.watchdog.alive
                )
            self.refuse_infinite(done, {f"{name} loss": loss, "its standard error": stderr})
            losses[name] = {"loss": loss, "stderr": stderr}
        self.forks.evaluated(done, losses)
        if done in self.eval_steps:
            self.log(done, {"eval": losses})
        return losses

    def save(self, done: int, state: State) -> None:
        """Saves in the background, unless the run has been taken over or its text has changed."""
        with self.clock.measure("save"), self.watchdog.phase("save"):
            self.attempt.check()
            self.check_texts()
            progress = {
                "seconds": dict(self.clock.seconds),
                "history": self.history.to_json(),
                "trunk_steps": self.trunk_steps,
                "forks": self.forks.to_json(),
            }
            if self.writes:
                records.sync(self.folder / "metrics.jsonl")
                progress["metrics"] = records.checksum(records.up_to(self.folder / "metrics.jsonl", done))
            self.checkpoints.save(done, state, progress)

    def hand_over(self, done: int, state: State) -> None:
        """Leaves the forks that decay from here on with the state, unless the run has been taken over or its text has
        changed."""
        with self.clock.measure("save"), self.watchdog.phase("save"):
            self.attempt.check()
            self.check_texts()
            self.checkpoints.wait()  # one save at a time, on several processes too
            self.forks.hand_over(done, state)

    def log(self, done: int, record: dict[str, Any]) -> None:
        if not self.writes:
            return
        tokens, seconds = done * self.run.batch_tokens, self.clock.so_far()
        records.append(self.folder / "metrics.jsonl", {"step": done, "tokens": tokens, **record})
        own = tokens - self.trunk_steps * self.run.batch_tokens
        rate = own / seconds["train"] if seconds["train"] else None
        memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        flops_per_second = rate and rate * flops_per_token(self.run.model, self.run.data.sequence_length)
        self.track(done, tracked(record, rate, flops_per_second and mfu(flops_per_second, self.devices)))
        timing = {"step": done, "seconds": seconds}
        records.append(self.folder / "timing.jsonl", {**timing, "tokens_per_second": rate, "peak_memory_bytes": memory})
