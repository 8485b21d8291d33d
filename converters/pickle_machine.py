"""The part of the pickle language that builds data: numbers, strings, containers and tensors.

A pickle is a program for a small stack machine, and PyTorch checkpoints are pickles. This interpreter knows only the
instructions that build values and a short list of names; everything else is refused, nothing is imported or called.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from dfine_jax.errors import UserError

MALFORMED = (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, EOFError, struct.error)

DTYPES: dict[str, np.dtype] = {
    "float64": np.dtype(np.float64), "double": np.dtype(np.float64), "float32": np.dtype(np.float32),
    "float": np.dtype(np.float32), "float16": np.dtype(np.float16), "half": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16), "int64": np.dtype(np.int64), "long": np.dtype(np.int64),
    "int32": np.dtype(np.int32), "int": np.dtype(np.int32), "int16": np.dtype(np.int16),
    "short": np.dtype(np.int16), "int8": np.dtype(np.int8), "uint8": np.dtype(np.uint8), "bool": np.dtype(np.bool_),
}  # fmt: skip
STORAGES: dict[str, np.dtype] = {
    "DoubleStorage": DTYPES["double"], "FloatStorage": DTYPES["float"], "HalfStorage": DTYPES["half"],
    "BFloat16Storage": DTYPES["bfloat16"], "LongStorage": DTYPES["long"], "IntStorage": DTYPES["int"],
    "ShortStorage": DTYPES["short"], "CharStorage": DTYPES["int8"], "ByteStorage": DTYPES["uint8"],
    "BoolStorage": DTYPES["bool"], "UntypedStorage": DTYPES["uint8"],
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """A flat buffer of the file; ``read`` returns its bytes."""

    dtype: np.dtype
    numel: int
    read: Callable[[], bytes]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return self.numel * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, eq=False)
class TensorRef:
    """A tensor that has not been read yet."""

    storage: Storage
    dtype: np.dtype
    offset: int  # in elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements

    def numpy(self) -> np.ndarray:
        """Read the tensor: a contiguous array of its own."""
        flat = np.frombuffer(self.storage.read(), self.dtype)
        byte_strides = [s * self.dtype.itemsize for s in self.strides]
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, byte_strides, writeable=False)
        return view.copy()


def is_size(value: Any) -> bool:
    """Whether the value is a non-negative whole number."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


@dataclasses.dataclass(frozen=True)
class _Global:
    """A permitted name: what calling it does, or the number type it stands for."""

    call: Callable[..., Any] | None = None
    number: np.dtype | None = None

    @property
    def dtype(self) -> np.dtype:
        if self.number is None:
            raise ValueError("a function used as a type")
        return self.number


class _NumpyType:
    """A NumPy number type under construction; only plain numbers are known."""

    def __init__(self, code: str) -> None:
        if code not in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1"):
            raise ValueError(f"NumPy type {code!r}")
        self.code = code
        self.order = "<"


def _rebuild_tensor(
    storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *rest: Any
) -> TensorRef:
    """rest: requires_grad, hooks and metadata, of no concern here; PyTorch's version 3 adds the type of the view."""
    dtype = next((item.dtype for item in rest if isinstance(item, _Global)), storage.dtype)
    numel = storage.nbytes // dtype.itemsize
    sizes_ok = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)
    if not sizes_ok or not all(map(is_size, (offset, *shape, *strides))):
        raise ValueError("tensor geometry")
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if count else 0
    if count > numel or last >= max(numel, 1) or (count and offset >= numel):
        raise ValueError(f"tensor of shape {shape} reaches beyond its storage of {numel} elements")
    return TensorRef(storage, dtype, offset if count else 0, shape, strides)


def _rebuild_parameter(data: TensorRef, *rest: Any) -> TensorRef:
    if not isinstance(data, TensorRef):
        raise ValueError("parameter without a tensor")
    return data


def _numpy_scalar(kind: _NumpyType, data: bytes) -> Any:
    return np.frombuffer(data, kind.order + kind.code, count=1)[0].item()


def _mapping(items: Any = ()) -> dict[Any, Any]:
    pairs = list(items.items() if isinstance(items, dict) else items)
    return dict(zip(_keys([k for k, _ in pairs]), [v for _, v in pairs], strict=True))


def _keys(values: list[Any]) -> list[Any]:
    """Only plain values may be keys: hashing a tuple nested a million deep would end the process."""
    if not all(value is None or isinstance(value, (str, bytes, int, float)) for value in values):
        raise ValueError("a container used as a key")
    return values


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"encoding {encoding!r}")
    return text.encode("latin1")


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": lambda *factory: {},
    "torch.Size": lambda sizes: tuple(sizes),
    "torch.device": lambda kind, *index: kind,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "_codecs.encode": _encode,
    "numpy.dtype": lambda code, *_: _NumpyType(code),
    **{f"{module}.{name}": call for module in ("builtins", "__builtin__")
       for name, call in (("set", lambda items=(): set(_keys(list(items)))), ("dict", _mapping), ("list", list))},
    **{f"{module}.scalar": _numpy_scalar for module in ("numpy.core.multiarray", "numpy._core.multiarray")},
}  # fmt: skip
_ALLOWED: dict[str, _Global] = {
    **{name: _Global(call) for name, call in _CALLS.items()},
    **{f"torch.{name}": _Global(number=dtype) for name, dtype in {**DTYPES, **STORAGES}.items()},
    "torch.storage.UntypedStorage": _Global(number=STORAGES["UntypedStorage"]),
}

_MARK = object()
_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_FIXED_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Machine:
    """Interprets pickles of one file."""

    def __init__(self, path: Path, storage: Callable[[tuple[Any, ...]], Storage]) -> None:
        """``storage`` resolves a reference to a buffer of the file; ``path`` is named in errors."""
        self._path = path
        self._storage = storage

    def run(self, stream: BinaryIO | io.BytesIO) -> Any:
        """Interpret one pickle and return the object it describes.

        Raises:
          UserError: the pickle is damaged or asks for something that is not data.
        """
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "STOP":
                    (result,) = self._pop(len(self._stack))
                    return result
                self._step(opcode.name, argument)
            raise ValueError("no end")
        except MALFORMED as error:
            raise UserError(f"{self._path}: truncated or damaged ({error}); fetch the file again") from error

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self._memo[int(argument)])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self._global(argument.replace(" ", ".", 1) if name == "GLOBAL" else ".".join(self._pop(2)))
        elif name in ("REDUCE", "NEWOBJ"):
            function, args = self._pop(2)
            if not isinstance(function, _Global) or not isinstance(args, tuple):
                raise ValueError("call of something that is not a function")
            if function.call is None:
                raise ValueError("a type used as a function")
            stack.append(function.call(*args))
        elif name == "BINPERSID":
            stack.append(self._reference(stack.pop()))
        elif name == "BUILD":
            self._build(stack.pop())
        elif name not in ("PROTO", "FRAME"):
            self._container(name)

    def _container(self, name: str) -> None:
        stack = self._stack
        if name in _FIXED_TUPLES:
            stack.append(tuple(self._pop(_FIXED_TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(self._pop_mark()))
        elif name == "LIST":
            stack.append(self._pop_mark())
        elif name == "DICT":
            items = self._pop_mark()
            stack.append(dict(zip(_keys(items[::2]), items[1::2], strict=True)))
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if name == "SETITEM" else self._pop_mark()
            self._top(dict).update(zip(_keys(items[::2]), items[1::2], strict=True))
        elif name in ("APPEND", "APPENDS"):
            items = self._pop(1) if name == "APPEND" else self._pop_mark()
            self._top(list).extend(items)
        elif name == "ADDITEMS":
            items = self._pop_mark()
            self._top(set).update(_keys(items))
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._pop_mark()
        else:
            raise UserError(f"{self._path}: refused, it uses the pickle instruction {name}, which no checkpoint needs")

    def _global(self, name: str) -> None:
        if name not in _ALLOWED:
            raise UserError(
                f"{self._path}: refused, it asks for {name!r}, which a checkpoint of weights does not need and which "
                "could run code; if you trust it, load it with PyTorch and save its state dict alone"
            )
        self._stack.append(_ALLOWED[name])

    def _reference(self, identity: Any) -> Storage:
        if not isinstance(identity, tuple) or not isinstance(identity[1], _Global):
            raise ValueError("unknown reference")
        return self._storage(identity)

    def _build(self, state: Any) -> None:
        """State of an object: the version notes of a state dict are dropped, a NumPy type takes its byte order."""
        target = self._stack[-1]
        if isinstance(target, _NumpyType):
            target.order = {"<": "<", ">": ">", "|": "|"}[state[1]]
        elif not isinstance(target, dict):
            raise ValueError("state for something that has none")

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise ValueError(f"{kind.__name__} expected")
        return self._stack[-1]

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise IndexError("stack")
        items = self._stack[-count:]
        del self._stack[-count:]
        if any(item is _MARK for item in items):
            raise ValueError("mark in the middle")
        return items

    def _pop_mark(self) -> list[Any]:
        position = len(self._stack) - 1
        while self._stack[position] is not _MARK:
            position -= 1
            if position < 0:
                raise IndexError("no mark")
        items = self._stack[position + 1 :]
        del self._stack[position:]
        return items
