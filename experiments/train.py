"""One run: from a config that names a size and a budget, from a run.json, or the first run of a next_run.json.

python -m experiments.train --config=experiments/configs/one.py --workdir=runs/one
python -m experiments.train --run=runs/demo/report/next_run.json --workdir=runs/next
"""

import pathlib
import signal
import threading
from typing import Any

from absl import flags
from ml_collections import config_flags

from scaling import command
from scaling.data.batches import Stores
from scaling.errors import InputError
from scaling.files import read_json
from scaling.progress import progress_bar
from scaling.runs import Placement, Run, run_from_dict, run_id
from scaling.sweeps.cells import continued_run, one_run
from scaling.sweeps.config import one_config
from scaling.sweeps.texts import find_stores, prepare_text, verify_stores
from scaling.training.trackers import check_trackers

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of one run; its fields are --config.FIELD=.")
RUN = flags.DEFINE_string("run", None, "A run.json or next_run.json, instead of a config.")
START = flags.DEFINE_string("start", "", "With --run: the directory of the parameters that it starts from.")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
STORES = flags.DEFINE_string("stores", command.default_stores(), "Directory where token stores are kept.")
TRACKERS = flags.DEFINE_list("trackers", [], "Where to watch the run besides: tensorboard, wandb.")
PROFILE_STEPS = flags.DEFINE_integer("profile_steps", 0, "Steps to take a profile of.", lower_bound=0)


def main(argv: list[str]) -> None:
    del argv
    check_trackers(TRACKERS.value)
    run, placement, stores, start = _what()
    workdir = pathlib.Path(WORKDIR.value)
    if not (workdir / "run.json").exists():
        verify_stores(stores)
    from scaling.training.loop import train  # here: jax takes a second, which --help need not wait for

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with progress_bar(run.steps, "step", run_id(run)) as bar:

        def report(done: int, steps: int) -> None:
            bar.update(done - bar.n)

        result = train(
            run,
            placement,
            stores,
            workdir,
            report,
            stop.is_set,
            start=start or None,
            trackers=TRACKERS.value,
            profile_steps=PROFILE_STEPS.value,
        )
    print(_summary(result))


def _what() -> tuple[Run, Placement, Stores, str]:
    """The run, where it is placed, its token stores, and the directory of the parameters it starts from, if any."""
    if (RUN.value is None) == (CONFIG.value is None):
        raise InputError("give either --config or --run")
    if RUN.value is not None:
        run = _read_run(RUN.value)
        return run, Placement(), find_stores(run.stores, STORES.value), START.value
    config = one_config(command.config_values(CONFIG))
    text = prepare_text(config.data, STORES.value)
    if not config.start:
        return one_run(config, text), config.placement, text.stores, ""
    from scaling.models.parameter_files import read_header

    shape, content_id = read_header(config.start)
    print(f"starting from {config.start}: its shape is taken, config.size and config.model are not")
    return continued_run(config, text, shape, content_id), config.placement, text.stores, config.start


def _read_run(path: str) -> Run:
    values = read_json(path)
    if isinstance(values, list):  # a next_run.json
        values = next((entry["run"] for entry in values if isinstance(entry, dict) and entry.get("run")), None)
        if values is None:
            raise InputError("has no run: it was not made from a sweep, or none could be made", where=path)
    return run_from_dict(values, path)


def _summary(result: dict[str, Any]) -> str:
    timing = result["timing"]
    seconds = ", ".join(f"{what} {timing[f'{what}_seconds']:.1f}" for what in ("compile", "train", "evaluate", "save"))
    return (
        f"{result['run']}: N {result['N']:,.0f}, D {result['D']:,.0f}, C {result['C']:.3g}, held-out loss "
        f"{result['loss']:.4f} nats per token\nseconds: {seconds}; {timing['flops_per_second']:.3g} FLOP/s"
        + (f", MFU {timing['mfu']:.1%}" if timing["mfu"] is not None else "")
    )


if __name__ == "__main__":
    command.launch(main)
