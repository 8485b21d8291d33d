"""Functions of NumPy arrays inside programs compiled for the CPU, in a form that the compilation cache can keep.

JAX's own callbacks put an address of the process into the program, so every process compiles such a program again.
Here the program holds a name; XLA's foreign function interface finds the function under it. The handler is made with
``ctypes`` after XLA's C header (xla/ffi/api/c_api.h, shipped in jaxlib), whose structures are those below in the
versions of the interface listed in ``_KNOWN``; XLA tells its version when a function is registered.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any

import jax
import numpy as np

_KNOWN = frozenset({(0, 2), (0, 3)})  # jaxlib 0.8.1 to 0.10.2
_METADATA = 1  # XLA_FFI_Extension_Metadata
_INTERNAL = 13  # XLA_FFI_Error_Code_INTERNAL
_TYPES = {1: np.bool_, 4: np.int32, 11: np.float32, 12: np.float64}  # XLA_FFI_DataType
_log = logging.getLogger(__name__)
_size, _pointer = ctypes.c_size_t, ctypes.c_void_p


class _Extension(ctypes.Structure):
    _fields_ = [("struct_size", _size), ("type", ctypes.c_int), ("next", _pointer)]


class _Version(ctypes.Structure):
    _fields_ = [("struct_size", _size), ("extension", _pointer), ("major", ctypes.c_int), ("minor", ctypes.c_int)]


class _Metadata(ctypes.Structure):
    _fields_ = [("struct_size", _size), ("version", _Version), ("traits", ctypes.c_uint32)]


class _MetadataExtension(ctypes.Structure):
    _fields_ = [("base", _Extension), ("metadata", ctypes.POINTER(_Metadata))]


class _ErrorArgs(ctypes.Structure):
    _fields_ = [("struct_size", _size), ("extension", _pointer), ("message", ctypes.c_char_p), ("code", ctypes.c_int)]


_CreateError = ctypes.CFUNCTYPE(_pointer, ctypes.POINTER(_ErrorArgs))


class _Api(ctypes.Structure):  # the beginning of it
    _fields_ = [
        ("struct_size", _size),
        ("extension", _pointer),
        ("version", _Version),
        ("internal", _pointer),
        ("create_error", _CreateError),
    ]


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("struct_size", _size),
        ("extension", _pointer),
        ("dtype", ctypes.c_int),
        ("data", _pointer),
        ("rank", ctypes.c_int64),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
    ]


class _Buffers(ctypes.Structure):  # XLA_FFI_Args and XLA_FFI_Rets
    _fields_ = [
        ("struct_size", _size),
        ("extension", _pointer),
        ("size", ctypes.c_int64),
        ("types", _pointer),
        ("items", ctypes.POINTER(ctypes.POINTER(_Buffer))),
    ]


class _Frame(ctypes.Structure):  # the beginning of XLA_FFI_CallFrame
    _fields_ = [
        ("struct_size", _size),
        ("extension", ctypes.POINTER(_Extension)),
        ("api", ctypes.POINTER(_Api)),
        ("context", _pointer),
        ("stage", ctypes.c_int),
        ("arguments", _Buffers),
        ("results", _Buffers),
    ]


_Handler = ctypes.CFUNCTYPE(_pointer, ctypes.POINTER(_Frame))
_handlers: list[Any] = []  # XLA keeps their addresses for as long as the process lives


class _Caught:
    """What is raised inside is kept: Python must not leave a function that C has called by an exception."""

    error: BaseException | None = None

    def __enter__(self) -> _Caught:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = error
        return True


@functools.cache
def register(name: str, function: Callable[..., np.ndarray]) -> bool:
    """Let programs for the CPU call ``function`` with ``jax.ffi.ffi_call(name, ...)``; once for each name in a process.

    What the function raises becomes an error of the program (``jax.errors.JaxRuntimeError``) with its message.

    Args:
      name: unique in the process and equal in all processes that share a compilation cache.
      function: makes one array from arrays; they are memory of the program and must not be kept.

    Returns:
      Whether it can be used. False: this jaxlib has an interface that is not known here.
    """
    seen: list[tuple[int, int]] = []

    def handle(frame: Any) -> int | None:
        with _Caught() as caught:
            if _is_metadata(frame.contents):
                seen.append(_tell_version(frame.contents))
            else:
                _call(function, frame.contents)
        return _error(frame.contents, caught.error) if caught.error else None

    handler = _Handler(handle)
    _handlers.append(handler)
    capsule = jax.ffi.pycapsule(ctypes.cast(handler, _pointer).value)
    with _Caught() as caught:
        jax.local_devices(backend="cpu")  # before there is a CPU client, XLA's questions come later
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    known = caught.error is None and bool(seen) and _KNOWN.issuperset(seen)
    if not known:
        _log.info("compiled programs that call %s cannot be kept: versions of XLA's interface: %s", name, seen)
    return known


def _is_metadata(frame: _Frame) -> bool:
    return bool(frame.extension) and frame.extension.contents.type == _METADATA


def _tell_version(frame: _Frame) -> tuple[int, int]:
    """XLA asks for the handler's version when it is registered; the answer is XLA's own, which ``register`` judges."""
    version = frame.api.contents.version
    extension = ctypes.cast(frame.extension, ctypes.POINTER(_MetadataExtension)).contents
    told = extension.metadata.contents
    told.version.major, told.version.minor, told.traits = version.major, version.minor, 0
    return version.major, version.minor


def _call(function: Callable[..., np.ndarray], frame: _Frame) -> None:
    arguments = [_array(frame.arguments.items[i].contents) for i in range(frame.arguments.size)]
    out = _array(frame.results.items[0].contents)
    out[...] = function(*arguments)


def _array(buffer: _Buffer) -> np.ndarray:
    if buffer.struct_size < ctypes.sizeof(_Buffer) or buffer.dtype not in _TYPES:
        raise TypeError(f"a buffer of {buffer.struct_size} bytes with data type {buffer.dtype} is not known here")
    shape, dtype = tuple(buffer.dims[i] for i in range(buffer.rank)), np.dtype(_TYPES[buffer.dtype])
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not count:
        return np.empty(shape, dtype)
    return np.frombuffer(memoryview((ctypes.c_char * count).from_address(buffer.data)), dtype).reshape(shape)


def _error(frame: _Frame, error: BaseException) -> int | None:
    text = f"{type(error).__name__}: {error}".encode(errors="replace")
    arguments = _ErrorArgs(ctypes.sizeof(_ErrorArgs), None, text, _INTERNAL)
    return frame.api.contents.create_error(ctypes.byref(arguments))
