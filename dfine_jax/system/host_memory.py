"""Memory of the host process, where the CPU is the device."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from dfine_jax.errors import UserError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
_NEVER = -1  # becomes the largest size_t
_HEAP_BYTES = 64 << 20  # of an arena, HEAP_MAX_SIZE in glibc's arena.c


def keep_freed_memory() -> bool:
    """Let the allocator keep what is freed instead of handing it back to the system; True if it could be told.

    XLA on the CPU allocates the temporaries of a step and frees them after it. By default glibc maps large blocks from
    the system each time, gives free memory at the end of a heap back, and unmaps empty heaps; every page is then
    faulted in and zeroed again: for a training step of N (320 px, batch 8) half a million pages, a third of the step's
    processor time. Threads keep arenas of their own, because in a single one they wait for each other. For programs
    whose work is steps on the CPU; it may be called at any time. The process keeps its peak memory until it ends.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version") or not hasattr(library, "mallopt"):
        return False
    # An empty heap is unmapped unless the padding wants as much as it holds.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _HEAP_BYTES))
    return all([library.mallopt(name, value) == 1 for name, value in settings])


def memory_maps() -> tuple[int, int] | None:
    """Memory mappings this process holds, and the most the system allows it; None where that is not known."""
    try:
        used = Path("/proc/self/maps").read_bytes().count(b"\n")
        return used, int(Path("/proc/sys/vm/max_map_count").read_text())
    except OSError:
        return None


def require_maps(more: int) -> None:
    """Refuse to go on when ``more`` further mappings do not fit.

    XLA maps each kernel it compiles for the CPU by itself, some thousands for a training step, and the process dies
    without a word when a mapping is denied.

    Raises:
      UserError: they do not fit.
    """
    maps = memory_maps()
    if maps and maps[0] + more > maps[1]:
        raise UserError(
            f"another compiled program needs about {more} memory maps, {maps[0]} of vm.max_map_count={maps[1]} are in "
            f"use; train at fewer input sizes, or allow more: sysctl vm.max_map_count={4 * maps[1]}"
        )
