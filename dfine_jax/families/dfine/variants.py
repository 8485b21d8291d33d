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


def detecting(model: ModelConfig) -> ModelConfig:
    """The architecture without masks."""
    return dataclasses.replace(model, mask_width=0, mask_stages=())


def segmenting(model: ModelConfig) -> ModelConfig:
    """The architecture with D-FINE-seg's masks; one that has some stays as it is.

    Masks start from maps of stride 8. Where the encoder has none, as in N, the backbone's is used, and the embeddings
    are narrower.
    """
    if model.mask_width:
        return model
    finest = 1 in model.return_stages
    return dataclasses.replace(model, mask_width=256 if finest else 128, mask_stages=() if finest else (1,))


def mask_stride(model: ModelConfig) -> int | None:
    """Of the masks to the input: half the finest map's; None without masks."""
    return 2 * 2 ** min(*model.mask_stages, *model.return_stages) if model.mask_width else None


def model_config(variant: str, **changes: object) -> ModelConfig:
    """Configuration of a published variant (``n``, ``s``, ``m``, ``l``, ``x``) with fields replaced.

    Raises:
      ValueError: the variant is unknown.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    return dataclasses.replace(VARIANTS[variant], **changes)


def grid_px(model: ModelConfig) -> int:
    """Sides of the input are multiples of it: the coarsest map has one cell for so many pixels."""
    del model
    return 32
