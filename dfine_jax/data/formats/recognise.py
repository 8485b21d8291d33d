"""Which annotation tool a folder or file comes from, and its content as COCO, split by split."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfine_jax.data.formats import cvat, labelme, labelstudio, via, voc
from dfine_jax.data.formats.finder import Finder, is_general
from dfine_jax.data.formats.parsing import read_xml
from dfine_jax.data.formats.picture import Picture, content
from dfine_jax.data.read.dataset import listed
from dfine_jax.data.read.notes import Notes
from dfine_jax.errors import UserError
from dfine_jax.system.files import read_json, read_text
from dfine_jax.system.search import find_files

WHOLE = "all"  # the only split of a dataset that has none
READERS = (voc, cvat, labelme, via, labelstudio)
TITLES = tuple(reader.TITLE for reader in READERS)
COCO = "COCO JSON"
_ENDINGS = tuple(sorted({ending for reader in READERS for ending in reader.ENDINGS}))
_SAMPLED = 3  # files of a folder with the same ending that are looked into
_MOST_SAMPLED = 60
_BESIDE = ("annotations", "labels", "Annotations")  # folders whose pictures lie beside, not in them


@dataclasses.dataclass(frozen=True)
class Located:
    """A recognised dataset."""

    title: str  # of the format
    data: Path  # as given, folder or file
    root: Path  # folder that holds annotations and pictures
    files: tuple[Path, ...]  # annotation files
    unreadable: tuple[str, ...] = ()  # what keeps others from being read, which may be annotation files as well


def locate(data: Path) -> Located | None:
    """The format of a folder or of an annotation file; None when none is recognised.

    COCO JSON counts where it lies in no layout that ``layout.locate`` knows: under any name, in any folder.

    Raises:
      UserError: the folder holds several formats, or none and files that cannot be read, or the file is of none.
    """
    if data.is_file():
        title = _title(data)
        if title is None:
            raise UserError(
                f"{data} is of no known format; known are {COCO}, {', '.join(TITLES)}, and YOLO's data.yaml"
            )
        root = data.absolute().parent
        return Located(title, data, root.parent if root.name in _BESIDE else root, (data,))
    found = find_files(data, _ENDINGS).files
    first: dict[str, Path] = {}
    unreadable: list[str] = []
    for file in _sample(found):
        try:
            title = _title(file)
        except UserError as error:
            unreadable.append(str(error))
            continue
        if title is not None:
            first.setdefault(title, file)
    if not first and unreadable:
        raise UserError(
            f"no annotations recognised in {data}, where {len(unreadable)} files that may hold them cannot be read "
            f"(first: {unreadable[0]})"
        )
    if not first:
        return None
    if len(first) > 1:
        shown = " and ".join(f"{title} ({file.relative_to(data)})" for title, file in first.items())
        raise UserError(f"{data} holds {shown}; give a folder or file (--data) with one of them")
    (title,) = first
    endings = (".json",) if title == COCO else _reader(title).ENDINGS
    files = tuple(file for file in found if file.suffix.lower() in endings)
    if title != COCO and _reader(title) not in (via, cvat, labelstudio):
        return Located(title, data, data, files)  # whose files are looked at one by one
    own, damaged = [], []
    for file in files:
        try:
            own += [file] if _title(file) == title else []
        except UserError as error:
            damaged.append(str(error))
    return Located(title, data, data, tuple(own), tuple(damaged))


def _sample(files: Sequence[Path]) -> list[Path]:
    """The first few of each folder and ending."""
    counts: dict[tuple[Path, str], int] = {}
    out = []
    for file in files:
        key = (file.parent, file.suffix.lower())
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= _SAMPLED:
            out.append(file)
    return out[:_MOST_SAMPLED]


def _title(file: Path) -> str | None:
    ending = file.suffix.lower()
    if ending not in _ENDINGS:
        return None
    parsed: Any = {".xml": read_xml, ".json": read_json, ".csv": read_text}[ending](file)
    if isinstance(parsed, dict) and all(
        isinstance(parsed.get(key), list) for key in ("images", "annotations", "categories")
    ):
        return COCO
    return next((r.TITLE for r in READERS if ending in r.ENDINGS and r.recognises(parsed)), None)


def _reader(title: str) -> Any:
    return next(reader for reader in READERS if title == reader.TITLE)


def read(located: Located, notes: Notes) -> dict[str, dict[str, Any]]:
    """COCO content by split, of upright pictures; ``WHOLE`` is the only one of a dataset without splits.

    Classes are those of all splits, so that each has the same ids: in the order of the labels where the format has one,
    else by name.

    Raises:
      UserError: files that cannot be used, or pictures that do not exist.
    """
    for damaged in located.unreadable:
        notes.refuse(damaged)
    finder = Finder(located.root, notes)
    pictures, names = _reader(located.title).read(located.files, finder, notes)
    elsewhere = finder.check_found()
    pictures = [picture for picture in pictures if picture.where not in elsewhere]
    _note_others(pictures, finder, notes)
    used = {thing.name for picture in pictures for thing in picture.things}
    classes = [*(names or ()), *sorted(used - set(names or ()))]
    if not pictures:
        raise UserError(f"{located.root}: no annotated pictures ({located.title})")
    if not classes:
        raise UserError(f"{located.root}: no object has a class ({located.title})")
    pictures = _once(pictures, notes)
    splits: dict[str, list[Picture]] = {}
    for picture in sorted(pictures, key=lambda picture: picture.path):
        splits.setdefault(picture.split or finder.split_below(picture.path) or WHOLE, []).append(picture)
    if len(splits) > 1 and WHOLE in splits:
        for picture in splits.pop(WHOLE):
            notes.add("annotated pictures belong to no split; they are left out", picture.where)
    return {split: content(own, classes, notes) for split, own in splits.items()}


def _once(pictures: Sequence[Picture], notes: Notes) -> list[Picture]:
    """Pictures that one entry annotates; of several, one may be meant for a picture of the same name elsewhere."""
    places: dict[Path, list[Picture]] = {}
    for picture in pictures:
        places.setdefault(Path(os.path.abspath(picture.path)), []).append(picture)
    out = []
    for path, own in places.items():
        if len(own) > 1:
            notes.refuse(f"{own[1].where} and {own[0].where} both annotate {path}; remove one, or correct its name")
        else:
            out += own
    return out


def _note_others(pictures: Sequence[Picture], finder: Finder, notes: Notes) -> None:
    annotated = {picture.path.absolute() for picture in pictures}
    for path in finder.pictures():
        if path.absolute() not in annotated:
            notes.add("pictures are not annotated; they are left out", str(path))


def image_folder(file: Path, names: Sequence[str], root: Path) -> Path:
    """Where the pictures of a COCO JSON file in no known layout are: the folder that has the first of them.

    Leading folders of the names may be missing there, but no folder stands for another one.
    """
    near = [file.parent, file.parent / "images", root, root / "images"]
    parts = [Path(name.replace("\\", "/")).parts for name in names[:_SAMPLED]]
    for folder in dict.fromkeys([*near, *_nested(root / "images"), *_nested(root)]):
        may_miss = folder in near or is_general(folder.name)
        if parts and all(
            any(folder.joinpath(*p[i:]).is_file() for i in range(len(p) if may_miss else 1)) for p in parts
        ):
            return folder
    return file.parent


def _nested(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def by_split(located: Located) -> dict[str, Path]:
    """COCO JSON files by the split that their names speak of; ``WHOLE`` where they speak of none.

    Raises:
      UserError: several files for one split, or one that cannot be read.
    """
    if located.unreadable:
        raise UserError(f"{located.unreadable[0]}; or name the file to read: --data {located.files[0]}")
    out: dict[str, Path] = {}
    finder = Finder(located.root, Notes())
    single = len(located.files) == 1
    for file in located.files:
        split = WHOLE if single else finder.split_below(file, of_all=True) or WHOLE
        if split in out:
            names = listed([str(found) for found in located.files])
            raise UserError(f"{located.root} holds several COCO JSON files ({names}); name one: --data {file}")
        out[split] = file
    return out
