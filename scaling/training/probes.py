"""Probes: one run at several learning rates and seeds, as replicas that take their steps together, for tuning only.

A step of a small model leaves most of an accelerator idle: its operations are short, and starting each takes about as
long as its work. Replicas that differ in nothing but rate and seed run the same program on arrays of the same shapes,
so that `jax.vmap` makes one program of P of them, whose operations are as many and P times as long. Parameters,
gradients and optimizer states have a leading axis for the replicas, and each has its own batch, as seeds read the text
in different orders. Replicas are dealt to all devices first, and share one only where there are more of them, and where
a measurement at the start finds that sharing is faster: it is not where one replica fills the device, as on a CPU,
where the state of several leaves the cache that one fits in.

Nothing passes between replicas, so one that diverges leaves the others as they are. Initialisation, batches, rates and
the judgement of divergence are those of each replica's own Run. But products over several replicas may add up in
another order than those of one: losses are a recorded run's within rounding, not to the bit. So probes are kept apart
from the cells of a sweep, and nothing that is measured of a law is made of them.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scaling.data.batches import Stores, batch, eval_windows
from scaling.data.jobs import available_cores
from scaling.errors import StoppedError
from scaling.parallel.chips import CHIPS
from scaling.parallel.memory import estimate_memory
from scaling.parallel.mesh import batch_sharding, make_mesh
from scaling.parallel.topology import parse_topology
from scaling.runs import MAIN_SPLIT, Placement, Run, run_id
from scaling.specs import require
from scaling.training.divergence import History, after, divergence
from scaling.training.evaluation import evaluate, rows_of
from scaling.training.log_line import device_bytes
from scaling.training.planned import chip_of
from scaling.training.preflight import check_vocabulary
from scaling.training.schedules import learning_rates
from scaling.training.step import Program, State, make_program

ONE_DEVICE = Placement()
USED = 0.5  # of a device's memory: an estimate plans it, and no compiler is asked
TURNS, TURN_SECONDS = 3, 0.2  # of the measurement of each width
_AXIS = "replica"

Step = Callable[..., tuple[State, dict[str, jax.Array]]]  # (state, tokens_PxBxM, lr_P) -> state, metrics of P each
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Probe:
    """What a probe found. run: the run that it stands for. loss, stderr: final, held out, in nats a token; NaN where it
    failed, with the reason. together: with how many others of the same device it took its steps, itself included."""

    run: Run
    loss: float
    stderr: float
    together: int
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Trained:
    """P replicas after their steps. losses_PxT: of training, NaN from where a replica had failed on. reason_P: "" for
    those that did not fail."""

    state: State  # every leaf with a leading axis of P
    losses_PxT: np.ndarray
    reason_P: tuple[str, ...]


def probe(
    run: Run,
    rates: Sequence[float],
    seeds: Sequence[int],
    stores: Stores,
    devices: Sequence[jax.Device],
    width: int | None = None,
    say: Say = lambda line: None,
    report: Callable[[int, int], None] = lambda done, steps: None,
    stopping: Callable[[], bool] = lambda: False,
) -> list[Probe]:
    """Trains a run at every peak rate and seed, and evaluates each on the run's held-out windows.

    Seeds are of initialisation and data order, as those of a sweep are. width: replicas that share a device; None: as
    many as are needed and fit, or one, whichever a measurement finds faster, which `say` is told. report: called after
    each step with steps done and to do, of all groups of replicas that follow one another. stopping: asked after each
    step. Returns one Probe for each seed and rate, the rate changing fastest.
    Raises InputError for a run that starts from given parameters or for text that does not fit it, and StoppedError.
    """
    require(run.start is None, "probes start from an initialisation, and this run from given parameters")
    check_vocabulary(run, stores)
    runs = [replica(run, rate, seed) for seed in seeds for rate in rates]
    program = make_program(run, ONE_DEVICE, make_mesh(ONE_DEVICE))
    windows_WxM = eval_windows(stores, run.data)[MAIN_SPLIT]
    devices = devices[: len(runs)]
    step = together(program, devices)
    if width is None:
        width = _faster(program, step, runs, stores, devices, most_together(run, len(runs), len(devices)), say)
    turns = math.ceil(len(runs) / (width * len(devices)))
    width = math.ceil(len(runs) / (turns * len(devices)))  # as even as can be
    size = width * len(devices)
    found = []
    for turn in range(turns):

        def reported(done: int, before: int = turn * run.steps) -> None:
            report(before + done, turns * run.steps)

        # One size, for which the step is compiled once: the last run fills the last turn up, and is read once.
        group = [runs[min(r, len(runs) - 1)] for r in range(turn * size, (turn + 1) * size)]
        trained = train_together(program, step, group, stores, devices, reported, stopping)
        for p, one in enumerate(group[: len(runs) - len(found)]):
            found.append(_evaluated(program, one, trained, p, windows_WxM, width))
    return found


def replica(run: Run, peak_lr: float, seed: int) -> Run:
    """The run at another peak rate and seed, which moves the seed of its data as a sweep's seeds do."""
    return dataclasses.replace(
        run,
        optimizer=dataclasses.replace(run.optimizer, peak_lr=peak_lr),
        data=dataclasses.replace(run.data, seed=run.data.seed + seed - run.seed),
        seed=seed,
    )


def together(program: Program, devices: Sequence[jax.Device]) -> Step:
    """The step of a program for replicas on a leading axis, which is dealt to devices. It consumes the state."""
    # The function under the jitted step, whose layout is that of one replica.
    step = jax.vmap(program.step.__wrapped__)
    parts = _parts(devices)
    sharded = jax.shard_map(step, mesh=parts.mesh, in_specs=parts.spec, out_specs=parts.spec, check_vma=False)
    return jax.jit(sharded, donate_argnums=0, in_shardings=parts, out_shardings=parts)


def train_together(
    program: Program,
    step: Step,
    runs: Sequence[Run],
    stores: Stores,
    devices: Sequence[jax.Device],
    report: Callable[[int], None] = lambda done: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Trained:
    """All steps of P runs that differ in rate and seeds alone, side by side; P is a multiple of the devices.

    It ends early once every run has failed. Raises StoppedError.
    """
    steps = runs[0].steps
    state, lr_PxT = _first_state(program, runs, devices), np.stack([learning_rates(run) for run in runs])
    losses_PxT, judged = np.full((len(runs), steps), math.nan), [_Judged(History(steps))] * len(runs)
    pending = None

    def read(k: int, metrics: dict[str, jax.Array]) -> None:
        values_P = jax.device_get(metrics)
        for p in [p for p in range(len(runs)) if not judged[p].reason]:
            values = {name: float(value_P[p]) for name, value_P in values_P.items()}
            losses_PxT[p, k] = values["loss"]
            judged[p] = _judged(judged[p], values)

    for k in range(steps):
        state, metrics = step(state, _tokens(runs, stores, k), lr_PxT[:, k])
        if pending is not None:
            read(*pending)  # the step before, while this one runs
        pending = k, metrics
        report(k + 1)
        if stopping():
            raise StoppedError(f"probes of {run_id(runs[0])} at step {k + 1} of {steps}: nothing of them is kept")
        if all(one.reason for one in judged):
            break
    read(*pending)
    return Trained(state, losses_PxT, tuple(one.reason for one in judged))


def most_together(run: Run, replicas: int, devices: int) -> int:
    """How many replicas may share a device: as many as there are for each, if the planner's estimate of their memory
    takes at most half of what there is, and at least one."""
    kind = jax.local_devices()[0].device_kind
    chip = CHIPS.get(chip_of(kind), CHIPS["cpu"])
    small = "x".join(["1"] * max(1, chip.torus_axes))
    needed = estimate_memory(run, ONE_DEVICE, parse_topology(f"{chip.name}:{small}")).total
    return max(1, min(math.ceil(replicas / devices), int(USED * _memory(devices) / needed)))


def use_all_cores() -> None:
    """Makes a CPU device of each core, so that each trains replicas of its own. Before JAX's backend starts."""
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", available_cores())


@dataclasses.dataclass(frozen=True)
class _Judged:
    """What the losses of a replica have shown so far. reason: why it has failed, "" while it has not."""

    history: History
    reason: str = ""


def _judged(before: _Judged, values: Mapping[str, float]) -> _Judged:
    """After one more step, by what ends a run of its own."""
    if not all(map(math.isfinite, values.values())):
        told = ", ".join(f"{name} {value}" for name, value in values.items())
        return _Judged(before.history, f"step {before.history.done + 1} of {before.history.steps}: {told}")
    history = after(before.history, values["loss"])
    return _Judged(history, divergence(history) or "")


def _parts(devices: Sequence[jax.Device]) -> NamedSharding:
    """Replicas on the first axis, dealt to devices."""
    return NamedSharding(Mesh(np.array(devices), (_AXIS,)), PartitionSpec(_AXIS))


def _first_state(program: Program, runs: Sequence[Run], devices: Sequence[jax.Device]) -> State:
    """The initialisations of runs, each made as that of the run alone, and once a seed. They go over the host, so that
    no device holds more than its own."""
    made = {seed: jax.device_get(program.init(jax.random.key(seed))) for seed in {run.seed for run in runs}}

    def dealt(*leaf_P: np.ndarray) -> jax.Array:
        shape = len(leaf_P), *np.shape(leaf_P[0])
        return jax.make_array_from_callback(shape, _parts(devices), lambda index: np.stack(leaf_P[index[0]]))

    return jax.tree.map(dealt, *[made[run.seed] for run in runs])


def _tokens(runs: Sequence[Run], stores: Stores, k: int) -> np.ndarray:
    """tokens_PxBxM of a step. Runs of one seed have one batch, which is read once."""
    read = {spec: batch(stores, spec, runs[0].batch_size, k) for spec in {run.data for run in runs}}
    return np.stack([read[run.data] for run in runs])


def _evaluated(program: Program, run: Run, trained: Trained, p: int, windows_WxM: np.ndarray, width: int) -> Probe:
    """The held-out loss of one replica, by the program that evaluates a run: it is no faster for several at a time, as
    many windows fill a device."""
    if trained.reason_P[p]:
        return Probe(run, math.nan, math.nan, width, trained.reason_P[p])
    own = jax.tree.map(
        lambda leaf_P, like: jax.device_put(leaf_P[p], like.sharding),
        trained.state.params,
        program.abstract_state.params,
    )
    rows = rows_of(run, ONE_DEVICE, program)
    loss, stderr = evaluate(program.window_losses, own, windows_WxM, rows, batch_sharding(program.mesh))
    reason = "" if math.isfinite(loss) else f"its held-out loss is {loss}"
    return Probe(run, loss, stderr, width, reason)


def _faster(
    program: Program,
    step: Step,
    runs: Sequence[Run],
    stores: Stores,
    devices: Sequence[jax.Device],
    most: int,
    say: Say,
) -> int:
    """`most` replicas a device or one, whichever takes less time for a step of a replica, here and now."""
    if most == 1:
        return 1
    takes = {width: _timed_step(program, step, runs[: width * len(devices)], stores, devices) for width in (1, most)}
    seconds = dict.fromkeys(takes, math.inf)
    for _ in range(TURNS):
        for width, take in takes.items():
            seconds[width] = min(seconds[width], take() / min(len(runs), width * len(devices)))
    best = min(seconds, key=seconds.__getitem__)
    said = "together" if best > 1 else "one after the other"
    say(
        f"a step of a replica takes {1e3 * seconds[most]:.3g} ms with {most} on a device together, and "
        f"{1e3 * seconds[1]:.3g} ms with one: those of a device train {said}; devices: {len(devices)}"
    )
    return best


def _timed_step(
    program: Program, step: Step, runs: Sequence[Run], stores: Stores, devices: Sequence[jax.Device]
) -> Callable[[], float]:
    """Seconds of a step of runs side by side, the mean over TURN_SECONDS, once it is compiled."""
    runs = [*runs, *[runs[-1]] * (-len(runs) % len(devices))]
    tokens_PxBxM = _tokens(runs, stores, 0)
    lr_P = np.array([learning_rates(run)[0] for run in runs])
    state, _ = jax.block_until_ready(step(_first_state(program, runs, devices), tokens_PxBxM, lr_P))

    def take() -> float:
        nonlocal state
        start, taken = time.perf_counter(), 0
        while time.perf_counter() - start < TURN_SECONDS:
            state, _ = jax.block_until_ready(step(state, tokens_PxBxM, lr_P))
            taken += 1
        return (time.perf_counter() - start) / taken

    return take


def _memory(devices: int) -> float:
    """Bytes that a device may have: what its backend grants, or of CPU devices their share of the machine's."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return device_bytes() or physical / devices
