"""What is read from a disk or a flag is data: it is never run, never leaves its folder, and shows as the text it is."""

import ast
import os
import pathlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from scaling.analysis import decisions
from scaling.analysis.analyze import analyze
from scaling.analysis.report import write_report
from scaling.analysis.reporting.html import document
from scaling.errors import InputError
from scaling.files import check_name, write_json, write_text
from scaling.sweeps.workdir import run_directory

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted(
    path for name in ("scaling", "experiments", "tools", "benchmarks") for path in (ROOT / name).rglob("*.py")
)

# Modules that turn bytes into objects by running what the bytes say.
RUNNERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle", "code"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
# Calls by the end of their dotted name -> the keyword and value that make them safe, None: nothing does.
CALLS = {
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "torch.load": ("weights_only", True),
    **dict.fromkeys(("pd.read_pickle", "pandas.read_pickle", "to_pickle", "yaml.load", "yaml.unsafe_load")),
    **dict.fromkeys(("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput")),
    **dict.fromkeys(("pd.eval", "pandas.eval", "frame.eval", "importlib.import_module", "runpy.run_path")),
}
# What is allowed. multiprocessing and concurrent.futures pickle too: functions and plain values, between a process and
# those that it has just started, through a pipe that nobody else has. Nothing of it lies on a disk, and nothing foreign
# comes in. Ray does the same on its own wires, to which scaling/sweeps/on_ray.py gives plain strings. And the file of
# --config is run by ml_collections: it is a program of the user's, by design. No other file is run.


def faults(tree: ast.AST) -> list[str]:
    """What in a module could run data as code."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in RUNNERS]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").split(".")[0] in RUNNERS else []
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if name in CALLS]
        elif isinstance(node, ast.Name) and node.id in BUILTINS:  # also where it is only handed on
            found.append(node.id)
        elif isinstance(node, ast.Call):
            found += _of_call(node)
    return found


def _of_call(node: ast.Call) -> list[str]:
    name = ast.unparse(node.func)
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if "shell" in given and ast.unparse(given["shell"]) != "False":
        return [f"{name} in a shell"]
    known = next((call for call in CALLS if name == call or name.endswith(f".{call}")), None)
    if known is None and name.rpartition(".")[2] in ("query", "read_pickle"):
        return [name]
    if known is None:
        return []
    safe = CALLS[known]
    if safe is None or ast.unparse(given.get(safe[0], ast.Constant(None))) != str(safe[1]):
        return [name]
    return []


@pytest.mark.parametrize(
    "text",
    [
        *("import pickle", "from pickle import loads", "import dill as json", "def f():\n    import cloudpickle"),
        *("import marshal", "import shelve", "import joblib", "from joblib import load", "import os, _pickle"),
        *(
            "eval(text)",
            "exec(text)",
            "compile(text, '', 'exec')",
            "__import__(name)",
            "run = eval",
            "map(exec, texts)",
        ),
        *("np.load(path)", "np.load(path, allow_pickle=True)", "numpy.load(f, allow_pickle=asked)"),
        *("pd.read_pickle(p)", "frame.to_pickle(p)", "x.read_pickle()", "frame.query(text)", "pd.eval(text)"),
        *("yaml.load(f)", "from yaml import load", "torch.load(f)", "torch.load(f, weights_only=False)"),
        *(
            "subprocess.run(c, shell=True)",
            "Popen(c, shell=asked)",
            "os.system(c)",
            "os.popen(c)",
            "import os.path, dill",
        ),
        *("importlib.import_module(name)", "runpy.run_path(p)"),
    ],
)
def test_what_runs_data_is_seen(text):
    assert faults(ast.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        *("re.compile(text)", "step.lower().compile()", "np.load(path, allow_pickle=False)", "json.loads(text)"),
        *("torch.load(f, weights_only=True)", "subprocess.run([c])", "subprocess.run(c, shell=False)", "law.load(x)"),
        *("import multiprocessing", "'eval(x)'", "report['eval']", "ast.literal_eval(text)", "metrics.eval_points"),
    ],
)
def test_what_runs_nothing_is_let_be(text):
    assert faults(ast.parse(text)) == []


def test_no_data_is_run_as_code():
    assert len(SOURCES) > 100
    found = {str(path.relative_to(ROOT)): set(faults(ast.parse(path.read_text(encoding="utf-8")))) for path in SOURCES}
    assert {name: each for name, each in found.items() if each} == {}


def test_requirements_have_upper_bounds():
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (call,) = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "setup")
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    required = {"": ast.literal_eval(given["install_requires"]), **ast.literal_eval(given["extras_require"])}
    assert len(required[""]) > 15
    assert {"test", "ray"} <= required.keys()
    unbounded = [text for texts in required.values() for text in texts if not re.search(r",<\d|==\d", text)]
    assert unbounded == []


HOSTILE_NAMES = (
    *(
        "",
        ".",
        "..",
        "../a",
        "a/b",
        "/etc",
        "a\\b",
        "a\0",
        "a\n",
        " a",
        "a ",
        ".hidden",
        "-rf",
        "~",
        "$HOME",
        "a;b",
        "a" * 129,
    ),
    *("CON", "nul", "com1.txt", "C:", "é", "\u202e", "a\u2028", "%2e%2e", "*"),
)


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, None, 3, ["a"], b"a"], ids=repr)
def test_a_name_from_a_file_cannot_leave_its_folder(name, tmp_path):
    for make in (check_name, lambda name: run_directory(tmp_path, name)):
        with pytest.raises(InputError, match="cannot name a file"):
            make(name)


@pytest.mark.parametrize(
    "name", ["d64x2-1.02M-0123456789ab", "d1x1-6.4e+03T-a", "a", "7", "model-00001-of-00002.safetensors"]
)
def test_names_of_ours_are_names(name, tmp_path):
    assert run_directory(tmp_path, name) == tmp_path / "runs" / name


def test_a_cell_asked_for_by_a_path_is_refused(tmp_path):
    write_json(tmp_path / "victim" / "run.json", {})
    for flag in ("--cell=../victim", f"--cell={tmp_path}/victim"):
        command = [sys.executable, "-m", "experiments.cell", f"--workdir={tmp_path}/work", flag]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert done.returncode == 2, done.stderr
    assert [path.name for path in (tmp_path / "victim").iterdir()] == ["run.json"]


def test_a_link_is_replaced_and_what_it_names_is_left(tmp_path):
    """Of the links in a workdir: a folder may be one, to another disk say, and is followed. A file that is written
    whole replaces a link of its name, so that nobody can place one to have another file overwritten."""
    (tmp_path / "theirs").write_text("kept")
    (tmp_path / "sweep.json").symlink_to(tmp_path / "theirs")
    write_text(tmp_path / "sweep.json", "ours")
    assert (tmp_path / "theirs").read_text() == "kept"
    assert not (tmp_path / "sweep.json").is_symlink()


@pytest.mark.parametrize(
    "url", ["s3://key:secret@bucket/a", "https://user:secret@host/a", "gs://secret@b/a", "s3://b/a?sig=secret"]
)
def test_credentials_in_a_url_are_refused_and_not_said(url):
    from scaling.data.storage import as_root

    with pytest.raises(InputError, match="holds a user, a key or a query") as refused:
        as_root(url)
    assert "secret" not in str(refused.value)


EVIL = "<b onclick=x>&\"'</b><script>1</script>]]>-->$\\bad{ \\1 \\g<0> {0} %s \x1b[2J\x00\u202e"


class Elements(HTMLParser):
    """All elements and attributes of a page, and its text."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.text += data


def check_page(page, times):
    """That a page which shows EVIL so many times at least has no element and no attribute of it."""
    found = Elements(page)
    assert not {"script", "b", "iframe", "object", "link", "img", "foreignobject", "a>"} & found.tags, found.tags
    assert not {
        name for name in found.attributes if name.startswith("on") or not re.fullmatch("[a-z][a-z0-9:-]*", name)
    }
    assert found.text.count("<b onclick=x>&") >= times
    for svg in re.findall("<svg.*?</svg>", page, flags=re.DOTALL):
        assert "onclick" not in re.sub(r"<!--.*?-->|aria-label=\"[^\"]*\"", "", svg, flags=re.DOTALL)


def test_a_page_that_escapes_nothing_is_seen():
    for body in (EVIL, f'<p title="{EVIL}">', '<img src="x">', '<p onclick="x">'):
        with pytest.raises(AssertionError):
            check_page(document("", body), times=0)


def table_of_evil(evil=EVIL):
    rows = [
        {"size": N, "D": C / 6 / N, "C": C, "loss": 1.7 + 400 / N**0.34 + 410 / (C / 6 / N) ** 0.28, "seed": "0"}
        for C in (1e16, 3e16, 1e17, 3e17)
        for N in C**0.5 * np.array([0.02, 0.04, 0.08, 0.16, 0.3])
    ]
    frame = pd.DataFrame(rows)
    frame["run"] = [f"{k}{evil}" for k in range(len(frame))]
    frame["trunk"] = frame["variant"] = frame["run"]
    frame["status"] = ["done"] * (len(frame) - 1) + [f"failed {evil}"]
    frame["reason"] = evil
    return frame.rename(columns={"size": f"size{evil}", "seed": f"seed {evil}"})


@pytest.fixture(scope="module")
def evil_table():
    from scaling.analysis.table import table_from_frame

    exclude = [f"loss > 9 because {EVIL}"]
    return table_from_frame(table_of_evil(), columns={"N": f"size{EVIL}"}, exclude=exclude, where=EVIL)


def test_a_report_shows_text_as_text(evil_table, tmp_path):
    analysis = analyze(evil_table, resamples=20, thorough=False)
    est = {"value": 3.0, "ci": [2.9, 3.1], "level": 0.9}
    prediction = {"target_flops": 1e18, "N": 1e8, "D": 1e9, "C": 1e18, "predicted": est, "measured": 3.0}
    prediction |= {"loss_stderr": 0.01, "run": EVIL, "blind": True}
    row = {"run": EVIL, "N": 1e5, "batch_tokens": 512, "peak_lr": 0.01, "rule_lr": 0.01, "ratio": 1.0}
    rates = {"tuned": False, "rule": None, "said": [EVIL], "rows": [row]}
    runs = [{**run, "run": {"source": EVIL, "model": {EVIL: EVIL}}} for run in decisions.next_runs(analysis)]
    write_report(
        analysis, tmp_path / "report", next_runs=runs, prediction=prediction, rates=rates, title=EVIL, notes=[EVIL]
    )
    check_page((tmp_path / "report" / "report.html").read_text(encoding="utf-8"), times=8)
    drawn = list((tmp_path / "report").glob("*.svg"))
    assert len(drawn) > 3
    for path in drawn:
        ElementTree.parse(path)  # a well-formed document, which a control character would spoil


def test_a_comparison_shows_text_as_text(evil_table):
    from scaling.analysis.compare import compare
    from scaling.analysis.compare_plots import comparison_page

    check_page(comparison_page(compare(evil_table, evil_table, names=(f"a{EVIL}", f"b{EVIL}"), resamples=0)), times=8)


def test_a_tuning_page_shows_text_as_text():
    from scaling.analysis.tuning import tune
    from scaling.analysis.tuning_plots import tuning_page

    rates = np.array([0.003, 0.006, 0.012, 0.024, 0.048])
    frame = pd.DataFrame(
        [
            {"N": N, "D": 20 * N, "batch_tokens": 512.0, "peak_lr": lr, "run": f"{N}{lr}{EVIL}", "variant": EVIL}
            | {"loss": 3 + 0.1 * np.log(lr / best) ** 2, "status": "done", "reason": EVIL, "seed": 0}
            for N, best in ((1e5, 0.015), (1e6, 0.012), (1e7, 0.01))
            for lr in rates
        ]
    )
    check_page(tuning_page(tune(frame, f"small{EVIL}", EVIL, EVIL)), times=1)


def test_names_that_are_not_unicode_are_shown(tmp_path):
    """A folder on Linux may have any bytes for a name; Python hands them on as half surrogate pairs."""
    name = os.fsdecode(b"caf\xe9")
    write_text(tmp_path / "page.html", document(f"{name}", ""))
    assert "caf\\udce9" in (tmp_path / "page.html").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="not Unicode"):
        write_json(tmp_path / "sweep.json", {"source": name})


SECRETS = (
    "WANDB_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "HF_TOKEN",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "MY_DATABASE_PASSWORD",
)
MARK = "s3cr3t-m4rk"
CONFIG = """
from scaling.sweeps.config import DataConfig, GridConfig, ModelConfig, SweepConfig, config_dict

def get_config():
    data = DataConfig("files:TEXT/*.txt", "bytes", 64, 16, validation_fraction=0.5, max_epochs=1000.0)
    grid = GridConfig((2e10,), 4, 2e10, 17e3, 0.0, 1.6, 2.6)
    return config_dict(SweepConfig(data, "small", grid, model=ModelConfig(tied_embeddings=True), eval_points=2))
"""


@pytest.mark.slow
def test_secrets_of_the_environment_reach_no_file_and_no_output(tmp_path):
    """Of a sweep whose workers all die at their start, and of the same again, whose cells are trained: what is left."""
    (tmp_path / "text").mkdir()
    rng = np.random.default_rng(0)
    for k in range(60):
        (tmp_path / "text" / f"{k:02}.txt").write_text(f"{k} " + " ".join(map(str, rng.integers(0, 100, 60))))
    (tmp_path / "config.py").write_text(CONFIG.replace("TEXT", str(tmp_path / "text")))
    environment = {
        **os.environ,
        **{"PYTHONPATH": str(ROOT), "SCALING_STORES": str(tmp_path / "stores"), "JAX_NUM_CPU_DEVICES": "1"},
        **{name: f"{MARK}-{name}" for name in SECRETS},
    }
    command = [
        sys.executable,
        "-m",
        "experiments.sweep",
        f"--config={tmp_path}/config.py",
        f"--workdir={tmp_path}/work",
    ]
    sabotage = {**environment, "XLA_FLAGS": "--xla_no_such_flag=1"}
    outputs = []
    for each in (sabotage, environment):  # in the first, every worker dies at its start; the second finishes the sweep
        done = subprocess.run(
            [*command, "--retries=0"], cwd=ROOT, capture_output=True, text=True, env=each, timeout=300
        )
        outputs.append(done.stdout + done.stderr)
    results = pd.read_csv(tmp_path / "work" / "results.csv")  # four cells are too few to fit a law to
    assert set(results["status"]) == {"done"}, outputs[-1][-3000:]
    assert "error" in outputs[0] or "failed" in outputs[0]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"sweep.json", "result.json", "attempt.json", "claim.json"} <= {path.name for path in files}
    assert [str(path) for path in files if MARK.encode() in path.read_bytes()] == []
    assert MARK not in "".join(outputs)
