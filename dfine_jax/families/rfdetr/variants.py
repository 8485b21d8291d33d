"""Architectures of the published RF-DETR (``rfdetr.config`` of package rfdetr 1.11.2)."""

from __future__ import annotations

from typing import NamedTuple

from dfine_jax.families.rfdetr.config import RFDetrConfig


class Size(NamedTuple):
    """One line of the table."""

    size_px: int  # sides of the input that it is published for
    patch_px: int
    windows: int
    layers: int
    queries: int = 300


DETECTORS: dict[str, Size] = {
    "nano": Size(384, 16, 2, 2),
    "small": Size(512, 16, 2, 3),
    "medium": Size(576, 16, 2, 4),
    "large": Size(704, 16, 2, 4),
    "xlarge": Size(700, 20, 1, 5),
    "2xlarge": Size(880, 20, 2, 5),
    "base": Size(560, 14, 4, 3),
}
SEGMENTERS: dict[str, Size] = {
    "seg-nano": Size(312, 12, 1, 4, 100),
    "seg-small": Size(384, 12, 2, 4, 100),
    "seg-medium": Size(432, 12, 2, 5, 200),
    "seg-large": Size(504, 12, 2, 5, 200),
    "seg-xlarge": Size(624, 12, 2, 6),
    "seg-2xlarge": Size(768, 12, 2, 6),
}
SIZES = {**DETECTORS, **SEGMENTERS}
WIDE = ("xlarge", "2xlarge")  # with DINOv2-B
PLATFORM_LICENCE = "PML 1.0 (Roboflow's Platform Model License), not Apache 2.0"  # of the weights of the wide ones
_OLD_TABLE = 37  # of base: that of DINOv2 itself


def _variant(name: str) -> RFDetrConfig:
    size, wide, old = SIZES[name], name in WIDE, name == "base"
    return RFDetrConfig(
        variant=name,
        backbone="dinov2-b" if wide else "dinov2-s",
        patch_px=size.patch_px,
        windows=size.windows,
        table=_OLD_TABLE if old else size.size_px // size.patch_px,
        taps=(2, 5, 8, 11) if old else (3, 6, 9, 12),
        width=512 if wide else 256,
        self_heads=16 if wide else 8,
        cross_heads=32 if wide else 16,
        num_points=4 if wide else 2,
        decoder_layers=size.layers,
        num_queries=size.queries,
        mask_width=256 if name in SEGMENTERS else 0,
    )


VARIANTS = {name: _variant(name) for name in SIZES}


def segmenting(model: RFDetrConfig) -> RFDetrConfig:
    """The variant of about the same size that makes masks; one that does as it is."""
    if model.mask_width:
        return model
    return VARIANTS["seg-medium" if model.variant == "base" else f"seg-{model.variant}"]


def detecting(model: RFDetrConfig) -> RFDetrConfig:
    """The variant of the same size without masks; one that makes none as it is."""
    return VARIANTS[model.variant.removeprefix("seg-")] if model.mask_width else model


def grid_px(model: RFDetrConfig) -> int:
    """Sides of the input are multiples of it: a patch in each window."""
    return model.grid_px
