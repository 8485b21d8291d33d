"""Where the pictures of an annotation file lie: folders are listed once, not each file asked for."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dfine_jax.data.read.names import all_names, by_head, plain_names, tails_by_head
from dfine_jax.errors import RepairableError, UserError
from dfine_jax.system.files import telling


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
                self._exact[folder] = frozenset(os.listdir(folder)) if os.path.isdir(folder) else frozenset()
        return self._exact[folder]

    def forget(self, folder: str) -> None:
        """Free the memory of a folder that is not expected to be asked for again."""
        self._exact.pop(folder, None)

    def spelled(self, folder: str, name: str) -> str | None:
        """The name as the folder has it, where letters with accents may be composed or decomposed."""
        if folder not in self._composed:
            self._composed[folder] = {_composed(other): other for other in sorted(self.of(folder))}
        return self._composed[folder].get(_composed(name))


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def find_pictures(columns: Mapping[str, np.ndarray], image_dir: Path, source: Path) -> Places:
    """The pictures that an annotation file names (``names.folder_columns`` beside those of ``annotations.Decoded``).

    Names may have leading folders that are not there, as exports write them, and backslashes. The last folder is left
    out of all names or of none, and no two names mean one picture, so that no folder stands for another.

    Raises:
      UserError: some pictures are not there, or two names mean the same one.
    """
    if not image_dir.is_dir():
        raise UserError(f"image folder {image_dir} does not exist")
    whole = _whole_folders(columns, image_dir) if "heads" in columns else None
    if whole is not None and columns["names_differ"].all() and whole.are_apart:
        return whole
    names = all_names(columns)
    places, absent = locate(names, image_dir)
    if absent:
        refusal = UserError if len(absent) == len(names) else RepairableError  # which would leave no picture
        raise refusal(
            f"{len(absent)} of {len(names)} images of {source} are not in {image_dir} "
            f"(first: {names[min(absent)]}); copy them there or remove them from the file"
        )
    _check_distinct(names, places, source)
    return places


def locate(names: Sequence[str], image_dir: Path) -> tuple[Places, list[int]]:
    """Places of the pictures that are there, by the rule of ``find_pictures``, and the positions of the others."""
    listings = _Listings()
    plain = plain_names(names)
    heads = by_head(plain)
    places, absent = _located(plain, heads, image_dir, listings, flat=False)
    if absent and len(absent) == sum(len(positions) for head, (positions, _) in heads.items() if head):
        flat = _located(plain, heads, image_dir, listings, flat=True)
        if len(flat[1]) < len(absent):
            places, absent = flat
    return places, absent


def _whole_folders(columns: Mapping[str, np.ndarray], image_dir: Path) -> Places | None:
    """Places where each head means a folder that has all its pictures, spelled as in the file; else None."""
    listings = _Listings()
    folders: dict[str, str] = {}
    for head, tails in tails_by_head(columns):
        for folder in _candidates(image_dir, head, False, listings):
            if listings.of(folder).issuperset(tails):
                folders[head] = folder
                listings.forget(folder)
                break
        else:
            return None
    return Places(folders, {})


def _located(
    names: Sequence[str],
    heads: Mapping[str, tuple[list[int], list[str]]],
    image_dir: Path,
    listings: _Listings,
    *,
    flat: bool,
) -> tuple[Places, list[int]]:
    """Places, and the positions of names that are not there; ``flat``: all folders of the names are left out.

    Args:
      heads: as ``names.by_head``.
    """
    folders: dict[str, str] = {}
    spelled: dict[str, str] = {}
    absent: list[int] = []
    for head, (positions, tails) in heads.items():
        best: list[int] | None = None
        here: dict[str, str] = {}
        for folder in _candidates(image_dir, head, flat, listings):
            there = listings.of(folder)
            if there.issuperset(tails):
                best, folders[head], here = [], folder, {}
                break
            others = {
                position: listings.spelled(folder, tail)
                for position, tail in zip(positions, tails, strict=True)
                if tail not in there
            }
            missing = [position for position, other in others.items() if other is None]
            if best is None or len(missing) < len(best):
                best, folders[head] = missing, folder
                here = {names[p]: os.path.join(folder, other) for p, other in others.items() if other is not None}
            if not missing:
                break
        absent += best or []
        spelled |= here
    return Places(folders, spelled), absent


def _candidates(image_dir: Path, head: str, flat: bool, listings: _Listings) -> Iterator[str]:
    """Folders that the leading part of a name may mean, the most literal first; they need not exist."""
    parts = [part for part in head.split("/") if part not in ("", ".")]
    if flat or not parts:
        yield str(image_dir)
        return
    if head.startswith("/"):
        yield os.path.join("/", *parts)
    for start in range(len(parts)):
        folder = str(image_dir)
        for part in parts[start:]:
            if part != ".." and part not in listings.of(folder):
                part = listings.spelled(folder, part) or part
            folder = os.path.join(folder, part)
        yield folder


def _check_distinct(names: Sequence[str], places: Places, source: Path) -> None:
    """Each picture is one entry's: annotations of two cameras would end up on the picture of one."""
    plain = plain_names(names)
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
            raise RepairableError(
                f"{source}: images number {before} and {position} {told}; list each picture once, or put the pictures "
                "into the folders that the file names"
            )
