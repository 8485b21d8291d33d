"""Boxes of objects that a file only gives a mask."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from pycocotools import mask as coco_mask

from dfine_jax.data.read.coco_pieces import Piece
from dfine_jax.data.read.outlines import Polygons, fills, parse_segmentation


class DrawnBoxes(NamedTuple):
    """Rows of a piece, and the box of each one's mask."""

    rows: Int64[np.ndarray, " k"]
    box_xywh_px: Float64[np.ndarray, "k 4"]


def boxes_of_masks(piece: Piece, without: Bool[np.ndarray, " n"]) -> DrawnBoxes:
    """Boxes of those entries ``without`` one of their own that have a mask with an extent."""
    found = {}
    if without.any() and (piece.text is None or b'"segmentation"' in piece.text):
        entries = piece.plain()
        for row in np.flatnonzero(without).tolist():
            if isinstance(entries[row], dict) and (box := mask_box(entries[row].get("segmentation"))):
                found[row] = box
    return DrawnBoxes(np.array(list(found), np.int64), np.array(list(found.values()), np.float64).reshape(-1, 4))


def mask_box(segmentation: Any) -> list[float] | None:
    """[x, y, width, height] in pixels of COCO's ``segmentation``, of polygons to their corners; None where it is none.

    What is damaged has none either: it says nothing of where the object is.
    """
    try:
        shape = parse_segmentation(segmentation)
        if shape is None:
            return None
        if isinstance(shape, Polygons):
            corners = np.concatenate(shape.parts)
            start = corners.min(0)
            box = [*start.tolist(), *(corners.max(0) - start).tolist()]
        elif shape.height_px > 0 and shape.width_px > 0 and fills(shape.counts, shape.height_px * shape.width_px):
            encoded: Any = {"size": [shape.height_px, shape.width_px], "counts": shape.counts}
            box = coco_mask.toBbox(encoded).tolist()
        else:
            return None
    except (TypeError, ValueError, OverflowError):  # not of numbers, or not of two sides
        return None
    return box if np.isfinite(box).all() and min(box[2:]) > 0 else None
