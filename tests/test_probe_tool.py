"""tools.probe as a user meets it: rates side by side, a file that grows, and the rule that tools.tune fits to it."""

import os
import pathlib
import subprocess
import sys

import pandas as pd
import pytest

from scaling.analysis.table import read_frame

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = """
from scaling.sweeps.config import DataConfig, DurationsConfig, ModelConfig, SweepConfig, config_dict
from scaling.sweeps.vary import over


def get_config():
    data = DataConfig(source="files:{text}/*.txt", tokenizer="bytes", sequence_length=64, eval_windows=16,
                      validation_fraction=0.3, max_epochs=9.0)
    sizes = DurationsConfig(sizes=(5e3, 1.2e4, 2e4, 4e4), tokens=(52e3,))
    model = ModelConfig(tied_embeddings=True, output_init="zero")
    return config_dict(SweepConfig(data, "small", durations=sizes, model=model, vary=over("lr_factor", (0.5, 2.0))))
"""


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Runs a command. Returns (exit code, standard output, standard error)."""
    directory = tmp_path_factory.mktemp("probe")
    environment = {
        **os.environ,
        "SCALING_STORES": str(directory / "stores"),
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "OMP_NUM_THREADS": "1",
    }
    (directory / "text").mkdir()
    for i in range(40):
        text = " ".join(f"{i} times {j} is {i * j}." for j in range(120))
        (directory / "text" / f"{i:02}.txt").write_text(text)
    (directory / "mine.py").write_text(CONFIG.format(text=directory / "text"))

    def run(module, *flags):
        command = [sys.executable, "-m", module, *flags]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    run.directory = directory
    return run


def test_probes_are_written_once(ask):
    out, config = ask.directory / "probes", f"--config={ask.directory}/mine.py"
    sizes, few = "--config.durations.sizes=(5e3,1.2e4)", "--rates=0.5,1,2"
    code, output, errors = ask("tools.probe", config, sizes, few, f"--out={out}")
    assert code == 0, errors
    assert output.startswith("left out: 5,000 parameters")
    assert output.count("with one: those of a device train") == 1  # three on two devices: the faster way was looked for
    frame = read_frame([out / "probes.csv"])
    assert len(frame) == frame["probe_of"].nunique() == 3
    assert set(frame["status"]) == {"done"}
    assert frame["rate_factor"].astype(float).tolist() == [0.5, 1.0, 2.0]
    assert (frame["loss"].astype(float) < 5.5).all()  # of log 256 = 5.55: they have learned
    assert f"next: python -m tools.tune --runs={out}/probes.csv --base=small" in output

    code, output, errors = ask("tools.probe", config, sizes, "--rates=0.25,0.5,1,2", f"--out={out}")
    assert code == 0, errors
    more = read_frame([out / "probes.csv"])
    assert more["rate_factor"].astype(float).tolist() == [0.5, 1.0, 2.0, 0.25]
    pd.testing.assert_frame_equal(more.iloc[:3], frame)

    code, _, errors = ask("tools.probe", config, "--config.data.sequence_length=32", f"--out={out}")
    assert code == 2
    assert "which is of another config (give another --out)" in errors


@pytest.mark.slow
def test_a_rule_is_fitted_to_probes(ask):
    """Three sizes at seven rates, whose optima lie inside."""
    out, config = ask.directory / "rates", f"--config={ask.directory}/mine.py"
    code, output, errors = ask("tools.probe", config, "--rates=0.125,0.25,0.5,1,2,4,8", f"--out={out}")
    assert code == 0, errors
    frame = read_frame([out / "probes.csv"])
    assert (len(frame), frame["N"].nunique()) == (21, 3)
    code, tuned, errors = ask("tools.tune", f"--runs={out}/probes.csv", "--base=small", f"--out={out}/rule")
    assert code == 0, errors
    assert "from 3 optima of 3 sizes" in tuned
    table = output[output.index("N  ") : output.index("probes: ")]
    assert table.splitlines()[0].split() == tuned.splitlines()[0].split()  # the optima that were printed before


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--rates=0.5,many"], "--rates: could not convert string to float: 'many'"),
        (["--rates=0,1"], "--rates=0,1 is not possible"),
        (["--rates=1,1.0"], "--rates=1,1.0 has one twice"),
        (["--seeds=-1"], "--seeds=-1 is not possible"),
        (["--config.vary=((('batch_size',4),),)"], "config.vary has batch_size"),
    ],
)
def test_bad_input_is_one_line(ask, tmp_path, flags, fault):
    code, _, errors = ask("tools.probe", f"--config={ask.directory}/mine.py", f"--out={tmp_path}/p", *flags)
    assert code == 2, errors
    assert len(errors.splitlines()) == 1
    assert fault in errors


def test_a_table_of_something_else_is_not_added_to(ask, tmp_path):
    (tmp_path / "probes.csv").write_text("N,D,loss\n1,2,3\n")
    code, _, errors = ask("tools.probe", f"--config={ask.directory}/mine.py", f"--out={tmp_path}")
    assert code == 2
    assert f"{tmp_path}/probes.csv: not a table of probes (give another --out)" in errors
