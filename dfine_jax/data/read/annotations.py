"""COCO JSON as columns: decoded piece by piece, checked column by column.

A large file is mostly a list of millions of small objects. Decoded at once they take ten times the memory of what
they say, and looked at one by one in Python, minutes. Here a short piece is decoded at a time, each check is one
operation on an array, and only the first entry that fails one is looked at by itself, to say what is wrong with it.
"""

from __future__ import annotations

import itertools
import mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64
from msgspec import UNSET

from dfine_jax.data.read.areas import cured_areas
from dfine_jax.data.read.categories import read_categories
from dfine_jax.data.read.coco_pieces import AnnotationEntry, ImageEntry, Piece, coco_lists, in_pieces, plain_json
from dfine_jax.data.read.dataset import Classes
from dfine_jax.data.read.mask_boxes import boxes_of_masks
from dfine_jax.data.read.refusals import check_repeated, refuse
from dfine_jax.data.read.values import (
    area_column,
    box_column,
    first_repeated,
    flag_column,
    id_column,
    shown,
    size_of,
    whole_column,
)
from dfine_jax.errors import RepairableError
from dfine_jax.system.host_memory import collection_paused

_NUM_EXAMPLES = 3
_GIVE_BACK_PIECES = 16  # a few megabytes of the file


class Decoded(NamedTuple):
    """Content of an annotation file. Annotations are in the order of their images, those of one as in the file.

    Columns of images, [m]: ``image_id``, ``size_px`` [m, 2] (width and height, 0 where the file does not say),
    ``names`` (UTF-8, one after another) and ``name_bounds`` [m + 1] in it, ``objects`` [m + 1], the bounds of each
    image's annotations. Columns of annotations, [n]: ``annotation_id``, ``label`` (-1 for a category that is not
    listed), ``box_xywh_px`` [n, 4] and ``area_px`` in float64, ``crowd`` (``iscrowd``, ``ignore`` or ``difficult``).
    """

    arrays: dict[str, np.ndarray]
    classes: Classes
    notes: dict[str, Any]  # counts of what is not in the columns, plain values


def decode(text: Any, source: Path) -> Decoded:
    """Columns of an annotation file.

    Args:
      text: its bytes (any buffer), UTF-8.
      source: what to call it in messages.

    Raises:
      UserError: not JSON, not COCO, or an entry is wrong (the message names entry, field and value).
    """
    lists = coco_lists(text, source)
    # Millions of new objects, none of them in a cycle, would start the search for cycles again and again.
    with collection_paused():
        images = _images(lists["images"], source)
        annotations, odd = _annotations(lists["annotations"], source, images, text)
    listed = lists["categories"]
    listed = listed if isinstance(listed, list) else plain_json(bytes(listed), source)
    classes = read_categories(listed, annotations["category_id"], source)
    notes = {"annotations": odd["total"]} | {name: odd[name] for name in ("empty", "areas", "ignored", "drawn")}
    annotations["label"], unlisted = _labels(annotations, classes, odd["values"])
    notes |= unlisted
    position = annotations.pop("image")
    annotations.pop("category_id")
    if (position[1:] < position[:-1]).any():
        order = np.argsort(position, kind="stable")
        for name in annotations:
            annotations[name] = annotations[name][order]
    per_image = np.bincount(position, minlength=len(images["image_id"]))
    objects = np.concatenate([[0], np.cumsum(per_image)]).astype(np.int64)
    return Decoded({**images, "objects": objects, **annotations}, classes, notes)


def _give_back(text: Any) -> None:
    """Of a mapped file, the pages that were read: they would count as this process's memory until the end."""
    if isinstance(text, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        text.madvise(mmap.MADV_DONTNEED)


def _images(part: Any, source: Path) -> dict[str, np.ndarray]:
    ids, names, sizes = [], [], []
    for piece in in_pieces(part, ImageEntry, source):
        column, wrong = id_column([entry.id for entry in piece.entries])
        texts = [entry.file_name for entry in piece.entries]
        if set(map(type, texts)) - {str}:
            wrong |= np.array([not isinstance(text, str) for text in texts])
        if wrong.any():
            entry = piece.plain()[int(np.argmax(wrong))]
            raise RepairableError(
                f"{source}: image {shown(entry, 300)} needs an integer 'id' of at most 64 bits and a 'file_name'"
            )
        ids.append(column)
        names += [text.encode("utf-8", "surrogatepass") for text in texts]
        sizes += [size_of(entry.width, entry.height) or (0, 0) for entry in piece.entries]
    image_id = np.concatenate([np.empty(0, np.int64), *ids])
    repeated = first_repeated(image_id)
    if repeated is not None:
        raise RepairableError(f"{source}: image id {image_id[repeated]} is listed twice; give each image its own id")
    bounds = np.array([0, *itertools.accumulate(map(len, names))], np.int64)
    return {
        "image_id": image_id,
        "size_px": np.array(sizes, np.int64).reshape(-1, 2),
        "names": np.frombuffer(b"".join(names), np.uint8),
        "name_bounds": bounds,
    }


def _annotations(
    part: Any, source: Path, images: dict[str, np.ndarray], text: Any
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Columns in the order of the file, with ``image`` (position) and ``category_id``; and what is odd about them."""
    by_id = np.argsort(images["image_id"], kind="stable")
    ordered = images["image_id"][by_id]
    pieces: dict[str, list[np.ndarray]] = {}
    odd: dict[str, Any] = {"total": 0, "empty": 0, "areas": 0, "ignored": 0, "drawn": 0, "values": {}}
    first, ids = 0, []
    for number, piece in enumerate(in_pieces(part, AnnotationEntry, source)):
        columns, wrong, listed, unusual = _columns(piece, ordered, by_id)
        ids.append(columns["annotation_id"])
        if wrong.any():
            row = int(np.argmax(wrong))
            check_repeated(np.concatenate(ids)[: first + row], source)
            refuse(piece.plain()[row], first + row, source, bool(listed[row]))
        columns["area_px"], cured = cured_areas(columns, piece.plain, piece.text)
        there = ~columns.pop("empty")
        odd["drawn"] += int(columns.pop("drawn").sum())
        odd["ignored"] += int((columns.pop("ignored") & there).sum())
        whole = bool(there.all())
        odd["areas"] += int((cured & there).sum())
        position = np.cumsum(there) - 1 + first - odd["empty"] if unusual else there
        odd["values"] |= {int(position[row]): shown(value) for row, value in unusual.items() if there[row]}
        odd["empty"] += 0 if whole else int((~there).sum())
        for name, column in columns.items():
            pieces.setdefault(name, []).append(column if whole else column[there])
        first += len(piece.entries)
        if number % _GIVE_BACK_PIECES == 0:
            _give_back(text)
    odd["total"] = first
    check_repeated(np.concatenate([np.empty(0, np.int64), *ids]), source)
    del ids
    return {name: np.concatenate([empty, *pieces.pop(name, [])]) for name, empty in _EMPTY.items()}, odd


_EMPTY = {
    "annotation_id": np.empty(0, np.int64),
    "image": np.empty(0, np.int64),
    "category_id": np.empty(0, np.int64),
    "box_xywh_px": np.empty((0, 4), np.float64),
    "area_px": np.empty(0, np.float64),
    "crowd": np.empty(0, bool),
}


def _columns(
    piece: Piece, ordered: Int64[np.ndarray, " m"], by_id: Int64[np.ndarray, " m"]
) -> tuple[dict[str, np.ndarray], Bool[np.ndarray, " n"], Bool[np.ndarray, " n"], dict[int, Any]]:
    """Columns of a piece; which entries are wrong; whose image is listed; category ids that are no whole numbers."""
    entries = piece.entries
    typed = piece.text is not None
    ids, wrong = id_column([entry.id for entry in entries], typed)
    image_ids, not_whole, _ = whole_column([entry.image_id for entry in entries], typed)
    place, listed = _places(image_ids, ordered, by_id)
    listed &= ~not_whole
    wrong |= ~listed
    category_ids, not_whole, unusual = whole_column([entry.category_id for entry in entries], typed)
    if unusual:
        wrong |= np.array([e.category_id is UNSET or isinstance(e.category_id, (list, dict)) for e in entries])
    boxes, empty, bad = box_column([entry.bbox for entry in entries], typed)
    drawn = boxes_of_masks(piece, empty | np.array([entry.bbox is UNSET for entry in entries], bool))
    boxes[drawn.rows] = drawn.box_xywh_px
    empty[drawn.rows] = bad[drawn.rows] = False
    crowd, unclear = flag_column([entry.iscrowd for entry in entries])
    ignored = np.zeros(len(entries), bool)
    for values in ([entry.ignore for entry in entries], [entry.difficult for entry in entries]):  # OTHER_FLAGS
        if values.count(UNSET) < len(values):
            here, unclear_here = flag_column(values)
            ignored, unclear = ignored | (here & ~crowd), unclear | unclear_here
    columns = {
        "annotation_id": ids,
        "image": place,
        "category_id": category_ids,
        "box_xywh_px": boxes,
        "area_px": area_column([entry.area for entry in entries]),
        "crowd": crowd | ignored,
        "empty": empty,
        "ignored": ignored,
        "drawn": np.isin(np.arange(len(entries)), drawn.rows),
    }
    return columns, wrong | bad | unclear, listed, unusual


def _places(
    ids: Int64[np.ndarray, " n"], ordered: Int64[np.ndarray, " m"], by_id: Int64[np.ndarray, " m"]
) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Positions by ids (``ordered`` are those of the positions ``by_id``), and which are listed."""
    if not len(ordered):
        return np.zeros(len(ids), np.int64), np.zeros(len(ids), bool)
    first, last = int(ordered[0]), int(ordered[-1])
    if last - first == len(ordered) - 1:  # numbered without a gap
        listed = (ids >= first) & (ids <= last)
        return by_id[np.where(listed, ids, first) - first], listed
    found = np.searchsorted(ordered, ids)
    found[found == len(ordered)] = 0
    return by_id[found], ordered[found] == ids


def _labels(
    annotations: dict[str, np.ndarray], classes: Classes, unusual: dict[int, str]
) -> tuple[Int32[np.ndarray, " n"], dict[str, Any]]:
    """Labels; and how many objects have a category that is not listed, with examples."""
    place, listed = _places(annotations["category_id"], np.array(classes.ids, np.int64), np.arange(len(classes)))
    label = np.where(listed, place, -1).astype(np.int32)
    label[list(unusual)] = -1  # a text or a broken number is no id, whatever stands in its place in the column
    rows = np.flatnonzero((label < 0) & ~annotations["crowd"])
    examples = [
        (
            int(annotations["annotation_id"][row]),
            int(annotations["image"][row]),
            unusual.get(row, str(annotations["category_id"][row])),
        )
        for row in rows[:_NUM_EXAMPLES].tolist()
    ]
    return label, {"unlisted": len(rows), "unlisted_examples": examples}
