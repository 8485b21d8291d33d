"""Configuration of RF-DETR: architecture and loss."""

from __future__ import annotations

import dataclasses
from typing import Literal

from dfine_jax.config import Activation, ConfigError, Precision, check_ranges

COCO_ROWS = 91  # of a class head that has one for each of COCO's category ids, from 0


@dataclasses.dataclass(frozen=True)
class RFDetrConfig:
    """Architecture. Shapes of the weights depend on nothing else."""

    variant: str
    backbone: str  # dinov2-s or dinov2-b
    patch_px: int
    windows: int  # per side of the picture
    table: int  # side of the grid of learned positions, which is resized to that of the patches
    taps: tuple[int, ...]  # so many blocks of the backbone give a map; where one counts from 0, attention is global
    width: int
    self_heads: int
    cross_heads: int
    num_points: int
    decoder_layers: int
    num_queries: int = 300  # of a group
    groups: int = 13  # of queries, which train side by side; the first answers
    decoder_ffn: int = 2048
    num_classes: int = 80
    # Rows of class heads. spare: one more than classes, which only ever trains as background. coco: 91, those of COCO's
    # 80 classes and of the category ids that it never used.
    head_rows: Literal["spare", "coco"] = "spare"
    mask_width: int = 0  # of the embeddings of pixels and queries; 0: no masks
    drop_path: float = 0.0  # of the last block of the backbone, less before it; training only
    # A picture with fewer patches than queries. pad: every group has its own proposals and then none; shift: as the
    # reference, where they take the place of those of the next group.
    few_tokens: Literal["pad", "shift"] = "pad"
    decoder_activation: Activation = "relu"
    precision: Precision = "float32"  # compute type; norms, softmax, boxes, sampling and losses stay float32
    family: Literal["rfdetr"] = "rfdetr"

    @property
    def grid_px(self) -> int:
        """Sides of the input are multiples of it: a patch in each window."""
        return self.patch_px * self.windows

    @property
    def num_logits(self) -> int:
        """Rows of the class heads; those behind ``num_classes`` are of no class."""
        return COCO_ROWS if self.head_rows == "coco" else self.num_classes + 1


@dataclasses.dataclass(frozen=True)
class RFDetrLossConfig:
    """Matching costs and loss terms."""

    cost_class: float = 2.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    cost_mask_ce: float = 5.0
    cost_mask_dice: float = 5.0
    focal_alpha: float = 0.25  # of the class cost, and the power of the score in the target of the class loss
    focal_gamma: float = 2.0
    weight_class: float = 1.0
    weight_bbox: float = 5.0
    weight_giou: float = 2.0
    weight_mask_ce: float = 5.0
    weight_mask_dice: float = 5.0
    mask_point_ratio: int = 16  # cells of the map per point that masks are compared at
    oversample: float = 3.0  # so many times the points are drawn
    importance: float = 0.75  # share of the points that are the most uncertain of those
    assignment: Literal["scipy", "device"] = "scipy"


def check(model: RFDetrConfig, loss: RFDetrLossConfig) -> None:
    """Check what types cannot.

    Raises:
      ConfigError: a value makes no sense; the message names the key.
    """
    check_ranges(
        "model",
        model,
        {
            "at least 1": ("patch_px", "windows", "table", "taps", "width", "self_heads", "cross_heads", "num_points")
            + ("decoder_layers", "groups", "decoder_ffn"),
            "not negative": ("mask_width",),
            "between 0 and 1": ("drop_path",),
        },
    )
    from dfine_jax.families.backbones.dinov2 import BACKBONES  # not before it is needed, because it loads flax

    if model.backbone not in BACKBONES:
        raise ConfigError(f"model.backbone={model.backbone!r} is not one of {', '.join(BACKBONES)}")
    for heads in ("self_heads", "cross_heads"):
        if model.width % getattr(model, heads):
            raise ConfigError(f"model.{heads}={getattr(model, heads)} must divide model.width={model.width}")
    if model.width % 4:
        raise ConfigError(f"model.width={model.width} must be a multiple of 4")
    if model.head_rows == "coco" and model.num_classes != 80:
        raise ConfigError(f"model.head_rows=coco is of COCO's 80 classes, not of {model.num_classes}; set it to spare")
    names = tuple(field.name for field in dataclasses.fields(loss) if field.name.startswith(("cost_", "weight_")))
    check_ranges(
        "loss",
        loss,
        {
            "not negative": (*names, "focal_gamma"),
            "between 0 and 1": ("focal_alpha", "importance"),
            "at least 1": ("mask_point_ratio", "oversample"),
        },
    )
