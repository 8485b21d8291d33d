"""The training loss: match -> counts -> terms, every term of every output (reference: dfine_criterion.py).

| output            | where | class          | bbox, giou | fgl   | ddf   |
|-------------------|-------|----------------|------------|-------|-------|
| last layer        | last  | own assignment | union      | union |       |
| layer i           | aux_i | own assignment | union      | union | union |
| before refinement | pre   | own assignment | union      |       |       |
| encoder           | enc_0 | own assignment | union      |       |       |
| denoising i       | dn_i  | known pairs, for all terms             ||||
| denoising pre     | dn_pre | known pairs   | known      |       |       |

A term is named ``kind/where``: ``giou/aux_0``. "class" is vfl, mal or focal. "union" is the cross-layer union of all
assignments (losses/matcher.py).
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dfine_jax.families.dfine.config import LossConfig, ModelConfig
from dfine_jax.families.family import Matching, Norm
from dfine_jax.losses import terms
from dfine_jax.losses.fdr import fdr_terms
from dfine_jax.losses.matcher import assign, matching_cost, union_match
from dfine_jax.losses.named import Terms, box_terms, by_layer, layer_places, named_at, training_part
from dfine_jax.ops.fdr import EdgeBins
from dfine_jax.typing import DenoisingQueries, HeadOutput, ModelOutput, StageOutput, Targets, TrainingOutput


class Pairs(NamedTuple):
    """Ground-truth slot of every query, -1 for none."""

    outputs: Int[Array, "t b q"]  # decoder layers, then the pre head, then the encoder
    union: Int[Array, "b q"]


def match(
    output: ModelOutput, targets: Targets, denoising: DenoisingQueries | None, config: LossConfig
) -> Matching[Pairs]:
    """Assignments of a training forward pass.

    The counts are objects, queries of the union with an object, and denoising queries with one.

    Raises:
      ValueError: ``output`` has no training part, or ``denoising`` does not fit it.
    """
    training = training_part(output, denoising)
    matches = match_outputs(training, targets, config)
    union = union_match(matches, targets.valid.shape[1])
    denoised = jnp.zeros((), jnp.int32) if denoising is None else jnp.sum(denoising.match >= 0)
    counts = jnp.stack([jnp.sum(targets.valid), jnp.sum(union >= 0), denoised])
    dtype = jnp.promote_types(training.matching.logits.dtype, jnp.float32)
    return Matching(Pairs(matches, union), counts.astype(dtype))


def loss_terms(
    output: ModelOutput,
    targets: Targets,
    denoising: DenoisingQueries | None,
    matching: Matching[Pairs],
    norm: Norm,
    model: ModelConfig,
    config: LossConfig,
) -> dict[str, Float[Array, ""]]:
    """All weighted terms by name (8 + 10 * layers with denoising).

    Without objects the terms are exactly zero except the background parts of the class loss and ddf. A non-finite term
    stays non-finite, where the reference turns it into zero or the largest float: it must not pass unseen.

    Args:
      denoising: the queries the model ran with; None without denoising (the ``dn`` terms are absent).
      matching: what ``match`` gave.
      norm: its counts, averaged. As in the reference all terms are divided by averages over devices except ddf, and the
        group count of the denoising queries is this device's.
    """
    training, pairs = output.training, matching.pairs
    assert training is not None  # ``match`` saw it
    num_boxes, num_union = jnp.maximum(norm.over_devices[:2], 1.0)
    _, here_union, here_denoised = norm.here
    union_truth = terms.gather_truth(targets, pairs.union)
    sides = terms.ddf_sides(union_truth.matched, here_union)

    named = {}
    layers = training.matching.logits.shape[0]
    stage_truth = terms.gather_truth(targets, pairs.outputs[:layers])
    values = _classes(training.matching, stage_truth, num_boxes, config)
    values |= box_terms(training.matching, union_truth, num_union, config)
    values |= _distributions(training.matching, union_truth, num_union, _Distillation(sides, here_union), config, model)
    named |= by_layer(values, layer_places(layers))
    for head, own, where in (
        (training.matching.refined.pre, pairs.outputs[layers], "pre"),
        (training.encoder, pairs.outputs[layers + 1], "enc_0"),
    ):
        values = _classes(head, terms.gather_truth(targets, own), num_boxes, config)
        named |= named_at(values | box_terms(head, union_truth, num_union, config), where)
    if denoising is not None and training.denoising is not None:
        distillation = _Distillation(sides, here_denoised)
        named |= _denoising(training.denoising, denoising, targets, num_boxes, distillation, config, model)
    return named


def kinds(model: ModelConfig, config: LossConfig) -> tuple[str, ...]:
    """Kinds of terms."""
    del model
    return (config.class_loss, "bbox", "giou", "fgl", "ddf")


def detection_loss(
    output: ModelOutput,
    targets: Targets,
    denoising: DenoisingQueries | None,
    config: LossConfig,
    model: ModelConfig,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Sum of all weighted terms, and the terms by name, for images that are a whole batch.

    Raises:
      ValueError: as ``match``.
    """
    matching = match(output, targets, denoising, config)
    norm = Norm(matching.counts, matching.counts)
    named = loss_terms(output, targets, denoising, matching, norm, model, config)
    return total(named), named


def total(named: dict[str, Float[Array, ""]]) -> Float[Array, ""]:
    """Sum of all terms."""
    return jnp.sum(jnp.stack(list(named.values())))


class _Distillation(NamedTuple):
    sides: tuple[Float[Array, ""], Float[Array, ""]]
    num_matched: Float[Array, ""]


def match_outputs(training: TrainingOutput, targets: Targets, config: LossConfig) -> Int[Array, "t b q"]:
    """Assignments of all outputs, one solver call: decoder layers, then the pre head, then the encoder."""
    stages = matching_cost(training.matching.logits, training.matching.boxes_cxcywh, targets, config)
    heads = [
        matching_cost(head.logits, head.boxes_cxcywh, targets, config)[None]
        for head in (training.matching.refined.pre, training.encoder)
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
    values = _classes(stages, truth, normalizer, config, queries.exists) | box_terms(stages, truth, normalizer, config)
    values |= _distributions(stages, truth, normalizer, distillation, config, model, queries.exists)
    layers = stages.logits.shape[0]
    last_ddf = {f"ddf/dn_{layers - 1}": jnp.zeros_like(normalizer)}  # the teacher itself
    pre = _classes(stages.refined.pre, truth, normalizer, config, queries.exists)
    pre |= box_terms(stages.refined.pre, truth, normalizer, config)
    return by_layer(values, [f"dn_{i}" for i in range(layers)]) | last_ddf | named_at(pre, "dn_pre")


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
    return {config.class_loss: config.weight_class * value}


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
    values = fdr_terms(
        stages.logits,
        stages.boxes_cxcywh,
        stages.refined,
        truth,
        normalizer,
        EdgeBins(model.reg_max, model.up, model.reg_scale),
        temperature=config.ddf_temperature,
        sides=distillation.sides,
        num_matched=distillation.num_matched,
        exists=exists,
    )
    return {"fgl": config.weight_fgl * values["fgl"], "ddf": config.weight_ddf * values["ddf"]}
