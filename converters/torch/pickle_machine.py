"""The part of the pickle language that builds data: numbers, strings, containers and tensors.

A pickle is a program for a small stack machine, and PyTorch checkpoints are pickles. This interpreter knows only the
instructions that build values and a short list of names; everything else is refused, nothing is imported or called.
"""

from __future__ import annotations

import io
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from dfine_jax.converters.torch.pickle_values import (
    ALLOWED,
    Attributes,
    Global,
    NumpyType,
    SetAside,
    Storage,
    TensorRef,
    keys,
)
from dfine_jax.errors import UserError

MALFORMED = (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, EOFError, struct.error)

_TIMES_FILE = 64  # memory that a program may ask for, as a multiple of the size of its file
_FREE_BYTES = 16 << 20  # whatever the size

_MARK = object()
_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_FIXED_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


# Bytes that things take in memory, about; a set has room for its first entries from the start.
_OBJECT, _SET, _ENTRY, _SLOT, _TENSOR = 64, 216, 104, 10, 640
_COSTS = {"EMPTY_SET": _SET, "EMPTY_DICT": _OBJECT, "EMPTY_LIST": _OBJECT, "MEMOIZE": _ENTRY, "BINPERSID": _TENSOR}
_COSTS |= dict.fromkeys(("BINPUT", "LONG_BINPUT", "PUT"), _ENTRY)


class Machine:
    """Interprets pickles of one file, within memory that is a multiple of the file's size."""

    def __init__(self, path: Path, storage: Callable[[tuple[Any, ...]], Storage]) -> None:
        """``storage`` resolves a reference to a buffer of the file; ``path`` is named in errors."""
        self._path = path
        self._storage = storage
        self._budget = _TIMES_FILE * path.stat().st_size + _FREE_BYTES

    def run(self, stream: BinaryIO | io.BytesIO) -> Any:
        """Interpret one pickle and return the object it describes.

        Raises:
          UserError: the pickle is damaged, asks for something that is not data, or for much more memory than its size.
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
        except (*MALFORMED, MemoryError) as error:
            raise UserError(f"{self._path}: truncated or damaged ({error}); fetch the file again") from error

    def _charge(self, count: int) -> None:
        self._budget -= count
        if self._budget < 0:
            raise UserError(
                f"{self._path}: refused, its pickle builds more than {_TIMES_FILE} times what the file holds, which no "
                "checkpoint does and which would fill the memory"
            )

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        self._charge(_COSTS.get(name, _SLOT))
        if name in _LITERALS:
            self._charge(_OBJECT + (len(argument) if isinstance(argument, (str, bytes)) else 0))
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
            self._call(*self._pop(2))
        elif name == "BINPERSID":
            stack.append(self._reference(stack.pop()))
        elif name == "BUILD":
            self._build(stack.pop())
        elif name not in ("PROTO", "FRAME"):
            self._container(name)

    def _call(self, function: Any, args: Any) -> None:
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise ValueError("call of something that is not a function")
        if function.call is None:
            raise ValueError("a type used as a function")
        # Every function copies at most what it is given, once.
        sizes = (len(arg) * _ENTRY for arg in args if isinstance(arg, (list, tuple, dict, set)))
        texts = (len(arg) for arg in args if isinstance(arg, (str, bytes)))
        self._charge(_SET + sum(sizes) + sum(texts))
        result = function.call(*args)
        if isinstance(result, TensorRef):
            self._charge(_TENSOR)
        self._stack.append(result)

    def _container(self, name: str) -> None:
        stack = self._stack
        if name in _FIXED_TUPLES:
            self._charge(_OBJECT)
            stack.append(tuple(self._pop(_FIXED_TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(self._items(_SLOT)))
        elif name == "LIST":
            stack.append(self._items(_SLOT))
        elif name == "DICT":
            items = self._items(_ENTRY)
            stack.append(dict(zip(keys(items[::2]), items[1::2], strict=True)))
        elif name in ("SETITEM", "SETITEMS"):
            items = self._items(_ENTRY, 2 if name == "SETITEM" else None)
            self._top(dict).update(zip(keys(items[::2]), items[1::2], strict=True))
        elif name in ("APPEND", "APPENDS"):
            items = self._items(_SLOT, 1 if name == "APPEND" else None)
            self._top(list).extend(items)
        elif name == "ADDITEMS":
            items = self._items(_ENTRY)
            self._top(set).update(keys(items))
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._pop_mark()
        else:
            raise UserError(f"{self._path}: refused, it uses the pickle instruction {name}, which no checkpoint needs")

    def _global(self, name: str) -> None:
        if name not in ALLOWED:
            raise UserError(f"{self._path}: refused, {_what_asks_for(name)}; {_ALONE}")
        self._stack.append(ALLOWED[name])

    def _reference(self, identity: Any) -> Storage:
        if not isinstance(identity, tuple) or not isinstance(identity[1], Global):
            raise ValueError("unknown reference")
        return self._storage(identity)

    def _build(self, state: Any) -> None:
        """State of an object: dropped, except the byte order of a NumPy type, and the values of a namespace."""
        target = self._stack[-1]
        if isinstance(target, Attributes):
            self._charge(_ENTRY * len(state))
            target.update({name: value for name, value in state.items() if isinstance(name, str)})
        elif isinstance(target, NumpyType):
            target.order = {"<": "<", ">": ">", "|": "|"}[state[1]]
        elif not isinstance(target, (dict, SetAside)):
            raise ValueError("state for something that has none")

    def _items(self, cost: int, count: int | None = None) -> list[Any]:
        """Values from the stack for a container, ``count`` of them or those above the mark."""
        items = self._pop_mark() if count is None else self._pop(count)
        self._charge(_OBJECT + cost * len(items))
        return items

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


_ALONE = "if you trust it, load it with PyTorch where it was made and save its state dict alone: " \
    "torch.save(model.state_dict(), FILE)"  # fmt: skip


def _what_asks_for(name: str) -> str:
    """What kind of file asks for a name that is not data."""
    if name.startswith(("ultralytics.", "models.yolo.", "models.common.", "yolov")):
        return f"it is a YOLO model stored whole, which needs code to be built ({name!r}), and none that is known here"
    if (
        name.startswith(("torch.nn.", "torchvision.", "transformers.", "timm."))
        or name.rpartition(".")[2][:1].isupper()
    ):
        return f"it is not a state dict: it holds a whole object of class {name!r}, which would have to run code"
    return f"it asks for {name!r}, which a checkpoint of weights does not need and which could run code"
