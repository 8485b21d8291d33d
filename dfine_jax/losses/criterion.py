"""The training loss of decoders whose queries are matched one to one: match -> counts -> terms.

| output            | where  | class, masks   | bbox, giou   | fgl          | ddf   |
|-------------------|--------|----------------|--------------|--------------|-------|
| last layer        | last   | own assignment | own or union | own or union |       |
| layer i           | aux_i  | own assignment | own or union | own or union | union |
| before refinement | pre    | own (no masks) | own or union |              |       |
| encoder           | enc_0  | own (no masks) | own or union |              |       |
| denoising i       | dn_i   | known pairs, for all terms                            ||||
| denoising pre     | dn_pre | known, class   | known        |              |       |

A term is named ``kind/where``: ``giou/aux_0``. "class" is vfl, mal or focal. "union" is the cross-layer union of all
assignments (losses/matcher.py), for decoders that refine edge distributions; only these have fgl, ddf and the outputs
before refinement. Masks (mask_bce, mask_dice) are of decoders that make them, and of objects that have one.
References: dfine_criterion.py of Peterande/D-FINE and of dfine-seg, rtdetrv2_criterion.py of lyuwenyu/RT-DETR.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dfine_jax.losses import terms
from dfine_jax.losses.fdr import Sides, ddf_sides, fdr_terms
from dfine_jax.losses.masks import MaskPairs, MaskWeights, mask_cost, mask_terms, pairs_of_objects, pairs_of_queries
from dfine_jax.losses.matcher import Costs, assign, finite_cost, matching_cost, union_match
from dfine_jax.ops.fdr import EdgeBins
from dfine_jax.typing import (
    DenoisingQueries,
    HeadOutput,
    Matching,
    ModelOutput,
    Norm,
    StageOutput,
    Targets,
    TrainingOutput,
)

Terms = dict[str, Float[Array, "*s"]]


class Weights(Costs, Protocol):
    """Fields of a loss configuration."""

    @property
    def assignment(self) -> Literal["scipy", "device"]: ...
    @property
    def class_loss(self) -> str: ...
    @property
    def weight_class(self) -> float: ...
    @property
    def weight_bbox(self) -> float: ...
    @property
    def weight_giou(self) -> float: ...
    @property
    def weight_fgl(self) -> float: ...
    @property
    def weight_ddf(self) -> float: ...
    @property
    def vfl_alpha(self) -> float: ...
    @property
    def vfl_gamma(self) -> float: ...
    @property
    def mal_alpha(self) -> float: ...
    @property
    def mal_gamma(self) -> float: ...
    @property
    def ddf_temperature(self) -> float: ...


class Pairs(NamedTuple):
    """Ground-truth slot of every query, -1 for none."""

    outputs: Int[Array, "t b q"]  # decoder layers, then the pre head where there is one, then the encoder
    union: Int[Array, "b q"] | None  # of all outputs; None: boxes and distributions train the pairs of each


class _Goal(NamedTuple):
    truth: terms.Truth
    normalizer: Float[Array, ""]


class _Segments(NamedTuple):
    embedding: Float[Array, "s b q d"]
    pixels: Float[Array, "b h w d"]
    weights: MaskWeights


class _Distillation(NamedTuple):
    sides: Sides
    num_matched: Float[Array, ""]


def match(
    output: ModelOutput,
    targets: Targets,
    denoising: DenoisingQueries | None,
    config: Weights,
    *,
    union: bool,
    masks: MaskWeights | None = None,
) -> Matching[Pairs]:
    """Assignments of a training forward pass, one solver call.

    The counts are objects and, with a union, its queries with an object and denoising queries with one; at the end,
    where masks are trained, the pairs with a mask of each layer and of the denoising queries.

    Args:
      union: train the union of all assignments, where the decoder refines edge distributions.
      masks: weights of their costs, for decoders that make some.

    Raises:
      ValueError: ``output`` has no training part, or ``denoising`` does not fit it.
    """
    training = _training_part(output, denoising)
    heads = [jax.tree.map(lambda x: x[None], head) for head in _single_heads(training).values()]
    costs = [matching_cost(head.logits, head.boxes_cxcywh, targets, config) for head in (training.matching, *heads)]
    segments = _segments(training.matching, training, targets, masks)
    if segments is not None:
        costs[0] = finite_cost(costs[0] + mask_cost(segments.embedding, segments.pixels, targets, segments.weights))
    outputs, joined = assign(jnp.concatenate(costs), targets.valid, config.assignment), None
    counts = [jnp.sum(targets.valid)]
    if union and training.matching.fdr is not None:
        joined = union_match(outputs, targets.valid.shape[1])
        denoised = jnp.zeros((), jnp.int32) if denoising is None else jnp.sum(denoising.match >= 0)
        counts += [jnp.sum(joined >= 0), denoised]
    if segments is not None:
        layers = training.matching.logits.shape[0]
        counts += [*pairs_of_objects(outputs[:layers], targets).exists.sum((-2, -1))]
        zero = jnp.zeros((), jnp.int32)
        counts += [zero if denoising is None else _known_masks(denoising, targets).exists.sum()]
    return Matching(
        Pairs(outputs, joined), jnp.stack(counts).astype(jnp.promote_types(output.logits.dtype, jnp.float32))
    )


def loss_terms(
    output: ModelOutput,
    targets: Targets,
    denoising: DenoisingQueries | None,
    matching: Matching[Pairs],
    norm: Norm,
    bins: EdgeBins,
    config: Weights,
    masks: MaskWeights | None = None,
) -> dict[str, Float[Array, ""]]:
    """All weighted terms by name.

    Without objects the terms are exactly zero except the background parts of the class loss and ddf. A non-finite term
    stays non-finite, where the reference turns it into zero or the largest float: it must not pass unseen.

    Args:
      denoising: the queries the model ran with; None without denoising (the ``dn`` terms are absent).
      matching: what ``match`` gave.
      norm: its counts, averaged. As in the reference all terms are divided by averages over devices except ddf, and the
        group count of the denoising queries is this device's. Those of masks are divided by pairs with a mask; the
        reference counts these on each device alone.
      bins: of the decoder's edge distributions, if it has them.
      masks: as for ``match``.
    """
    training: TrainingOutput = output.training
    stages, pairs = training.matching, matching.pairs
    layers, num_boxes = stages.logits.shape[0], jnp.maximum(norm.over_devices[0], 1.0)
    truth, union, distil = terms.gather_truth(targets, pairs.outputs), None, None
    if pairs.union is not None:
        union = _Goal(terms.gather_truth(targets, pairs.union), jnp.maximum(norm.over_devices[1], 1.0))
        distil = _Distillation(ddf_sides(union.truth.matched, norm.here[1]), norm.here[1])

    own = _Goal(jax.tree.map(lambda x: x[:layers], truth), num_boxes)
    values = _classes(stages, own, config) | _boxes(stages, union or own, config)
    values |= _distributions(stages, union or own, distil, bins, config)
    segments = _segments(stages, training, targets, masks)
    if segments is not None:
        matched = pairs_of_objects(pairs.outputs[:layers], targets)
        values |= _masks(segments, targets, matched, norm.over_devices[-1 - layers : -1])
    named = _by_layer(values, [*(f"aux_{i}" for i in range(layers - 1)), "last"])
    for i, (where, head) in enumerate(_single_heads(training).items()):
        own = _Goal(jax.tree.map(lambda x, i=i: x[layers + i], truth), num_boxes)
        named |= _named_at(_classes(head, own, config) | _boxes(head, union or own, config), where)
    if denoising is None or training.denoising is None:
        return named
    known, stages = terms.gather_truth(targets, denoising.match), training.denoising
    goal = _Goal(known, jnp.maximum(num_boxes * denoising.num_groups, 1.0))
    values = _classes(stages, goal, config, denoising.exists) | _boxes(stages, goal, config)
    distil = distil and distil._replace(num_matched=norm.here[2])
    values |= _distributions(stages, goal, distil, bins, config, denoising.exists)
    segments = _segments(stages, training, targets, masks)
    if segments is not None:
        values |= _masks(segments, targets, _known_masks(denoising, targets), norm.over_devices[-1])
    named |= _by_layer(values, [f"dn_{i}" for i in range(layers)])
    if distil is not None:
        named[f"ddf/dn_{layers - 1}"] = jnp.zeros_like(goal.normalizer)  # the teacher itself
    if stages.fdr is not None:
        pre = stages.fdr.pre
        named |= _named_at(_classes(pre, goal, config, denoising.exists) | _boxes(pre, goal, config), "dn_pre")
    return named


def _training_part(output: ModelOutput, denoising: DenoisingQueries | None) -> TrainingOutput:
    training = output.training
    if training is None:
        raise ValueError("the output has no training part; run the model with train=True")
    if (training.denoising is None) != (denoising is None):
        raise ValueError("denoising queries must be given to both the model and the loss, or to neither")
    return training


def _single_heads(training: TrainingOutput) -> dict[str, HeadOutput]:
    """Outputs beside those of the layers, in the order of their pairs."""
    pre = {} if training.matching.fdr is None else {"pre": training.matching.fdr.pre}
    return {**pre, "enc_0": training.encoder}


def _segments(
    stages: StageOutput, training: TrainingOutput, targets: Targets, weights: MaskWeights | None
) -> _Segments | None:
    """What masks are trained with; None where the decoder makes none, or the data have none."""
    if weights is None or targets.masks is None or training.pixels is None or stages.mask_embedding is None:
        return None
    return _Segments(stages.mask_embedding, training.pixels, weights)


def _known_masks(denoising: DenoisingQueries, targets: Targets) -> MaskPairs:
    """At most half of the denoising queries have an object: those are the positive ones."""
    return pairs_of_queries(denoising.match, targets, denoising.match.shape[-1] // 2)


def _masks(segments: _Segments, targets: Targets, pairs: MaskPairs, count: Array) -> Terms:
    bce, dice = mask_terms(segments.embedding, segments.pixels, targets, pairs, count)
    return {"mask_bce": segments.weights.bce * bce, "mask_dice": segments.weights.dice * dice}


def _named_at(values: Terms, where: str) -> Terms:
    return {f"{kind}/{where}": value for kind, value in values.items()}


def _by_layer(values: Terms, places: Sequence[str]) -> Terms:
    """Terms of all layers, split; a term with fewer layers than places has none for the last ones."""
    split = {}
    for i, where in enumerate(places):
        split |= _named_at({kind: value[i] for kind, value in values.items() if i < value.shape[0]}, where)
    return split


def _classes(
    head: HeadOutput | StageOutput, goal: _Goal, config: Weights, exists: Bool[Array, " q"] | None = None
) -> Terms:
    match config.class_loss:
        case "focal":
            value = terms.focal_loss(head.logits, *goal, config.vfl_alpha, config.vfl_gamma, exists)
        case "mal":
            value = terms.mal_loss(*_answer(head), *goal, config.mal_alpha, config.mal_gamma, exists)
        case _:
            value = terms.vfl_loss(*_answer(head), *goal, config.vfl_alpha, config.vfl_gamma, exists)
    return {config.class_loss: config.weight_class * value}


def _answer(head: HeadOutput | StageOutput) -> tuple[Array, Array]:
    return head.logits, head.boxes_cxcywh


def _boxes(head: HeadOutput | StageOutput, goal: _Goal, config: Weights) -> Terms:
    """L1 of the coordinates, generalised IoU."""
    return {
        "bbox": config.weight_bbox * terms.l1_loss(head.boxes_cxcywh, *goal),
        "giou": config.weight_giou * terms.giou_loss(head.boxes_cxcywh, *goal),
    }


def _distributions(
    stages: StageOutput,
    goal: _Goal,
    distil: _Distillation | None,
    bins: EdgeBins,
    config: Weights,
    exists: Bool[Array, " q"] | None = None,
) -> Terms:
    """Nothing of a decoder without distributions; without a union no ddf."""
    if stages.fdr is None:
        return {}
    values = fdr_terms(
        *_answer(stages),
        stages.fdr,
        *goal,
        bins,
        distil=distil is not None,
        temperature=config.ddf_temperature,
        sides=distil and distil.sides,
        num_matched=distil and distil.num_matched,
        exists=exists,
    )
    weights = {"fgl": config.weight_fgl, "ddf": config.weight_ddf}
    return {kind: weights[kind] * value for kind, value in values.items()}
