"""`tools.plan` with a topology, as a user runs it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from scaling.runs import Placement, run_from_dict, run_id
from scaling.specs import from_dict

ROOT = pathlib.Path(__file__).parents[1]
CHINCHILLA = ["--config=experiments/configs/chinchilla.py", "--suppose_tokens=1.5e11", "--suppose_vocab=32000"]
SMOKE = ["--config=experiments/configs/smoke.py", "--suppose_tokens=1e8", "--suppose_vocab=256"]
WITHOUT_JAX = """
import runpy, sys
sys.argv[0] = "tools.plan"
try:
    runpy.run_module("tools.plan", run_name="__main__")
finally:
    print("jax" in sys.modules, file=sys.stderr)
"""


def plan(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", WITHOUT_JAX, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def refusal(*arguments: str) -> str:
    done = plan(*arguments)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture(scope="module")
def chinchilla(tmp_path_factory):
    out = tmp_path_factory.mktemp("plan") / "plan.json"
    done = plan(*CHINCHILLA, "--topology=v5p:4x4x4", f"--out={out}")
    assert done.returncode == 0, done.stderr
    return done, json.loads(out.read_text())


def test_the_whole_grid_is_planned_without_jax(chinchilla):
    done, values = chinchilla
    assert done.stderr.splitlines()[-1] == "False"
    assert len(values["cells"]) == 419
    assert "too few for 25 of 419 cells" in done.stdout


def test_every_cell_has_a_place_and_its_estimates(chinchilla):
    _, values = chinchilla
    assert values["topology"] == "v5p:4x4x4"
    for cell in values["cells"]:
        run, placement = run_from_dict(cell["run_spec"]), from_dict(Placement, cell["placement"])
        assert run_id(run) == cell["run"]
        placement.check(run)
        assert placement.devices == 64
        assert 0 < cell["memory_gib_est"] < 95.73
        assert 0 < cell["mfu_est"] < 1
        assert cell["proof"] is None
        assert cell["chip_hours_est"] == pytest.approx(cell["C"] / (cell["mfu_est"] * 459e12) / 3600)


def test_the_whole_is_the_sum_of_its_cells(chinchilla):
    done, values = chinchilla
    for name in ("chip_hours_est", "kwh_est", "cost_est", "C", "D"):
        assert values["totals"][name] == pytest.approx(sum(cell[name] for cell in values["cells"]))
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("419 cells, ")]
    hours = float(f"{values['totals']['chip_hours_est']:.3g}")  # as it is printed: three figures
    assert f"{hours:,.0f} chip-hours" in line
    assert f"${values['totals']['cost_est']:,.0f}" in line


def test_estimates_are_called_so_and_how_far_they_are_off(chinchilla):
    done, values = chinchilla
    hardware, evidence, heads, *rows = done.stdout.splitlines()[: 3 + 419]
    assert hardware.startswith("v5p:4x4x4: 64 chips, 95.73 GiB a device; a chip at $")
    for name in ("GiB", "step", "MFU", "hours", "chip-h", "kWh", "$"):
        assert f" {name} est" in heads
    beyond = sum(cell["mfu_est"] > 0.715 for cell in values["cells"])  # MaxText's best on v5p
    assert evidence.endswith(f"it puts {beyond} of these 419 cells above 71.5%.")
    assert max(map(len, [heads, *rows])) <= 160


def test_chips_without_published_runs_are_said_to_have_none():
    done = plan(*SMOKE, "--topology=tpu7x:2x2x1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].endswith("; with runs on tpu7x it was not compared.")


def test_cells_price_and_power_are_chosen(tmp_path):
    out = tmp_path / "plan.json"
    chosen = ("--topology=4xv5e:16x16", "--cells=16b", "--price=1", "--power=100", f"--out={out}")
    done = plan(*CHINCHILLA, *chosen)
    assert done.returncode == 0, done.stderr
    cells = json.loads(out.read_text())["cells"]
    assert {cell["N"] for cell in cells} == {15_113_088_000}
    for cell in cells:
        assert cell["placement"]["data"] % 4 == 0  # over the slices
        assert cell["cost_est"] == cell["chip_hours_est"]
        assert cell["kwh_est"] == pytest.approx(cell["chip_hours_est"] / 10)


def test_small_cells_are_planned_side_by_side(tmp_path):
    """A node of GPUs, each of which holds a cell with room to spare: the plan says so, and how much stands idle."""
    out = tmp_path / "plan.json"
    done = plan(*SMOKE, "--topology=h100:8", f"--out={out}")
    values = json_of(done, out)
    cells, totals = values["cells"], values["totals"]
    assert {cell["topology"] for cell in cells} == {"h100:1"}
    assert totals["elapsed_hours_est"] < sum(cell["hours_est"] for cell in cells)
    assert totals["elapsed_hours_est"] >= max(cell["hours_est"] for cell in cells)
    assert "; estimated, side by side on h100:8: " in done.stdout
    assert f"; devices idle {1 - totals['busy_est']:.1%}" in done.stdout


def test_the_compiler_proves_a_plan(tmp_path):
    """By the compiler of this machine, for its fake devices: the cell of least work, and the whole way to the file."""
    out = tmp_path / "plan.json"
    name = json_of(plan(*SMOKE, f"--out={out}"), out)["cells"][0]["run"]
    done = plan(*SMOKE, "--topology=cpu:4", f"--cells={name}", "--aot", f"--out={out}")
    (cell,) = json_of(done, out)["cells"]
    proof = cell["proof"]
    assert proof["fits"]
    assert proof["topology"] == "cpu:4"
    assert proof["placement"] == cell["placement"]
    assert 0 < proof["peak_gib"] < proof["hbm_gib"]
    assert [each["fits"] for each in proof["tried"]] == [True]
    assert "compiled: N " in done.stdout
    assert "jaxlib" in proof["compiler"]


def json_of(done: subprocess.CompletedProcess, path: pathlib.Path):
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


def test_without_a_topology_nothing_is_placed(tmp_path):
    values = json_of(plan(*SMOKE, f"--out={tmp_path}/plan.json"), tmp_path / "plan.json")
    assert values["topology"] is None
    assert all(cell["placement"] is cell["proof"] is cell["cost_est"] is None for cell in values["cells"])
    assert values["totals"].keys() == {"cells", "C", "D"}


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--aot"], "--aot without --topology (--topology=v5e:16x16, say)"),
        (["--price=1"], "--price without --topology"),
        (["--topology=v5e-256"], "did you mean v5e:16x16?"),
        (["--topology=v5e:4x4", "--config.placement.fsdp=8"], "config.placement is given, and --topology finds"),
        (["--cells=900t"], "--cells: no cell of about 900t (sizes are "),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_line(arguments, fault):
    assert fault in refusal(*SMOKE, *arguments)


def test_a_model_that_fits_nowhere_is_told_what_would_hold_it():
    line = refusal(*CHINCHILLA, "--topology=v5e:2x2", "--cells=16b")
    assert "no cell fits v5e:2x2" in line
    assert "the least that would hold it is v5e:" in line
