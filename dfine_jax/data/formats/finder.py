"""The picture files that annotations name, in whatever folder and spelling."""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from pathlib import Path, PurePosixPath

from dfine_jax.data.read.layout import FOLDERS
from dfine_jax.data.read.notes import Notes
from dfine_jax.data.read.picture_files import pictures_below
from dfine_jax.errors import RepairableError

_SPLIT_OF = {name: split for split, names in FOLDERS.items() for name in names} | {
    "training": "train",
    "testing": "test",
}
_GENERAL = ("images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "data")


def is_general(folder: str) -> bool:
    """Whether a folder of this name holds all pictures, or those of a split, rather than some of several groups."""
    return folder.lower() in _GENERAL or folder.lower() in _SPLIT_OF


def split_of(name: str, *, of_all: bool = False) -> str:
    """The split in a path such as ``annotations/train/a.xml``; empty when there is none.

    Args:
      name: the path below the dataset.
      of_all: the file has the annotations of all pictures, so that its name counts, too (``via_val.json``); of a file
        for each picture, train-01.xml may as well show a train.
    """
    path = PurePosixPath(name)
    for part in reversed(path.parts[:-1]):
        if part.lower() in _SPLIT_OF:
            return _SPLIT_OF[part.lower()]
    if not of_all:
        return ""
    words = re.split(r"[^A-Za-z]+", path.stem.lower())
    found = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
    return found.pop() if len(found) == 1 else ""


class Finder:
    """Pictures below a folder, found by the names that annotation files give them.

    Args:
      root: the folder.
      notes: takes the names that lead nowhere; where it is not lenient, ``check_found`` makes an error of them.
    """

    def __init__(self, root: Path, notes: Notes) -> None:
        self.root = root
        self._notes = notes
        self._absent: list[str] = []
        self._asked = 0
        self._is_foldered = False  # some picture was found in the folder that its name has
        self._flat: dict[str, str] = {}  # names found without it, by the place of their annotations

    @functools.cached_property
    def _files(self) -> list[Path]:
        return pictures_below(self.root, self._notes)

    @functools.cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        out: dict[str, list[Path]] = {}
        for file in self._files:
            out.setdefault(_composed(file.name), []).append(file)
        return out

    @functools.cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        out: dict[str, list[Path]] = {}
        for file in self._files:
            out.setdefault(_composed(file.stem), []).append(file)
        return out

    def pictures(self) -> list[Path]:
        """All pictures below the folder."""
        return self._files

    def find(self, name: str, annotations: Path, *, where: str) -> Path | None:
        """The picture of a name, beside its annotation file or anywhere below the folder; None, and noted, without one.

        Leading folders of the name may be missing here, but no other folder stands for them (``_is_in``), and
        the last one is missing in all names or in none (``check_found``). Of several pictures that fit, the one in the
        folder of the annotations or of the same split counts.

        Raises:
          UserError: several pictures fit equally well.
        """
        self._asked += 1
        plain = PurePosixPath(name.strip().replace("\\", "/"))
        direct = annotations.parent / plain
        if plain.name and os.path.isfile(direct):
            self._is_foldered |= plain.parent.name not in ("", "..")
            return direct
        candidates = self._of_split(self._by_name.get(_composed(plain.name), []), annotations)
        if fitting := self._below(_folders(plain), candidates, annotations, name, where):
            return self._nearest(fitting, annotations, name, where)
        self._absent.append(f"{name} of {where}")
        return None

    def has(self, name: str) -> bool:
        """Whether a picture of this file name exists anywhere below the folder."""
        return _composed(name) in self._by_name

    def beside(self, annotations: Path, name: str = "") -> Path | None:
        """The picture with the stem of an annotation file; None when there is none or several are equally near.

        Args:
          annotations: the file.
          name: of the picture as the file has it: its folders count as in ``find``, but not in the file's own folder.
        """
        fitting = self._of_split(self._by_stem.get(_composed(annotations.stem), []), annotations)
        near = self._narrowed(fitting, annotations)
        if len(near) == 1 and near[0].parent != annotations.parent:
            near = self._below(
                _folders(PurePosixPath(name.replace("\\", "/"))), near, annotations, name, str(annotations)
            )
        return near[0] if len(near) == 1 else None

    def check_found(self) -> frozenset[str]:
        """Places (``where``) whose pictures are not theirs after all: their names lost the folder that others kept.

        Raises:
          UserError: there are such, or names that led nowhere, unless the notes are lenient; then they are noted.
        """
        flat = self._flat if self._is_foldered else {}
        self._absent += [f"{name} of {where}" for where, name in flat.items()]
        if self._absent and not self._notes.lenient:
            raise RepairableError(
                f"{len(self._absent)} of {self._asked} annotated pictures are not below {self.root} (first: "
                f"{self._absent[0]}); copy them there, or remove their annotations"
            )
        for missing in self._absent:
            self._notes.add("annotated pictures that do not exist were left out", missing)
        self._absent = []
        return frozenset(flat)

    def _below(
        self, folders: tuple[str, ...], files: list[Path], annotations: Path, name: str, where: str
    ) -> list[Path]:
        """Those of the files that lie in as many of the folders of a name as there are here."""
        for skipped in range(len(folders) + 1):
            tail = folders[skipped:]
            fitting = [file for file in files if self._is_in(file, tail, annotations if skipped else None)]
            if fitting:
                if tail:
                    self._is_foldered = True
                elif folders:
                    self._flat[where] = name
                return fitting
        return []

    def _is_in(self, file: Path, tail: tuple[str, ...], annotations: Path | None) -> bool:
        """Whether a file lies in these folders; with ``annotations``, whose name has more: in none in their place.

        Then there are only folders on the way to the annotations before them, or such as hold all pictures. A file in
        another one may be another picture.
        """
        parts = tuple(_composed(part) for part in file.parent.relative_to(self.root).parts)
        if parts[len(parts) - len(tail) :] != tail or len(tail) > len(parts):
            return False
        if annotations is None:
            return True
        before = parts[: len(parts) - len(tail)]
        way = annotations.parent.relative_to(self.root).parts if annotations.is_relative_to(self.root) else ()
        shared = len(os.path.commonprefix([before, way]))
        return all(is_general(folder) for folder in before[shared:])

    def _nearest(self, fitting: list[Path], annotations: Path, name: str, where: str) -> Path | None:
        near = self._narrowed(fitting, annotations)
        if len(near) == 1:
            return near[0]
        self._notes.refuse(
            f"{where} names {name}, which may be {near[0]} or {near[1]}; write the folder in front of the name, or "
            "give the pictures different names"
        )
        return None

    def _of_split(self, files: list[Path], annotations: Path) -> list[Path]:
        """Those that are not of another split, or of another folder where pictures lie beside the annotations.

        There is a 1.png in each of them, and one that is lost must not be replaced by another.
        """
        folder, split = annotations.parent, self.split_below(annotations)
        if folder != self.root and folder in self._folders:
            return [file for file in files if file.is_relative_to(folder)]
        return [file for file in files if not split or self.split_below(file) in ("", split)]

    @functools.cached_property
    def _folders(self) -> set[Path]:
        """Folders with pictures of their own."""
        return {file.parent for file in self._files}

    def _narrowed(self, fitting: list[Path], annotations: Path) -> list[Path]:
        if len(fitting) < 2:
            return fitting
        same_folder = [file for file in fitting if file.parent == annotations.parent]
        if same_folder:
            return same_folder
        split = self.split_below(annotations)
        same_split = [file for file in fitting if split and self.split_below(file) == split]
        return same_split or fitting

    def split_below(self, file: Path, *, of_all: bool = False) -> str:
        """The split that the path of a file below the folder speaks of, as ``split_of``."""
        try:
            below = file.relative_to(self.root)
        except ValueError:
            below = Path(file.name)
        return split_of(below.as_posix() if ".." not in below.parts else file.name, of_all=of_all)


def _folders(name: PurePosixPath) -> tuple[str, ...]:
    """The folders in a name, without drive."""
    parts = [_composed(part) for part in name.parts[:-1] if part not in ("/", ".", "..")]
    return tuple(parts[1:] if parts and parts[0].endswith(":") else parts)


def _composed(text: str) -> str:
    """One spelling of letters with accents, which file systems and tools write in two."""
    return unicodedata.normalize("NFC", text)
