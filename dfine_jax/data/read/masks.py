"""Object masks that travel with the boxes: outlines and one affine map per object, rasterised once at the end.

Every operation of the pipeline that moves pixels is affine, so nothing is drawn or resampled on the way, and a mask
fits its object as exactly at the end as it did in the annotation file. Cutting hides: what a crop leaves of a picture
travels along as a rectangle, because a letterbox shows black beside it.
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
    visible_xyxy_px: Float[np.ndarray, "g 4"]  # float64; where in the window its picture can be seen


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


def make_masks(shapes: Sequence[Shape], size_px: tuple[int, int]) -> Masks:
    """Masks in place, as annotated in a picture of (width, height)."""
    visible = np.tile(np.array([0, 0, *size_px], np.float64), (len(shapes), 1))
    return Masks(tuple(shapes), np.tile(np.eye(2, 3), (len(shapes), 1, 1)), visible)


def select(masks: Masks | None, keep: Bool[np.ndarray, " g"]) -> Masks | None:
    """Those of the objects that are kept."""
    if masks is None:
        return None
    shapes = tuple(masks.shapes[i] for i in np.flatnonzero(keep))
    return Masks(shapes, masks.affine[keep], masks.visible_xyxy_px[keep])


def cut(masks: Masks | None, size_px: tuple[int, int]) -> Masks | None:
    """Hidden outside a window of (width, height)."""
    if masks is None:
        return None
    return masks._replace(visible_xyxy_px=masks.visible_xyxy_px.clip(0, [*size_px, *size_px]))


def moved(masks: Masks | None, scale: Sequence[float], shift_px: Sequence[float]) -> Masks | None:
    """Under (x, y) -> scale * (x, y) + shift."""
    (sx, sy), (tx, ty) = scale, shift_px
    return mapped(masks, np.array([[sx, 0, tx], [0, sy, ty]], np.float64))


def mapped(masks: Masks | None, matrix: Float[np.ndarray, "2 3"]) -> Masks | None:
    """Under an affine map of the plane; under a rotation, the extent of what was visible counts as visible."""
    if masks is None:
        return None
    affine = np.einsum("ij,gjk->gik", matrix[:, :2], masks.affine)
    affine[:, :, 2] += matrix[:, 2]
    return Masks(masks.shapes, affine, mapped_boxes(masks.visible_xyxy_px, matrix))


def mapped_boxes(boxes_xyxy: Float[np.ndarray, "g 4"], matrix: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, "g 4"]:
    """Extents of the mapped corners, float64."""
    x0, y0, x1, y1 = boxes_xyxy.astype(np.float64).T
    corners = np.stack([np.stack([x, y], -1) for x in (x0, x1) for y in (y0, y1)], 1)  # [g, 4, 2]
    corners = corners @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([corners.min(1), corners.max(1)], 1)


def concatenated(parts: Sequence[Masks | None]) -> Masks | None:
    """Of several samples, in order; None if any has none."""
    present = [part for part in parts if part is not None]
    if len(present) < len(parts):
        return None
    return Masks(
        tuple(s for p in present for s in p.shapes),
        np.concatenate([p.affine for p in present]),
        np.concatenate([p.visible_xyxy_px for p in present]),
    )


def rasterised(masks: Masks, height: int, width: int, stride: int) -> Bool[np.ndarray, "g height width"]:
    """Bitmaps of a window of ``height * stride`` by ``width * stride`` pixels; set where most of a cell is covered."""
    out = np.zeros((len(masks.shapes), height, width), bool)
    visible = np.ceil(masks.visible_xyxy_px / stride - 0.5).astype(np.int64).clip(0)  # cells whose centre is inside
    for index, (shape, affine) in enumerate(zip(masks.shapes, masks.affine / stride, strict=True)):
        left, top, right, bottom = visible[index]
        part = np.s_[index, top:bottom, left:right]
        if isinstance(shape, Polygons):
            out[part] = _filled(shape, affine, height, width)[part[1:]]
        elif isinstance(shape, RunLengths):
            out[part] = _warped(shape, affine, height, width)[part[1:]]
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
