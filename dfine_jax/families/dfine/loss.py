"""The training loss (reference: dfine_criterion.py): the criterion with the union of all assignments."""

from __future__ import annotations

from jaxtyping import Array, Float

from dfine_jax.families.dfine.config import LossConfig, ModelConfig
from dfine_jax.losses import criterion
from dfine_jax.losses.criterion import Pairs
from dfine_jax.losses.masks import MaskWeights
from dfine_jax.ops.fdr import EdgeBins
from dfine_jax.typing import DenoisingQueries, Matching, ModelOutput, Norm, Targets


def match(
    output: ModelOutput, targets: Targets, denoising: DenoisingQueries | None, config: LossConfig
) -> Matching[Pairs]:
    """As ``criterion.match``."""
    return criterion.match(output, targets, denoising, config, union=True, masks=_mask_weights(config))


def loss_terms(
    output: ModelOutput,
    targets: Targets,
    denoising: DenoisingQueries | None,
    matching: Matching[Pairs],
    norm: Norm,
    model: ModelConfig,
    config: LossConfig,
) -> dict[str, Float[Array, ""]]:
    """All weighted terms by name (8 + 10 * layers with denoising, 4 * layers of masks), as ``criterion.loss_terms``."""
    bins, masks = EdgeBins(model.reg_max, model.up, model.reg_scale), _mask_weights(config)
    named = criterion.loss_terms(output, targets, denoising, matching, norm, bins, config, masks)
    if config.dn_last_layer or not model.mask_width:
        return named
    where = f"dn_{model.decoder_layers - 1}"
    return {name: term for name, term in named.items() if not name.endswith(f"/{where}") or name.startswith("mask_")}


def kinds(model: ModelConfig, config: LossConfig) -> tuple[str, ...]:
    """Kinds of terms."""
    masks = ("mask_bce", "mask_dice") if model.mask_width else ()
    return (config.class_loss, "bbox", "giou", "fgl", "ddf", *masks)


def _mask_weights(config: LossConfig) -> MaskWeights:
    return MaskWeights(config.cost_mask_focal, config.cost_mask_dice, config.weight_mask_bce, config.weight_mask_dice)
