"""Which pictures a YOLO description names: folders, lists of paths, and paths that were true on another machine."""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dfine_jax.data.picture.images import EXTENSIONS
from dfine_jax.data.read.notes import Notes
from dfine_jax.data.read.picture_files import pictures_below
from dfine_jax.errors import RepairableError, UserError
from dfine_jax.system.files import read_text


class Place(NamedTuple):
    """Where the paths of a description may start from."""

    description: Path
    base: Path  # of the key 'path', else the folder of the description


def find_pictures(place: Place, entry: list[str], notes: Notes) -> list[Path]:
    """Pictures of a split in the order of the entry, each once, by absolute path.

    Args:
      place: the description.
      entry: folders, lists of paths and single pictures, as the description writes them.
      notes: takes what is left out.

    Raises:
      UserError: a folder, a list or a listed picture that does not exist (with file and line), or two names that lead
        to the same picture only because folders of their paths are missing.
    """
    out: dict[Path, str] = {}
    for name in entry:
        target = _resolve(place, name, notes)
        if target.is_dir():
            for path in pictures_below(target, notes):
                _take(out, path.absolute(), str(path), f"{target}", notes)
        elif target.suffix.lower() in EXTENSIONS:
            _take(out, target.absolute(), name, f"{place.description}", notes)
        else:
            for path, written, where in _listed(target, place, notes):
                _take(out, path, written, where, notes)
    return list(out)


def _take(out: dict[Path, str], path: Path, written: str, where: str, notes: Notes) -> None:
    before = out.get(path)
    if before is None:
        out[path] = written
    elif _one_ends_the_other(_parts(before), _parts(written)):
        notes.add("pictures named twice; they are read once", f"{where}: {written}")
    else:
        notes.refuse(
            f"{where}: {written} and {before} would both be {path}; pictures of equal names in several folders are "
            "different pictures: restore the folders, or correct the paths"
        )


def _parts(written: str) -> list[str]:
    return [part for part in PurePosixPath(written.replace("\\", "/")).parts if part not in ("/", ".", "..")]


def _one_ends_the_other(a: list[str], b: list[str]) -> bool:
    shorter = min(len(a), len(b))
    return a[len(a) - shorter :] == b[len(b) - shorter :]


def _listed(file: Path, place: Place, notes: Notes) -> Iterator[tuple[Path, str, str]]:
    """(absolute path, as written, list file and line) of the pictures in a list."""
    starts = list(dict.fromkeys((file.parent, place.base, place.description.parent)))
    if is_table := file.suffix.lower() == ".csv":  # of dfine-seg: names of pictures in its folder, and columns beside
        starts.insert(0, file.parent / "images")
    absent = []
    count = 0
    lines = [line.strip() for line in read_text(file).split("\n")]
    for number, written in enumerate(lines, 1):
        if not written or written.startswith("#"):
            continue
        written = next(csv.reader([written]))[0].strip() if is_table else written
        count += 1
        where = f"{file}, line {number}"
        found = find_path(written, starts, notes, where)
        if found is None:
            absent.append(f"{where}: {written}")
        elif found.is_dir():
            notes.refuse(f"{where}: {written} is a folder; a list names pictures, data.yaml names folders")
        else:
            yield found.absolute(), written, where
    if absent and not notes.lenient:
        refusal = UserError if len(absent) == count else RepairableError  # which would leave no picture
        raise refusal(
            f"{file}: {len(absent)} of {count} listed pictures do not exist (first: {absent[0]}); looked for it from "
            f"{' and '.join(map(str, starts))}, with and without its leading folders: correct the list, or restore the "
            "files"
        )
    for missing in absent:
        notes.add("listed pictures that do not exist were left out", missing)


def find_path(written: str, starts: list[Path], notes: Notes, where: str) -> Path | None:
    """The file or folder of a path that may have been written on another machine.

    It is tried as it is, then from each of the starts, then without more and more of its leading folders, which is
    noted with ``where``.
    """
    plain = PurePosixPath(written.replace("\\", "/"))
    for name in dict.fromkeys((Path(written), Path(plain))):
        if name.is_absolute() and os.path.exists(name):  # not Path.exists, which fails for long names
            return name
    if not plain.is_absolute() and not _has_drive(plain):
        for start in starts:
            for candidate in spellings([start / plain]):
                if os.path.exists(candidate):
                    return candidate
    parts = _parts(written)
    for skipped in range(len(parts)):
        for start in starts:
            for candidate in spellings([start.joinpath(*parts[skipped:])]):
                if not os.path.exists(candidate):
                    continue
                if skipped:
                    notes.add("paths were found without their leading folders", f"{where}: {written} is {candidate}")
                return candidate
    return None


def _has_drive(path: PurePosixPath) -> bool:
    return bool(path.parts) and len(path.parts[0]) == 2 and path.parts[0][1] == ":"


def _resolve(place: Place, name: str, notes: Notes) -> Path:
    starts = list(dict.fromkeys((place.base, place.description.parent)))
    found = find_path(name, starts, notes, str(place.description))
    if found is None:
        written = place.base / name
        raise UserError(f"{place.description}: {written} does not exist; correct the path there")
    return found


def spellings(paths: Iterable[Path]) -> Iterator[Path]:
    """Each path, and with its letters with accents composed and decomposed: systems store them in two ways."""
    for path in paths:
        yield path
        if not path.name.isascii():
            yield from (path.with_name(unicodedata.normalize(form, path.name)) for form in ("NFC", "NFD"))
