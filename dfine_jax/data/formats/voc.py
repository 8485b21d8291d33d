"""Pascal VOC: an XML file for each picture.

``xmin ymin xmax ymax`` are taken as edges in pixels from 0, as labelImg, CVAT and Roboflow write them. The files of the
VOC challenges count pixels from 1 and include the last, so that 1 is subtracted from xmin and ymin there; they are
known by their ``<database>``. Objects marked difficult are like COCO's crowds: not trained on, ignored when evaluating.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from dfine_jax.data.formats.finder import Finder
from dfine_jax.data.formats.parsing import number, read_xml
from dfine_jax.data.formats.picture import Picture, Thing, box, class_name, outline
from dfine_jax.data.picture.images import EXTENSIONS
from dfine_jax.data.read.notes import Notes
from dfine_jax.data.read.values import OTHER_FLAGS, flag, size_of
from dfine_jax.errors import UserError
from dfine_jax.system.files import read_text

TITLE = "Pascal VOC"
ENDINGS = (".xml",)
_FROM_ONE = "The VOC"  # as the database of the challenges is called, with a year
_SPLITS = {"val": ("val",), "test": ("test",), "train": ("train", "trainval")}


def recognises(parsed: Any) -> bool:
    """Whether a parsed file is of this format."""
    return isinstance(parsed, ElementTree.Element) and parsed.tag == "annotation"


def read(files: Sequence[Path], finder: Finder, notes: Notes) -> tuple[list[Picture], None]:
    """Pictures of the files; classes in no order of their own.

    Raises:
      UserError: a file that cannot be used, or a list of a split that names none.
    """
    pictures: list[Picture] = []
    for file in files:
        with notes.leaving_out():
            picture = _picture(file, read_xml(file), finder, notes)
            pictures += [picture] if picture else []
    _assign_splits(pictures, [Path(p.where) for p in pictures], finder, notes)
    return pictures, None


def _picture(file: Path, root: ElementTree.Element, finder: Finder, notes: Notes) -> Picture | None:
    written = (root.findtext("filename") or "").strip()
    is_own = Path(written.replace("\\", "/")).stem == file.stem
    path = finder.beside(file, written if is_own else "")
    if path is None:
        path = finder.find(written or file.stem, file, where=str(file))
    elif written and Path(written.replace("\\", "/")).stem != path.stem:
        notes.add("files name another picture than the one of their own name, which is used", f"{file}: {written}")
    if path is None:
        return None
    from_one = (root.findtext("source/database") or "").strip().startswith(_FROM_ONE)
    things: list[Thing] = []
    for position, entry in enumerate(root.findall("object"), 1):
        where = f"{file}, object {position}"
        with notes.leaving_out():
            things.append(_thing(entry, from_one, where, notes))
            if things[-1].crowd:
                notes.add("difficult objects; not trained on, ignored when evaluating", where)
    shown = size_of(root.findtext("size/width"), root.findtext("size/height"))
    return Picture(path, str(file), shown, things, finder.split_below(file))


def _thing(entry: ElementTree.Element, from_one: bool, where: str, notes: Notes) -> Thing:
    name = class_name(entry.findtext("name"), where)
    marks = {key: (entry.findtext(key) or "0").strip() for key in OTHER_FLAGS}
    for key, mark in marks.items():
        if flag(mark) is None and mark.lower() != "unspecified":
            raise UserError(f"{where} has {key} {mark!r}; it must be 0 or 1")
    crowd = any(map(flag, marks.values()))
    has_polygon = entry.find("polygon") is not None
    if has_polygon and entry.find("bndbox") is None:
        return dataclasses.replace(outline(name, [_polygon(entry, where)]), crowd=crowd)
    edges = [number(entry.findtext(f"bndbox/{key}"), key, where) for key in ("xmin", "ymin", "xmax", "ymax")]
    if from_one:
        notes.add("boxes of the VOC challenges, whose pixels count from 1", where)
        edges = [edges[0] - 1, edges[1] - 1, *edges[2:]]
    thing = box(name, *edges, crowd=crowd)
    try:
        return dataclasses.replace(thing, polygons_px=(tuple(_polygon(entry, where)),)) if has_polygon else thing
    except UserError as error:
        notes.add("polygons beside a box cannot be used; the box is", str(error))
        return thing


def _polygon(entry: ElementTree.Element, where: str) -> list[float]:
    values = {child.tag: child.text for child in entry.find("polygon") or ()}
    count = len(values) // 2
    if count < 3:
        raise UserError(f"{where} has a polygon of {count} points; it needs three")
    return [number(values.get(f"{axis}{i}"), f"{axis}{i}", where) for i in range(1, count + 1) for axis in "xy"]


def _assign_splits(pictures: list[Picture], files: list[Path], finder: Finder, notes: Notes) -> None:
    """Splits from ``ImageSets/Main``, where there are such lists."""
    folders = {folder for folder in {file.parent.parent for file in files} if (folder / "ImageSets" / "Main").is_dir()}
    for folder in sorted(folders):
        own = {
            file.stem: picture for file, picture in zip(files, pictures, strict=True) if file.parent.parent == folder
        }
        listed = _listed(folder / "ImageSets" / "Main", own)
        if not listed:
            continue
        for picture in own.values():
            picture.split = ""
        for stem, (split, where) in listed.items():
            if stem in own:
                own[stem].split = split
            elif not notes.lenient and not (folder / "Annotations" / f"{stem}.xml").is_file():
                notes.add("listed pictures have no annotation file; they are left out", f"{where}: {stem}")


def _listed(folder: Path, known: Container[str]) -> dict[str, tuple[str, str]]:
    """(split, list and line) by name of a picture; pictures of train.txt and trainval.txt alike are for training."""
    out: dict[str, tuple[str, str]] = {}
    for split, names in _SPLITS.items():
        file = next((folder / f"{name}.txt" for name in names if (folder / f"{name}.txt").is_file()), None)
        if file is None:
            continue
        for line_number, line in enumerate(read_text(file).split("\n"), 1):
            stem = _listed_stem(line.strip(), known)
            if not stem:
                continue
            where = f"{file}, line {line_number}"
            before = out.get(stem)
            if before is None:
                out[stem] = (split, where)
            elif before[0] != split and not (file.stem == "trainval" and before[0] == "val"):
                raise UserError(f"{where}: {stem} is also in {before[1]}; a picture belongs to one split")
    return out


def _listed_stem(line: str, known: Container[str]) -> str:
    """Name of a picture, which may have blanks, without ending and without the flag of a list of one class."""
    unflagged = re.sub(r"\s+(-1|0|1)$", "", line)
    for written in (line, unflagged):
        ending = Path(written).suffix.lower()
        for stem in (written, written[: -len(ending)] if ending in EXTENSIONS else written):
            if stem in known:
                return stem
    return unflagged
