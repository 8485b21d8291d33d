"""Limits of the host process."""

from __future__ import annotations

import ast
import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from dfine_jax.errors import UserError
from dfine_jax.system.host_memory import memory_maps, require_maps

ROOT = Path(__file__).resolve().parents[2]

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


_REPEAT = """
import resource, sys, threading
from dfine_jax.system.host_memory import keep_freed_memory

def faults(mib):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [b"x" * (m << 20) for m in mib]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def in_a_thread(mib):
    kept = []
    def repeat():
        kept.extend(faults(mib) for _ in range(4))
    worker = threading.Thread(target=repeat)
    worker.start()
    worker.join()
    return kept

if sys.argv[1] == "keep":
    assert keep_freed_memory()
print([faults([300, 40])] + [faults([300, 40]) for _ in range(3)], in_a_thread([50, 40, 20]))
"""


@pytest.mark.parametrize("keep", [True, False])
def test_what_was_freed_is_not_faulted_in_again(keep):
    """Large and middle blocks, in the main thread's heap and in another's, where heaps of 64 MiB come and go."""
    done = subprocess.run(
        [sys.executable, "-c", _REPEAT, "keep" if keep else "leave"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    main, thread = ast.literal_eval(f"({done.stdout.strip().replace('] [', '], [')})")
    assert (max(main[1:]) < main[0] / 20) == keep, done.stdout
    assert (max(thread[1:]) < main[0] / 20) == keep, done.stdout
