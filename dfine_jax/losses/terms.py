"""The loss terms, each a pure function of (predictions, truth) (arXiv 2410.13842; src/zoo/dfine/dfine_criterion.py).

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
from dfine_jax.ops.fdr import bin_targets, encode
from dfine_jax.ops.precision import at_least_float32
from dfine_jax.typing import Targets

_WHOLE_IMAGE = (0.5, 0.5, 1.0, 1.0)  # stands in for the boxes of unmatched queries


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
        labels = targets.labels[image, jnp.maximum(match, 0)]
        boxes = targets.boxes_cxcywh[image, jnp.maximum(match, 0)]
    whole = jnp.asarray(_WHOLE_IMAGE, boxes.dtype)
    return Truth(jnp.where(matched, labels, 0), jnp.where(matched[..., None], boxes, whole), matched)


def overlaps(
    boxes_cxcywh: Float[Array, "*s b q 4"], truth: Truth
) -> tuple[Float[Array, "*s b q"], Float[Array, "*s b q"]]:
    """IoU and generalised IoU of each query with its object, 1 where there is none."""
    boxes = at_least_float32(boxes_cxcywh)
    boxes = jnp.where(truth.matched[..., None], boxes, jnp.asarray(_WHOLE_IMAGE, boxes.dtype))
    return iou_and_giou(clamped_xyxy(boxes), clamped_xyxy(truth.boxes_cxcywh.astype(boxes.dtype)))


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
    boxes_cxcywh: Float[Array, "*s b q 4"], truth: Truth, normalizer: Float[Array, ""] | float
) -> Float[Array, "*s"]:
    """Sum of 1 - GIoU over matched boxes."""
    _, giou = overlaps(boxes_cxcywh, truth)
    return jnp.sum(jnp.where(truth.matched, 1.0 - giou, 0.0), (-2, -1)) / normalizer


def fgl_loss(
    corners_logit: Float[Array, "*s b q e r"],
    boxes_cxcywh: Float[Array, "*s b q 4"],
    reference_cxcywh: Float[Array, "b q 4"],
    truth: Truth,
    project: Float[Array, " r"],
    reg_scale: float,
    normalizer: Float[Array, ""] | float,
) -> Float[Array, "*s"]:
    """Fine-grained localisation loss (equation 6): cross-entropy with the two bins around the true edge offset.

    Args:
      boxes_cxcywh: decoded boxes of the same layer; their overlap weighs the term.
      reference_cxcywh: R0, the boxes that the distributions refine.
      project: W(n), positions of the bins (ops/fdr.py).
    """
    corners = at_least_float32(corners_logit)
    iou = jax.lax.stop_gradient(overlaps(boxes_cxcywh, truth)[0])
    matched = truth.matched[..., None]
    truth_xyxy = clamped_xyxy(truth.boxes_cxcywh.astype(corners.dtype))
    reference = jnp.where(matched, reference_cxcywh.astype(corners.dtype), jnp.asarray(_WHOLE_IMAGE, corners.dtype))
    offsets = jax.lax.stop_gradient(encode(reference, truth_xyxy, reg_scale))
    left, left_weight, right_weight = bin_targets(offsets, project)  # [*s, b, q, 4]
    bins = jnp.arange(corners.shape[-1])
    target = jnp.where(bins == left[..., None], left_weight[..., None], 0.0)
    target = jnp.where(bins == left[..., None] + 1, right_weight[..., None], target)  # [*s, b, q, 4, r]
    corners = jnp.where(matched[..., None], corners, 0.0)
    entropy = -jnp.sum(target * jax.nn.log_softmax(corners, -1), (-2, -1))
    return jnp.sum(jnp.where(truth.matched, iou * entropy, 0.0), (-2, -1)) / normalizer


def ddf_sides(
    matched: Bool[Array, "b q"], num_matched: Float[Array, ""] | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weights of the matched and unmatched part of :func:`ddf_loss`: square roots of their numbers of edges.

    The reference also scales both by 8 / batch under the root; the factor cancels.

    Args:
      num_matched: how many are matched, where ``matched`` is a part of a larger batch: the mean over its parts.
    """
    positive = jnp.sum(matched) if num_matched is None else num_matched
    dtype = jnp.result_type(float)
    return jnp.sqrt((4 * positive).astype(dtype)), jnp.sqrt((4 * (matched.size - positive)).astype(dtype))


def ddf_loss(
    corners_logit: Float[Array, "*s b q e r"],
    boxes_cxcywh: Float[Array, "*s b q 4"],
    teacher_corners_logit: Float[Array, "b q e r"],
    teacher_logits: Float[Array, "b q k"],
    truth: Truth,
    sides: tuple[Float[Array, ""], Float[Array, ""]],
    temperature: float = 5.0,
    exists: Bool[Array, " q"] | None = None,
    num_matched: Float[Array, ""] | None = None,
) -> Float[Array, "*s"]:
    """Decoupled distillation of the last layer's edge distributions into earlier ones (equation 7).

    Matched queries are weighted by the student's overlap, the others by the teacher's best score; the means of both
    kinds are combined by ``sides``. Exactly zero, with zero gradient, where student and teacher are equal everywhere.

    Args:
      num_matched: as in :func:`ddf_sides`.
    """
    student, teacher = at_least_float32(corners_logit), jax.lax.stop_gradient(at_least_float32(teacher_corners_logit))
    present = jnp.ones(teacher.shape[1], bool) if exists is None else exists
    student = jnp.where(present[:, None, None], student, 0.0)
    teacher = jnp.where(present[:, None, None], teacher, 0.0)
    iou = overlaps(boxes_cxcywh, truth)[0]
    best = jnp.where(present, jnp.max(jax.nn.sigmoid(at_least_float32(teacher_logits)), -1), 0.0)
    weight = jax.lax.stop_gradient(jnp.where(truth.matched, iou, best))  # [*s, b, q]
    teacher_log = jax.nn.log_softmax(teacher / temperature, -1)
    student_log = jax.nn.log_softmax(student / temperature, -1)
    divergence = jnp.sum(jnp.exp(teacher_log) * (teacher_log - student_log), (-2, -1))
    value = weight * temperature**2 * divergence  # summed over the four edges
    matched, unmatched = truth.matched & present, ~truth.matched & present
    positives, negatives = jnp.sum(matched, (-2, -1)), jnp.sum(unmatched, (-2, -1))
    if num_matched is not None:
        positives, negatives = num_matched, positives + negatives - num_matched
    positive, negative = _edge_mean(value, matched, positives), _edge_mean(value, unmatched, negatives)
    positive_side, negative_side = sides[0].astype(value.dtype), sides[1].astype(value.dtype)
    total = positive_side + negative_side
    loss = (positive * positive_side + negative * negative_side) / jnp.where(total > 0, total, 1.0)
    equal = jnp.all(student == teacher, (-4, -3, -2, -1))
    return jnp.where(equal, 0.0, loss)


def _edge_mean(value: Float[Array, "*s b q"], mask: Bool[Array, "*#s b q"], count: Array) -> Float[Array, "*s"]:
    return jnp.sum(jnp.where(mask, value, 0.0), (-2, -1)) / (4 * jnp.where(count > 0, count, 1))
