"""The training loss: every term of every output, weighted and named as in the reference (dfine_criterion.py).

| output        | suffix  | class          | bbox, giou | fgl   | ddf   |
|---------------|---------|----------------|------------|-------|-------|
| last layer    |         | own assignment | union      | union |       |
| layer i       | _aux_i  | own assignment | union      | union | union |
| before refinement | _pre | own assignment | union     |       |       |
| encoder       | _enc_0  | own assignment | union      |       |       |
| denoising i   | _dn_i   | known pairs, for all terms             ||||
| denoising pre | _dn_pre | known pairs    | known      |       |       |

"class" is vfl, mal or focal. "union" is the cross-layer union of all assignments (losses/matcher.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dfine_jax.config import LossConfig, ModelConfig
from dfine_jax.losses import terms
from dfine_jax.losses.matcher import assign, matching_cost, union_match
from dfine_jax.ops.fdr import weighting_function
from dfine_jax.typing import DenoisingQueries, HeadOutput, ModelOutput, StageOutput, Targets, TrainingOutput

Terms = dict[str, Float[Array, "*s"]]


class Shares(NamedTuple):
    """Counts in a larger batch, as means over the parts it is computed in."""

    matched: Float[Array, ""]  # queries of the union with an object
    denoised: Float[Array, ""]  # denoising queries with an object


class _Distillation(NamedTuple):
    sides: tuple[Float[Array, ""], Float[Array, ""]]
    num_matched: Float[Array, ""] | None  # None: those at hand


def detection_loss(
    output: ModelOutput,
    targets: Targets,
    denoising: DenoisingQueries | None,
    config: LossConfig,
    model: ModelConfig,
    mean_over_replicas: Callable[[jax.Array], jax.Array] = lambda x: x,
    shares: Shares | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Sum of all weighted terms, and the terms by name (8 + 10 * layers with denoising).

    Without objects the terms are exactly zero except the background parts of the class loss and ddf. A non-finite term
    stays non-finite, where the reference turns it into zero or the largest float: it must not pass unseen.

    Args:
      output: of a training forward pass.
      denoising: the queries the model ran with; None without denoising (the ``_dn`` terms are absent).
      mean_over_replicas: averages the object counts [2] over devices; the reference normalises all but the
        denoising group count and the distillation term by these averages.
      shares: where this is a part of a larger batch: the mean of the parts' losses is then that of the whole.

    Raises:
      ValueError: ``output`` has no training part, or ``denoising`` does not fit it.
    """
    training = output.training
    if training is None:
        raise ValueError("the output has no training part; run the model with train=True")
    if (training.denoising is None) != (denoising is None):
        raise ValueError("denoising queries must be given to both the model and the loss, or to neither")

    matches = match_outputs(training, targets, config)
    union = union_match(matches, targets.valid.shape[1])
    counts = _counts(targets, union, training.matching.logits.dtype)
    num_boxes, num_union = jnp.maximum(mean_over_replicas(counts), 1.0)
    union_truth = terms.gather_truth(targets, union)
    sides = terms.ddf_sides(union_truth.matched, shares.matched if shares else None)
    distillation = _Distillation(sides, shares.matched if shares else None)

    named = {}
    layers = training.matching.logits.shape[0]
    stage_truth = terms.gather_truth(targets, matches[:layers])
    values = _classes(training.matching, stage_truth, num_boxes, config)
    values |= _boxes(training.matching, union_truth, num_union)
    values |= _distributions(training.matching, union_truth, num_union, distillation, config, model)
    named |= _by_layer(values, [f"_aux_{i}" for i in range(layers - 1)] + [""])
    for head, match, suffix in (
        (training.matching.pre, matches[layers], "_pre"),
        (training.encoder, matches[layers + 1], "_enc_0"),
    ):
        values = _classes(head, terms.gather_truth(targets, match), num_boxes, config)
        named |= _named(values | _boxes(head, union_truth, num_union), suffix)
    if denoising is not None and training.denoising is not None:
        distillation = _Distillation(sides, shares.denoised if shares else None)
        named |= _denoising(training.denoising, denoising, targets, num_boxes, distillation, config, model)

    named = {name: _weight(name, config) * value for name, value in named.items()}
    return jnp.sum(jnp.stack(list(named.values()))), named


def object_counts(output: ModelOutput, targets: Targets, config: LossConfig) -> Float[Array, "2"]:
    """What ``detection_loss`` gives to ``mean_over_replicas``: objects, and queries of the union with one.

    Raises:
      ValueError: ``output`` has no training part.
    """
    if output.training is None:
        raise ValueError("the output has no training part; run the model with train=True")
    union = union_match(match_outputs(output.training, targets, config), targets.valid.shape[1])
    return _counts(targets, union, output.training.matching.logits.dtype)


def _counts(targets: Targets, union: Int[Array, "b q"], dtype: Any) -> Float[Array, "2"]:
    counts = jnp.stack([jnp.sum(targets.valid), jnp.sum(union >= 0)])
    return counts.astype(jnp.promote_types(dtype, jnp.float32))


def match_outputs(training: TrainingOutput, targets: Targets, config: LossConfig) -> Int[Array, "t b q"]:
    """Assignments of all outputs, one solver call: decoder layers, then the pre head, then the encoder."""
    stages = matching_cost(training.matching.logits, training.matching.boxes_cxcywh, targets, config)
    heads = [
        matching_cost(head.logits, head.boxes_cxcywh, targets, config)[None]
        for head in (training.matching.pre, training.encoder)
    ]
    return assign(jnp.concatenate([stages, *heads]), targets.valid, config.assignment)


def _denoising(
    stages: StageOutput,
    queries: DenoisingQueries,
    targets: Targets,
    num_boxes: Float[Array, ""],
    distillation: _Distillation,
    config: LossConfig,
    model: ModelConfig,
) -> Terms:
    truth = terms.gather_truth(targets, queries.match)
    normalizer = jnp.maximum(num_boxes * queries.num_groups, 1.0)
    values = _classes(stages, truth, normalizer, config, queries.exists) | _boxes(stages, truth, normalizer)
    values |= _distributions(stages, truth, normalizer, distillation, config, model, queries.exists)
    layers = stages.logits.shape[0]
    last_ddf = {f"loss_ddf_dn_{layers - 1}": jnp.zeros_like(normalizer)}  # the teacher itself
    pre = _classes(stages.pre, truth, normalizer, config, queries.exists) | _boxes(stages.pre, truth, normalizer)
    return _by_layer(values, [f"_dn_{i}" for i in range(layers)]) | last_ddf | _named(pre, "_dn_pre")


def _classes(
    head: HeadOutput | StageOutput,
    truth: terms.Truth,
    normalizer: Float[Array, ""],
    config: LossConfig,
    exists: Bool[Array, " q"] | None = None,
) -> Terms:
    alpha, gamma = config.vfl_alpha, config.vfl_gamma
    match config.class_loss:
        case "vfl":
            value = terms.vfl_loss(head.logits, head.boxes_cxcywh, truth, normalizer, alpha, gamma, exists)
        case "mal":
            alpha, gamma = config.mal_alpha, config.mal_gamma
            value = terms.mal_loss(head.logits, head.boxes_cxcywh, truth, normalizer, alpha, gamma, exists)
        case "focal":
            value = terms.focal_loss(head.logits, truth, normalizer, alpha, gamma, exists)
    return {config.class_loss: value}


def _boxes(head: HeadOutput | StageOutput, truth: terms.Truth, normalizer: Float[Array, ""]) -> Terms:
    return {
        "bbox": terms.l1_loss(head.boxes_cxcywh, truth, normalizer),
        "giou": terms.giou_loss(head.boxes_cxcywh, truth, normalizer),
    }


def _distributions(
    stages: StageOutput,
    truth: terms.Truth,
    normalizer: Float[Array, ""],
    distillation: _Distillation,
    config: LossConfig,
    model: ModelConfig,
    exists: Bool[Array, " q"] | None = None,
) -> Terms:
    """Fgl of all layers, ddf of all but the last."""
    corners, boxes = stages.corners_logit, stages.boxes_cxcywh
    project = jnp.asarray(weighting_function(model.reg_max, model.up, model.reg_scale))
    fgl = terms.fgl_loss(corners, boxes, stages.reference_cxcywh, truth, project, model.reg_scale, normalizer)
    ddf = terms.ddf_loss(
        corners[:-1],
        boxes[:-1],
        corners[-1],
        stages.logits[-1],
        truth,
        distillation.sides,
        config.ddf_temperature,
        exists,
        distillation.num_matched,
    )
    return {"fgl": fgl, "ddf": ddf}


def _by_layer(values: Terms, suffixes: list[str]) -> Terms:
    """Split the layer axis; a term with fewer layers than suffixes has none for the last ones."""
    named = {}
    for i, suffix in enumerate(suffixes):
        named |= _named({name: value[i] for name, value in values.items() if i < value.shape[0]}, suffix)
    return named


def _named(values: Terms, suffix: str) -> Terms:
    return {f"loss_{name}{suffix}": value for name, value in values.items()}


def _weight(name: str, config: LossConfig) -> float:
    kind = name.split("_")[1]
    weights = {
        config.class_loss: config.weight_class,
        "bbox": config.weight_bbox,
        "giou": config.weight_giou,
        "fgl": config.weight_fgl,
        "ddf": config.weight_ddf,
    }
    return weights[kind]
