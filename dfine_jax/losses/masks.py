"""Terms and costs of masks (D-FINE-seg; reference: dfine_criterion.py and matcher.py of dfine-seg 0.6.2).

A mask's logit at a pixel is linear in the query's embedding, so only the embeddings of queries with an object are
multiplied with those of pixels, one layer after another, and the backward pass makes the maps again. Truth is a count
of quarters (``Targets.masks``). Objects without a mask take no part; everything is computed in at least float32.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8

from dfine_jax.ops.masks import masks_logit
from dfine_jax.ops.precision import at_least_float32
from dfine_jax.ops.recompute import image_by_image
from dfine_jax.typing import Targets

_QUARTERS = 4.0
_TINY = 1e-6  # of the dice: a mask of nothing that is nothing fits
_LOG_TINY = 1e-8  # of the focal cost


class MaskWeights(NamedTuple):
    """Weights of the costs of a match and of the terms."""

    cost_focal: float
    cost_dice: float
    bce: float
    dice: float


class MaskPairs(NamedTuple):
    """Queries with an object that has a mask, in ``p`` places for each image; other places mean nothing."""

    query: Int[Array, "*s b p"]
    slot: Int[Array, "*s b p"]
    exists: Bool[Array, "*s b p"]


def pairs_of_objects(match: Int[Array, "*s b q"], targets: Targets) -> MaskPairs:
    """Pairs of a one-to-one match: place i is the object of slot i."""
    num_gt = targets.valid.shape[-1]
    is_its = match[..., None] == jnp.arange(num_gt)  # [*s, b, q, g]
    slot = jnp.broadcast_to(jnp.arange(num_gt), is_its.shape[:-2] + (num_gt,))
    return MaskPairs(jnp.argmax(is_its, -2), slot, jnp.any(is_its, -2) & annotated(targets)[1])


def pairs_of_queries(match: Int[Array, "b u"], targets: Targets, places: int) -> MaskPairs:
    """Pairs of queries that are at most ``places`` in each image; several may have one object."""
    query = jnp.argsort(match < 0, axis=-1, stable=True)[:, :places]  # queries with an object first
    slot = jnp.take_along_axis(match, query, -1)
    has_mask = jnp.take_along_axis(annotated(targets)[1], jnp.maximum(slot, 0), -1)
    return MaskPairs(query, jnp.maximum(slot, 0), (slot >= 0) & has_mask)


def mask_terms(
    embedding: Float[Array, "s b q d"],
    pixels: Float[Array, "b h w d"],
    targets: Targets,
    pairs: MaskPairs,
    count: Float[Array, " #s"] | float,
) -> tuple[Float[Array, " s"], Float[Array, " s"]]:
    """Cross-entropy and dice of matched queries inside the boxes of their objects, by layer.

    Args:
      embedding: of the queries of all layers.
      pixels: what they are multiplied with.
      pairs: of each layer [s, b, p], or of all [b, p].
      count: pairs that the terms are divided by; 0: nothing to train.
    """
    masks, _ = annotated(targets)
    places = (*embedding.shape[:2], pairs.query.shape[-1])
    query, slot, exists = (jnp.broadcast_to(x, places) for x in pairs)
    chosen = jnp.take_along_axis(embedding, query[..., None], -2)  # [s, b, p, d]

    def of_images(pixels: Array, masks: Array, boxes: Array, embedding: Array, slot: Array, exists: Array) -> Array:
        truth = jnp.take_along_axis(masks, slot[..., None, None], 1)
        boxes = jnp.take_along_axis(boxes, slot[..., None], 1)
        bce, dice = pair_losses(masks_logit(embedding, pixels), truth, boxes)
        return jnp.stack([jnp.where(exists, bce, 0).sum(-1), jnp.where(exists, dice, 0).sum(-1)], -1)

    def of_layer(layer: tuple[Array, Array, Array]) -> Array:
        return image_by_image(of_images, pixels, masks, targets.boxes_cxcywh, *layer).sum(0)

    sums = jnp.stack([of_layer((chosen[i], slot[i], exists[i])) for i in range(chosen.shape[0])])
    count = jnp.asarray(count, sums.dtype)  # a mean over devices, which may be less than one
    means = sums / jnp.where(count > 0, count, 1.0)[..., None]
    return means[:, 0], means[:, 1]


def pair_losses(
    logits: Float[Array, "*b h w"], quarters: Float[Array, "*b h w"], boxes_cxcywh: Float[Array, "*b 4"]
) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
    """Cross-entropy and dice of maps inside boxes.

    The cross-entropy is divided by the box's area in cells, which is no whole number, where the sum is over whole
    cells: those whose index lies in the box.
    """
    logits = at_least_float32(logits)
    truth = quarters.astype(logits.dtype) / _QUARTERS
    inside, area = _cells(boxes_cxcywh.astype(logits.dtype), *logits.shape[-2:])
    entropy = softplus(logits) - logits * truth
    bce = jnp.where(inside, entropy, 0).sum((-2, -1)) / jnp.maximum(area, 1.0)
    p, truth = (jnp.where(inside, x, 0) for x in (jax.nn.sigmoid(logits), truth))
    overlap, both = (p * truth).sum((-2, -1)), p.sum((-2, -1)) + truth.sum((-2, -1))
    return bce, 1 - (2 * overlap + _TINY) / (both + _TINY)


def mask_cost(
    embedding: Float[Array, "s b q d"], pixels: Float[Array, "b h w d"], targets: Targets, weights: MaskWeights
) -> Float[Array, "s b q g"]:
    """Weighted focal and dice cost of every query with every object, on whole maps; 0 for objects without a mask.

    Two products for each image and layer, whose maps are made one after another; carries no gradient.
    """
    masks, has_mask = annotated(targets)
    embedding, pixels = lax.stop_gradient((embedding, pixels))
    images = jnp.arange(pixels.shape[0])

    def of_image(place: tuple[Array, Array]) -> Array:
        queries, image = place
        logits = masks_logit(queries, pixels[image])
        focal, dice = pair_costs(logits, masks[image])
        return weights.cost_focal * focal + weights.cost_dice * dice

    flat = embedding.reshape(-1, *embedding.shape[2:])
    cost = lax.map(of_image, (flat, jnp.tile(images, embedding.shape[0])))
    return jnp.where(has_mask[:, None], cost.reshape(*embedding.shape[:3], masks.shape[1]), 0)


def pair_costs(
    logits: Float[Array, "q h w"], quarters: Float[Array, "g h w"]
) -> tuple[Float[Array, "q g"], Float[Array, "q g"]]:
    """Focal (alpha 0.25, gamma 2, mean over the cells) and dice cost of all pairs."""
    cells = logits.shape[-2] * logits.shape[-1]
    logits = at_least_float32(logits).reshape(-1, cells)
    truth = quarters.reshape(-1, cells).astype(logits.dtype) / _QUARTERS
    p, rest = _both_sides(logits)
    positive = 0.25 * rest**2 * -jnp.log(p + _LOG_TINY)
    negative = 0.75 * p**2 * -jnp.log(rest + _LOG_TINY)
    focal = (negative.sum(-1, keepdims=True) + (positive - negative) @ truth.T) / logits.shape[-1]
    dice = 1 - (2 * p @ truth.T + _TINY) / (p.sum(-1, keepdims=True) + truth.sum(-1) + _TINY)
    return focal, dice


def _both_sides(logits: Float[Array, "*s"]) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """sigmoid(x) and sigmoid(-x) with one exponential; 1 - p would lose the smaller one's digits."""
    e = jnp.exp(-jnp.abs(logits))
    larger = 1 / (1 + e)
    smaller = e * larger
    return jnp.where(logits >= 0, larger, smaller), jnp.where(logits >= 0, smaller, larger)


@jax.custom_jvp
def softplus(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """log(1 + exp(x)), whose derivative is computed as the sigmoid that the dice needs anyway."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def _softplus_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return softplus(*primals), jax.nn.sigmoid(*primals) * tangents[0]


def annotated(targets: Targets) -> tuple[UInt8[Array, "b g h w"], Bool[Array, "b g"]]:
    """Masks, and which objects have one.

    Raises:
      ValueError: the targets have no masks.
    """
    if targets.masks is None or targets.has_mask is None:
        raise ValueError("the targets have no masks; give Targets.masks and Targets.has_mask")
    return targets.masks, targets.valid & targets.has_mask


def _cells(
    boxes_cxcywh: Float[Array, "*b 4"], height: int, width: int
) -> tuple[Bool[Array, "*b h w"], Float[Array, "*b"]]:
    """Cells whose index lies in the box, and the box's area in cells."""
    cx, cy, w, h = (boxes_cxcywh[..., i] for i in range(4))
    x1, x2 = ((cx - w / 2) * width).clip(0, width - 1), ((cx + w / 2) * width).clip(1, width)
    y1, y2 = ((cy - h / 2) * height).clip(0, height - 1), ((cy + h / 2) * height).clip(1, height)
    columns, rows = jnp.arange(width), jnp.arange(height)
    in_x = (columns >= x1[..., None]) & (columns < x2[..., None])
    in_y = (rows >= y1[..., None]) & (rows < y2[..., None])
    return in_y[..., :, None] & in_x[..., None, :], (x2 - x1) * (y2 - y1)
