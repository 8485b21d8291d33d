"""The PyTorch side of the comparisons: transformers' model of one of our variants, and its weights as ours."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dfine_jax import families
from dfine_jax.config import Config
from dfine_jax.converters.torch.tensor_files import read_folder_tensors
from dfine_jax.families.backbones.hgnetv2 import BACKBONES
from dfine_jax.families.dfine.config import ModelConfig
from dfine_jax.families.family import Build
from dfine_jax.families.rfdetr import huggingface as rfdetr_huggingface
from dfine_jax.families.rfdetr.config import RFDetrConfig
from dfine_jax.families.rtdetr import huggingface
from dfine_jax.families.rtdetr.config import RTDetrConfig


def model_config(recipe: str) -> Any:
    """Architecture of ``[family-]variant``."""
    family, variant = families.of_recipe(recipe)
    return family.variants[variant]


def config(recipe: str, **sections: Any) -> Config:
    """``model_config`` with the default losses; other ``sections``, and fields of ``loss``, as given."""
    family, variant = families.of_recipe(recipe)
    loss = family.Loss(**sections.pop("loss", {}))
    return Config(family.variants[variant], loss, **sections)


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


def transformers_model(config: ModelConfig | RTDetrConfig | RFDetrConfig, **changes: Any) -> Any:
    """Randomly initialised detector of the same architecture.

    Raises:
      UserError: transformers has no such model.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    names = [f"class {i}" for i in range(config.num_classes)]
    if isinstance(config, RFDetrConfig):
        settings = {**rfdetr_huggingface.settings(config, names), **changes}
        kind = getattr(transformers, settings["architectures"][0])
        return kind(transformers.RfDetrConfig.from_dict(settings))
    if isinstance(config, RTDetrConfig):
        settings = {**huggingface.settings(config, names), **changes}
        return transformers.RTDetrV2ForObjectDetection(transformers.RTDetrV2Config.from_dict(settings))
    return transformers.DFineForObjectDetection(transformers_config(config, **changes))


def ours(peer: Any) -> tuple[Any, dict[str, Any]]:
    """Our network and variables with the weights of a model of transformers."""
    for tensors in (_in_memory, _as_saved):
        found = _recognised(tensors(peer), peer.config.to_dict())
        if found is not None:
            return found
    raise ValueError(f"{type(peer).__name__} is not a model of ours")


def _recognised(tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    for family in families.every():
        for form in family.formats:
            config = form.recognise(tensors, settings) if form.name == "huggingface" else None
            if config is not None:
                config, variables = form.read(tensors, config)
                return family.build(config, Build()), variables
    return None


def _in_memory(peer: Any) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in peer.state_dict().items()}


def _as_saved(peer: Any) -> Mapping[str, np.ndarray]:
    """Of some models transformers has other names in memory than in files."""
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        return read_folder_tensors(Path(folder)).tensors


def merge_branches(peer: Any) -> None:
    """RepVGG blocks become the one convolution that inference needs, as the authors' own exports have it."""
    import torch

    def fused(unit: Any) -> tuple:
        factor = unit.norm.weight / torch.sqrt(unit.norm.running_var + unit.norm.eps)
        return unit.conv.weight * factor[:, None, None, None], unit.norm.bias - unit.norm.running_mean * factor

    with torch.no_grad():
        for block in [m for m in peer.modules() if type(m).__name__.endswith("RepVggBlock")]:
            (wide, bias), (narrow, more) = fused(block.conv1), fused(block.conv2)
            conv = torch.nn.Conv2d(wide.shape[1], wide.shape[0], 3, padding=1)
            assert conv.bias is not None
            wide[:, :, 1:2, 1:2] += narrow
            conv.weight.copy_(wide)
            conv.bias.copy_(bias + more)
            block.merged = conv
            block.forward = lambda x, block=block: block.activation(block.merged(x))
