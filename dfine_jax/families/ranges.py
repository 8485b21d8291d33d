"""Ranges of the fields that configurations of query detectors share."""

from __future__ import annotations

from typing import Any

from dfine_jax.config import ConfigError, check_ranges


def check_model(model: Any, num_levels: int) -> None:
    """Fields of an architecture of hybrid encoder, deformable decoder and, where it has them, edge distributions.

    Raises:
      ConfigError: a value makes no sense; the message names the key.
    """
    rules = {
        "at least 1": ("encoder_width", "encoder_ffn", "decoder_width", "decoder_ffn", "decoder_layers", "num_points")
        + ("num_heads",),
        "above 0": ("reg_scale", "up", "encoder_expansion"),
    }
    check_ranges("model", model, rules)
    for name in ("encoder_width", "decoder_width"):
        if getattr(model, name) % model.num_heads:
            raise ConfigError(f"model.{name}={getattr(model, name)} must be a multiple of model.num_heads")
    if model.reg_max < 4 or model.reg_max % 2:
        raise ConfigError(f"model.reg_max={model.reg_max} must be even and at least 4")
    if len(model.num_points) != num_levels:
        raise ConfigError(f"model.num_points={model.num_points} must have {num_levels} numbers, one per level")


def check_loss(loss: Any) -> None:
    """Weights and exponents of the criterion, and denoising.

    Raises:
      ConfigError: a value makes no sense; the message names the key.
    """
    rules = {
        "not negative": ("num_denoising", "box_noise_scale", "mal_gamma", "mal_alpha", "cost_class", "cost_bbox")
        + ("cost_giou", "focal_gamma", "vfl_gamma", "weight_class", "weight_bbox", "weight_giou", "weight_fgl")
        + ("weight_ddf",),
        "between 0 and 1": ("label_noise_ratio", "focal_alpha", "vfl_alpha"),
        "above 0": ("ddf_temperature",),
    }
    check_ranges("loss", loss, rules)
