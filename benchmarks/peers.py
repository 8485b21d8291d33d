"""The PyTorch side of the comparisons: transformers' D-FINE with the configuration of one of our variants."""

from __future__ import annotations

from typing import Any

from dfine_jax.families.backbones.hgnetv2 import BACKBONES
from dfine_jax.families.dfine.config import ModelConfig


def transformers_config(config: ModelConfig, **changes: Any) -> Any:
    """``DFineConfig`` of the same architecture."""
    from transformers import DFineConfig, HGNetV2Config

    spec = BACKBONES[config.backbone]
    out = [stage.out for stage in spec.stages]
    backbone = {
        "out_features": [f"stage{i + 1}" for i in config.return_stages],
        "stem_channels": [3, *spec.stem],
        "stage_in_channels": [spec.stem[1], *out[:-1]],
        "stage_mid_channels": [stage.mid for stage in spec.stages],
        "stage_out_channels": out,
        "hidden_sizes": out,
        "depths": [stage.blocks for stage in spec.stages],
        "stage_num_blocks": [stage.blocks for stage in spec.stages],
        "stage_numb_of_layers": [stage.layers for stage in spec.stages],
        "use_learnable_affine_block": config.backbone_lab,
    }
    levels = len(config.return_stages)
    detector = {
        "encoder_in_channels": [out[i] for i in config.return_stages],
        "feat_strides": [4 * 2**i for i in config.return_stages],
        "encoder_hidden_dim": config.encoder_width,
        "encoder_ffn_dim": config.encoder_ffn,
        "encode_proj_layers": [levels - 1],
        "hidden_expansion": config.encoder_expansion,
        "depth_mult": config.encoder_depth,
        "d_model": config.decoder_width,
        "decoder_in_channels": [config.encoder_width] * levels,
        "decoder_ffn_dim": config.decoder_ffn,
        "num_feature_levels": levels,
        "decoder_n_points": list(config.num_points),
        "decoder_layers": config.decoder_layers,
        "reg_scale": config.reg_scale,
        "num_labels": config.num_classes,
        "num_queries": config.num_queries,
        "freeze_backbone_batch_norms": config.backbone_frozen_bn,
    }
    return DFineConfig(backbone_config=HGNetV2Config(**backbone), **{**detector, **changes})


def transformers_model(model: ModelConfig, **changes: Any) -> Any:
    """Randomly initialised ``DFineForObjectDetection``."""
    import torch
    from transformers import DFineForObjectDetection

    torch.manual_seed(0)
    return DFineForObjectDetection(transformers_config(model, **changes))
