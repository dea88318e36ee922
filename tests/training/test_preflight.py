"""A compiled step that takes more than a device grants is refused with both numbers, before it runs."""

import types

import jax
import jax.numpy as jnp
import pytest

from scaling.errors import InputError
from scaling.training import preflight
from scaling.training.preflight import compiled_to_fit

GIB = 2**30


def refusing(text):
    def compile_():
        raise jax.errors.JaxRuntimeError(text)

    return types.SimpleNamespace(compile=compile_)


@pytest.mark.parametrize("grants", [None, 2**20])
def test_a_program_that_fits_is_compiled(monkeypatch, grants):
    """Of 2^16 bytes in and as many out, at the least."""
    monkeypatch.setattr(preflight, "device_bytes", lambda: grants)
    lowered = jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((2**14,), jnp.float32))
    assert compiled_to_fit(lowered)(jnp.zeros(2**14))[0] == 1


def test_one_that_takes_more_than_is_granted_is_refused(monkeypatch):
    monkeypatch.setattr(preflight, "device_bytes", lambda: GIB // 8)
    lowered = jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((2**25,), jnp.float32))
    with pytest.raises(InputError, match=r"the compiled step takes 0\.25 GiB on a device, and there is 0\.125 .*--aot"):
        compiled_to_fit(lowered)


def test_so_is_one_that_the_compiler_refuses(monkeypatch):
    """In the words of XLA's compiler for TPUs."""
    monkeypatch.setattr(preflight, "device_bytes", lambda: 63 * 2**28)
    told = "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: total memory required (17.50G) exceeds available HBM (15.75G)"
    with pytest.raises(InputError, match=r"takes 17\.5 GiB on a device, and there is 15\.75"):
        compiled_to_fit(refusing(told))


def test_any_other_fault_of_the_compiler_is_its_own():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compiled_to_fit(refusing("INTERNAL: RET_CHECK failure"))
