"""Repair of the annotations of a COCO file: references, flags, boxes, masks, areas, repeats."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from dfine_jax.data.formats.picture import polygon_area
from dfine_jax.data.read.areas import can_be
from dfine_jax.data.read.mask_boxes import mask_box
from dfine_jax.data.read.notes import Notes
from dfine_jax.data.read.outlines import area_px, drawable, fills, in_run_lengths
from dfine_jax.data.read.values import OTHER_FLAGS, are_corners, area_of, flag, is_ignored

WENT_WITH_IMAGES = "annotations of images that were left out went with them"
_UNIT_PX = 8  # boxes within 0 to 1 are objects in no picture larger than this
_BEYOND_PX = 0.5  # rounding of the annotation tool; not worth a note


def repaired_objects(
    entries: list[Any],
    images: list[dict[str, Any]],
    image_of: dict[Any, int | None],
    class_of: dict[Any, int],
    paths: dict[int, Path],
    changes: Notes,
    left: Notes,
) -> list[dict[str, Any]]:
    """Annotations that reading takes.

    Args:
      entries: as in the file.
      images: the repaired images.
      image_of: id of a repaired image by what annotations call it; None for images that were left out.
      class_of: likewise of categories.
      paths: picture by image id, for messages.
      changes: takes what is cured.
      left: takes what is not.
    """
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    out: list[dict[str, Any]] = []
    seen: set[Any] = set()
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            changes.add("annotations that are no objects were left out", f"annotation {position}: {str(entry)[:40]}")
            continue
        key = reference(entry.get("image_id"))
        if key not in image_of or key is None:
            changes.add("annotations of images that are not listed were left out", _where(entry, position))
            continue
        image_id = image_of[key]
        if image_id is None:
            changes.add(WENT_WITH_IMAGES, _where(entry, position))
            continue
        where = f"{paths[image_id].name}, {_where(entry, position)}"
        number = whole_number(entry.get("category_id"))
        if number is None or number not in class_of:
            left.add("annotations are of categories that the file does not list; list the class", where)
            category = entry.get("category_id")
        else:
            category = class_of[number]
        if type(entry["image_id"]) is not int or (number is not None and type(entry["category_id"]) is not int):
            changes.add("references of annotations were made whole numbers", where)
        repaired = {**entry, "image_id": image_id, "category_id": category}
        _flag(repaired, where, changes, left)
        if not _shape(repaired, sizes[image_id], where, changes):
            continue
        identity = _identity(repaired)
        if identity in seen and not is_ignored(repaired):
            changes.add("annotations that repeat another exactly were left out", where)
            continue
        seen.add(identity)
        out.append(repaired)
    return _numbered(out, changes)


def _where(entry: dict[str, Any], position: int) -> str:
    return f"annotation {entry['id']}" if "id" in entry else f"annotation number {position}"


def _identity(entry: dict[str, Any]) -> Any:
    box = tuple(round(value, 2) for value in entry["bbox"])
    return entry["image_id"], repr(entry["category_id"]), box, repr(entry.get("segmentation"))


def _numbered(entries: list[dict[str, Any]], changes: Notes) -> list[dict[str, Any]]:
    """With ids of their own: those they have as whole numbers, or from 1 when they repeat or are none."""
    ids = [whole_number(entry.get("id")) for entry in entries]
    good = None not in ids and len(set(ids)) == len(ids)
    numbers = ids if good else range(1, len(entries) + 1)
    for number, entry in zip(numbers, entries, strict=True):
        if entry.get("id") != number or type(entry["id"]) is not int:
            changes.add("annotations were numbered anew", f"{entry.get('id')!r} is {number}")
    return [{**entry, "id": number} for number, entry in zip(numbers, entries, strict=True)]


def _flag(entry: dict[str, Any], where: str, changes: Notes, left: Notes) -> None:
    """``iscrowd`` and the like as 0 or 1, whatever type says so."""
    for name in ("iscrowd", *OTHER_FLAGS):
        value = entry.get(name, 0)
        if type(value) is int and value in (0, 1):
            continue
        meant = flag(value)
        if meant is None:
            left.add(f"flags {name} mean nothing; write 0 or 1", f"{where}: {value!r}")
            continue
        entry[name] = int(meant)
        changes.add(f"flags {name} were made 0 or 1", f"{where}: {value!r} is {int(meant)}")


def _shape(entry: dict[str, Any], size_px: tuple[int, int], where: str, changes: Notes) -> bool:
    """Repair mask, box and area; False when there is no box left."""
    written = entry.get("segmentation")
    segmentation = _segmentation(written, size_px)
    if written not in (None, []) and segmentation != written:
        changes.add("masks that are none, or parts of them, were removed", f"{where}: {str(written)[:40]}")
    if segmentation is not None and not _has_pixels(segmentation, size_px):
        segmentation = None
        changes.add("masks without a pixel were removed", where)
    if "segmentation" in entry:
        entry["segmentation"] = segmentation if segmentation is not None else []
    box = _box(entry.get("bbox"))
    if box is None and (box := mask_box(segmentation)) is not None:
        changes.add("boxes were made from outlines", where)
    if box is None:
        changes.add("annotations without a box were left out", f"{where}: {str(entry.get('bbox'))[:40]}")
        return False
    x0, y0 = max(box[0], 0), max(box[1], 0)
    x1, y1 = min(box[0] + box[2], size_px[0]), min(box[1] + box[3], size_px[1])
    if x1 <= x0 or y1 <= y0:
        changes.add("boxes without area in the picture were left out", f"{where}: {box}")
        return False
    beyond = max(x0 - box[0], y0 - box[1], box[0] + box[2] - x1, box[1] + box[3] - y1)
    is_cut = beyond > 1e-6
    if beyond > _BEYOND_PX:
        changes.add("boxes were cut at the border of the picture", f"{where}: {box} in {size_px[0]}x{size_px[1]}")
    cut = [x0, y0, x1 - x0, y1 - y0] if is_cut else box
    if isinstance(entry.get("bbox"), list) and any(isinstance(value, str) for value in entry["bbox"]):
        changes.add("coordinates were made numbers", f"{where}: {str(entry['bbox'])[:40]}")
    entry["bbox"] = cut
    _area(entry, segmentation, is_cut, where, changes)
    return True


def _number(value: Any) -> float | int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, (int, float)) and abs(value) < 1e12 and math.isfinite(value):
        return value
    return None


def _box(value: Any) -> list[float] | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    numbers = [_number(item) for item in value]
    return None if any(number is None for number in numbers) else numbers  # type: ignore[return-value] - checked


def _segmentation(value: Any, size_px: tuple[int, int]) -> Any:
    """Polygons of three points at least, or run lengths that fill the picture; None when nothing is left."""
    if isinstance(value, list):
        parts = [[_number(item) for item in part] for part in value if isinstance(part, list)]
        whole = [part for part in parts if len(part) >= 6 and len(part) % 2 == 0 and None not in part]
        return whole or None
    if isinstance(value, dict):
        counts, size = value.get("counts"), value.get("size")
        if size != [size_px[1], size_px[0]]:
            return None
        if isinstance(counts, str):
            return value if fills(counts.encode(), size_px[0] * size_px[1]) else None
        if isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts):
            return value if sum(counts) == size_px[0] * size_px[1] else None
    return None


def _has_pixels(segmentation: Any, size_px: tuple[int, int]) -> bool:
    """Whether anything is drawn of what ``_segmentation`` gives."""
    outline = drawable(segmentation, *size_px)
    return outline is not None and area_px(in_run_lengths(outline, *size_px)) > 0


def _area(entry: dict[str, Any], segmentation: Any, is_cut: bool, where: str, changes: Notes) -> None:
    width, height = entry["bbox"][2:]
    written = entry.get("area")
    given = area_of(written)
    usable = bool(can_be(given, width * height))
    if usable and not (is_cut and not segmentation):
        if isinstance(written, str):
            changes.add("areas were made numbers", f"{where}: {written!r} is {given:g}")
            entry["area"] = given
        return
    area = width * height
    if isinstance(segmentation, list):
        area = min(sum(map(polygon_area, segmentation)) or area, area)
    elif isinstance(segmentation, dict):
        from dfine_jax.data.formats.turning import decode_mask

        area = float(decode_mask(segmentation).sum()) or area
    if "area" in entry and not usable:
        changes.add("areas that cannot be were computed", f"{where}: {written!r} is {area:g}")
    entry["area"] = area


def whole_number(value: Any) -> int | None:
    """An id written as a number or text; None when it is no whole number of 64 bits."""
    if isinstance(value, str) and value.strip().lstrip("+-").isdecimal() and len(value) < 30:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    return None


def reference(value: Any) -> Any:
    """What an id is looked up by: 3, 3.0 and "3" are the same; None when it is none."""
    number = whole_number(value)
    if number is not None:
        return number
    if isinstance(value, str) and value.strip():
        return value.strip()
    if type(value) in (int, float) and value == value:
        return json.dumps(value)
    return None


def in_fractions(annotations: list[dict[str, Any]], images: list[dict[str, Any]]) -> str:
    """What is wrong when all boxes of a file are within 0 to 1; empty when they are not."""
    boxes = [annotation["bbox"] for annotation in annotations if not is_ignored(annotation)]
    small = all(min(image["width"], image["height"]) > _UNIT_PX for image in images)
    if boxes and small and all(abs(value) <= 1 for box in boxes for value in box):
        return "fractions of the picture; multiply x and width by its width, y and height by its height"
    return ""


def are_written_as_corners(entries: list[Any], images: list[dict[str, Any]], image_of: dict[Any, int | None]) -> bool:
    """Whether the boxes of annotations as they are in the file are ``x1 y1 x2 y2``."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    boxes, size_px = [], []
    for entry in entries:
        number = image_of.get(reference(entry.get("image_id"))) if isinstance(entry, dict) else None
        box = _box(entry.get("bbox")) if number in sizes else None
        if box is not None and not is_ignored(entry):
            boxes.append(box)
            size_px.append(sizes[number])
    return are_corners(np.array(boxes, float).reshape(-1, 4), np.array(size_px, float).reshape(-1, 2))
