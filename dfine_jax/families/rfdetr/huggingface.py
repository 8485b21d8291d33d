"""transformers' ``RfDetrForObjectDetection`` and ``RfDetrForInstanceSegmentation``: their config.json.

Its files have the official names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dfine_jax.data.read.coco_names import COCO_CATEGORY_IDS
from dfine_jax.errors import UserError
from dfine_jax.families.backbones.dinov2 import BACKBONES
from dfine_jax.families.rfdetr.config import COCO_ROWS, RFDetrConfig
from dfine_jax.nn.vision_transformer import EXPANSION

# Settings whose other values change the computation; the value is also the one assumed when absent.
_REQUIRED: dict[str, Any] = {
    "activation_function": "silu",
    "decoder_activation_function": "relu",
    "segmentation_head_activation_function": "gelu",
    "hidden_expansion": 0.5,
    "c2f_num_blocks": 3,
    "num_feature_levels": 1,
    "mask_downsample_ratio": 4,
}


def as_configured(model: RFDetrConfig, settings: Mapping[str, Any]) -> RFDetrConfig:
    """The architecture with what config.json says beyond shapes.

    Raises:
      UserError: it asks for something that this model does not have.
    """
    for name, value in _REQUIRED.items():
        if settings.get(name, value) != value:
            raise UserError(f"config.json: {name}={settings[name]!r} is not supported (only {value!r})")
    backbone = settings.get("backbone_config")
    backbone = backbone if isinstance(backbone, Mapping) else {}
    stages = backbone.get("out_features", [f"stage{tap}" for tap in model.taps])
    heads = settings.get("decoder_cross_attention_heads", model.cross_heads)
    return dataclasses.replace(
        model,
        windows=backbone.get("num_windows", model.windows),
        taps=tuple(int(str(stage).removeprefix("stage")) for stage in stages),
        self_heads=settings.get("decoder_self_attention_heads", model.self_heads),
        cross_heads=heads,
        num_points=model.num_points * model.cross_heads // heads,
    )


def settings(model: RFDetrConfig, class_names: Sequence[str]) -> dict[str, Any]:
    """The content of a config.json that makes transformers build this architecture; it is right for square inputs."""
    size = BACKBONES[model.backbone]
    labels = _labels(model, class_names)
    backbone = {
        "model_type": "rf_detr_dinov2",
        "hidden_size": size.width,
        "num_attention_heads": size.heads,
        "num_hidden_layers": size.blocks,
        "mlp_ratio": EXPANSION,
        "image_size": model.table * model.patch_px,
        "patch_size": model.patch_px,
        "num_windows": model.windows,
        "num_register_tokens": 0,
        "out_features": [f"stage{tap}" for tap in model.taps],
    }
    kind = "InstanceSegmentation" if model.mask_width else "ObjectDetection"
    return {
        "model_type": "rf_detr",
        "architectures": [f"RfDetrFor{kind}"],
        "backbone_config": backbone,
        "d_model": model.width,
        "dropout": 0.0,
        "decoder_layers": model.decoder_layers,
        "decoder_ffn_dim": model.decoder_ffn,
        "decoder_self_attention_heads": model.self_heads,
        "decoder_cross_attention_heads": model.cross_heads,
        "decoder_n_points": model.num_points,
        "num_queries": model.num_queries,
        "group_detr": model.groups,
        "id2label": {str(i): name for i, name in enumerate(labels)},
        "label2id": {name: i for i, name in enumerate(labels)},
    }


def _labels(model: RFDetrConfig, class_names: Sequence[str]) -> list[str]:
    """A name for each row of the class heads."""
    if model.head_rows == "spare":
        return [*class_names, "background"]
    named = dict(zip(COCO_CATEGORY_IDS, class_names, strict=True))
    return [named.get(row, f"unused {row}") for row in range(COCO_ROWS)]
