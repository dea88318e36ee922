"""What a command has imported by the time that a first step is taken: what takes long comes only where it is used."""

import os
import pathlib
import subprocess
import sys

import pytest

from scaling.runs import DataSpec, ModelShape, OptimizerSpec, Run, ScheduleSpec, run_id, run_to_dict

ROOT = pathlib.Path(__file__).parents[2]
# By what each is for. Matplotlib and scipy take half a second each, and the datasets and engines longer.
ANALYSIS = {"pandas", "scipy", "matplotlib", "statsmodels", "sklearn"}
DATASETS = {"tensorflow", "tensorflow_datasets", "array_record", "grain", "pyarrow", "tokenizers", "datasets"}
ENGINES = {"ray", "submitit"}
TRACKERS = {"tensorboard", "tensorboardX", "wandb"}
NEVER = ANALYSIS | DATASETS | ENGINES | TRACKERS
COMPUTES = {"jax", "flax", "optax", "orbax"}
ENDED = 'print("LOADED", *sorted({name.partition(".")[0] for name in sys.modules}), flush=True); os._exit(0)'
AT_FIRST_STEP = f"""
import os, sys
from scaling.training import trainer
read = trainer.Trainer.read
def first(self, pending):
    read(self, pending)
    if pending is not None:
        {ENDED}
trainer.Trainer.read = first
"""
AT_FIRST_CELL = f"""
import os, sys
from scaling.sweeps import launch
def first(worker, item, tell):
    worker.kill()
    {ENDED}
launch._one_cell = first
"""


def loaded(spy, code, tmp_path):
    """The packages that a process that runs `code` has loaded where `spy` ends it."""
    given = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    environment = {**given, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SCALING_STORES": str(tmp_path / "stores")}
    done = subprocess.run(
        [sys.executable, "-c", f"{spy}\n{code}"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("LOADED ")), None)
    assert line is not None, done.stdout + done.stderr
    return set(line.split()[1:])


def command(module, *flags):
    return f"import sys\nsys.argv = {[module, *flags]!r}\nfrom {module} import main\nfrom scaling import command\n" + (
        "command.launch(main)"
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A small text of several documents, as a flag of a config."""
    folder = tmp_path_factory.mktemp("text")
    for i in range(200):
        (folder / f"{i:03}.txt").write_text(" ".join(f"{i} times {j} is {i * j}." for j in range(200)))
    return f"--config.data.source=files:{folder}/*.txt"


def test_a_run_of_its_own(text, tmp_path):
    flags = (f"--workdir={tmp_path / 'w'}", text, "--config.flops=1e10", "--config.size=15e3")
    found = loaded(AT_FIRST_STEP, command("experiments.train", "--config=experiments/configs/one.py", *flags), tmp_path)
    assert found >= COMPUTES
    assert found & NEVER == set()


def test_a_launcher_when_it_starts_its_first_cell(text, tmp_path):
    """It never computes: it leaves accelerators, and the memory of jax, to its workers. (Tensorstore is there: it
    creates sweep.json so that of two launchers one does.)"""
    flags = (f"--workdir={tmp_path / 'w'}", text, "--config.grid.budgets=(2e10,)", "--workers=1")
    found = loaded(
        AT_FIRST_CELL, command("experiments.sweep", "--config=experiments/configs/smoke.py", *flags), tmp_path
    )
    assert found & (NEVER | COMPUTES) == set()


def test_a_worker_at_the_first_step_of_its_cell(text_store, tmp_path):
    data = DataSpec(text_store.content_id, sequence_length=16, eval_windows=4)
    shape = ModelShape(d_model=8, n_layers=1, n_heads=1, d_ff=16, vocab_size=256)
    run = Run(shape, data, batch_size=2, steps=9, optimizer=OptimizerSpec(1e-2), schedule=ScheduleSpec("cosine", 2))
    places = {"directory": str(tmp_path / "runs" / run_id(run)), "stores": [str(text_store.path)]}
    item = {**places, "run": run_to_dict(run), "placement": {}, "trackers": [], "profile_steps": 0, "care": ""}
    train = (
        "import sys\n"
        "from scaling.sweeps.worker import Ahead, _train\n"
        f"_train({item!r}, sys.stderr, lambda: False, Ahead(lambda: False))"
    )
    found = loaded(AT_FIRST_STEP, train, tmp_path)
    assert found >= COMPUTES
    assert found & NEVER == set()
