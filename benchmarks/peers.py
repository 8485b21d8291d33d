"""The PyTorch side of the comparisons: transformers' D-FINE with the configuration of one of our variants."""

from __future__ import annotations

from typing import Any

from dfine_jax.config import ModelConfig

# HGNetv2: stem (in, mid, out); per stage: in, mid, out channels, blocks, layers per block.
_HGNET = {
    "B0": ((3, 16, 16), (16, 64, 256, 512), (16, 32, 64, 128), (64, 256, 512, 1024), (1, 1, 2, 1), 3),
    "B2": ((3, 24, 32), (32, 96, 384, 768), (32, 64, 128, 256), (96, 384, 768, 1536), (1, 1, 3, 1), 4),
    "B4": ((3, 32, 48), (48, 128, 512, 1024), (48, 96, 192, 384), (128, 512, 1024, 2048), (1, 1, 3, 1), 6),
    "B5": ((3, 32, 64), (64, 128, 512, 1024), (64, 128, 256, 512), (128, 512, 1024, 2048), (1, 2, 5, 2), 6),
}


def transformers_config(model: ModelConfig, **changes: Any) -> Any:
    """``DFineConfig`` of the same architecture."""
    from transformers import DFineConfig, HGNetV2Config

    stem, c_in, c_mid, c_out, blocks, layers = _HGNET[model.backbone]
    backbone = HGNetV2Config(
        stem_channels=list(stem),
        stage_in_channels=list(c_in),
        stage_mid_channels=list(c_mid),
        stage_out_channels=list(c_out),
        hidden_sizes=list(c_out),
        stage_num_blocks=list(blocks),
        stage_numb_of_layers=[layers] * 4,
        use_learnable_affine_block=model.backbone_lab,
        out_indices=[stage + 1 for stage in model.return_stages],
    )
    levels = len(model.return_stages)
    return DFineConfig(
        **{
            "backbone_config": backbone,
            "freeze_backbone_batch_norms": model.backbone_frozen_bn,
            "encoder_hidden_dim": model.encoder_width,
            "encoder_in_channels": [c_out[stage] for stage in model.return_stages],
            "feat_strides": [4 * 2**stage for stage in model.return_stages],
            "encoder_ffn_dim": model.encoder_ffn,
            "encode_proj_layers": [levels - 1],
            "hidden_expansion": model.encoder_expansion,
            "depth_mult": model.encoder_depth,
            "d_model": model.decoder_width,
            "decoder_in_channels": [model.encoder_width] * levels,
            "decoder_ffn_dim": model.decoder_ffn,
            "num_feature_levels": levels,
            "decoder_n_points": list(model.num_points),
            "decoder_layers": model.decoder_layers,
            "reg_scale": model.reg_scale,
            "num_queries": model.num_queries,
            "num_labels": model.num_classes,
            **changes,
        }
    )


def transformers_model(model: ModelConfig, **changes: Any) -> Any:
    """Randomly initialised ``DFineForObjectDetection``."""
    import torch
    from transformers import DFineForObjectDetection

    torch.manual_seed(0)
    return DFineForObjectDetection(transformers_config(model, **changes))
