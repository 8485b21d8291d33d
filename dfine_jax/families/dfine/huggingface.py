"""Hugging Face D-FINE (transformers ``DFineForObjectDetection``): names and configuration to the official ones."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dfine_jax.errors import UserError
from dfine_jax.families.dfine.config import ModelConfig

# Applied in order to a key without its leading "model."; the first that fits wins.
_PLACES: tuple[tuple[str, str], ...] = (
    (r"^backbone\.model\.embedder\.", r"backbone.stem."),
    (r"^backbone\.model\.encoder\.stages\.", r"backbone.stages."),
    (r"^(encoder|decoder)_input_proj\.(\d+)\.0\.", r"\1.input_proj.\2.conv."),
    (r"^(encoder|decoder)_input_proj\.(\d+)\.1\.", r"\1.input_proj.\2.norm."),
    (r"^encoder\.(?:encoder|aifi)\.", r"encoder.encoder."),
    (r"^encoder\.(fpn|pan)_blocks\.(\d+)\.conv1\.", r"encoder.\1_blocks.\2.cv1."),
    (r"^encoder\.(fpn|pan)_blocks\.(\d+)\.csp_rep1\.", r"encoder.\1_blocks.\2.cv2.0."),
    (r"^encoder\.(fpn|pan)_blocks\.(\d+)\.conv2\.", r"encoder.\1_blocks.\2.cv2.1."),
    (r"^encoder\.(fpn|pan)_blocks\.(\d+)\.csp_rep2\.", r"encoder.\1_blocks.\2.cv3.0."),
    (r"^encoder\.(fpn|pan)_blocks\.(\d+)\.conv3\.", r"encoder.\1_blocks.\2.cv3.1."),
    (r"^encoder\.(fpn|pan)_blocks\.(\d+)\.conv4\.", r"encoder.\1_blocks.\2.cv4."),
    (r"^encoder\.downsample_convs\.(\d+)\.conv(\d)\.", r"encoder.downsample_convs.\1.0.cv\2."),
    (r"^encoder\.lateral_convs\.", r"encoder.lateral_convs."),
    (r"^(?:decoder\.)?class_embed\.", r"decoder.dec_score_head."),
    (r"^(?:decoder\.)?bbox_embed\.", r"decoder.dec_bbox_head."),
    (r"^decoder\.(layers|lqe_layers)\.", r"decoder.decoder.\1."),
    (r"^decoder\.(query_pos_head|pre_bbox_head|up$|reg_scale$)", r"decoder.\1"),
    (r"^enc_output\.0\.", r"decoder.enc_output.proj."),
    (r"^enc_output\.1\.", r"decoder.enc_output.norm."),
    (r"^(enc_score_head|enc_bbox_head|denoising_class_embed)\.", r"decoder.\1."),
)
_INNER: dict[str, tuple[tuple[str, str], ...]] = {
    "backbone.": ((r"\.convolution\.", ".conv."), (r"\.normalization\.", ".bn.")),
    "encoder.encoder.": ((r"\.final_layer_norm\.", ".norm2."),),
    "decoder.decoder.layers.": ((r"\.final_layer_norm\.", ".norm3."), (r"\.encoder_attn\.", ".cross_attn.")),
}
_TRANSFORMER: tuple[tuple[str, str], ...] = (  # both the names on disk and those of the modules (transformers >= 5)
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
    (r"\.(?:fc1|mlp\.layers\.0)\.", ".linear1."),
    (r"\.(?:fc2|mlp\.layers\.1)\.", ".linear2."),
)
_PARTS = {"q": 0, "k": 1, "v": 2}

# Settings whose other values change the computation; the value is also the one assumed when absent.
_REQUIRED: dict[str, Any] = {
    "activation_function": "silu",
    "encoder_activation_function": "gelu",
    "decoder_activation_function": "relu",
    "decoder_method": "default",
    "decoder_offset_scale": 0.5,
    "learn_initial_query": False,
    "normalize_before": False,
    "layer_scale": 1.0,
    "top_prob_values": 4,
    "encoder_layers": 1,
    "positional_encoding_temperature": 10000,
}


class Place(NamedTuple):
    """Where a Hugging Face tensor belongs: official key, and which third (query, key, value) it is, or None."""

    key: str
    part: int | None


def official_place(name: str) -> Place | None:
    """Official place of a Hugging Face tensor name; None for a name that is not D-FINE's."""
    bare = name.removeprefix("model.")
    for pattern, replacement in _PLACES:
        key, found = re.subn(pattern, replacement, bare, count=1)
        if found:
            break
    else:
        return None
    inner = next((rules for prefix, rules in _INNER.items() if key.startswith(prefix)), ())
    for pattern, replacement in (*inner, *(_TRANSFORMER if not key.startswith("backbone.") else ())):
        key = re.sub(pattern, replacement, key)
    projection = re.fullmatch(r"(.*\.self_attn\.)([qkv])_proj\.(weight|bias)", key)
    if projection:
        return Place(f"{projection[1]}in_proj_{projection[3]}", _PARTS[projection[2]])
    return Place(key, None)


def is_mine(names: Iterable[str], settings: Mapping[str, Any] | None) -> bool:
    """Whether config.json, or without one the names of tensors, are those of transformers' D-FINE.

    Names count also for its part without heads.
    """
    if settings is not None:
        return settings.get("model_type") == "d_fine"
    return any(name.removeprefix("model.").startswith("backbone.model.embedder.stem") for name in names)


def to_official(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """State dict under official names, attention projections joined, the two scalars written twice.

    Raises:
      UserError: unknown names, an incomplete attention, or two copies of one tensor that differ.
    """
    out: dict[str, np.ndarray] = {}
    thirds: dict[str, dict[int, np.ndarray]] = {}
    unknown = []
    for name, tensor in tensors.items():
        place = official_place(name)
        if place is None:
            unknown.append(name)
        elif place.part is not None:
            thirds.setdefault(place.key, {})[place.part] = tensor
        elif place.key in out and not np.array_equal(out[place.key], tensor):
            raise UserError(f"two different tensors for {place.key} (one is {name}); save the model again")
        else:
            out[place.key] = tensor
    if unknown:
        raise UserError(f"{len(unknown)} names are not of transformers' D-FINE, for example {', '.join(unknown[:4])}")
    for key, parts in thirds.items():
        if sorted(parts) != [0, 1, 2] or len({part.shape for part in parts.values()}) != 1:
            raise UserError(f"{key} needs query, key and value projections of one shape; the file is incomplete")
        out[key] = np.concatenate([parts[i] for i in range(3)])
    for name in ("up", "reg_scale"):
        if f"decoder.{name}" in out:
            out[f"decoder.decoder.{name}"] = out[f"decoder.{name}"]
    return out


def as_configured(model: ModelConfig, settings: Mapping[str, Any]) -> ModelConfig:
    """The architecture with what config.json says beyond shapes.

    Raises:
      UserError: it asks for something that this model does not have.
    """
    for name, value in _REQUIRED.items():
        if settings.get(name, value) != value:
            raise UserError(f"config.json: {name}={settings[name]!r} is not supported (only {value!r})")
    last = settings.get("decoder_layers", 6) - 1
    if settings.get("eval_idx", -1) not in (-1, last):
        raise UserError(f"config.json: eval_idx={settings['eval_idx']!r} is not supported (only the last layer)")
    points = settings.get("decoder_n_points", 4)
    return dataclasses.replace(
        model,
        num_points=(points,) * len(model.num_points) if isinstance(points, int) else tuple(points),
        num_heads=settings.get("decoder_attention_heads", 8),
        num_queries=settings.get("num_queries", 300),
        reg_max=settings.get("max_num_bins", 32),
    )
