"""The real configuration, shrunk until a step compiles in seconds."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from dfine_jax.config import Config, DataConfig, LogConfig, OptimConfig, TrainConfig
from dfine_jax.data.load.batch import Batch
from dfine_jax.families.backbones import dinov2
from dfine_jax.families.backbones.hgnetv2 import BACKBONES, BackboneSpec, StageSpec
from dfine_jax.families.dfine.config import LossConfig
from dfine_jax.families.dfine.variants import model_config
from dfine_jax.families.rfdetr import recipes as rfdetr_recipes
from dfine_jax.families.rfdetr.config import RFDetrConfig
from dfine_jax.families.rtdetr.config import RTDetrLossConfig
from dfine_jax.families.rtdetr.variants import VARIANTS

BACKBONE = BackboneSpec((4, 8), tuple(StageSpec(out, 4, 1, 1) for out in (8, 16, 16, 16)))
SIZE_PX = 64
SLOTS = 4
_NARROW: dict[str, Any] = {
    **{"num_classes": 3, "num_queries": 10, "num_heads": 4, "backbone": "tiny"},
    **{"encoder_width": 32, "encoder_ffn": 32},
    **{"decoder_width": 32, "decoder_ffn": 32, "decoder_layers": 2},
}


@contextlib.contextmanager
def known_backbone() -> Iterator[None]:
    """The backbone of ``tiny_config`` is in the library's table inside; conftest does it for modules that use it."""
    BACKBONES["tiny"] = BACKBONE
    dinov2.BACKBONES["tiny"] = dinov2.Size(16, 2, 4)
    try:
        yield
    finally:
        del BACKBONES["tiny"], dinov2.BACKBONES["tiny"]


def tiny_config(**changes: Any) -> Config:
    """N with narrow encoder and decoder, one decoder layer and ten queries; ``section=dict(...)`` replaces fields."""
    model = model_config(
        "n",
        encoder_depth=0.1,
        num_points=(2, 2),
        **_NARROW,
    )
    config = Config(
        model=model,
        loss=LossConfig(num_denoising=6),
        optim=OptimConfig(lr=1e-3, backbone_lr=1e-3, warmup_steps=2, ema_warmup_steps=2, ema_decay=0.9),
        data=DataConfig(height_px=SIZE_PX, width_px=SIZE_PX, workers=0, stop_augment_epoch=1),
        train=TrainConfig(epochs=2, batch_size=4, eval_batch_size=4, val_loss=False),
        log=LogConfig(pictures=0),
    )
    sections = {name: dataclasses.replace(getattr(config, name), **fields) for name, fields in changes.items()}
    return dataclasses.replace(config, **sections)


def tiny_rtdetr(**changes: Any) -> Config:
    """As ``tiny_config``, of RT-DETRv2 with the tiny backbone."""
    model = dataclasses.replace(
        VARIANTS["r18"],
        eval_layer=1,
        num_points=(2, 2, 2),
        **_NARROW,
    )
    loss = dataclasses.replace(RTDetrLossConfig(num_denoising=6), **changes.pop("loss", {}))
    return dataclasses.replace(tiny_config(**changes), model=model, loss=loss)


def tiny_rfdetr(**changes: Any) -> Config:
    """RF-DETR Nano, or Seg-Nano for ``masks=True``, with a tiny backbone and three groups of ten queries."""
    variant = "seg-nano" if changes.pop("masks", False) else "nano"
    table = rfdetr_recipes.published("rfdetr_custom", variant)
    assert isinstance(table.model, RFDetrConfig)
    narrow: dict[str, Any] = {"backbone": "tiny", "taps": (1, 2, 3, 4), "patch_px": 8, "windows": 2, "table": 8}
    narrow |= {"width": 16, "self_heads": 2, "cross_heads": 4, "decoder_layers": 2, "decoder_ffn": 32}
    narrow |= {"num_queries": 10, "groups": 3, "num_classes": 3, "mask_width": table.model.mask_width and 16}
    config = dataclasses.replace(
        table,
        model=dataclasses.replace(table.model, **narrow, precision="float32"),
        optim=dataclasses.replace(table.optim, lr=1e-3, backbone_lr=1e-3, ema_decay=0.9, ema_warmup_steps=2),
        data=dataclasses.replace(table.data, height_px=SIZE_PX, width_px=SIZE_PX, workers=0),
        train=dataclasses.replace(table.train, epochs=2, batch_size=4, eval_batch_size=4),
        log=LogConfig(pictures=0),
    )
    sections = {name: dataclasses.replace(getattr(config, name), **fields) for name, fields in changes.items()}
    return dataclasses.replace(config, **sections)


def tiny_segmenter(**changes: Any) -> Config:
    """As ``tiny_config``, with masks at a quarter of the input's size."""
    config = tiny_config(**changes)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, mask_width=32, mask_stages=(1,)))


def with_masks(batch: Batch, without: int = 0) -> Batch:
    """Ellipses in the boxes as masks of every object but the first ``without`` of each image."""
    cells = np.arange(SIZE_PX // 4) + 0.5
    cx, cy, w, h = np.moveaxis(batch.boxes_cxcywh * SIZE_PX / 4, -1, 0)[..., None]
    dx, dy = ((cells - c) / np.maximum(s / 2, 1) for c, s in ((cx, w), (cy, h)))
    has_mask = batch.valid & (np.arange(SLOTS) >= without)
    masks = 4 * (dx[..., None, :] ** 2 + dy[..., :, None] ** 2 <= 1) * has_mask[..., None, None]
    return batch._replace(masks=masks.astype(np.uint8), has_mask=has_mask)


def random_batch(seed: int, devices: int, per_device: int, counts: list[int] | None = None) -> Batch:
    """Noise images with random boxes; ``counts`` = objects of each image."""
    rng = np.random.RandomState(seed)
    total = devices * per_device
    counts = counts or [int(c) for c in rng.randint(0, SLOTS + 1, total)]
    valid = np.arange(SLOTS) < np.array(counts)[:, None]
    boxes = np.concatenate([rng.uniform(0.3, 0.7, (total, SLOTS, 2)), rng.uniform(0.1, 0.5, (total, SLOTS, 2))], -1)
    batch = Batch(
        images=rng.randint(0, 256, (total, SIZE_PX, SIZE_PX, 3)).astype(np.uint8),
        labels=(rng.randint(0, 3, (total, SLOTS)) * valid).astype(np.int32),
        boxes_cxcywh=(boxes * valid[..., None]).astype(np.float32),
        valid=valid,
    )
    return batch.each(lambda array: array.reshape(devices, per_device, *array.shape[1:]))
