"""The published recipe: defaults of ``rfdetr.config.TrainConfig``, package rfdetr 1.11.2.

The batch is 16 images in one step: what its automatic batch size aims at, and what the four times four of release 1.4.1
amount to; its default today is four images in a step at the same rates. The reference computes in bfloat16, or in
float16 with scaled losses where a card has no bfloat16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dfine_jax.config import Config, DataConfig, OptimConfig, TrainConfig
from dfine_jax.data.read.coco_names import COCO_NAMES
from dfine_jax.errors import UserError
from dfine_jax.families.family import Start
from dfine_jax.families.rfdetr.config import RFDetrConfig, RFDetrLossConfig
from dfine_jax.families.rfdetr.inputs import size_px
from dfine_jax.families.rfdetr.variants import VARIANTS, detecting, segmenting

BATCH = 16
EPOCHS = 100
TABLES = ("rfdetr_coco", "rfdetr_custom")


def published(table: str, variant: str) -> Config:
    """Configuration of a published recipe: ``rfdetr_coco``, or ``rfdetr_custom`` for classes of one's own.

    They differ in the class heads alone.

    Raises:
      UserError: there is no such recipe.
    """
    if table not in TABLES or variant not in VARIANTS:
        raise UserError(
            f"no published recipe {table!r} for {variant!r}; there are {' and '.join(TABLES)} for all sizes"
        )
    model = VARIANTS[variant]
    return _config(dataclasses.replace(model, head_rows="coco") if table == "rfdetr_coco" else model)


def recipe(variant: str, start: Start, method: str, task: str) -> tuple[str, Config]:
    """Name and line of the table that a training set of one's own is derived from, with the architecture of the task.

    Args:
      task: ``detect`` or ``segment``; the sizes of both correspond by name.
    """
    del start, method
    return "rfdetr_custom", _config((segmenting if task == "segment" else detecting)(VARIANTS[variant]))


def with_classes(model: RFDetrConfig, number: int, names: Sequence[str] | None) -> RFDetrConfig:
    """The model for so many classes; rows of COCO's ids stay where the classes are COCO's, and say that they are."""
    is_coco = names is not None and tuple(names) == COCO_NAMES
    return dataclasses.replace(model, num_classes=number, head_rows=model.head_rows if is_coco else "spare")


def _config(model: RFDetrConfig) -> Config:
    height_px, width_px = size_px(model)
    return Config(
        model=dataclasses.replace(model, precision="bfloat16"),
        loss=RFDetrLossConfig(),
        optim=OptimConfig(
            lr=1e-4,
            backbone_lr=1.5e-4,
            layer_decay=0.8,
            component_decay=0.7,
            schedule="drop",
            drop_epoch=EPOCHS,
            min_lr_ratio=0.1,
            warmup_steps=0,
            ema_decay=0.993,
            ema_restart_decay=0.993,
            ema_warmup_steps=100,
            ema_first="copy",
            decay_bias=True,
        ),
        data=DataConfig(
            height_px=height_px,
            width_px=width_px,
            stop_mosaic_epoch=0,
            stop_augment_epoch=EPOCHS,
            photometric_prob=0.0,
            zoom_out_prob=0.0,
            iou_crop_prob=0.0,
            square_crop_prob=0.5,
            multi_scale_repeat=1,
        ),
        train=TrainConfig(method="rfdetr", epochs=EPOCHS, batch_size=BATCH, eval_batch_size=2 * BATCH),
    )
