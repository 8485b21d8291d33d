"""Memory of the host process, where the CPU is the device."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from dfine_jax.errors import UserError

ALLOCATOR = "DFINE_ALLOCATOR"  # environment variable: "system" keeps the C library's allocator
_PACKAGE, _LIBRARY = "cmeel-mimalloc", "libmimalloc.so"

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


def allocator_file() -> Path | None:
    """The library of mimalloc that is installed, if it is."""
    try:
        distribution = metadata.distribution(_PACKAGE)
    except metadata.PackageNotFoundError:
        return None
    found = [file for file in distribution.files or () if file.name == _LIBRARY]
    path = Path(str(distribution.locate_file(found[0]))) if found else None
    return path if path and path.is_file() else None


def with_allocator(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The environment of a program that computes on the CPU with mimalloc; None: it is to stay as it is.

    The C library maps a block as large as a step's temporaries anew for each step, whatever it is told
    (``keep_freed_memory``), when a thread of XLA asks for it; and behind a compilation in the same process the threads
    wait for each other. mimalloc keeps such blocks and has no common lock: a step of N (320 px, batch 8) takes 0.7 of
    the time.

    The environment stays as it is where an accelerator may be the device, where another library is preloaded already,
    and where ``DFINE_ALLOCATOR`` is ``system``.
    """
    platforms = environment.get("JAX_PLATFORMS", "")
    accelerated = platforms != "cpu" and (platforms or metadata.entry_points(group="jax_plugins"))
    if not sys.platform.startswith("linux") or accelerated or environment.get("LD_PRELOAD"):
        return None
    library = allocator_file() if environment.get(ALLOCATOR) != "system" else None
    return {**environment, "LD_PRELOAD": str(library)} if library else None


def start_with_allocator() -> None:
    """Start this very command again, in this process, with the allocator that ``with_allocator`` would have.

    A library can only be put under a program at its start. For the first lines of a command: what has happened until
    then happens twice. Returns where nothing is to change.
    """
    environment = with_allocator(os.environ)
    if environment:
        with contextlib.suppress(OSError):  # no interpreter to start: the C library's allocator works, too
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def allocator_name() -> str:
    """Which allocator this process has, for a report."""
    library = ctypes.CDLL(None) if sys.platform != "win32" else None
    if not hasattr(library, "mi_version"):
        return "of the C library"
    number = library.mi_version()  # 3.4.3 is 30403
    return f"mimalloc {number // 10000}.{number // 100 % 100}.{number % 100}"


def give_back_memory() -> None:
    """Return freed memory to the system once: a compiler leaves some GiB behind that no step will ask for."""
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mi_collect"):
        library.mi_collect(ctypes.c_bool(True))
    elif hasattr(library, "malloc_trim"):
        library.malloc_trim(ctypes.c_size_t(0))


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """No collection of reference cycles inside: for work that makes millions of objects and no cycles among them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
