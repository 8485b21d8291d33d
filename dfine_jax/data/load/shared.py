"""Memory that several processes see and that no name outlives."""

from __future__ import annotations

import io
import mmap
import os
import pickle
import tempfile
import weakref
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

_ALIGN_BYTES = 64

Places = tuple[tuple[str, tuple[int, ...], str], ...]  # (name, shape, dtype) in the order of the memory


def unnamed_memory(size_bytes: int) -> IO[bytes]:
    """Memory behind an inheritable descriptor without a name; an unlinked temporary file where there is no memfd."""
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("dfine-batches"), "w+b", buffering=0)
    else:
        file = tempfile.TemporaryFile(buffering=0)
    os.ftruncate(file.fileno(), size_bytes)
    return file


def aligned(size_bytes: int) -> int:
    """The size with what has to follow it for the next array to start well."""
    return -(-size_bytes // _ALIGN_BYTES) * _ALIGN_BYTES


class SharedArrays:
    """Read-only arrays by name in unnamed shared memory, made by ``share``; in child processes, views of the same."""

    def __init__(self, descriptor: int, places: Places) -> None:
        self.descriptor = descriptor
        self.places = places
        self.arrays = _views(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), places)


def share(arrays: Mapping[str, np.ndarray]) -> SharedArrays:
    """Copies that ``dumps`` hands to child processes without copying them again."""
    places = tuple((name, array.shape, array.dtype.str) for name, array in arrays.items())
    size = sum(aligned(array.nbytes) for array in arrays.values())
    file = unnamed_memory(size + _ALIGN_BYTES)  # so that also an empty array at the end starts inside
    writable = _views(mmap.mmap(file.fileno(), 0), places)
    for name, array in arrays.items():
        writable[name][...] = array
    shared = SharedArrays(file.fileno(), places)
    weakref.finalize(shared, file.close)  # the memory itself goes with the last process and view that has it
    return shared


def dumps(value: Any) -> tuple[bytes, tuple[int, ...]]:
    """``value``, with any ``SharedArrays`` in it, pickled for child processes that inherit the descriptors returned."""
    stream = io.BytesIO()
    pickler = _Pickler(stream, pickle.HIGHEST_PROTOCOL)
    pickler.dump(value)
    return stream.getvalue(), tuple(pickler.descriptors)


class _Pickler(pickle.Pickler):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.descriptors: list[int] = []

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, SharedArrays):
            return NotImplemented
        self.descriptors.append(obj.descriptor)
        return SharedArrays, (obj.descriptor, obj.places)


def _views(memory: mmap.mmap, places: Places) -> dict[str, np.ndarray]:
    views, offset = {}, 0
    for name, shape, dtype in places:
        views[name] = np.ndarray(shape, dtype, memory, offset)
        offset += aligned(views[name].nbytes)
    return views
