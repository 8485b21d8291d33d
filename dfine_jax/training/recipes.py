"""Configurations for data of one's own: the reference's tables, adapted to the number of steps there will be."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from dfine_jax.config import Config, DataConfig, LossConfig, OptimConfig, TrainConfig
from dfine_jax.errors import UserError
from dfine_jax.variants import VARIANTS, model_config


class Recipe(NamedTuple):
    """One row of the reference's table for custom data (configs/dfine/custom)."""

    lr: float
    backbone_lr: float
    weight_decay: float
    batch_size: int
    epochs: int
    stop_augment_epoch: int
    decay_bias: bool


CUSTOM: dict[str, Recipe] = {
    "n": Recipe(8e-4, 4e-4, 1e-4, 128, 220, 200, decay_bias=False),
    "s": Recipe(4e-4, 2e-4, 1e-4, 64, 220, 200, decay_bias=False),
    "m": Recipe(2.5e-4, 2.5e-5, 1.25e-4, 32, 132, 120, decay_bias=False),
    "l": Recipe(2.5e-4, 1.25e-5, 1.25e-4, 32, 80, 72, decay_bias=True),
    "x": Recipe(2.5e-4, 2.5e-6, 1.25e-4, 32, 80, 72, decay_bias=True),
}


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Batches of an epoch; the incomplete last one is dropped, as in the reference."""
    return num_images // batch_size


def default_config(
    variant: str,
    num_classes: int,
    num_images: int,
    *,
    batch_size: int | None = None,
    epochs: int | None = None,
    size_px: tuple[int, int] = (640, 640),
    from_scratch: bool = True,
) -> tuple[Config, list[str]]:
    """Configuration for a training set, and a line for each value that is not the table's.

    The table is the reference's for custom data. What depends on the length of the run is shortened when the run is
    short, and left alone otherwise:

    - learning rates scale with the square root of the batch size (the rule for Adam-like optimisers); a backbone that
      starts from nothing learns at half the full rate, as in N and S, because the smaller backbone rates of M, L and X
      are for pretrained ones;
    - warm-up takes at most a tenth of the steps (table: 500), so does that of the average (table: 1000);
    - the average looks back over at most a tenth of the run: decay <= 1 - 10 / steps (table: 0.9999);
    - the last tenth of the epochs, the share of the table, runs without the strong augmentations.

    Args:
      variant: ``n``, ``s``, ``m``, ``l`` or ``x``.
      num_classes: classes of the data.
      num_images: training images.
      batch_size: images per step over all devices; the table's if None, at most the number of images.
      epochs: the table's if None.
      size_px: (height, width) of the input, multiples of 32.
      from_scratch: no pretrained weights are loaded.

    Raises:
      UserError: unknown variant, no images, or a size that is not a multiple of 32.
    """
    if variant not in VARIANTS:
        raise UserError(f"unknown recipe {variant!r}; choose one of {', '.join(VARIANTS)} or a file with get_config()")
    if num_images < 1:
        raise UserError("the training set has no images")
    if any(side % 32 or side < 32 for side in size_px):
        raise UserError(f"input size {size_px[0]}x{size_px[1]} must be multiples of 32, for example 640x640")
    row = CUSTOM[variant]
    batch_size = min(batch_size or row.batch_size, num_images)
    epochs = epochs or row.epochs
    stop_augment_epoch = round(epochs * row.stop_augment_epoch / row.epochs)
    total = max(1, epochs * steps_per_epoch(num_images, batch_size))
    rate = (batch_size / row.batch_size) ** 0.5
    full = OptimConfig(weight_decay=row.weight_decay, decay_bias=row.decay_bias)
    optim = dataclasses.replace(
        full,
        lr=row.lr * rate,
        backbone_lr=(max(row.backbone_lr, row.lr / 2) if from_scratch else row.backbone_lr) * rate,
        warmup_steps=min(full.warmup_steps, total // 10),
        ema_warmup_steps=min(full.ema_warmup_steps, total // 10),
        ema_decay=max(0.0, min(full.ema_decay, 1 - 10 / total)),
    )
    config = Config(
        model=model_config(variant, num_classes=num_classes),
        loss=LossConfig(),
        optim=optim,
        data=DataConfig(height_px=size_px[0], width_px=size_px[1], stop_augment_epoch=stop_augment_epoch),
        train=TrainConfig(epochs=epochs, batch_size=batch_size, eval_batch_size=min(16, 2 * batch_size)),
    )
    table = dataclasses.replace(full, lr=row.lr, backbone_lr=row.backbone_lr)
    notes = [
        f"optim.{field.name} = {getattr(optim, field.name):g} (table: {getattr(table, field.name):g})"
        for field in dataclasses.fields(OptimConfig)
        if getattr(optim, field.name) != getattr(table, field.name)
    ]
    plan = f"{epochs} epochs of {steps_per_epoch(num_images, batch_size)} steps of {batch_size} images"
    return config, [f"{variant.upper()}, {num_classes} classes, {num_images} images: {plan}", *notes]
