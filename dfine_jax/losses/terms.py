"""Terms of classes and boxes, each a pure function of (predictions, truth); those of edge distributions are in fdr.py.

Predictions may carry leading axes ``s`` (layers), which stay: a term returns one value per layer, and a scalar for
plain [b, q, ...] predictions, so that any single term can be given to jax.grad. Weights and targets derived from
predictions (overlaps, scores, teachers) carry no gradient. Everything is computed in at least float32.

Masked entries are replaced before the formula as well as after it, so that neither values nor gradients of queries
without an object can become NaN. A sum over nothing is exactly zero.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dfine_jax.ops.boxes import clamped_xyxy, iou_and_giou
from dfine_jax.ops.precision import at_least_float32
from dfine_jax.typing import Targets

LEAST_TARGET = 0.01  # of a matched query in iabce_loss
WHOLE_IMAGE = (0.5, 0.5, 1.0, 1.0)  # stands in for the boxes of unmatched queries


@flax.struct.dataclass
class Truth:
    """The object of each query; rows where ``matched`` is False hold class 0 and the whole image."""

    labels: Int[Array, "*s b q"]
    boxes_cxcywh: Float[Array, "*s b q 4"]
    matched: Bool[Array, "*s b q"]


def gather_truth(targets: Targets, match: Int[Array, "*s b q"]) -> Truth:
    """Look up the objects of ``match`` (ground-truth slot or -1)."""
    matched = match >= 0
    if targets.labels.shape[-1] == 0:
        labels = jnp.zeros(match.shape, targets.labels.dtype)
        boxes = jnp.zeros((*match.shape, 4), targets.boxes_cxcywh.dtype)
    else:
        image = jnp.arange(match.shape[-2])[:, None]
        labels, boxes = (  # arrays of NumPy do not take traced indices
            jnp.asarray(x)[image, jnp.maximum(match, 0)] for x in (targets.labels, targets.boxes_cxcywh)
        )
    whole = jnp.asarray(WHOLE_IMAGE, boxes.dtype)
    return Truth(jnp.where(matched, labels, 0), jnp.where(matched[..., None], boxes, whole), matched)


def overlaps(
    boxes_cxcywh: Float[Array, "*s b q 4"], truth: Truth, least_area: float = 0.0
) -> tuple[Float[Array, "*s b q"], Float[Array, "*s b q"]]:
    """IoU and generalised IoU of each query with its object, 1 where there is none; as ``boxes.iou_and_giou``."""
    boxes = at_least_float32(boxes_cxcywh)
    boxes = jnp.where(truth.matched[..., None], boxes, jnp.asarray(WHOLE_IMAGE, boxes.dtype))
    return iou_and_giou(clamped_xyxy(boxes), clamped_xyxy(truth.boxes_cxcywh.astype(boxes.dtype)), least_area)


def vfl_loss(
    logits: Float[Array, "*s b q k"],
    boxes_cxcywh: Float[Array, "*s b q 4"],
    truth: Truth,
    normalizer: Float[Array, ""] | float,
    alpha: float = 0.75,
    gamma: float = 2.0,
    exists: Bool[Array, " q"] | None = None,
) -> Float[Array, "*s"]:
    """Varifocal loss (arXiv 2008.13367): cross-entropy with the overlap as soft target, background scaled by its score.

    Args:
      exists: rows that take part, matched or not; None means all.
    """
    is_class, target = _class_target(logits, boxes_cxcywh, truth)
    weight = lambda p: jnp.where(is_class, target, alpha * p**gamma)  # noqa: E731
    return _weighted_entropy(logits, target, weight, normalizer, exists)


def mal_loss(
    logits: Float[Array, "*s b q k"],
    boxes_cxcywh: Float[Array, "*s b q 4"],
    truth: Truth,
    normalizer: Float[Array, ""] | float,
    alpha: float = 1.0,
    gamma: float = 1.5,
    exists: Bool[Array, " q"] | None = None,
) -> Float[Array, "*s"]:
    """Matchability-aware loss (DEIM, arXiv 2412.04234): the target is the overlap to the power ``gamma``.

    Unlike in :func:`vfl_loss`, a matched query has weight 1 however small the overlap.

    Args:
      alpha: weight of the background.
      exists: rows that take part, matched or not; None means all.
    """
    is_class, overlap = _class_target(logits, boxes_cxcywh, truth)
    weight = lambda p: jnp.where(is_class, 1.0, alpha * p**gamma)  # noqa: E731
    return _weighted_entropy(logits, overlap**gamma, weight, normalizer, exists)


def focal_loss(
    logits: Float[Array, "*s b q k"],
    truth: Truth,
    normalizer: Float[Array, ""] | float,
    alpha: float = 0.75,
    gamma: float = 2.0,
    exists: Bool[Array, " q"] | None = None,
) -> Float[Array, "*s"]:
    """Focal loss (arXiv 1708.02002); here the gradient also flows through the modulating score."""
    logits = _present(at_least_float32(logits), exists)
    is_class = _is_class(logits, truth)
    score = jax.nn.sigmoid(logits)
    weight = jnp.where(is_class, alpha * (1.0 - score) ** gamma, (1.0 - alpha) * score**gamma)
    entropy = jax.nn.softplus(logits) - logits * is_class
    return jnp.sum(_present(weight * entropy, exists), (-3, -2, -1)) / normalizer


def iabce_loss(
    logits: Float[Array, "*s b q k"],
    boxes_cxcywh: Float[Array, "*s b q 4"],
    truth: Truth,
    normalizer: Float[Array, ""] | float,
    alpha: float = 0.25,
    gamma: float = 2.0,
    least_area: float = 0.0,
) -> Float[Array, "*s"]:
    """Cross-entropy aware of overlaps (IA-BCE, LW-DETR, arXiv 2406.03459): score and overlap make the soft target.

    The target of a matched query is ``score**alpha * IoU**(1 - alpha)``, at least 0.01, without gradient; the rest to
    one weighs its class as background. All other classes are background that weighs ``score**gamma``, through which
    the gradient flows, too.

    Args:
      least_area: of the overlaps, as for ``boxes.iou_and_giou``.
    """
    logits = at_least_float32(logits)
    is_class = _is_class(logits, truth)
    own, overlap = jax.lax.stop_gradient(
        (
            jnp.take_along_axis(logits, truth.labels[..., None], -1)[..., 0],
            overlaps(boxes_cxcywh, truth, least_area)[0].astype(logits.dtype),
        )
    )
    target = jnp.maximum(jax.nn.sigmoid(own) ** alpha * overlap ** (1.0 - alpha), LEAST_TARGET)[..., None]
    background = jnp.where(is_class, 1.0 - target, jax.nn.sigmoid(logits) ** gamma)
    entropy = background * jax.nn.softplus(logits) + jnp.where(is_class, target, 0.0) * jax.nn.softplus(-logits)
    return jnp.sum(entropy, (-3, -2, -1)) / normalizer


def _is_class(logits: Float[Array, "*s b q k"], truth: Truth) -> Bool[Array, "... b q k"]:
    return jax.nn.one_hot(truth.labels, logits.shape[-1], dtype=bool) & truth.matched[..., None]


def _class_target(
    logits: Float[Array, "*s b q k"], boxes_cxcywh: Float[Array, "*s b q 4"], truth: Truth
) -> tuple[Bool[Array, "*s b q k"], Float[Array, "*s b q k"]]:
    """Where a query has its class, and there the overlap with its object, without gradient; 0 elsewhere."""
    overlap = jax.lax.stop_gradient(overlaps(boxes_cxcywh, truth)[0])
    is_class = _is_class(logits, truth)
    return is_class, jnp.where(is_class, overlap[..., None], 0.0)


def _weighted_entropy(
    logits: Float[Array, "*s b q k"],
    target: Float[Array, "*s b q k"],
    weight: Callable[[Array], Array],
    normalizer: Float[Array, ""] | float,
    exists: Bool[Array, " q"] | None,
) -> Float[Array, "*s"]:
    """Sum of cross-entropies, each times ``weight`` of the detached score."""
    logits = _present(at_least_float32(logits), exists)
    score = jax.lax.stop_gradient(jax.nn.sigmoid(logits))
    entropy = jax.nn.softplus(logits) - logits * target
    return jnp.sum(_present(weight(score) * entropy, exists), (-3, -2, -1)) / normalizer


def _present(x: Float[Array, "*s b q k"], exists: Bool[Array, " q"] | None) -> Float[Array, "*s b q k"]:
    """Zero in rows that do not exist."""
    return x if exists is None else jnp.where(exists[:, None], x, 0.0)


def l1_loss(
    boxes_cxcywh: Float[Array, "*s b q 4"], truth: Truth, normalizer: Float[Array, ""] | float
) -> Float[Array, "*s"]:
    """Sum of absolute differences of matched cxcywh boxes."""
    boxes = at_least_float32(boxes_cxcywh)
    matched = truth.matched[..., None]
    difference = jnp.where(matched, boxes, 0.0) - jnp.where(matched, truth.boxes_cxcywh.astype(boxes.dtype), 0.0)
    return jnp.sum(jnp.abs(difference), (-3, -2, -1)) / normalizer


def giou_loss(
    boxes_cxcywh: Float[Array, "*s b q 4"],
    truth: Truth,
    normalizer: Float[Array, ""] | float,
    least_area: float = 0.0,
) -> Float[Array, "*s"]:
    """Sum of 1 - GIoU over matched boxes; areas as for ``boxes.iou_and_giou``."""
    _, giou = overlaps(boxes_cxcywh, truth, least_area)
    return jnp.sum(jnp.where(truth.matched, 1.0 - giou, 0.0), (-2, -1)) / normalizer
