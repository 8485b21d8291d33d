"""Searching folders of the user's world: hidden folders and links mean the same to every part of the program."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from dfine_jax.errors import UserError
from dfine_jax.system.files import telling

_PATTERN, _DIGITS = re.compile(r"[*?\[]"), re.compile(r"(\d+)")

# Folders that tools leave beside the user's files; whatever starts with a dot is left out as well.
HOUSEKEEPING = frozenset(
    ("__MACOSX", "__pycache__", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
)


class Found(NamedTuple):
    """What a search of a folder gave."""

    files: list[Path]  # sorted, below the folder as it was named
    left_out: tuple[str, ...]  # hidden and housekeeping folders and files that hold what was searched for, below it
    repeated: tuple[str, ...]  # folders that a link leads to a second time
    dangling: tuple[str, ...] = ()  # links with a searched ending that lead nowhere

    def note(self) -> str:
        """What was left out, in one line; empty when nothing was."""
        parts = []
        if self.left_out:
            parts.append(f"{len(self.left_out)} in hidden or housekeeping folders left out (first: {self.left_out[0]})")
        if self.repeated:
            parts.append(f"{len(self.repeated)} folders that links repeat read once (first: {self.repeated[0]})")
        if self.dangling:
            parts.append(f"{len(self.dangling)} links that lead nowhere left out (first: {self.dangling[0]})")
        return ", ".join(parts)


def find_files(root: Path | str, endings: Collection[str]) -> Found:
    """Files below a folder with one of the endings (lower case, with the dot), links to folders followed.

    Hidden files and folders (a leading dot) and those of operating systems and tools are left out and told; each real
    folder is read once, so that a link to a parent ends. The folder itself may have any name.

    Raises:
      UserError: a folder cannot be read.
    """
    root = Path(root)
    files: list[Path] = []
    left_out: list[str] = []
    repeated: list[str] = []
    dangling: list[str] = []
    # A link to a folder above the searched one would bring its siblings, such as another split.
    seen = {_identity(folder) for folder in (root, *root.resolve().parents)}
    pending = [(root, False)]
    while pending:
        folder, hidden = pending.pop()
        with telling(folder):
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        for entry in entries:
            path = folder / entry.name
            out = hidden or is_housekeeping(entry.name)
            if entry.is_dir():
                identity = _identity(path)
                if identity in seen:
                    repeated.append(path.relative_to(root).as_posix())
                else:
                    seen.add(identity)
                    pending.append((path, out))
            elif path.suffix.lower() in endings:
                if not entry.is_file():
                    if entry.is_symlink() and not out:
                        dangling.append(path.relative_to(root).as_posix())
                elif out:
                    left_out.append(path.relative_to(root).as_posix())
                else:
                    files.append(path)
    return Found(sorted(files), tuple(sorted(left_out)), tuple(sorted(repeated)), tuple(sorted(dangling)))


def files_like(pattern: str) -> tuple[Path, list[Path]] | None:
    """(folder before the first placeholder, files like it in ``natural`` order); None where there is no placeholder.

    Raises:
      UserError: no file is like it.
    """
    if not _PATTERN.search(pattern):
        return None
    pattern = os.path.expanduser(pattern)
    files = [Path(file) for file in glob.glob(pattern, recursive=True) if os.path.isfile(file)]
    if not files:
        raise UserError(f"no file is like {pattern}; check the pattern (folders below: **)")
    parts = Path(pattern).parts[:-1]
    first = next((i for i, part in enumerate(parts) if _PATTERN.search(part)), len(parts))
    return Path(*parts[:first]), sorted(files, key=natural)


def natural(path: Path) -> list[list[tuple[int, int | str]]]:
    """Sorts paths by their parts, numbers in them by their value: ``frame_10`` after ``frame_9``."""
    return [
        [(0, int(piece)) if piece.isdecimal() else (1, piece) for piece in _DIGITS.split(part.lower()) if piece]
        for part in path.parts
    ]


def is_housekeeping(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or a tool's own."""
    return name.startswith(".") or name in HOUSEKEEPING


def _identity(folder: Path) -> tuple[int, int] | str:
    found = folder.stat()
    return (found.st_dev, found.st_ino) if found.st_ino else os.path.realpath(folder)
