"""The parameters of a run as it stands on disk, in host memory."""

import pathlib
from typing import Any

import jax

from scaling.files import read_json
from scaling.models.parameter_files import stack_layers
from scaling.parallel.mesh import make_mesh
from scaling.runs import Placement, Run
from scaling.specs import from_dict, require
from scaling.training.checkpoints import Checkpoints
from scaling.training.step import make_program


def last_params(directory: pathlib.Path, run: Run) -> tuple[int, Any]:
    """Steps done, and the parameters of a run's last checkpoint: nested fp32 arrays in host memory, layers stacked.

    Only they are read, and by the CPU, whatever trained them. Raises InputError if there is no checkpoint.
    """
    require((directory / "checkpoints").is_dir(), "has no checkpoints", where=str(directory))
    trained = from_dict(Placement, read_json(directory / "placement.json"), str(directory / "placement.json"))
    placement = Placement(scan_layers=trained.scan_layers)
    mesh = make_mesh(placement, jax.devices("cpu")[:1])
    with jax.set_mesh(mesh), Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
        restored = checkpoints.restore_params(make_program(run, placement, mesh).abstract_state.params)
    require(restored is not None, "has no checkpoint yet", where=str(directory))
    step, params = restored
    params = jax.device_get(params)
    return step, params if placement.scan_layers else stack_layers(params)
