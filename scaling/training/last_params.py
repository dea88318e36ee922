"""The parameters of a run as it stands on disk, in host memory."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax

from scaling.files import read_json
from scaling.models.parameter_files import stack_layers
from scaling.parallel.mesh import make_mesh
from scaling.runs import Placement, Run, run_id
from scaling.specs import from_dict, require
from scaling.training.checkpoints import Checkpoints
from scaling.training.step import make_program


def last_params(directory: pathlib.Path, run: Run, say: Callable[[str], None] = print) -> tuple[int, Any]:
    """Steps done, and the parameters of a run's last good checkpoint: nested fp32 arrays on the host, layers stacked.

    Only they are read, and by the CPU, whatever trained them. say: told in a line of each checkpoint that is damaged
    and passed over. Raises InputError if there is none that is good.
    """
    require((directory / "checkpoints").is_dir(), "has no checkpoints", where=str(directory))
    trained = from_dict(Placement, read_json(directory / "placement.json"), str(directory / "placement.json"))
    placement = Placement(scan_layers=trained.scan_layers)
    mesh = make_mesh(placement, jax.devices("cpu")[:1])
    reader = Checkpoints(directory / "checkpoints", run_id(run), attempt=0, read_only=True, say=say)
    with jax.set_mesh(mesh), reader as checkpoints:
        restored = checkpoints.restore_params(make_program(run, placement, mesh).abstract_state.params)
    passed = f", and {len(reader.set_aside)} that are damaged" if reader.set_aside else ""
    require(restored is not None, f"has no checkpoint yet{passed}", where=str(directory))
    step, params = restored
    params = jax.device_get(params)
    return step, params if placement.scan_layers else stack_layers(params)
