"""Outlines of objects as annotation files give them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from pycocotools import mask as coco_mask

from dfine_jax.data.picture.run_lengths import expanded


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
            plain: Any = segmentation
            counts = coco_mask.frPyObjects(plain, height, width)["counts"]
        return RunLengths(int(height), int(width), counts.encode() if isinstance(counts, str) else bytes(counts))
    return None


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


def fills(counts: bytes, area_px: int) -> bool:
    """Whether COCO's compressed run lengths are of so many pixels; pycocotools draws others from arbitrary memory."""
    try:
        runs = expanded(counts)
    except ValueError:
        return False
    return bool(runs.min() >= 0 and runs.sum() == area_px)
