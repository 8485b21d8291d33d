"""What a pickle of a checkpoint may build: tensors that are not read yet, containers, and values that are left alone.

Names outside ``ALLOWED`` and ``SET_ASIDE`` are refused by ``pickle_machine``; nothing here imports or runs what a file
names.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

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

_MOST_AXES = 32
_LONGEST_AXIS = 1 << 40


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """A flat buffer of the file; ``read`` returns its bytes."""

    dtype: np.dtype
    numel: int
    read: Callable[[], bytes]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return self.numel * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class TensorRef:
    """A tensor that has not been read yet."""

    storage: Storage
    dtype: np.dtype
    offset: int  # in elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements

    @property
    def nbytes(self) -> int:
        """Size of the array that ``numpy`` makes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def numpy(self, content: bytes | None = None) -> np.ndarray:
        """Read the tensor: a contiguous array of its own.

        Args:
          content: bytes of the storage, where they have been read already.
        """
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        content = self.storage.read() if content is None else content
        flat = np.frombuffer(content, self.dtype, len(content) // self.dtype.itemsize)
        byte_strides = [s * self.dtype.itemsize for s in self.strides]
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, byte_strides, writeable=False)
        return view.copy()


@dataclasses.dataclass(frozen=True, slots=True)
class Global:
    """A permitted name: what calling it does, or the number type it stands for."""

    call: Callable[..., Any] | None = None
    number: np.dtype | None = None

    @property
    def dtype(self) -> np.dtype:
        """The number type."""
        if self.number is None:
            raise ValueError("a function used as a type")
        return self.number


class SetAside:
    """Stands for a value that weights do not need, such as a path among the settings of a run; it holds nothing."""


class Attributes(dict[str, Any]):
    """The values of an object that holds nothing else, such as the arguments of a run, by name."""


@dataclasses.dataclass
class NumpyType:
    """A plain NumPy number type under construction."""

    code: str  # as NumPy writes it, for example f8
    order: str = "<"


_NUMPY_CODES = frozenset("f8 f4 f2 i8 i4 i2 i1 u8 u4 u2 u1 b1".split())


def is_size(value: Any) -> bool:
    """Whether the value is a non-negative whole number."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def keys(values: list[Any]) -> list[Any]:
    """Only plain values and tuples of them may be keys: hashing a tuple nested a million deep would end the process."""
    if not all(_plain(value) or (isinstance(value, tuple) and all(map(_plain, value))) for value in values):
        raise ValueError("a nested container used as a key")
    return values


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, bytes, int, float, SetAside))


def _rebuild_tensor(
    storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *rest: Any
) -> TensorRef:
    """rest: requires_grad, hooks and metadata, of no concern here; PyTorch's version 3 adds the type of the view."""
    dtype = next((item.dtype for item in rest if isinstance(item, Global)), storage.dtype)
    numel = storage.nbytes // dtype.itemsize
    sizes_ok = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= _MOST_AXES
    if not sizes_ok or not all(map(is_size, (offset, *shape, *strides))):
        raise ValueError("tensor geometry")
    if math.prod(max(side, 1) for side in shape) > _LONGEST_AXIS:
        raise ValueError(f"tensor of shape {shape}")
    count = math.prod(shape)
    strides = tuple(s if n > 1 and count else 0 for n, s in zip(shape, strides, strict=True))  # the others say nothing
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if count and (count > numel or last >= numel):
        raise ValueError(f"tensor of shape {shape} reaches beyond its storage of {numel} elements")
    return TensorRef(storage, dtype, offset if count else 0, shape, strides)


def _rebuild_parameter(data: TensorRef, *rest: Any) -> TensorRef:
    if not isinstance(data, TensorRef):
        raise ValueError("parameter without a tensor")
    return data


def _numpy_type(code: str, *_: Any) -> NumpyType | SetAside:
    return NumpyType(code) if code in _NUMPY_CODES else SetAside()


def _numpy_scalar(kind: NumpyType | SetAside, data: Any) -> Any:
    if isinstance(kind, SetAside):
        return kind
    return np.frombuffer(data, kind.order + kind.code, count=1)[0].item()


def _entries(values: Any = ()) -> list[Any]:
    """Entries of a container. A text is none: taken apart it would fill many times the memory that it takes."""
    if not isinstance(values, (list, tuple, dict, set)):
        raise ValueError("a container made of something that is none")
    return list(values)


def _set(items: Any = ()) -> set[Any]:
    return set(keys(_entries(items)))


def _mapping(items: Any = ()) -> dict[Any, Any]:
    pairs = list(items.items()) if isinstance(items, dict) else _entries(items)
    return dict(zip(keys([k for k, _ in pairs]), [v for _, v in pairs], strict=True))


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"encoding {encoding!r}")
    return text.encode("latin1")


def _set_aside(*_: Any) -> SetAside:
    return SetAside()


def _attributes(*_: Any) -> Attributes:
    """Empty; what the object has follows as its state."""
    return Attributes()


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": lambda *factory: {},
    "argparse.Namespace": _attributes,
    "types.SimpleNamespace": _attributes,
    "torch.Size": lambda sizes: tuple(_entries(sizes)),
    "torch.device": lambda kind, *index: kind,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "_codecs.encode": _encode,
    "numpy.dtype": _numpy_type,
    **{f"{module}.{name}": call for module in ("builtins", "__builtin__")
       for name, call in (("set", _set), ("dict", _mapping), ("list", _entries))},
    **{f"{module}.scalar": _numpy_scalar for module in ("numpy.core.multiarray", "numpy._core.multiarray")},
    **{f"{module}.parsing.AttributeDict": _mapping
       for module in ("pytorch_lightning.utilities", "lightning.pytorch.utilities", "lightning.fabric.utilities")},
    "lightning.fabric.utilities.data.AttributeDict": _mapping,
    "lightning_fabric.utilities.data.AttributeDict": _mapping,
}  # fmt: skip

# Plain data beside the weights: settings, paths, times, arrays of results. It is dropped, whatever it holds.
SET_ASIDE = frozenset(
    ("datetime.datetime", "datetime.date", "datetime.timedelta")
    + tuple(f"pathlib.{name}" for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"))
    + tuple(f"pathlib._local.{name}" for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"))
    + ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray")
)
ALLOWED: dict[str, Global] = {
    **{name: Global(call) for name, call in _CALLS.items()},
    **{name: Global(_set_aside) for name in SET_ASIDE},
    **{f"torch.{name}": Global(number=dtype) for name, dtype in {**DTYPES, **STORAGES}.items()},
    "torch.storage.UntypedStorage": Global(number=STORAGES["UntypedStorage"]),
}
