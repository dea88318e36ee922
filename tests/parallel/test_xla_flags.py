"""Options for compilers: which device gets which, and that they are known; what they do is seen in test_compiled.py."""

import jax
import jax.numpy as jnp
import pytest

from scaling.parallel import xla_flags
from scaling.parallel.xla_flags import Flag, compiler_options, flags_of, with_malloc


def test_each_device_has_its_own():
    assert flags_of("gpu", "NVIDIA H100 80GB HBM3") == xla_flags.GPU
    assert flags_of("cpu", "cpu") == xla_flags.CPU
    assert flags_of("tpu", "TPU v5") == flags_of("tpu", "TPU v5p") == xla_flags.TPU_V5P
    assert flags_of("tpu", "TPU v5 lite") == {}
    assert compiler_options("gpu", "NVIDIA H200") == {name: flag.value for name, flag in xla_flags.GPU.items()}


def test_every_option_has_its_reason():
    assert all(len(flag.reason) > 40 for flag in xla_flags.MALLOC.values())
    for table in (xla_flags.CPU, xla_flags.GPU, xla_flags.TPU_V5P):
        for name, flag in table.items():
            assert isinstance(flag, Flag)
            assert name.startswith("xla_")
            assert len(flag.reason) > 40


@pytest.mark.parametrize("table", ["CPU", "GPU"])
def test_this_version_of_xla_knows_the_options(table):
    """Any build of XLA reads those of all but TPUs, and refuses what it does not know."""
    lowered = jax.jit(lambda x: x + 1).lower(jnp.zeros(3))
    lowered.compile(compiler_options={name: flag.value for name, flag in getattr(xla_flags, table).items()})
    with pytest.raises(Exception, match="No such compile option: 'xla_gpu_no_such_option'"):
        lowered.compile(compiler_options={"xla_gpu_no_such_option": True})


def test_settings_of_malloc_leave_what_is_set():
    setting = "glibc.malloc.hugetlb=1"
    assert with_malloc({"A": "b"}) == {"A": "b", "GLIBC_TUNABLES": setting}
    assert with_malloc(with_malloc({})) == with_malloc({})
    assert with_malloc({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=2"})["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=2"
    others = with_malloc({"GLIBC_TUNABLES": "glibc.malloc.check=3"})["GLIBC_TUNABLES"]
    assert others == f"glibc.malloc.check=3:{setting}"
