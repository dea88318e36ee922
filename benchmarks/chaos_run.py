"""One small run, killed again and again: what benchmarks.chaos does with --mode=run.

Half of the kills come at random instants in the life of a process, its imports and its compilation included. The other
half are aimed, by watching the run's files, at what is most delicate: while a checkpoint is written, right after it was
committed, while one is restored, in the final evaluation, and between the result and the moving of its metrics. Before
each kill the processes are stopped (SIGSTOP) and the files are looked at, so that where a kill hit is what the files
say, not what was meant; then comes SIGKILL, to all of them.
"""

import dataclasses
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.alike import attempts, differences, outcomes
from scaling.data.token_store import TokenStore, build_store
from scaling.files import read_json, write_json
from scaling.runs import DataSpec, ModelShape, OptimizerSpec, Run, ScheduleSpec, run_to_dict
from scaling.training.claims import read_claim
from scaling.training.records import attempt_folder, read_lines, records_of

ROOT = pathlib.Path(__file__).parents[1]
CHECKPOINT_SECONDS = 0.5
CARE = f"checkpoint_seconds={CHECKPOINT_SECONDS:g},keep_every=5"
STEPS = 2400
MOST = STEPS // 12  # steps of a process that is to be killed at a random instant
KILLS_A_RUN = 15  # of which one can come between its result and its metrics
LONGEST = 300.0  # seconds that a process may take before it is said to hang
FRESH = 0.02  # seconds since a checkpoint was committed, in which a kill counts as right after it
UNFINISHED = ".orbax-checkpoint-tmp"

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Life:
    """A process that trains the run, from its start on. number: of the attempt that it makes, or would have made."""

    directory: pathlib.Path
    process: "subprocess.Popen[bytes]"
    number: int
    started: float

    @property
    def folder(self) -> pathlib.Path:
        """Of its attempt."""
        return attempt_folder(self.directory, self.number)

    @property
    def told(self) -> dict[str, Any]:
        """What it has written of its attempt."""
        path = self.folder / "attempt.json"
        return read_json(path) if path.exists() else {}


@dataclasses.dataclass(frozen=True)
class Ended:
    """What came of a life. where: it was killed, "" if it ended by itself; then fault: what was wrong with that."""

    began: float
    seconds: float
    steps: int
    where: str
    fault: str


Aim = Callable[[Life], bool]  # waits for the instant of a kill; False if the process has ended before


def survive(kills: int, seed: int, workdir: pathlib.Path, say: Say = print) -> dict[str, Any]:
    """Kills small runs so many times, and compares each with a twin that was left alone. Returns what came of it.

    differences: sentences; none, if all is well. results_lost: runs that came to no result. recorded_twice: runs of
    which more than one attempt says that it has recorded the result. Seconds are a kill's, of wall time.
    """
    store = make_text(workdir)
    luck = random.Random(seed)
    runs, struck = [], 0
    while struck < kills:
        number = len(runs)
        run_path = workdir / f"run{number}.json"
        write_json(run_path, run_to_dict(small_run(store, seed + number)))
        command = train_command(run_path, workdir / f"run{number}", store.path.parent)
        twin_command = train_command(run_path, workdir / f"twin{number}", store.path.parent)
        row = one_run(min(kills - struck, KILLS_A_RUN), luck, command, twin_command)
        runs.append(row)
        struck += sum(row["where"].values())
        say(f"run {number}: {sum(row['where'].values())} kills, {'; '.join(row['differences']) or 'as its twin'}")
        if row["differences"]:
            break
    where = sum((Counter(row["where"]) for row in runs), Counter())
    return {
        "kills": struck,
        "where": dict(where.most_common()),
        "runs": len(runs),
        "differences": [each for row in runs for each in row["differences"]],
        "results_lost": sum(row["results_lost"] for row in runs),
        "recorded_twice": sum(row["recorded_twice"] for row in runs),
        **{
            name: sum(row[name] * sum(row["where"].values()) for row in runs) / max(struck, 1)
            for name in ("lost_seconds", "start_seconds", "again_seconds", "told_seconds")
        },
        "twin_seconds": statistics.mean(row["twin_seconds"] for row in runs),
    }


def make_text(workdir: pathlib.Path) -> TokenStore:
    """A store of about a million bytes of words in random order, under workdir/stores."""
    folder = workdir / "text"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(100):
        (folder / f"{i:03}.txt").write_text(f"{i} " + " ".join(map(str, rng.integers(0, 1000, 2500))))
    return build_store(f"files:{folder}/*.txt", "bytes", 0.3, workdir / "stores" / "chaos", processes=1)


def small_run(store: TokenStore, seed: int) -> Run:
    """About 10 s of steps on one core, and a second of evaluation at the end of three."""
    return Run(
        model=ModelShape(32, 2, 2, 64, vocab_size=264, tied_embeddings=True),
        data=DataSpec(store.content_id, sequence_length=64, eval_windows=3000),
        batch_size=8,
        steps=STEPS,
        optimizer=OptimizerSpec(peak_lr=0.01),
        schedule=ScheduleSpec("cosine", warmup_steps=20),
        eval_points=3,
        seed=seed,
    )


def train_command(run: pathlib.Path, directory: pathlib.Path, stores: pathlib.Path) -> list[str]:
    """The command of a user, whose last argument is the directory."""
    flags = {"run": run, "stores": stores, "care": CARE, "workdir": directory}
    return [sys.executable, "-m", "experiments.train", *(f"--{name}={value}" for name, value in flags.items())]


def directory_of(command: list[str]) -> pathlib.Path:
    """Where a command of `train_command` trains."""
    return pathlib.Path(command[-1].partition("=")[2])


def environment() -> dict[str, str]:
    """One CPU device and one thread, whatever this process has."""
    given = {name: value for name, value in os.environ.items() if name not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    return {**given, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def one_run(kills: int, luck: random.Random, command: list[str], twin_command: list[str]) -> dict[str, Any]:
    """Kills one run so many times, or fewer if it has ended before, and compares it with its twin."""
    twin, directory = directory_of(twin_command), directory_of(command)
    undisturbed = lived(twin_command)
    if undisturbed.fault:
        raise RuntimeError(f"left alone, the run does not end well: {undisturbed.fault}")
    timing = read_json(twin / "result.json")["timing"]
    (first,) = attempts(twin)
    start_seconds = first["time"] - undisturbed.began
    lives = []
    for aim in aims(kills, luck, start_seconds, timing["train_seconds"]):
        lives.append(lived(command, aim))
        if not lives[-1].where:
            break
    if lives[-1].where:
        lives.append(lived(command))
    faults = [life.fault for life in lives if life.fault]
    count = sum(bool(life.where) for life in lives)
    result = directory / "result.json"
    wall = read_json(result if result.exists() else twin / "result.json")["timing"]["wall_seconds"]
    return {
        "where": Counter(life.where for life in lives if life.where),
        "differences": faults or differences(directory, twin),
        "results_lost": int(not result.exists()),
        "recorded_twice": int(outcomes(directory).count("recorded") > 1),
        "lost_seconds": (sum(life.seconds for life in lives) - undisturbed.seconds) / max(count, 1),
        "told_seconds": (wall - timing["wall_seconds"]) / max(count, 1),
        "again_seconds": (sum(life.steps for life in lives) / STEPS - 1) * timing["train_seconds"] / max(count, 1),
        "start_seconds": start_seconds,
        "twin_seconds": undisturbed.seconds,
    }


def aims(kills: int, luck: random.Random, imports: float, training: float) -> Iterator[Aim]:
    """When to kill: in random order, and at last those that only the end of a run offers.

    imports, training: seconds of the twin before it claims its run, and in its steps. Random instants are uniform over
    the imports and a quarter of the training; what lies between, restoring and compiling, is short but for the first.
    """
    ends = [in_evaluation(luck), before_publication][max(0, 2 - kills) :]
    aimed = [in_save(luck), after_commit, in_restore(luck)]
    others = [aimed[k // 2 % 3] if k % 2 else at(luck.uniform(0, imports + training / 4)) for k in range(kills - 2)]
    luck.shuffle(others)
    if after_commit in others:  # early, so that there is something to restore
        others.insert(1, others.pop(others.index(after_commit)))
    return iter([*others, *ends])


def at(seconds: float) -> Aim:
    """An instant, counted from the start of the process; earlier if that has moved on so far that it could end."""
    return lambda life: until(life, lambda: time.time() - life.started >= seconds or steps_of(life) >= MOST, every=0.01)


def in_save(luck: random.Random) -> Aim:
    """While a checkpoint is written."""
    delay = luck.uniform(0, 0.05)
    return lambda life: until(life, lambda: is_saving(life)) and pause(delay)


def after_commit(life: Life) -> bool:
    """As soon as a checkpoint has got its name."""
    return until(life, lambda: is_saving(life)) and until(life, lambda: not is_saving(life), every=1e-4)


def in_restore(luck: random.Random) -> Aim:
    """After the run was claimed, and before the attempt says from where it goes on."""
    delay = luck.uniform(0, 0.1)
    return lambda life: until(life, lambda: bool(life.told)) and pause(delay)


def in_evaluation(luck: random.Random) -> Aim:
    """After the last step, while the held-out loss is taken."""
    delay = luck.uniform(0, 0.05)
    return lambda life: until(life, lambda: f'{{"step": {STEPS}, ' in metrics(life)) and pause(delay)


def before_publication(life: Life) -> bool:
    """Between the result and the moving of its metrics: the process takes small steps, and is looked at after each."""
    if not until(life, lambda: '"eval"' in metrics(life).partition(f'{{"step": {STEPS}, ')[2]):
        return False
    while stop(life):
        if recorded_by(life):
            return True
        os.killpg(life.process.pid, signal.SIGCONT)
        time.sleep(1e-4)
    return False


def until(life: Life, seen: Callable[[], bool], every: float = 0.002) -> bool:
    """Waits until something is seen. Returns False if the process ends, or has taken too long, before it."""
    while life.process.poll() is None and time.time() - life.started < LONGEST:
        if seen():
            return True
        time.sleep(every)
    return False


def pause(seconds: float) -> bool:
    """Sleeps, and is true."""
    time.sleep(seconds)
    return True


def steps_saved(life: Life, end: str = "") -> list[int]:
    """The steps of the checkpoints of an attempt whose names end so: of the whole ones, or of unfinished ones."""
    paths = (life.directory / "checkpoints").glob(f"*-{life.number}{end}")
    return [int(path.name.partition("-")[0]) for path in paths if path.name[0].isdecimal()]


def is_saving(life: Life) -> bool:
    """Whether a checkpoint of this attempt is being written: old ones have such a name while they are removed."""
    return max(steps_saved(life, UNFINISHED), default=0) > max(steps_saved(life), default=0)


def metrics(life: Life) -> str:
    """What the attempt has written to metrics.jsonl."""
    path = life.folder / "metrics.jsonl"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def lived(command: list[str], aim: Aim | None = None) -> Ended:
    """Starts the training and kills it when the aim says, or lets it come to its end."""
    life = start(command)
    where = whereabouts(life) if aim is not None and aim(life) and stop(life) else ""
    if where:
        os.killpg(life.process.pid, signal.SIGKILL)
    fault = end_of(life)
    seconds = time.time() - life.started
    return Ended(life.started, seconds, steps_of(life), where, "" if where else fault)


def start(command: list[str]) -> Life:
    """Starts the training in a session of its own, so that a signal to its group reaches all of it."""
    directory = directory_of(command)
    claim = read_claim(directory)
    with open(directory.with_suffix(".log"), "ab") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    return Life(directory, process, 1 if claim is None else claim.attempt + 1, time.time())


def stop(life: Life) -> bool:
    """Stops a process, and all of its threads, where they are. Returns False if it had ended."""
    if life.process.poll() is not None:
        return False
    os.killpg(life.process.pid, signal.SIGSTOP)
    seen = os.waitid(os.P_PID, life.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    return seen.si_code == os.CLD_STOPPED


def end_of(life: Life) -> str:
    """Waits for the end of a process. Returns what was wrong with it, "" if nothing was."""
    try:
        code = life.process.wait(LONGEST)
    except subprocess.TimeoutExpired:
        os.killpg(life.process.pid, signal.SIGKILL)
        life.process.wait()
        return f"{life.directory}: attempt {life.number} had not ended after {LONGEST:g} s"
    last = life.directory.with_suffix(".log").read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
    return "" if code == 0 else f"{life.directory}: attempt {life.number} ended with code {code}: {' '.join(last)}"


def steps_of(life: Life) -> int:
    """How many steps an attempt has taken, as its metrics tell: those that it inherited are not its own."""
    records = read_lines(records_of(life.directory) / "metrics.jsonl") if recorded_by(life) else []
    records = records or read_lines(life.folder / "metrics.jsonl")
    first = life.told.get("from_step")
    return 0 if first is None or not records else max(0, records[-1]["step"] - first)


def recorded_by(life: Life) -> bool:
    """Whether it is this attempt whose result stands."""
    path = life.directory / "result.json"
    return path.exists() and read_json(path)["timing"]["attempt"] == life.number


def whereabouts(life: Life) -> str:
    """What a process that is stopped was at, as its files tell."""
    told = life.told
    if not told:
        return "before the claim (imports)"
    if recorded_by(life):
        published = (life.directory / "metrics.jsonl").exists()
        if not published:
            return "between the result and its metrics"
        return "after all was recorded" if told.get("outcome") else "before the attempt said so"
    if "from_step" not in told:
        saved = any(path.name.replace("-", "").isdecimal() for path in (life.directory / "checkpoints").glob("*-*"))
        return "while restoring" if saved else "while initialising"
    records = read_lines(life.folder / "metrics.jsonl")
    if not records or records[-1]["step"] <= told["from_step"]:
        return "while compiling, or in the first steps"
    if records[-1]["step"] == STEPS and "eval" not in records[-1]:
        return "in the final evaluation"  # also if the save before it is still under way
    if is_saving(life):
        return "while a checkpoint was written"
    if steps_saved(life, UNFINISHED):
        return "while an old checkpoint was removed"
    newest = life.directory / "checkpoints" / f"{max(steps_saved(life), default=0)}-{life.number}"
    if newest.exists() and time.time() - newest.stat().st_ctime < FRESH:
        return "right after a commit"
    if records[-1]["step"] < STEPS:
        return "in a step or an evaluation on the way"
    return "before the result"
