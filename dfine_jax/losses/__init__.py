"""Losses as pure functions of (predictions, truth), each to be had alone and differentiated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from dfine_jax.losses.fdr import ddf_loss, fdr_terms, fgl_loss
from dfine_jax.losses.matcher import assign, matching_cost, union_match
from dfine_jax.losses.terms import (
    Truth,
    focal_loss,
    gather_truth,
    giou_loss,
    l1_loss,
    mal_loss,
    overlaps,
    vfl_loss,
)
from dfine_jax.ops.boxes import cxcywh_to_xyxy, iou_and_giou, xyxy_to_cxcywh
from dfine_jax.ops.fdr import EdgeBins, bin_targets, decode, encode, integral, weighting_function
from dfine_jax.typing import FDROutput, HeadOutput, Norm, Targets

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from dfine_jax.typing import ModelOutput

__all__ = [
    "EdgeBins",
    "FDROutput",
    "HeadOutput",
    "Targets",
    "Truth",
    "assign",
    "bin_targets",
    "cxcywh_to_xyxy",
    "ddf_loss",
    "decode",
    "detection_loss",
    "encode",
    "fdr_terms",
    "fgl_loss",
    "focal_loss",
    "gather_truth",
    "giou_loss",
    "integral",
    "iou_and_giou",
    "l1_loss",
    "mal_loss",
    "matching_cost",
    "overlaps",
    "union_match",
    "vfl_loss",
    "weighting_function",
    "xyxy_to_cxcywh",
]


def detection_loss(
    output: ModelOutput, targets: Targets, config: Any, model: Any, queries: Any = None
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The whole loss of images that are a whole batch: sum of all weighted terms, and the terms by ``kind/where``.

    Args:
      output: of a training forward pass.
      config: of the loss, ``Config.loss``.
      model: of the network, ``Config.model``.
      queries: the denoising queries that the network ran with, if any.

    Raises:
      ValueError: ``output`` has no training part, or ``queries`` do not fit it.
    """
    from dfine_jax.families import of

    family = of(model)
    matching = family.match(output, targets, queries, config)
    norm = Norm(matching.counts, matching.counts)
    named = family.terms(output, targets, queries, matching, norm, model, config)
    return jnp.sum(jnp.stack(list(named.values()))), named
