"""Object masks that travel with the boxes: outlines and one affine map per object, drawn once at the end.

Every operation of the pipeline that moves pixels is affine, so nothing is drawn or resampled on the way, and a mask
fits its object as exactly at the end as it did in the annotation file. Cutting hides: what a crop leaves of a picture
travels along as a rectangle, because a letterbox shows black beside it. When a picture is rotated, what was left of it
is noted as a rectangle of the annotated picture, where it stays upright.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from pycocotools import mask as coco_mask

from dfine_jax.data.read.outlines import Outline, Polygons, RunLengths
from dfine_jax.ops.boxes import mapped_boxes


class Masks(NamedTuple):
    """Masks of a sample: where each outline, in pixels of its annotated picture, lies in the window."""

    outlines: tuple[Outline, ...]
    affine: Float[np.ndarray, "g 2 3"]  # float64
    visible_xyxy_px: Float[np.ndarray, "g 4"]  # float64; where in the window its picture can be seen
    shown_xyxy_px: Float[np.ndarray, "g 4"]  # float64; of the annotated picture, what was left when it was rotated

    @property
    def exist(self) -> Bool[np.ndarray, " g"]:
        """Which objects have a mask; what is left of it may be empty."""
        return np.array([outline is not None for outline in self.outlines], bool)


def make_masks(outlines: Sequence[Outline], size_px: tuple[int, int]) -> Masks:
    """Masks in place, as annotated in a picture of (width, height)."""
    whole = np.tile(np.array([0, 0, *size_px], np.float64), (len(outlines), 1))
    return Masks(tuple(outlines), np.tile(np.eye(2, 3), (len(outlines), 1, 1)), whole, whole)


def select(masks: Masks | None, keep: Bool[np.ndarray, " g"]) -> Masks | None:
    """Those of the objects that are kept."""
    if masks is None:
        return None
    outlines = tuple(masks.outlines[i] for i in np.flatnonzero(keep))
    return Masks(outlines, *(array[keep] for array in masks[1:]))


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
    """Under an affine map of the plane."""
    if masks is None:
        return None
    affine = np.einsum("ij,gjk->gik", matrix[:, :2], masks.affine)
    affine[:, :, 2] += matrix[:, 2]
    visible, shown = masks.visible_xyxy_px, masks.shown_xyxy_px
    if _is_slanted(matrix):  # then what was visible is an upright rectangle only in the annotated picture
        before = mapped_boxes(visible, _inverses(masks.affine))
        low, high = np.maximum(shown, before)[:, :2], np.minimum(shown, before)[:, 2:]
        shown = np.concatenate([low, np.maximum(low, high)], 1)
    return Masks(masks.outlines, affine, mapped_boxes(visible, matrix), shown)


def _is_slanted(matrix: Float[np.ndarray, "2 3"]) -> bool:
    """Whether a map turns upright rectangles into others."""
    return bool((matrix[0, :2] != 0).all() or (matrix[1, :2] != 0).all())


def _inverses(affine: Float[np.ndarray, "g 2 3"]) -> Float[np.ndarray, "g 2 3"]:
    linear = np.linalg.inv(affine[:, :, :2])
    return np.concatenate([linear, -linear @ affine[:, :, 2:]], 2)


def concatenated(parts: Sequence[Masks | None]) -> Masks | None:
    """Of several samples, in order; None if any has none."""
    present = [part for part in parts if part is not None]
    if len(present) < len(parts):
        return None
    return Masks(
        tuple(outline for part in present for outline in part.outlines),
        *(np.concatenate(arrays) for arrays in zip(*(part[1:] for part in present), strict=True)),
    )


def drawn(masks: Masks, height_px: int, width_px: int, stride: int) -> UInt8[np.ndarray, "g h w"]:
    """Masks at ``1 / stride`` of a window of (height, width), both multiples of it, in quarters: 0 to 4.

    Each outline is drawn at the size of the window, polygons by pycocotools (even-odd within a part, parts united),
    and a cell counts the four pixels at its centre; of an odd stride, four times the one. A quarter of that is what
    bilinear resizing without antialiasing makes of the drawn mask, exactly. Objects without a mask get zeros.
    """
    out = np.zeros((len(masks.outlines), height_px // stride, width_px // stride), np.uint8)
    pixels = np.ceil(masks.visible_xyxy_px - 0.5).astype(np.int64)  # of which the centre is inside
    visible = pixels.clip(0, [width_px, height_px] * 2)
    for cells, outline, affine, seen, shown in zip(out, *masks[:2], visible, masks.shown_xyxy_px, strict=True):
        if outline is not None:
            _draw(cells, outline, affine, seen, shown, stride)
    return out


def _draw(
    cells: UInt8[np.ndarray, "h w"],
    outline: Polygons | RunLengths,
    affine: Float[np.ndarray, "2 3"],
    visible: Int64[np.ndarray, " 4"],
    shown: Float[np.ndarray, " 4"],
    stride: int,
) -> None:
    """Draw an outline into the cells that it can reach; only their pixels are computed."""
    reached = np.floor(_extent(outline, affine) / stride) + [0, 0, 1, 1]
    x0, y0, x1, y1 = reached.clip(0, cells.shape[::-1] * 2).astype(int).tolist()
    if x0 >= x1 or y0 >= y1:
        return
    corner_px = np.array([x0, y0]) * stride
    size_px = (x1 - x0) * stride, (y1 - y0) * stride
    if isinstance(outline, Polygons):
        pixels = _filled(outline, affine, corner_px, size_px)
    else:
        pixels = _warped(outline, affine, corner_px, size_px)
    if _is_slanted(affine) and _reaches_beyond(outline, shown):
        pixels = pixels & _filled(_rectangle(shown), affine, corner_px, size_px)
    left, top, right, bottom = (visible - np.tile(corner_px, 2)).clip(0).tolist()
    pixels[:top], pixels[bottom:], pixels[:, :left], pixels[:, right:] = 0, 0, 0, 0
    blocks = pixels.reshape(y1 - y0, stride, x1 - x0, stride)
    first, last = (stride - 1) // 2, stride // 2  # the same one where the stride is odd
    rows = blocks[:, first] + blocks[:, last]
    cells[y0:y1, x0:x1] = rows[:, :, first] + rows[:, :, last]


def _extent(outline: Polygons | RunLengths, affine: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, " 4"]:
    """Corners of what holds the mapped outline, pixels."""
    if isinstance(outline, Polygons):
        points = np.concatenate(outline.parts) @ affine[:, :2].T + affine[:, 2]
        return np.concatenate([points.min(0), points.max(0)])
    bits, left, top = _decoded(outline)
    height, width = bits.shape
    box = np.array([[left, top, left + width, top + height]], np.float64)
    return mapped_boxes(box, affine)[0]


def _reaches_beyond(outline: Polygons | RunLengths, shown: Float[np.ndarray, " 4"]) -> bool:
    """Whether a part of the outline, in its picture, lies outside of what is shown of it."""
    low_high = _extent(outline, np.eye(2, 3))
    return bool((low_high[:2] < shown[:2]).any() or (low_high[2:] > shown[2:]).any())


def _rectangle(xyxy: Float[np.ndarray, " 4"]) -> Polygons:
    x0, y0, x1, y1 = xyxy
    return Polygons((np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64),))


def _filled(
    outline: Polygons, affine: Float[np.ndarray, "2 3"], corner_px: Int64[np.ndarray, " 2"], size_px: tuple[int, int]
) -> UInt8[np.ndarray, "h w"]:
    """Polygons in a part of the window, from its corner on (width, height) large: 1 inside.

    Pycocotools takes the whole part, towards zero, of five times a coordinate and a half. That is done here, before the
    corner is subtracted, so that the part shows what the whole window would.
    """
    parts = []
    for part in outline.parts:
        fifths = np.trunc((part @ affine[:, :2].T + affine[:, 2]) * 5 + 0.5) - 5 * corner_px
        parts.append(((fifths - 0.75 * (fifths < 0)) / 5).ravel().tolist())
    encoded = coco_mask.merge(coco_mask.frPyObjects(parts, size_px[1], size_px[0]))
    return coco_mask.decode(encoded)


def _warped(
    outline: RunLengths, affine: Float[np.ndarray, "2 3"], corner_px: Int64[np.ndarray, " 2"], size_px: tuple[int, int]
) -> UInt8[np.ndarray, "h w"]:
    """The same of a bitmap: 1 where most of a pixel is covered."""
    bits, left, top = _decoded(outline)
    shrink = max(1, int(1 / np.abs(np.linalg.det(affine[:, :2])) ** 0.5))
    bitmap = Image.fromarray(np.pad(bits * np.uint8(255), shrink))
    if shrink > 1:  # average first: interpolation alone would skip pixels
        bitmap = bitmap.reduce(shrink)
    own = np.column_stack([affine[:, :2], affine[:, 2] - corner_px])
    place = np.array([[shrink, 0, left - shrink], [0, shrink, top - shrink], [0, 0, 1]], np.float64)
    inverse = np.linalg.inv(np.vstack([own, [0, 0, 1]]) @ place)[:2]
    pixels = bitmap.transform(size_px, Image.Transform.AFFINE, tuple(inverse.ravel()), Image.Resampling.BILINEAR)
    return (np.asarray(pixels) > 127).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _decoded(outline: RunLengths) -> tuple[UInt8[np.ndarray, "h w"], int, int]:
    """The part of the bitmap that holds all that is set, and its left and top."""
    encoded: Any = {"size": [outline.height_px, outline.width_px], "counts": outline.counts}
    bits = coco_mask.decode(encoded)
    left, top, width, height = coco_mask.toBbox(encoded).astype(int).tolist()
    return np.ascontiguousarray(bits[top : top + height, left : left + width]), left, top
