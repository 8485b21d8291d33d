"""Architectures of the published RT-DETRv2 (rtdetrv2_pytorch/configs/rtdetrv2 of lyuwenyu/RT-DETR)."""

from __future__ import annotations

from dfine_jax.families.rtdetr.config import RTDetrConfig


def _variant(
    name: str, backbone: str, *, frozen: bool, width: int = 256, expansion: float = 1.0, layers: int = 6,
    eval_layer: int | None = None, encoder_layers: int = 1,
) -> RTDetrConfig:  # fmt: skip
    return RTDetrConfig(
        variant=name,
        backbone=backbone,
        backbone_frozen_bn=frozen,
        backbone_frozen_stem=frozen,
        encoder_width=width,
        encoder_ffn=1024 if width == 256 else 2048,
        encoder_expansion=expansion,
        encoder_layers=encoder_layers,
        decoder_width=256,
        decoder_ffn=1024,
        decoder_layers=layers,
        num_points=(4, 4, 4),
        eval_layer=layers - 1 if eval_layer is None else eval_layer,
    )


VARIANTS: dict[str, RTDetrConfig] = {
    config.variant: config
    for config in (
        _variant("r18", "R18", frozen=False, expansion=0.5, layers=3),
        _variant("r34", "R34", frozen=False, expansion=0.5, layers=4),
        _variant("r50m", "R50", frozen=True, expansion=0.5, eval_layer=2),
        _variant("r50", "R50", frozen=True),
        _variant("r101", "R101", frozen=True, width=384),
        _variant("l", "B4", frozen=True),
        _variant("x", "B5", frozen=True, width=384),
        _variant("h", "B6", frozen=True, width=512, encoder_layers=2),
    )
}


def grid_px(model: RTDetrConfig) -> int:
    """Sides of the input are multiples of it: the coarsest map has one cell for so many pixels."""
    del model
    return 32
