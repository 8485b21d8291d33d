"""Object masks that travel with the boxes: outlines and one affine map per object, rasterised once at the end.

Every operation of the pipeline that moves pixels is affine (cutting only hides), so nothing is drawn or resampled on
the way, and a mask fits its object as exactly at the end as it did in the annotation file.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from pycocotools import mask as coco_mask


class Polygons(NamedTuple):
    """Outlines of the parts of one object, continuous pixel coordinates (a pixel covers [i, i + 1])."""

    parts: tuple[Float[np.ndarray, "n 2"], ...]


class RunLengths(NamedTuple):
    """COCO's compressed run lengths."""

    height_px: int
    width_px: int
    counts: bytes


Shape = Polygons | RunLengths | None  # None: an object without a mask; it is drawn empty


class Masks(NamedTuple):
    """Masks of a sample: where each shape, in pixels of its annotated picture, lies in the window."""

    shapes: tuple[Shape, ...]
    affine: Float[np.ndarray, "g 2 3"]  # float64


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


def make_masks(shapes: Sequence[Shape]) -> Masks:
    """Masks in place, as annotated."""
    return Masks(tuple(shapes), np.tile(np.eye(2, 3), (len(shapes), 1, 1)))


def select(masks: Masks | None, keep: Bool[np.ndarray, " g"]) -> Masks | None:
    """Those of the objects that are kept."""
    if masks is None:
        return None
    return Masks(tuple(masks.shapes[i] for i in np.flatnonzero(keep)), masks.affine[keep])


def moved(masks: Masks | None, scale: Sequence[float], shift_px: Sequence[float]) -> Masks | None:
    """Under (x, y) -> scale * (x, y) + shift."""
    (sx, sy), (tx, ty) = scale, shift_px
    return mapped(masks, np.array([[sx, 0, tx], [0, sy, ty]], np.float64))


def mapped(masks: Masks | None, matrix: Float[np.ndarray, "2 3"]) -> Masks | None:
    """Under an affine map of the plane."""
    if masks is None:
        return None
    affine = np.einsum("ij,gjk->gik", matrix[:, :2], masks.affine)
    affine[:, :, 2] += matrix[:, 2]
    return Masks(masks.shapes, affine)


def concatenated(parts: Sequence[Masks | None]) -> Masks | None:
    """Of several samples, in order; None if any has none."""
    present = [part for part in parts if part is not None]
    if len(present) < len(parts):
        return None
    return Masks(tuple(s for p in present for s in p.shapes), np.concatenate([p.affine for p in present]))


def rasterised(masks: Masks, height: int, width: int, stride: int) -> Bool[np.ndarray, "g height width"]:
    """Bitmaps of a window of ``height * stride`` by ``width * stride`` pixels; set where most of a cell is covered."""
    out = np.zeros((len(masks.shapes), height, width), bool)
    for index, (shape, affine) in enumerate(zip(masks.shapes, masks.affine / stride, strict=True)):
        if isinstance(shape, Polygons):
            out[index] = _filled(shape, affine, height, width)
        elif isinstance(shape, RunLengths):
            out[index] = _warped(shape, affine, height, width)
    return out


def _filled(shape: Polygons, affine: Float[np.ndarray, "2 3"], height: int, width: int) -> Bool[np.ndarray, "h w"]:
    parts = [(part @ affine[:, :2].T + affine[:, 2]).ravel().tolist() for part in shape.parts]
    encoded = coco_mask.merge(coco_mask.frPyObjects(parts, height, width))
    return coco_mask.decode(encoded).astype(bool)


def _warped(shape: RunLengths, affine: Float[np.ndarray, "2 3"], height: int, width: int) -> Bool[np.ndarray, "h w"]:
    bitmap = _decoded(shape)
    shrink = max(1, int(1 / np.abs(np.linalg.det(affine[:, :2])) ** 0.5))
    if shrink > 1:  # average first: interpolation alone would skip pixels
        bitmap = bitmap.reduce(shrink)
    inverse = np.linalg.inv(np.vstack([affine * [[shrink, shrink, 1]], [[0, 0, 1]]]))
    drawn = bitmap.transform(
        (width, height), Image.Transform.AFFINE, tuple(inverse[:2].ravel()), Image.Resampling.BILINEAR
    )
    return np.asarray(drawn) > 127


@functools.lru_cache(maxsize=64)
def _decoded(shape: RunLengths) -> Image.Image:
    encoded: Any = {"size": [shape.height_px, shape.width_px], "counts": shape.counts}
    return Image.fromarray(coco_mask.decode(encoded) * np.uint8(255))
