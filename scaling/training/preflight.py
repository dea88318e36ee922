"""What a run needs before its first step: texts that fit its model, the parameters that it names as its start, and a
compiled step that fits on the devices."""

from typing import Any

import jax
import numpy as np

from scaling.data.batches import Stores
from scaling.errors import InputError
from scaling.files import Path
from scaling.models.parameter_files import start_params, unstack_layers
from scaling.parallel.absent import memory_of, too_large
from scaling.parallel.chips import GIB
from scaling.runs import Placement, Run
from scaling.training.log_line import device_bytes


def check_vocabulary(run: Run, stores: Stores) -> None:
    """Raises InputError if a token of a store is beyond the model's vocabulary, or if the stores' tokens differ."""
    read = [stores[name] for name in run.stores]
    for store in read:
        if store.vocab_size > run.model.vocab_size:
            raise InputError(f"model.vocab_size={run.model.vocab_size} is below the store's {store.vocab_size}")
        if store.tokenizer != read[0].tokenizer:
            raise InputError(
                f"its tokenizer is {store.tokenizer}, that of {read[0].path} is {read[0].tokenizer}",
                str(store.path),
                "all texts of a run need one tokenizer",
            )


def first_params(run: Run, placement: Placement, start: Path | None) -> Any:
    """The parameters that a run names as its start, on the host; None for a run that starts from an initialisation."""
    if (run.start is None) != (start is None):
        said = "none was given" if start is None else f"{start} was given"
        raise InputError(
            f"the run starts from parameters {run.start}, and {said}", do="--start=DIRECTORY of params.json"
        )
    if start is None:
        return None
    params = start_params(start, run.model, run.start)
    return params if placement.scan_layers else unstack_layers(params)


def placed(params: Any, abstract_params: Any) -> Any:
    """Arrays of the host, laid out over devices as abstract ones say."""

    def place(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.make_array_from_callback(like.shape, like.sharding, lambda part: array[part])

    return jax.tree.map(place, params, abstract_params)


def compiled_to_fit(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """A program, compiled. Raises InputError, with both numbers, if it takes more memory than a device grants: the
    compiler for TPUs refuses it then; that for GPUs does not, and it would fail at its first step."""
    granted = device_bytes()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        asked = too_large(error)
        if asked is None:
            raise
        raise _too_large(asked, granted) from None
    if granted is not None and compiled.memory_analysis() is not None:
        peak = memory_of(compiled, jax.local_devices()[0].platform)["peak_gib"]
        if peak * GIB > granted:
            raise _too_large(peak, granted)
    return compiled


def _too_large(gib: float, granted: int | None) -> InputError:
    there = "less" if granted is None else f"{granted / GIB:.4g}"
    return InputError(
        f"the compiled step takes {gib:.4g} GiB on a device, and there is {there}",
        do="tools.plan --topology= --aot finds a placement that fits",
    )
