"""CVAT for images 1.1: an XML file of all pictures, with the list of labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from dfine_jax.data.formats.finder import Finder, split_of
from dfine_jax.data.formats.parsing import number, points, read_xml
from dfine_jax.data.formats.picture import ROTATED, Picture, Thing, box, class_name, ellipse, outline, rotated_box
from dfine_jax.data.formats.turning import encode_mask
from dfine_jax.data.read.notes import Notes
from dfine_jax.data.read.values import size_of
from dfine_jax.errors import UserError

TITLE = "CVAT for images"
ENDINGS = (".xml",)
_WITHOUT_AREA = ("points", "polyline", "skeleton")
_IGNORED = ("tag", "attribute")


def recognises(parsed: Any) -> bool:
    """Whether a parsed file is of this format, or its sister for videos."""
    if not isinstance(parsed, ElementTree.Element) or parsed.tag != "annotations":
        return False
    return any(parsed.find(tag) is not None for tag in ("image", "track", "meta"))


def read(files: Sequence[Path], finder: Finder, notes: Notes) -> tuple[list[Picture], list[str]]:
    """Pictures of the files, and the labels in their order.

    Raises:
      UserError: a file that cannot be used.
    """
    pictures: list[Picture] = []
    labels: dict[str, None] = {}
    for file in files:
        root = read_xml(file)
        if root.find("track") is not None:
            raise UserError(f"{file} is 'CVAT for video'; export the task as 'CVAT for images 1.1', with images")
        labels |= dict.fromkeys(_labels(root))
        for position, entry in enumerate(root.findall("image"), 1):
            with notes.leaving_out():
                picture = _picture(file, entry, position, finder, notes)
                pictures += [picture] if picture else []
    return pictures, list(labels)


def _labels(root: ElementTree.Element) -> list[str]:
    """Labels of the task, project or job; not the parts of skeletons."""
    entries = [entry for entry in root.iter("label") if entry.find("name") is not None]
    names = [
        (entry.findtext("name") or "").strip() for entry in entries if not (entry.findtext("parent") or "").strip()
    ]
    return [name for name in names if name]


def _picture(file: Path, entry: ElementTree.Element, position: int, finder: Finder, notes: Notes) -> Picture | None:
    name = (entry.get("name") or "").strip()
    where = f"{file}, image {name or position}"
    if not name:
        raise UserError(f"{where} has no name; it must name the picture")
    path = finder.find(name, file, where=where)
    if path is None:
        return None
    shown = size_of(entry.get("width"), entry.get("height"))
    things = []
    for index, shape in enumerate(entry):
        if shape.tag in _IGNORED:
            continue
        place = f"{where}, {shape.tag} {index}"
        if shape.tag in _WITHOUT_AREA:
            notes.add("points, lines and skeletons, which have no area, were left out", place)
            continue
        with notes.leaving_out():
            things.append(_thing(shape, shown, place, notes))
    subset = entry.get("subset")
    split = split_of(f"{subset}/x") if subset else finder.split_below(file, of_all=True)
    return Picture(path, where, shown, things, split)


def _thing(shape: ElementTree.Element, shown: tuple[int, int] | None, where: str, notes: Notes) -> Thing:
    name = class_name(shape.get("label"), where)

    def value(key: str, default: str | None = None) -> float:
        return number(shape.get(key, default), key, where)

    degrees = value("rotation", "0")
    if shape.tag == "box":
        x0, y0, x1, y1 = value("xtl"), value("ytl"), value("xbr"), value("ybr")
        if degrees % 360 == 0:
            return box(name, x0, y0, x1, y1)
        notes.add(ROTATED, where)
        return rotated_box(name, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)], ((x0 + x1) / 2, (y0 + y1) / 2), degrees)
    if shape.tag == "ellipse":
        return ellipse(name, value("cx"), value("cy"), value("rx"), value("ry"), degrees)
    if shape.tag == "polygon":
        pairs = [pair.split(",") for pair in (shape.get("points") or "").split(";") if pair.strip()]
        if len(pairs) < 3:
            raise UserError(f"{where} is a polygon of {len(pairs)} points; it needs three")
        return outline(name, [points(pairs, where)])
    if shape.tag == "mask":
        return _mask(name, shape, shown, where)
    raise UserError(f"{where}: shapes of this kind have no box; export boxes, polygons, ellipses and masks")


def _mask(name: str, shape: ElementTree.Element, shown: tuple[int, int] | None, where: str) -> Thing:
    """A mask is run lengths of its rectangle row by row, of outside and inside in turn."""
    if shown is None:
        raise UserError(f"{where}: the picture needs its width and height for a mask")
    sides = [number(shape.get(key), key, where) for key in ("left", "top", "width", "height")]
    left, top, width, height = (int(side) for side in sides)
    try:
        runs = np.array([int(run) for run in (shape.get("rle") or "").split(",")])
    except (ValueError, OverflowError):
        runs = np.array([-1])
    fits = left >= 0 and top >= 0 and left + width <= shown[0] and top + height <= shown[1]
    if runs.min() < 0 or not fits or runs.sum() != width * height:
        raise UserError(f"{where}: the run lengths do not fill its rectangle in the picture; export it again")
    values = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
    bitmap = np.zeros((shown[1], shown[0]), np.uint8)
    bitmap[top : top + height, left : left + width] = values
    if not bitmap.any():
        raise UserError(f"{where}: the mask is empty; remove it")
    rows, columns = np.flatnonzero(bitmap.any(1)), np.flatnonzero(bitmap.any(0))
    corners = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return Thing(name, corners, run_lengths=encode_mask(bitmap))
