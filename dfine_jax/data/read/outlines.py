"""Outlines of objects as annotation files give them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from dfine_jax.data.picture.run_lengths import expanded

_EDGES_AT_ONCE = 256


class Polygons(NamedTuple):
    """Outlines of the parts of one object, continuous pixel coordinates (a pixel covers [i, i + 1])."""

    parts: tuple[Float64[np.ndarray, "n 2"], ...]


class RunLengths(NamedTuple):
    """COCO's compressed run lengths."""

    height_px: int
    width_px: int
    counts: bytes


Outline = Polygons | RunLengths | None  # None: an object without an outline


def parse_segmentation(segmentation: Any) -> Outline:
    """COCO's ``segmentation``: polygons, compressed or plain run lengths; None when there is nothing usable."""
    if isinstance(segmentation, list):
        parts = [np.asarray(part, np.float64) for part in segmentation if isinstance(part, list)]
        parts = [part[: len(part) // 2 * 2].reshape(-1, 2) for part in parts if len(part) >= 6]
        return Polygons(tuple(parts)) if parts else None
    if isinstance(segmentation, dict) and "counts" in segmentation and "size" in segmentation:
        height, width = segmentation["size"]
        counts: Any = segmentation["counts"]
        if isinstance(counts, list):
            from pycocotools import mask as coco_mask

            plain: Any = segmentation
            counts = coco_mask.frPyObjects(plain, height, width)["counts"]
        return RunLengths(int(height), int(width), counts.encode() if isinstance(counts, str) else bytes(counts))
    return None


def drawable(segmentation: Any, width_px: int, height_px: int) -> Outline:
    """An outline that can be drawn over its picture, of COCO's ``segmentation``.

    Raises:
      ValueError: what is wrong with it.
    """
    try:
        return checked(parse_segmentation(segmentation), width_px, height_px)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(str(error)) from error


def checked(outline: Outline, width_px: int, height_px: int) -> Outline:
    """An outline that can be drawn over its picture; points far outside are brought to a picture's size from it.

    Raises:
      ValueError: coordinates are not finite, or run lengths are of another size or do not fill it.
    """
    if isinstance(outline, Polygons):
        size = np.array([width_px, height_px])
        if not all(np.isfinite(part).all() for part in outline.parts):
            raise ValueError("has coordinates that are not finite")
        return Polygons(tuple(part.clip(-size, 2 * size) for part in outline.parts))
    if isinstance(outline, RunLengths):
        if (outline.width_px, outline.height_px) != (width_px, height_px):
            raise ValueError(f"is {outline.width_px}x{outline.height_px}, its picture {width_px}x{height_px}")
        if not fills(outline.counts, width_px * height_px):
            raise ValueError(f"does not fill its picture of {width_px}x{height_px}")
    return outline


def in_run_lengths(outline: Polygons | RunLengths, width_px: int, height_px: int) -> RunLengths:
    """An outline as pycocotools draws it: polygons even-odd within a part, parts united."""
    if isinstance(outline, RunLengths):
        return outline
    from pycocotools import mask as coco_mask

    parts: Any = [part.ravel() for part in outline.parts]
    drawn: Any = coco_mask.merge(coco_mask.frPyObjects(parts, height_px, width_px))
    return RunLengths(height_px, width_px, drawn["counts"])


def area_px(runs: RunLengths) -> float:
    """Number of pixels that are set."""
    from pycocotools import mask as coco_mask

    encoded: Any = {"size": [runs.height_px, runs.width_px], "counts": runs.counts}
    return float(coco_mask.area(encoded))


def crosses_itself(points: Float64[np.ndarray, "n 2"]) -> bool:
    """Whether two edges of a closed polygon have inner points in common; edges that only touch do not count."""
    following = np.roll(points, -1, axis=0)
    for first in range(0, len(points), _EDGES_AT_ONCE):
        block = slice(first, first + _EDGES_AT_ONCE)
        side = _side(points[block, None], following[block, None], points)  # [edge, point]
        edge, other = np.nonzero(side * np.roll(side, -1, axis=1) < 0)  # the other's ends lie on both sides of its line
        edge += first
        ends = (_side(points[other], following[other], point[edge]) for point in (points, following))
        if (next(ends) * next(ends) < 0).any():
            return True
    return False


def _side(start: np.ndarray, end: np.ndarray, point: np.ndarray) -> np.ndarray:
    """1 or -1 by the side of the line through two points that another lies on, 0 on the line."""
    along, to = end - start, point - start
    return np.sign(along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0])


def fills(counts: bytes, area_px: int) -> bool:
    """Whether COCO's compressed run lengths are of so many pixels; pycocotools draws others from arbitrary memory."""
    try:
        runs = expanded(counts)
    except ValueError:
        return False
    return bool(runs.min() >= 0 and runs.sum() == area_px)
