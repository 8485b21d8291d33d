"""Tensors from files: PyTorch's, safetensors, whole or in parts, alone or with an index."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from dfine_jax.converters.torch import torch_pickle
from dfine_jax.converters.torch.file_kinds import kind_of
from dfine_jax.converters.torch.pickle_values import TensorRef
from dfine_jax.converters.torch.state_dicts import Selected, select_state_dict
from dfine_jax.errors import UserError
from dfine_jax.families.family import Anchor
from dfine_jax.system.files import read_json, telling

DESCRIPTION = "dfine_jax"  # entry of a file, beside its tensors, with what this library knows of them

# Tensors of one file may share data (tied weights), but not over and over.
_TIMES_FILE = 8
_FREE_BYTES = 16 << 20

_SAFETENSORS_DTYPES = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16), "I64": np.dtype(np.int64), "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16), "I8": np.dtype(np.int8), "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_),
}  # fmt: skip

# Files that transformers writes, by preference.
_FOLDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def read_tensors(path: Path, anchors: Sequence[Anchor] | None = None) -> Selected[np.ndarray]:
    """The state dict of a file, found as ``select_state_dict`` does; the content decides what the file is.

    Raises:
      UserError: the file is missing, damaged or of another kind, or holds no weights.
    """
    if kind_of(path) == "safetensors":
        return _named(path, read_safetensors(path), anchors)._replace(description=_remark(path))
    with torch_pickle.opened(path) as content:
        try:
            selected = select_state_dict(content, TensorRef, anchors)
            most = _TIMES_FILE * path.stat().st_size + _FREE_BYTES
            arrays = torch_pickle.materialise(selected.tensors, most)
        except UserError as error:
            raise _with_name(path, error) from error
    beside = {str(key): value for key, value in content.items()} if isinstance(content, Mapping) else {}
    beside = {key: value for key, value in beside.items() if not isinstance(value, TensorRef)}
    description = beside.get(DESCRIPTION)
    description = description if isinstance(description, str) else ""
    return Selected(arrays, selected.place, selected.averaged, selected.others, description, beside)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a ``.safetensors`` file.

    Raises:
      UserError: the file is missing or damaged, or uses a number type without NumPy counterpart.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with telling(path):
        content = path.read_bytes()
    try:
        entries = safetensors.deserialize(content)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: truncated or damaged ({error}); fetch the file again") from error
    out = {}
    for name, entry in entries:
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise UserError(f"{path}: {name} has the number type {entry['dtype']}, which is not supported")
        out[name] = np.frombuffer(entry["data"], _SAFETENSORS_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return out


def _remark(path: Path) -> str:
    """The description in the header of a whole ``.safetensors`` file."""
    with telling(path), path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header.get("__metadata__", {}).get(DESCRIPTION, "")


def weights_file(folder: Path) -> Path:
    """The file of a transformers folder that holds the weights, or the index of those that do.

    Raises:
      UserError: there is none.
    """
    for name in _FOLDER:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: no weights there; expected one of {', '.join(_FOLDER)}")


def read_folder_tensors(folder: Path) -> Selected[np.ndarray]:
    """The state dict of a folder that transformers wrote.

    Raises:
      UserError: a file is missing or damaged.
    """
    file = weights_file(folder)
    if not file.name.endswith(".index.json"):
        return read_tensors(file)
    index = read_json(file)
    places = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(places, Mapping) or not all(isinstance(part, str) for part in places.values()):
        raise UserError(f"{file}: no weight_map that says which file holds which tensor")
    found: dict[str, np.ndarray] = {}
    for part in dict.fromkeys(places.values()):
        if Path(part).name != part or part in (".", ".."):
            raise UserError(f"{file}: {part!r} is not a file of this folder")
        names = {name for name, where in places.items() if where == part}
        tensors = _part(folder / part)
        if missing := sorted(names - tensors.keys()):
            raise UserError(f"{folder / part}: {missing[0]} is missing, which {file.name} promises")
        found.update((name, tensors[name]) for name in names)
    return _named(file, {name: found[name] for name in places}, None)


def _part(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    with torch_pickle.opened(path) as content:
        if not isinstance(content, Mapping) or not all(isinstance(value, TensorRef) for value in content.values()):
            raise UserError(f"{path}: not a part of a state dict")
        most = _TIMES_FILE * path.stat().st_size + _FREE_BYTES
        return torch_pickle.materialise({str(name): value for name, value in content.items()}, most)


def _named(path: Path, tensors: dict[str, np.ndarray], anchors: Sequence[Anchor] | None) -> Selected[np.ndarray]:
    try:
        return select_state_dict(tensors, np.ndarray, anchors)
    except UserError as error:
        raise _with_name(path, error) from error


def _with_name(path: Path, error: UserError) -> UserError:
    return error if str(path) in str(error) else UserError(f"{path}: {error}")
