"""LabelMe: a JSON file for each picture, with shapes."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from dfine_jax.data.formats.finder import Finder
from dfine_jax.data.formats.parsing import points
from dfine_jax.data.formats.picture import Picture, Thing, box, class_name, ellipse, outline
from dfine_jax.data.formats.turning import encode_mask
from dfine_jax.data.picture.images import upright_size
from dfine_jax.data.read.notes import Notes
from dfine_jax.data.read.values import size_of
from dfine_jax.errors import UserError
from dfine_jax.system.files import read_json

TITLE = "LabelMe"
ENDINGS = (".json",)
_WITHOUT_AREA = ("point", "points", "line", "linestrip")
_OUTLINES = ("polygon", "rotation", "quadrilateral", "rotated_rectangle")


def recognises(parsed: Any) -> bool:
    """Whether a parsed file is of this format."""
    return isinstance(parsed, dict) and isinstance(parsed.get("shapes"), list) and "imagePath" in parsed


def read(files: Sequence[Path], finder: Finder, notes: Notes) -> tuple[list[Picture], None]:
    """Pictures of the files; classes in no order of their own.

    Raises:
      UserError: a file that cannot be used.
    """
    pictures: list[Picture] = []
    for file in files:
        with notes.leaving_out():
            parsed = read_json(file)
            if not recognises(parsed):
                notes.add("JSON files are not LabelMe's; they are left out", str(file))
                continue
            picture = _picture(file, parsed, finder, notes)
            pictures += [picture] if picture else []
    return pictures, None


def _picture(file: Path, parsed: dict[str, Any], finder: Finder, notes: Notes) -> Picture | None:
    named = parsed["imagePath"]
    if not isinstance(named, str) or not named.strip():
        raise UserError(f"{file} has imagePath {named!r}; it must name the picture")
    path = finder.beside(file, named) if Path(named.replace("\\", "/")).stem == file.stem else None
    path = path or finder.find(named, file, where=str(file))
    if path is None:
        return None
    shown = size_of(parsed.get("imageWidth"), parsed.get("imageHeight"))
    groups: dict[tuple[str, str], list[Thing]] = {}
    for position, shape in enumerate(parsed["shapes"]):
        where = f"{file}, shape {position}"
        with notes.leaving_out():
            if thing := _thing(shape, where, shown, path, notes):
                group = shape.get("group_id")
                key = json.dumps(group) if group is not None else f"alone {position}"
                groups.setdefault((thing.name, key), []).append(thing)
    things = [_joined(parts, file, notes) for parts in groups.values()]
    return Picture(path, str(file), shown, things, finder.split_below(file))


def _joined(parts: list[Thing], file: Path, notes: Notes) -> Thing:
    """Shapes of one class and group as parts of one object."""
    if len(parts) == 1:
        return parts[0]
    notes.add("objects of several shapes with one group_id", f"{file}, {parts[0].name}")
    corners = np.array([part.xyxy_px for part in parts])
    around = (*corners[:, :2].min(0).tolist(), *corners[:, 2:].max(0).tolist())
    if all(part.polygons_px for part in parts):
        return Thing(parts[0].name, around, tuple(polygon for part in parts for polygon in part.polygons_px))
    return Thing(parts[0].name, around)


def _thing(shape: Any, where: str, shown: tuple[int, int] | None, path: Path, notes: Notes) -> Thing | None:
    if not isinstance(shape, dict):
        raise UserError(f"{where} is {str(shape)[:40]!r}; it must be a shape with label and points")
    name = class_name(shape.get("label"), where)
    kind = shape.get("shape_type") or "polygon"
    if kind in _WITHOUT_AREA:
        notes.add("points and lines, which have no area, were left out", where)
        return None
    values = points(shape.get("points"), where)
    count = len(values) // 2
    if kind == "rectangle":
        if count not in (2, 4):
            raise UserError(f"{where} is a rectangle of {count} points; it needs two opposite corners")
        return box(name, min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    if kind == "circle":
        if count != 2:
            raise UserError(f"{where} is a circle of {count} points; it needs its centre and a point on it")
        radius = float(np.hypot(values[2] - values[0], values[3] - values[1]))
        return ellipse(name, values[0], values[1], radius, radius)
    if kind == "mask":
        return _mask(name, shape, values, where, shown or upright_size(path))
    if kind not in _OUTLINES:
        raise UserError(f"{where} has shape_type {kind!r}; known are rectangle, circle, mask, {', '.join(_OUTLINES)}")
    if count < 3:
        raise UserError(f"{where} is a polygon of {count} points; it needs three")
    return outline(name, [values])


def _mask(name: str, shape: dict[str, Any], values: list[float], where: str, shown: tuple[int, int]) -> Thing:
    try:
        encoded = base64.b64decode(shape["mask"], validate=True)
        with Image.open(io.BytesIO(encoded)) as picture:
            part = np.asarray(picture.convert("L")) > 0
    except (KeyError, TypeError, binascii.Error, UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise UserError(f"{where} has a mask that is no picture in base64; draw it again") from None
    left, top = round(min(values[::2])), round(min(values[1::2]))
    bitmap = np.zeros((shown[1], shown[0]), bool)
    if left < 0 or top < 0 or top + part.shape[0] > shown[1] + 1 or left + part.shape[1] > shown[0] + 1:
        raise UserError(f"{where} has a mask that reaches beyond the picture; draw it again")
    bitmap[top : top + part.shape[0], left : left + part.shape[1]] = part[: shown[1] - top, : shown[0] - left]
    rows, columns = np.flatnonzero(bitmap.any(1)), np.flatnonzero(bitmap.any(0))
    if not len(rows):
        raise UserError(f"{where} has an empty mask; remove it")
    corners = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return Thing(name, corners, run_lengths=encode_mask(bitmap))
