"""Compiled programs kept on disk, so that a run that starts again compiles nothing."""

import os

import jax


def keep_compilations(directory: str | os.PathLike[str]) -> None:
    """Makes jax keep what it compiles from now on in `directory`, however small, and look there first.

    Entries are found again by a hash of program, compiler, options and devices. Of several processes one writes. A
    damaged entry is compiled again, with a warning.
    """
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
