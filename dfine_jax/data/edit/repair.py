"""Annotations as COCO JSON that reading takes: what can be cured without guessing is cured, the rest is said.

Nothing here decides what an object is: entries of classes that the file does not list, or flags that mean nothing, stay
as they are and are reported, because only a person knows; so are lines of other formats that reading refuses.
"""

from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dfine_jax.data.edit.items import WHOLE, Split, read_splits
from dfine_jax.data.edit.repair_classes import give_the_same_classes, repaired_categories
from dfine_jax.data.edit.repair_objects import (
    WENT_WITH_IMAGES,
    are_written_as_corners,
    in_fractions,
    reference,
    repaired_objects,
)
from dfine_jax.data.formats.placing import check_new, new_folder, relative, write_inside
from dfine_jax.data.formats.turning import backwards, turned, upright_orientation
from dfine_jax.data.formats.write_json import COCO_FILE
from dfine_jax.data.picture.images import image_size, open_annotated, upright_size
from dfine_jax.data.read.notes import REFUSED, Notes
from dfine_jax.data.read.pictures import locate
from dfine_jax.data.read.values import size_of
from dfine_jax.errors import UserError
from dfine_jax.system.files import encoding_of, telling, write_whole

_DECODERS = 4
_LISTS = ("images", "annotations", "categories")


class Repair:
    """Repair of one split.

    Args:
      split: what its files say; it is not changed.

    Attributes:
      changes: what was cured, by kind.
      left: what was not, by kind.
      content: the COCO content, whose file names are absolute paths.
    """

    def __init__(self, split: Split) -> None:
        self.changes, self.left = Notes(lenient=True), Notes(lenient=True)
        for kind, places in split.notes.places.items():
            (self.left if kind == REFUSED else self.changes).places[kind] = list(places)
        self._split = split
        if split.source.suffix == ".json":
            with telling(split.source), split.source.open("rb") as stream:
                encoding, mark = encoding_of(stream.read(64))
            if (encoding, mark) != ("utf-8", 0):
                kind = "files in another encoding, or with a byte order mark, were written as UTF-8"
                self.changes.add(kind, f"{split.source}: {encoding}")
        source = _lists(split)
        categories, class_of = repaired_categories(source["categories"], split.source, self.changes, self.left)
        images, image_of, paths = self._images(source["images"])
        annotations = repaired_objects(
            source["annotations"], images, image_of, class_of, paths, self.changes, self.left
        )
        if not split.upright and are_written_as_corners(source["annotations"], images, image_of):
            kind = "splits have boxes that look like corners x1 y1 x2 y2; COCO's are x y width height"
            self.left.add(kind, str(split.source))
        images, annotations = self._without_broken(images, annotations, paths)
        if source["images"] and not images:
            self.left.add("splits have no picture left", str(split.source))
        if not split.upright and (unit := in_fractions(annotations, images)):
            self.left.add(f"splits have boxes that are {unit}", str(split.source))
        rest = {key: value for key, value in source.items() if key not in _LISTS}
        for image in images:
            image["file_name"] = str(paths[image["id"]])
        self.content = {**rest, "images": images, "annotations": annotations, "categories": categories}

    def _images(self, entries: list[Any]) -> tuple[list[dict[str, Any]], dict[Any, int | None], dict[int, Path]]:
        """Images that exist, by new ids; the id by what annotations may call it (None: left out); paths by id."""
        named: list[tuple[Any, dict[str, Any]]] = []
        dropped: list[Any] = []
        for position, entry in enumerate(entries):
            key = reference(entry.get("id")) if isinstance(entry, dict) else None
            name = entry.get("file_name") if isinstance(entry, dict) else None
            if key is None or not isinstance(name, str) or not name.strip():
                where = f"image {position}: {str(entry)[:80]}"
                self.changes.add("images without id or file_name were left out", where)
                dropped.append(key)
                continue
            if name != name.strip():
                self.changes.add("names of pictures had blanks around them, which were removed", repr(name))
            named.append((key, entry))
        names = [entry["file_name"].strip() for _, entry in named]
        places, absent = locate(names, self._split.folder)
        lost = set(absent)
        kept = []
        for position, (key, entry) in enumerate(named):
            if position in lost:
                self.changes.add("images that do not exist were left out", entry["file_name"])
                dropped.append(key)
            else:
                kept.append((key, entry, places.path(names[position]).absolute()))
        kept = self._distinct(kept, dropped)
        return self._numbered(kept, dropped)

    def _distinct(
        self, kept: list[tuple[Any, dict[str, Any], Path]], dropped: list[Any]
    ) -> list[tuple[Any, dict[str, Any], Path]]:
        """Without ids that mean several pictures, and pictures that several names mean."""
        by_key: dict[Any, set[Path]] = {}
        names: dict[Path, set[str]] = {}
        for key, entry, path in kept:
            by_key.setdefault(key, set()).add(path)
            names.setdefault(path, set()).add(entry["file_name"].strip().replace("\\", "/"))
        out = []
        for key, entry, path in kept:
            if len(by_key[key]) > 1:
                self.changes.add(
                    "images share an id with another and were left out, since whose the objects are is not known",
                    f"{entry['file_name']}, id {entry['id']!r}",
                )
                dropped.append(key)
            elif not _same_tail(names[path]):
                self.changes.add("images of different folders led to one file and were left out", entry["file_name"])
                dropped.append(key)
            else:
                out.append((key, entry, path))
        return out

    def _numbered(
        self, kept: list[tuple[Any, dict[str, Any], Path]], dropped: list[Any]
    ) -> tuple[list[dict[str, Any]], dict[Any, int | None], dict[int, Path]]:
        good = all(type(key) is int for key, *_ in kept)
        ids: dict[Any, int | None] = dict.fromkeys(dropped)
        by_path: dict[Path, int] = {}
        out: list[dict[str, Any]] = []
        for key, entry, path in kept:
            if path in by_path:
                ids[key] = by_path[path]
                self.changes.add("pictures listed more than once were joined", entry["file_name"])
                continue
            number = key if good else len(out) + 1
            if type(entry["id"]) is not int or entry["id"] != number:
                self.changes.add("images were numbered anew", f"{entry['file_name']}: {entry['id']!r} is {number}")
            try:
                size = self._size(entry, path)
            except UserError as error:
                self.changes.add("pictures that cannot be used were left out", str(error))
                ids[key] = None
                continue
            ids[key] = by_path[path] = number
            out.append({**entry, "id": number, "width": size[0], "height": size[1]})
        return out, ids, {number: path for path, number in by_path.items()}

    def _size(self, entry: dict[str, Any], path: Path) -> tuple[int, int]:
        written = entry.get("width"), entry.get("height")
        if (size := size_of(*written)) is not None:
            if not all(type(side) is int for side in written):
                self.changes.add(
                    "sizes of images were made whole numbers", f"{entry['file_name']}: {written} is {size}"
                )
            return size
        size = upright_size(path) if self._split.upright else image_size(path)
        self.changes.add("sizes of images were taken from the files", f"{entry['file_name']}: {written} is {size}")
        return size

    def _without_broken(
        self, images: list[dict[str, Any]], annotations: list[dict[str, Any]], paths: dict[int, Path]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Without pictures that cannot be decoded, or have another size than annotated."""

        def problem(image: dict[str, Any]) -> str:
            try:
                open_annotated(paths[image["id"]], image["width"], image["height"], upright=self._split.upright)
            except UserError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor(_DECODERS) as pool:
            problems = list(pool.map(problem, images))
        for text in problems:
            if text:
                self.changes.add("pictures that cannot be used were left out", text)
        images = [image for image, text in zip(images, problems, strict=True) if not text]
        ids = {image["id"] for image in images}
        for annotation in annotations:
            if annotation["image_id"] not in ids:
                where = f"{paths[annotation['image_id']].name}, annotation {annotation['id']}"
                self.changes.add(WENT_WITH_IMAGES, where)
        return images, [annotation for annotation in annotations if annotation["image_id"] in ids]

    def placed(self, folder: Path) -> dict[str, Any]:
        """The content for an annotation file in a folder: names from there, sizes and boxes of the stored pixels."""
        images, annotations = [], []
        by_image: dict[int, list[dict[str, Any]]] = {}
        for annotation in self.content["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        for image in self.content["images"]:
            path, own = Path(image["file_name"]), by_image.get(image["id"], [])
            size = image["width"], image["height"]
            if self._split.upright:
                orientation = backwards(upright_orientation(path))
                own = [turned(annotation, size, orientation) for annotation in own]
                size = image_size(path)
            images.append({**image, "file_name": relative(path, folder), "width": size[0], "height": size[1]})
            annotations += own
        return {**self.content, "images": images, "annotations": annotations}


def _lists(split: Split) -> dict[str, Any]:
    content = split.content
    missing = [key for key in _LISTS if not (isinstance(content, dict) and isinstance(content.get(key), list))]
    if missing:
        raise UserError(f"{split.source} is not COCO JSON: no list {missing[0]!r}; this cannot be repaired")
    return copy.deepcopy(content)


def _same_tail(names: set[str]) -> bool:
    """Whether all names mean the same file: each ends the longest, and none lacks its last folder."""
    parts = [[part for part in name.split("/") if part not in ("", ".", "..")] for name in names]
    longest = max(parts, key=len)
    return all(own[-2:] == longest[-2:] and longest[len(longest) - len(own) :] == own for own in parts)


def repair_dataset(data: Path | str, out: Path) -> tuple[dict[str, Repair], dict[str, Path]]:
    """Write the repaired annotations of all splits as new files; the data are only read.

    Args:
      data: as for ``sources.read_dataset``; it may be data that reading refuses.
      out: a new ``.json`` file where there is one split, else a new folder of ``SPLIT/_annotations.coco.json``, a
        layout that is recognised. Pictures stay where they are; all changes are listed in a text file beside or in it.

    Returns:
      The repairs and the annotation files, by split.

    Raises:
      UserError: nothing recognised, no list of images, annotations or classes, or something at the place of ``out``.
    """
    check_new(out)
    splits = read_splits(data, lenient=True)[1]
    single = out.suffix.lower() == ".json"
    if single and len(splits) > 1:
        raise UserError(
            f"--repair {out}: {data} has the splits {', '.join(splits)}; name a folder for them, not a file"
        )
    repairs = {name: Repair(split) for name, split in splits.items()}
    if not any(repair.left.places for repair in repairs.values()):
        give_the_same_classes([(repair.content, repair.changes) for repair in repairs.values()])
    if single:
        ((name, repair),) = repairs.items()
        out.parent.mkdir(parents=True, exist_ok=True)
        listing = out.with_suffix(".changes.txt")
        check_new(listing)
        write_whole(listing, _listing(repairs))
        try:
            write_whole(out, json.dumps(repair.placed(out.parent)))
        except UserError:
            listing.unlink(missing_ok=True)
            raise
        return repairs, {name: out}
    files = {}
    with new_folder(out) as folder:
        for name, repair in repairs.items():
            below = folder if name == WHOLE else folder / name
            below.mkdir(exist_ok=True)
            write_inside(below / COCO_FILE, json.dumps(repair.placed(below)))
            files[name] = out / below.relative_to(folder) / COCO_FILE
        write_inside(folder / "changes.txt", _listing(repairs))
    return repairs, files


def _listing(repairs: dict[str, Repair]) -> str:
    lines = []
    for name, repair in repairs.items():
        for mark, notes in (("cured", repair.changes), ("NOT cured", repair.left)):
            for kind, places in notes.places.items():
                lines += [f"{name}: {mark}: {len(places)} {kind}", *(f"    {place}" for place in places)]
    return "".join(f"{line}\n" for line in lines) or "nothing was wrong\n"
