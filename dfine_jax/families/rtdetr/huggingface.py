"""transformers' ``RTDetrV2ForObjectDetection``: its state dict and its configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from dfine_jax.errors import UserError
from dfine_jax.families.backbones.resnet_vd import BACKBONES, STEM, WIDTHS
from dfine_jax.families.rtdetr import names
from dfine_jax.families.rtdetr.config import RTDetrConfig
from dfine_jax.families.rtdetr.model import STAGES

# Settings whose other values change the computation; the value is also the one assumed when absent.
_REQUIRED: dict[str, Any] = {
    "activation_function": "silu",
    "encoder_activation_function": "gelu",
    "decoder_activation_function": "relu",
    "decoder_offset_scale": 0.5,
    "learn_initial_query": False,
    "normalize_before": False,
    "encode_proj_layers": [2],
    "positional_encoding_temperature": 10000,
}
_SAMPLING = {"default": "bilinear", "discrete": "discrete"}


def to_official(tensors: Mapping[str, np.ndarray], keys: Collection[str]) -> dict[str, np.ndarray]:
    """State dict under official names, attention projections joined.

    Args:
      keys: official names of the architecture.

    Raises:
      UserError: two copies of one tensor that differ.
    """
    files: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        place = names.of_file(name)
        if place in files and not np.array_equal(files[place], tensor):
            raise UserError(f"two different tensors for {place} (one is {name}); save the model again")
        files[place] = tensor
    out = {}
    for key in keys:
        places = names.to_huggingface(key)
        if all(place in files for place in places):
            found = [files.pop(place) for place in places]
            out[key] = found[0] if len(found) == 1 else np.concatenate(found)
    # What is left has no place: under its own name it is reported with all that does not fit.
    return out | {name: tensor for name, tensor in files.items() if not name.endswith("num_batches_tracked")}


def from_official(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights under the names of transformers' files.

    Raises:
      UserError: transformers has no such backbone.
    """
    out = {}
    for key, tensor in tensors.items():
        if key in ("decoder.anchors", "decoder.valid_mask"):
            continue
        if not names.has_huggingface(key):
            raise UserError(f"{key} has no place in transformers' rt_detr_v2, which has ResNet backbones alone")
        places = names.to_huggingface(key)
        out |= dict(zip(places, np.split(tensor, len(places)) if len(places) > 1 else [tensor], strict=True))
    return out


def as_configured(model: RTDetrConfig, settings: Mapping[str, Any]) -> RTDetrConfig:
    """The architecture with what config.json says beyond shapes, as transformers computes it.

    It orders positions by rows and answers with the last layer.

    Raises:
      UserError: it asks for something that this model does not have.
    """
    for name, value in _REQUIRED.items():
        if settings.get(name, value) != value:
            raise UserError(f"config.json: {name}={settings[name]!r} is not supported (only {value!r})")
    method, heads = settings.get("decoder_method", "default"), settings.get("decoder_attention_heads", 8)
    if method not in _SAMPLING:
        raise UserError(f"config.json: decoder_method={method!r} is not one of {', '.join(_SAMPLING)}")
    if settings.get("encoder_attention_heads", 8) != heads:
        raise UserError("config.json: encoder_attention_heads and decoder_attention_heads must be equal")
    points = settings.get("decoder_n_points", model.num_points)
    return dataclasses.replace(
        model,
        num_points=(points,) * len(STAGES) if isinstance(points, int) else tuple(points),
        num_heads=heads,
        num_queries=settings.get("num_queries", 300),
        sampling=_SAMPLING[method],
        position_order="row_major",
        eval_layer=model.decoder_layers - 1,
    )


def settings(model: RTDetrConfig, class_names: Sequence[str]) -> dict[str, Any]:
    """The content of a config.json that makes transformers build this architecture.

    It computes the same for square inputs; for others where the position order is by rows.

    Raises:
      UserError: transformers cannot compute it.
    """
    wrong = {
        "a HGNetv2 backbone": model.backbone not in BACKBONES,
        "an inner layer that answers": model.eval_layer != model.decoder_layers - 1,
        "SiLU in the decoder": "silu" in (model.decoder_activation, model.mlp_activation),
        "a query position head of three layers": model.query_position != "wide",
    }
    if refused := [name for name, is_so in wrong.items() if is_so]:
        raise UserError(f"transformers' rt_detr_v2 has not {' and not '.join(refused)}")
    spec = BACKBONES[model.backbone]
    widths = [width * spec.expansion for width in WIDTHS]
    backbone = {
        "model_type": "rt_detr_resnet",
        "embedding_size": STEM,
        "hidden_sizes": widths,
        "depths": list(spec.blocks),
        "layer_type": "basic" if spec.expansion == 1 else "bottleneck",
        "out_features": [f"stage{stage + 1}" for stage in STAGES],
    }
    return {
        "model_type": "rt_detr_v2",
        "architectures": ["RTDetrV2ForObjectDetection"],
        "backbone_config": backbone,
        "freeze_backbone_batch_norms": model.backbone_frozen_bn,
        "encoder_in_channels": [widths[stage] for stage in STAGES],
        "encoder_hidden_dim": model.encoder_width,
        "encoder_ffn_dim": model.encoder_ffn,
        "encoder_layers": model.encoder_layers,
        "encoder_attention_heads": model.num_heads,
        "hidden_expansion": model.encoder_expansion,
        "d_model": model.decoder_width,
        "decoder_in_channels": [model.encoder_width] * len(STAGES),
        "decoder_ffn_dim": model.decoder_ffn,
        "decoder_layers": model.decoder_layers,
        "decoder_attention_heads": model.num_heads,
        "decoder_n_points": model.num_points[0] if len(set(model.num_points)) == 1 else list(model.num_points),
        "decoder_method": next(name for name, sampling in _SAMPLING.items() if sampling == model.sampling),
        "num_queries": model.num_queries,
        "id2label": {str(i): name for i, name in enumerate(class_names)},
        "label2id": {name: i for i, name in enumerate(class_names)},
    }
