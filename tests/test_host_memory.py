"""Limits of the host process."""

from __future__ import annotations

import mmap
import sys

import pytest

from dfine_jax.errors import UserError
from dfine_jax.host_memory import memory_maps, require_maps

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_mappings_are_counted():
    before, allowed = memory_maps()
    # protections differ, so that the system cannot join neighbours into one mapping
    held = [mmap.mmap(-1, 4096, prot=mmap.PROT_READ if i % 2 else mmap.PROT_READ | mmap.PROT_WRITE) for i in range(200)]
    assert 150 <= memory_maps()[0] - before <= 250
    assert 0 < before < allowed
    del held


def test_too_many_are_refused_before_the_process_dies():
    used, allowed = memory_maps()
    require_maps(allowed - used - 500)
    with pytest.raises(UserError, match="vm.max_map_count=.*fewer input sizes"):
        require_maps(allowed - used + 500)
