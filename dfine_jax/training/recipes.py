"""Configurations for data of one's own: the published tables, adapted to the number of steps there will be."""

from __future__ import annotations

import dataclasses
from typing import Literal

from dfine_jax.config import Config, DataConfig, OptimConfig, TrainConfig
from dfine_jax.data.plan import Sampling
from dfine_jax.errors import UserError
from dfine_jax.training.tables import published
from dfine_jax.variants import VARIANTS

Method = Literal["dfine", "deim"]
Start = Literal["nothing", "backbone", "detector"]  # what is pretrained


def default_config(
    variant: str,
    num_classes: int,
    num_images: int,
    *,
    method: Method = "dfine",
    batch_size: int | None = None,
    epochs: int | None = None,
    size_px: tuple[int, int] = (640, 640),
    start: Start = "nothing",
    accelerator: bool = False,
    batch_multiple: int = 1,
) -> tuple[Config, list[str]]:
    """Configuration for a training set, and a line for each value that is not the table's.

    The table is the reference's: D-FINE's for custom data, D-FINE's for COCO after Objects365 when there are weights to
    start from, DEIM's for COCO. What depends on the length of the run is shortened when the run is short, and left
    alone otherwise:

    - learning rates scale with the square root of the batch size (the rule for Adam-like optimisers); a backbone that
      starts from nothing learns whole and at half the full rate, as in N and S, because the smaller backbone rates of
      M, L and X and their frozen parts are for pretrained ones;
    - warm-up takes at most a tenth of the steps, so does that of the average;
    - the average looks back over at most a tenth of the run: decay <= 1 - 10 / steps (table: 0.9999), and stage 2
      shortens it in the same measure;
    - the epochs at which augmentation, learning rate and stage change keep their share of the run.

    Args:
      variant: ``n``, ``s``, ``m``, ``l`` or ``x``.
      num_classes: classes of the data.
      num_images: training images.
      batch_size: images per step over all devices, taken as it is; None: the table's, at most the number of images.
      epochs: the table's if None.
      size_px: (height, width) of the input, multiples of 32.
      start: what is pretrained: nothing, the backbone, or a whole detector.
      accelerator: there is a GPU or the like; otherwise one input size, compiled once, and float32.
      batch_multiple: a batch size that is not given becomes a multiple of this, the number of devices.

    Raises:
      UserError: unknown variant, no images, or a size that is not a multiple of 32.
    """
    if variant not in VARIANTS:
        raise UserError(f"unknown recipe {variant!r}; choose one of {', '.join(VARIANTS)} or a file with get_config()")
    if num_images < 1:
        raise UserError("the training set has no images")
    if any(side % 32 or side < 32 for side in size_px):
        raise UserError(f"input size {size_px[0]}x{size_px[1]} must be multiples of 32, for example 640x640")
    name = "deim_coco" if method == "deim" else "dfine_obj2coco" if start == "detector" else "dfine_custom"
    table = published(name, variant)
    if batch_size is None:
        batch_size = min(table.train.batch_size, num_images)
        batch_size = max(batch_size // batch_multiple, 1) * batch_multiple
    epochs = epochs or table.train.epochs
    steps = Sampling(num_images, batch_size, 0, table.data).steps_per_epoch
    model = dataclasses.replace(
        table.model, num_classes=num_classes, precision="bfloat16" if accelerator else "float32"
    )
    if start == "nothing":
        model = dataclasses.replace(model, backbone_frozen_bn=False, backbone_frozen_stem=False)
    rate = (batch_size / table.train.batch_size) ** 0.5
    config = Config(
        model=model,
        loss=table.loss,
        optim=_optim(table, epochs, epochs * steps, rate, start == "nothing"),
        data=_data(table, epochs, size_px, accelerator),
        train=_train(table, epochs, batch_size),
    )
    return config, [_headline(config, name, num_images, steps), *_differences(config, table)]


def _share(epoch: int, table: TrainConfig, epochs: int) -> int:
    """The epoch of a shorter or longer run that corresponds to one of the table's; what never comes, never comes."""
    return epoch if epoch > table.epochs else round(epochs * epoch / table.epochs)


def _optim(table: Config, epochs: int, total: int, rate: float, fresh_backbone: bool) -> OptimConfig:
    full = table.optim
    backbone_lr = max(full.backbone_lr, full.lr / 2) if fresh_backbone else full.backbone_lr
    decay = max(0.0, min(full.ema_decay, 1 - 10 / total))
    flat = _share(full.flat_epochs, table.train, epochs)
    final = epochs - _share(table.train.epochs - full.final_epochs, table.train, epochs) if full.final_epochs else 0
    return dataclasses.replace(
        full,
        lr=full.lr * rate,
        backbone_lr=backbone_lr * rate,
        flat_epochs=flat if flat > epochs else min(flat, epochs - final),
        final_epochs=final,
        warmup_steps=min(full.warmup_steps, total // 10),
        ema_warmup_steps=min(full.ema_warmup_steps, total // 10),
        ema_decay=decay,
        ema_restart_decay=full.ema_restart_decay if decay == full.ema_decay else decay,
        ema_restart_step=full.ema_restart_step if decay == full.ema_decay else min(1 - decay, decay),
    )


def _data(table: Config, epochs: int, size_px: tuple[int, int], accelerator: bool) -> DataConfig:
    full = table.data
    return dataclasses.replace(
        full,
        height_px=size_px[0],
        width_px=size_px[1],
        start_augment_epoch=min(full.start_augment_epoch, _share(full.start_augment_epoch, table.train, epochs)),
        stop_mosaic_epoch=_share(full.stop_mosaic_epoch, table.train, epochs),
        stop_augment_epoch=_share(full.stop_augment_epoch, table.train, epochs),
        multi_scale_repeat=full.multi_scale_repeat if accelerator else 0,
    )


def _train(table: Config, epochs: int, batch_size: int) -> TrainConfig:
    return dataclasses.replace(
        table.train,
        epochs=epochs,
        stage2_epoch=_share(table.train.stage2_epoch, table.train, epochs),
        batch_size=batch_size,
        eval_batch_size=min(16, 2 * batch_size),
    )


def _headline(config: Config, table: str, num_images: int, steps: int) -> str:
    model, train = config.model, config.train
    what = f"{model.variant.upper()}, {model.num_classes} classes, {num_images} images"
    return f"{what}: {train.epochs} epochs of {steps} steps of {train.batch_size} images (table {table})"


def _differences(config: Config, table: Config) -> list[str]:
    """Values that were derived and are not the table's."""
    lines = []
    for section in ("model", "optim", "data", "train"):
        ours, theirs = getattr(config, section), getattr(table, section)
        for field in dataclasses.fields(ours):
            key, value, known = f"{section}.{field.name}", getattr(ours, field.name), getattr(theirs, field.name)
            if value != known and key not in _GIVEN:
                shown = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in (value, known)]
                lines.append(f"{key} = {shown[0]} (table: {shown[1]})")
    return lines


_GIVEN = {"model.num_classes", "train.epochs", "train.batch_size", "train.eval_batch_size"}
_GIVEN |= {"data.height_px", "data.width_px"}
