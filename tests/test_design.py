"""The rules of the design that can be read off the source: who imports whom, how long files are, what they say."""

import ast
import importlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

from scaling.sweeps.config import one_config, sweep_config

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("scaling", "experiments", "tools")
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
CONFIGS = sorted(path for path in (ROOT / "experiments" / "configs").glob("*.py") if path.stem != "__init__")

# Errors, files, specs, the frame of a command and its progress line: the ground floor, on which anyone may stand.
GROUND = {"errors", "files", "specs", "command", "progress"}
# Part of scaling -> the parts it may import besides itself and the ground floor.
MAY_IMPORT = {
    "errors": set(),
    "files": set(),
    "specs": set(),
    "command": set(),
    "progress": set(),
    "rules": set(),
    "runs": set(),
    "models": {"runs"},
    "data": {"runs"},
    "recipes": {"runs", "models", "rules"},
    "parallel": {"runs", "models"},
    "training": {"runs", "models", "data", "recipes", "parallel"},
    "sweeps": {"runs", "models", "data", "recipes", "rules", "parallel", "training"},
    "speed": {"runs", "models", "data", "recipes", "parallel", "training", "sweeps"},
    "analysis": {"rules"},
    "notes": {"data", "sweeps"},
    "prediction": {"models", "sweeps", "analysis"},
    "tuned": {"recipes", "rules", "sweeps", "analysis"},
    "conclusions": {"runs", "recipes", "sweeps", "analysis", "notes", "prediction", "tuned"},
    "study": {"runs", "sweeps", "conclusions"},
}
ACCELERATED = {"jax", "jaxlib", "flax", "optax", "orbax", "tensorflow", "torch"}


def imported(tree: ast.AST) -> set[str]:
    """The full names of all modules that are imported, wherever in the file; those of `from a import b` as a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def parse(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def part(path: pathlib.Path) -> str:
    """Which part of scaling a file belongs to."""
    return path.relative_to(ROOT / "scaling").with_suffix("").parts[0]


def name_of(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


SCALING = [path for path in SOURCES if path.is_relative_to(ROOT / "scaling") and part(path) != "__init__"]


def test_imports_are_seen_wherever_they_are():
    text = "import a.b\nfrom c.d import e, f\ndef g():\n    if x:\n        import h as i\n"
    assert imported(ast.parse(text)) == {"a.b", "c.d.e", "c.d.f", "h"}
    with pytest.raises(AssertionError, match="relative"):
        imported(ast.parse("from . import x"))


def test_every_part_has_its_rule():
    assert {part(path) for path in SCALING} == MAY_IMPORT.keys()


@pytest.mark.parametrize("path", SCALING, ids=name_of)
def test_who_imports_whom(path):
    ours = {name.split(".")[1] for name in imported(parse(path)) if name.startswith("scaling.")}
    allowed = MAY_IMPORT[part(path)] | {part(path)} | GROUND
    assert ours <= allowed, f"{name_of(path)} imports {sorted(ours - allowed)}"
    assert not {"experiments", "tools", "tests"} & {name.split(".")[0] for name in imported(parse(path))}


def test_the_ground_floor_stands_on_errors_alone():
    for name in GROUND:
        ours = {module for module in imported(parse(ROOT / "scaling" / f"{name}.py")) if module.startswith("scaling.")}
        assert all(module.startswith("scaling.errors") for module in ours), (name, ours)


@pytest.mark.parametrize(
    "path",
    [path for path in SCALING if part(path) not in ("models", "parallel", "training", "speed")],
    ids=name_of,
)
def test_only_what_computes_imports_jax(path):
    """Planning, data and analysis work on any machine, and a launcher must leave the accelerators to its workers."""
    outside = {name.split(".")[0] for name in imported(parse(path))} & ACCELERATED
    assert outside <= ({"jax"} if path.name == "worker.py" else set()), name_of(path)


@pytest.mark.parametrize(
    "path", [path for path in SCALING if part(path) in ("sweeps", "study", "conclusions", "recipes")], ids=name_of
)
def test_sweeps_know_models_by_their_counts_and_sizes(path):
    models = {name.split(".")[2] for name in imported(parse(path)) if name.startswith("scaling.models.")}
    assert models <= {"counts", "families", "ladder"}, models


def test_no_command_imports_jax_before_it_trains():
    """What a command imports at its start, all of it: --help and refusals come at once."""
    code = (
        "import sys\n"
        "import scaling.study, scaling.conclusions, scaling.sweeps.status, scaling.sweeps.plan, scaling.command\n"
        "import scaling.speed.parts, scaling.speed.peer\n"
        f"assert not {ACCELERATED!r} & set(sys.modules), {ACCELERATED!r} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_no_file_is_longer_than_500_lines():
    files = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), ROOT / "setup.py"]
    assert len(files) > 50
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_config_says_its_command(path):
    said = re.findall(r"python -m (experiments\.\w+) --config=(\S+) --workdir=\S+", ast.get_docstring(parse(path)))
    assert [config for _, config in said] == [name_of(path)]
    ((command, _),) = said
    values = importlib.import_module(f"experiments.configs.{path.stem}").get_config().to_dict()
    {"experiments.sweep": sweep_config, "experiments.train": one_config}[command](values)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_says_what_it_is(path):
    if path.name != "__init__.py":
        assert ast.get_docstring(parse(path)), name_of(path)


def functions(tree: ast.Module):
    """(qualified name, function, whether it is a method) of all functions, methods and nested ones included."""

    def walk(node, prefix, method):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield prefix + child.name, child, method
                yield from walk(child, f"{prefix}{child.name}.", False)
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.", True)
            else:
                yield from walk(child, prefix, method)

    yield from walk(tree, "", False)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_function_has_type_hints(path):
    bare = []
    for name, function, method in functions(parse(path)):
        given = function.args
        named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
        static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list)
        named = named[1:] if method and not static else named
        named += [extra for extra in (given.vararg, given.kwarg) if extra]
        bare += [f"{name}({argument.arg})" for argument in named if argument.annotation is None]
        bare += [f"{name} ->"] if function.returns is None and function.name != "__init__" else []
    assert bare == [], name_of(path)


@pytest.mark.parametrize("path", SCALING, ids=name_of)
def test_every_public_function_and_class_says_what_it_does(path):
    silent = [
        node.name
        for node in parse(path).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and not (path.name == "worker.py" and node.name == "main")  # the module's own words are about it
    ]
    assert silent == [], name_of(path)
