"""Read and write PyTorch checkpoints (``.pth``) without PyTorch and without executing what they contain.

Tensors stay references until asked for: optimiser states of training checkpoints are never read from disk.
Formats read: the zip archive of ``torch.save`` (PyTorch 1.6 and later) and the older stream of pickles.
Format written: the zip archive, accepted by ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dfine_jax.converters.torch.file_kinds import kind_of, program_entry
from dfine_jax.converters.torch.pickle_machine import MALFORMED, Machine
from dfine_jax.converters.torch.pickle_values import STORAGES, Storage, TensorRef, is_size
from dfine_jax.errors import UserError
from dfine_jax.system.files import write_whole

_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of the old format
_STORAGE_NAMES = {dtype: name for name, dtype in STORAGES.items() if name != "UntypedStorage"}


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """Content of a checkpoint: plain containers, numbers and strings, with tensors as :class:`TensorRef`.

    The references can be read until the context ends.

    Raises:
      UserError: the file is missing, truncated, damaged, of another format, or asks for anything but data.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "safetensors":
        raise UserError(f"{path}: a safetensors file, not a PyTorch checkpoint")
    with path.open("rb") as file:
        if kind == "legacy":
            yield _read_legacy(path, file)
        else:
            with _zip_archive(path, file) as archive:
                yield _read_zip(path, archive)


def materialise(tensors: Mapping[str, TensorRef], most_bytes: int | None = None) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict; a storage that several share is read once.

    Raises:
      UserError: together they take more than ``most_bytes``.
    """
    total = sum(tensor.nbytes for tensor in tensors.values())
    if most_bytes is not None and total > most_bytes:
        raise UserError(f"refused, its {len(tensors)} tensors repeat the same data and would take {total:,} bytes")
    of_storage: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        of_storage.setdefault(id(tensor.storage), []).append(name)
    found: dict[str, np.ndarray] = {}
    for names in of_storage.values():
        content = tensors[names[0]].storage.read() if any(tensors[name].nbytes for name in names) else b""
        found.update((name, tensors[name].numpy(content)) for name in names)
    return {name: found[name] for name in tensors}


def save(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write nested mappings and lists of arrays and plain values, ``{"model": state_dict}``, as ``torch.save`` would.

    Keys are texts and whole numbers.

    The file appears under its name only when complete, and equal content gives equal bytes.

    Raises:
      UserError: the file cannot be written.
      TypeError: a leaf is no text, whole number or truth value and not an array of a number type PyTorch has.
    """
    arrays: list[np.ndarray] = []
    program = b"\x80\x02" + _emit(content, arrays) + b"."
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        entries = {"data.pkl": program, "byteorder": b"little"}
        entries.update({f"data/{i}": array.tobytes() for i, array in enumerate(arrays)})
        for name, data in {**entries, "version": b"3\n"}.items():
            archive.writestr(zipfile.ZipInfo(f"{Path(path).stem}/{name}"), data)
    write_whole(path, whole.getvalue())


def _emit(value: Any, arrays: list[np.ndarray]) -> bytes:
    """Pickle instructions (protocol 2) that rebuild the value; tensors refer to entries ``data/<index>``."""
    if isinstance(value, Mapping):
        items = b"".join(_emit(key, arrays) + _emit(item, arrays) for key, item in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(_emit(item, arrays) for item in value) + b"e"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return _number(value)
    array = np.asarray(value)
    if array.dtype not in _STORAGE_NAMES:
        raise TypeError(f"cannot be written to a PyTorch file: {type(value).__name__} of type {array.dtype}")
    strides = [s // array.itemsize for s in np.ascontiguousarray(array).reshape(array.shape).strides]
    arrays.append(array)
    storage = b"(" + _text("storage") + b"ctorch\n%s\n" % _STORAGE_NAMES[array.dtype].encode()
    storage += _text(str(len(arrays) - 1)) + _text("cpu") + _number(array.size) + b"tQ"
    geometry = _number(0) + b"(" + b"".join(map(_number, array.shape)) + b"t"
    geometry += b"(" + b"".join(map(_number, strides)) + b"t"
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + geometry + b"\x89" + hooks + b"tR"


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(data)]) + data


@contextlib.contextmanager
def _zip_archive(path: Path, file: BinaryIO) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, *MALFORMED) as error:
        raise UserError(f"{path}: truncated or damaged ({error}); fetch the file again") from error
    with archive:
        yield archive


def _read_entry(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        info = archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:  # torch.save never compresses; a decompression bomb does
            raise UserError(f"{path}: entry {name} is compressed; save the checkpoint again with torch.save")
        return archive.read(info)
    except KeyError as error:
        raise UserError(f"{path}: damaged, entry {name} is missing; fetch the file again") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, *MALFORMED) as error:
        raise UserError(f"{path}: damaged entry {name} ({error}); fetch the file again") from error


def _read_zip(path: Path, archive: zipfile.ZipFile) -> Any:
    program = program_entry(path, archive)
    prefix = program[: -len("data.pkl")]
    order = f"{prefix}byteorder"
    if order in archive.namelist() and _read_entry(path, archive, order).strip() != b"little":
        raise UserError(f"{path}: saved on a big-endian machine; save it again on a little-endian one")
    storages: dict[str, Storage] = {}

    def storage(identity: tuple[Any, ...]) -> Storage:
        kind, named, key, _, numel = identity
        if kind != "storage" or not isinstance(key, str) or "/" in key or not is_size(numel):
            raise ValueError("reference to something that is not a storage")
        found = storages.setdefault(key, Storage(named.dtype, numel, lambda: contents(key)))
        if (found.dtype, found.numel) != (named.dtype, numel):
            raise ValueError(f"storage {key} is declared twice")
        return found

    def contents(key: str) -> bytes:
        data, expected = _read_entry(path, archive, f"{prefix}data/{key}"), storages[key].nbytes
        if len(data) != expected:
            raise UserError(f"{path}: damaged, storage {key} holds {len(data)} bytes instead of {expected}")
        return data

    return Machine(path, storage).run(io.BytesIO(_read_entry(path, archive, program)))


def _read_legacy(path: Path, file: BinaryIO) -> Any:
    storages: dict[str, Storage] = {}
    places: dict[str, int] = {}

    def storage(identity: tuple[Any, ...]) -> Storage:
        kind, named, key, _, numel, view = identity
        if kind != "storage" or not isinstance(key, str) or not is_size(numel) or view is not None:
            raise ValueError("reference to something that is not a storage")
        return storages.setdefault(key, Storage(named.dtype, numel, lambda: contents(key)))

    def contents(key: str) -> bytes:
        if key not in places:
            raise UserError(f"{path}: damaged, storage {key} is missing; fetch the file again")
        file.seek(places[key])
        count, data = file.read(8), file.read(storages[key].nbytes)
        if count != struct.pack("<q", storages[key].numel) or len(data) != storages[key].nbytes:
            raise UserError(f"{path}: truncated or damaged at storage {key}; fetch the file again")
        return data

    machine = Machine(path, storage)
    magic, _, system = machine.run(file), machine.run(file), machine.run(file)
    if magic != _MAGIC or not (isinstance(system, dict) and system.get("little_endian") is True):
        raise UserError(f"{path}: an old PyTorch file from an unknown system; save it again with a current PyTorch")
    tree, keys = machine.run(file), machine.run(file)
    if not isinstance(keys, list) or any(not isinstance(key, str) or key not in storages for key in keys):
        raise UserError(f"{path}: damaged list of storages; fetch the file again")
    position = file.tell()
    for key in keys:  # an element count, then the elements, storage after storage
        places[key] = position
        position += 8 + storages[key].nbytes
    return tree
