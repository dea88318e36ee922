"""Every way to damage a checkpoint that we could think of, and whether the damage is seen or does not matter.

    python -m benchmarks.corruptions

Two checkpoints of a small state are saved. In a copy of both, the newer one is damaged: in each of its files a byte is
flipped at places spread over it, the file is cut to half and to nothing, overwritten with zeros, removed, made longer,
and replaced by that of the older checkpoint; of the folder a half is missing, or all. Then the newest checkpoint that
can be trusted is restored. Detected: the damaged one is set aside and the older one restored, bit by bit. Harmless: the
damaged one is restored, bit by bit (orbax writes some things twice, and some that it does not read). Anything else is
wrong, and must not be.
"""

import argparse
import collections
import dataclasses
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from scaling.training.checkpoints import Checkpoints
from scaling.training.step import State

DETECTED, HARMLESS, WRONG = "detected", "harmless", "wrong"


@dataclasses.dataclass(frozen=True)
class Damage:
    """What is done to a checkpoint: the kind, where in its folder, and the doing."""

    kind: str
    file: str
    do: Callable[[pathlib.Path], None]


def corruptions(folder: pathlib.Path, older: pathlib.Path, places: int = 5) -> Iterator[Damage]:
    """All that is done to copies of a checkpoint. places: of flipped bytes in a file, its first and last among them."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    for file in files:
        size = (folder / file).stat().st_size
        spread = sorted({round(k * (size - 1) / max(1, places - 1)) for k in range(places)}) if size else ()
        for k, at in enumerate(spread):
            bits = (0x01, 0x80, 0xFF)[k % 3]
            yield Damage("flipped byte", f"{file} at {at} by {bits:#04x}", _edit(file, _flipped(at, bits)))
        yield Damage("cut to half", str(file), _edit(file, lambda content: content[: len(content) // 2]))
        yield Damage("cut to nothing", str(file), _edit(file, lambda content: b""))
        yield Damage("zeroed", str(file), _edit(file, lambda content: bytes(len(content))))
        yield Damage("longer", str(file), _edit(file, lambda content: content + b"\0" * 16))
        yield Damage("removed", str(file), lambda copy, file=file: (copy / file).unlink())
        if (older / file).exists():
            stale = (older / file).read_bytes()
            yield Damage("of the older one", str(file), _edit(file, lambda content, stale=stale: stale))
    for kept in range(0, len(files), 2):
        yield Damage("half copied", f"the first {kept} files", lambda copy, kept=kept: _remove(copy, files[kept:]))
    for name in ("state", "progress"):
        yield Damage("removed", name, lambda copy, name=name: shutil.rmtree(copy / name))
        yield Damage("of the older one", name, lambda copy, name=name: _replace(copy / name, older / name))
    yield Damage("of the older one", "all of it", lambda copy: _replace(copy, older))


def _flipped(at: int, bits: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:at] + bytes([content[at] ^ bits]) + content[at + 1 :]


def _edit(file: pathlib.Path, change: Callable[[bytes], bytes]) -> Callable[[pathlib.Path], None]:
    return lambda copy: (copy / file).write_bytes(change((copy / file).read_bytes())) and None


def _remove(copy: pathlib.Path, files: list[pathlib.Path]) -> None:
    for file in files:
        (copy / file).unlink()


def _replace(folder: pathlib.Path, other: pathlib.Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def small_state(seed: int) -> State:
    """Arrays of all types that a train state may have, one of them large enough to have a file of its own."""
    rng = np.random.default_rng(seed)
    params = {
        "matrix": jnp.asarray(rng.standard_normal((48, 64)), jnp.float32),
        "short": jnp.asarray(rng.standard_normal(9), jnp.bfloat16),
        "zeros": jnp.zeros((3, 5)),
    }
    return State(
        params, (jnp.int32(seed), jnp.asarray(rng.integers(0, 2**32, 4), jnp.uint32), jnp.array([True, False]))
    )


def outcome(damage: Damage, saved: dict[int, State], directory: pathlib.Path, work: pathlib.Path) -> str:
    """What becomes of a damage to the newest checkpoint of a directory, in a copy. saved: the states, by steps."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(directory, work)
    newest, before = sorted(saved)[-1], sorted(saved)[-2]
    damage.do(work / f"{newest}-1")
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), saved[newest])
    with Checkpoints(work, "the-run", attempt=2) as checkpoints:
        found = checkpoints.restore(abstract)
    if found is None:
        return WRONG
    step, state, progress, attempt = found
    exact = all(map(_same, jax.tree.leaves(state), jax.tree.leaves(saved[step])))
    if not exact or progress != {"step": step} or attempt != 1:
        return WRONG
    aside = [entry["checkpoint"] for entry in checkpoints.set_aside]
    if (step, aside) == (newest, []):
        return HARMLESS
    gone = not (work / f"{newest}-1").exists() and (work / f"damaged-{newest}-1").exists()
    return DETECTED if (step, aside) == (before, [f"{newest}-1"]) and gone else WRONG


def _same(a: jax.Array, b: jax.Array) -> bool:
    return a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save_two(directory: pathlib.Path) -> dict[int, State]:
    """Two checkpoints in a directory, and what is in them, by steps."""
    saved = {step: small_state(step) for step in (10, 20)}
    with Checkpoints(directory, "the-run", attempt=1) as checkpoints:
        for step, state in saved.items():
            checkpoints.save(step, state, {"step": step})
    return saved


def main() -> None:
    """Prints, for each kind of damage, how many were tried, detected, harmless and wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", type=int, default=16, help="Of flipped bytes in each file.")
    places = parser.parse_args().places
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    with tempfile.TemporaryDirectory() as folder:
        directory, work = pathlib.Path(folder, "checkpoints"), pathlib.Path(folder, "work")
        saved = save_two(directory)
        for damage in corruptions(directory / "20-1", directory / "10-1", places):
            found = outcome(damage, saved, directory, work)
            counts[damage.kind][found] += 1
            if found == WRONG:
                print(f"WRONG: {damage.kind}, {damage.file}")
    print(f"{'':16} {'tried':>5} {DETECTED:>8} {HARMLESS:>8} {WRONG:>5}")
    for kind, found in [*counts.items(), ("all", sum(counts.values(), collections.Counter()))]:
        print(f"{kind:16} {found.total():5} {found[DETECTED]:8} {found[HARMLESS]:8} {found[WRONG]:5}")


if __name__ == "__main__":
    main()
