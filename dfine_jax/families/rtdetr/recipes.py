"""The published recipes, number by number.

Those of RT-DETRv2 are rtdetrv2_pytorch/configs/rtdetrv2 of lyuwenyu/RT-DETR, those of DEIM configs/deim_rtdetrv2 of
Intellindust-AI-Lab/DEIM. The reference trains with automatic mixed precision; bfloat16 compute is its counterpart.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from dfine_jax.config import Config, DataConfig, OptimConfig, TrainConfig
from dfine_jax.errors import UserError
from dfine_jax.families.family import Start
from dfine_jax.families.rtdetr.config import RTDetrConfig, RTDetrLossConfig
from dfine_jax.families.rtdetr.variants import VARIANTS

BATCH = 16
SCALE_REPEAT = 3  # weight of 640 among the sizes from 480 to 800


class RecipeRow(NamedTuple):
    """One line of a table; epochs count from 0."""

    backbone_lr: float
    epochs: int
    stop_epoch: int  # end of the strong augmentations and of the several input sizes


class DenseRow(NamedTuple):
    """What DEIM adds: epochs at the full rate, which is also the end of mosaic and MixUp, and last ones without any."""

    backbone_lr: float
    epochs: int
    flat: int
    no_aug: int


COCO: dict[str, RecipeRow] = {
    "r18": RecipeRow(1e-4, 120, 117),
    "r34": RecipeRow(5e-5, 120, 117),
    "r50m": RecipeRow(1e-5, 84, 81),
    "r50": RecipeRow(1e-5, 72, 71),
    "r101": RecipeRow(1e-6, 72, 71),
    "l": RecipeRow(5e-6, 72, 71),
    "x": RecipeRow(1e-6, 72, 71),
    "h": RecipeRow(5e-6, 72, 71),
}
# Fine-tuning of the weights above with discrete sampling.
DISCRETE: dict[str, RecipeRow] = {
    "r18": RecipeRow(1e-4, 36, 33),
    "r34": RecipeRow(5e-5, 12, 10),
    "r50m": RecipeRow(1e-5, 36, 33),
    "r50": RecipeRow(1e-5, 12, 10),
}
DEIM: dict[str, DenseRow] = {
    "r18": DenseRow(2e-4, 120, 64, 3),
    "r34": DenseRow(1e-4, 120, 64, 3),
    "r50m": DenseRow(2e-5, 60, 34, 2),
    "r50": DenseRow(2e-5, 60, 34, 2),
    "r101": DenseRow(2e-6, 60, 34, 2),
}
TABLES = {"rtdetrv2_coco": COCO, "rtdetrv2_discrete_coco": DISCRETE, "deim_rtdetrv2_coco": DEIM}


def published(table: str, variant: str) -> Config:
    """Configuration of a published recipe, for example ``rtdetrv2_coco`` and ``r18``.

    Raises:
      UserError: there is no such recipe.
    """
    row = TABLES.get(table, {}).get(variant)
    if row is None:
        known = ", ".join(f"{name} ({' '.join(rows)})" for name, rows in TABLES.items())
        raise UserError(f"no published recipe {table!r} for {variant!r}; there are {known}")
    config = _deim(row, variant) if isinstance(row, DenseRow) else _own(row, variant)
    model = dataclasses.replace(config.model, precision="bfloat16")
    if table == "rtdetrv2_discrete_coco":
        model = dataclasses.replace(model, sampling="discrete")
    return dataclasses.replace(config, model=model)


def recipe(variant: str, start: Start, method: str, task: str) -> tuple[str, Config]:
    """Name and line of the table that a training set of one's own is derived from: the one for COCO.

    Args:
      method: ``rtdetrv2`` or ``deim``.

    Raises:
      UserError: DEIM has published nothing for the variant.
    """
    del start, task
    table = "rtdetrv2_coco" if method == "rtdetrv2" else "deim_rtdetrv2_coco"
    return table, published(table, variant)


def deim_model(variant: str) -> RTDetrConfig:
    """The variant as DEIM trains it: SiLU in the decoder, another query position head, the whole backbone trained.

    R50-m has three decoder layers in place of six of which the third answers.
    """
    model = VARIANTS[variant]
    return dataclasses.replace(
        model,
        decoder_layers=model.eval_layer + 1,
        query_position="deep",
        decoder_activation="silu",
        mlp_activation="silu",
        backbone_frozen_bn=False,
        backbone_frozen_stem=False,
    )


def deim_loss() -> RTDetrLossConfig:
    """The loss that DEIM trains with."""
    return RTDetrLossConfig(class_loss="mal", unfold_boxes=True, denoise_without_objects=False)


def _own(row: RecipeRow, variant: str) -> Config:
    return Config(
        model=VARIANTS[variant],
        loss=RTDetrLossConfig(),
        optim=OptimConfig(
            lr=1e-4,
            backbone_lr=row.backbone_lr,
            warmup_steps=2000,
            ema_warmup_steps=2000,
            decay_bias=variant != "r34",
            backbone_bn="base" if variant == "r18" else "backbone",
        ),
        data=DataConfig(stop_augment_epoch=row.stop_epoch, multi_scale_repeat=_scale_repeat(variant)),
        train=TrainConfig(method="rtdetrv2", epochs=row.epochs, batch_size=BATCH, eval_batch_size=2 * BATCH),
    )


def _deim(row: DenseRow, variant: str) -> Config:
    last = row.epochs - row.no_aug
    return Config(
        model=deim_model(variant),
        loss=deim_loss(),
        optim=OptimConfig(
            lr=2e-4,
            backbone_lr=row.backbone_lr,
            schedule="flat_cosine",
            flat_epochs=row.flat,
            final_epochs=row.no_aug,
            min_lr_ratio=0.5,
            warmup_steps=2000,
            ema_warmup_steps=2000,
            decay_bias=True,
            backbone_bn="base",
        ),
        data=DataConfig(
            augment="dense",
            start_augment_epoch=4,
            stop_mosaic_epoch=row.flat,
            stop_augment_epoch=last,
            multi_scale_repeat=_scale_repeat(variant),
        ),
        train=TrainConfig(
            method="deim", epochs=row.epochs, stage2_epoch=last, batch_size=BATCH, eval_batch_size=2 * BATCH
        ),
    )


def _scale_repeat(variant: str) -> int:
    return 0 if variant == "r18" else SCALE_REPEAT
