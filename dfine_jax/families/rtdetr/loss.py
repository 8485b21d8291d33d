"""The training loss: match -> counts -> terms (reference: rtdetrv2_pytorch/src/zoo/rtdetr/rtdetrv2_criterion.py).

| output      | where | pairs          |
|-------------|-------|----------------|
| last layer  | last  | own assignment |
| layer i     | aux_i | own assignment |
| encoder     | enc_0 | own assignment |
| denoising i | dn_i  | known          |

Every output has a class term (vfl, or mal where DEIM trains), bbox and giou. A term is named ``kind/where``.

With ``model.box_head=fdr`` all layers have fgl too, and there are outputs before the first refinement (pre, dn_pre).
With ``loss.go_lsd`` all terms but that of the classes then train the union of all assignments, and ddf every layer but
the last.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dfine_jax.families.family import Matching, Norm
from dfine_jax.families.rtdetr.config import RTDetrConfig, RTDetrLossConfig
from dfine_jax.losses import terms
from dfine_jax.losses.fdr import fdr_terms
from dfine_jax.losses.matcher import assign, matching_cost, union_match
from dfine_jax.losses.named import Terms, box_terms, by_layer, layer_places, named_at, training_part
from dfine_jax.ops.fdr import EdgeBins
from dfine_jax.typing import DenoisingQueries, HeadOutput, ModelOutput, StageOutput, Targets, TrainingOutput

Pairs = Int[Array, "t b q"]
"""Ground-truth slot of every query, -1 for none: decoder layers, then the outputs of ``_single_heads``."""


class _Goal(NamedTuple):
    truth: terms.Truth
    normalizer: Float[Array, ""]


def match(
    output: ModelOutput, targets: Targets, denoising: DenoisingQueries | None, config: RTDetrLossConfig
) -> Matching[Pairs]:
    """Assignments of a training forward pass.

    The count is that of objects; with ``fdr`` there follow queries of the union with an object, and denoising queries
    with one.

    Raises:
      ValueError: ``output`` has no training part, or ``denoising`` does not fit it.
    """
    training = training_part(output, denoising)
    heads = [jax.tree.map(lambda x: x[None], head) for head in _single_heads(training).values()]
    costs = [matching_cost(head.logits, head.boxes_cxcywh, targets, config) for head in (training.matching, *heads)]
    pairs = assign(jnp.concatenate(costs), targets.valid, config.assignment)
    counts = [jnp.sum(targets.valid)]
    if training.matching.fdr is not None:
        denoised = jnp.zeros((), jnp.int32) if denoising is None else jnp.sum(denoising.match >= 0)
        counts += [jnp.sum(union_match(pairs, targets.valid.shape[1]) >= 0), denoised]
    dtype = jnp.promote_types(output.logits.dtype, jnp.float32)
    return Matching(pairs, jnp.stack(counts).astype(dtype))


def loss_terms(
    output: ModelOutput,
    targets: Targets,
    denoising: DenoisingQueries | None,
    matching: Matching[Pairs],
    norm: Norm,
    model: RTDetrConfig,
    config: RTDetrLossConfig,
) -> dict[str, Float[Array, ""]]:
    """All weighted terms by name: three for each layer, as many for its denoising queries, three for the encoder.

    All are divided by the number of objects, averaged over devices; those of denoising queries also by the number of
    groups. A non-finite term stays non-finite: it must not pass unseen.
    """
    training, stages = output.training, output.training.matching
    layers, bins = stages.logits.shape[0], EdgeBins(model.reg_max, model.up, model.reg_scale)
    num_boxes = jnp.maximum(norm.over_devices[0], 1.0)
    truth, union, distil = terms.gather_truth(targets, matching.pairs), None, None
    if stages.fdr is not None and config.go_lsd:
        matched = union_match(matching.pairs, targets.valid.shape[1])
        union = _Goal(terms.gather_truth(targets, matched), jnp.maximum(norm.over_devices[1], 1.0))
        distil = _Distillation(terms.ddf_sides(union.truth.matched, norm.here[1]), norm.here[1])

    own = _Goal(jax.tree.map(lambda x: x[:layers], truth), num_boxes)
    values = _classes(stages, own, config) | box_terms(stages, *(union or own), config)
    values |= _distributions(stages, union or own, distil, bins, config)
    named = by_layer(values, layer_places(layers))
    for i, (where, head) in enumerate(_single_heads(training).items()):
        own = _Goal(jax.tree.map(lambda x, i=i: x[layers + i], truth), num_boxes)
        named |= named_at(_classes(head, own, config) | box_terms(head, *(union or own), config), where)
    if denoising is not None:
        known = terms.gather_truth(targets, denoising.match)
        goal, stages = _Goal(known, jnp.maximum(num_boxes * denoising.num_groups, 1.0)), training.denoising
        distil = distil and distil._replace(num_matched=norm.here[2])
        values = _classes(stages, goal, config, denoising.exists) | box_terms(stages, *goal, config)
        values |= _distributions(stages, goal, distil, bins, config, denoising.exists)
        named |= by_layer(values, [f"dn_{i}" for i in range(layers)])
        if stages.fdr is not None:
            pre = stages.fdr.pre
            named |= named_at(_classes(pre, goal, config, denoising.exists) | box_terms(pre, *goal, config), "dn_pre")
    return named


def kinds(model: RTDetrConfig, config: RTDetrLossConfig) -> tuple[str, ...]:
    """Kinds of terms."""
    distributions = () if model.box_head == "plain" else (("fgl", "ddf") if config.go_lsd else ("fgl",))
    return (config.class_loss, "bbox", "giou", *distributions)


class _Distillation(NamedTuple):
    sides: tuple[Float[Array, ""], Float[Array, ""]]
    num_matched: Float[Array, ""]


def _single_heads(training: TrainingOutput) -> dict[str, HeadOutput]:
    """Outputs beside those of the layers, in the order of their pairs."""
    pre = {} if training.matching.fdr is None else {"pre": training.matching.fdr.pre}
    return {**pre, "enc_0": training.encoder}


def _classes(
    head: HeadOutput | StageOutput, goal: _Goal, config: RTDetrLossConfig, exists: Bool[Array, " q"] | None = None
) -> Terms:
    loss, alpha, gamma = (
        (terms.vfl_loss, config.vfl_alpha, config.vfl_gamma)
        if config.class_loss == "vfl"
        else (terms.mal_loss, config.mal_alpha, config.mal_gamma)
    )
    value = loss(head.logits, head.boxes_cxcywh, goal.truth, goal.normalizer, alpha, gamma, exists)
    return {config.class_loss: config.weight_class * value}


def _distributions(
    stages: StageOutput,
    goal: _Goal,
    distil: _Distillation | None,
    bins: EdgeBins,
    config: RTDetrLossConfig,
    exists: Bool[Array, " q"] | None = None,
) -> Terms:
    """Nothing of a decoder without distributions."""
    if stages.fdr is None:
        return {}
    values = fdr_terms(
        stages.logits,
        stages.boxes_cxcywh,
        stages.fdr,
        goal.truth,
        goal.normalizer,
        bins,
        distil=distil is not None,
        temperature=config.ddf_temperature,
        sides=distil and distil.sides,
        num_matched=distil and distil.num_matched,
        exists=exists,
    )
    weights = {"fgl": config.weight_fgl, "ddf": config.weight_ddf}
    return {kind: weights[kind] * value for kind, value in values.items()}
