"""Configuration of RT-DETRv2: architecture and loss."""

from __future__ import annotations

import dataclasses
from typing import Literal

from dfine_jax.config import Activation, ConfigError, Precision, check_ranges
from dfine_jax.families.ranges import check_loss, check_model

LEVELS = 3  # maps of strides 8, 16 and 32


@dataclasses.dataclass(frozen=True)
class RTDetrConfig:
    """Architecture. Shapes of the weights depend on nothing else."""

    variant: str
    backbone: str  # ResNet-vd R18, R34, R50 or R101, or HGNetv2 B4, B5 or B6
    backbone_frozen_bn: bool
    backbone_frozen_stem: bool
    encoder_width: int
    encoder_ffn: int
    encoder_expansion: float
    encoder_layers: int  # of self-attention on the coarsest map
    decoder_width: int
    decoder_ffn: int
    decoder_layers: int
    num_points: tuple[int, ...]  # sampling points per level
    eval_layer: int  # decoder layer that answers at inference, from 0; those behind it only train
    num_classes: int = 80
    num_queries: int = 300
    num_heads: int = 8
    sampling: Literal["bilinear", "discrete"] = "bilinear"
    position_order: Literal["transposed", "row_major"] = "transposed"  # of the encoder's position embedding
    query_position: Literal["wide", "deep"] = "wide"  # two layers, the inner twice as wide; deep: three of one width
    decoder_activation: Activation = "relu"  # feed-forward layers
    mlp_activation: Activation = "relu"  # box heads and query position head
    precision: Precision = "float32"  # compute type; boxes, softmax, sampling coordinates and losses stay float32
    box_head: Literal["plain", "fdr"] = "plain"  # fdr: refines distributions of edges, as D-FINE does
    quality_head: bool = True  # fdr: class logits are corrected by how sharp the distributions are
    reg_max: int = 32  # fdr: one less than the bins of a distribution
    up: float = 0.5  # fdr: half the reach of the outermost bins, in box sides
    reg_scale: float = 4.0  # fdr: curvature of the weighting function of bins; box sides are divided by it
    family: Literal["rtdetrv2"] = "rtdetrv2"


@dataclasses.dataclass(frozen=True)
class RTDetrLossConfig:
    """Matching costs, loss terms and denoising."""

    cost_class: float = 2.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    class_loss: Literal["vfl", "mal"] = "vfl"  # mal: DEIM
    weight_class: float = 1.0
    weight_bbox: float = 5.0
    weight_giou: float = 2.0
    weight_fgl: float = 0.15  # model.box_head=fdr
    weight_ddf: float = 1.5  # go_lsd
    ddf_temperature: float = 5.0
    # With model.box_head=fdr: boxes and distributions of all outputs train on the union of their assignments, and those
    # of earlier layers on the distributions of the last (arXiv 2410.13842, section 4.2).
    go_lsd: bool = True
    vfl_alpha: float = 0.75
    vfl_gamma: float = 2.0
    mal_gamma: float = 1.5
    mal_alpha: float = 1.0  # weight of the background in mal
    num_denoising: int = 100
    label_noise_ratio: float = 0.5
    box_noise_scale: float = 1.0
    unfold_boxes: bool = False  # noise that turns a box inside out: take its mirror image, as DEIM does
    denoise_without_objects: bool = True  # a batch without objects trains two queries as background
    assignment: Literal["scipy", "device"] = "scipy"


# Fields of the box head. All but ``box_head`` need the value here where it is plain, which has no use for them.
FDR_DEFAULTS = {
    field.name: field.default
    for field in dataclasses.fields(RTDetrConfig)
    if field.name in ("box_head", "quality_head", "reg_max", "up", "reg_scale")
}


def check(model: RTDetrConfig, loss: RTDetrLossConfig) -> None:
    """Check what types cannot.

    Raises:
      ConfigError: a value makes no sense; the message names the key.
    """
    check_ranges("model", model, {"at least 1": ("encoder_layers",), "not negative": ("eval_layer",)})
    check_model(model, LEVELS)
    if model.eval_layer >= model.decoder_layers:
        raise ConfigError(f"model.eval_layer={model.eval_layer} must be below model.decoder_layers, counted from 0")
    unused = [name for name, default in FDR_DEFAULTS.items() if getattr(model, name) != default]
    if model.box_head == "plain" and unused:
        name, default = unused[0], FDR_DEFAULTS[unused[0]]
        raise ConfigError(
            f"model.{name}={getattr(model, name)} is of model.box_head=fdr and does nothing with plain; leave it at "
            f"{default}"
        )
    check_loss(loss)
