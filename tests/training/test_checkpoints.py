"""Checkpoints: what is kept, what is trusted, what is set aside, and what is not damage."""

import json
import os
import pathlib
import resource
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.corruptions import DETECTED, HARMLESS, corruptions, outcome, save_two, small_state
from scaling.errors import InputError
from scaling.training import checkpoint_folders as folders
from scaling.training.checkpoints import Checkpoints
from scaling.training.step import State

pytestmark = pytest.mark.usefixtures("quick_compilation")
RUN = "the-run"
ROOT = pathlib.Path(__file__).parents[2]


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def listed(directory):
    return sorted(os.listdir(directory))


def save(directory, attempt, steps, **options):
    """Saves states that differ by step, in one attempt, which goes on where the newest checkpoint is."""
    with Checkpoints(directory, RUN, attempt, **options) as checkpoints:
        checkpoints.restore(abstract(small_state(0)))
        for step in steps:
            checkpoints.save(step, small_state(step), {"step": step})


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A directory with checkpoints of steps 10 and 20, and their states."""
    directory = tmp_path_factory.mktemp("two") / "checkpoints"
    return directory, save_two(directory)


@pytest.fixture
def copy(two, tmp_path):
    """Of the two checkpoints, to be damaged."""
    return pathlib.Path(shutil.copytree(two[0], tmp_path / "checkpoints"))


def restored(directory, like=None, run=RUN, **options):
    with Checkpoints(directory, run, 2, **options) as checkpoints:
        return checkpoints.restore(abstract(small_state(0)) if like is None else like), checkpoints.set_aside


def test_what_is_saved_comes_back(tmp_path):
    state = State({"a": jnp.arange(12.0).reshape(3, 4), "key": jax.random.key(3)}, (jnp.int32(5), ()))
    progress = {"seconds": {"train": 0.1 + 0.2}, "none": None, "list": [1, 1e-300]}
    with Checkpoints(tmp_path / "new" / "checkpoints", RUN, 1) as checkpoints:
        assert checkpoints.restore(abstract(state)) is None
        checkpoints.save(3, state, progress)
        checkpoints.wait()
        step, found, told, attempt = checkpoints.restore(abstract(state))
        assert checkpoints.set_aside == []
    assert (step, told, attempt) == (3, progress, 1)
    assert jnp.array_equal(jax.random.key_data(found.params.pop("key")), jax.random.key_data(state.params.pop("key")))
    assert_same(found, state)


def test_what_is_saved_is_what_was_there_at_the_call(tmp_path):
    """The step that follows consumes the state while it is being written."""
    state = State({"w": jnp.arange(1e6)}, ())
    consume = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0)
    with Checkpoints(tmp_path, RUN, 1) as checkpoints:
        checkpoints.save(1, state, {})
        consume(state)
    (_, found, _, _), aside = restored(tmp_path, abstract(State({"w": jnp.zeros(10**6)}, ())))
    assert aside == []
    assert np.array_equal(found.params["w"], np.arange(1e6, dtype=np.float32))


def test_the_newest_two_are_kept_and_every_nth_save(tmp_path):
    """Saves are counted over attempts; the two are of whole ones, while a third is being written."""
    save(tmp_path / "plain", 1, [5, 6, 7])
    assert listed(tmp_path / "plain") == ["6-1", "7-1"]
    save(tmp_path / "nth", 1, [10, 20, 30, 40], keep_every=3)
    assert listed(tmp_path / "nth") == ["30-1", "40-1"]
    save(tmp_path / "nth", 2, [50, 60, 70], keep_every=3)
    assert listed(tmp_path / "nth") == ["30-1", "60-2", "70-2"]
    with Checkpoints(tmp_path / "plain", RUN, 2) as checkpoints:
        checkpoints.save(8, small_state(8), {})
        assert {"6-1", "7-1"} <= set(listed(tmp_path / "plain"))


def test_a_step_may_be_saved_again(copy):
    """In one attempt it stays what it was; another attempt at the same step has a folder of its own."""
    state = small_state(20)
    with Checkpoints(copy, RUN, 2) as checkpoints:
        step, *_ = checkpoints.restore(abstract(state))
        checkpoints.save(step, state, {"step": 1})
        checkpoints.save(step, state, {"step": 2})
    assert listed(copy) == ["20-1", "20-2"]
    (step, _, progress, attempt), _ = restored(copy)
    assert (step, progress, attempt) == (20, {"step": 1}, 2)


def test_leftovers_of_killed_saves(copy):
    """Those of earlier attempts go with the next save, ours and those of later ones stay; none is ever restored."""
    for name in ("30-1", "30-2", "30-3", "x"):
        (copy / f"{name}.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (copy / "notes").mkdir()
    (found, aside) = restored(copy)
    assert (found[0], aside) == (20, [])
    with Checkpoints(copy, RUN, 2) as checkpoints:
        checkpoints.save(25, small_state(25), {})
    left = {"30-2.orbax-checkpoint-tmp", "30-3.orbax-checkpoint-tmp", "x.orbax-checkpoint-tmp", "notes"}
    assert set(listed(copy)) == left | {"20-1", "25-2"}


def test_what_a_later_attempt_has_saved_is_left_alone(copy):
    """By the paused owner of an earlier one, who keeps two of its own until it learns that it has lost the run."""
    save(copy, 3, [21, 22])
    with Checkpoints(copy, RUN, 2) as checkpoints:
        for step in (50, 51, 52):
            checkpoints.save(step, small_state(step), {})
    assert listed(copy) == ["21-3", "22-3", "51-2", "52-2"]
    save(copy, 3, [23, 24])
    assert listed(copy) == ["23-3", "24-3", "51-2", "52-2"]


def test_another_mesh(tmp_path):
    """Saved by eight devices, two ways cut, read by four, by one, and by eight cut otherwise."""
    devices = np.array(jax.devices())
    assert len(devices) == 8

    def laid_out(shape, spec):
        return NamedSharding(Mesh(devices[: np.prod(shape)].reshape(shape), ("a", "b")), PartitionSpec(*spec))

    values = np.arange(64.0, dtype=np.float32).reshape(8, 8)
    with Checkpoints(tmp_path, RUN, 1) as checkpoints:
        checkpoints.save(1, State({"w": jax.device_put(values, laid_out((2, 4), ("a", "b")))}, ()), {})
    for shape, spec in (((4, 1), ("a",)), ((1, 1), ()), ((4, 2), (None, ("a", "b")))):
        sharding = laid_out(shape, spec)
        like = State({"w": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=sharding)}, ())
        (_, state, _, _), aside = restored(tmp_path, like)
        assert aside == []
        assert state.params["w"].sharding == sharding
        assert np.array_equal(state.params["w"], values)


def test_every_corruption_is_detected_or_harmless(two, tmp_path):
    """What benchmarks.corruptions tries, at two places of each file; and what holds the values must be detected."""
    directory, saved = two
    found = {}
    for damage in corruptions(directory / "20-1", directory / "10-1", places=2):
        found[damage.kind, damage.file] = outcome(damage, saved, directory, tmp_path / "work")
    assert set(found.values()) == {DETECTED, HARMLESS}
    page = str(folders.PAGE)
    for kind in ("cut to half", "cut to nothing", "zeroed", "removed", "of the older one"):
        assert found[kind, page] == DETECTED
    data = max((directory / "20-1").rglob("ocdbt.process_0/d/*"), key=lambda path: path.stat().st_size)
    data = data.relative_to(directory / "20-1")
    for kind in ("cut to half", "cut to nothing", "zeroed", "removed"):
        assert found[kind, str(data)] == DETECTED
    for what in ("state", "progress", "all of it"):
        assert found["of the older one", what] == DETECTED


def test_a_flipped_byte_of_an_array_is_seen_at_every_place(two, tmp_path):
    """Orbax reads it without a word. Of random numbers most bytes of the file are their own; some are headers."""
    directory, saved = two
    data = max((directory / "20-1").rglob("ocdbt.process_0/d/*"), key=lambda path: path.stat().st_size)
    found = [
        outcome(damage, saved, directory, tmp_path / "work")
        for damage in corruptions(directory / "20-1", directory / "10-1", places=12)
        if damage.kind == "flipped byte" and data.name in damage.file
    ]
    assert len(found) == 12
    assert found.count(DETECTED) >= 10
    assert set(found) <= {DETECTED, HARMLESS}


def test_none_is_good(copy):
    """Both are named, each with its reason, and are not tried again."""
    said = []
    for name in ("10-1", "20-1"):
        (copy / name / folders.PAGE).write_text("{")
    found, aside = restored(copy, say=said.append)
    assert found is None
    assert [entry["checkpoint"] for entry in aside] == ["20-1", "10-1"]
    assert said == [f"checkpoint {entry['checkpoint']} is set aside: {entry['reason']}" for entry in aside]
    assert all(str(folders.PAGE) in line and "not JSON" in line for line in said)
    assert listed(copy) == ["damaged-10-1", "damaged-20-1"]
    assert restored(copy) == (None, [])


def test_names_of_what_is_set_aside_do_not_clash(copy):
    for _ in range(3):
        shutil.copytree(copy / "10-1", copy / "30-1")
        found, aside = restored(copy)
        assert found[0] == 20
        assert aside == [{"checkpoint": "30-1", "reason": "what it holds is 10-1"}]
    assert listed(copy) == ["10-1", "20-1", "damaged-30-1", "damaged-30-1-2", "damaged-30-1-3"]


def test_one_that_its_records_do_not_fit_is_set_aside(copy):
    with Checkpoints(copy, RUN, 2) as checkpoints:
        step, _, _, attempt = checkpoints.restore(abstract(small_state(0)))
        checkpoints.mark_unusable(step, attempt, "its metrics are gone")
        assert checkpoints.restore(abstract(small_state(0)))[0] == 10
        assert checkpoints.set_aside == [{"checkpoint": "20-1", "reason": "its metrics are gone"}]
    assert listed(copy) == ["10-1", "damaged-20-1"]


def test_another_runs_are_refused(copy):
    with pytest.raises(InputError, match="20-1: is of another run, 'the-run', and not of 'other'"):
        restored(copy, run="other")
    assert listed(copy) == ["10-1", "20-1"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.update(matrix=jnp.zeros((64, 48))), r"matrix'\] float32\[48, 64\], not float32\[64, 48\]"),
        (lambda p: p.update(short=jnp.zeros(9)), r"short'\] bfloat16\[9\], not float32\[9\]"),
        (lambda p: p.update(more=jnp.zeros(9)), r"more'\] not there, not float32\[9\]"),
        (lambda p: p.pop("zeros"), r"zeros'\] float32\[3, 5\], not there"),
    ],
)
def test_other_arrays_are_refused_and_no_damage(copy, change, said):
    """Layers that were saved stacked and are wanted one by one, say."""
    state = small_state(0)
    change(state.params)
    with pytest.raises(InputError, match=f"20-1: does not hold the arrays.*{said}.*scan_layers"):
        restored(copy, abstract(state))
    assert listed(copy) == ["10-1", "20-1"]


def rewrite_page(folder, **changes):
    page = folders.read_page(folder)
    (folder / folders.PAGE).write_text(json.dumps(folders.sealed({**page, **changes})))


def test_what_another_version_of_orbax_wrote_is_no_damage_for_that(copy):
    rewrite_page(copy / "20-1", writer="0.0.1")
    assert restored(copy)[0][0] == 20
    (copy / "20-1" / "state" / "_METADATA").unlink()
    (copy / "20-1" / "state" / "manifest.ocdbt").unlink()
    with pytest.raises(InputError, match=r"cannot be read.*orbax-checkpoint 0.0.1 wrote it.*install.*==0.0.1"):
        restored(copy)
    assert listed(copy) == ["10-1", "20-1"]


@pytest.mark.parametrize(
    "text", ["", "[]", "1", '"page"', "null", '{"page": {}}', "\xff", "[" * 100_000, '{"crc32c": NaN, "page": 1e999}']
)
def test_pages_of_anything_are_damage(copy, text):
    (copy / "20-1" / folders.PAGE).write_bytes(text.encode("latin-1"))
    (step, *_), aside = restored(copy)
    assert (step, len(aside)) == (10, 1)


@pytest.mark.parametrize("page", [[], {}, None, {"run": RUN}])
def test_a_whole_page_of_something_else_is_refused(copy, page):
    (copy / "20-1" / folders.PAGE).write_text(json.dumps(folders.sealed(page)))
    with pytest.raises(InputError, match="not a checkpoint as this version writes it"):
        restored(copy)


@pytest.mark.parametrize("locked", ["", "state", "state/manifest.ocdbt", "state/_METADATA", "progress/metadata"])
def test_what_may_not_be_read_is_no_damage(copy, locked):
    """Orbax takes a folder without permission for an empty one, and TensorStore tells the reason in words alone."""
    path = copy / "20-1" / locked
    mode = path.stat().st_mode
    path.chmod(0)
    root = os.geteuid() == 0
    if root:  # who may read everything
        for parent in copy.parents:
            if not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            restored(copy)
    finally:
        if root:
            os.seteuid(0)
        path.chmod(mode)
    assert listed(copy) == ["10-1", "20-1"]


def test_a_write_that_fails_is_raised_as_the_system_said_it(tmp_path):
    """At the next save, at leaving, and when waiting; the checkpoint before stays the newest, and the next may succeed.

    A limit on the size of files stands for a full disk: both are reported by TensorStore alone, in the background.
    """
    state = State({"w": jax.random.normal(jax.random.key(0), (300, 300))}, ())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fails():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))

    def save_six_and_leave():
        with Checkpoints(tmp_path, RUN, 2) as checkpoints:
            fails()
            checkpoints.save(6, state, {})

    try:
        with Checkpoints(tmp_path, RUN, 1) as checkpoints:
            checkpoints.save(1, state, {})
            checkpoints.wait()
            fails()
            checkpoints.save(2, state, {})
            with pytest.raises(OSError, match="File too large") as raised:
                checkpoints.save(3, state, {})
            assert raised.value.errno == 27
            checkpoints.save(4, state, {})
            with pytest.raises(OSError, match="File too large"):
                checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            checkpoints.save(5, state, {})
        assert {"1-1", "5-1"} <= set(listed(tmp_path))
        with pytest.raises(OSError, match="File too large"):
            save_six_and_leave()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (step, *_), aside = restored(tmp_path, abstract(state))
    assert (step, aside) == (5, [])


def test_parameters_alone_touch_nothing(two, copy):
    """The damaged checkpoint is passed over with a line, and stays; of the others only what is asked for is read."""
    _, saved = two
    data = max((copy / "20-1").rglob("ocdbt.process_0/d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    (copy / "30-1.orbax-checkpoint-tmp").mkdir()
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    said = []
    with Checkpoints(copy, RUN, attempt=0, read_only=True, say=said.append) as checkpoints:
        step, params = checkpoints.restore_params(abstract(small_state(0).params))
    assert step == 10
    assert_same(params, saved[10].params)
    (line,) = said
    assert line.startswith("checkpoint 20-1 is passed over: ")
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
    with pytest.raises(InputError, match="does not hold the arrays"):
        Checkpoints(copy, RUN, attempt=0, read_only=True).restore_params({"other": jax.ShapeDtypeStruct((2,), "int32")})


# argv: rank, coordinator, directory, file of the answers. Saves two checkpoints; then process 1 damages its own shards
# of the newer one, and both restore.
PROCESS = """
import json, pathlib, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scaling.training import hosts
from scaling.training.checkpoints import Checkpoints
from scaling.training.step import State

rank, coordinator, directory, answers = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3]), sys.argv[4]
hosts.connect(coordinator, 2, rank)
mesh = Mesh(np.array(jax.devices()), ("a",))
rows = NamedSharding(mesh, PartitionSpec("a"))
values = lambda step: np.random.default_rng(step).standard_normal((64, 64)).astype(np.float32)
state = lambda step: State({"w": jax.make_array_from_callback((64, 64), rows, lambda at: values(step)[at])}, ())
like = State({"w": jax.ShapeDtypeStruct((64, 64), np.float32, sharding=rows)}, ())
found, said = [], []
with jax.set_mesh(mesh):
    with Checkpoints(directory, "r", 1) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, state(step), {"rank": rank})
    half = lambda content: len(content) // 2
    cut, flip = (lambda c: c[:half(c)]), (lambda c: c[:half(c)] + bytes([c[half(c)] ^ 1]) + c[half(c) + 1:])
    for attempt, change in ((2, cut), (3, flip)):
        def damage():
            if rank == 1:
                (newest, *_) = sorted(directory.glob("[0-9]*"), reverse=True)
                data = max((newest / "state" / "ocdbt.process_1" / "d").iterdir(), key=lambda p: p.stat().st_size)
                data.write_bytes(change(data.read_bytes()))
        hosts.together(damage)
        with Checkpoints(directory, "r", attempt, say=said.append) as checkpoints:
            restored = checkpoints.restore(like)
            if restored is not None:
                step, back, progress, by = restored
                mine = all(np.array_equal(s.data, values(step)[s.index]) for s in back.params["w"].addressable_shards)
                restored = [step, mine, progress, by]
            found.append([restored, [entry["checkpoint"] for entry in checkpoints.set_aside]])
pathlib.Path(f"{answers}{rank}").write_text(json.dumps([found, said]))
"""


@pytest.mark.slow
def test_two_processes_agree_on_what_one_of_them_cannot_read(tmp_path):
    """Its shards are cut short, then a byte of them is flipped: both go on to the one before, without a restart."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        coordinator = f"localhost:{s.getsockname()[1]}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "4"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), coordinator, str(tmp_path / "checkpoints"), str(tmp_path / "a")],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    answers = [json.loads((tmp_path / f"a{rank}").read_text()) for rank in range(2)]
    for found, _ in answers:
        assert found == [[[3, True, {"rank": 0}, 1], ["4-1"]], [None, ["3-1"]]]
    assert [len(said) for _, said in answers] == [2, 0]
    assert listed(tmp_path / "checkpoints") == ["damaged-3-1", "damaged-4-1"]
