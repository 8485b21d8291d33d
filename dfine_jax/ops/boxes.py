"""Box conversions and overlaps, of NumPy and JAX arrays alike. Boxes are [..., 4]; pairs are formed by broadcasting.

NumPy arrays stay on the host and need no JAX, so that loader processes and exported files work with these, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from jaxtyping import Array

    AnyArray = Array | np.ndarray
    A = TypeVar("A", bound=AnyArray)
else:
    AnyArray = A = Any

_LEAST = float(np.finfo(np.float32).tiny)


def cxcywh_to_xyxy(boxes_cxcywh: Float[A, "*n 4"]) -> Float[A, "*n 4"]:
    """Centre and size to corners, without clamping."""
    centre, half = boxes_cxcywh[..., :2], 0.5 * boxes_cxcywh[..., 2:]
    return _namespace(boxes_cxcywh).concatenate([centre - half, centre + half], -1)


def xyxy_to_cxcywh(boxes_xyxy: Float[A, "*n 4"]) -> Float[A, "*n 4"]:
    """Corners to centre and size."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return _namespace(boxes_xyxy).concatenate([0.5 * (low + high), high - low], -1)


def clamped_xyxy(boxes_cxcywh: Float[A, "*n 4"]) -> Float[A, "*n 4"]:
    """Corners with negative sizes taken as zero, as the reference does before overlaps (box_ops.py)."""
    xp = _namespace(boxes_cxcywh)
    size = xp.maximum(boxes_cxcywh[..., 2:], 0.0)
    return cxcywh_to_xyxy(xp.concatenate([boxes_cxcywh[..., :2], size], -1))


def iou(a_xyxy: Float[A, "*n 4"], b_xyxy: Float[A, "*m 4"]) -> Float[A, "..."]:
    """Intersection over union of broadcast pairs; 0 where both boxes are of zero area."""
    intersection, union = _intersection_and_union(a_xyxy, b_xyxy)
    return intersection / _namespace(union).maximum(union, _LEAST)


def iou_and_giou(
    a_xyxy: Float[A, "*n 4"], b_xyxy: Float[A, "*m 4"], least_area: float = 0.0
) -> tuple[Float[A, "..."], Float[A, "..."]]:
    """Intersection over union and its generalised form (arXiv 1902.09630) of broadcast pairs.

    Two boxes of zero area give NaN, as in the reference; callers mask such pairs before they differentiate.

    Args:
      least_area: areas that divide are taken to be no smaller; then two boxes of zero area give zero.
    """
    xp = _namespace(a_xyxy)
    intersection, union = _intersection_and_union(a_xyxy, b_xyxy)
    hull_low = xp.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    hull_high = xp.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    hull = xp.prod(xp.maximum(hull_high - hull_low, 0.0), -1)
    if not least_area:
        overlap = intersection / union
        return overlap, overlap - (hull - union) / hull
    overlap = intersection / xp.maximum(union, least_area)
    return overlap, overlap - (hull - union) / xp.maximum(hull, least_area)


def mapped_boxes(boxes_xyxy: Float[np.ndarray, "g 4"], matrix: Float[np.ndarray, "*g 2 3"]) -> Float[np.ndarray, "g 4"]:
    """Extents of the corners under an affine map of the plane, or one for each box, float64; NumPy only."""
    x0, y0, x1, y1 = boxes_xyxy.astype(np.float64).T
    corners = np.stack([np.stack([x, y], -1) for x in (x0, x1) for y in (y0, y1)], 1)  # [g, 4, 2]
    corners = corners @ np.swapaxes(matrix[..., :2], -1, -2) + matrix[..., None, :, 2]
    return np.concatenate([corners.min(1), corners.max(1)], 1)


def inverse_sigmoid(x: Float[A, "*n"]) -> Float[A, "*n"]:
    """log(x / (1 - x)) of x clipped to [0, 1], both parts at least 1e-5."""
    xp = _namespace(x)
    x = xp.clip(x, 0.0, 1.0)
    return xp.log(xp.maximum(x, 1e-5) / xp.maximum(1.0 - x, 1e-5))


def _intersection_and_union(a_xyxy: AnyArray, b_xyxy: AnyArray) -> tuple[Any, Any]:
    xp = _namespace(a_xyxy)
    low = xp.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = xp.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    intersection = xp.prod(xp.maximum(high - low, 0.0), -1)
    area_a = xp.prod(a_xyxy[..., 2:] - a_xyxy[..., :2], -1)
    area_b = xp.prod(b_xyxy[..., 2:] - b_xyxy[..., :2], -1)
    return intersection, area_a + area_b - intersection


def _namespace(array: AnyArray) -> Any:
    """``numpy`` or ``jax.numpy``."""
    return array.__array_namespace__()
