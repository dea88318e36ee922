"""Where a run's numbers can be watched: TensorBoard event files, and Weights & Biases.

They repeat metrics.jsonl and timing.jsonl for the eye; no result is read from them.

    tensorboard --logdir WORKDIR/runs      # `pip install tensorboard`; a line a run
    WANDB_MODE=offline                     # writes to the run's directory only; `wandb sync` sends it later
"""

import contextlib
import importlib.util
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from scaling.errors import InputError, StoppedError, nearest
from scaling.runs import Run, run_id, run_to_dict
from scaling.specs import require

Track = Callable[[int, dict[str, float]], None]  # (steps done, values by their names)

# Tracker -> (the module it writes with, how to install it). TensorBoard's files are written by tensorboardX: 0.7 MB on
# NumPy and protobuf, and it marks what a resumed run writes again, which tensorboard.summary.Writer (85 MB) does not.
LIBRARIES = {
    "tensorboard": ("tensorboardX", 'pip install "tensorboardX>=2.6.4,<3"'),
    "wandb": ("wandb", 'pip install "wandb>=0.31,<1"'),
}


def check_trackers(names: Sequence[str]) -> None:
    """Raises InputError for an unknown tracker, with the nearest, and for one without its library, with the command
    that installs it. Imports neither: a command can ask at its start."""
    for name in names:
        require(name in LIBRARIES, f"unknown tracker {name!r}", nearest(name, LIBRARIES))
        module, install = LIBRARIES[name]
        require(importlib.util.find_spec(module) is not None, f"tracker {name} needs {module}", install)


def tracked(record: dict[str, Any], tokens_per_second: float | None = None, mfu: float | None = None) -> dict[str, Any]:
    """A line of metrics.jsonl and the throughput under the names they are tracked by; what is None is left out.

    train/loss, train/grad_norm, train/lr; eval/SET/loss; tokens_per_second, mfu.
    """
    values = {f"train/{name}": value for name, value in record.items() if name not in ("step", "tokens", "eval")}
    values |= {f"eval/{name}/loss": held_out["loss"] for name, held_out in record.get("eval", {}).items()}
    values |= {"tokens_per_second": tokens_per_second, "mfu": mfu}
    return {name: value for name, value in values.items() if value is not None}


@contextlib.contextmanager
def open_trackers(names: Sequence[str], run: Run, directory: pathlib.Path, start_step: int) -> Iterator[Track]:
    """Opens trackers of a run that goes on after `start_step` steps, and yields track(step, values).

    The x axis is the step; `tokens`, trained on so far, stands beside the values. Steps of one run must not decrease.
    Raises InputError as `check_trackers`, and if W&B cannot be reached. For one process of a run only.
    """
    check_trackers(names)
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(OPEN[name](run, directory, start_step)) for name in names]
        last = -1

        def track(step: int, values: dict[str, float]) -> None:
            nonlocal last
            tokens = {"tokens": step * run.batch_tokens} if step != last else {}
            last = step
            for write in opened:
                write(step, {**tokens, **values})

        yield track


@contextlib.contextmanager
def _tensorboard(run: Run, directory: pathlib.Path, start_step: int) -> Iterator[Track]:
    from tensorboardX import SummaryWriter

    # Files are read in the order of their names, which hold the second they were made in; the suffix orders those of
    # one second. purge_step makes readers forget what an earlier, cut-off process wrote from that step on.
    suffix = f".{start_step:09}"
    with SummaryWriter(
        str(directory / "tensorboard"), purge_step=start_step + 1, flush_secs=1, filename_suffix=suffix
    ) as writer:

        def write(step: int, values: dict[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        yield write


@contextlib.contextmanager
def _wandb(run: Run, directory: pathlib.Path, start_step: int) -> Iterator[Track]:
    """W&B keeps the first value of a step that is sent again after a resumption: the same one, but for its timing."""
    import wandb

    try:
        tracked_run = wandb.init(
            project=_project(directory),
            id=run_id(run),
            name=run_id(run),
            config=run_to_dict(run),
            dir=str(directory),
            resume="allow",
            settings=wandb.Settings(console="off"),  # standard output belongs to the commands and their progress
        )
    except wandb.errors.Error as error:
        raise InputError(f"W&B: {' '.join(str(error).split())}", do="wandb login, or WANDB_MODE=offline") from None
    with tracked_run:
        try:
            yield lambda step, values: tracked_run.log(values, step=step)
        except StoppedError:
            tracked_run.mark_preempting()  # not failed: it will go on
            raise


OPEN = {"tensorboard": _tensorboard, "wandb": _wandb}


def _project(directory: pathlib.Path) -> str:
    """The name of the sweep's directory, or of a single run's own, without the characters that W&B refuses."""
    directory = directory.resolve()
    sweep = directory.parents[1] if directory.parent.name == "runs" else directory
    name = sweep.name if (sweep / "sweep.json").exists() else directory.name
    return re.sub(r"[/\\#?%:]", "-", name)[:128]
