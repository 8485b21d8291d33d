"""Pictures and their objects as annotation tools store them, and their content as COCO."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dfine_jax.data.formats.turning import turned, upright_orientation
from dfine_jax.data.picture.images import image_size, upright_size
from dfine_jax.data.read.categories import trimmed
from dfine_jax.data.read.notes import Notes
from dfine_jax.errors import UserError

_CIRCLE_POINTS = 64
ROTATED = "rotated boxes; the upright box around them is used"


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object, in pixels of the picture as annotated."""

    name: str
    xyxy_px: tuple[float, float, float, float]
    polygons_px: tuple[tuple[float, ...], ...] = ()  # x1 y1 x2 y2 ... of each part
    run_lengths: dict[str, Any] | None = None  # COCO's, of the whole picture
    crowd: bool = False  # not trained on, ignored when evaluating


@dataclasses.dataclass
class Picture:
    """One picture and its objects."""

    path: Path
    where: str  # file and entry of its annotations
    size_px: tuple[int, int] | None  # (width, height) as annotated; None: of the picture as a viewer shows it
    things: list[Thing]
    split: str = ""  # train, val, test; empty: none


def box(name: str, x0: float, y0: float, x1: float, y1: float, *, crowd: bool = False) -> Thing:
    """A rectangle from any two opposite corners."""
    return Thing(name, (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), crowd=crowd)


def outline(name: str, parts: Sequence[Sequence[float]]) -> Thing:
    """An object from its polygons."""
    xs, ys = [x for part in parts for x in part[::2]], [y for part in parts for y in part[1::2]]
    return Thing(name, (min(xs), min(ys), max(xs), max(ys)), tuple(tuple(map(float, part)) for part in parts))


def ellipse(name: str, cx: float, cy: float, rx: float, ry: float, degrees: float = 0.0) -> Thing:
    """An ellipse or circle as the polygon on it; the rotation is clockwise as seen, like y counts downwards."""
    turns = (2 * math.pi * i / _CIRCLE_POINTS for i in range(_CIRCLE_POINTS))
    points = [(rx * math.cos(t), ry * math.sin(t)) for t in turns]
    return outline(name, [rotated([(cx + x, cy + y) for x, y in points], (cx, cy), degrees)])


def rotated_box(
    name: str, corners: Sequence[tuple[float, float]], around: tuple[float, float], degrees: float
) -> Thing:
    """A rectangle that was turned, as its outline."""
    return outline(name, [rotated(corners, around, degrees)])


def rotated(points: Iterable[tuple[float, float]], around: tuple[float, float], degrees: float) -> list[float]:
    """Points turned clockwise as seen, flat."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    out = []
    for x, y in points:
        dx, dy = x - around[0], y - around[1]
        out += [around[0] + dx * cos - dy * sin, around[1] + dx * sin + dy * cos]
    return out


def polygon_area(part: Sequence[float]) -> float:
    """Area of a polygon x1 y1 x2 y2 ..."""
    xs, ys = part[::2], part[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2


def class_name(value: Any, where: str) -> str:
    """A class name without blanks around it; UserError when there is none."""
    name = trimmed(value) if isinstance(value, str) else ""
    if not name:
        raise UserError(f"{where} has no class name ({value!r}); name its class")
    return name


def content(pictures: Sequence[Picture], names: Sequence[str], notes: Notes) -> dict[str, Any]:
    """COCO content: sizes and boxes of the upright pictures, absolute paths, ids from 1.

    Args:
      pictures: of one split.
      names: classes in the order of their ids.
      notes: takes what is left out.

    Raises:
      UserError: a picture that cannot be opened, or has another size than annotated.
    """
    ids = {name: number for number, name in enumerate(names, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for picture in pictures:
        path = picture.path.absolute()
        try:
            size, orientation = _size(picture)
        except UserError as error:
            notes.refuse(str(error), "pictures that do not fit their annotations, or cannot be opened, were left out")
            continue
        image = {"id": len(images) + 1, "file_name": str(path), "width": size[0], "height": size[1]}
        images.append(image)
        for thing in picture.things:
            entry = _annotation(thing, len(annotations) + 1, image["id"], ids[thing.name])
            annotations.append(turned(entry, picture.size_px or size, orientation))
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _size(picture: Picture) -> tuple[tuple[int, int], int]:
    """(width, height) of the upright picture, and the EXIF orientation that the annotations have yet to follow."""
    upright = upright_size(picture.path)
    if picture.size_px is None or picture.size_px == upright:
        return upright, 1
    if picture.size_px == image_size(picture.path):
        return upright, upright_orientation(picture.path)
    across, down = picture.size_px
    raise UserError(
        f"{picture.where} is of a picture of {across}x{down} pixels, {picture.path} has {upright[0]}x{upright[1]}; "
        "annotate the file that is there, or restore the annotated one"
    )


def _annotation(thing: Thing, number: int, image_id: int, category_id: int) -> dict[str, Any]:
    x0, y0, x1, y1 = thing.xyxy_px
    out: dict[str, Any] = {"id": number, "image_id": image_id, "category_id": category_id}
    out |= {"iscrowd": int(thing.crowd), "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
    if thing.run_lengths is not None:
        from pycocotools import mask as coco_mask

        encoded: Any = {**thing.run_lengths, "counts": thing.run_lengths["counts"].encode()}
        out |= {"segmentation": thing.run_lengths, "area": float(coco_mask.area(encoded))}
    elif thing.polygons_px:
        area = sum(map(polygon_area, thing.polygons_px))
        out |= {"segmentation": [list(part) for part in thing.polygons_px], "area": area}
    return out
