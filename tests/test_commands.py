"""Every command's --help and its answers to bad input, as a user meets them.

One process imports what the commands import; each case is a fork of it that runs a command from its beginning. So a
hundred starts take the time of a few, and none of them sees the flags of another.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SMOKE = "--config=experiments/configs/smoke.py"
ONE = "--config=experiments/configs/one.py"

FORKS = """
import contextlib, io, json, os, runpy, sys
import ml_collections.config_flags, pandas
import scaling.conclusions, scaling.study, scaling.sweeps.plan, scaling.sweeps.status

for line in sys.stdin:
    module, arguments, out, err = json.loads(line)
    pid = os.fork()
    if pid:
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        continue
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    stores = tmp_path_factory.mktemp("stores")
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SCALING_STORES": str(stores)}


@pytest.fixture(scope="module")
def forks(environment):
    process = subprocess.Popen(
        [sys.executable, "-c", FORKS],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.stdin.close()
    process.wait()
    process.stdout.close()


@pytest.fixture
def run(forks, tmp_path_factory):
    """Runs a command. Returns (exit code, standard output, standard error)."""

    def ask(module, *arguments):
        directory = tmp_path_factory.mktemp("output")
        out, err = directory / "out", directory / "err"
        forks.stdin.write(json.dumps([module, arguments, str(out), str(err)]) + "\n")
        forks.stdin.flush()
        return int(forks.stdout.readline()), out.read_text(), err.read_text()

    return ask


@pytest.fixture
def refused(run):
    """Runs a command that must end with one line and code 2. Returns the line."""

    def ask(module, *arguments):
        code, _, errors = run(module, *arguments)
        assert code == 2, errors
        assert errors.startswith("error: ")
        assert errors.endswith("\n")
        assert len(errors.splitlines()) == 1, errors
        return errors[len("error: ") : -1]

    return ask


FLAGS = {
    "experiments.sweep": (
        "config",
        "workdir",
        "stores",
        "trackers",
        "plan",
        "launcher",
        "workers",
        "retries",
        "care",
        "sbatch",
    ),
    "experiments.cell": ("workdir", "cell", "plan", "care", "[no]distributed", "coordinator", "trackers", "parent"),
    "experiments.train": ("config", "run", "plan", "cell", "[no]distributed", "coordinator", "workdir", "trackers"),
    "tools.plan": ("config", "stores", "suppose_tokens", "topology", "[no]aot", "cells", "price", "power", "out"),
    "tools.status": ("workdir", "[no]watch", "[no]all", "profile"),
    "tools.analyze": ("runs", "curves", "out", "law", "unit", "[no]thorough", "target_flops", "loss_unit"),
    "tools.compare": ("a", "b", "out", "loss_unit"),
    "tools.benchmark": ("of", "config", "cells", "stores", "suppose_vocab", "peer", "repeats", "compare", "out"),
    "tools.tokenize": ("source", "tokenizer", "processes", "out"),
    "tools.tune": ("runs", "base", "out"),
    "tools.probe": ("config", "stores", "rates", "seeds", "out"),
    "tools.prepare_tfds": ("source", "name", "convert", "out"),
    "tools.export": ("run", "format", "store", "out"),
    "tools.import_hf": ("checkpoint", "out"),
    "tools.published": ("[no]download", "data"),
}


def test_every_command_is_here():
    files = [*(ROOT / "experiments").glob("*.py"), *(ROOT / "tools").glob("*.py")]
    commands = {f"{path.parent.name}.{path.stem}" for path in files if path.stem != "__init__"}
    assert commands == FLAGS.keys()


@pytest.mark.parametrize("module", FLAGS)
def test_help_shows_the_command_and_its_flags(run, module):
    _, output, errors = run(module, "--help")
    assert not errors
    assert f"python -m {module} --" in output
    for flag in FLAGS[module]:
        assert f"--{flag}: " in output


def test_every_flag_that_is_documented_exists(run):
    """In the README and the guides, after the name of its command, a line broken by a backslash included."""
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in documents)
    written: dict[str, set[str]] = {}
    for module, flags in re.findall(
        r"\b((?:experiments|tools)\.[a-z_]+)((?: \[?--[^`\n]*)+)", re.sub(r"\\\n *", "", text)
    ):
        written.setdefault(module, set()).update(re.findall(r"--(?:no)?(\w+)", flags))
    assert {"experiments.sweep", "experiments.train", "tools.plan", "tools.analyze"} <= written.keys()
    for module, flags in written.items():
        known = set(re.findall(r"--(?:\[no\])?(\w+):", run(module, "--help")[1]))
        assert flags <= known, module


@pytest.mark.parametrize("module", FLAGS)
def test_help_is_no_failure(run, module):
    assert run(module, "--help")[0] == 0


@pytest.mark.parametrize("module", FLAGS)
def test_an_unknown_flag_names_the_nearest(refused, module):
    flag = FLAGS[module][-1]
    line = refused(module, f"--{flag[:-1]}x=1")
    assert f"Unknown command line flag '{flag[:-1]}x'" in line
    assert f"Did you mean: {flag}" in line


@pytest.mark.parametrize("module", FLAGS)
def test_an_argument_without_a_flag_is_refused(refused, module):
    needed = {
        "experiments.sweep": ["--workdir=w"],
        "experiments.train": ["--workdir=w"],
        "experiments.cell": ["--workdir=w", "--cell=c"],
        "tools.status": ["--workdir=w"],
        "tools.analyze": ["--runs=r", "--out=o"],
        "tools.compare": ["--a=a", "--b=b", "--out=o"],
        "tools.tokenize": ["--out=o"],
        "tools.tune": ["--runs=r", "--out=o"],
        "tools.probe": ["--out=o"],
        "tools.prepare_tfds": ["--out=o"],
        "tools.export": ["--run=r", "--out=o"],
        "tools.import_hf": ["--checkpoint=c", "--out=o"],
    }
    assert "unexpected argument 'runs/demo'" in refused(module, *needed.get(module, []), "runs/demo")


@pytest.mark.parametrize(
    ("module", "flag"),
    [
        ("experiments.sweep", "workdir"),
        ("experiments.train", "workdir"),
        ("tools.status", "workdir"),
        ("tools.analyze", "runs"),
        ("tools.compare", "a"),
        ("tools.tokenize", "out"),
        ("tools.tune", "runs"),
        ("tools.probe", "out"),
        ("tools.prepare_tfds", "out"),
        ("tools.export", "run"),
        ("tools.import_hf", "checkpoint"),
    ],
)
def test_a_missing_flag_is_named(refused, module, flag):
    assert f"--{flag} must have a value" in refused(module)


def test_a_missing_config_says_how_to_give_one(refused, tmp_path):
    assert refused("tools.plan") == "--config is missing (--config=experiments/configs/laptop.py, say)"
    assert "--config is missing" in refused("experiments.sweep", f"--workdir={tmp_path}/w")
    assert refused("experiments.train", f"--workdir={tmp_path}/w") == "give either --config, --run or --plan"
    assert "give either" in refused("experiments.train", f"--workdir={tmp_path}/w", ONE, "--run=r")
    assert "give either" in refused("experiments.train", f"--workdir={tmp_path}/w", ONE, "--plan=p", "--cell=c")


@pytest.mark.parametrize("module", ["experiments.sweep", "tools.plan", "experiments.train"])
@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("--config.data.max_epoch=2", "max_epochs"),
        ("--config.data.sequence_lenght=2", "sequence_length"),
        ("--config.recipee=small", "recipe"),
    ],
)
def test_a_misspelt_field_names_the_nearest(refused, tmp_path, module, field, expected):
    config = ONE if module == "experiments.train" else SMOKE
    workdir = [] if module == "tools.plan" else [f"--workdir={tmp_path}/w"]
    line = refused(module, config, field, *workdir)
    assert field.split("=")[0].split(".")[-1] in line
    assert f"did you mean {expected}?" in line
    assert not (tmp_path / "w").exists()


def test_an_error_is_shown_as_text_not_as_a_quoted_string(refused):
    assert "\\" not in refused("tools.plan", SMOKE, "--config.recipee=small")


def test_a_field_that_the_file_leaves_at_its_default_can_be_set(run):
    """A refusal names --config.data.max_epochs, and seeds may be added: both must be flags of every config."""
    for field in ("--config.seeds=(0,1)", "--config.precision=bf16", "--config.data.max_epochs=3.0"):
        code, _, errors = run("tools.plan", SMOKE, field)
        assert code == 0, errors


@pytest.mark.parametrize(
    ("field", "fault"),
    [
        ("--config.grid.sizes=many", "sizes=many"),
        ("--config.grid.below=lots", "below=lots"),
        ("--config.data.eval_windows=1.5", "eval_windows"),
        ("--config.model.tied_embeddings=3", "tied_embeddings"),
        ("--config.grid.sizes=2", "config.grid.sizes=2 (an isoFLOP curve needs at least 4)"),
        ("--config.grid.prior_size=-1.0", "config.grid.prior_size=-1.0 is not positive"),
        ("--config.recipe=smal", "unknown recipe 'smal' (did you mean small?)"),
        ("--config.grid.budgets=(1e3,)", "budget 1e+03 FLOPs keeps 0 of"),
        ("--config.data.mixture=('0 stdlib','0 files:x')", "config.data.mixture: the weights sum to nothing"),
        ("--config.data.mixture=('stdlib',)", "config.data.mixture has 'stdlib' (each is a weight and a source"),
        ("--config.data.mixture=('1 stdlib','-2 files:x')", "negative"),
        ("--config.data.validation=('stdlib',)", "config.data.validation has 'stdlib' (each is NAME=SOURCE"),
        ("--config.data.validation=('a b=stdlib',)", "'a b' cannot name an evaluation set"),
        ("--config.data.source=stdlib | min_byte:3", "did you mean min_bytes?"),
        ("--config.data.tokenizer=json:/nowhere.json", "/nowhere.json"),
        ("--config.data.tokenizer=bpe:many", "has no vocabulary size"),
        ("--config.vary=((('optimizer.peak_rl',1.0),),)", "did you mean optimizer.peak_lr?"),
        ("--config.model.family=lama", "did you mean llama?"),
        ("--config.model.sizes=presets", "config.model.sizes='presets' of no family"),
        ("--config.points=((1e4,),)", "config.points"),
        ("--config.recipe=rule:/nowhere.json", "/nowhere.json: no such file"),
        ("--config.data.source=stdlb", "unknown source 'stdlb' (did you mean stdlib?)"),
        ("--config.data.source=files:/nowhere/*", "no file matches '/nowhere/*'"),
        ("--config.data.source=tfds:no_such_set", "prepare it as array_record"),
        ("--config.data.tokenizer=byte", "did you mean bytes?"),
        ("--config.data.validation_fraction=2.0", "validation_fraction"),
    ],
)
def test_a_wrong_or_impossible_value_is_named(refused, field, fault):
    assert fault in refused("tools.plan", SMOKE, field)


def test_repetition_that_is_not_allowed_is_planned_and_not_run(run, refused, tmp_path):
    few = "--config.data.max_epochs=0.001"
    line = refused("experiments.sweep", SMOKE, few, f"--workdir={tmp_path}/w")
    assert "epochs (allow repetition with --config.data.max_epochs=" in line
    assert not (tmp_path / "w").exists()
    code, output, _ = run("tools.plan", SMOKE, "--suppose_tokens=1e5", "--suppose_vocab=256")
    assert code == 0
    assert "stdlib (supposed) holds 100,000 training tokens: too few for" in output
    assert "experiments.sweep refuses more than config.data.max_epochs=1" in output.splitlines()[-1]


def test_a_damaged_store_is_refused_when_a_sweep_begins(environment, tmp_path):
    """Sizes are checked whenever a store is opened, checksums once a sweep."""
    (tmp_path / "text").mkdir()
    for i in range(40):
        (tmp_path / "text" / f"{i}.txt").write_text(f"{i} " * 2000)
    stores = {**environment, "SCALING_STORES": str(tmp_path / "stores")}
    text = [f"--config.data.source=files:{tmp_path}/text/*.txt", "--config.data.validation_fraction=0.3"]
    plan = [sys.executable, "-m", "tools.plan", SMOKE, *text]
    subprocess.run(plan, cwd=ROOT, env=stores, check=True, capture_output=True)
    (tokens,) = (tmp_path / "stores").glob("*/train-*.tokens")
    damaged = bytearray(tokens.read_bytes())
    damaged[1000] ^= 1
    tokens.write_bytes(damaged)
    sweep = [sys.executable, "-m", "experiments.sweep", SMOKE, *text, f"--workdir={tmp_path}/w"]
    done = subprocess.run(sweep, cwd=ROOT, env=stores, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "the train split does not match its checksum (remove the store and build it again)" in done.stderr
    assert not (tmp_path / "w").exists()


def test_what_is_supposed_of_a_text_comes_whole(refused):
    together = "--suppose_tokens and --suppose_vocab come together"
    assert refused("tools.plan", SMOKE, "--suppose_tokens=1e5") == together


def test_the_paper_can_be_planned_without_its_text(run):
    """Hoffmann et al. 2022 on C4's 1.5e11 tokens, which are too few for some of its cells."""
    config = "--config=experiments/configs/chinchilla.py"
    code, output, errors = run("tools.plan", config, "--suppose_tokens=1.5e11", "--suppose_vocab=32000")
    assert code == 0, errors
    assert "419 cells, 2.77e+23 FLOPs" in output
    assert "too few for 25 of 419 cells" in output
    assert "N 4,273,695,744 at 9.49e+21 FLOPs needs 3.42e+11 tokens: 2.28 epochs" in output


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("raise RuntimeError('no\\nmoon')", "no moon"),
        ("def get_config():\n    return {}['gird']", "gird"),
        ("def get_config()\n    pass", "expected ':'"),
        ("X = 1", "get_config"),
        ("def get_config():\n    return 3", "to_dict"),
        ("from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'gird': 1})", "'gird'"),
        ("import no_such_module", "no_such_module"),
    ],
)
def test_a_config_file_that_fails_is_told_by_its_own_error(refused, tmp_path, text, fault):
    (tmp_path / "mine.py").write_text(text)
    assert fault in refused("tools.plan", f"--config={tmp_path}/mine.py")


def test_the_error_of_a_config_file_names_the_file(refused, tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    return {}['gird']")
    line = refused("tools.plan", f"--config={tmp_path}/mine.py")
    assert "mine.py" in line
    assert "KeyError" in line


def test_a_missing_config_file_is_named(refused):
    line = refused("tools.plan", "--config=experiments/configs/latpop.py")
    assert "latpop.py" in line
    assert "no such file" in line


@pytest.mark.parametrize(("module", "config"), [("experiments.sweep", SMOKE), ("experiments.train", ONE)])
@pytest.mark.parametrize("below", ["", "/deeper"])
def test_a_workdir_that_is_a_file_is_refused(refused, tmp_path, module, config, below):
    (tmp_path / "file").write_text("mine")
    assert f"{tmp_path}/file" in refused(module, config, f"--workdir={tmp_path}/file{below}")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("module", "config"), [("experiments.sweep", SMOKE), ("experiments.train", ONE)])
def test_a_workdir_that_is_no_folder_of_a_file_system_is_refused(refused, module, config):
    """It would become a folder called gs: of the working directory."""
    assert "gs://bucket/runs: is not in a file system" in refused(module, config, "--workdir=gs://bucket/runs")


def test_a_workdir_with_something_else_in_it_is_refused(refused, tmp_path):
    (tmp_path / "mine.txt").touch()
    line = refused("experiments.sweep", SMOKE, f"--workdir={tmp_path}")
    assert "is not empty, and holds no sweep (give another --workdir)" in line
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_output_that_cannot_be_written_is_refused(refused, tmp_path):
    (tmp_path / "file").touch()
    assert "file" in refused("tools.plan", SMOKE, f"--out={tmp_path}/file/plan.json")
    assert refused("tools.plan", SMOKE, f"--out={tmp_path}") == f"--out={tmp_path} is a folder (name a file)"


@pytest.mark.parametrize(
    ("module", "needed"),
    [("tools.analyze", ["--runs=r"]), ("tools.compare", ["--a=a", "--b=b"]), ("tools.tune", ["--runs=r"])],
)
def test_an_empty_name_of_a_folder_is_refused(refused, module, needed):
    """A folder without a name would be the current one, or the root."""
    assert refused(module, *needed, "--out=") == "flag --out=: name a folder"


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ([], "nothing to measure (--of=step,start,data,sweep, or --config=)"),
        (["--of=stp"], "--of=stp is unknown (did you mean step?)"),
        (["--of=step", "--compare=/nowhere.json"], "/nowhere.json: no such file"),
        (["--of=step", "--compare=README.md"], "README.md: not JSON"),
        (["--of=step", "--out=docs"], "--out=docs is a folder (name a file)"),
        (["--of=step", "--cells=70m"], "--cells or --suppose_vocab without --config"),
        (["--of=step", "--peer=jax"], "should be one of <auto|torch|none>"),
        ([SMOKE, "--cells=70m"], "no cell of about 70m"),
    ],
)
def test_a_benchmark_that_cannot_be_is_refused_at_once(refused, flags, fault):
    assert fault in refused("tools.benchmark", *flags)


def test_no_table_to_tune_from_is_refused(refused):
    assert refused("tools.tune", "--runs=", "--out=o") == "no table of runs given"


def test_status_of_no_sweep_says_how_to_start_one(refused, tmp_path):
    assert "holds no sweep (experiments.sweep --workdir= starts one)" in refused(
        "tools.status", f"--workdir={tmp_path}"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["0", "often", ""])
def test_a_wrong_interval_of_a_watch_is_named(refused, tmp_path, value):
    assert f"--watch={value}:" in refused("tools.status", f"--workdir={tmp_path}", f"--watch={value}")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "no such file"),
        ("{", "not JSON"),
        ('{"modl": {}}', "unknown key 'modl' (did you mean model?)"),
        ("[]", ""),
    ],
)
def test_a_run_that_cannot_be_read_is_refused(refused, tmp_path, content, fault):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    line = refused("experiments.train", f"--run={tmp_path}/run.json", f"--workdir={tmp_path}/w")
    assert f"{tmp_path}/run.json" in line
    assert fault in line
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--plan=p.json"], "--plan and --cell come together"),
        ([ONE, "--cell=d16"], "--plan and --cell come together"),
        (["--plan=/nowhere.json", "--cell=d16"], "/nowhere.json: no such file"),
    ],
)
def test_a_plan_that_cannot_be_read_is_refused(refused, tmp_path, flags, fault):
    assert fault in refused("experiments.train", *flags, f"--workdir={tmp_path}/w")
    assert not (tmp_path / "w").exists()


def test_a_plan_of_another_sweep_is_refused(run, refused, tmp_path):
    other = [SMOKE, "--config.seeds=(7,)", "--topology=cpu:8", f"--out={tmp_path}/plan.json"]
    code, _, errors = run("tools.plan", *other)
    assert code == 0, errors
    line = refused("experiments.sweep", SMOKE, f"--plan={tmp_path}/plan.json", f"--workdir={tmp_path}/w")
    assert "plan.json: places no cell of this sweep (plan it with the same --config and the same text)" in line
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("flag", "fault"),
    [
        ("--workers=0", "workers=0"),
        ("--workers=two", "workers=two"),
        ("--launcher=cloud", "should be one of <local|slurm|ray>"),
    ],
)
def test_a_wrong_flag_value_is_named(refused, tmp_path, flag, fault):
    assert fault in refused("experiments.sweep", SMOKE, f"--workdir={tmp_path}/w", flag)
    assert not (tmp_path / "w").exists()


def test_a_real_start_says_the_same(environment):
    """That a fork tells what a process does: one refusal of a command that is started as a user starts it."""
    arguments = [sys.executable, "-m", "tools.plan", SMOKE, "--config.grid.size=9"]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "did you mean sizes?" in done.stderr


def test_the_plan_of_every_sweep_config_can_be_made(run, tmp_path):
    for name in ("laptop", "smoke", "durations", "tune"):
        code, output, errors = run("tools.plan", f"--config=experiments/configs/{name}.py", f"--out={tmp_path}/{name}")
        assert code == 0, errors
        plan = json.loads((tmp_path / name).read_text())
        assert f"{len(plan['cells'])} cells, " in output.splitlines()[-2]
        assert output.splitlines()[-1].endswith("no cell repeats its data")
        assert all(cell["steps"] >= 100 for cell in plan["cells"])
