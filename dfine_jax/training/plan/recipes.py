"""Configurations for data of one's own: the published tables, adapted to the number of steps there will be."""

from __future__ import annotations

import dataclasses

from dfine_jax.config import Config, DataConfig, OptimConfig, TrainConfig
from dfine_jax.data.load.plan import Sampling
from dfine_jax.errors import UserError
from dfine_jax.families import of_recipe, title
from dfine_jax.families.family import Start
from dfine_jax.ops.grid import on_grid

COCO_IMAGES = 118_287  # the tables are made for so many
_LEAST_STEPS = {"nothing": 8000, "backbone": 8000, "detector": 3000}
_MOST_EPOCHS = 500
_CPU_BATCH_SIZE = 8
_LEAST_BATCH_SIZE = 8  # few images do not make it smaller
_USUAL_EPOCHS = 200  # in which few images should give the least number of steps
_STEPS_BETWEEN_EVALUATIONS = 100  # at least, on an accelerator, where evaluating takes longer than so many steps


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A configuration and where it comes from."""

    config: Config
    table: Config  # what it was derived from
    headline: str
    reasons: dict[str, str]  # by key, why it differs from the table
    source: str = "table"  # what to call the table


def default_config(
    recipe: str,
    num_classes: int,
    num_images: int,
    *,
    method: str = "",
    task: str = "detect",
    batch_size: int | None = None,
    epochs: int | None = None,
    size_px: tuple[int, int] | None = None,
    start: Start = "nothing",
    accelerator: bool = False,
    batch_multiple: int = 1,
) -> Recipe:
    """Configuration for a training set.

    The table is the family's, for the method, the task and what is pretrained. The length follows from
    ``default_epochs``, what depends on it and on the batch size from ``rescaled``. A backbone that starts from nothing
    learns whole and at half the full rate at least, in all its layers, because smaller backbone rates and frozen parts
    are for pretrained ones.

    Args:
      recipe: ``[family-]variant``.
      num_classes: classes of the data.
      num_images: training images.
      method: whose recipe, of the family's ``methods``; empty: its own.
      task: of the family's ``tasks``.
      batch_size: images per step over all devices, taken as it is; None: the table's (8 without an accelerator), for
        few images a smaller one.
      epochs: as ``default_epochs`` if None.
      size_px: (height, width) of the input; None: that of the model.
      start: what is pretrained: nothing, the backbone, or a whole detector.
      accelerator: there is a GPU or the like; otherwise one input size, compiled once, and float32.
      batch_multiple: a batch size that is not given becomes a multiple of this, the number of devices.

    Raises:
      UserError: unknown recipe, method or task, no images, or a size that does not fit the model.
    """
    family, variant = of_recipe(recipe)
    method = method or family.methods[0]
    if method not in family.methods:
        raise UserError(f"{recipe} has no recipe of {method!r}; there are those of {', '.join(family.methods)}")
    if task not in family.tasks:
        raise UserError(f"{family.title} does not {task}; it can {' and '.join(family.tasks)}")
    if num_images < 1:
        raise UserError("the training set has no images")
    name, table = family.recipe(variant, start, method, task)
    size_px, grid_px = size_px or family.size_px(table.model), family.grid_px(table.model)
    if any(side % grid_px or side < grid_px for side in size_px):
        near = "x".join(str(on_grid(side, grid_px)) for side in size_px)
        raise UserError(f"input size {size_px[0]}x{size_px[1]} must be multiples of {grid_px}, for example {near}")
    reasons = {}
    if batch_size is None:
        usual = table.train.batch_size if accelerator else _CPU_BATCH_SIZE
        batch_size = min(usual, _most_images_per_batch(num_images, start))
        batch_size = max(batch_size // batch_multiple, 1) * batch_multiple
        if batch_size < usual:
            reasons["train.batch_size"] = "few images"
    if epochs is None:
        epochs, why = default_epochs(table.train.epochs, num_images, batch_size, start)
        if why:
            reasons["train.epochs"] = why
    config = rescaled(table, num_images, epochs=epochs, batch_size=batch_size)
    model, optim, data = config.model, config.optim, config.data
    model = family.with_classes(model, num_classes, None)
    model = dataclasses.replace(model, precision="bfloat16" if accelerator else "float32")
    if start == "nothing":
        model = dataclasses.replace(model, **dict.fromkeys(family.frozen, False))
        rates = {"backbone_lr": max(optim.backbone_lr, optim.lr / 2), "layer_decay": 1.0, "component_decay": 1.0}
        optim = dataclasses.replace(optim, **rates)
    data = dataclasses.replace(data, height_px=size_px[0], width_px=size_px[1])
    if not accelerator:
        data = dataclasses.replace(data, multi_scale_repeat=0)
    train = dataclasses.replace(config.train, eval_batch_size=min(16, 2 * batch_size))
    every = _evaluation_epochs(num_images // batch_size, epochs) if accelerator else 1
    if every > 1:
        train = dataclasses.replace(train, eval_every=every, checkpoint_every=every)
        reasons |= dict.fromkeys(("train.eval_every", "train.checkpoint_every"), "short epochs")
    config = Config(model, config.loss, optim, data, train)
    return Recipe(config, table, headline(config, f"table {name}", num_images), reasons)


def _most_images_per_batch(num_images: int, start: Start) -> int:
    """A power of two with which the least number of steps takes no more than the usual epochs."""
    steps_per_epoch = -(-_LEAST_STEPS[start] // _USUAL_EPOCHS)
    most = max(1, num_images // steps_per_epoch)
    return min(max(_LEAST_BATCH_SIZE, 1 << (most.bit_length() - 1)), num_images)


def _evaluation_epochs(steps_per_epoch: int, epochs: int) -> int:
    """Epochs from one evaluation to the next; ten evaluations there are in any case."""
    return max(1, min(-(-_STEPS_BETWEEN_EVALUATIONS // max(1, steps_per_epoch)), epochs // 10))


def default_epochs(table_epochs: int, num_images: int, batch_size: int, start: Start) -> tuple[int, str]:
    """Epochs for so many images, and the reason where they are not the table's.

    More images than COCO has: fewer epochs, with the square root of the ratio, which is how the published tables for
    Objects365 (36 epochs of 1.75 million images) relate to those for COCO (132). Few images: so many epochs that there
    are enough steps to learn from, at most 500.
    """
    times = num_images / COCO_IMAGES
    if times > 1:
        epochs = max(1, round(table_epochs / times**0.5))
        return epochs, f"{times:.3g} times COCO's images" if epochs != table_epochs else ""
    per_epoch, least = max(1, num_images // batch_size), _LEAST_STEPS[start]
    if table_epochs * per_epoch >= least or table_epochs >= _MOST_EPOCHS:
        return table_epochs, ""
    needed = -(-least // per_epoch)
    if needed > _MOST_EPOCHS:
        return _MOST_EPOCHS, f"few images, {per_epoch} steps per epoch; the most there are"
    return needed, f"few images, {per_epoch} steps per epoch; at least {least} steps"


def rescaled(table: Config, num_images: int, *, epochs: int | None = None, batch_size: int | None = None) -> Config:
    """A configuration for another number of epochs or another batch size.

    - Learning rates scale with the square root of the batch size (the rule for Adam-like optimisers).
    - Warm-up, that of the average, and the memory of the average keep their number of images, as the reference advises
      (twice the batch: half the steps, twice ``1 - decay``).
    - Both warm-ups take at most a tenth of the steps; in a run shorter than the table's on COCO the average looks back
      over at most a tenth of it (decay <= 1 - 10 / steps), and stage 2 shortens it in the same measure.
    - The epochs at which augmentation, learning rate and stage change keep their share of the run.
    """
    epochs, batch_size = epochs or table.train.epochs, batch_size or table.train.batch_size
    total = epochs * Sampling(num_images, batch_size, 0, table.data).steps_per_epoch
    return dataclasses.replace(
        table,
        optim=_optim(table, epochs, total, batch_size / table.train.batch_size),
        data=_data(table, epochs),
        train=_train(table, epochs, batch_size),
    )


def share(epoch: int, table: TrainConfig, epochs: int) -> int:
    """The epoch of a shorter or longer run that corresponds to one of the table's; what never comes, never comes."""
    return epoch if epoch > table.epochs else round(epochs * epoch / table.epochs)


def _optim(table: Config, epochs: int, total: int, ratio: float) -> OptimConfig:
    full = table.optim
    kept = _decay(full.ema_decay, ratio)
    whole = table.train.epochs * (COCO_IMAGES // table.train.batch_size) / ratio  # steps of what the table is made for
    decay = kept if total >= whole else max(0.0, min(kept, 1 - 10 / total))
    flat = share(full.flat_epochs, table.train, epochs)
    final = epochs - share(table.train.epochs - full.final_epochs, table.train, epochs) if full.final_epochs else 0
    return dataclasses.replace(
        full,
        lr=full.lr * ratio**0.5,
        backbone_lr=full.backbone_lr * ratio**0.5,
        flat_epochs=flat if flat > epochs else min(flat, epochs - final),
        final_epochs=final,
        drop_epoch=share(full.drop_epoch, table.train, epochs),
        warmup_steps=min(round(full.warmup_steps / ratio), total // 10),
        ema_warmup_steps=min(round(full.ema_warmup_steps / ratio), total // 10),
        ema_decay=decay,
        ema_restart_decay=_decay(full.ema_restart_decay, ratio) if decay == kept else decay,
        ema_restart_step=min(1.0, full.ema_restart_step * ratio) if decay == kept else min(1 - decay, decay),
    )


def _decay(decay: float, ratio: float) -> float:
    """Decay of an average over as many images in steps of ``ratio`` times as many."""
    return decay if ratio == 1 else max(0.0, 1 - ratio * (1 - decay))


def _data(table: Config, epochs: int) -> DataConfig:
    full = table.data
    return dataclasses.replace(
        full,
        start_augment_epoch=min(full.start_augment_epoch, share(full.start_augment_epoch, table.train, epochs)),
        stop_mosaic_epoch=share(full.stop_mosaic_epoch, table.train, epochs),
        stop_augment_epoch=share(full.stop_augment_epoch, table.train, epochs),
    )


def _train(table: Config, epochs: int, batch_size: int) -> TrainConfig:
    full = table.train
    return dataclasses.replace(
        full,
        epochs=epochs,
        stage2_epoch=share(full.stage2_epoch, full, epochs),
        batch_size=batch_size,
        eval_batch_size=max(1, round(full.eval_batch_size * batch_size / full.batch_size)),
    )


def dense_windows(config: Config) -> dict[str, int]:
    """Epochs of mosaic and MixUp for a recipe that has none, by key: from the fifth to half of the run, as in DEIM."""
    epochs = config.train.epochs
    return {
        "data.start_augment_epoch": min(4, epochs // 10),
        "data.stop_mosaic_epoch": min(epochs // 2, config.data.stop_augment_epoch),
    }


def headline(config: Config, origin: str, num_images: int) -> str:
    """What the run is, in a line."""
    model, train = config.model, config.train
    steps = Sampling(num_images, train.batch_size, 0, config.data).steps_per_epoch
    what = f"{title(model)}, {model.num_classes} classes, {num_images} images"
    return f"{what}: {train.epochs} epochs of {steps} steps of {train.batch_size} images ({origin})"
