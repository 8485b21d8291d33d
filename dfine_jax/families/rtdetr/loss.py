"""The training loss: match -> counts -> terms (reference: rtdetrv2_pytorch/src/zoo/rtdetr/rtdetrv2_criterion.py).

| output      | where | pairs          |
|-------------|-------|----------------|
| last layer  | last  | own assignment |
| layer i     | aux_i | own assignment |
| encoder     | enc_0 | own assignment |
| denoising i | dn_i  | known          |

Every output has a class term (vfl, or mal where DEIM trains), bbox and giou. A term is named ``kind/where``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dfine_jax.families.family import Matching, Norm
from dfine_jax.families.rtdetr.config import RTDetrConfig, RTDetrLossConfig
from dfine_jax.losses import terms
from dfine_jax.losses.matcher import assign, matching_cost
from dfine_jax.typing import DenoisingQueries, HeadOutput, ModelOutput, Targets

Pairs = Int[Array, "t b q"]
"""Ground-truth slot of every query, -1 for none: decoder layers, then the encoder."""


def match(
    output: ModelOutput, targets: Targets, denoising: DenoisingQueries | None, config: RTDetrLossConfig
) -> Matching[Pairs]:
    """Assignments of a training forward pass; the count is that of objects.

    Raises:
      ValueError: ``output`` has no training part, or ``denoising`` does not fit it.
    """
    training = output.training
    if training is None:
        raise ValueError("the output has no training part; run the model with train=True")
    if (training.denoising is None) != (denoising is None):
        raise ValueError("denoising queries must be given to both the model and the loss, or to neither")
    heads = (training.matching, jax.tree.map(lambda x: x[None], training.encoder))
    costs = [matching_cost(head.logits, head.boxes_cxcywh, targets, config) for head in heads]
    pairs = assign(jnp.concatenate(costs), targets.valid, config.assignment)
    dtype = jnp.promote_types(output.logits.dtype, jnp.float32)
    return Matching(pairs, jnp.sum(targets.valid)[None].astype(dtype))


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
    del model
    training = output.training
    num_boxes = jnp.maximum(norm.over_devices[0], 1.0)
    truth = terms.gather_truth(targets, matching.pairs)
    stages, encoder = (jax.tree.map(lambda x, part=part: x[part], truth) for part in (slice(None, -1), -1))
    layers = training.matching.logits.shape[0]
    places = [f"aux_{i}" for i in range(layers - 1)] + ["last"]
    named = _by_layer(_terms(training.matching, stages, num_boxes, config), places)
    named |= _named(_terms(training.encoder, encoder, num_boxes, config), "enc_0")
    if denoising is not None:
        known = terms.gather_truth(targets, denoising.match)
        normalizer = jnp.maximum(num_boxes * denoising.num_groups, 1.0)
        values = _terms(training.denoising, known, normalizer, config, denoising.exists)
        named |= _by_layer(values, [f"dn_{i}" for i in range(layers)])
    return named


def kinds(config: RTDetrLossConfig) -> tuple[str, ...]:
    """Kinds of terms."""
    return (config.class_loss, "bbox", "giou")


def _terms(
    head: HeadOutput,
    truth: terms.Truth,
    normalizer: Float[Array, ""],
    config: RTDetrLossConfig,
    exists: Bool[Array, " q"] | None = None,
) -> dict[str, Float[Array, "*s"]]:
    logits, boxes = head.logits, head.boxes_cxcywh
    if config.class_loss == "vfl":
        value = terms.vfl_loss(logits, boxes, truth, normalizer, config.vfl_alpha, config.vfl_gamma, exists)
    else:
        value = terms.mal_loss(logits, boxes, truth, normalizer, config.mal_alpha, config.mal_gamma, exists)
    return {
        config.class_loss: config.weight_class * value,
        "bbox": config.weight_bbox * terms.l1_loss(boxes, truth, normalizer),
        "giou": config.weight_giou * terms.giou_loss(boxes, truth, normalizer),
    }


def _by_layer(values: dict[str, Float[Array, " s"]], places: list[str]) -> dict[str, Float[Array, ""]]:
    named = {}
    for i, where in enumerate(places):
        named |= _named({kind: value[i] for kind, value in values.items()}, where)
    return named


def _named(values: dict[str, Float[Array, ""]], where: str) -> dict[str, Float[Array, ""]]:
    return {f"{kind}/{where}": value for kind, value in values.items()}
