"""New dataset folders: pictures referred to, linked or copied; the folder is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from dfine_jax.errors import UserError
from dfine_jax.system.files import telling

Mode = Literal["refer", "link", "copy"]


def check_new(out: Path) -> None:
    """UserError when something is at the place of a new folder or file, other than an empty folder."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} exists; choose another name, nothing is overwritten")
    if out.is_dir():
        with telling(out):
            used = any(out.iterdir())
        if used:
            raise UserError(f"{out} is not empty; choose another name, nothing is overwritten")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name ``out`` at the end of the block; after an error nothing is left.

    It lies beside ``out``, so that relative paths are the same from both.

    Raises:
      UserError: ``out`` exists and is not empty, or the system refuses.
    """
    check_new(out)
    out = Path(os.path.abspath(out))
    with telling(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".part-{out.name[:40]}-", dir=out.parent))
    try:
        with telling():
            part.chmod(0o777 & ~_mask())
            yield part
            if out.is_dir():
                out.rmdir()
            os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class Placement:
    """Where the pictures of a new dataset are.

    Args:
      pictures: absolute paths by split.
      mode: refer to them where they are, link (relative symbolic links; copies where there are none) or copy them.
      flat: names without folders, different in all splits, for formats that know neither.
      stems: no two names of a split differ in their ending alone, for formats with a file for each picture.
      given: names of pictures, of those that are called otherwise than by their place below their common folder.
    """

    def __init__(
        self,
        pictures: Mapping[str, Sequence[Path]],
        mode: Mode,
        *,
        flat: bool = False,
        stems: bool = True,
        given: Mapping[Path, str] | None = None,
    ) -> None:
        self.mode: Mode = mode
        self._stems, self._given = stems, given or {}
        self.renamed: list[Path] = []
        self._names: dict[tuple[str, Path], PurePosixPath] = {}
        taken: set[str] = set()
        for split, own in pictures.items():
            self._name_all(split, own, taken if flat else set(), flat)

    def _name_all(self, split: str, own: Sequence[Path], taken: set[str], flat: bool) -> None:
        """A name for each, below their common folder unless it is given, different from those before it."""
        plain = [without_dots(path) for path in own]
        common = os.path.commonpath([path.parent for path in plain]) if own else ""
        for path, shown in zip(own, plain, strict=True):
            name = wanted = PurePosixPath(self._given.get(path) or shown.relative_to(common).as_posix())
            if flat:
                name = PurePosixPath("_".join(name.parts))
                if self._key(name) in taken:
                    name = PurePosixPath(f"{split}_{name}")
            base, count = name, 0
            while self._key(name) in taken:
                count += 1
                name = base.with_name(f"{base.stem}_{count}{base.suffix}")
            if name.name != wanted.name and "_".join(wanted.parts) != name.name:
                self.renamed.append(path)
            taken.add(self._key(name))
            self._names[split, path] = name

    def _key(self, name: PurePosixPath) -> str:
        """What no two names share."""
        return str(name.with_suffix("")).lower() if self._stems else str(name)

    def name(self, split: str, picture: Path) -> PurePosixPath:
        """Its name below the folder of pictures, when linked or copied; else what files about it may be called."""
        return self._names[split, picture]

    def put(self, split: str, picture: Path, folder: Path) -> str:
        """Put the picture below the folder, unless it is referred to; returns its path from there, with slashes."""
        if self.mode == "refer":
            return relative(picture, folder)
        name = self._names[split, picture]
        target = folder / name
        with telling(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if self.mode == "copy" or not _linked(target, relative(picture, target.parent)):
                shutil.copyfile(picture, target)
        return name.as_posix()


def _linked(target: Path, to: str) -> bool:
    """Whether a symbolic link was made: Windows asks for a right that few have, some file systems know none."""
    try:
        target.symlink_to(to)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def write_inside(path: Path, text: str) -> None:
    """Write a text file of a folder that is not there yet for others, so that only the folder needs to be whole."""
    with telling(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")


def without_dots(path: Path) -> Path:
    """The absolute path without ``..``, which may lead elsewhere behind a link and would lead out of a new folder."""
    return Path(_real(path)) if ".." in path.parts else path.absolute()


def relative(path: Path, folder: Path) -> str:
    """The path from a folder, with slashes; absolute where there is none (another drive)."""
    try:
        # Of the real places: links on the way would make .. lead elsewhere.
        return Path(os.path.relpath(_real(path), os.path.realpath(folder))).as_posix()
    except ValueError:
        return Path(path).absolute().as_posix()


def _real(path: Path) -> str:
    """The path with the links of its folders resolved, not a link that it is itself: its name may matter."""
    return os.path.join(os.path.realpath(path.parent), path.name)
