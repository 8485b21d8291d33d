"""The training loss (reference: dfine_criterion.py): the criterion with the union of all assignments."""

from __future__ import annotations

from jaxtyping import Array, Float

from dfine_jax.families.dfine.config import LossConfig, ModelConfig
from dfine_jax.losses import criterion
from dfine_jax.losses.criterion import Pairs
from dfine_jax.ops.fdr import EdgeBins
from dfine_jax.typing import DenoisingQueries, Matching, ModelOutput, Norm, Targets


def match(
    output: ModelOutput, targets: Targets, denoising: DenoisingQueries | None, config: LossConfig
) -> Matching[Pairs]:
    """As ``criterion.match``."""
    return criterion.match(output, targets, denoising, config, union=True)


def loss_terms(
    output: ModelOutput,
    targets: Targets,
    denoising: DenoisingQueries | None,
    matching: Matching[Pairs],
    norm: Norm,
    model: ModelConfig,
    config: LossConfig,
) -> dict[str, Float[Array, ""]]:
    """All weighted terms by name (8 + 10 * layers with denoising), as ``criterion.loss_terms``."""
    bins = EdgeBins(model.reg_max, model.up, model.reg_scale)
    return criterion.loss_terms(output, targets, denoising, matching, norm, bins, config)


def kinds(model: ModelConfig, config: LossConfig) -> tuple[str, ...]:
    """Kinds of terms."""
    del model
    return (config.class_loss, "bbox", "giou", "fgl", "ddf")
