"""transformers' D-FINE in the sizes of the published variants, with random weights and statistics."""

import numpy as np

from dfine_jax.models.hgnetv2 import BACKBONES
from dfine_jax.variants import model_config


def settings(variant, num_classes):
    """Keyword arguments of DFineConfig and HGNetV2Config that make a published variant."""
    config = model_config(variant, num_classes=num_classes)
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
        "num_labels": num_classes,
        "freeze_backbone_batch_norms": config.backbone_frozen_bn,
    }
    return detector, backbone


def build(variant, num_classes=80, seed=0, **changes):
    """A model in evaluation mode."""
    import torch
    from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config

    detector, backbone = settings(variant, num_classes)
    model = DFineForObjectDetection(DFineConfig(backbone_config=HGNetV2Config(**backbone), **{**detector, **changes}))
    rng = np.random.default_rng(seed)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or name.endswith(("reg_scale", "up", "num_points_scale")):
            continue
        shape = tuple(tensor.shape)
        if tensor.ndim > 1:
            value = rng.standard_normal(shape) * np.sqrt(1.5 / np.prod(shape[1:]))
        elif name.endswith(("running_var", "weight", "scale")):
            value = rng.uniform(0.8, 1.2, shape)
        else:
            value = 0.1 * rng.standard_normal(shape)
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(value))
    return model.eval()
