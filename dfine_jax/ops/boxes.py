"""Box conversions and overlaps. Boxes are arrays [..., 4]; pairs are formed by broadcasting."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def cxcywh_to_xyxy(boxes_cxcywh: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Centre and size to corners, without clamping."""
    centre, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    return jnp.concatenate([centre - 0.5 * size, centre + 0.5 * size], -1)


def xyxy_to_cxcywh(boxes_xyxy: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Corners to centre and size."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return jnp.concatenate([0.5 * (low + high), high - low], -1)


def clamped_xyxy(boxes_cxcywh: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Corners with negative sizes taken as zero, as the reference does before overlaps (box_ops.py)."""
    size = jnp.maximum(boxes_cxcywh[..., 2:], 0.0)
    return cxcywh_to_xyxy(jnp.concatenate([boxes_cxcywh[..., :2], size], -1))


def iou_and_giou(
    a_xyxy: Float[Array, "*n 4"], b_xyxy: Float[Array, "*m 4"]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Intersection over union and its generalised form (arXiv 1902.09630) of broadcast pairs, without epsilon.

    Two boxes of zero area give NaN, as in the reference; callers mask such pairs before they differentiate.
    """
    low = jnp.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = jnp.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    intersection = jnp.prod(jnp.maximum(high - low, 0.0), -1)
    area_a = jnp.prod(a_xyxy[..., 2:] - a_xyxy[..., :2], -1)
    area_b = jnp.prod(b_xyxy[..., 2:] - b_xyxy[..., :2], -1)
    union = area_a + area_b - intersection
    iou = intersection / union
    hull_low = jnp.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    hull_high = jnp.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    hull = jnp.prod(jnp.maximum(hull_high - hull_low, 0.0), -1)
    return iou, iou - (hull - union) / hull


def inverse_sigmoid(x: Float[Array, "*n"], eps: float = 1e-5) -> Float[Array, "*n"]:
    """log(x / (1 - x)) of x clipped to [0, 1], both parts at least ``eps``."""
    x = jnp.clip(x, 0.0, 1.0)
    return jnp.log(jnp.maximum(x, eps) / jnp.maximum(1.0 - x, eps))
