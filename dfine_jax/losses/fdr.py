"""Terms that train edge distributions, fgl and ddf, for any decoder that refines its boxes by them (nn/fdr_head.py).

The other parts of the method are ``losses.matcher.union_match``, whose pairs train boxes and distributions of all
layers, and the plain terms of boxes for ``FDROutput.pre``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dfine_jax.losses.terms import WHOLE_IMAGE, Truth, overlaps
from dfine_jax.ops.boxes import clamped_xyxy
from dfine_jax.ops.fdr import EdgeBins, bin_targets, encode
from dfine_jax.ops.precision import at_least_float32
from dfine_jax.typing import FDROutput

Sides = tuple[Float[Array, ""], Float[Array, ""]]


def fdr_terms(
    logits: Float[Array, "s b q k"],
    boxes_cxcywh: Float[Array, "s b q 4"],
    output: FDROutput,
    truth: Truth,
    normalizer: Float[Array, ""] | float,
    bins: EdgeBins,
    *,
    distil: bool = True,
    temperature: float = 5.0,
    sides: Sides | None = None,
    num_matched: Float[Array, ""] | None = None,
    exists: Bool[Array, " q"] | None = None,
) -> dict[str, Float[Array, " _"]]:
    """``fgl`` of every decoder layer and ``ddf`` of every layer but the last, which is the teacher; not weighted.

    Args:
      logits: class logits; those of the last layer weigh queries without an object in ``ddf``.
      truth: one for all layers, of the union of their assignments; without ``distil`` also one of each layer.
      normalizer: of ``fgl``, the number of pairs; ``ddf`` is a mean.
      bins: those of the head.
      distil: False: ``fgl`` alone.
      sides: of ``ddf_sides``; None: those of ``truth``.
      num_matched: of ``ddf_loss``; None: that of ``truth``.
      exists: queries that take part; None means all.
    """
    corners, project = output.corners_logit, jnp.asarray(bins.positions())
    fgl = fgl_loss(corners, boxes_cxcywh, output.reference_cxcywh, truth, project, bins.reg_scale, normalizer)
    if not distil:
        return {"fgl": fgl}
    ddf = ddf_loss(
        corners[:-1],
        boxes_cxcywh[:-1],
        corners[-1],
        logits[-1],
        truth,
        ddf_sides(truth.matched) if sides is None else sides,
        temperature,
        exists,
        num_matched,
    )
    return {"fgl": fgl, "ddf": ddf}


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
    reference = jnp.where(matched, reference_cxcywh.astype(corners.dtype), jnp.asarray(WHOLE_IMAGE, corners.dtype))
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
