"""Files of the user's world: text in any usual encoding, writing whole or not at all.

Every part of the program that reads text or writes a file does it here, so that a byte order mark or a full disk means
the same everywhere.
"""

from __future__ import annotations

import codecs
import contextlib
import difflib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dfine_jax.errors import UserError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CURES = {
    errno.ENOSPC: "free some space there, or choose another folder",
    errno.EDQUOT: "free some space there, or choose another folder",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "correct its permissions, or choose another",
    errno.EPERM: "correct its permissions, or choose another",
    errno.EFBIG: "files there may not become so large (ulimit -f); allow it, or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the name",
    errno.ENOTDIR: "a part of the path is a file; choose another",
    errno.EISDIR: "it is a folder; name a file",
    errno.EEXIST: "choose another name",
    errno.ELOOP: "a link there leads back to itself; remove it",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "the system has too many open files; close some programs",
    errno.ENOMEM: "free memory",
    errno.EBUSY: "another program holds it; close that program",
    errno.ENXIO: "the device is not there; check it",
    errno.ENODEV: "the device is not there; check it",
    errno.EIO: "the device fails; check it",
    errno.ESTALE: "the network folder is gone; mount it again",
    errno.ETXTBSY: "another program holds it; close that program",
}


def told(error: OSError, path: Path | str | None = None) -> UserError:
    """What the system refused, as one line with file, reason and cure.

    Args:
      path: the file, where the error does not name it.
    """
    place = path if path is not None else error.filename
    where = f"{os.fsdecode(place) if isinstance(place, bytes) else place}: " if place is not None else ""
    reason = error.strerror or str(error) or type(error).__name__
    cure = _CURES.get(error.errno or 0, "")
    return UserError(f"{where}{reason}" + (f"; {cure}" if cure else ""))


@contextlib.contextmanager
def telling(path: Path | str | None = None) -> Iterator[None]:
    """OSErrors of the block become the UserError of ``told``."""
    try:
        yield
    except OSError as error:
        raise told(error, path) from error


def read_text(path: Path | str) -> str:
    """Text of a file in UTF-8 with or without mark, UTF-16 or UTF-32, whatever the locale; lines end in ``\\n``.

    Raises:
      UserError: the file cannot be read, or is in no such encoding (the message names file and line).
    """
    path = Path(path)
    with telling(path):
        content = path.read_bytes()
    text = decode(content, path)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decode(content: bytes, path: Path | str) -> str:
    """The text in the bytes of a file; ``path`` is for the message. Errors as ``read_text``."""
    encoding, start = encoding_of(content)
    try:
        return content[start:].decode(encoding)
    except UnicodeDecodeError as error:
        before = content[start : start + error.start]
        line = before.count("\n".encode(encoding)) + 1
        raise UserError(
            f"{path}, line {line}: byte {content[start + error.start]:#04x} is not {encoding.upper()} text; save the "
            "file as UTF-8"
        ) from None


def utf8(content: bytes, path: Path | str) -> bytes:
    """The text in the bytes of a file as UTF-8 without mark, for parsers that take bytes; UTF-8 is not looked through.

    Raises:
      UserError: another encoding that turns out to be wrong.
    """
    encoding, start = encoding_of(content)
    if encoding == "utf-8":
        return content[start:] if start else content
    return decode(content, path).encode()


def encoding_of(content: bytes) -> tuple[str, int]:
    """Encoding of a text by its mark, or by where its first characters have zero bytes; and where the text starts."""
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return encoding, len(mark)
    if len(content) >= 2 and len(content) % 2 == 0:
        # The files read here start with ASCII: a brace, a digit, a word.
        if content[0] == 0 != content[1]:
            return "utf-16-be", 0
        if content[1] == 0 != content[0]:
            return "utf-16-le", 0
    return "utf-8", 0


def read_json(path: Path | str) -> Any:
    """Content of a JSON file.

    Raises:
      UserError: the file cannot be read or is not JSON (the message names file, line and column).
    """
    try:
        return json.loads(read_text(path), object_pairs_hook=distinct_keys)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error.msg}: line {error.lineno}, column {error.colno})") from None
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]}") from None
    except RecursionError:
        raise UserError(f"{path} is not usable JSON (nested too deeply)") from None


def distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file, for ``object_pairs_hook``.

    Raises:
      KeyError: it has a key twice, of which Python's decoder would drop the first without a word.
    """
    out = dict(pairs)
    if len(out) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for position, key in enumerate(keys) if key in keys[:position])
        raise KeyError(f"an object has the key {twice!r} twice; keep one of the two")
    return out


def write_whole(path: Path | str, content: str | bytes, *, durable: bool = True) -> None:
    """Write a file so that a reader, a full disk or a power cut sees the whole new content or the old file.

    Text is stored as UTF-8. Missing folders are made.

    Args:
      durable: wait until the content would survive a power cut; of many small files that is most of the time.

    Raises:
      UserError: the system refuses (full disk, read-only folder, name too long); nothing is left behind.
    """
    with replacing(path, durable=durable) as stream, telling(path):
        stream.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path | str, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """A stream whose content becomes the file at the end of the block, as ``write_whole`` does it.

    When the block raises, nothing is left and the old file stays. Devices and pipes are written to as they are; of a
    link the file that it leads to is replaced.
    """
    through = is_device(path)  # asked of the name as given: the pipe behind /dev/stdout has none
    path = Path(os.path.realpath(path)) if os.path.islink(path) and not through else Path(path)
    with telling(path):
        if through:
            opened: Any = open(path, "wb")
            part = None
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".part-{secrets.token_hex(8)}")
            opened = open(part, "x+b")
    try:
        yield opened
        with telling(path):
            opened.flush()
            if part is not None:
                if durable:
                    os.fsync(opened.fileno())
                _take_mode(part, path)
            opened.close()
            if part is not None:
                os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):  # of what is thrown away
            opened.close()
        if part is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
    if durable and part is not None:
        sync_folder(path.parent)


def is_device(path: Path | str) -> bool:
    """Whether something is there that is written to as it is: a device, a pipe, ``/dev/stdout`` into one."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # nothing is there; what is wrong with the name is told when it is used
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def require_writable(folder: Path | str) -> None:
    """Before hours of work: that files can be made in a folder, or in the nearest one above it that exists.

    Raises:
      UserError: they cannot.
    """
    place = Path(os.path.abspath(folder))
    with telling(folder):
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
        with tempfile.TemporaryFile(dir=place):
            pass


def is_of_the_users_world(error: OSError) -> bool:
    """Whether an error of the system has a cause that the user can cure, and not the program's own mistake."""
    return error.errno in _CURES


def _take_mode(part: Path, path: Path) -> None:
    """Permissions of the file that is replaced, where there is one and the file system has such permissions."""
    with contextlib.suppress(OSError):
        shutil.copymode(path, part)


def sync_file(path: Path | str) -> None:
    """Make the content of a file survive a power cut."""
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows syncs what can be written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path | str) -> None:
    """Make all files and names below a folder, and its own, survive a power cut."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync_file(os.path.join(place, name))
        sync_folder(place)


def sync_folder(folder: Path | str) -> None:
    """Make the names in a folder survive a power cut, where the system can do that."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):  # some network file systems know no such thing
        sync_file(folder)


def sha256(path: Path | str | os.PathLike[str]) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replaced_path(path: Path) -> Path:
    """Where the folder stands that is being replaced: hidden, so that it cannot be one of the user's."""
    return path.with_name(f".{path.name}.replaced")


def nearby(path: Path) -> Path | None:
    """What lies beside a path that does not exist and has nearly its name, for suggestions."""
    try:
        beside = sorted(os.listdir(path.parent))
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.75)
    return path.parent / near[0] if near else None
