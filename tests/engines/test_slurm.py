"""SLURM for real: a private cluster of two nodes on this machine (slurm_cluster.sh), sweeps on it, and what may happen
to them there. What comes out is compared with a twin that was trained here without disturbance, bit by bit."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from benchmarks.alike import attempts, differences, outcomes, sweep_differences
from scaling.files import read_json
from scaling.sweeps import on_slurm
from scaling.sweeps.launch import run_local
from scaling.sweeps.on_slurm import run_slurm
from scaling.sweeps.tasks import Way
from scaling.training.care import Care
from scaling.training.claims import read_claim

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
CLUSTER = pathlib.Path(__file__).with_name("slurm_cluster.sh")
DAEMONS = ("slurmctld", "slurmd", "munged", "sbatch")
CARE = Care(checkpoint_seconds=2.0)
LONG = 6000  # steps, some seconds: long enough for what is to happen in their midst
BOUND_SECONDS = 240.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of two nodes, n1 and n2, of two cores each: the directory of its files."""
    missing = [name for name in DAEMONS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if missing:
        pytest.skip(f"no SLURM here: {', '.join(missing)} not installed (Debian: slurmctld slurmd slurm-client munge)")
    if os.geteuid() != 0:
        pytest.skip("the daemons of a private SLURM need root")
    directory = tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/sbin")
        patch.setenv("SLURM_CONF", str(directory / "slurm.conf"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("JAX_NUM_CPU_DEVICES", "1")
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # what is compiled is tiny
        up = subprocess.run([CLUSTER, "up", directory], capture_output=True, text=True)
        assert up.returncode == 0, up.stderr + up.stdout
        yield directory
        subprocess.run([CLUSTER, "down", directory], check=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(on_slurm, "POLL_SECONDS", 0.5)
    monkeypatch.setattr(on_slurm, "FILES_SECONDS", 3.0)


def slurm(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def queued(*more):
    """The tasks that SLURM has, ARRAY_INDEX each."""
    return slurm("squeue", "-h", "-r", "-o", "%F_%K", *more).splitlines()


@contextlib.contextmanager
def bounded():
    """A run that does not end in time is asked to stop, and is then not complete."""
    timer = threading.Timer(BOUND_SECONDS, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def disturbed(workdir, tasks, way, acts):
    """Runs tasks by SLURM; acts: what to do to a task, by its index, once it is on its way. Returns all events."""
    events, waiting = [], dict(acts)

    def on_event(index, event):
        events.append((index, event))
        if event["event"] == "progress" and 0.1 < event["done"] / event["steps"] < 0.9 and index in waiting:
            waiting.pop(index)(tasks[index])

    with bounded():
        assert run_slurm(workdir, tasks, way, on_event), events[-5:]
    assert not waiting, "a cell was done before anything could happen to it"
    return events


def trained_here(workdir, tasks):
    """The same cells, undisturbed, one after the other: with as many cores each as on a node. At a low level of
    optimisation XLA's sums depend on their number."""
    with bounded():
        assert run_local(workdir, tasks, Way(workers=1, care=CARE), lambda index, event: None)


def told(events, kind):
    """The indices of the tasks of which a kind of event was told."""
    return sorted({index for index, event in events if event["event"] == kind})


def job_of(task):
    """ARRAY_INDEX of a task that SLURM has."""
    (folder,) = task.directory.parents[1].glob("slurm/*")
    index = read_json(folder / "submission.json")["runs"].index(task.run)
    return next(job for job in queued(f"--name={folder.name}") if job.endswith(f"_{index}"))


def kill_process(task):
    os.kill(int(read_claim(task.directory).process.partition(" ")[0]), signal.SIGKILL)


def kill_step(task):
    slurm("scancel", "--signal=KILL", f"{job_of(task)}.0")


def tell_job(task):
    """As before a time limit."""
    slurm("scancel", "--batch", "--signal=TERM", job_of(task))


def cancel_job(task):
    """As a person does."""
    slurm("scancel", job_of(task))


def preempt(task):
    """A job of a partition that goes first takes both nodes for a moment."""
    slurm("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")


def test_cells_killed_told_and_cancelled(cluster, make_sweep, tasks_of, tmp_path):
    """Killed, they are tried again, which is counted; told to stop, they go on later, which is not; cancelled by a
    person, they stay away until the same command is started again."""
    ours, twin, way = tmp_path / "slurm", tmp_path / "here", Way(care=CARE, retries=1)
    sweep = make_sweep(ours, cells=4, steps=LONG)
    tasks = tasks_of(ours, sweep, way)
    acts = {0: kill_process, 1: kill_step, 2: tell_job, 3: cancel_job}
    events = disturbed(ours, tasks, way, acts)
    assert (told(events, "again"), told(events, "done"), told(events, "failed")) == ([0, 1], [0, 1, 2], [3])
    assert {event["kind"] for index, event in events if event["event"] in ("again", "failed")} == {"killed"}
    assert not queued(), "a job that was cancelled came back"
    assert disturbed(ours, tasks[3:], way, {})[-1] == (0, {"event": "done"})
    ended = [outcomes(task.directory) for task in tasks]
    assert ended[:3] == [["killed", "recorded"], ["killed", "recorded"], ["stopped", "recorded"]]
    trained_here(twin, tasks_of(twin, make_sweep(twin, cells=4, steps=LONG), way))
    assert [line for task in tasks for line in differences(task.directory, twin / "runs" / task.run)] == []
    print(f"2 cells killed, 1 told to stop, 1 cancelled: attempts ended {ended}; 0 results lost, 0 recorded twice")


def test_preempted(cluster, make_sweep, tasks_of, tmp_path):
    """It is told so, saves, and is started again: no try is used up."""
    ours, twin, way = tmp_path / "slurm", tmp_path / "here", Way(care=CARE, retries=0)
    (task,) = tasks = tasks_of(ours, make_sweep(ours, cells=1, steps=LONG), way)
    events = disturbed(ours, tasks, way, {0: preempt})
    assert told(events, "done") == [0]
    assert outcomes(task.directory) == ["stopped", "recorded"]
    assert attempts(task.directory)[1]["from_step"] > 0
    trained_here(twin, tasks_of(twin, make_sweep(twin, cells=1, steps=LONG), way))
    assert differences(task.directory, twin / "runs" / task.run) == []
    print(f"pre-empted, and went on from step {attempts(task.directory)[1]['from_step']:,}: the same bits")


def processes_on(node):
    """What SLURM runs on a node: (process, its parent) of each."""
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"SLURMD_NODENAME={node}".encode() in (path / "environ").read_bytes().split(b"\0"):
                yield int(path.name), int((path / "stat").read_text().rpartition(")")[2].split()[1])


def lose_node(cluster, task):
    """The node of a task, with all that runs there, is gone at once."""
    node = slurm("squeue", "-h", "-o", "%N", "-j", job_of(task))
    daemon = int((cluster / f"slurmd-{node}.pid").read_text())
    ours = dict(processes_on(node))
    above = {parent for parent in ours.values() if "slurmstepd" in pathlib.Path(f"/proc/{parent}/comm").read_text()}
    for process in (daemon, *above, *ours):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return node


def test_a_node_is_lost(cluster, make_sweep, tasks_of, tmp_path, host_lost):
    """Each of two cells has a node to itself. That of the lost one is taken up by the other node."""
    ours, twin = tmp_path / "slurm", tmp_path / "here"
    way = Way(care=CARE, retries=0, sbatch=("exclusive",))
    tasks = tasks_of(ours, make_sweep(ours, cells=2, steps=LONG), way)
    lost = []
    events = disturbed(ours, tasks, way, {0: lambda task: lost.append(lose_node(cluster, task))})
    assert slurm("sinfo", "-h", "-n", lost[0], "-p", "main", "-o", "%T").startswith("down")
    subprocess.run([CLUSTER, "node", lost[0], cluster], check=True)
    assert (told(events, "done"), told(events, "failed")) == ([0, 1], [])
    assert [outcomes(task.directory) for task in tasks] == [["killed", "recorded"], ["recorded"]]
    trained_here(twin, tasks_of(twin, make_sweep(twin, cells=2, steps=LONG), way))
    assert [line for task in tasks for line in differences(task.directory, twin / "runs" / task.run)] == []
    recorded = [outcomes(task.directory).count("recorded") for task in tasks]
    host_lost("slurm", recorded.count(0), sum(count > 1 for count in recorded))
    print(f"1 of 2 nodes lost ({lost[0]}): 2 of 2 cells done on the other, the same bits")


def test_a_cell_on_two_nodes(cluster, make_sweep, tasks_of, tmp_path, monkeypatch):
    """Two processes, one a node, each with one device, that srun starts and jax.distributed joins. Told to stop in the
    midst, both save the same step, and go on together. Sums of gradients are taken in another order than by one process
    with two devices, so losses are equal but for rounding."""
    ours, twin = tmp_path / "slurm", tmp_path / "here"
    way = Way(care=CARE, retries=0, devices_per_process=1, sbatch=("nodes=2",))
    (task,) = tasks = tasks_of(ours, make_sweep(ours, cells=1, steps=600, devices=2), way)
    assert task.processes == 2
    events = disturbed(ours, tasks, way, {0: tell_job})
    assert told(events, "done") == [0]
    assert outcomes(task.directory) == ["stopped", "recorded"]
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    trained_here(twin, tasks_of(twin, make_sweep(twin, cells=1, steps=600, devices=2), Way()))
    ours_loss, twin_loss = (read_json(root / "runs" / task.run / "result.json")["loss"] for root in (ours, twin))
    assert ours_loss == pytest.approx(twin_loss, rel=1e-5)
    print(f"two nodes, stopped and resumed: loss {ours_loss!r}, by one process {twin_loss!r}")


def sweep_command(stores, workdir, *flags):
    kept = {name: value for name, value in os.environ.items() if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    ours = {"PYTHONPATH": str(ROOT), "SCALING_STORES": str(stores), "PYTHONUNBUFFERED": "1"}
    line = [sys.executable, "-m", "experiments.sweep", "--config=experiments/configs/smoke.py", f"--workdir={workdir}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*line, *flags], cwd=ROOT, env={**kept, **ours}, text=True, **pipes)


def wait_for(condition, seconds=BOUND_SECONDS):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "nothing happened in time"
        time.sleep(0.2)


def test_the_same_tables_as_the_local_launcher(cluster, tmp_path):
    """A whole sweep. Its launcher is killed: its jobs go on, and are found again. It is cancelled: nothing is left in
    the queue, and the same command goes on."""
    stores, ours, twin = tmp_path / "stores", tmp_path / "slurm", tmp_path / "here"

    def results():
        return len(list(ours.glob("runs/*/result.json")))

    first = sweep_command(stores, ours, "--launcher=slurm")
    wait_for(lambda: results() >= 1)
    first.kill()
    first.wait()
    assert queued(), "jobs do not live on without the launcher"
    second = sweep_command(stores, ours, "--launcher=slurm")
    assert second.stdout.readline().startswith("8 cells")  # it has begun
    seen = results()
    wait_for(lambda: results() > seen)
    assert len(list(ours.glob("slurm/*"))) == 1, "what was queued has been submitted again"
    second.send_signal(signal.SIGINT)
    said = second.communicate(timeout=BOUND_SECONDS)[1]
    assert second.returncode == 75, said
    assert not queued()
    before = results()
    third = sweep_command(stores, ours, "--launcher=slurm")
    said = third.communicate(timeout=BOUND_SECONDS)[1]
    assert third.returncode == 0, said
    local = sweep_command(stores, twin, "--launcher=local")
    said = local.communicate(timeout=BOUND_SECONDS)[1]
    assert local.returncode == 0, said
    assert sweep_differences(ours, twin) == []
    print(f"{results()} cells, launcher killed, then cancelled after {before}: the tables of the local launcher")
