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

        Leading folders of the name may be missing here. Of several pictures that fit, the one in the folder of the
        annotations or of the same split counts.

        Raises:
          UserError: several pictures fit equally well.
        """
        self._asked += 1
        plain = PurePosixPath(name.strip().replace("\\", "/"))
        direct = annotations.parent / plain
        if plain.name and os.path.isfile(direct):
            return direct
        parts = tuple(_composed(part) for part in plain.parts if part not in ("/", ".", ".."))
        candidates = self._of_split(self._by_name.get(parts[-1], []), annotations) if parts else []
        for skipped in range(len(parts)):
            tail = parts[skipped:]
            fitting = [file for file in candidates if self._ends(file, tail)]
            if fitting:
                return self._nearest(fitting, annotations, name, where)
        self._absent.append(f"{name} of {where}")
        return None

    def has(self, name: str) -> bool:
        """Whether a picture of this file name exists anywhere below the folder."""
        return _composed(name) in self._by_name

    def beside(self, annotations: Path) -> Path | None:
        """The picture with the stem of an annotation file; None when there is none or several are equally near."""
        fitting = self._of_split(self._by_stem.get(_composed(annotations.stem), []), annotations)
        near = self._narrowed(fitting, annotations)
        return near[0] if len(near) == 1 else None

    def check_found(self) -> None:
        """Raises UserError where names led nowhere, unless the notes are lenient."""
        if self._absent and not self._notes.lenient:
            raise RepairableError(
                f"{len(self._absent)} of {self._asked} annotated pictures are not below {self.root} (first: "
                f"{self._absent[0]}); copy them there, or remove their annotations"
            )
        for missing in self._absent:
            self._notes.add("annotated pictures that do not exist were left out", missing)
        self._absent = []

    def _ends(self, file: Path, tail: tuple[str, ...]) -> bool:
        parts = tuple(_composed(part) for part in file.relative_to(self.root).parts)
        return parts[len(parts) - len(tail) :] == tail if len(tail) <= len(parts) else False

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


class Tails:
    """Pictures of a folder by names whose leading folders may be missing there; folders are listed once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listings: dict[Path, dict[str, str]] = {}

    def find(self, name: str) -> Path | None:
        """The absolute path of the picture, with as many of its leading folders as there are; None without one."""
        parts = Path(name.replace("\\", "/")).parts
        for start in range(len(parts)):
            path = self._folder.joinpath(*parts[start:])
            found = self._listing(path.parent).get(_composed(path.name))
            if found is not None:
                return (path.parent / found).absolute()
        return None

    def _listing(self, folder: Path) -> dict[str, str]:
        if folder not in self._listings:
            entries = os.scandir(folder) if os.path.isdir(folder) else ()
            self._listings[folder] = {_composed(entry.name): entry.name for entry in entries if entry.is_file()}
        return self._listings[folder]


def _composed(text: str) -> str:
    """One spelling of letters with accents, which file systems and tools write in two."""
    return unicodedata.normalize("NFC", text)
