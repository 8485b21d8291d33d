"""Where the pictures of an annotation file lie: folders are listed once, not each file asked for."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from dfine_jax.data.values import REPAIR
from dfine_jax.errors import UserError
from dfine_jax.files import telling


class Places:
    """Paths by file name: the folder that each leading part of a name stands for, and the files called otherwise.

    Args:
      folders: path of the folder, by what comes before the last slash of the names.
      spelled: paths of files whose names are spelled in another way (``unicodedata.normalize``) on the disk, by name.
    """

    def __init__(self, folders: Mapping[str, str], spelled: Mapping[str, str]) -> None:
        self._folders, self._spelled = dict(folders), dict(spelled)

    @property
    def are_apart(self) -> bool:
        """Whether different names surely mean different files."""
        paths = {os.path.realpath(folder) for folder in self._folders.values()}
        return len(paths) == len(self._folders) and not self._spelled

    def path(self, name: str) -> Path:
        """Where the picture of this name is."""
        name = name.replace("\\", "/")
        if name in self._spelled:
            return Path(self._spelled[name])
        head, _, tail = name.rpartition("/")
        return Path(self._folders[head], tail)


class _Listings:
    """Names in folders, read when first asked for."""

    def __init__(self) -> None:
        self._exact: dict[str, frozenset[str]] = {}
        self._composed: dict[str, dict[str, str]] = {}

    def of(self, folder: str) -> frozenset[str]:
        if folder not in self._exact:
            with telling(folder):
                there = os.path.isdir(folder)
                self._exact[folder] = frozenset(entry.name for entry in os.scandir(folder)) if there else frozenset()
        return self._exact[folder]

    def spelled(self, folder: str, name: str) -> str | None:
        """The name as the folder has it, where letters with accents may be composed or decomposed."""
        if folder not in self._composed:
            self._composed[folder] = {_composed(other): other for other in sorted(self.of(folder))}
        return self._composed[folder].get(_composed(name))


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def find_pictures(names: Sequence[str], image_dir: Path, source: Path) -> Places:
    """The pictures that an annotation file names.

    Names may have leading folders that are not there, as exports write them, and backslashes. As many as are missing are
    left out of all names alike: one folder never stands for another.

    Raises:
      UserError: some pictures are not there, or two names mean the same one.
    """
    if not image_dir.is_dir():
        raise UserError(f"image folder {image_dir} does not exist")
    listings = _Listings()
    plain = [name.replace("\\", "/") for name in names]
    deepest = max((name.count("/") for name in plain), default=0)
    best: tuple[Places, list[int]] | None = None
    for left_out in range(deepest + 1):
        places, absent = _located(plain, image_dir, left_out, listings)
        if best is None or len(absent) < len(best[1]):
            best = places, absent
        if not absent:
            break
    assert best is not None
    places, absent = best
    if absent:
        raise UserError(
            f"{len(absent)} of {len(names)} images of {source} are not in {image_dir} "
            f"(first: {names[absent[0]]}); copy them there or remove them from the file ({REPAIR} does)"
        )
    _check_distinct(plain, names, places, source)
    return places


def _located(
    names: Sequence[str], image_dir: Path, left_out: int, listings: _Listings
) -> tuple[Places, list[int]]:
    """Places with so many leading folders left out, and the positions of names that are not there."""
    folders: dict[str, str] = {}
    spelled: dict[str, str] = {}
    contents: dict[str, frozenset[str]] = {}
    absent = []
    for position, name in enumerate(names):
        head, _, tail = name.rpartition("/")
        if head not in folders:
            folders[head] = _folder(image_dir, head, name.startswith("/"), left_out, listings)
            contents[head] = listings.of(folders[head])
        if tail in contents[head]:
            continue
        found = listings.spelled(folders[head], tail)
        if found is None:
            absent.append(position)
        else:
            spelled[name] = os.path.join(folders[head], found)
    return Places(folders, spelled), absent


def _folder(image_dir: Path, head: str, from_root: bool, left_out: int, listings: _Listings) -> str:
    """Path of the folder that the leading part of a name means; it need not exist."""
    parts = [part for part in head.split("/") if part not in ("", ".")]
    if from_root and not left_out:
        return os.path.join("/", *parts)
    folder = str(image_dir)
    for part in parts[max(0, left_out - from_root) :]:
        if part != ".." and part not in listings.of(folder):
            part = listings.spelled(folder, part) or part
        folder = os.path.join(folder, part)
    return folder


def _check_distinct(plain: Sequence[str], names: Sequence[str], places: Places, source: Path) -> None:
    """Each picture is one entry's: annotations of two cameras would end up on the picture of one."""
    if len(set(plain)) == len(plain) and places.are_apart:
        return
    seen: dict[str, int] = {}
    for position, name in enumerate(plain):
        path = os.path.normpath(places.path(name))
        before = seen.setdefault(path, position)
        if before != position:
            told = (
                f"list {names[position]} twice"
                if names[before] == names[position]
                else f"mean one picture, {path}, by {names[before]} and {names[position]}"
            )
            raise UserError(
                f"{source}: images number {before} and {position} {told}; "
                "list each picture once, or put the pictures into the folders that the file names"
            )

