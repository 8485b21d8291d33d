"""The training loss (reference: rtdetrv2_pytorch/src/zoo/rtdetr/rtdetrv2_criterion.py): the criterion.

Every output has a class term (vfl, or mal where DEIM trains), bbox and giou, of its own assignment. With
``model.box_head=fdr`` all layers have fgl too; with ``loss.go_lsd`` all terms but that of the classes then train the
union of all assignments, and ddf every layer but the last.
"""

from __future__ import annotations

from jaxtyping import Array, Float

from dfine_jax.families.rtdetr.config import RTDetrConfig, RTDetrLossConfig
from dfine_jax.losses import criterion
from dfine_jax.losses.criterion import Pairs
from dfine_jax.ops.fdr import EdgeBins
from dfine_jax.typing import DenoisingQueries, Matching, ModelOutput, Norm, Targets


def match(
    output: ModelOutput, targets: Targets, denoising: DenoisingQueries | None, config: RTDetrLossConfig
) -> Matching[Pairs]:
    """As ``criterion.match``."""
    return criterion.match(output, targets, denoising, config, union=config.go_lsd)


def loss_terms(
    output: ModelOutput,
    targets: Targets,
    denoising: DenoisingQueries | None,
    matching: Matching[Pairs],
    norm: Norm,
    model: RTDetrConfig,
    config: RTDetrLossConfig,
) -> dict[str, Float[Array, ""]]:
    """All weighted terms by name, as ``criterion.loss_terms``."""
    bins = EdgeBins(model.reg_max, model.up, model.reg_scale)
    return criterion.loss_terms(output, targets, denoising, matching, norm, bins, config)


def kinds(model: RTDetrConfig, config: RTDetrLossConfig) -> tuple[str, ...]:
    """Kinds of terms."""
    distributions = () if model.box_head == "plain" else (("fgl", "ddf") if config.go_lsd else ("fgl",))
    return (config.class_loss, "bbox", "giou", *distributions)
