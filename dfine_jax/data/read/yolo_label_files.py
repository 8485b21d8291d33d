"""The label files of pictures, and those that lie where label files are but belong to no picture."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from dfine_jax.data.picture.images import EXTENSIONS
from dfine_jax.data.read.notes import Notes
from dfine_jax.data.read.yolo_pictures import spellings
from dfine_jax.errors import UserError
from dfine_jax.system.files import read_text
from dfine_jax.system.search import find_files

_OF_A_SPLIT = re.compile(r"(train|training|val|valid|validation|test|testing)\d*", re.IGNORECASE)


def label_candidates(picture: Path) -> list[Path]:
    """Where the labels of a picture may be, the usual place first: labels/ beside images/, or beside the picture."""
    out = []
    if (roots := _roots(picture)) is not None:
        images, labels = roots
        out.append(labels / picture.relative_to(images).with_suffix(".txt"))
    return [*out, picture.with_suffix(".txt")]


def _roots(picture: Path) -> tuple[Path, Path] | None:
    """The last folder ``images`` above a picture and the folder ``labels`` beside it; None without one."""
    parts = picture.parts
    if "images" not in parts[:-1]:
        return None
    last = len(parts) - 2 - parts[-2::-1].index("images")
    return Path(*parts[: last + 1]), Path(*parts[:last], "labels")


def label_files(pictures: list[Path], notes: Notes) -> dict[Path, Path]:
    """Label files by picture, of those that have one.

    Raises:
      UserError: two pictures share a file, such as a.jpg and a.png of one folder; or what has the name of a label file
        is no file, such as a link that leads nowhere.
    """
    out: dict[Path, Path] = {}
    owner: dict[Path, Path] = {}
    for picture in pictures:
        candidates = list(spellings(label_candidates(picture)))
        file = next((path for path in candidates if path.is_file()), None)
        if file is None:
            if broken := next((path for path in candidates if os.path.lexists(path)), None):
                what = "a link that leads nowhere" if broken.is_symlink() else "no file"
                notes.refuse(f"{broken}, the labels of {picture}, is {what}; restore the file, or remove that")
            continue
        if file in owner:
            notes.refuse(
                f"{owner[file]} and {picture} share the label file {file}; rename one picture and its "
                "labels, or remove it"
            )
            continue
        owner[file] = picture
        out[picture] = file
    return out


def note_labels_without_picture(pictures: Iterable[Path], labels: dict[Path, Path], notes: Notes) -> None:
    """Count the label files that no picture reads: below ``labels/``, and beside the used ones.

    Those whose picture exists but is not of this split are left to the others, and so are folders of other splits.

    Args:
      pictures: of the split.
      labels: files by picture, as ``label_files`` gives them.
      notes: takes the count.
    """
    used = {str(file) for file in labels.values()}
    as_written = {name.lower(): name for name in used}
    stems: dict[Path, set[str]] = {}
    for path, picture_folder in _label_files_around(pictures, labels):
        if str(path) in used:
            continue
        if picture_folder not in stems:
            stems[picture_folder] = _picture_stems(picture_folder) | _picture_stems(path.parent)
        if path.suffix == ".txt" and path.stem in stems[picture_folder]:
            continue
        other = as_written.get(str(path).lower())  # the same file, where the system does not tell cases apart
        if (other is None or not os.path.samefile(path, other)) and _looks_like_labels(path):
            notes.add("label files have no picture of their name; they are not used", str(path))


def _label_files_around(pictures: Iterable[Path], labels: dict[Path, Path]) -> Iterator[tuple[Path, Path]]:
    """(text file, folder where its picture would be), each once."""
    tops: dict[tuple[Path, Path], set[str]] = {}
    beside = {file.parent for picture, file in labels.items() if file.parent == picture.parent}
    for picture in pictures:
        if (roots := _roots(picture)) is not None:
            tops.setdefault(roots, set()).add(picture.relative_to(roots[0]).parts[0])
    for (images, below), own in tops.items():
        for path in find_files(below, (".txt",)).files if below.is_dir() else ():
            top, *rest = path.relative_to(below).parts
            if rest and top not in own and (_OF_A_SPLIT.fullmatch(top) or (images / top).is_dir()):
                continue
            yield path, images / path.relative_to(below).parent
    for folder in sorted(beside):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.is_file() and entry.name.lower().endswith(".txt"):
                yield folder / entry.name, folder


def _picture_stems(folder: Path) -> set[str]:
    entries = os.scandir(folder) if folder.is_dir() else ()
    return {Path(entry.name).stem for entry in entries if Path(entry.name).suffix.lower() in EXTENSIONS}


def _looks_like_labels(path: Path) -> bool:
    """Lists of pictures or classes and notices lie in the same folders."""
    try:
        words = read_text(path).split("\n", 1)[0].split()
    except UserError:
        return False
    return len(words) >= 5 and words[0].isdigit()
