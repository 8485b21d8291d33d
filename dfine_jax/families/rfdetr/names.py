"""Names of the official state dict for our variables, and its order of class rows."""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Int

from dfine_jax.data.read.coco_names import COCO_CATEGORY_IDS
from dfine_jax.families.rfdetr.config import COCO_ROWS, RFDetrConfig

_BACKBONE, _PROJECTOR = "backbone.0.encoder.encoder.", "backbone.0.projector.stages.0."
# The first that fits is written in place of the start of a path.
_STARTS: tuple[tuple[str, str], ...] = (
    (r"backbone/patch_embeddings/", f"{_BACKBONE}embeddings.patch_embeddings.projection/"),
    (r"backbone/(cls_token|mask_token|position_embeddings)", rf"{_BACKBONE}embeddings.\1"),
    (r"backbone/(layer_\d+)/attention/output/", rf"{_BACKBONE}encoder.\1/attention/output/dense/"),
    (r"backbone/(layer_\d+)/attention/", rf"{_BACKBONE}encoder.\1/attention/attention/"),
    (r"backbone/(layer_\d+)/(fc\d)/", rf"{_BACKBONE}encoder.\1/mlp/\2/"),
    (r"backbone/(layer_\d+)/(layer_scale\d)$", rf"{_BACKBONE}encoder.\1/\2/lambda1"),
    (r"backbone/(layer_\d+)/", rf"{_BACKBONE}encoder.\1/"),
    (r"backbone/", _BACKBONE),
    (r"projector/norm/", f"{_PROJECTOR}1/"),
    (r"projector/(m_\d)_", rf"{_PROJECTOR}0.\1/"),
    (r"projector/", f"{_PROJECTOR}0."),
    (r"decoder/(layers_|norm/|ref_point_head/)", r"transformer.decoder.\1"),
    (r"decoder/enc_", "transformer.enc_"),
    (r"decoder/(query_feat|refpoint_embed)$", r"\1.weight"),
    (r"decoder/", ""),
    (r"", ""),
)
# Order in which the official modules declare their parts.
_ORDER = {name: rank for rank, name in enumerate(
    "transformer decoder dwconv norm_in layers self_attn in_proj_weight in_proj_bias out_proj class_embed bbox_embed "
    "segmentation_head blocks spatial_features_proj query_features_block query_features_proj refpoint_embed query_feat "
    "backbone embeddings cls_token mask_token position_embeddings patch_embeddings projection encoder layer layernorm "
    "projector stages cv1 cv2 m conv bn norm ref_point_head enc_output enc_output_norm enc_out_bbox_embed "
    "enc_out_class_embed norm1 attention query key value output dense cross_attn sampling_offsets attention_weights "
    "value_proj output_proj linear1 linear2 layer_scale1 norm2 mlp fc1 fc2 layer_scale2 norm3 pwconv1 lambda1 "
    "weight bias".split()
)}  # fmt: skip


def to_official(path: str) -> str:
    """Official key of one of our paths."""
    place = path.removeprefix("params/")
    pattern, replacement = next(start for start in _STARTS if re.match(start[0], place))
    key = re.sub(pattern, replacement, place, count=1).replace("/", ".")
    key = re.sub(r"\.(kernel|scale)$", ".weight", key).replace(".in_proj.", ".in_proj_")
    return re.sub(r"_(?=\d+\.)", ".", key)


def order_key(key: str) -> tuple[int, ...]:
    """Sort key that puts official keys into the order of the official file."""
    parts = key.split(".")
    # The bias of all masks stands before their modules.
    parts = ["decoder" if key == "segmentation_head.bias" and part == "bias" else part for part in parts]
    return tuple(int(part) if part.isdigit() else _ORDER[part] for part in parts)


def has_class_rows(key: str) -> bool:
    """Whether an official tensor has one row for each logit."""
    return "class_embed" in key


def class_rows(model: RFDetrConfig) -> Int[np.ndarray, " k"]:
    """Official row of each of ours: those of the classes, then the others."""
    if model.head_rows == "spare":
        return np.arange(model.num_logits)
    others = np.setdiff1d(np.arange(COCO_ROWS), COCO_CATEGORY_IDS)
    return np.concatenate([np.asarray(COCO_CATEGORY_IDS), others])
