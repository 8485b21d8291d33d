"""The columns of annotation files, kept beside the other caches and mapped into memory when they are needed again.

An entry is found by path, size, time of change and inode of the annotation file. The time of change (not that of
modification) cannot be set, so a file that was edited, replaced or restored is noticed; where it says nothing (the
file is as young as its entry, or on another system), or anything else differs, the SHA-256 of the content decides.

An entry is read once through its checksum before it is believed: a disk that failed or filled up must not change boxes.
Entries are replaced and removed, never changed in place, so that processes that have one mapped keep it whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import mmap
import os
import re
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from dfine_jax.data.load.shared import SharedArrays, aligned, share
from dfine_jax.data.read.annotations import Decoded, decode
from dfine_jax.data.read.dataset import Classes
from dfine_jax.data.read.names import folder_columns
from dfine_jax.data.read.records import Usable, find_usable
from dfine_jax.errors import UserError
from dfine_jax.system.cache import cache_dir
from dfine_jax.system.files import encoding_of, replacing, telling, utf8, write_whole

logger = logging.getLogger(__name__)

WORTH_BYTES = 1 << 22  # smaller files are decoded faster than an entry is looked up
_MAPPED_BYTES = 1 << 28  # from here on a file is mapped instead of read
_FORMAT = 4  # of the entries, and of the rules by which files become columns: raise it with either
_SETTLED_NS = 3 * 10**9  # a file changed so shortly before it was read may have been changed again in the same tick
_MAGIC = b"dfine-columns\n"
_TAIL_BYTES = 16 + len(_MAGIC)  # length of the description, checksum of all before, mark
_READ_BYTES = 1 << 18  # stays in the processor's cache until its checksum is taken


class Columns(NamedTuple):
    """``annotations.Decoded``, its arrays in memory that loader processes share, and what follows from them.

    The arrays are also those of ``names.folder_columns``, and ``kept`` of ``usable``.
    """

    shared: SharedArrays
    classes: Classes
    notes: dict[str, Any]

    @property
    def usable(self) -> Usable | None:
        """The usable annotations; None where they depend on pictures, because the file lacks sizes."""
        kept = self.shared.arrays.get("kept")
        return None if kept is None else Usable(kept, *self.notes["usable"])


def read_columns(file: Path) -> Columns:
    """Columns of an annotation file, from the cache if it was read before.

    A cache that cannot be read or written is done without.

    Raises:
      UserError: as ``annotations.decode``; or the file cannot be read.
    """
    if not file.is_file():
        raise UserError(f"annotation file {file} does not exist")
    with telling(file):
        state = os.stat(file)
    folder = _folder() if state.st_size >= WORTH_BYTES else None
    if folder is None:
        with file_content(file) as text:
            return _in_memory(_completed(decode(text, file)))
    note = folder / f"{_slug(file)}.json"
    entry = _noted(note, state.st_size)
    if entry is not None and _is_same(entry, state) and (found := _mapped(folder / entry["columns"])):
        return found
    with file_content(file) as text:
        digest = hashlib.sha256(text).hexdigest()
        name = f"{_slug(file)}-{digest[:16]}.columns"
        found = _mapped(folder / name) if entry is not None and entry["columns"] == name else None
        if found is None:
            found = _store(_completed(decode(text, file)), folder / name)
    if _unchanged(file, state):
        _keep_note(note, {"columns": name, **_identity(state)}, entry)
    return found


def _folder() -> Path | None:
    try:
        return cache_dir() / "annotations"
    except (RuntimeError, UserError):  # nobody's home
        return None


def _slug(file: Path) -> str:
    """Name of the entry of a path: readable, and one path's only."""
    path = os.path.realpath(file)
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(Path(path).parts[-2:]))[-60:]
    return f"{readable}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"


@contextlib.contextmanager
def file_content(file: Path) -> Iterator[Any]:
    """Bytes of a file in UTF-8; a large one is mapped, so that the system may take its pages back."""
    with telling(file), file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        content: Any
        plain = encoding_of(stream.read(4)) == ("utf-8", 0)
        stream.seek(0)
        if not plain:
            content = utf8(stream.read(), file)
        elif size < _MAPPED_BYTES:
            memory = np.empty(size, np.uint8).data  # in pages of megabytes, where the system has them
            content = memory[: stream.readinto(memory)]  # type: ignore[attr-defined] - of files opened as binary
        else:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)  # goes with the last view of it
    yield content  # errors of what is done with it are not the file's


def _identity(state: os.stat_result) -> dict[str, int]:
    return {
        "size": state.st_size,
        "mtime_ns": state.st_mtime_ns,
        "ctime_ns": state.st_ctime_ns,
        "inode": state.st_ino,
        "device": state.st_dev,
    }


def _is_same(entry: dict[str, Any], state: os.stat_result) -> bool:
    """Whether the file can only be the one that was read."""
    settled = entry.get("read_ns", 0) - state.st_ctime_ns > _SETTLED_NS
    return os.name == "posix" and settled and all(entry.get(k) == v for k, v in _identity(state).items())


def _unchanged(file: Path, state: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        return _identity(os.stat(file)) == _identity(state)
    return False


def _noted(note: Path, size: int) -> dict[str, Any] | None:
    """The entry of a path; None where there is none of such a file."""
    try:
        entry = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return None
    usable = isinstance(entry, dict) and entry.get("format") == _FORMAT and entry.get("size") == size
    return entry if usable and isinstance(entry.get("columns"), str) and Path(entry["columns"]).name else None


def _keep_note(note: Path, values: dict[str, Any], before: dict[str, Any] | None) -> None:
    import time

    values |= {"format": _FORMAT, "read_ns": time.time_ns()}
    with contextlib.suppress(UserError):
        write_whole(note, json.dumps(values), durable=False)
        for old in note.parent.glob(f"{note.stem}-*.columns"):
            if old.name != values["columns"]:
                with contextlib.suppress(OSError):
                    old.unlink()  # processes that have it mapped keep it


def _completed(decoded: Decoded) -> Decoded:
    """With what can be said of the columns once and for all, so that the next start does not look at each."""
    arrays, notes = decoded.arrays | folder_columns(decoded.arrays), decoded.notes
    if arrays["size_px"].all():
        usable = find_usable(arrays, arrays["size_px"])
        arrays["kept"] = usable.kept
        notes = notes | {"usable": [usable.crowd, usable.degenerate, usable.clamped]}
    return Decoded(arrays, decoded.classes, notes)


def _in_memory(decoded: Decoded) -> Columns:
    return Columns(share(decoded.arrays), decoded.classes, decoded.notes)


def _store(decoded: Decoded, path: Path) -> Columns:
    """Write an entry and map it; the columns in memory alone where that is refused."""
    arrays = decoded.arrays
    places = [(name, array.shape, array.dtype.str) for name, array in arrays.items()]
    about = {
        "places": places,
        "categories": list(zip(decoded.classes.ids, decoded.classes.names, strict=True)),
        "notes": decoded.notes,
    }
    try:
        with replacing(path, durable=False) as stream, telling(path):  # the checksum finds what a power cut leaves
            checksum = 0
            text = json.dumps(about).encode()
            parts = ((np.ascontiguousarray(a).reshape(-1).view(np.uint8).data, a.nbytes) for a in arrays.values())
            padded = ((part, bytes(aligned(size) - size)) for part, size in parts)
            for part in itertools.chain(itertools.chain.from_iterable(padded), [text]):
                stream.write(part)
                checksum = zlib.crc32(part, checksum)
            stream.write(len(text).to_bytes(8, "little") + checksum.to_bytes(8, "little") + _MAGIC)
    except UserError as error:
        logger.info("annotations are not kept for the next start: %s", error)
        return _in_memory(decoded)
    return _mapped(path, known=True) or _in_memory(decoded)


def _mapped(path: Path, *, known: bool = False) -> Columns | None:
    """A stored entry; None where it is missing, not whole or (unless it is known, being new) damaged."""
    try:
        stream = path.open("rb")
    except OSError:
        return None
    try:
        size = os.fstat(stream.fileno()).st_size
        content = size - _TAIL_BYTES
        stream.seek(max(0, content))
        ending = stream.read()
        length = int.from_bytes(ending[:8], "little")
        if ending[16:] != _MAGIC or length > content:
            raise ValueError("not whole")
        if not known and _checksum(stream, content) != int.from_bytes(ending[8:16], "little"):
            raise ValueError("damaged")
        stream.seek(content - length)
        about = json.loads(stream.read(length))
        places = tuple((name, tuple(shape), dtype) for name, shape, dtype in about["places"])
        used = sum(
            aligned(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize) for _, shape, dtype in places
        )
        if used != content - length:
            raise ValueError("not whole")
        shared = SharedArrays(stream.fileno(), places)
    except (OSError, ValueError, KeyError, TypeError):
        stream.close()
        return None
    weakref.finalize(shared, stream.close)
    classes = Classes(tuple(name for _, name in about["categories"]), tuple(i for i, _ in about["categories"]))
    return Columns(shared, classes, about["notes"])


def _checksum(stream: IO[bytes], size: int) -> int:
    """CRC-32 of so many bytes from the start; through a buffer, which a mapping's pages would not share."""
    stream.seek(0)
    buffer = memoryview(bytearray(_READ_BYTES))
    checksum = 0
    while size:
        count = stream.readinto(buffer[: min(size, len(buffer))])  # type: ignore[attr-defined] - of files opened as binary
        if not count:
            raise ValueError("not whole")
        checksum, size = zlib.crc32(buffer[:count], checksum), size - count
    return checksum
