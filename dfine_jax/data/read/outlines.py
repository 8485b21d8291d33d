"""Outlines of objects as annotation files give them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from pycocotools import mask as coco_mask


class Polygons(NamedTuple):
    """Outlines of the parts of one object, continuous pixel coordinates (a pixel covers [i, i + 1])."""

    parts: tuple[Float[np.ndarray, "n 2"], ...]


class RunLengths(NamedTuple):
    """COCO's compressed run lengths."""

    height_px: int
    width_px: int
    counts: bytes


Shape = Polygons | RunLengths | None  # None: an object without an outline


def parse_segmentation(segmentation: Any) -> Shape:
    """COCO's ``segmentation``: polygons, compressed or plain run lengths; None when there is nothing usable."""
    if isinstance(segmentation, list):
        parts = [np.asarray(part, np.float32) for part in segmentation if isinstance(part, list)]
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
