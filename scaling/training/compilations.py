"""Compiled programs kept on disk, so that a run that starts again compiles nothing."""

import hashlib
import os
import pathlib
import platform

import jax


def keep_compilations(directory: str | os.PathLike[str]) -> None:
    """Makes jax keep what it compiles from now on in `directory`, however small, and look there first.

    Entries are found again by a hash of program, compiler, options and devices, wherever the directory is moved or
    copied to: autotuning of GPUs, for which jax 0.10 puts the place into the options and so into the hash, keeps no
    files of its own there, and is kept as a part of what was compiled. Two processes may write at once, and a damaged
    entry, which zlib's checksum tells, is compiled again, with a warning; where Python or the package `zstandard` has
    Zstandard, jax compresses with that, and relies on its own format alone. Each kind of processor has a folder of its
    own: code for a CPU is made for what that one can do, which jax's hash does not tell, and a shared disk may serve
    several. Whoever can write there can make this process run their code: it is for directories of the user's own.
    """
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(directory) / _processor()))
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _processor() -> str:
    """A name for the instructions that this machine's processor has."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    able = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(able.encode()).hexdigest()[:8]}"
