"""The training loss (reference: ``rfdetr.models.criterion`` and ``matcher`` of package rfdetr 1.11.2).

| output          | where  | terms                                                  |
|-----------------|--------|--------------------------------------------------------|
| last layer      | last   | iabce, bbox, giou and, of networks that make masks and |
| layer i         | aux_i  | objects that have one, mask_ce and mask_dice           |
| proposals       | enc_0  |                                                        |

Queries form groups that do not see each other. Every output is matched alone, and in it every group with all objects,
so that an object has as many queries as there are groups. Terms are divided by that many times the objects.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dfine_jax.families.rfdetr.config import RFDetrConfig, RFDetrLossConfig
from dfine_jax.families.rfdetr.outputs import Draws, GroupedOutput
from dfine_jax.losses import terms
from dfine_jax.losses.masks import annotated
from dfine_jax.losses.matcher import above_finite_cost, assign, raw_matching_cost
from dfine_jax.losses.points import (
    PointSource,
    RandomPoints,
    Sampling,
    Segments,
    pairs_of_groups,
    point_cost,
    point_terms,
)
from dfine_jax.typing import HeadOutput, Matching, ModelOutput, Norm, StageOutput, Targets

_LEAST_AREA = 1e-7  # that divides in overlaps


def match(
    output: ModelOutput,
    targets: Targets,
    draws: Draws | None,
    config: RFDetrLossConfig,
    points: PointSource | None = None,
) -> Matching[Int[Array, "s b q"]]:
    """Ground-truth slot, or -1, of every query of the decoder layers and, at the end, of the proposals.

    One solver call for all outputs, groups and images. Where a group has fewer proposals than queries, rows of none
    stand behind its proposals. The counts are objects and objects with a mask, both times the groups.

    Args:
      draws: those that the network ran with.
      points: where masks are compared; None: as ``draws`` has them.

    Raises:
      ValueError: ``output`` has no training part, or masks are to be compared and there is neither of both.
    """
    training = _training_part(output)
    groups = _groups(output, training)
    queries = training.stages.logits.shape[-2]
    costs = [
        raw_matching_cost(
            head.logits, head.boxes_cxcywh, targets, config, logarithm="of_sigmoid", least_area=_LEAST_AREA
        )
        for head in (training.stages, training.encoder)
    ]
    cost = jnp.concatenate([costs[0], _filled(costs[1], groups, queries, jnp.inf)[None]])
    with_mask = jnp.zeros((), jnp.int32)
    segments = _segments(training, targets, groups)
    if segments is not None:
        weights = (config.cost_mask_ce, config.cost_mask_dice)
        cost += point_cost(segments, targets, points or _random(draws), _sampling(config), weights)
        with_mask = jnp.sum(annotated(targets)[1])
    # Rows of no query cost more than any query does: no object takes one while a query of its group is free.
    cost = above_finite_cost(cost, targets.valid)
    outputs, images, _, slots = cost.shape
    by_group = jnp.moveaxis(cost.reshape(outputs, images, groups, queries // groups, slots), 2, 1)
    pairs = assign(by_group, targets.valid, config.assignment)  # [s, groups, b, q]
    counts = groups * jnp.stack([jnp.sum(targets.valid), with_mask])
    return Matching(jnp.moveaxis(pairs, 1, 2).reshape(outputs, images, queries), counts.astype(cost.dtype))


def loss_terms(
    output: ModelOutput,
    targets: Targets,
    draws: Draws | None,
    matching: Matching[Int[Array, "s b q"]],
    norm: Norm,
    model: RFDetrConfig,
    config: RFDetrLossConfig,
    points: PointSource | None = None,
) -> dict[str, Float[Array, ""]]:
    """All weighted terms by name, 3 * (layers + 1) and with masks 5 * (layers + 1).

    Without objects all are exactly zero except the background of the class loss.

    Args:
      draws: as for ``match``.
      matching: what ``match`` gave.
      norm: its counts, averaged. The reference divides the terms of masks by all objects, which all have masks there.
      points: as for ``match``.
    """
    training, pairs = _training_part(output), matching.pairs
    groups = _groups(output, training)
    places = [*(f"aux_{i}" for i in range(model.decoder_layers - 1)), "last", "enc_0"]
    num_boxes, num_masks = jnp.maximum(norm.over_devices, 1.0)
    of_proposals = _without_filling(pairs[-1], groups, training.encoder.logits.shape[-2])
    layers, proposals = (terms.gather_truth(targets, part) for part in (pairs[:-1], of_proposals))
    values = {
        kind: jnp.concatenate([value, last[None]])
        for (kind, value), last in zip(
            _boxes_and_classes(training.stages, layers, num_boxes, config).items(),
            _boxes_and_classes(training.encoder, proposals, num_boxes, config).values(),
            strict=True,
        )
    }
    segments = _segments(training, targets, groups)
    if segments is not None:
        matched = pairs_of_groups(pairs, targets, groups)
        source = points or _random(draws)
        entropy, dice = point_terms(segments, targets, matched, source, _sampling(config), num_masks)
        values |= {"mask_ce": config.weight_mask_ce * entropy, "mask_dice": config.weight_mask_dice * dice}
    return {f"{kind}/{where}": value[i] for i, where in enumerate(places) for kind, value in values.items()}


def kinds(model: RFDetrConfig, config: RFDetrLossConfig) -> tuple[str, ...]:
    """Kinds of terms."""
    del config
    return ("iabce", "bbox", "giou", *(("mask_ce", "mask_dice") if model.mask_width else ()))


def _boxes_and_classes(
    head: HeadOutput | StageOutput, truth: terms.Truth, num_boxes: Float[Array, ""], config: RFDetrLossConfig
) -> dict[str, Float[Array, "*s"]]:
    boxes, alpha, gamma = head.boxes_cxcywh, config.focal_alpha, config.focal_gamma
    classes = terms.iabce_loss(head.logits, boxes, truth, num_boxes, alpha, gamma, _LEAST_AREA)
    return {
        "iabce": config.weight_class * classes,
        "bbox": config.weight_bbox * terms.l1_loss(boxes, truth, num_boxes),
        "giou": config.weight_giou * terms.giou_loss(boxes, truth, num_boxes, _LEAST_AREA),
    }


def _training_part(output: ModelOutput) -> GroupedOutput:
    if output.training is None:
        raise ValueError("the output has no training part; run the model with train=True")
    return output.training


def _groups(output: ModelOutput, training: GroupedOutput) -> int:
    """The answer is that of one group."""
    return training.stages.logits.shape[-2] // output.logits.shape[-2]


def _filled(x: Float[Array, "b p *c"], groups: int, queries: int, value: float) -> Float[Array, "b q *c"]:
    """Rows of proposals, each group's filled up to as many as it has queries."""
    images, proposals, *rest = x.shape
    x = x.reshape(images, groups, proposals // groups, *rest)
    ends = [(0, 0), (0, 0), (0, (queries - proposals) // groups)] + [(0, 0)] * len(rest)
    return jnp.pad(x, ends, constant_values=value).reshape(images, queries, *rest)


def _without_filling(match: Int[Array, "b q"], groups: int, proposals: int) -> Int[Array, "b p"]:
    """The inverse of ``_filled``."""
    return match.reshape(match.shape[0], groups, -1)[..., : proposals // groups].reshape(-1, proposals)


def _segments(training: GroupedOutput, targets: Targets, groups: int) -> Segments | None:
    """What masks are trained with; None where the network makes none, or the data have none."""
    layers, proposals = training.stages.mask_embedding, training.encoder_mask_embedding
    if targets.masks is None or layers is None or proposals is None:
        return None
    if training.pixels is None or training.mask_bias is None:
        return None
    proposals = _filled(proposals, groups, layers.shape[-2], 0.0)
    return Segments(jnp.concatenate([layers, proposals[None]]), training.pixels, training.mask_bias)


def _sampling(config: RFDetrLossConfig) -> Sampling:
    return Sampling(config.mask_point_ratio, config.oversample, config.importance)


def _random(draws: Draws | None) -> RandomPoints:
    if draws is None:
        raise ValueError("masks are compared at random points; give the draws that the network ran with")
    return RandomPoints(draws.for_points())
