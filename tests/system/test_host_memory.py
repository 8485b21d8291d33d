"""Limits of the host process."""

from __future__ import annotations

import ast
import gc
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dfine_jax.errors import UserError
from dfine_jax.system.host_memory import (
    ALLOCATOR,
    allocator_file,
    collection_paused,
    memory_maps,
    require_maps,
    with_allocator,
)

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


_COMMAND = """
import resource, threading
from dfine_jax.system.host_memory import allocator_name, start_with_allocator

start_with_allocator()
print(allocator_name())

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = b"x" * (300 << 20)
    del block
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

def repeat():
    for _ in range(4):
        faults()

worker = threading.Thread(target=repeat)
worker.start()
worker.join()
"""


def command(**environment: str) -> list[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", ALLOCATOR)}
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND],
        cwd=ROOT, capture_output=True, text=True, check=True, env={**inherited, **environment},
    )  # fmt: skip
    return done.stdout.splitlines()


def test_a_command_starts_again_with_an_allocator_that_keeps_a_steps_block():
    name, first, *later = command(JAX_PLATFORMS="cpu")
    assert name.startswith("mimalloc ")
    assert max(map(int, later)) < 0.1 * int(first)


def test_the_c_librarys_allocator_can_be_kept():
    name, *faults = command(JAX_PLATFORMS="cpu", DFINE_ALLOCATOR="system")
    assert name == "of the C library"
    assert min(map(int, faults)) > 0.5 * (300 << 20) / mmap.PAGESIZE  # what the other one is for


def test_accelerators_and_other_libraries_are_left_alone():
    library = allocator_file()
    assert library is not None
    assert with_allocator({"JAX_PLATFORMS": "cpu", "A": "b"}) == {
        "JAX_PLATFORMS": "cpu",
        "A": "b",
        "LD_PRELOAD": str(library),
    }
    assert with_allocator({"JAX_PLATFORMS": "cuda"}) is None
    assert with_allocator({"JAX_PLATFORMS": "cpu", "LD_PRELOAD": "/lib/other.so"}) is None
    assert with_allocator({"JAX_PLATFORMS": "cpu", ALLOCATOR: "system"}) is None


def test_the_collector_is_as_before_after_a_pause():
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            with pytest.raises(KeyError), collection_paused():
                assert not gc.isenabled()
                raise KeyError
            assert gc.isenabled() == enabled
        finally:
            gc.enable()
