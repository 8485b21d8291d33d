"""Architectures of the published D-FINE variants (reference: configs/dfine, Peterande/D-FINE)."""

from __future__ import annotations

import dataclasses

from dfine_jax.families.dfine.config import ModelConfig

VARIANTS: dict[str, ModelConfig] = {
    "n": ModelConfig(
        variant="n", backbone="B0", backbone_lab=True, backbone_frozen_bn=False, backbone_frozen_stem=False,
        return_stages=(2, 3), encoder_width=128, encoder_ffn=512, encoder_expansion=0.34, encoder_depth=0.5,
        decoder_width=128, decoder_ffn=512, decoder_layers=3, num_points=(6, 6), reg_scale=4.0,
    ),
    "s": ModelConfig(
        variant="s", backbone="B0", backbone_lab=True, backbone_frozen_bn=False, backbone_frozen_stem=False,
        return_stages=(1, 2, 3), encoder_width=256, encoder_ffn=1024, encoder_expansion=0.5, encoder_depth=0.34,
        decoder_width=256, decoder_ffn=1024, decoder_layers=3, num_points=(3, 6, 3), reg_scale=4.0,
    ),
    "m": ModelConfig(
        variant="m", backbone="B2", backbone_lab=True, backbone_frozen_bn=False, backbone_frozen_stem=False,
        return_stages=(1, 2, 3), encoder_width=256, encoder_ffn=1024, encoder_expansion=1.0, encoder_depth=0.67,
        decoder_width=256, decoder_ffn=1024, decoder_layers=4, num_points=(3, 6, 3), reg_scale=4.0,
    ),
    "l": ModelConfig(
        variant="l", backbone="B4", backbone_lab=False, backbone_frozen_bn=True, backbone_frozen_stem=True,
        return_stages=(1, 2, 3), encoder_width=256, encoder_ffn=1024, encoder_expansion=1.0, encoder_depth=1.0,
        decoder_width=256, decoder_ffn=1024, decoder_layers=6, num_points=(3, 6, 3), reg_scale=4.0,
    ),
    "x": ModelConfig(
        variant="x", backbone="B5", backbone_lab=False, backbone_frozen_bn=True, backbone_frozen_stem=True,
        return_stages=(1, 2, 3), encoder_width=384, encoder_ffn=2048, encoder_expansion=1.0, encoder_depth=1.0,
        decoder_width=256, decoder_ffn=1024, decoder_layers=6, num_points=(3, 6, 3), reg_scale=8.0,
    ),
}  # fmt: skip


def model_config(variant: str, **changes: object) -> ModelConfig:
    """Configuration of a published variant (``n``, ``s``, ``m``, ``l``, ``x``) with fields replaced.

    Raises:
      ValueError: the variant is unknown.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    return dataclasses.replace(VARIANTS[variant], **changes)
