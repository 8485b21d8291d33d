"""Configuration of architecture and loss."""

from __future__ import annotations

import dataclasses
from typing import Literal

from dfine_jax.config import Activation, ConfigError, Precision, check_ranges
from dfine_jax.families.ranges import check_loss, check_model

_MASK_GROUPS = 32  # of the normalisations in nn/mask_head.py


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture. Shapes of the weights depend on nothing else."""

    variant: str
    backbone: str  # HGNetv2 size, B0..B6
    backbone_lab: bool  # learnable affine after each ReLU
    backbone_frozen_bn: bool
    backbone_frozen_stem: bool
    return_stages: tuple[int, ...]  # backbone stages given to the encoder, 0-based
    encoder_width: int
    encoder_ffn: int
    encoder_expansion: float
    encoder_depth: float
    decoder_width: int
    decoder_ffn: int
    decoder_layers: int
    num_points: tuple[int, ...]  # sampling points per level
    reg_scale: float  # curvature of the weighting function of bins; box sides are divided by it
    num_classes: int = 80
    num_queries: int = 300
    num_heads: int = 8
    reg_max: int = 32
    up: float = 0.5
    decoder_activation: Activation = "relu"  # feed-forward and localisation quality layers
    mlp_activation: Activation = "relu"  # box heads and query position head
    mask_width: int = 0  # of the embeddings that masks are made of; 0: boxes alone
    mask_stages: tuple[int, ...] = ()  # backbone stages whose maps go only to the masks, 0-based, finest first
    position_order: Literal["transposed", "row_major"] = "transposed"  # of the encoder's position embedding
    family: Literal["dfine"] = "dfine"
    precision: Precision = "float32"  # compute type; boxes, softmax, sampling coordinates and losses stay float32


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Matching costs, loss terms and denoising."""

    cost_class: float = 2.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    cost_mask_focal: float = 1.0
    cost_mask_dice: float = 1.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    class_loss: Literal["vfl", "mal", "focal"] = "vfl"  # mal: DEIM
    weight_class: float = 1.0
    weight_bbox: float = 5.0
    weight_giou: float = 2.0
    weight_fgl: float = 0.15
    weight_ddf: float = 1.5
    weight_mask_bce: float = 1.0
    weight_mask_dice: float = 1.0
    vfl_alpha: float = 0.75  # of vfl and focal
    vfl_gamma: float = 2.0
    mal_gamma: float = 1.5
    mal_alpha: float = 1.0  # weight of the background in mal
    ddf_temperature: float = 5.0
    num_denoising: int = 100
    label_noise_ratio: float = 0.5
    box_noise_scale: float = 1.0
    dn_last_layer: bool = True  # False: denoising trains the last layer's masks alone, as dfine-seg before 0.6
    assignment: Literal["scipy", "device"] = "scipy"


def check(model: ModelConfig, loss: LossConfig) -> None:
    """Check what types cannot.

    Raises:
      ConfigError: a value makes no sense; the message names the key.
    """
    not_negative = ("return_stages", "mask_stages", "mask_width")
    check_ranges("model", model, {"not negative": not_negative, "above 0": ("encoder_depth",)})
    if model.mask_width % _MASK_GROUPS:
        raise ConfigError(f"model.mask_width={model.mask_width} must be a multiple of {_MASK_GROUPS}; 0 for no masks")
    if model.mask_stages and not model.mask_width:
        raise ConfigError(f"model.mask_stages={model.mask_stages} is of models with masks; give model.mask_width too")
    stages = [*model.mask_stages, *model.return_stages]
    if stages != sorted(set(stages)):
        raise ConfigError(f"model.mask_stages={model.mask_stages} must be finer than return_stages, finest first")
    check_model(model, len(model.return_stages))
    check_loss(loss)
    check_ranges("loss", loss, {"not negative": tuple(f.name for f in dataclasses.fields(loss) if "_mask_" in f.name)})
