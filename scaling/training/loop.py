"""Training a run to its result: dispatch a step, read the one before, evaluate on the way, save, and record.

The state after step k is a function of the run and k alone, so a stopped run goes on where its checkpoint is.
"""

import contextlib
import fcntl
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from scaling.data.batches import batch, epochs, eval_windows, unique_tokens
from scaling.data.token_store import TokenStore
from scaling.errors import InputError, RunFailedError, StoppedError
from scaling.files import make_directory, read_json, write_json
from scaling.models.counts import counts
from scaling.parallel.chips import peak_flops
from scaling.parallel.mesh import batch_sharding, make_mesh
from scaling.runs import Placement, Run, run_from_dict, run_id, run_to_dict
from scaling.specs import to_dict
from scaling.training import records
from scaling.training.checkpoints import Checkpoints
from scaling.training.distribute import place_rows
from scaling.training.evaluation import evaluate, rows_at_a_time
from scaling.training.schedules import learning_rates
from scaling.training.step import Program, State, make_program

LOGGED_LINES = 100  # a run, about
CHECKPOINT_SECONDS = 300.0
SCHEMA = 1

Report = Callable[[int, int], None]  # (steps done, steps of the run), after each logged step


def evaluation_steps(run: Run) -> list[int]:
    """After how many steps the held-out loss is taken: evenly spaced in log from a tenth of the run to its end."""
    points = np.geomspace(max(1.0, run.steps / 10), run.steps, run.eval_points) if run.eval_points > 1 else [run.steps]
    return sorted({round(point) for point in points} | {run.steps})


def train(
    run: Run,
    placement: Placement,
    store: TokenStore,
    directory: pathlib.Path,
    report: Report = lambda done, steps: None,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Trains `run` in `directory`, from its last checkpoint if there is one, and returns what stands in result.json.

    report: called after each logged step. stopping: asked after each step; once true, the state is saved and
    StoppedError raised. Raises InputError for a placement or store that does not fit, and RunFailedError when a loss is
    not finite; the reason is then in failure.json, and the checkpoints are from before.
    """
    run_path, result_path = directory / "run.json", directory / "result.json"
    if run_path.exists() and run_from_dict(read_json(run_path), str(run_path)) != run:
        raise InputError("holds another run", where=str(directory), do="give another --workdir")
    if result_path.exists():
        return read_json(result_path)
    if store.vocab_size > run.model.vocab_size:
        raise InputError(f"model.vocab_size={run.model.vocab_size} is below the store's {store.vocab_size}")
    windows_WxM = eval_windows(store, run.data)
    mesh = make_mesh(placement)
    program = make_program(run, placement, mesh)
    make_directory(directory)
    with _locked(directory):
        write_json(run_path, run_to_dict(run))
        write_json(directory / "placement.json", to_dict(placement))
        with jax.set_mesh(mesh), Checkpoints(directory / "checkpoints") as checkpoints:
            trainer = _Trainer(run, placement, store, directory, program, checkpoints, windows_WxM)
            loss, loss_stderr = trainer.train(report, stopping)
        result = _result(run, placement, store, loss, loss_stderr, dict(trainer.clock.seconds))
        write_json(result_path, result)
        (directory / "failure.json").unlink(missing_ok=True)
    return result


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
        store: TokenStore,
        directory: pathlib.Path,
        program: Program,
        checkpoints: Checkpoints,
        windows_WxM: np.ndarray,
    ):
        self.run, self.store, self.directory = run, store, directory
        self.program, self.checkpoints, self.windows_WxM = program, checkpoints, windows_WxM
        self.rows = batch_sharding(program.mesh)
        self.rates = learning_rates(run)
        self.log_every = max(1, math.ceil(run.steps / LOGGED_LINES))
        self.eval_steps = set(evaluation_steps(run))
        self.eval_rows = rows_at_a_time(
            run.data.eval_windows, run.data.sequence_length, placement.data * placement.fsdp
        )
        self.clock = records.Clock({})

    def train(self, report: Report, stopping: Callable[[], bool]) -> tuple[float, float]:
        """Runs all steps that are left. Returns the final held-out loss and its standard error."""
        run = self.run
        start, state = self.restored_or_new()
        step, window_losses = self.compiled()
        saved_at = time.perf_counter()
        pending = None  # (steps done, metrics) of the step that is still running
        final = None
        for k in range(start, run.steps):
            done = k + 1
            with self.clock.measure("train"):
                state, metrics = step(state, self.batch(k), self.rates[k])
                # Reading the metrics of the step before, while this one runs, keeps host and device both busy.
                self.read(pending)
                pending = (done, metrics)
            stop = stopping()
            due = time.perf_counter() - saved_at > CHECKPOINT_SECONDS
            if done in self.eval_steps or stop or due:
                with self.clock.measure("train"):
                    self.read(pending)  # nothing is evaluated or kept whose loss was not seen to be finite
                    pending = None
            if done in self.eval_steps:
                final = self.evaluate(window_losses, state, done)
            if done == run.steps or stop or due:
                self.save(done, state)
                saved_at = time.perf_counter()
            if done % self.log_every == 0 or done == run.steps:
                report(done, run.steps)
            if stop and done < run.steps:
                raise StoppedError(f"{run_id(run)} at step {done} of {run.steps}; its state is saved")
        if final is None:  # the checkpoint was of the last step: the run was stopped before its result was written
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
        else:
            start, state, progress = restored
            self.clock = records.Clock(progress["seconds"])
        for name in ("metrics.jsonl", "timing.jsonl"):
            records.cut_back(self.directory / name, start)
        return start, state

    def compiled(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The step and the evaluation, compiled ahead, so that no time of theirs is charged to training."""
        run, state = self.run, self.program.abstract_state
        M = run.data.sequence_length + 1
        tokens_BxM = jax.ShapeDtypeStruct((run.batch_size, M), np.int32, sharding=self.rows)
        tokens_RxM = jax.ShapeDtypeStruct((self.eval_rows, M), np.int32, sharding=self.rows)
        lr = jax.ShapeDtypeStruct((), np.float32)
        with self.clock.measure("compile"):
            step = self.program.step.lower(state, tokens_BxM, lr).compile()
            window_losses = self.program.window_losses.lower(state.params, tokens_RxM).compile()
        return step, window_losses

    def batch(self, k: int) -> jax.Array:
        run = self.run
        shape = (run.batch_size, run.data.sequence_length + 1)
        return place_rows(lambda rows: batch(self.store, run.data, run.batch_size, k, rows), shape, self.rows)

    def read(self, pending: tuple[int, dict[str, jax.Array]] | None) -> None:
        """Waits for the metrics of a step, refuses a loss that is not finite, and records every so many."""
        if pending is None:
            return
        done, metrics = pending
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.refuse_infinite(done, values)
        if done % self.log_every == 0 or done == self.run.steps:
            self.log(done, {"lr": float(self.rates[done - 1]), **values})

    def refuse_infinite(self, done: int, values: dict[str, float]) -> None:
        if not all(map(math.isfinite, values.values())):
            reason = f"step {done} of {self.run.steps}: " + ", ".join(f"{k} {v}" for k, v in values.items())
            write_json(self.directory / "failure.json", {"reason": reason, "step": done, "final": True})
            raise RunFailedError(f"{run_id(self.run)}: {reason}")

    def evaluate(self, window_losses: Callable[..., jax.Array], state: State, done: int) -> tuple[float, float]:
        with self.clock.measure("evaluate"):
            loss, stderr = evaluate(window_losses, state.params, self.windows_WxM, self.eval_rows, self.rows)
        self.refuse_infinite(done, {"held-out loss": loss, "its standard error": stderr})
        self.log(done, {"eval": {"validation": {"loss": loss, "stderr": stderr}}})
        return loss, stderr

    def save(self, done: int, state: State) -> None:
        with self.clock.measure("save"):
            self.checkpoints.save(done, state, {"seconds": dict(self.clock.seconds)})

    def log(self, done: int, record: dict[str, Any]) -> None:
        tokens = done * self.run.batch_tokens
        records.append(self.directory / "metrics.jsonl", {"step": done, "tokens": tokens, **record})
        seconds = self.clock.seconds
        rate = tokens / seconds["train"] if seconds["train"] else None
        memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        timing = {"step": done, "seconds": dict(seconds)}
        records.append(
            self.directory / "timing.jsonl", {**timing, "tokens_per_second": rate, "peak_memory_bytes": memory}
        )


def _result(
    run: Run, placement: Placement, store: TokenStore, loss: float, loss_stderr: float, seconds: dict[str, float]
) -> dict[str, Any]:
    counted = counts(run.model, run.data.sequence_length, run.tokens)
    device_kind = jax.local_devices()[0].device_kind
    peak = peak_flops(device_kind)
    flops_per_second = counted["C"] / seconds["train"]
    return {
        "schema": SCHEMA,
        "run": run_id(run),
        **counted,
        "unique_tokens": unique_tokens(store, run.data, run.tokens),
        "epochs": epochs(store, run.data, run.tokens),
        "steps": run.steps,
        "loss": loss,
        "loss_stderr": loss_stderr,
        "seed": run.seed,
        "timing": {
            **{f"{what}_seconds": seconds.get(what, 0.0) for what in ("compile", "train", "evaluate", "save")},
            "tokens_per_second": run.tokens / seconds["train"],
            "flops_per_second": flops_per_second,
            "mfu": None if peak is None else flops_per_second / (peak * placement.devices),
            "device_kind": device_kind,
            "devices": placement.devices,
            "jax": jax.__version__,
        },
    }
