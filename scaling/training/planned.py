"""A plan as training uses it: the placement of each cell, and whether the hardware here is what it was planned for.

plan.json is what `python -m tools.plan --topology= --out=plan.json` writes: a cell a run, with the run itself, its
placement, and the memory that it takes on a device, estimated or, with --aot, as the compiler has it.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from scaling.errors import InputError, nearest
from scaling.files import Path, read_json
from scaling.parallel.chips import CHIPS, GIB
from scaling.parallel.topology import Topology, parse_topology
from scaling.runs import Placement, Run, run_from_dict, run_id
from scaling.specs import LONG, from_dict, located, require, settle, shown

LISTED = 20  # cells that a refusal names; a plan may have hundreds


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run, where the plan puts it, and the GiB that it takes there on a device (None: the plan does not say).

    words: the placement, to be read.
    """

    run: Run
    placement: Placement
    words: str
    topology: Topology
    estimated_gib: float | None
    compiled_gib: float | None  # the peak that the compiler has proved

    def __post_init__(self) -> None:
        settle(self, "planned")

    @property
    def needed_gib(self) -> float | None:
        return self.estimated_gib if self.compiled_gib is None else self.compiled_gib


def read_run(path: Path) -> Run:
    """The run of a run.json, or the first that a next_run.json of a sweep recommends. Raises InputError for neither."""
    values = read_json(path)
    if isinstance(values, list):
        values = next((entry["run"] for entry in values if isinstance(entry, dict) and entry.get("run")), None)
        no_run = "has no run: it was not made from a sweep, or none could be made"
        require(values is not None, no_run, where=str(path))
    return run_from_dict(values, str(path))


def read_plan(path: Path) -> dict[str, Planned]:
    """The cells of a plan that it has found a place for, by run. Raises InputError if the file is no plan, or one
    without placements."""
    values = read_json(path)
    said = isinstance(values, dict) and isinstance(values.get("cells"), list)
    require(said, "is no plan", "python -m tools.plan --topology= --out= writes one", str(path))
    cells = [cell for cell in values["cells"] if isinstance(cell, dict) and cell.get("placement") is not None]
    require(bool(cells) and bool(values.get("topology")), "places no cell", "plan with --topology=", str(path))
    said = values["topology"]
    require(isinstance(said, str) and len(said) <= LONG, f"topology {shown(said)} is none", where=str(path))
    try:
        topology = parse_topology(said)
    except InputError as error:
        raise InputError(str(error), str(path)) from None
    planned = [_planned(cell, topology, f"{path}: {shown(cell.get('run'))}") for cell in cells]
    return {run_id(cell.run): cell for cell in planned}


def _planned(cell: Mapping[str, Any], topology: Topology, where: str) -> Planned:
    missing = [name for name in ("run_spec", "placed") if name not in cell]
    require(not missing, f"has no {', '.join(missing)}", "plan again with this version", where)
    part = cell.get("topology")  # of the machine, where the cell is one of several side by side
    require(
        part is None or (isinstance(part, str) and len(part) <= LONG), f"topology {shown(part)} is none", where=where
    )
    run = run_from_dict(cell["run_spec"], where)
    require(run_id(run) == cell.get("run"), f"its run_spec is that of {run_id(run)}", "plan again", where)
    proof = cell.get("proof") or {}
    require(isinstance(proof, dict), f"proof {shown(proof)} is no mapping", where=where)
    with located(where):
        placement = from_dict(Placement, cell["placement"], where)
        topology = topology if part is None else parse_topology(part)
        return Planned(run, placement, cell["placed"], topology, cell.get("memory_gib_est"), proof.get("peak_gib"))


def find_cell(plan: Mapping[str, Planned], name: str, where: str = "") -> Planned:
    """The cell whose run is `name`, or begins with it as no other does. Raises InputError for none and for several."""
    found = [run for run in plan if run.startswith(name)] if name not in plan else [name]
    if not found:
        near = difflib.get_close_matches(name, plan, LISTED, cutoff=0)
        raise InputError(f"--cell={name} is not placed in the plan", where, nearest(name, near))
    few = ", ".join(found[:LISTED]) + (", ..." if len(found) > LISTED else "")
    require(len(found) == 1, f"--cell={name} begins {len(found)} runs: {few}", "give more of it", where)
    return plan[found[0]]


@dataclasses.dataclass(frozen=True)
class Hardware:
    """The devices of all processes. memory: bytes that the backend grants one of them; None if it does not say."""

    kind: str
    devices: int
    slices: int
    memory: int | None


def hardware() -> Hardware:
    """What is here. Starts JAX's backend."""
    import jax  # here: a plan is read without it

    from scaling.training.log_line import device_bytes

    devices = jax.devices()
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if devices[0].platform == "tpu" else 1
    return Hardware(devices[0].device_kind, len(devices), slices, device_bytes())


def check_hardware(topology: Topology, needed_gib: float | None, here: Hardware) -> None:
    """Raises InputError, with what was planned and what is here side by side, if a run cannot be expected to train here
    as planned: other chips, another number of devices or slices, or devices that grant less memory than it takes.

    Memory is compared where both are known.
    """
    compared = {
        "chip": (topology.chip.name, chip_of(here.kind)),
        "devices": (topology.devices, here.devices),
        "slices": (topology.data_slices, here.slices),
    }
    sides = [f"{what} {planned} planned, {found} here" for what, (planned, found) in compared.items()]
    other = {what for what, (planned, found) in compared.items() if planned != found}
    if needed_gib is not None and here.memory is not None:
        granted = here.memory / GIB
        sides.append(f"GiB per device {needed_gib:.4g} needed, {granted:.4g} here")
        other |= {"memory"} if needed_gib > granted else set()
    require(not other, f"the hardware is not what was planned: {'; '.join(sides)}", _remedy(topology, other))


def _remedy(topology: Topology, other: set[str]) -> str:
    """What to do where these are not as planned."""
    if topology.chip.platform == "cuda" and other == {"memory"}:
        return "XLA_PYTHON_CLIENT_MEM_FRACTION=.92 grants what a plan counts on, where jax alone grants .75"
    if topology.chip.platform == "cuda" and other == {"devices"}:
        return f"CUDA_VISIBLE_DEVICES= shows {topology.devices}; tools.plan --topology= plans for other hardware"
    if topology.chip.platform == "cpu" and other == {"devices"}:
        return f"JAX_NUM_CPU_DEVICES={topology.devices}"
    return "tools.plan --topology= plans for other hardware"


def gib_words(gib: float) -> str:
    """GiB for a line of a log."""
    return f"{gib:.2f}" if gib >= 0.01 else "under 0.01"


def planned_lines(planned: Planned, here: Hardware) -> tuple[str, str]:
    """What was planned, and what is here: devices, and memory of each."""
    estimated = "no estimate" if planned.estimated_gib is None else f"{gib_words(planned.estimated_gib)} estimated"
    compiled = (
        "not compiled" if planned.compiled_gib is None else f"{gib_words(planned.compiled_gib)} at the compiled peak"
    )
    slices = f" in {here.slices} slices" if here.slices > 1 else ""
    memory = "unknown, as this backend does not say" if here.memory is None else gib_words(here.memory / GIB)
    return (
        f"planned for {planned.topology.text}: {planned.words}; GiB per device: {estimated}, {compiled}",
        f"here are {here.devices} x {here.kind}{slices}; GiB per device: {memory}",
    )


def chip_of(kind: str) -> str:
    """The chip of a device kind, the kind itself if it is none of ours."""
    if kind.lower() == "cpu":
        return "cpu"
    named = {start: chip.name for chip in CHIPS.values() for start in chip.kinds if kind.startswith(start)}
    return named[max(named, key=len)] if named else kind
