"""What a file of weights is, by its first bytes: the ending of its name says little."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Literal

from dfine_jax.errors import UserError
from dfine_jax.system.files import told

LEGACY_START = b"\x80\x02\x8a\x0a"  # of the stream of pickles that PyTorch wrote before 1.6
_STATE_DICT = "save a state dict instead: torch.save(model.state_dict(), FILE)"
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "it is a pointer of Git LFS, not the file it stands for: run git lfs pull"),
    (b"<", "it is a web page or XML, probably in place of a download: fetch the file again"),
    (b"\x89HDF", "it is an HDF5 file (Keras): D-FINE is published for PyTorch only"),
    (b"\x1f\x8b", "it is compressed with gzip: unpack it"),
    (b"7z\xbc\xaf", "it is a 7z archive: unpack it"),
    (b"Rar!", "it is a RAR archive: unpack it"),
    (b"\x93NUMPY", "it is a NumPy array"),
    (b"ftrt", "it is a TensorRT engine: rename it to .engine beside its description, or give the weights"),
    (b"GGUF", "it is a GGUF file, a format of language models"),
)


def kind_of(path: Path) -> Literal["zip", "legacy", "safetensors"]:
    """How the tensors of a file are stored.

    Raises:
      UserError: the file is missing or in no form that can be read; the message says what it is.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a PyTorch checkpoint (.pth) or a .safetensors file") from None
    except OSError as error:
        raise told(error, path) from error
    if start.startswith(b"PK"):
        return "zip"
    if start.startswith(LEGACY_START):
        return "legacy"
    if _is_safetensors(path, start):
        return "safetensors"
    raise UserError(f"{path}: not a PyTorch checkpoint or safetensors file: {_what(path, start)}")


def _is_safetensors(path: Path, start: bytes) -> bool:
    """A length, then JSON; a damaged file keeps its name's promise, so that the message is about that."""
    if len(start) > 9 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < 1 << 32:
        return True
    return path.suffix == ".safetensors" and not any(start.startswith(mark) for mark, _ in _OTHERS)


def _what(path: Path, start: bytes) -> str:
    for mark, text in _OTHERS:
        if start.startswith(mark):
            return text
    if not start:
        return "it is empty: fetch the file again"
    if start[4:8] == b"TFL3":
        return "it is a TensorFlow Lite model"
    if path.suffix == ".onnx" or (start[0] == 0x08 and start[1:2] < b"\x20" and start[2:3] == b"\x12"):
        return (
            "it is an ONNX model: one that dfine export wrote is run as FILE.onnx; others cannot be converted, give "
            "the checkpoint they were made from"
        )
    if start[0] == 0x80:
        return f"it is a pickle that PyTorch did not write; {_STATE_DICT}"
    return f"it starts with {start[:16]!r}: an interrupted or redirected download is the usual cause, fetch it again"


def program_entry(path: Path, archive: zipfile.ZipFile) -> str:
    """Name of the entry of a PyTorch archive that holds its structure.

    Raises:
      UserError: the archive is something else; the message says what.
    """
    names = archive.namelist()
    found = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    ends = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in ends:
        raise UserError(
            f"{path}: a TorchScript program (torch.jit.save), whose weights come with code; where it was made, "
            f"{_STATE_DICT}"
        )
    if len(found) == 1:
        return found[0]
    if "archive_format" in ends or "serialized_exported_program.json" in ends:
        what = f"a program of torch.export, whose weights come with code; where it was made, {_STATE_DICT}"
    elif any(name.endswith(".mlmodel") for name in names):
        what = "a Core ML model; give the checkpoint it was made from"
    elif any(name.endswith((".pth", ".pt", ".safetensors")) for name in names):
        what = "a zip archive with weights inside; unpack it"
    elif any(name.endswith(".npy") for name in names):
        what = "a NumPy archive (.npz), not a PyTorch checkpoint"
    else:
        what = f"a zip file but not a PyTorch checkpoint ({len(found)} entries named data.pkl)"
    raise UserError(f"{path}: {what}")
