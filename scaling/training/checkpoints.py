"""Checkpoints of a run, by orbax, each trusted only when its own checksums match.

A checkpoint is a folder, checkpoints/STEP-ATTEMPT, of the train state (state/) and a page of JSON (progress/). Orbax
writes it in the background, under another name, which it takes when it is whole: a save that is cut short, however it
ends, leaves only what the next attempt removes. The attempt is part of the name, so two that are at one run, as a
paused owner and its successor may be (scaling.training.claims), never write the same folder.

Orbax loads a flipped byte without a word, and a page may be older than the arrays beside it. So the page says what the
folder is: the run (whose id ends in a hash of all that it is), step and attempt, and the name, shape, type and
fingerprint of each array, taken on the devices before the save (scaling.training.fingerprints). It carries a CRC-32C
of itself. A folder that cannot be read, does not hold what its page says, or has no whole page is damaged: it is named,
set aside under another name, and the checkpoint before it is tried.

What is no damage. A whole page may be of another run, or of arrays of other shapes than those asked for: something was
mixed up, and the user is told. The system may refuse to read (no permission, out of memory, a disk that is away): that
is raised as it comes, for the checkpoint may be good. Once shapes agree, whatever else orbax raises is damage, because
nothing that was asked of it is impossible: damaged metadata ends in any exception there is, from KeyError to
RecursionError. One doubt is left: another version of orbax than the one that wrote the folder might not read it. Then
nothing is set aside either, or an update would cost a run all its checkpoints.

Of several processes all must do the same, though each reads its own shards, and damage may be in those of one. Process
0 reads pages and tells the others what it found. The arrays are read without orbax's own barrier, in which the others
would wait for one that has failed; then all hear whether any has (`hosts.together`, which also makes all raise what is
no damage). Fingerprints are sums over all devices, equal on every process. So all set the same folder aside and go on
to the same one before it, without a restart. A background write that fails on one process is raised by that one, at its
next save; its end ends the others.
"""

import logging
import pathlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from scaling.errors import InputError, RunFailedError
from scaling.specs import require
from scaling.training import checkpoint_folders as folders
from scaling.training import hosts
from scaling.training.checkpoint_folders import Mark, Page, name_of
from scaling.training.fingerprints import fingerprints
from scaling.training.step import State

KEPT = 2
WRITER = "orbax-checkpoint"


class Checkpoints:
    """The checkpoints under a directory: the newest two are kept, and every `keep_every`-th save, if that is not 0.

    To be used with `with`: leaving waits for pending writes, and raises what became of them. say: told in a line of
    each checkpoint that is not trusted; set_aside: these, for the record. With read_only nothing there is touched:
    another process may be saving.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        run_id: str,
        attempt: int,
        keep_every: int = 0,
        read_only: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ):
        self._directory, self._run_id, self._attempt = directory.absolute(), run_id, attempt
        self._keep_every, self._read_only, self._say = keep_every, read_only, say
        self._writer = None if read_only else ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._saves = 0  # of the run, over all attempts
        self._saved: set[int] = set()  # steps, by this attempt
        self.set_aside: list[dict[str, str]] = []

    def __enter__(self) -> "Checkpoints":
        # Orbax tells every step of every save, and warns of all that reading alone implies.
        self._log_level = logging.getLogger("absl").level
        logging.getLogger("absl").setLevel(logging.ERROR if self._read_only else logging.WARNING)
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        try:
            self._close(failure)
        finally:
            logging.getLogger("absl").setLevel(self._log_level)

    def _close(self, failure: type[BaseException] | None) -> None:
        if self._writer is not None:
            try:
                self.wait()
            except (OSError, RunFailedError) as error:
                if failure is None or not issubclass(failure, RunFailedError):
                    raise
                self._say(f"the last save has failed too: {error}")  # what ended the run is the reason that counts
            finally:
                self._writer.close()
            if failure is None and self._saved:
                hosts.told(self._prune)

    def wait(self) -> None:
        """Until the last save is on the disk. Raises what went wrong with it, as the system said it (OSError)."""
        try:
            self._writer.wait_until_finished()
        except Exception as error:
            found = folders.os_error(error, self._directory)
            if found is None or found is error:
                raise
            raise found from error

    def save(self, step: int, state: State, progress: dict[str, Any]) -> None:
        """Saves the state after `step` steps, in the background, once the save before is done and old ones are dropped.

        Returns when the state is copied to the host: the next step may consume it. What went wrong with the save before
        is raised here. A step that this attempt has saved already is left as it is: the state is a function of it.
        """
        self.wait()
        if step in self._saved:
            return
        hosts.told(self._prune)
        page = {
            "run": self._run_id,
            "step": step,
            "attempt": self._attempt,
            "save": self._saves + 1,
            "writer": version(WRITER),
            "arrays": _kinds(state),
            "fingerprints": fingerprints(state),
            "progress": progress,
        }
        items = {"state": ocp.args.PyTreeSave(state), "progress": ocp.args.JsonSave(folders.sealed(page))}
        self._writer.save(self._directory / name_of((step, self._attempt)), args=ocp.args.Composite(**items))
        self._saves += 1
        self._saved.add(step)

    def restore(self, abstract_state: State) -> tuple[int, State, dict[str, Any], int] | None:
        """The newest checkpoint that can be trusted: (steps done, state, progress, the attempt that made it), or None.

        abstract_state says what is laid out how; the mesh and the processes may be others than when it was saved. Those
        that are damaged are set aside. Raises InputError for one of another run or of arrays of other shapes.
        """
        found = self._newest(abstract_state, "")
        if found is None:
            return None
        (step, attempt), state, page = found
        self._saves = page["save"]
        return step, state, page["progress"], attempt

    def restore_params(self, abstract_params: Any) -> tuple[int, Any] | None:
        """Of the newest checkpoint that can be trusted the parameters alone, as `restore`: (steps done, parameters)."""
        found = self._newest({"params": abstract_params}, ".params")
        return None if found is None else (found[0][0], found[1]["params"])

    def mark_unusable(self, step: int, attempt: int, reason: str) -> None:
        """Sets a checkpoint aside for a reason that its folder does not show: the records beside it do not fit it."""
        self._set_aside((step, attempt), reason)

    def _newest(self, wanted: Any, part: str) -> tuple[Mark, Any, Page] | None:
        """part: "" for a whole state, ".params" for {"params": the parameters}."""
        for step, attempt in hosts.told(lambda: folders.marks_in(self._directory)[::-1]):
            state, page, fault = self._tried(self._directory / name_of((step, attempt)), wanted, part)
            if fault is None:
                return (step, attempt), state, page
            del state  # so that two never take up memory at once
            self._set_aside((step, attempt), fault)
        return None

    def _tried(self, folder: pathlib.Path, wanted: Any, part: str) -> tuple[Any, Page | None, str | None]:
        """State and page of a checkpoint, and what is wrong with it, if anything is."""
        page = hosts.told(lambda: folders.read_page(folder))
        if isinstance(page, str):
            return None, None, page
        require(
            page["run"] == self._run_id,
            f"is of another run, {page['run'][:80]!r}, and not of {self._run_id!r}",
            "give another --workdir, or move the folder away",
            str(folder),
        )
        inside = (lambda tree: tree["params"]) if part else (lambda tree: tree)
        arrays = {name: kind for name, kind in page["arrays"].items() if name.startswith(part)}
        _check_kinds(_kinds(inside(wanted), part), arrays, folder)
        state, fault = self._read(folder, wanted, page["writer"])
        if fault is None:
            found = fingerprints(inside(state), part)
            other = [name for name in arrays if found[name] != page["fingerprints"].get(name)]
            if other:
                fault = f"{len(other)} of its {len(arrays)} arrays do not have their fingerprints: {_some(other)}"
        return state, page, fault

    def _read(self, folder: pathlib.Path, wanted: Any, writer: str) -> tuple[Any, str | None]:
        """The arrays of a checkpoint, or what is wrong with it on any process."""
        how = ocp.args.PyTreeRestore(
            item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
        )

        def read() -> Any:
            try:
                return ocp.PyTreeCheckpointHandler().restore(epath.Path(folder / "state"), args=how)
            except Exception as error:
                refused = folders.refusal(error, folder)
                if refused is not None:
                    raise refused from error
                raise InputError(f"cannot be read: {folders.line_of(error)}") from error

        try:
            return hosts.together(read), None
        except InputError as error:
            require(
                writer == version(WRITER),
                f"{error.what}; {WRITER} {writer} wrote it, and {version(WRITER)} may read it otherwise",
                f"install {WRITER}=={writer}, or move the folder away if it is damaged",
                str(folder),
            )
            return None, error.what

    def _set_aside(self, mark: Mark, reason: str) -> None:
        self.set_aside.append({"checkpoint": name_of(mark), "reason": reason})
        if not self._read_only:
            hosts.told(lambda: folders.rename_damaged(self._directory / name_of(mark)))
        if hosts.writes():
            self._say(f"checkpoint {name_of(mark)} is {'passed over' if self._read_only else 'set aside'}: {reason}")

    def _prune(self) -> None:
        """Removes what is not kept, and leftovers of killed saves; never what a later attempt than ours has made."""
        for leftover in folders.leftovers_in(self._directory, before=self._attempt):
            folders.remove(leftover)
        marks = folders.marks_in(self._directory)
        mine = [mark for mark in marks if mark[1] == self._attempt]
        kept = {*marks[-KEPT:], *mine[-KEPT:]}  # the paused owner of an earlier attempt may have come further than we
        for mark in marks:
            if mark not in kept and mark[1] <= self._attempt and not self._is_nth(mark):
                folders.remove(self._directory / name_of(mark))

    def _is_nth(self, mark: Mark) -> bool:
        if not self._keep_every:
            return False
        page = folders.read_page(self._directory / name_of(mark))
        return not isinstance(page, str) and page["save"] % self._keep_every == 0


def _kinds(tree: Any, prefix: str = "") -> dict[str, str]:
    """Type and shape of each array, by the name that it has in `fingerprints`."""
    leaves = jax.tree.leaves_with_path(tree)
    return {prefix + jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _check_kinds(wanted: dict[str, str], saved: dict[str, str], folder: pathlib.Path) -> None:
    """Raises InputError unless the arrays that are asked for are those that were saved, up to their values."""
    other = [name for name in {**wanted, **saved} if wanted.get(name) != saved.get(name)]
    if other:
        kinds = [f"{name} {saved.get(name, 'not there')}, not {wanted.get(name, 'there')}" for name in other]
        raise InputError(
            f"does not hold the arrays that are asked for: {_some(kinds)}",
            str(folder),
            "go on with the placement.scan_layers, and the version of this code, that it was saved with",
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
