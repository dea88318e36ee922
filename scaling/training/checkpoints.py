"""Checkpoints of a run, by orbax: the train state, and beside it how far the run has come."""

import logging
import pathlib
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from scaling.training.step import State

KEPT = 2


class Checkpoints:
    """The checkpoints under a directory, the newest two kept. To be used with `with`: leaving waits for pending writes.

    A save is atomic: a killed process leaves the previous one as the latest. With read_only, nothing there is touched:
    another process may be saving.
    """

    def __init__(self, directory: pathlib.Path, read_only: bool = False):
        # Orbax tells every step of every save, and warns of all that reading alone implies.
        logging.getLogger("absl").setLevel(logging.ERROR if read_only else logging.WARNING)
        policy = preservation_policy.LatestN(KEPT)
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, read_only=read_only)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def save(self, step: int, state: State, progress: dict[str, Any]) -> None:
        """Saves the state after `step` steps, in the background."""
        if step not in self._manager.all_steps():
            items = {"state": ocp.args.StandardSave(state), "progress": ocp.args.JsonSave(progress)}
            self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, abstract_state: State) -> tuple[int, State, dict[str, Any]] | None:
        """The latest checkpoint, laid out as `abstract_state` says: (steps done, state, progress), or None."""
        step = self._manager.latest_step()
        if step is None:
            return None
        items = {"state": ocp.args.StandardRestore(abstract_state), "progress": ocp.args.JsonRestore()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return step, restored["state"], restored["progress"]

    def restore_params(self, abstract_params: Any) -> tuple[int, Any] | None:
        """Of the latest checkpoint the parameters alone, laid out as abstract ones say: (steps done, parameters)."""
        step = self._manager.latest_step()
        if step is None:
            return None
        wanted = {"params": abstract_params}
        how = ocp.checkpoint_utils.construct_restore_args(wanted)
        item = ocp.args.PyTreeRestore(item=wanted, restore_args=how, partial_restore=True)
        return step, self._manager.restore(step, args=ocp.args.Composite(state=item))["state"]["params"]
