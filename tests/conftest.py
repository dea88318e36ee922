"""What every test shares: eight fake CPU devices, set in the environment before anything imports JAX.

Nothing here imports JAX unless a test asks for it, so the tests of the analysis stay free of it. A variable that is
already set is kept, so that the suite can be pointed at other devices on purpose.
"""

import os
from importlib.metadata import version

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
if version("jaxlib").startswith("0.10."):
    # With `quick_compilation`, a fifth of the time to compile a tiny model. Later versions have no such flag, and end.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")


@pytest.fixture(scope="session")
def quick_compilation(tmp_path_factory):
    """Compiles at a low optimisation level, and each program once: most of the time of tiny models is compilation."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
